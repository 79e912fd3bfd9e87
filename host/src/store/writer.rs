//! The one thread that changes the store: checks batches in order, makes a group of them durable at once, publishes
//! the state after them, and only then answers. It also deletes what has come to its end, by writes of its own.

mod sweep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::apply::apply;
use super::arrive::{Arrived, arrive};
use super::backend::{Backends, Change, Wake, WriteError};
use super::batch::{CommitError, Committed, WriteBatch};
use super::bucket::FLEET;
use super::clock::Clock;
use super::data_file::FileTask;
use super::expiry::Deadlines;
use super::gathering::Gathering;
use super::history::{self, Histories};
use super::log::Log;
use super::record::Record;
use super::shared::link::{Applied, Link};
use super::slack::Slack;
use super::snapshot::{Bucket, Entry, Snapshot};
use super::table::Table;
use super::{BackendKind, BucketConfig, BucketId, OpenError, Revision, Value, ValueKind};

/// How often snapshots that readers still held are looked at again.
const RETIRE_INTERVAL: Duration = Duration::from_millis(250);
/// Where marks are kept: no name that a config can give.
pub(super) const MARKS: &str = "throwbar:marks";

/// What the thread is asked to do.
pub(super) enum Command {
    Commit(Pending),
    /// Nothing is applied until the next batch comes this way, the other end is dropped, or the time is over.
    Hold(oneshot::Sender<()>, Receiver<Pending>, Duration),
    Reconfigure(Vec<BucketConfig>, oneshot::Sender<Result<(), OpenError>>),
    /// Other processes have written to a backend.
    Arrived(Wake),
    File(FileTask),
    /// What the embedded backend keeps of the past of keys.
    Histories(oneshot::Sender<Result<Box<dyn Histories>, String>>),
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
    clock: Clock,
    gathering: Gathering,
    deadlines: Deadlines,
    /// No entries are ended before.
    next_sweep: Instant,
    /// None on the disk, which refused it.
    disk_again: Instant,
    log: Arc<Log>,
    past: Arc<history::Memory>,
    /// Old snapshots that a reader may still hold. Kept here so that it is this thread that frees them: what only
    /// they hold can be a whole bucket, too long a work for a thread that serves requests.
    retired: Vec<Arc<Snapshot>>,
    slack: Slack,
    /// Told of each state once it is the newest.
    published: watch::Sender<Revision>,
}

/// What came of waiting for a command.
enum Next {
    Command(Command),
    /// Nothing within the time.
    Idle,
    /// Every handle is gone.
    Closed,
}

impl Writer {
    pub(super) fn new(
        newest: Arc<ArcSwap<Snapshot>>,
        backends: Backends,
        clock: Clock,
        log: Arc<Log>,
        past: Arc<history::Memory>,
        published: watch::Sender<Revision>,
    ) -> Self {
        let mut deadlines = Deadlines::default();
        let first = newest.load_full();
        deadlines.read(&Snapshot::empty(), &first);
        log.read(&first);
        past.read(&first);
        let mut slack = Slack::new();
        slack.note_loaded(&first);
        Self {
            newest,
            backends,
            clock,
            gathering: Gathering::default(),
            deadlines,
            next_sweep: Instant::now(),
            disk_again: Instant::now(),
            log,
            past,
            retired: Vec::new(),
            slack,
            published,
        }
    }

    /// Serves commands until the store closes.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut taken = None;
        loop {
            self.sweep();
            if self
                .backends
                .sync_by()
                .is_some_and(|by| by <= Instant::now())
            {
                self.sync();
            }
            let command = match taken.take() {
                Some(command) => command,
                None => match self.next(commands) {
                    Next::Command(command) => command,
                    Next::Idle => continue,
                    Next::Closed => return self.sync(),
                },
            };
            match command {
                Command::Commit(first) => {
                    let group;
                    (group, taken) = self.gathering.gather(first, commands);
                    let began = Instant::now();
                    self.gathering.last = group.len();
                    self.commit(group);
                    self.gathering.took = began.elapsed();
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
                Command::Arrived(wake) => self.follow(wake.take()),
                Command::File(task) => task.run(&mut self.backends),
                Command::Histories(done) => {
                    let _ = done.send(self.backends.histories());
                }
                Command::Close => return self.sync(),
            }
        }
    }

