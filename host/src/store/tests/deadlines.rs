//! Entries that end, are renewed, and are counted up.

use super::*;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A clock that a test sets, in milliseconds.
pub(super) struct Hand(Arc<AtomicU64>);

impl Hand {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_000_000)))
    }

    pub(super) fn clock(&self) -> Clock {
        Clock::Hand(Arc::clone(&self.0))
    }

    pub(super) fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }

    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn open(&self, buckets: &[BucketConfig], dir: &Path) -> Store {
        Store::with_backends(buckets, Backends::new(dir), self.clock()).unwrap()
    }
}

/// Waits until the store's content fits.
pub(super) fn until(store: &Store, fits: impl Fn(&Snapshot) -> bool) {
    let mut changes = store.changes();
    let look = async {
        while !fits(&store.snapshot()) {
            changes.changed().await.expect("the store is open");
        }
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().unwrap();
    let within = async { tokio::time::timeout(Duration::from_secs(30), look).await };
    runtime.block_on(within).expect("it fits in the end");
}

fn millis(millis: u64) -> Option<Duration> {
    Some(Duration::from_millis(millis))
}

pub(super) fn put_for(
    bucket: BucketId,
    key: &str,
    value: &str,
    ttl: Option<Duration>,
) -> WriteBatch {
    let value = value.as_bytes().into();
    batch(vec![Write::new(bucket, key, Action::Put { value, ttl })])
}

fn touch(bucket: BucketId, key: &str, ttl: Option<Duration>) -> WriteBatch {
    batch(vec![Write::new(bucket, key, Action::Touch { ttl })])
}

fn add(bucket: BucketId, key: &str, by: i64) -> WriteBatch {
    let action = Action::Increment { by, ttl: None };
    batch(vec![Write::new(bucket, key, action)])
}

/// The entry's revision, and how long it lives on.
fn life(store: &Store, hand: &Hand, bucket: BucketId, key: &str) -> Option<(u64, Option<u64>)> {
    let snapshot = store.snapshot();
    let entry = snapshot.bucket(bucket)?.get(key)?;
    let left = entry.deadline.map(|at| at.millis() - hand.now());
    Some((entry.revision.0, left))
}

fn is_absent(snapshot: &Snapshot, bucket: BucketId, key: &str) -> bool {
    snapshot.bucket(bucket).unwrap().get(key).is_none()
}

#[test]
fn an_entry_ends_with_its_time_by_a_write_of_its_own() {
    let hand = Hand::new();
    let store = hand.open(&[memory("m")], Path::new(""));
    let m = id(&store, "m");
    wait(store.commit(put_for(m, "brief", "x", millis(5_000)))).unwrap();
    wait(store.commit(put(m, "lasting", "y"))).unwrap();
    hand.advance(4_999);
    // The writer looks at its clock before each group.
    wait(store.commit(put(m, "other", "z"))).unwrap();
    assert_eq!(life(&store, &hand, m, "brief"), Some((1, Some(1))));
    hand.advance(1);
    until(&store, |snapshot| is_absent(snapshot, m, "brief"));
    let snapshot = store.snapshot();
    let bucket = snapshot.bucket(m).unwrap();
    assert_eq!((snapshot.revision().0, bucket.revision().0), (4, 4));
    assert_eq!((bucket.len(), bucket.bytes()), (2, 14));
    assert_eq!(life(&store, &hand, m, "lasting"), Some((2, None)));
}

#[test]
fn a_renewed_entry_keeps_its_revision_and_lives_on() {
    let hand = Hand::new();
    let store = hand.open(&[memory("m")], Path::new(""));
    let m = id(&store, "m");
    let one = |touched, unchanged, done: Committed| {
        assert_eq!((done.touched, done.unchanged), (touched, unchanged));
        assert_eq!((done.revision.0, done.entry), (1, Some(Revision(1))));
    };
    wait(store.commit(put_for(m, "k", "1", millis(100)))).unwrap();
    hand.advance(50);
    one(
        1,
        0,
        wait(store.commit(touch(m, "k", millis(100)))).unwrap(),
    );
    one(
        0,
        1,
        wait(store.commit(touch(m, "k", millis(100)))).unwrap(),
    );
    assert_eq!(life(&store, &hand, m, "k"), Some((1, Some(100))));
    // The same value for another time is the same as a touch.
    one(
        1,
        0,
        wait(store.commit(put_for(m, "k", "1", millis(70)))).unwrap(),
    );
    assert_eq!(life(&store, &hand, m, "k"), Some((1, Some(70))));
    one(1, 0, wait(store.commit(put(m, "k", "1"))).unwrap());
    one(0, 1, wait(store.commit(touch(m, "k", None))).unwrap());
    one(0, 1, wait(store.commit(put(m, "k", "1"))).unwrap());
    hand.advance(1_000);
    wait(store.commit(put(m, "other", "1"))).unwrap();
    assert_eq!(life(&store, &hand, m, "k"), Some((1, None)));
    let absent = wait(store.commit(touch(m, "none", None))).unwrap_err();
    assert!(matches!(absent, CommitError::Conflict { found: None, .. }));
}

#[test]
fn a_life_that_is_none_is_refused() {
    let store = Store::scratch(&[memory("m")]).unwrap();
    let m = id(&store, "m");
    for ttl in [Duration::ZERO, Duration::MAX] {
        let error = wait(store.commit(put_for(m, "k", "1", Some(ttl)))).unwrap_err();
        assert!(
            error.to_string().contains("expected 1ms to 3650d"),
            "{error}"
        );
    }
    assert_eq!(store.snapshot().revision(), Revision(0));
}

#[test]
fn deadlines_outlive_a_restart_and_what_ended_meanwhile_goes() {
    let dir = tempfile::tempdir().unwrap();
    let hand = Hand::new();
    let store = hand.open(&[embedded("e")], dir.path());
    let e = id(&store, "e");
    let writes = ["soon", "later", "last"].map(|key| write(e, key, Some("1")));
    wait(store.commit(batch(writes.into()))).unwrap();
    wait(store.commit(put_for(e, "soon", "1", millis(10_000)))).unwrap();
    wait(store.commit(put_for(e, "later", "1", millis(30_000)))).unwrap();
    wait(store.commit(touch(e, "later", millis(90_000)))).unwrap();
    store.close();
    hand.advance(40_000);
    let store = hand.open(&[embedded("e")], dir.path());
    until(&store, |snapshot| is_absent(snapshot, e, "soon"));
    assert_eq!(life(&store, &hand, e, "later"), Some((1, Some(50_000))));
    assert_eq!(life(&store, &hand, e, "last"), Some((1, None)));
    assert_eq!(store.snapshot().revision().0, 2);
    store.close();
    // With the clock set back, what has ended is still gone: it was deleted.
    let store = Hand::new().open(&[embedded("e")], dir.path());
    let left: Vec<_> = contents(&store, e).into_iter().map(|it| it.0).collect();
    assert_eq!(left, ["last", "later"]);
}

#[test]
fn a_clock_that_was_set_while_the_process_was_away_shortens_or_prolongs_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let hand = Hand::new();
    let store = hand.open(&[embedded("e")], dir.path());
    let e = id(&store, "e");
    for (key, left) in [("first", 60_000), ("second", 120_000), ("third", 7_200_000)] {
        wait(store.commit(put_for(e, key, "1", millis(left)))).unwrap();
    }
    store.close();
    drop(store);
    // Fifteen minutes back: they live that much longer, and none is lost for it.
    let back = Hand::new();
    back.0.store(hand.now() - 900_000, Ordering::SeqCst);
    let store = back.open(&[embedded("e")], dir.path());
    assert_eq!(life(&store, &back, e, "first"), Some((1, Some(960_000))));
    // What is written now ends by the clock as it is now.
    wait(store.commit(put_for(e, "new", "1", millis(1_000)))).unwrap();
    back.advance(1_000);
    until(&store, |snapshot| is_absent(snapshot, e, "new"));
    assert_eq!(life(&store, &back, e, "first"), Some((1, Some(959_000))));
    store.close();
    drop(store);
    // Far ahead: what has ended by then goes at once, by one write, and the rest stays.
    hand.advance(3_600_000);
    let store = hand.open(&[embedded("e")], dir.path());
    until(&store, |snapshot| is_absent(snapshot, e, "first"));
    assert!(is_absent(&store.snapshot(), e, "second"));
    assert_eq!(life(&store, &hand, e, "third"), Some((3, Some(3_600_000))));
}

