//! Many who write at once to what they share, and what a process says that has not seen the newest of it.

use super::engine::{Shelf, WRITES_MAX};
use super::nodes::{converge, fleet, fleet_of, node_within, shared, until_so};
use super::*;
use crate::store::tests::deadlines::Hand;
use futures_util::FutureExt;
use std::time::Duration;

/// Stores on one shelf whose bucket holds at most so many keys.
fn limited(nodes: usize, keys_max: u64) -> (Shelf, Vec<Store>, tempfile::TempDir) {
    let config = BucketConfig {
        keys_max,
        ..BucketConfig::new("e", BackendKind::Etcd, ValueKind::Bytes)
    };
    fleet_of(nodes, &[config], &Hand::new())
}

fn increment(e: BucketId, key: &str) -> WriteBatch {
    let by = Action::Increment { by: 1, ttl: None };
    batch(vec![Write::new(e, key, by)])
}

/// What the second store says to a batch while it has not seen yet that the first one wrote another.
fn said_before_it_sees(
    (shelf, stores): (&Shelf, &[Store]),
    unseen: WriteBatch,
    batch: WriteBatch,
) -> Result<Committed, CommitError> {
    converge(shelf, stores);
    shelf.be_silent(true);
    let (one, other) = (&stores[0], &stores[1]);
    let before = shelf.revision();
    std::thread::scope(|scope| {
        let first = scope.spawn(move || wait(one.commit(unseen)));
        while shelf.revision() == before {
            std::thread::yield_now();
        }
        let commits = shelf.commits();
        let said = scope.spawn(move || wait(other.commit(batch)));
        while shelf.commits() == commits && !said.is_finished() {
            std::thread::yield_now();
        }
        shelf.be_silent(false);
        first.join().unwrap().unwrap();
        said.join().unwrap()
    })
}

#[test]
fn what_others_have_just_made_possible_is_not_refused() {
    let (shelf, stores, _dir) = limited(2, 2);
    let e = id(&stores[0], "e");
    wait(stores[0].commit(put(e, "a", "no number"))).unwrap();
    wait(stores[0].commit(put(e, "b", "1"))).unwrap();
    // There is room again.
    let gone = batch(vec![write(e, "b", None)]);
    let said = said_before_it_sees((&shelf, &stores), gone, put(e, "c", "1"));
    assert_eq!(said.map(|done| done.created), Ok(1));
    // It is a number now.
    let said = said_before_it_sees((&shelf, &stores), put(e, "a", "41"), increment(e, "a"));
    assert_eq!(said.map(|done| done.number), Ok(Some(42)));
    // What is refused is refused because it is so.
    let said = wait(stores[1].commit(put(e, "d", "1")));
    assert!(matches!(said, Err(CommitError::Quota { .. })), "{said:?}");
}

#[test]
fn a_limit_holds_however_many_write_at_once() {
    for nodes in [1, 2] {
        let (shelf, stores, _dir) = limited(nodes, 10);
        let e = id(&stores[0], "e");
        for key in 0..9 {
            wait(stores[0].commit(put(e, &format!("held-{key}"), "1"))).unwrap();
        }
        for round in 0..10 {
            converge(&shelf, &stores);
            let made: usize = std::thread::scope(|scope| {
                let writers = (0..16).map(|writer| {
                    let store = &stores[writer % nodes];
                    let put = put(e, &format!("{round}-{writer}"), "1");
                    scope.spawn(move || match wait(store.commit(put)) {
                        Ok(_) => 1,
                        Err(CommitError::Quota { .. }) => 0,
                        Err(error) => panic!("{error}"),
                    })
                });
                let writers: Vec<_> = writers.collect();
                writers.into_iter().map(|it| it.join().unwrap()).sum()
            });
            assert_eq!((made, shelf.contents("e").len()), (1, 10), "{nodes} nodes");
            let keys = shelf.contents("e").into_iter().map(|it| it.0);
            let new = keys.filter(|key| !key.starts_with("held"));
            let delete = new.map(|key| write(e, &key, None)).collect();
            wait(stores[0].commit(batch(delete))).unwrap();
        }
    }
}

#[test]
fn many_who_add_to_one_number_all_do() {
    let (shelf, stores, _dir) = fleet(2, &Hand::new());
    let e = id(&stores[0], "e");
    std::thread::scope(|scope| {
        for writer in 0..60 {
            let store = &stores[writer % 2];
            scope.spawn(move || {
                for _ in 0..5 {
                    wait(store.commit(increment(e, "sum"))).unwrap();
                }
            });
        }
    });
    assert_eq!(shelf.contents("e")[0].1, "300");
}