    /// Makes durable what was acknowledged before it was.
    fn sync(&mut self) {
        if let Err(reason) = self.backends.sync() {
            tracing::error!(reason, "store cannot sync its file");
        }
    }

    /// Takes what an engine's log tells of what processes share.
    fn follow(&mut self, backend: BackendKind) {
        let links = Arc::clone(self.backends.links());
        let Some(link) = links.get(backend) else {
            return;
        };
        let mut next = Snapshot::clone(&self.newest.load());
        let mut arrived = Arrived {
            now: self.clock.now(),
            ..Arrived::default()
        };
        let (arrivals, current_at) = link.take();
        for incoming in arrivals {
            arrive(&mut next, backend, incoming, &mut arrived);
        }
        let left = std::mem::take(&mut arrived.left);
        if let Some(revision) = arrived.revision {
            self.publish_arrived(next, link, arrived, (revision, current_at));
        }
        self.take_left(backend, left);
    }

    fn publish_arrived(
        &mut self,
        mut next: Snapshot,
        link: &Link,
        arrived: Arrived,
        (revision, current_at): (Revision, Option<Instant>),
    ) {
        let is_another = !arrived.changes.is_empty() || !arrived.anew.is_empty();
        if is_another {
            // The engine's revisions are the store's while nothing else moves it faster.
            next.revision = revision.max(Revision(next.revision.0 + 1));
        }
        let seen = next.revision;
        link.note(revision, seen);
        if is_another {
            self.publish_after(next, &arrived.changes, |log| {
                for bucket in arrived.anew {
                    log.restart(bucket, revision);
                }
            });
        }
        link.applied(Applied { revision, seen }, current_at);
    }

    /// Waits for a command, or until there is something else to do. Frees old snapshots first.
    fn next(&mut self, commands: &Receiver<Command>) -> Next {
        self.free_retired();
        if self.slack.is_overdue() {
            self.slack.give_back();
        }
        let is_slack = !self.retired.is_empty() || self.slack.is_due();
        let retire = is_slack.then_some(RETIRE_INTERVAL);
        let sync = self.backends.sync_by();
        let sync = sync.map(|by| by.saturating_duration_since(Instant::now()));
        let wait = self.until_sweep().into_iter().chain(retire).chain(sync);
        let wait = wait.min();
        let Some(wait) = wait else {
            return commands.recv().map_or(Next::Closed, Next::Command);
        };
        match commands.recv_timeout(wait) {
            Ok(command) => Next::Command(command),
            Err(RecvTimeoutError::Timeout) => {
                self.free_retired();
                // What a reader still holds is yet to be freed.
                if self.slack.is_due() && self.retired.is_empty() {
                    self.slack.give_back();
                }
                Next::Idle
            }
            Err(RecvTimeoutError::Disconnected) => Next::Closed,
        }
    }

    fn commit(&mut self, mut group: Vec<Pending>) {
        while !group.is_empty() {
            let mut next = Snapshot::clone(&self.newest.load());
            let mut changes = Vec::new();
            let now = self.clock.now();
            let results: Vec<_> = group
                .iter()
                .map(|pending| apply(&mut next, &pending.batch, now, &mut changes))
                .collect();
            match self.backends.write(next.revision, &changes) {
                Ok(()) => {
                    for (pending, result) in group.iter().zip(&results) {
                        let Ok(committed) = result else { continue };
                        for note in &pending.notes {
                            note.store(committed.seen.0, Ordering::Release);
                        }
                    }
                    if !changes.is_empty() {
                        self.publish(next, &changes);
                    }
                    for (pending, result) in group.into_iter().zip(results) {
                        (pending.done)(result);
                    }
                    return;
                }
                Err(WriteError(reason)) => group = fail(&next, group, &reason),
            }
        }
    }

