//! What a fleet agrees on waits at the gate, and with it all that came after it.

use super::behind::{elsewhere, known_at, until_known_after};
use super::deadlines::{Hand, until};
use super::engine::Shelf;
use super::nodes::{node_within, shared, until_lost, until_so};
use super::*;
use crate::store::bucket::FLEET;
use crate::store::{Gate, Passage};
use std::collections::BTreeSet;
use std::sync::Weak;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// Lets entries wait until it is opened, or their time is over.
struct Keeper {
    is_open: AtomicBool,
    until: Instant,
    asked: AtomicUsize,
    /// Whether it is to be told that everything came anew.
    anew: AtomicBool,
    note: Arc<AtomicU64>,
}

impl Keeper {
    fn new(at_most: Duration) -> Arc<Self> {
        Arc::new(Self {
            is_open: AtomicBool::new(false),
            until: Instant::now() + at_most,
            asked: AtomicUsize::new(0),
            anew: AtomicBool::new(false),
            note: Arc::new(AtomicU64::new(u64::MAX)),
        })
    }

    fn keep(self: &Arc<Self>, store: &Store) {
        let gate: Arc<dyn Gate> = Arc::clone(self) as Arc<dyn Gate>;
        store.set_gate(Arc::downgrade(&gate));
    }
}

impl Gate for Keeper {
    fn arrives(&self, key: &str, value: &[u8], anew: bool) -> Passage {
        if key == "beside" {
            return Passage::Open;
        }
        let expected = self.anew.load(Ordering::SeqCst);
        assert_eq!((key, value, anew), ("held", &b"1"[..], expected));
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_open.load(Ordering::SeqCst) {
            return Passage::Noting(vec![Arc::clone(&self.note)]);
        }
        match Instant::now() < self.until {
            true => Passage::Wait(self.until),
            false => Passage::Open,
        }
    }
}

/// Two stores of a fleet, and the buckets that both have.
fn pair(shelf: &Shelf, hand: &Hand) -> ([Store; 2], [BucketId; 3], [tempfile::TempDir; 2]) {
    pair_within(shelf, hand, Duration::from_secs(20))
}

/// The same; the other has this timeout of the engine.
fn pair_within(
    shelf: &Shelf,
    hand: &Hand,
    timeout: Duration,
) -> ([Store; 2], [BucketId; 3], [tempfile::TempDir; 2]) {
    let buckets = [
        shared("e"),
        memory("own"),
        BucketConfig::of_fleet(BackendKind::Etcd),
    ];
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = dirs.each_ref().map(tempfile::TempDir::path);
    let stores = [(first, Duration::from_secs(20)), (second, timeout)]
        .map(|(dir, timeout)| node_within(&buckets, shelf, dir, hand, timeout).unwrap());
    let fleet = stores[0].snapshot().fleet().unwrap();
    let ids = [id(&stores[0], "e"), id(&stores[0], "own"), fleet];
    (stores, ids, dirs)
}

#[test]
fn what_waits_is_seen_whole_and_what_came_after_it_not_before() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([one, other], [e, own, fleet], _dirs) = pair(&shelf, &hand);
    let keeper = Keeper::new(Duration::from_secs(600));
    keeper.keep(&other);
    let both = batch(vec![
        write(e, "with", Some("1")),
        write(fleet, "held", Some("1")),
    ]);
    wait(one.commit(both)).unwrap();
    wait(one.commit(put(e, "after", "1"))).unwrap();
    until_so("it has arrived", || keeper.asked.load(Ordering::SeqCst) > 0);
    // Nobody else waits.
    wait(other.commit(put(own, "k", "1"))).unwrap();
    assert_eq!(contents(&other, e), []);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut reader = other.reader();
            while !stop.load(Ordering::Relaxed) {
                let snapshot = reader.load();
                let has = |id, key| snapshot.bucket(id).unwrap().get(key).is_some();
                assert_eq!(has(e, "with"), has(fleet, "held"));
                assert!(has(e, "with") || !has(e, "after"));
                let is_told = keeper.note.load(Ordering::Acquire) <= snapshot.revision().0;
                assert!(!has(e, "with") || is_told, "seen before it was told");
            }
        });
        keeper.is_open.store(true, Ordering::SeqCst);
        other.ask_gate();
        until(&other, |snapshot| {
            snapshot.bucket(e).unwrap().get("after").is_some()
        });
        stop.store(true, Ordering::Relaxed);
        reading.join().unwrap();
    });
}

