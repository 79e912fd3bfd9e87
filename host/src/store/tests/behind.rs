//! A store that has not seen yet what other processes have written.

use super::deadlines::Hand;
use super::engine::Shelf;
use super::nodes::{converge, fleet, node_with, shared, until_lost, until_so};
use super::*;
use crate::store::shared::{Engine, Life, Outcome, SharedValue, SharedWrite, Transaction};
use std::time::{Duration, Instant};

/// What another process writes.
pub(super) fn elsewhere(shelf: &Shelf, bucket: &str, key: &str, value: Option<&str>) {
    let write = SharedWrite {
        bucket: bucket.into(),
        key: key.into(),
        value: value.map(|value| SharedValue {
            bytes: value.as_bytes().into(),
            life: Life::Lasting,
        }),
    };
    let transaction = Transaction {
        writes: vec![write],
        ..Transaction::default()
    };
    let done = wait(shelf.commit(&transaction)).unwrap();
    assert!(matches!(done, Outcome::Applied(_)), "{done:?}");
}

/// Commits while the log is silent, which it is no longer once the engine was asked.
fn commit_behind(
    store: &Store,
    shelf: &Shelf,
    batch: WriteBatch,
) -> Result<Committed, CommitError> {
    let commits = shelf.commits();
    std::thread::scope(|scope| {
        let committing = scope.spawn(move || wait(store.commit(batch)));
        while shelf.commits() == commits && !committing.is_finished() {
            std::thread::yield_now();
        }
        shelf.be_silent(false);
        committing.join().unwrap()
    })
}

/// When it was known for the last time that there is nothing newer, or a little before.
pub(super) fn known_at(store: &Store) -> Option<Instant> {
    let now = Instant::now();
    Some(now - store.health()[0].1.staleness()?)
}

pub(super) fn until_known_after(store: &Store, at: Instant) {
    let began = Instant::now();
    while known_at(store) <= Some(at) {
        assert!(began.elapsed() < Duration::from_secs(20), "it is not known");
        std::thread::yield_now();
    }
}

/// A bucket that is loaded later knows more than those beside it, whose log is followed from where they are.
#[test]
fn a_bucket_that_comes_later_is_told_nothing_that_it_was_loaded_with() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    let store = node_with(&[shared("e")], &shelf, dir.path(), &hand).unwrap();
    shelf.be_silent(true);
    elsewhere(&shelf, "late", "deleted", Some("1"));
    elsewhere(&shelf, "late", "changed", Some("1"));
    elsewhere(&shelf, "late", "deleted", None);
    elsewhere(&shelf, "late", "changed", Some("2"));
    let late = BucketConfig {
        history: 10,
        ..shared("late")
    };
    wait(store.reconfigure(&[shared("e"), late])).unwrap();
    let late = id(&store, "late");
    assert_eq!(contents(&store, late), shelf.contents("late"));
    let mut watch = store.watch(late, None).unwrap();
    elsewhere(&shelf, "late", "new", Some("1"));
    shelf.be_silent(false);
    let group = wait(watch.next()).unwrap();
    let told: Vec<_> = group.changes().map(|(key, _)| key.to_owned()).collect();
    assert_eq!((told, group.revision), (vec!["new".into()], Revision(5)));
    assert_eq!(contents(&store, late), shelf.contents("late"));
    for key in ["deleted", "changed"] {
        let past = wait(store.history(late, key)).unwrap();
        assert_eq!(past, [], "{key} was something else for a moment");
    }
}

/// What this process has may speak against a write that nothing speaks against any more.
#[test]
fn a_refusal_by_what_is_no_longer_so_is_none() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    wait(store.commit(put(e, "k", "1"))).unwrap();
    shelf.be_silent(true);
    elsewhere(&shelf, "e", "k", None);
    let absent = write(e, "k", Some("2")).expecting(Expect::Absent);
    let made = commit_behind(store, &shelf, batch(vec![absent])).unwrap();
    assert_eq!((made.created, made.entry), (1, Some(Revision(3))));

    shelf.be_silent(true);
    elsewhere(&shelf, "e", "k", Some("3"));
    let newest = write(e, "k", Some("4")).expecting(Expect::At(Revision(4)));
    let changed = commit_behind(store, &shelf, batch(vec![newest])).unwrap();
    assert_eq!((changed.updated, changed.entry), (1, Some(Revision(5))));

    shelf.be_silent(true);
    elsewhere(&shelf, "e", "k", None);
    let empty = WriteBatch {
        expect: vec![(e, Expect::Absent)],
        ..put(e, "first", "1")
    };
    commit_behind(store, &shelf, empty).unwrap();
    assert_eq!(shelf.contents("e").len(), 1);
}