    fn reconfigure(&mut self, buckets: &[BucketConfig]) -> Result<(), OpenError> {
        let before = self.newest.load_full();
        let next = configure(&before, buckets, &mut self.backends)?;
        self.deadlines.read(&before, &next);
        self.log.read(&next);
        self.past.read(&next);
        self.slack.note_loaded(&next);
        self.publish(next, &[]);
        self.backends.follow();
        Ok(())
    }

    /// Makes a state the newest one, and tells of what it changed.
    fn publish(&mut self, next: Snapshot, changes: &[Change]) {
        self.publish_after(next, changes, |_| ());
    }

    /// The same; the log is made ready for the changes by `prepare`.
    fn publish_after(&mut self, next: Snapshot, changes: &[Change], prepare: impl FnOnce(&Log)) {
        let revision = next.revision;
        // Whoever sees a change finds it in the past of its key.
        self.past.add(changes, self.clock.now());
        self.retired.push(self.newest.swap(Arc::new(next)));
        self.slack.note(changes.len());
        for change in changes {
            self.deadlines.change(change);
        }
        prepare(&self.log);
        // Whoever is told of a change can read it.
        self.log.add(changes);
        self.published.send_replace(revision);
    }

    /// Nobody can begin to hold a retired snapshot, so one that is held only here stays so.
    fn free_retired(&mut self) {
        self.retired.retain(|old| Arc::strong_count(old) > 1);
    }
}

/// Fails the batches that write to the embedded backend, which failed; the others are tried again without them.
fn fail(snapshot: &Snapshot, group: Vec<Pending>, reason: &str) -> Vec<Pending> {
    let backend_of = |id: BucketId| snapshot.bucket(id).map(|bucket| bucket.config.backend);
    let (failing, rest) = group.into_iter().partition::<Vec<_>, _>(|pending| {
        let batch = &pending.batch;
        let written = batch.writes.iter().map(|write| write.bucket);
        !batch.dry_run
            && written
                .chain(batch.replace.iter().copied())
                .any(|id| backend_of(id) == Some(BackendKind::Embedded))
    });
    tracing::error!(reason, batches = failing.len(), "store cannot write");
    for pending in failing {
        (pending.done)(Err(CommitError::Unavailable(reason.into())));
    }
    rest
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
pub(super) fn configure(
    previous: &Snapshot,
    configs: &[BucketConfig],
    backends: &mut Backends,
) -> Result<Snapshot, OpenError> {
    let mut next = previous.clone();
    let mut names = BTreeMap::new();
    next.fleet = None;
    for config in configs {
        let id = take(&mut next, config, backends)?;
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
    let marks = marks.map(|config| take(&mut next, &config, backends));
    next.marks = marks.collect::<Result<_, _>>()?;
    next.names = Arc::new(names);
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
    backends: &mut Backends,
) -> Result<BucketId, OpenError> {
    let known = next.buckets.iter().position(|bucket| {
        bucket.config.name == config.name && bucket.config.backend == config.backend
    });
    let index = match known {
        Some(index) => {
            let bucket = &mut next.buckets[index];
            let is_other = bucket.config.values != config.values;
            if is_other {
                bucket.table = converted(&bucket.table, config)?;
            }
            if is_other || bucket.config.lookup != config.lookup {
                *bucket = made(config, bucket.table.clone(), bucket.revision)?;
            }
            bucket.config = Arc::new(config.clone());
            index
        }
        None => {
            let (bucket, newest) = load(config, backends)?;
            next.revision = next.revision.max(newest);
            next.buckets.push(bucket);
            next.buckets.len() - 1
        }
    };
    let id = u32::try_from(index).expect("a config holds fewer buckets");
    Ok(BucketId(id))
}

/// A bucket as its backend has it, and the newest revision of that.
fn load(config: &BucketConfig, backends: &mut Backends) -> Result<(Bucket, Revision), OpenError> {
    let (loaded, newest) = backends.load(config)?;
    Ok((made(config, loaded.table, loaded.revision)?, newest))
}

fn made(config: &BucketConfig, table: Table, revision: Revision) -> Result<Bucket, OpenError> {
    let bucket = Bucket::new(Arc::new(config.clone()), table, revision);
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