/// Who missed something does not know what was written on the way.
#[test]
fn what_is_loaded_anew_waits_too_and_is_said_to_be_so() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([one, other], [e, own, fleet], _dirs) = pair(&shelf, &hand);
    let keeper = Keeper::new(Duration::from_secs(600));
    keeper.anew.store(true, Ordering::SeqCst);
    keeper.keep(&other);
    shelf.be_silent(true);
    std::thread::scope(|scope| {
        let both = batch(vec![
            write(e, "with", Some("1")),
            write(fleet, "held", Some("1")),
        ]);
        let writing = scope.spawn(|| wait(one.commit(both)));
        until_so("it is written", || !shelf.contents("e").is_empty());
        shelf.trim();
        shelf.be_silent(false);
        writing.join().unwrap().unwrap();
    });
    until_so("it has arrived", || keeper.asked.load(Ordering::SeqCst) > 0);
    wait(other.commit(put(own, "k", "1"))).unwrap();
    assert_eq!(contents(&other, e), []);
    keeper.is_open.store(true, Ordering::SeqCst);
    other.ask_gate();
    until(&other, |snapshot| {
        snapshot.bucket(e).unwrap().get("with").is_some()
    });
    let seen = keeper.note.load(Ordering::Acquire);
    assert!(seen <= other.snapshot().revision().0, "{seen} was told");
}

#[test]
fn while_something_waits_nothing_behind_it_is_read_and_what_is_read_is_as_old_as_it_was() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([_one, other], [e, own, _], _dirs) = pair(&shelf, &hand);
    let keeper = Keeper::new(Duration::from_secs(600));
    keeper.keep(&other);
    let before = Instant::now();
    // The writer has other things to do until all has come.
    let hold = wait(other.hold(Duration::from_secs(60))).unwrap();
    shelf.be_away(true);
    until_lost(&other, true);
    shelf.be_silent(true);
    shelf.be_away(false);
    elsewhere(&shelf, "e", "passes", Some("1"));
    elsewhere(&shelf, FLEET, "held", Some("1"));
    elsewhere(&shelf, "e", "after", Some("1"));
    // Whoever comes back is told at last that there is nothing else.
    shelf.be_silent(false);
    until_so("all has come", || {
        other.health()[0].1.revision == shelf.revision()
    });
    drop(hold);
    until(&other, |snapshot| {
        snapshot.bucket(e).unwrap().get("passes").is_some()
    });
    // The writer is done with what arrived.
    wait(other.commit(put(own, "k", "1"))).unwrap();
    assert!(keeper.asked.load(Ordering::SeqCst) > 0);
    let keys = || contents(&other, e).into_iter().map(|it| it.0);
    assert_eq!(keys().collect::<Vec<_>>(), ["passes"]);
    assert!(known_at(&other) <= Some(before), "something waits");
    keeper.is_open.store(true, Ordering::SeqCst);
    other.ask_gate();
    until_known_after(&other, before);
    assert_eq!(keys().collect::<Vec<_>>(), ["after", "passes"]);
}

#[test]
fn nothing_waits_longer_than_its_time_or_for_a_gate_that_is_gone() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([one, other], [e, _, fleet], _dirs) = pair(&shelf, &hand);
    let keeper = Keeper::new(Duration::from_millis(50));
    keeper.keep(&other);
    let entry = |key: &str| {
        batch(vec![
            write(e, key, Some("1")),
            write(fleet, "held", Some("1")),
        ])
    };
    wait(one.commit(entry("first"))).unwrap();
    until(&other, |snapshot| {
        snapshot.bucket(e).unwrap().get("first").is_some()
    });
    assert!(keeper.until <= Instant::now(), "it has waited");
    let gone = Arc::downgrade(&keeper);
    drop(keeper);
    assert!(Weak::upgrade(&gone).is_none());
    wait(one.commit(batch(vec![write(fleet, "held", None)]))).unwrap();
    wait(one.commit(entry("second"))).unwrap();
    until(&other, |snapshot| {
        snapshot.bucket(e).unwrap().get("second").is_some()
    });
}

#[test]
fn what_is_written_behind_the_gate_is_answered_once_it_is_seen_however_long_that_takes() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let timeout = Duration::from_millis(100);
    let ([one, other], [e, _, fleet], _dirs) = pair_within(&shelf, &hand, timeout);
    let keeper = Keeper::new(timeout * 6);
    keeper.keep(&other);
    let both = batch(vec![
        write(e, "with", Some("1")),
        write(fleet, "held", Some("1")),
    ]);
    wait(one.commit(both)).unwrap();
    until_so("it has arrived", || keeper.asked.load(Ordering::SeqCst) > 0);
    std::thread::scope(|scope| {
        let first = Write::put(e, "with", b"2".to_vec()).expecting(Expect::Absent);
        let first = scope.spawn(|| wait(other.commit(batch(vec![first]))));
        let written = wait(other.commit(put(e, "after", "1"))).unwrap();
        assert!(keeper.until <= Instant::now(), "it has waited");
        assert!(other.snapshot().revision() >= written.seen);
        let refused = first.join().unwrap();
        assert!(
            matches!(refused, Err(CommitError::Conflict { .. })),
            "{refused:?}"
        );
    });
}

