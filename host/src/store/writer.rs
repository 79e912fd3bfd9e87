//! The one thread that changes the store: checks batches in order, makes a group of them durable at once, publishes
//! the state after them, and only then answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::apply::apply;
use super::backend::{Backends, Failed};
use super::batch::{CommitError, Committed, WriteBatch};
use super::snapshot::{Bucket, Entry, Snapshot};
use super::table::{Record, Table};
use super::{BackendKind, BucketConfig, BucketId, OpenError, Revision, Value, ValueKind};

/// Most batches that share one transaction.
const GROUP_BATCHES_MAX: usize = 256;
/// A group takes no further batch once it has this many writes.
const GROUP_WRITES_MAX: usize = 65_536;
/// How often snapshots that readers still held are looked at again.
const RETIRE_INTERVAL: Duration = Duration::from_millis(250);
/// Where marks are kept: no name that a config can give.
const MARKS: &str = "throwbar:marks";

/// What the thread is asked to do.
pub(super) enum Command {
    Commit(Pending),
    /// Nothing is applied until the next batch comes this way, the other end is dropped, or the time is over.
    Hold(oneshot::Sender<()>, Receiver<Pending>, Duration),
    Reconfigure(Vec<BucketConfig>, oneshot::Sender<Result<(), OpenError>>),
    Close,
}

/// A batch and who waits for it.
pub(super) struct Pending {
    pub(super) batch: WriteBatch,
    /// Told of the revision before it can be seen.
    pub(super) notes: Vec<Arc<AtomicU64>>,
    pub(super) done: Box<dyn FnOnce(Result<Committed, CommitError>) + Send>,
    /// Its place among those that may wait.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// The thread's state.
pub(super) struct Writer {
    newest: Arc<ArcSwap<Snapshot>>,
    backends: Backends,
    /// Old snapshots that a reader may still hold. Kept here so that it is this thread that frees them: what only
    /// they hold can be a whole bucket, too long a work for a thread that serves requests.
    retired: Vec<Arc<Snapshot>>,
    /// Told of each state once it is the newest.
    published: watch::Sender<Revision>,
}

impl Writer {
    pub(super) fn new(
        newest: Arc<ArcSwap<Snapshot>>,
        backends: Backends,
        published: watch::Sender<Revision>,
    ) -> Self {
        Self {
            newest,
            backends,
            retired: Vec::new(),
            published,
        }
    }

