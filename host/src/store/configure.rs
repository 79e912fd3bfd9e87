//! Which buckets a store has: those of a config, each as the state before has it, or else as its backend does.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::backend::{Backends, Fetched, Fetcher};
use super::bucket::FLEET;
use super::record::Record;
use super::snapshot::{Bucket, Entry, Snapshot};
use super::table::Table;
use super::writer::Command;
use super::{
    BackendKind, BucketConfig, BucketId, Inner, OpenError, Revision, Store, Value, ValueKind,
};
use tokio::sync::oneshot;

/// Where marks are kept: no name that a config can give.
pub(super) const MARKS: &str = "throwbar:marks";

impl Store {
    /// Makes the buckets those of a new config: adds new ones, changes limits. A bucket no longer named stays
    /// readable by id until restart but no longer by name, and takes no writes; its data on disk is kept, and it is
    /// back, under its id, when a later config names it again with the same backend.
    ///
    /// # Errors
    /// As for [`Self::open`]; the buckets are then as they were. If the future is dropped they may still change.
    pub async fn reconfigure(&self, buckets: &[BucketConfig]) -> Result<(), OpenError> {
        let inner = &self.inner;
        let (done, answer) = oneshot::channel();
        let fetcher = Fetcher {
            links: Arc::clone(&inner.committer.links),
            newest: Arc::clone(&inner.newest),
            commands: inner.commands.clone(),
        };
        let (snapshot, buckets) = (self.snapshot(), buckets.to_vec());
        let waits = !missing(&snapshot, &buckets).is_empty();
        let ask = move || match fetcher.fetch(&snapshot, &buckets) {
            // If the store is closed by now, whoever waits learns that from the end of its channel.
            Ok(fetched) => drop(
                fetcher
                    .commands
                    .send(Command::Reconfigure(buckets, fetched, done)),
            ),
            Err(error) => drop(done.send(Err(error))),
        };
        if inner.places.is_closed() {
            return Err(OpenError::Closed);
        }
        if waits {
            inner.load(ask)?;
        } else {
            ask();
        }
        answer.await.unwrap_or(Err(OpenError::Closed))
    }
}

impl Inner {
    /// Loads on a thread. It ends with the answer of an engine, which has its time, and nobody else waits for that; whoever
    /// closes the store waits for it.
    fn load(&self, ask: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock: what is started before is joined.
        if self.places.is_closed() {
            return Err(OpenError::Closed);
        }
        let thread = std::thread::Builder::new().name("store-load".into());
        let thread = thread.spawn(ask).map_err(OpenError::Thread)?;
        loading.retain(|thread| !thread.is_finished());
        loading.push(thread);
        Ok(())
    }
}

impl Snapshot {
    /// No bucket at all.
    pub(super) fn empty() -> Self {
        Self {
            revision: Revision::default(),
            buckets: Vec::new(),
            names: Arc::default(),
            marks: Arc::default(),
            fleet: None,
        }
    }
}

/// The state with the buckets of a config: what `previous` has of them, else what the backends have.
///
/// # Errors
/// What is wrong with a bucket, by its name. Nothing more is followed then than before.
pub(super) fn configure(
    previous: &Snapshot,
    configs: &[BucketConfig],
    mut fetched: Vec<Fetched>,
    backends: &mut Backends,
) -> Result<Snapshot, OpenError> {
    let follow: Vec<_> = fetched.iter().map(Fetched::wanted).collect();
    let mut take =
        |next: &mut Snapshot, config: &BucketConfig| take(next, config, &mut fetched, backends);
    let mut next = previous.clone();
    let mut names = BTreeMap::new();
    next.fleet = None;
    for config in configs {
        let id = take(&mut next, config)?;
        if config.name == FLEET {
            next.fleet = Some(id);
            continue;
        }
        if names.insert(config.name.clone(), id).is_some() {
            return Err(OpenError::Duplicate {
                bucket: config.name.clone(),
            });
        }
    }
    let marks = marks(configs).into_iter();
    let marks = marks.map(|config| take(&mut next, &config));
    next.marks = marks.collect::<Result<_, _>>()?;
    next.names = Arc::new(names);
    backends.add_followed(follow);
    warn_of_moves(previous, &next);
    Ok(next)
}