/// The gate may wait for whoever writes it.
#[test]
fn a_change_for_the_fleet_that_was_built_on_less_than_what_waits_is_refused_at_once() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([one, other], [e, _, fleet], _dirs) = pair(&shelf, &hand);
    let keeper = Keeper::new(Duration::from_secs(600));
    keeper.keep(&other);
    let both = batch(vec![
        write(e, "with", Some("1")),
        write(fleet, "held", Some("1")),
    ]);
    wait(one.commit(both)).unwrap();
    let change = Write::put(fleet, "held", b"2".to_vec()).expecting(Expect::Absent);
    let refused = wait(other.commit(batch(vec![change])));
    assert!(
        matches!(&refused, Err(CommitError::Unavailable(reason)) if reason.contains("waits until this process is ready")),
        "{refused:?}"
    );
    assert_eq!(contents(&other, e), []);
    keeper.is_open.store(true, Ordering::SeqCst);
    other.ask_gate();
    until(&other, |snapshot| {
        snapshot.bucket(e).unwrap().get("with").is_some()
    });
}

/// Lets everything wait until all of it was asked for.
struct Counting {
    expected: BTreeSet<&'static str>,
    asked: Mutex<BTreeSet<String>>,
}

impl Gate for Counting {
    fn arrives(&self, key: &str, _: &[u8], anew: bool) -> Passage {
        assert!(anew);
        let mut asked = self.asked.lock().unwrap();
        asked.insert(key.to_owned());
        match asked.iter().eq(&self.expected) {
            true => Passage::Open,
            false => Passage::Wait(Instant::now() + Duration::from_secs(600)),
        }
    }
}

#[test]
fn all_that_is_loaded_anew_is_asked_for_at_once() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([one, other], [e, _, fleet], _dirs) = pair(&shelf, &hand);
    let expected = BTreeSet::from(["first", "second", "third"]);
    let counting = Arc::new(Counting {
        expected: expected.clone(),
        asked: Mutex::default(),
    });
    let gate: Arc<dyn Gate> = Arc::clone(&counting) as Arc<dyn Gate>;
    other.set_gate(Arc::downgrade(&gate));
    shelf.be_silent(true);
    let mut writes: Vec<_> = expected
        .iter()
        .map(|key| write(fleet, key, Some("1")))
        .collect();
    writes.push(write(e, "with", Some("1")));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| wait(one.commit(batch(writes))));
        until_so("it is written", || shelf.contents("e").len() == 1);
        shelf.trim();
        shelf.be_silent(false);
        let asked = || counting.asked.lock().unwrap().len() == expected.len();
        until_so("each was asked for while the first waits", asked);
        other.ask_gate();
        until(&other, |snapshot| {
            snapshot.bucket(e).unwrap().get("with").is_some()
        });
        writing.join().unwrap().unwrap();
    });
}

/// As a node tells of itself.
#[test]
fn what_the_fleet_is_told_while_something_waits_is_told_as_unseen_or_not_waited_for() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let timeout = Duration::from_millis(200);
    let ([one, other], [_, _, fleet], _dirs) = pair_within(&shelf, &hand, timeout);
    let keeper = Keeper::new(Duration::from_secs(600));
    keeper.keep(&other);
    wait(one.commit(put(fleet, "held", "1"))).unwrap();
    until_so("it has arrived", || keeper.asked.load(Ordering::SeqCst) > 0);
    let told = wait(other.commit(put(fleet, "beside", "1")));
    let Err(CommitError::Unseen { revision, waited }) = told else {
        panic!("{told:?}");
    };
    assert_eq!(revision, shelf.revision());
    assert!(waited >= timeout, "{waited:?}");
    wait(other.commit_unseen(put(fleet, "beside", "2"))).unwrap();
    assert_eq!(shelf.contents(FLEET)[0].1, "2");
    assert_eq!(contents(&other, fleet), []);
    keeper.is_open.store(true, Ordering::SeqCst);
    other.ask_gate();
    until(&other, |snapshot| {
        let told = snapshot.bucket(fleet).unwrap().get("beside").cloned();
        told.is_some_and(|told| told.value.to_bytes() == &b"2"[..])
    });
}

