//! Entries that proxies share and that are over, while their engine has not told so.

use super::behind::elsewhere;
use super::deadlines::{Hand, put_for, until};
use super::engine::Shelf;
use super::nodes::{converge, fleet, node, node_with, shared, until_lost, until_so};
use super::*;
use crate::store::log::Ending;
use std::time::Duration;

const MANY: usize = 4_000;

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

fn keys(store: &Store) -> Vec<String> {
    let keys = contents(store, id(store, "e")).into_iter();
    keys.map(|(key, ..)| key).collect()
}

fn until_keys(store: &Store, expected: &[&str]) {
    let e = id(store, "e");
    until(store, |snapshot| {
        snapshot.bucket(e).unwrap().len() == expected.len() as u64
    });
    assert_eq!(keys(store), expected);
}

/// Lets the writer look at its clock some times, with what an engine answers between.
fn some_looks(store: &Store) {
    let own = id(store, "own");
    for round in 0..50 {
        wait(store.commit(put(own, "k", &round.to_string()))).unwrap();
        std::thread::yield_now();
    }
}

#[test]
fn an_end_that_is_told_within_a_tick_before_it_is_no_delete() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let store = &stores[0];
    let e = id(store, "e");
    for key in ["deleted", "ended"] {
        wait(store.commit(put_for(e, key, "1", seconds(10)))).unwrap();
    }
    let mut watch = store.watch(e, None).unwrap();
    for (key, advanced, expected) in [
        ("deleted", 9_700, Ending::Deleted),
        ("ended", 100, Ending::Expired),
    ] {
        hand.advance(advanced);
        some_looks(store);
        elsewhere(&shelf, "e", key, None);
        let told = wait(watch.next()).unwrap();
        let told: Vec<_> = told.changes().collect();
        assert!(matches!(&told[..], [(gone, Err(how))] if *gone == key && *how == expected));
    }
}

#[test]
fn what_is_over_by_the_engine_is_gone_before_it_deletes_it_and_told_of_once() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    let many = (0..MANY).map(|key| {
        let (value, ttl) = (b"v"[..].into(), seconds(10));
        Write::new(e, format!("k{key}"), Action::Put { value, ttl })
    });
    wait(stores[0].commit(batch(many.collect()))).unwrap();
    wait(stores[0].commit(put(e, "stays", "1"))).unwrap();
    converge(&shelf, &stores);
    let revision = shelf.revision();
    let mut watch = stores[1].watch(e, None).unwrap();
    // These proxies' clock is far ahead of the engine's, which is there to tell.
    hand.advance(3_600_000);
    for store in &stores {
        some_looks(store);
        assert_eq!(keys(store).len(), MANY + 1);
    }
    let before = stores[0].snapshot().revision();
    shelf.advance(10_000);
    hand.advance(10_000);
    for store in &stores {
        until_keys(store, &["stays"]);
        let snapshot = store.snapshot();
        assert!(
            snapshot.revision() > before,
            "no two states have one revision"
        );
        assert_eq!(snapshot.bucket(e).unwrap().revision(), revision);
        assert_eq!(snapshot.bucket(e).unwrap().bytes(), 6);
    }
    assert_eq!(shelf.contents("e").len(), MANY + 1);
    shelf.expire();
    let group = wait(watch.next()).unwrap();
    assert_eq!(group.revision, shelf.revision());
    let how: Vec<_> = group.changes().map(|(_, entry)| entry.err()).collect();
    assert_eq!(how, vec![Some(Ending::Expired); MANY]);
    converge(&shelf, &stores);
    // Nothing more is told.
    wait(stores[0].commit(put(e, "next", "1"))).unwrap();
    assert_eq!(
        wait(watch.next()).unwrap().changes().next().unwrap().0,
        "next"
    );
}