    /// Serves commands until the store closes.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut taken = None;
        while let Some(command) = taken.take().or_else(|| self.next(commands)) {
            match command {
                Command::Commit(first) => {
                    let mut writes = first.batch.writes.len();
                    let mut group = vec![first];
                    while group.len() < GROUP_BATCHES_MAX && writes < GROUP_WRITES_MAX {
                        match commands.try_recv() {
                            Ok(Command::Commit(pending)) => {
                                writes += pending.batch.writes.len();
                                group.push(pending);
                            }
                            Ok(other) => {
                                taken = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(group);
                }
                Command::Hold(held, next, at_most) => {
                    if held.send(()).is_ok()
                        && let Ok(pending) = next.recv_timeout(at_most)
                    {
                        self.commit(vec![pending]);
                    }
                }
                Command::Reconfigure(buckets, done) => {
                    // Whoever no longer waits does not need the answer.
                    let _ = done.send(self.reconfigure(&buckets));
                }
                Command::Close => return,
            }
        }
    }

    /// Waits for a command, freeing old snapshots meanwhile; none when every handle is gone.
    fn next(&mut self, commands: &Receiver<Command>) -> Option<Command> {
        loop {
            self.free_retired();
            if self.retired.is_empty() {
                return commands.recv().ok();
            }
            match commands.recv_timeout(RETIRE_INTERVAL) {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn commit(&mut self, mut group: Vec<Pending>) {
        while !group.is_empty() {
            let published = self.newest.load_full();
            let mut next = Snapshot::clone(&published);
            let mut changes = Vec::new();
            let results: Vec<_> = group
                .iter()
                .map(|pending| apply(&mut next, &pending.batch, &mut changes))
                .collect();
            match self.backends.write(next.revision, changes) {
                Ok(()) => {
                    for (pending, result) in group.iter().zip(&results) {
                        let Ok(committed) = result else { continue };
                        for note in &pending.notes {
                            note.store(committed.revision.0, Ordering::Release);
                        }
                    }
                    if next.revision != published.revision {
                        drop(published);
                        self.publish(next);
                    }
                    for (pending, result) in group.into_iter().zip(results) {
                        (pending.done)(result);
                    }
                    return;
                }
                Err(failed) => group = fail(&next, group, &failed),
            }
        }
    }

    fn reconfigure(&mut self, buckets: &[BucketConfig]) -> Result<(), OpenError> {
        let next = configure(&self.newest.load(), buckets, &mut self.backends)?;
        self.publish(next);
        Ok(())
    }

    fn publish(&mut self, next: Snapshot) {
        let revision = next.revision;
        self.retired.push(self.newest.swap(Arc::new(next)));
        self.published.send_replace(revision);
    }

    /// Nobody can begin to hold a retired snapshot, so one that is held only here stays so.
    fn free_retired(&mut self) {
        self.retired.retain(|old| Arc::strong_count(old) > 1);
    }
}

/// Fails the batches that write to the backend that failed; the others are tried again without them.
fn fail(snapshot: &Snapshot, group: Vec<Pending>, failed: &Failed) -> Vec<Pending> {
    let backend_of = |id: BucketId| snapshot.bucket(id).map(|bucket| bucket.config.backend);
    let (failing, rest) = group.into_iter().partition::<Vec<_>, _>(|pending| {
        let batch = &pending.batch;
        let written = batch.writes.iter().map(|write| write.bucket);
        !batch.dry_run
            && written
                .chain(batch.replace.iter().copied())
                .any(|id| backend_of(id) == Some(failed.backend))
    });
    tracing::error!(
        reason = failed.reason,
        batches = failing.len(),
        "store cannot write"
    );
    for pending in failing {
        (pending.done)(Err(CommitError::Unavailable(failed.reason.clone())));
    }
    rest
}

/// The state with the buckets of a config: what `previous` has of them, else what the backends have.
pub(super) fn configure(
    previous: &Snapshot,
    configs: &[BucketConfig],
    backends: &mut Backends,
) -> Result<Snapshot, OpenError> {
    let mut next = previous.clone();
    let mut names = BTreeMap::new();
    for config in configs {
        let id = take(&mut next, config, backends)?;
        if names.insert(config.name.clone(), id).is_some() {
            return Err(OpenError::Duplicate {
                bucket: config.name.clone(),
            });
        }
    }
    next.marks = Some(take(&mut next, &marks(configs), backends)?);
    next.names = Arc::new(names);
    Ok(next)
}

/// The bucket of marks: as durable as what they are about.
fn marks(configs: &[BucketConfig]) -> BucketConfig {
    let durable = configs
        .iter()
        .any(|config| config.backend == BackendKind::Embedded);
    let backend = if durable {
        BackendKind::Embedded
    } else {
        BackendKind::Memory
    };
    BucketConfig::new(MARKS, backend, ValueKind::Bytes)
}

/// A bucket of a config: as it is, or as the backend has it.
fn take(
    next: &mut Snapshot,
    config: &BucketConfig,
    backends: &mut Backends,
) -> Result<BucketId, OpenError> {
    let known = next.buckets.iter().position(|bucket| {
        bucket.config.name == config.name && bucket.config.backend == config.backend
    });
    let index = match known {
        Some(index) => {
            let bucket = &mut next.buckets[index];
            if bucket.config.values != config.values {
                bucket.table = converted(&bucket.table, config)?;
            }
            bucket.config = Arc::new(config.clone());
            index
        }
        None => {
            next.buckets.push(load(config, backends)?);
            next.buckets.len() - 1
        }
    };
    next.revision = next.revision.max(backends.open(config.backend)?.revision());
    let id = u32::try_from(index).expect("a config holds fewer buckets");
    Ok(BucketId(id))
}

fn load(config: &BucketConfig, backends: &mut Backends) -> Result<Bucket, OpenError> {
    let loaded = backends.open(config.backend)?.load(config)?;
    Ok(Bucket {
        config: Arc::new(config.clone()),
        table: Table::load(loaded.records.into_iter()),
        revision: loaded.revision,
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
            let revision = record.entry.revision;
            Ok(Record::new(record.key(), Entry { value, revision }))
        })
        .collect::<Result<Vec<_>, OpenError>>()?;
    Ok(Table::load(records.into_iter()))
}