/// A store with one bucket on a disk that fails when it is told to, and one in memory.
fn on_faulty_disk(hand: &Hand) -> (Store, Arc<Faults>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let disk = faulty(dir.path(), SyncPolicy::Always, Arc::clone(&faults));
    let backends = Backends::with_embedded(disk);
    let store = Store::with_backends(&[embedded("e"), memory("m")], backends, hand.clock());
    (store.unwrap(), faults, dir)
}

#[test]
fn what_the_disk_refuses_to_end_ends_when_it_takes_writes_again() {
    let hand = Hand::new();
    let (store, faults, _dir) = on_faulty_disk(&hand);
    let (e, m) = (id(&store, "e"), id(&store, "m"));
    wait(store.commit(put_for(e, "k", "1", millis(100)))).unwrap();
    faults.sync.store(true, Ordering::SeqCst);
    hand.advance(200);
    // Each group comes after a try to end what has ended.
    for value in ["1", "2", "3"] {
        wait(store.commit(put(m, "k", value))).unwrap();
        assert!(!is_absent(&store.snapshot(), e, "k"));
    }
    faults.sync.store(false, Ordering::SeqCst);
    until(&store, |snapshot| is_absent(snapshot, e, "k"));
}

#[test]
fn what_is_in_memory_ends_whatever_the_disk_refuses() {
    let hand = Hand::new();
    let (store, faults, _dir) = on_faulty_disk(&hand);
    let (e, m) = (id(&store, "e"), id(&store, "m"));
    wait(store.commit(put_for(e, "k", "1", millis(100)))).unwrap();
    wait(store.commit(put_for(m, "first", "1", millis(100)))).unwrap();
    wait(store.commit(put_for(m, "second", "1", millis(300)))).unwrap();
    faults.sync.store(true, Ordering::SeqCst);
    for key in ["first", "second"] {
        hand.advance(200);
        until(&store, |snapshot| is_absent(snapshot, m, key));
        assert!(!is_absent(&store.snapshot(), e, "k"));
    }
    faults.sync.store(false, Ordering::SeqCst);
    until(&store, |snapshot| is_absent(snapshot, e, "k"));
}