/// What a session wrote would be read as it was before, if it were taken for refused.
#[test]
fn what_was_handed_over_is_answered_once_it_is_seen_however_late() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let timeout = Duration::from_millis(200);
    let ([_one, other], [e, _, _], _dirs) = pair_within(&shelf, &hand, timeout);
    shelf.be_silent(true);
    let (done, answer) = std::sync::mpsc::channel();
    let told = move |committed: Result<Committed, CommitError>| drop(done.send(committed));
    other.submit(put(e, "handed", "1"), told).unwrap();
    until_so("the engine has it", || !shelf.contents("e").is_empty());
    let waited = wait(other.commit(put(e, "waited", "1")));
    assert!(
        matches!(waited, Err(CommitError::Unseen { .. })),
        "{waited:?}"
    );
    assert!(answer.try_recv().is_err(), "nobody waits for it");
    shelf.be_silent(false);
    let answer = answer.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(
        answer.unwrap().entry,
        Some(shelf_revision(&shelf, "handed"))
    );
}

/// Else nothing that is handed over after it would ever have its turn.
#[test]
fn what_was_handed_over_and_lost_in_a_failover_is_waited_for_no_longer() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([_one, other], [e, _, _], _dirs) = pair(&shelf, &hand);
    let backup = shelf.backup();
    shelf.be_silent(true);
    let (done, answer) = std::sync::mpsc::channel();
    let told = move |committed: Result<Committed, CommitError>| drop(done.send(committed));
    other.submit(put(e, "lost", "1"), told).unwrap();
    until_so("the engine has it", || !shelf.contents("e").is_empty());
    shelf.restore(backup);
    shelf.be_silent(false);
    let answer = answer.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!((answer.unwrap().created, contents(&other, e)), (1, vec![]));
}

/// What becomes of a write that is late.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Comes,
    /// In a failover; what the replica has is loaded anew.
    Lost,
    /// In a failover that followers do not notice: they were told of nothing that is lost.
    LostUnnoticed,
    Closed,
}

/// As an activation commits: whoever asked is told, and the rest is done once it is seen.
#[test]
fn what_is_late_is_told_once_and_waited_for_unless_it_cannot_come_any_more() {
    for then in [Then::Comes, Then::Lost, Then::LostUnnoticed, Then::Closed] {
        let (shelf, hand) = (Shelf::new(), Hand::new());
        let timeout = Duration::from_millis(200);
        let ([_one, other], [e, _, _], _dirs) = pair_within(&shelf, &hand, timeout);
        let backup = shelf.backup();
        shelf.be_silent(true);
        let note = Arc::new(AtomicU64::new(u64::MAX));
        let (tell, late) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (store, notes) = (other.clone(), vec![Arc::clone(&note)]);
            let committing = scope.spawn(move || {
                let tell = move |error| drop(tell.send(error));
                wait(store.commit_noting(put(e, "late", "1"), notes, Some(&tell)))
            });
            let told = late.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(matches!(told, CommitError::Unseen { .. }), "{told:?}");
            assert_eq!(note.load(Ordering::Acquire), u64::MAX);
            match then {
                Then::Comes => shelf.be_silent(false),
                Then::Closed => other.close(),
                Then::Lost => {
                    shelf.restore(backup);
                    shelf.be_silent(false);
                }
                Then::LostUnnoticed => {
                    shelf.lose_end(backup);
                    // It tells again that this is all.
                    shelf.be_away(true);
                    until_lost(&other, true);
                    shelf.be_away(false);
                }
            }
            let committed = committing.join().unwrap();
            match then {
                Then::Comes => assert_eq!(committed.unwrap().seen.0, note.load(Ordering::Acquire)),
                Then::Closed => {
                    let unseen = matches!(committed, Err(CommitError::Unseen { .. }));
                    assert!(unseen, "{committed:?}");
                }
                Then::Lost | Then::LostUnnoticed => {
                    let lost = matches!(committed, Err(CommitError::Lost { .. }));
                    assert!(lost, "{committed:?}");
                }
            }
            assert!(late.recv().is_err(), "it is told once");
        });
    }
}

/// Who is told that his write is made must not find it gone, and is not left to wait.
#[test]
fn what_a_failover_has_lost_is_told_as_lost() {
    let (shelf, hand) = (Shelf::new(), Hand::new());
    let ([_one, other], [e, _, _], _dirs) = pair(&shelf, &hand);
    let backup = shelf.backup();
    shelf.be_silent(true);
    std::thread::scope(|scope| {
        let committing = scope.spawn(|| wait(other.commit(put(e, "lost", "1"))));
        until_so("the engine has it", || !shelf.contents("e").is_empty());
        shelf.restore(backup);
        shelf.be_silent(false);
        let committed = committing.join().unwrap();
        let lost = matches!(committed, Err(CommitError::Lost { .. }));
        assert!(lost, "{committed:?}");
    });
}

fn shelf_revision(shelf: &Shelf, key: &str) -> Revision {
    let contents = shelf.contents("e");
    let entry = contents.iter().find(|(other, ..)| other == key).unwrap();
    Revision(entry.2)
}