/// What it lives at least is no end.
#[test]
fn what_lives_longer_is_asked_for_again() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    wait(store.commit(put_for(e, "k", "1", seconds(10)))).unwrap();
    // This proxy's clock is ahead.
    shelf.be_stuck(true);
    hand.advance(9_600);
    until_so("it is asked", || shelf.waiting() == 1);
    shelf.be_stuck(false);
    until_so("it has answered", || shelf.waiting() == 0);
    some_looks(store);
    shelf.advance(8_000);
    hand.advance(9_000);
    some_looks(store);
    assert_eq!(keys(store), ["k"]);
    shelf.advance(2_000);
    for _ in 0..60 {
        hand.advance(1_000);
        some_looks(store);
    }
    until_keys(store, &[]);
}

#[test]
fn an_engine_is_asked_one_question_at_a_time() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    for (key, ttl) in [("first", 2), ("second", 4)] {
        wait(store.commit(put_for(e, key, "1", seconds(ttl)))).unwrap();
    }
    shelf.be_stuck(true);
    hand.advance(1_600);
    until_so("it is asked", || shelf.waiting() == 1);
    hand.advance(2_000);
    some_looks(store);
    assert_eq!(shelf.waiting(), 1);
    shelf.advance(4_000);
    shelf.be_stuck(false);
    until_keys(store, &[]);
}

#[test]
fn an_answer_about_an_entry_of_before_ends_no_other() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    wait(store.commit(put_for(e, "k", "1", seconds(2)))).unwrap();
    shelf.be_stuck(true);
    hand.advance(1_600);
    until_so("it is asked", || shelf.waiting() == 1);
    wait(store.commit(put_for(e, "k", "2", seconds(600)))).unwrap();
    shelf.be_stuck(false);
    until_so("it has answered", || shelf.waiting() == 0);
    some_looks(store);
    shelf.advance(2_000);
    hand.advance(2_000);
    some_looks(store);
    assert_eq!(keys(store), ["k"]);
}

#[test]
fn what_was_hidden_comes_back_if_the_engine_says_that_it_lives() {
    for is_known in [true, false] {
        let hand = Hand::new();
        let (shelf, stores, _dir) = fleet(1, &hand);
        let (store, e) = (&stores[0], id(&stores[0], "e"));
        for (key, ttl) in [("ends", 1), ("lives", 2), ("long", 60)] {
            wait(store.commit(put_for(e, key, "1", seconds(ttl)))).unwrap();
        }
        shelf.be_away(true);
        until_lost(store, true);
        hand.advance(60_000);
        until_keys(store, &[]);
        if is_known {
            // How long one lives is known, how long another at least, and of one that it is as good as over.
            shelf.be_away(false);
            until_keys(store, &["lives", "long"]);
        } else {
            shelf.be_ignorant();
            shelf.be_away(false);
            until_lost(store, false);
        }
        some_looks(store);
        let there: &[&str] = if is_known { &["lives", "long"] } else { &[] };
        assert_eq!(keys(store), there);
    }
}

/// The nodes of a fleet are entries that end unless they are written again, which nobody can without the engine.
#[test]
fn without_the_engine_no_node_is_taken_for_gone() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    let buckets = [
        shared("e"),
        memory("own"),
        BucketConfig::of_fleet(BackendKind::Etcd),
    ];
    let store = node_with(&buckets, &shelf, dir.path(), &hand).unwrap();
    let (e, fleet) = (id(&store, "e"), store.snapshot().fleet().unwrap());
    for bucket in [e, fleet] {
        wait(store.commit(put_for(bucket, "k", "1", seconds(5)))).unwrap();
    }
    shelf.be_away(true);
    until_lost(&store, true);
    hand.advance(60_000);
    until_keys(&store, &[]);
    some_looks(&store);
    assert_eq!(contents(&store, fleet).len(), 1);
    shelf.advance(60_000);
    shelf.be_away(false);
    until_lost(&store, false);
    hand.advance(2_000);
    until(&store, |snapshot| {
        snapshot.bucket(fleet).unwrap().is_empty()
    });
}