/// So that of many who depend on one key each has its turn.
#[test]
fn who_comes_later_goes_behind_those_who_met_a_conflict() {
    let (shelf, stores, _dir) = fleet(2, &Hand::new());
    let (one, other, e) = (&stores[0], &stores[1], id(&stores[0], "e"));
    wait(one.commit(put(e, "k", "1"))).unwrap();
    converge(&shelf, &stores);
    shelf.be_silent(true);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().unwrap();
    std::thread::scope(|scope| {
        let before = shelf.commits();
        let unseen = scope.spawn(|| wait(one.commit(put(e, "k", "41"))));
        while shelf.commits() == before {
            std::thread::yield_now();
        }
        let adding = scope.spawn(|| wait(other.commit(increment(e, "k"))));
        // What is tried again is tried in its turn.
        while shelf.commits() < before + 3 {
            std::thread::yield_now();
        }
        let _inside = runtime.enter();
        let mut later = Box::pin(other.commit(put(e, "k", "100")));
        assert!((&mut later).now_or_never().is_none());
        // What has nobody before it goes at once, behind whatever was sent before. A key may share a line with another.
        let mut free = ["l", "m", "n"].map(|key| Box::pin(other.commit(put(e, key, "1"))));
        for free in &mut free {
            assert!(free.now_or_never().is_none());
        }
        while shelf.contents("e").len() == 1 {
            std::thread::yield_now();
        }
        assert_eq!(shelf.contents("e")[0].1, "41");
        shelf.be_silent(false);
        assert_eq!(adding.join().unwrap().map(|done| done.number), Ok(Some(42)));
        unseen.join().unwrap().unwrap();
        runtime.block_on(later).unwrap();
        for free in free {
            runtime.block_on(free).unwrap();
        }
    });
    assert_eq!(shelf.contents("e")[0].1, "100");
}

#[test]
fn a_write_that_was_sent_before_the_store_was_closed_may_have_been_made() {
    let (shelf, stores, _dir) = fleet(1, &Hand::new());
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    shelf.be_mute(true);
    let said = std::thread::scope(|scope| {
        let writing = scope.spawn(|| wait(store.commit(put(e, "k", "1"))));
        while shelf.commits() == 0 {
            std::thread::yield_now();
        }
        store.close();
        writing.join().unwrap()
    });
    assert!(matches!(said, Err(CommitError::Unknown(_))), "{said:?}");
    assert_eq!(shelf.contents("e").len(), 1);
    let late = wait(store.commit(put(e, "k", "2")));
    assert!(matches!(late, Err(CommitError::Unavailable(_))), "{late:?}");
}

#[test]
fn a_write_to_an_engine_that_went_back_is_seen_before_it_is_answered() {
    let (shelf, stores, _dir) = fleet(1, &Hand::new());
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    let backup = shelf.backup();
    for round in 0..5 {
        wait(store.commit(put(e, "k", &round.to_string()))).unwrap();
    }
    shelf.be_silent(true);
    let commits = shelf.commits();
    shelf.restore(backup);
    shelf.be_silent(true);
    let written = std::thread::scope(|scope| {
        let writing = scope.spawn(|| wait(store.commit(put(e, "k", "after"))));
        while shelf.revision() == Revision(0) {
            std::thread::yield_now();
        }
        shelf.be_silent(false);
        writing.join().unwrap().unwrap()
    });
    assert!(written.revision < Revision(commits), "{written:?}");
    let seen = contents(store, e);
    assert_eq!((&*seen[0].1, seen[0].2), ("after", written.revision.0));
}

#[test]
fn an_engine_that_does_not_answer_keeps_no_write_to_other_buckets_waiting() {
    let (shelf, stores, _dir) = fleet(1, &Hand::new());
    let (store, e, own) = (&stores[0], id(&stores[0], "e"), id(&stores[0], "own"));
    shelf.be_mute(true);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    for key in 0..QUEUE_BATCHES_MAX {
        let (store, batch) = (store.clone(), put(e, &key.to_string(), "1"));
        runtime.spawn(async move { store.commit(batch).await });
    }
    until_so("all of them are under way", || {
        shelf.commits() == QUEUE_BATCHES_MAX as u64
    });
    let soon = Duration::from_secs(20);
    let written = async { tokio::time::timeout(soon, store.commit(put(own, "k", "1"))).await };
    wait(written).expect("it does not wait").unwrap();
    runtime.shutdown_background();
}

