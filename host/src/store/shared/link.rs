//! This process's end of an engine that proxies share: follows its log for the store's writer, and asks it what others ask.
//!
//! A thread of its own has the connections, so an engine that is slow or gone keeps nobody waiting who does not need it.
//! What the log tells goes to an inbox of bounded size, which the writer empties; while it is full, the log waits.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::notes::Notes;
use super::pause::Pause;
use super::{
    Author, Ending, Engine, EngineError, Event, Left, Loaded, Outcome, SharedChange, Transaction,
};
use crate::store::backend::Wake;
use crate::store::content::Content;
use crate::store::shared::health::Health;
use crate::store::{Revision, SUBMITTED_BATCHES_MAX};

mod thread;

use thread::{answer, follow};

/// Events of the engine that wait to be looked at.
const EVENTS_MAX: usize = 256;
/// Arrivals that wait for the writer.
const INBOX_MAX: usize = 1024;
/// Transactions that are under way, whether or not somebody waits for them.
const COMMITS_MAX: usize = 1024;

/// What arrived from the engine, in its order.
pub(in crate::store) enum Incoming {
    /// One transaction.
    Changes {
        revision: Revision,
        changes: Vec<SharedChange>,
        author: Option<Author>,
    },
    /// All of some buckets: what is not in it is not there any more.
    Content(Content),
    /// Everything up to here has arrived.
    Current(Revision),
    /// How long entries live that were asked for; and whether those were the last of them.
    Left(Vec<(Ending, Left)>, bool),
}

/// What arrived and was not looked at.
#[derive(Default)]
struct Inbox {
    arrivals: VecDeque<Incoming>,
    /// When there was nothing newer, by the last of them that tells so.
    current_at: Option<Instant>,
}

/// How far the state that readers see has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct Applied {
    /// The engine's revision.
    pub(in crate::store) revision: Revision,
    /// The store's own, of the first state with that.
    pub(in crate::store) seen: Revision,
}

/// The same, with what tells whether the engine may have gone back since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) applied: Applied,
    /// How often all there was came anew, in place of what follows.
    pub(super) loads: u64,
    pub(super) held: Held,
    /// When there was nothing newer, as far as it was known when that was applied.
    current_at: Option<Instant>,
}

/// Whether what has arrived waits at the gate (`gate.rs`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Held {
    #[default]
    Never,
    Now,
    /// No more, since then.
    Until(tokio::time::Instant),
    /// The link is closed: nothing arrives any more.
    Closed,
}

/// Whether an engine takes such a transaction, as far as can be told without asking it.
type Check = Box<dyn Fn(&Transaction) -> Result<(), EngineError> + Send + Sync>;