#[test]
fn what_the_engine_still_holds_can_be_made_anew() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    wait(stores[0].commit(put_for(e, "k", "41", seconds(1)))).unwrap();
    wait(stores[0].commit(put_for(e, "n", "41", seconds(1)))).unwrap();
    converge(&shelf, &stores);
    let mut watch = stores[1].watch(e, None).unwrap();
    shelf.advance(1_000);
    hand.advance(1_000);
    stores.iter().for_each(|store| until_keys(store, &[]));
    let touch = Action::Touch { ttl: seconds(1) };
    let gone = wait(stores[0].commit(batch(vec![Write::new(e, "k", touch)])));
    assert!(
        matches!(gone, Err(CommitError::Conflict { found: None, .. })),
        "{gone:?}"
    );
    let first = Write::put(e, "k", b"new"[..].to_vec()).expecting(Expect::Absent);
    wait(stores[0].commit(batch(vec![first]))).unwrap();
    let add = Action::Increment { by: 1, ttl: None };
    let sum = wait(stores[1].commit(batch(vec![Write::new(e, "n", add)]))).unwrap();
    assert_eq!(sum.number, Some(1));
    converge(&shelf, &stores);
    for (key, value) in [("k", "new"), ("n", "1")] {
        let group = wait(watch.next()).unwrap();
        let (told, entry) = group.changes().next().unwrap();
        let text = entry.unwrap().value.to_bytes().into_owned();
        assert_eq!((told, text.as_slice()), (key, value.as_bytes()));
    }
}

#[test]
fn without_the_engine_the_own_clock_ends_entries_and_is_doubted_when_it_is_back() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    for key in ["over", "prolonged"] {
        wait(store.commit(put_for(e, key, "1", seconds(5)))).unwrap();
    }
    wait(store.commit(put_for(e, "long", "1", seconds(600)))).unwrap();
    wait(store.commit(put(e, "stays", "1"))).unwrap();
    let all = ["long", "over", "prolonged", "stays"];
    shelf.be_away(true);
    until_lost(store, true);
    some_looks(store);
    assert_eq!(keys(store), all);
    hand.advance(5_000);
    until_keys(store, &["long", "stays"]);
    // The engine's clock has not come so far: this proxy's is ahead.
    shelf.be_away(false);
    until_keys(store, &all);
    shelf.be_away(true);
    until_lost(store, true);
    some_looks(store);
    assert_eq!(keys(store), all, "it said how long they live");
    hand.advance(5_000);
    until_keys(store, &["long", "stays"]);
    // Now it has, and another proxy has prolonged one in time.
    let dir = tempfile::tempdir().unwrap();
    shelf.be_silent(true);
    shelf.be_away(false);
    let other = node(&shelf, dir.path(), &hand).unwrap();
    let mut watch = store.watch(e, None).unwrap();
    std::thread::scope(|scope| {
        let commits = shelf.commits();
        let prolong = put_for(e, "prolonged", "2", seconds(3_600));
        let prolonging = scope.spawn(|| wait(other.commit(prolong)));
        while shelf.commits() == commits {
            std::thread::yield_now();
        }
        shelf.advance(5_000);
        shelf.be_silent(false);
        prolonging.join().unwrap().unwrap();
    });
    until_keys(store, &["long", "prolonged", "stays"]);
    let group = wait(watch.next()).unwrap();
    let (key, entry) = group.changes().next().unwrap();
    assert_eq!((key, entry.is_ok()), ("prolonged", true));
    some_looks(store);
    assert_eq!(keys(store), ["long", "prolonged", "stays"]);
    shelf.expire();
    let group = wait(watch.next()).unwrap();
    let how: Vec<_> = group.changes().map(|(key, it)| (key, it.err())).collect();
    assert_eq!(how, [("over", Some(Ending::Expired))]);
}