#[test]
fn what_nobody_waits_for_is_refused_behind_an_engine_that_does_not_answer() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let (shelf, dir) = (Shelf::new(), tempfile::tempdir().unwrap());
    let buckets = [shared("e"), memory("own")];
    let store = node_within(&buckets, &shelf, dir.path(), &Hand::new(), TIMEOUT).unwrap();
    let (e, own) = (id(&store, "e"), id(&store, "own"));
    shelf.be_mute(true);
    let (told, results) = std::sync::mpsc::channel();
    let submit = |batch: WriteBatch| {
        let told = told.clone();
        store.submit(batch, move |result| told.send(result).unwrap())
    };
    for key in 0..SUBMITTED_BATCHES_MAX {
        submit(put(e, &key.to_string(), "1")).unwrap();
    }
    let submitted = std::time::Instant::now();
    // There is no room for more of these, and for others there is.
    let refused = submit(put(e, "more", "1")).unwrap_err().to_string();
    assert!(refused.contains("waiting already"), "{refused}");
    submit(put(own, "k", "1")).unwrap();
    results.recv().unwrap().expect("it is made");
    until_so("the time of all is over", || submitted.elapsed() > TIMEOUT);
    shelf.be_mute(false);
    results.recv().unwrap().expect("it had begun");
    for _ in 1..SUBMITTED_BATCHES_MAX {
        let refused = results.recv().unwrap();
        assert!(
            matches!(refused, Err(CommitError::Unavailable(_))),
            "{refused:?}"
        );
    }
    let made = shelf.contents("e").into_iter().map(|it| it.0);
    assert_eq!(made.collect::<Vec<_>>(), ["0"]);
    store.close();
    let late = submit(put(e, "late", "1"));
    assert!(matches!(late, Err(CommitError::Unavailable(_))), "{late:?}");
}

#[test]
fn a_large_batch_is_judged_on_another_thread() {
    let (_shelf, stores, _dir) = fleet(1, &Hand::new());
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    // Everybody would refuse it, so nobody else is asked.
    let bad = |keys: u32| {
        let writes = (0..keys).map(|key| write(e, &key.to_string(), Some("1")));
        batch(writes.chain([write(e, "", Some("1"))]).collect())
    };
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let _inside = runtime.enter();
    // The other thread has something else to do.
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || goes_on.recv());
    assert!(store.commit(bad(9)).now_or_never().is_some());
    assert!(store.commit(bad(300)).now_or_never().is_none());
    drop(go_on);
    let said = wait(store.commit(bad(300)));
    assert!(matches!(said, Err(CommitError::Invalid { .. })), "{said:?}");
}

#[test]
fn a_dry_run_says_what_the_engine_would() {
    let (shelf, stores, _dir) = fleet(2, &Hand::new());
    let e = id(&stores[0], "e");
    let dry = |batch: WriteBatch| WriteBatch {
        dry_run: true,
        ..batch
    };
    let many = |from: usize, to: usize| {
        let writes = (from..to).map(|key| write(e, &format!("{key:05}"), Some("1")));
        batch(writes.collect())
    };
    let too_large = |batch| match wait(stores[0].commit(batch)) {
        Err(CommitError::TooLarge {
            reason,
            writes_max,
            would,
        }) => {
            assert!(reason.contains("do not fit the shelf"), "{reason}");
            assert_eq!(writes_max, Some(WRITES_MAX));
            would.map(|would| (would.created, would.deleted))
        }
        other => panic!("{other:?}"),
    };
    let would = too_large(dry(many(0, WRITES_MAX + 1)));
    assert_eq!(would, Some((WRITES_MAX as u64 + 1, 0)));
    let told = wait(stores[0].commit(dry(many(0, WRITES_MAX)))).unwrap();
    assert_eq!((told.created, told.entry), (WRITES_MAX as u64, None));
    assert_eq!(shelf.contents("e"), []);
    wait(stores[0].commit(many(0, WRITES_MAX))).unwrap();
    wait(stores[0].commit(many(WRITES_MAX, WRITES_MAX + 9))).unwrap();
    let replace = WriteBatch {
        replace: vec![e],
        ..put(e, "k", "1")
    };
    let would = too_large(dry(replace.clone()));
    assert_eq!(would, Some((1, WRITES_MAX as u64 + 9)));
    assert_eq!(too_large(replace), None);
    // It knows what this process does not know yet.
    let first = Write::put(e, "first", b"1".to_vec()).expecting(Expect::Absent);
    let said = said_before_it_sees(
        (&shelf, &stores),
        put(e, "first", "1"),
        dry(batch(vec![first])),
    );
    assert!(
        matches!(said, Err(CommitError::Conflict { .. })),
        "{said:?}"
    );
    shelf.be_away(true);
    for batch in [put(e, "k", "1"), many(0, 3 * WRITES_MAX)] {
        let said = wait(stores[0].commit(dry(batch)));
        assert!(matches!(said, Err(CommitError::Unavailable(_))), "{said:?}");
    }
}