/// Says which buckets are on another backend now, where what they had is not.
fn warn_of_moves(previous: &Snapshot, next: &Snapshot) {
    for (id, bucket) in next.buckets() {
        let name = &bucket.config.name;
        let before = previous.bucket_id(name).filter(|before| *before != id);
        let before = before.and_then(|before| previous.bucket(before));
        if let Some(before) = before.filter(|before| !before.is_empty()) {
            tracing::warn!(
                bucket = name,
                was = before.config.backend.as_str(),
                is = bucket.config.backend.as_str(),
                keys = before.len(),
                "bucket is on another backend now: the keys it had on the one before are not read any more, export and \
                 import them"
            );
        }
    }
}

/// The buckets of a config that processes share and a state does not have: to be loaded before it can.
pub(super) fn missing(previous: &Snapshot, configs: &[BucketConfig]) -> Vec<BucketConfig> {
    let all = configs.iter().cloned().chain(marks(configs));
    all.filter(|config| config.backend.is_shared() && known(previous, config).is_none())
        .collect()
}

/// The buckets of marks: one for what is this process's own, as durable as that, and one beside all that is shared.
fn marks(configs: &[BucketConfig]) -> Vec<BucketConfig> {
    let has = |backend| configs.iter().any(|config| config.backend == backend);
    let own = match has(BackendKind::Embedded) {
        true => BackendKind::Embedded,
        false => BackendKind::Memory,
    };
    let shared = [BackendKind::Etcd, BackendKind::Redis];
    let shared = shared.into_iter().filter(|backend| has(*backend));
    std::iter::once(own)
        .chain(shared)
        .map(|backend| BucketConfig::new(MARKS, backend, ValueKind::Bytes))
        .collect()
}

/// A bucket of a config: as it is, or as the backend has it.
fn take(
    next: &mut Snapshot,
    config: &BucketConfig,
    fetched: &mut Vec<Fetched>,
    backends: &mut Backends,
) -> Result<BucketId, OpenError> {
    let index = match known(next, config) {
        Some(index) => {
            let bucket = &mut next.buckets[index];
            let is_other = bucket.config.values != config.values;
            if is_other {
                bucket.table = converted(&bucket.table, config)?;
                // They may not be over after all.
                if let Some(over) = &mut bucket.over {
                    **over = converted(over, config)?;
                }
            }
            if is_other || bucket.config.lookup != config.lookup {
                let over = bucket.over.take();
                *bucket = made(config, bucket.table.clone(), over, bucket.revision)?;
            }
            bucket.config = Arc::new(config.clone());
            index
        }
        None => {
            let (bucket, newest) = load(config, fetched, backends)?;
            next.revision = next.revision.max(newest);
            next.buckets.push(bucket);
            next.buckets.len() - 1
        }
    };
    let id = u32::try_from(index).expect("a config holds fewer buckets");
    Ok(BucketId(id))
}

/// Where a state has a bucket of a config, if it does.
fn known(snapshot: &Snapshot, config: &BucketConfig) -> Option<usize> {
    let id = snapshot.bucket_on(config.backend, &config.name)?;
    Some(id.0 as usize)
}

/// A bucket as its backend has it, and the newest revision of that.
fn load(
    config: &BucketConfig,
    fetched: &mut Vec<Fetched>,
    backends: &mut Backends,
) -> Result<(Bucket, Revision), OpenError> {
    let (loaded, newest) = match fetched.iter().position(|one| one.is_of(config)) {
        Some(index) => {
            let loaded = fetched.swap_remove(index).loaded;
            let revision = loaded.revision;
            (loaded, revision)
        }
        None => backends.load(config)?,
    };
    Ok((made(config, loaded.table, None, loaded.revision)?, newest))
}

fn made(
    config: &BucketConfig,
    table: Table,
    over: Option<Box<Table>>,
    revision: Revision,
) -> Result<Bucket, OpenError> {
    let bucket = Bucket::new(Arc::new(config.clone()), table, over, revision);
    bucket.map_err(|(key, reason)| OpenError::Key {
        bucket: config.name.clone(),
        key: key.into(),
        reason,
    })
}

/// The same entries as values of another kind.
fn converted(table: &Table, config: &BucketConfig) -> Result<Table, OpenError> {
    let records = table
        .iter()
        .map(|record| {
            let value =
                Value::parse(config.values, &record.entry.value.to_bytes()).map_err(|error| {
                    OpenError::Value {
                        bucket: config.name.clone(),
                        key: record.key().to_owned(),
                        reason: error.0,
                    }
                })?;
            let entry = Entry {
                value,
                ..record.entry.clone()
            };
            Ok(Record::new(record.key(), entry))
        })
        .collect::<Result<Vec<_>, OpenError>>()?;
    Ok(Table::load(records.into_iter()))
}
