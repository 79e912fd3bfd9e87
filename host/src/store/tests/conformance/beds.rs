//! Where the suite runs: one bed for each backend.

use super::super::deadlines::Hand;
use super::*;
use tempfile::TempDir;

/// A place where stores are opened one after the other, each on what the last one left.
///
/// To have a backend run through the suite, implement this for it and add its test to [`super`]. A backend that several
/// processes share, on a real server, says false to `is_exact`: it counts revisions in its own way, time by its own clock, and
/// what changes a deadline as a write. Nothing ends there.
pub(in crate::store) trait Bed {
    /// Opens the store. The one before is closed, or was killed.
    fn open(&mut self, buckets: &[BucketConfig]) -> Store;
    /// Which backend its buckets name.
    fn kind(&self) -> BackendKind;
    /// Whether what was acknowledged outlives the store.
    fn lasts(&self) -> bool;
    /// Ends it without closing it: as kill -9 does.
    fn kill(&mut self, store: Store);
    /// Has the backend refuse writes, or take them again. False if that cannot be done here.
    fn fail(&mut self, fails: bool) -> bool;
    /// Whether a write is refused as soon as the backend does not take it.
    fn refuses(&self) -> bool {
        true
    }
    /// Milliseconds by the clock that deadlines are told by.
    fn now(&self) -> u64;
    /// Lets them go by.
    fn advance(&mut self, millis: u64);
    /// The unit of times to live, in milliseconds: long enough for a step to be over within it.
    fn tick(&self) -> u64;
    /// Whether revisions are counted one by one, and deadlines kept to the millisecond.
    fn is_exact(&self) -> bool;
}

/// Nothing outlives it, and nothing fails.
pub(super) struct InMemory(Hand);

impl InMemory {
    pub(super) fn new() -> Self {
        Self(Hand::new())
    }
}

impl Bed for InMemory {
    fn open(&mut self, buckets: &[BucketConfig]) -> Store {
        Store::with_backends(buckets, Backends::new(Path::new("")), self.0.clock()).unwrap()
    }
    fn kind(&self) -> BackendKind {
        BackendKind::Memory
    }
    fn lasts(&self) -> bool {
        false
    }
    fn kill(&mut self, store: Store) {
        drop(store);
    }
    fn fail(&mut self, _fails: bool) -> bool {
        false
    }
    fn now(&self) -> u64 {
        self.0.now()
    }
    fn advance(&mut self, millis: u64) {
        self.0.advance(millis);
    }
    fn tick(&self) -> u64 {
        100
    }
    fn is_exact(&self) -> bool {
        true
    }
}

/// On a disk that can fail.
pub(super) struct OnDisk {
    dir: TempDir,
    hand: Hand,
    sync: SyncPolicy,
    faults: Arc<Faults>,
    /// Which of the two faults is next.
    turn: bool,
}

impl OnDisk {
    pub(super) fn new(sync: SyncPolicy) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            hand: Hand::new(),
            sync,
            faults: Arc::default(),
            turn: false,
        }
    }
}

impl Bed for OnDisk {
    fn open(&mut self, buckets: &[BucketConfig]) -> Store {
        self.faults = Arc::default();
        let disk = faulty(self.dir.path(), self.sync, Arc::clone(&self.faults));
        let backends = Backends::with_embedded(disk);
        Store::with_backends(buckets, backends, self.hand.clock()).unwrap()
    }
    fn kind(&self) -> BackendKind {
        BackendKind::Embedded
    }
    fn lasts(&self) -> bool {
        true
    }
    fn kill(&mut self, store: Store) {
        // What waits for a sync may be lost: then it is closed, which syncs.
        if self.sync == SyncPolicy::Always {
            self.faults.kill();
        }
        drop(store);
    }
    fn fail(&mut self, fails: bool) -> bool {
        // The write does not get there, or it does and says that it did not.
        let fault = match self.turn {
            true => &self.faults.write,
            false => &self.faults.sync,
        };
        fault.store(fails, Ordering::SeqCst);
        self.turn ^= !fails;
        true
    }
    fn refuses(&self) -> bool {
        self.sync == SyncPolicy::Always
    }
    fn now(&self) -> u64 {
        self.hand.now()
    }
    fn advance(&mut self, millis: u64) {
        self.hand.advance(millis);
    }
    fn tick(&self) -> u64 {
        100
    }
    fn is_exact(&self) -> bool {
        true
    }
}