/// A put of many keys, each with this value but the first ones, which have another.
fn many(e: BucketId, keys: usize, others: usize) -> WriteBatch {
    let value = |key| if key < others { "other" } else { "1" };
    let writes = (0..keys).map(|key| write(e, &format!("{key:05}"), Some(value(key))));
    batch(writes.collect())
}

#[test]
fn a_dry_run_of_too_much_is_refused_for_what_is_wrong_with_it() {
    let (shelf, stores, _dir) = limited(2, WRITES_MAX as u64 + 10);
    let e = id(&stores[0], "e");
    let dry = |batch: WriteBatch| WriteBatch {
        dry_run: true,
        ..batch
    };
    let keys = WRITES_MAX + 10;
    let bad = WriteBatch {
        expect: vec![(e, Expect::Present)],
        ..many(e, keys, 0)
    };
    let said = wait(stores[0].commit(dry(bad)));
    assert!(
        matches!(said, Err(CommitError::BucketConflict { .. })),
        "{said:?}"
    );
    let said = wait(stores[0].commit(dry(many(e, keys + 1, 0))));
    assert!(matches!(said, Err(CommitError::Quota { .. })), "{said:?}");
    // It knows what this process does not know yet, though it asks of no key.
    wait(stores[0].commit(many(e, 9, 0))).unwrap();
    let writes = (0..5).map(|key| write(e, &format!("{key:05}"), None));
    let said = said_before_it_sees(
        (&shelf, &stores),
        batch(writes.collect()),
        dry(many(e, keys, 0)),
    );
    let Err(CommitError::TooLarge {
        would: Some(would), ..
    }) = said
    else {
        panic!("{said:?}");
    };
    assert_eq!((would.created, would.unchanged), (keys as u64 - 4, 4));
}

#[test]
fn keys_that_stay_as_they_are_need_no_room() {
    let (shelf, stores, _dir) = fleet(2, &Hand::new());
    let e = id(&stores[0], "e");
    let keys = 2 * WRITES_MAX;
    wait(stores[0].commit(many(e, WRITES_MAX, 0))).unwrap();
    let rest = many(e, keys, 0).writes.split_off(WRITES_MAX);
    wait(stores[0].commit(batch(rest))).unwrap();
    converge(&shelf, &stores);
    for replace in [vec![], vec![e]] {
        let others = 5 + replace.len();
        let all = WriteBatch {
            replace,
            ..many(e, keys, others)
        };
        let done = wait(stores[1].commit(all.clone())).unwrap();
        assert_eq!(done.updated + done.unchanged, keys as u64);
        let again = wait(stores[1].commit(all)).unwrap();
        assert_eq!(
            (again.unchanged, again.revision),
            (keys as u64, done.revision)
        );
    }
    // Nor are they, if somebody else has just deleted one.
    let last = format!("{:05}", keys - 1);
    let done = said_before_it_sees(
        (&shelf, &stores),
        batch(vec![write(e, &last, None)]),
        many(e, keys, 0),
    );
    let done = done.unwrap();
    assert_eq!((done.created, done.updated), (1, 6));
    let found = shelf.contents("e").into_iter().find(|it| it.0 == last);
    assert_eq!(found.map(|it| it.1), Some("1".into()));
    // What is required of each is asked of each.
    let mut strict = many(e, keys, 0);
    for write in &mut strict.writes {
        write.expect = Expect::Present;
    }
    let said = wait(stores[1].commit(strict));
    assert!(
        matches!(&said, Err(CommitError::TooLarge { would: None, .. })),
        "{said:?}"
    );
}
