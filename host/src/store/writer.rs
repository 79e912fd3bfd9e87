//! The one thread that changes the store: checks batches in order, makes a group of them durable at once, publishes
//! the state after them, and only then answers. It also deletes what has come to its end, by writes of its own.

mod sweep;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::apply::apply;
use super::arrive::{Arrived, arrive};
use super::backend::{Backends, Change, Fetched, Wake, WriteError};
use super::batch::{CommitError, Committed, WriteBatch};
use super::clock::Clock;
use super::configure::configure;
use super::data_file::FileTask;
use super::expiry::Deadlines;
use super::gate::{self, Waiting};
use super::gathering::Gathering;
use super::history::{self, Histories};
use super::log::Log;
use super::shared::link::{Applied, Link};
use super::slack::Slack;
use super::snapshot::Snapshot;
use super::{BackendKind, BucketConfig, BucketId, OpenError, Revision};

/// How often snapshots that readers still held are looked at again.
const RETIRE_INTERVAL: Duration = Duration::from_millis(250);
/// What the thread is asked to do.
pub(super) enum Command {
    Commit(Pending),
    /// Nothing is applied until the next batch comes this way, the other end is dropped, or the time is over.
    Hold(oneshot::Sender<()>, Receiver<Pending>, Duration),
    /// With what was loaded for it.
    Reconfigure(
        Vec<BucketConfig>,
        Vec<Fetched>,
        oneshot::Sender<Result<(), OpenError>>,
    ),
    /// Other processes have written to a backend.
    Arrived(Wake),
    /// What waits at the gate of the fleet may pass by now.
    AskGate,
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
    waiting: Waiting,
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
        waiting: Waiting,
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
            waiting,
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
            if self.waiting.until().is_some_and(|by| by <= Instant::now()) {
                self.ask_gate();
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
                Command::Reconfigure(buckets, fetched, done) => {
                    // Whoever no longer waits does not need the answer.
                    let _ = done.send(self.reconfigure(&buckets, fetched));
                }
                Command::Arrived(wake) => self.follow(wake.take()),
                Command::AskGate => self.ask_gate(),
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

    /// Shows readers what waited, if it may be seen.
    fn ask_gate(&mut self) {
        for backend in self.waiting.backends() {
            self.follow(backend);
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
        let passed = self.waiting.pass(backend, link);
        for incoming in passed.open {
            arrive(&mut next, backend, incoming, &mut arrived);
        }
        if !arrived.used.is_empty() {
            link.free(std::mem::take(&mut arrived.used));
        }
        let left = std::mem::take(&mut arrived.left);
        if arrived.has_left {
            link.has_left();
        }
        if let Some(revision) = arrived.revision {
            let current = (revision, passed.current_at);
            self.publish_arrived(next, link, arrived, current, passed.notes);
        }
        link.hold(self.waiting.holds(backend));
        self.take_left(backend, left);
    }

    fn publish_arrived(
        &mut self,
        mut next: Snapshot,
        link: &Link,
        arrived: Arrived,
        (revision, current_at): (Revision, Option<Instant>),
        notes: Vec<Arc<AtomicU64>>,
    ) {
        let is_another = !arrived.changes.is_empty() || !arrived.anew.is_empty();
        if is_another {
            // The engine's revisions are the store's while nothing else moves it faster.
            next.revision = revision.max(Revision(next.revision.0 + 1));
        }
        let seen = next.revision;
        link.note(revision, seen);
        gate::tell(notes, seen);
        if is_another {
            self.publish_logged(next, &arrived.changes, |log| {
                for (bucket, _) in &arrived.anew {
                    log.restart(*bucket, revision);
                }
                // What was told of a bucket before it was loaded anew is of before that.
                let is_of_before = |at: usize, change: &Change| {
                    let mut anew = arrived.anew.iter();
                    anew.any(|(bucket, from)| *bucket == change.id && at < *from)
                };
                let changes = arrived.changes.iter().enumerate();
                let changes = changes.filter(|(at, change)| !is_of_before(*at, change));
                log.add(changes.map(|(_, change)| change));
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
        let due = self.backends.sync_by().into_iter();
        let due = due.chain(self.waiting.until()).min();
        let due = due.map(|by| by.saturating_duration_since(Instant::now()));
        let wait = self.until_sweep().into_iter().chain(retire).chain(due);
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

    fn reconfigure(
        &mut self,
        buckets: &[BucketConfig],
        fetched: Vec<Fetched>,
    ) -> Result<(), OpenError> {
        let before = self.newest.load_full();
        let next = configure(&before, buckets, fetched, &mut self.backends)?;
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
        self.publish_logged(next, changes, |log| log.add(changes.iter()));
    }

    /// The same; what the log tells of them is said by `tell`.
    fn publish_logged(&mut self, next: Snapshot, changes: &[Change], tell: impl FnOnce(&Log)) {
        let revision = next.revision;
        // Whoever sees a change finds it in the past of its key.
        self.past.add(changes, self.clock.now());
        self.retired.push(self.newest.swap(Arc::new(next)));
        self.slack.note(changes.len());
        for change in changes {
            self.deadlines.change(change);
        }
        // Whoever is told of a change can read it.
        tell(&self.log);
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