#[test]
fn a_touch_that_the_disk_refused_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let hand = Hand::new();
    let faults = Arc::new(Faults::default());
    let backends =
        Backends::with_embedded(faulty(dir.path(), SyncPolicy::Always, Arc::clone(&faults)));
    let store = Store::with_backends(&[embedded("e")], backends, hand.clock()).unwrap();
    let e = id(&store, "e");
    wait(store.commit(put_for(e, "k", "1", millis(100)))).unwrap();
    // It reaches the disk, which only says that it did not.
    faults.sync.store(true, Ordering::SeqCst);
    wait(store.commit(touch(e, "k", millis(900)))).unwrap_err();
    faults.sync.store(false, Ordering::SeqCst);
    assert_eq!(life(&store, &hand, e, "k"), Some((1, Some(100))));
    wait(store.commit(put(e, "other", "1"))).unwrap();
    store.close();
    drop(store);
    let store = hand.open(&[embedded("e")], dir.path());
    assert_eq!(life(&store, &hand, e, "k"), Some((1, Some(100))));
}

#[test]
fn of_many_increments_none_is_lost() {
    let store = Store::scratch(&[memory("m")]).unwrap();
    let m = id(&store, "m");
    let mut sums: Vec<i64> = std::thread::scope(|scope| {
        let adders: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                scope.spawn(move || {
                    let sum = |_| wait(store.commit(add(m, "n", 3))).unwrap().number;
                    (0..50).filter_map(sum).collect::<Vec<_>>()
                })
            })
            .collect();
        let adders = adders.into_iter();
        adders.flat_map(|adder| adder.join().unwrap()).collect()
    });
    sums.sort_unstable();
    let expected: Vec<i64> = (1..=200).map(|count| count * 3).collect();
    assert_eq!(sums, expected, "each was told another sum");
}