/// A connection to an engine, and what came of it. Ends when it is closed.
pub(in crate::store) struct Link {
    /// Bounded by the places of commits and of what is done in order; there is hardly ever a load.
    asks: mpsc::UnboundedSender<Ask>,
    places: Arc<Semaphore>,
    ordered: Arc<Semaphore>,
    check_count: Box<dyn Fn(usize) -> Result<(), EngineError> + Send + Sync>,
    check: Check,
    writes_max: Box<dyn Fn(usize, usize) -> usize + Send + Sync>,
    wanted: watch::Sender<Vec<Wanted>>,
    shared: Arc<Shared>,
    timeout: Duration,
    ending_max: usize,
    loses_writes: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Something that is done on the engine's thread.
enum Ask {
    Load(
        Vec<Box<str>>,
        std::sync::mpsc::Sender<Result<Loaded, EngineError>>,
    ),
    Commit(
        Arc<Transaction>,
        oneshot::Sender<Result<Outcome, EngineError>>,
        OwnedSemaphorePermit,
    ),
    Left(Vec<Ending>),
    /// Frees what is large.
    Free(Box<dyn std::any::Any + Send>),
    /// After what was given before it in this way.
    InOrder(Pin<Box<dyn Future<Output = ()> + Send>>),
    Close,
}

/// A bucket to follow: from the revision that it was loaded at, or else from a load to come.
pub(in crate::store) type Wanted = (Box<str>, Option<Revision>);

/// What the engine's thread, the writer and those who commit have in common.
struct Shared {
    inbox: Mutex<Inbox>,
    room: Notify,
    wake: Wake,
    progress: watch::Sender<Progress>,
    /// Loads that the writer has taken.
    loads: AtomicU64,
    health: Mutex<Health>,
    /// How long entries live was asked, and the writer has not the whole answer yet.
    asks_left: AtomicBool,
    notes: Notes,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Starts the thread. Nothing is followed yet.
    ///
    /// # Errors
    /// If there can be no thread or no runtime.
    pub(in crate::store) fn start<E: Engine>(
        engine: E,
        name: &str,
        timeout: Duration,
        wake: Wake,
    ) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (asks, asked) = mpsc::unbounded_channel();
        let (wanted, seen) = watch::channel(Vec::new());
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            room: Notify::new(),
            wake,
            progress: watch::Sender::new(Progress::default()),
            loads: AtomicU64::new(0),
            health: Mutex::new(Health::new()),
            asks_left: AtomicBool::new(false),
            notes: Notes::default(),
        });
        let (counting, checking, fitting) = (engine.clone(), engine.clone(), engine.clone());
        let (following, answering) = (Arc::clone(&shared), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name(format!("store-{name}"))
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = answer(engine.clone(), asked, answering) => {}
                        () = follow(engine, seen, &following) => {}
                    }
                });
                // Who waits for an answer need not wait for what is slow.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            asks,
            places: Arc::new(Semaphore::new(COMMITS_MAX)),
            ordered: Arc::new(Semaphore::new(SUBMITTED_BATCHES_MAX)),
            check_count: Box::new(move |count| counting.check_count(count)),
            check: Box::new(move |transaction| checking.check(transaction)),
            writes_max: Box::new(move |bucket, entry| fitting.writes_max(bucket, entry)),
            wanted,
            shared,
            timeout,
            ending_max: E::ENDING_MAX,
            loses_writes: E::LOSES_WRITES,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Loads buckets, as of one revision. For a thread that may wait.
    pub(in crate::store) fn load_blocking(
        &self,
        buckets: Vec<Box<str>>,
    ) -> Result<Loaded, EngineError> {
        let (done, answer) = std::sync::mpsc::channel();
        // If the thread is gone, so is what would answer.
        let _ = self.asks.send(Ask::Load(buckets, done));
        answer.recv().unwrap_or_else(|_| Err(closed()))
    }

    /// Follows these buckets from now on.
    pub(in crate::store) fn follow(&self, buckets: Vec<Wanted>) {
        self.wanted.send_replace(buckets);
    }

    /// Whether the engine takes so many writes or conditions at once.
    pub(super) fn check_count(&self, count: usize) -> Result<(), EngineError> {
        (self.check_count)(count)
    }

    /// As many puts the engine takes at once: see [`Engine::writes_max`].
    pub(super) fn writes_max(&self, bucket_bytes: usize, entry_bytes: usize) -> usize {
        (self.writes_max)(bucket_bytes, entry_bytes)
    }

    /// Whether the engine takes a transaction of this size.
    pub(super) fn check(&self, transaction: &Transaction) -> Result<(), EngineError> {
        (self.check)(transaction)
    }

    /// Applies a transaction, all or none.
    pub(in crate::store) async fn commit(
        &self,
        transaction: Arc<Transaction>,
    ) -> Result<Outcome, EngineError> {
        let place = Arc::clone(&self.places).acquire_owned();
        let place = tokio::time::timeout(self.timeout, place).await;
        let place = place.map_err(|_| {
            EngineError::Unavailable(format!("{COMMITS_MAX} writes are under way already"))
        })?;
        let (done, answer) = oneshot::channel();
        let place = place.map_err(|_| closed())?;
        let _ = self.asks.send(Ask::Commit(transaction, done, place));
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Applies a transaction; before a reader can see it, the store's revision of the first state that has it is stored in
    /// each of `notes`.
    pub(in crate::store) async fn commit_noting(
        &self,
        transaction: Arc<Transaction>,
        notes: &[Arc<AtomicU64>],
    ) -> Result<Outcome, EngineError> {
        if notes.is_empty() {
            return self.commit(transaction).await;
        }
        let awaited = self.shared.notes.wait_for(&transaction);
        let done = self.commit(transaction).await;
        if let Ok(Outcome::Applied(revision)) = done {
            awaited.applied(revision, notes.to_vec());
        }
        done
    }

    /// The whole answer is taken. The writer's.
    pub(in crate::store) fn has_left(&self) {
        self.shared.asks_left.store(false, Ordering::Release);
    }

    /// Of how many entries it may be asked now how long they live: none while an answer is due.
    pub(in crate::store) fn ending_max(&self) -> usize {
        match self.shared.asks_left.load(Ordering::Acquire) {
            true => 0,
            false => self.ending_max,
        }
    }

    /// Asks how long entries live. The answer arrives like what the log tells, piece by piece; there may be none.
    pub(in crate::store) fn ask_left(&self, entries: Vec<Ending>) {
        self.shared.asks_left.store(true, Ordering::Release);
        let _ = self.asks.send(Ask::Left(entries));
    }

    /// Frees what is too large for whoever has it.
    pub(in crate::store) fn free(&self, large: impl Send + 'static) {
        // If the thread is gone, it is freed here.
        let _ = self.asks.send(Ask::Free(Box::new(large)));
    }

    /// Has something done after what was given before it in this way. What is not done when the link is closed is dropped.
    ///
    /// # Errors
    /// If too much of it waits already, or the link is closed.
    pub(in crate::store) fn in_order(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), EngineError> {
        let place = Arc::clone(&self.ordered).try_acquire_owned();
        let place = place.map_err(|_| {
            EngineError::Unavailable(format!(
                "{SUBMITTED_BATCHES_MAX} batches that nobody waits for are waiting already"
            ))
        })?;
        let work = Box::pin(async move {
            work.await;
            drop(place);
        });
        self.asks.send(Ask::InOrder(work)).map_err(|_| closed())
    }

    /// What arrived since this was asked last, and when it was known that there is nothing newer than that, if it was. The
    /// writer's.
    pub(in crate::store) fn take(&self) -> (VecDeque<Incoming>, Option<Instant>) {
        let taken = std::mem::take(&mut *locked(&self.shared.inbox));
        self.shared.room.notify_one();
        (taken.arrivals, taken.current_at)
    }

    /// Counts a load that readers are about to see. The writer's.
    pub(in crate::store) fn count_load(&self) {
        self.shared.loads.fetch_add(1, Ordering::Relaxed);
    }

    /// The state `seen`, which nobody can see yet, has everything up to `revision`.
    pub(in crate::store) fn note(&self, revision: Revision, seen: Revision) {
        self.shared.notes.tell(revision, seen);
    }

    /// Readers see it, and with it all that there was at a time, if that is known. The writer's.
    pub(in crate::store) fn applied(&self, applied: Applied, current_at: Option<Instant>) {
        if let Some(at) = current_at {
            locked(&self.shared.health).current(at);
        }
        let loads = self.shared.loads.load(Ordering::Relaxed);
        self.shared.progress.send_modify(|progress| {
            (progress.applied, progress.loads) = (applied, loads);
            progress.current_at = current_at.or(progress.current_at);
        });
    }

    /// Whether what has arrived waits at the gate. The writer's.
    pub(in crate::store) fn hold(&self, is_held: bool) {
        self.shared.progress.send_if_modified(|progress| {
            let before = progress.held;
            progress.held = match (before, is_held) {
                (Held::Closed, _) => Held::Closed,
                (_, true) => Held::Now,
                (Held::Now, false) => Held::Until(tokio::time::Instant::now()),
                (before, false) => before,
            };
            progress.held != before
        });
    }

    /// Whether a write that was answered then is lost: asked later, the engine had nothing newer, and not this. Of one that
    /// loses none, only what came anew since is proof: a member of it may only be behind.
    pub(super) fn has_lost(
        &self,
        write: Revision,
        (answered, is_anew): (Instant, bool),
        it: &Progress,
    ) -> bool {
        let is_asked = it.current_at.is_some_and(|at| at > answered);
        is_asked && it.applied.revision < write && (self.loses_writes || is_anew)
    }

    /// Whether what has arrived waits at the gate.
    pub(super) fn held(&self) -> Held {
        self.shared.progress.borrow().held
    }

    /// How far readers see, and a way to learn when they see more.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Longest time that an answer of the engine takes.
    pub(in crate::store) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the engine is away.
    pub(in crate::store) fn is_lost(&self) -> bool {
        locked(&self.shared.health).lost.is_some()
    }

    /// Whether the engine is there, and since when not.
    pub(in crate::store) fn health(&self) -> Health {
        locked(&self.shared.health).clone()
    }

    /// All of a bucket was told, by a question that was asked then.
    pub(in crate::store) fn loaded(&self, at: Instant) {
        locked(&self.shared.health).loaded(at);
    }

    /// What is known is as old as this: it was kept from before the process started.
    pub(in crate::store) fn kept_from(&self, at: std::time::SystemTime, reason: String) {
        locked(&self.shared.health).kept_from(at, reason);
    }

    /// Ends the thread and waits for it; what is asked afterwards fails.
    pub(in crate::store) fn close(&self) {
        let _ = self.asks.send(Ask::Close);
        if let Some(thread) = locked(&self.thread).take() {
            // It is gone already if it panicked, which was logged then.
            let _ = thread.join();
        }
        // Whoever waits for what waits at the gate waits no longer.
        self.shared
            .progress
            .send_modify(|progress| progress.held = Held::Closed);
    }
}

fn closed() -> EngineError {
    EngineError::Unavailable("store is closed".into())
}