#[test]
fn what_a_batch_requires_of_a_whole_bucket_is_checked_by_the_engine() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    let first = wait(store.commit(put(e, "k", "1"))).unwrap();
    shelf.be_silent(true);
    elsewhere(&shelf, "e", "other", Some("1"));
    let as_read = WriteBatch {
        expect: vec![(e, Expect::At(first.revision))],
        ..put(e, "k", "2")
    };
    let refused = commit_behind(store, &shelf, as_read);
    assert!(
        matches!(&refused, Err(CommitError::BucketConflict { found, .. }) if found.0 == 2),
        "{refused:?}"
    );
    assert_eq!(shelf.contents("e")[0].1, "1");

    shelf.be_silent(true);
    elsewhere(&shelf, "e", "unseen", Some("1"));
    let unchanged = WriteBatch {
        conditions: vec![Condition::Unchanged(e, Revision(2))],
        ..put(e, "k", "2")
    };
    let refused = commit_behind(store, &shelf, unchanged);
    assert!(
        matches!(&refused, Err(CommitError::Changed { .. })),
        "{refused:?}"
    );

    // Somebody else has migrated what a plugin has there.
    shelf.be_silent(true);
    elsewhere(&shelf, "throwbar:marks", "plugin", Some("1"));
    let unmarked = WriteBatch {
        conditions: vec![Condition::Unmarked("plugin".into(), None)],
        ..put(e, "k", "2")
    };
    let refused = commit_behind(store, &shelf, unmarked);
    assert!(
        matches!(&refused, Err(CommitError::Marked { .. })),
        "{refused:?}"
    );

    // What nobody here had seen goes with the rest.
    shelf.be_silent(true);
    elsewhere(&shelf, "e", "unseen too", Some("1"));
    let whole = WriteBatch {
        replace: vec![e],
        ..put(e, "only", "1")
    };
    commit_behind(store, &shelf, whole).unwrap();
    converge(&shelf, &stores);
    let keys: Vec<_> = contents(store, e).into_iter().map(|it| it.0).collect();
    assert_eq!(keys, ["only"]);
}

/// Somebody waits for its turn at one key: who writes others does not wait with it, however many these are.
#[test]
fn a_key_that_is_always_in_use_keeps_no_other_waiting() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    wait(store.commit(put(e, "sum", "1"))).unwrap();
    shelf.be_silent(true);
    elsewhere(&shelf, "e", "sum", Some("41"));
    let by = Action::Increment { by: 1, ttl: None };
    let add = batch(vec![Write::new(e, "sum", by)]);
    let others = (0..2_000).map(|key| write(e, &key.to_string(), Some("1")));
    let others = batch(others.collect());
    std::thread::scope(|scope| {
        let before = shelf.commits();
        let adding = scope.spawn(move || wait(store.commit(add)));
        // Refused once, it is in line, and tries again and again.
        until_so("it is in line", || shelf.commits() > before + 1);
        let others = scope.spawn(move || wait(store.commit(others)));
        until_so("they are written", || shelf.contents("e").len() > 2_000);
        assert!(!adding.is_finished());
        shelf.be_silent(false);
        others.join().unwrap().unwrap();
        adding.join().unwrap().unwrap();
    });
    assert!(shelf.contents("e").iter().any(|it| it.1 == "42"));
}

/// After a loss the log tells what was written meanwhile: until its end what is read is as old as it was.
#[test]
fn what_the_log_tells_of_the_past_makes_nothing_current() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    shelf.be_away(true);
    until_lost(store, true);
    let lost = Instant::now();
    shelf.be_away(false);
    until_lost(store, false);
    until_known_after(store, lost);
    shelf.be_away(true);
    until_lost(store, true);
    let lost = Instant::now();
    shelf.be_behind(true);
    shelf.be_away(false);
    elsewhere(&shelf, "e", "missed", Some("1"));
    elsewhere(&shelf, "nobody's", "missed", Some("1"));
    // Answered when this process has it, and all that was before it.
    wait(store.commit(put(e, "own", "1"))).unwrap();
    assert_eq!(contents(store, e).len(), 2);
    assert_eq!(store.health()[0].1.lost, None);
    assert!(
        known_at(store) <= Some(lost),
        "the log has not come to its end"
    );
    shelf.be_behind(false);
    until_known_after(store, lost);
}

#[test]
fn what_is_not_applied_yet_makes_nothing_current() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let store = &stores[0];
    shelf.be_away(true);
    until_lost(store, true);
    let lost = Instant::now();
    shelf.be_away(false);
    until_known_after(store, lost);
    shelf.be_away(true);
    until_lost(store, true);
    let lost = Instant::now();
    // The writer has other things to do.
    let hold = wait(store.hold(Duration::from_secs(60))).unwrap();
    shelf.be_away(false);
    until_lost(store, false);
    assert!(known_at(store) <= Some(lost), "nobody can read it yet");
    drop(hold);
    until_known_after(store, lost);
}