#[test]
fn increments_follow_what_the_batch_wrote_before_and_change_nothing_by_nothing() {
    let hand = Hand::new();
    let store = hand.open(&[memory("m")], Path::new(""));
    let m = id(&store, "m");
    wait(store.commit(put_for(m, "n", "40", millis(100)))).unwrap();
    let none = wait(store.commit(add(m, "n", 0))).unwrap();
    assert_eq!((none.unchanged, none.number), (1, Some(40)));
    assert_eq!((none.revision.0, none.entry), (1, Some(Revision(1))));
    wait(store.commit(add(m, "n", 2))).unwrap();
    assert_eq!(
        life(&store, &hand, m, "n"),
        Some((2, Some(100))),
        "its deadline stays"
    );
    let action = Action::Increment {
        by: -1,
        ttl: millis(70),
    };
    let made = batch(vec![Write::new(m, "new", action)]);
    for sum in [-1, -2] {
        assert_eq!(wait(store.commit(made.clone())).unwrap().number, Some(sum));
        assert_eq!(life(&store, &hand, m, "new").unwrap().1, Some(70));
    }
    let mut mixed = batch(vec![
        Write::put(m, "n", b"5".to_vec()),
        add(m, "n", 1).writes.remove(0),
        Write::delete(m, "new"),
        add(m, "new", 9).writes.remove(0),
    ]);
    mixed.replace = vec![m];
    let done = wait(store.commit(mixed)).unwrap();
    assert_eq!((done.updated, done.number), (2, Some(9)));
    let values: Vec<_> = contents(&store, m).into_iter().map(|it| it.1).collect();
    assert_eq!(values, ["6", "9"]);
    let text = wait(store.commit(put(m, "text", "x"))).unwrap();
    let error = wait(store.commit(add(m, "text", 1))).unwrap_err();
    let expected =
        "bucket \"m\", key \"text\": value \"x\" cannot be counted up, expected a decimal number";
    assert!(error.to_string().starts_with(expected), "{error}");
    assert_eq!(store.snapshot().revision(), text.revision);
}

#[test]
fn a_batch_may_require_that_its_bucket_is_as_it_was() {
    let store = Store::scratch(&[memory("m"), memory("other")]).unwrap();
    let (m, other) = (id(&store, "m"), id(&store, "other"));
    let expecting = |expect| WriteBatch {
        expect: vec![(m, expect)],
        ..put(m, "k", "1")
    };
    let refused = |expect| {
        let error = wait(store.commit(expecting(expect))).unwrap_err();
        assert!(
            matches!(error, CommitError::BucketConflict { .. }),
            "{error}"
        );
        error.to_string()
    };
    assert_eq!(refused(Expect::Present), "bucket \"m\": it holds no key");
    wait(store.commit(expecting(Expect::Absent))).unwrap();
    assert_eq!(refused(Expect::Absent), "bucket \"m\": it is at revision 1");
    wait(store.commit(put(other, "k", "1"))).unwrap();
    assert_eq!(
        refused(Expect::At(Revision(2))),
        "bucket \"m\": it is at revision 1"
    );
    wait(store.commit(expecting(Expect::At(Revision(1))))).unwrap();
    wait(store.commit(expecting(Expect::Present))).unwrap();
}