#[test]
fn what_is_hidden_stays_known_when_a_config_changes_keys_or_values() {
    let lookup = BucketConfig {
        lookup: LookupKinds::of(&[LookupKind::Prefix]),
        ..shared("e")
    };
    let values = BucketConfig::new("e", BackendKind::Etcd, ValueKind::Endpoint);
    for config in [lookup, values] {
        let hand = Hand::new();
        let (shelf, stores, _dir) = fleet(1, &hand);
        let (store, e) = (&stores[0], id(&stores[0], "e"));
        wait(store.commit(put_for(e, "brief", "10.0.0.1", seconds(5)))).unwrap();
        wait(store.commit(put(e, "stays", "10.0.0.2"))).unwrap();
        shelf.be_away(true);
        until_lost(store, true);
        hand.advance(5_000);
        until_keys(store, &["stays"]);
        wait(store.reconfigure(&[config, memory("own")])).unwrap();
        assert_eq!(keys(store), ["stays"]);
        // This proxy's clock was ahead. What is told next tells that the engine is back.
        shelf.be_away(false);
        wait(store.commit(put(e, "next", "10.0.0.2"))).unwrap();
        until_keys(store, &["brief", "next", "stays"]);
        let absent = write(e, "brief", Some("10.0.0.3")).expecting(Expect::Absent);
        let refused = wait(store.commit(batch(vec![absent])));
        assert!(
            matches!(refused, Err(CommitError::Conflict { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn a_start_from_the_copy_finds_nothing_that_is_over() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    let store = node(&shelf, dir.path(), &hand).unwrap();
    let e = id(&store, "e");
    wait(store.commit(put_for(e, "brief", "1", seconds(5)))).unwrap();
    wait(store.commit(put(e, "stays", "1"))).unwrap();
    store.close();
    drop(store);
    shelf.be_away(true);
    hand.advance(5_000);
    for _ in 0..2 {
        let store = node(&shelf, dir.path(), &hand).unwrap();
        until_keys(&store, &["stays"]);
        store.close();
    }
    // What counts is the engine, once it is there.
    let store = node(&shelf, dir.path(), &hand).unwrap();
    until_keys(&store, &["stays"]);
    shelf.be_away(false);
    until_keys(&store, &["brief", "stays"]);
    shelf.advance(5_000);
    hand.advance(5_000);
    until_keys(&store, &["stays"]);
}

#[test]
fn what_ends_at_the_engine_ends_everywhere() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    let ttl = Some(Duration::from_secs(1));
    wait(stores[0].commit(put_for(e, "k", "1", ttl))).unwrap();
    wait(stores[0].commit(put(e, "stays", "1"))).unwrap();
    converge(&shelf, &stores);
    let mut watch = stores[1].watch(e, None).unwrap();
    // Only the engine says when.
    hand.advance(5_000);
    wait(stores[1].commit(put(id(&stores[1], "own"), "k", "1"))).unwrap();
    assert_eq!(contents(&stores[1], e).len(), 2);
    shelf.advance(5_000);
    shelf.expire();
    converge(&shelf, &stores);
    let group = wait(watch.next()).unwrap();
    let how: Vec<_> = group.changes().map(|(_, entry)| entry.err()).collect();
    assert_eq!(how, [Some(Ending::Expired)]);
}

#[test]
fn only_the_engine_knows_when_what_is_counted_ends() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    let ttl = |seconds| Some(Duration::from_secs(seconds));
    wait(stores[0].commit(put_for(e, "k", "1", ttl(60)))).unwrap();
    converge(&shelf, &stores);
    // By this process's clock it ended long ago.
    hand.advance(100_000_000);
    let add = |ttl| Write::new(e, "k", Action::Increment { by: 1, ttl });
    wait(stores[1].commit(batch(vec![add(None), add(ttl(7))]))).unwrap();
    assert_eq!(shelf.contents("e")[0].1, "3");
    assert_eq!(shelf.end_of("e", "k"), Some(1_060_000));
    // What the batch itself put first ends as it says, and so does what it made.
    let put = put_for(e, "k", "5", ttl(20)).writes.remove(0);
    wait(stores[1].commit(batch(vec![put, add(None)]))).unwrap();
    assert_eq!(shelf.end_of("e", "k"), Some(1_020_000));
    let anew = WriteBatch {
        replace: vec![e],
        ..batch(vec![add(ttl(30))])
    };
    wait(stores[0].commit(anew)).unwrap();
    assert_eq!(shelf.contents("e")[0].1, "1");
    assert_eq!(shelf.end_of("e", "k"), Some(1_030_000));
}
