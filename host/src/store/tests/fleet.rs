//! Several stores on one engine, which is in memory.

use super::deadlines::{Hand, put_for, until};
use super::engine::Shelf;
use super::nodes::{converge, fleet, node, node_with, shared, until_lost, until_so};
use super::*;
use std::time::Duration;

#[test]
fn processes_on_one_engine_converge_and_lose_nothing() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(3, &hand);
    let e = id(&stores[0], "e");
    let mut watch = stores[2].watch(e, None).unwrap();
    let wins: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = stores
            .iter()
            .enumerate()
            .map(|(node, store)| {
                scope.spawn(move || {
                    let mut wins = 0;
                    for round in 0..60 {
                        let by = Action::Increment { by: 1, ttl: None };
                        let writes = vec![
                            Write::new(e, "sum", by),
                            write(e, &format!("last-{}", round % 7), Some(&node.to_string())),
                        ];
                        let committed = wait(store.commit(batch(writes))).unwrap();
                        let seen = store.snapshot();
                        assert!(seen.bucket(e).unwrap().revision() >= committed.revision);
                        let own = id(store, "own");
                        wait(store.commit(put(own, "k", &round.to_string()))).unwrap();
                        let first = Write::put(e, format!("first-{round}"), b"x".to_vec());
                        let first = first.expecting(Expect::Absent);
                        match wait(store.commit(batch(vec![first]))) {
                            Ok(_) => wins += 1,
                            Err(CommitError::Conflict { found, .. }) => assert!(found.is_some()),
                            Err(error) => panic!("{error}"),
                        }
                    }
                    wins
                })
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    });
    assert_eq!(wins, 60, "of each key one process was the first");
    converge(&shelf, &stores);
    let sum = contents(&stores[1], e).into_iter().find(|it| it.0 == "sum");
    assert_eq!(sum.map(|it| it.1), Some("180".into()));
    // Whoever watches one of them sees what all wrote, in order.
    let last = shelf.revision();
    let (mut before, mut sums) = (Revision(0), 0);
    while before < last {
        let group = wait(watch.next()).unwrap();
        assert!(group.revision > before);
        before = group.revision;
        sums += group.changes().filter(|(key, _)| *key == "sum").count();
    }
    assert_eq!(sums, 180);
}

#[test]
fn what_a_write_depends_on_is_checked_by_the_engine() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    let first = wait(stores[0].commit(put(e, "k", "1"))).unwrap();
    converge(&shelf, &stores);
    shelf.be_silent(true);
    // The other process does not know yet, and the engine does.
    let [one, other] = &stores[..] else {
        panic!("two stores")
    };
    let stale = std::thread::scope(|scope| {
        let racing = scope.spawn(move || wait(one.commit(put(e, "k", "2"))));
        while shelf.contents("e")[0].1 != "2" {
            std::thread::yield_now();
        }
        let cas = Write::put(e, "k", b"3".to_vec()).expecting(Expect::At(first.revision));
        let commits = shelf.commits();
        let cas = scope.spawn(move || wait(other.commit(batch(vec![cas]))));
        while shelf.commits() == commits {
            std::thread::yield_now();
        }
        shelf.be_silent(false);
        racing.join().unwrap().unwrap();
        cas.join().unwrap()
    });
    let found = shelf.contents("e")[0].2;
    assert!(
        matches!(&stale, Err(CommitError::Conflict { found: Some(at), .. }) if at.0 == found),
        "{stale:?}"
    );
}

#[test]
fn a_write_that_changes_nothing_keeps_the_revision() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    let first = wait(stores[0].commit(put(e, "k", "1"))).unwrap();
    converge(&shelf, &stores);
    let again = wait(stores[1].commit(put(e, "k", "1"))).unwrap();
    assert_eq!((again.unchanged, again.entry), (1, Some(first.revision)));
    let gone = wait(stores[1].commit(batch(vec![write(e, "no", None)]))).unwrap();
    assert_eq!((gone.unchanged, gone.entry), (1, None));
    assert_eq!(shelf.revision(), first.revision);
}

#[test]
fn a_batch_writes_to_one_backend() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (e, own) = (id(&stores[0], "e"), id(&stores[0], "own"));
    let both = batch(vec![write(e, "k", Some("1")), write(own, "k", Some("1"))]);
    let error = wait(stores[0].commit(both)).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"bucket "e" is on etcd, bucket "own" on memory: expected a batch to write to one backend"#
    );
    assert!(shelf.contents("e").is_empty());
    assert!(contents(&stores[0], own).is_empty());
}

#[test]
fn after_a_gap_a_process_has_what_there_is_and_no_deleted_key_comes_back() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(2, &hand);
    let e = id(&stores[0], "e");
    let writes = ["gone", "kept", "changed"].map(|key| write(e, key, Some("1")));
    wait(stores[0].commit(batch(writes.into()))).unwrap();
    converge(&shelf, &stores);
    let mut watch = stores[1].watch(e, None).unwrap();
    shelf.be_away(true);
    stores.iter().for_each(|store| until_lost(store, true));
    // Reads go on; writes are refused.
    assert_eq!(contents(&stores[1], e).len(), 3);
    let error = wait(stores[1].commit(put(e, "no", "1"))).unwrap_err();
    assert!(
        matches!(&error, CommitError::Unavailable(reason) if reason == "the shelf is away"),
        "{error}"
    );
    // Somebody else writes meanwhile, and the log is trimmed.
    let dir = tempfile::tempdir().unwrap();
    let other = Shelf::clone(&shelf);
    other.be_away(false);
    shelf.be_silent(true);
    let third = node(&shelf, dir.path(), &hand).unwrap();
    let missed = vec![
        write(e, "gone", None),
        write(e, "changed", Some("2")),
        write(e, "new", Some("1")),
    ];
    std::thread::scope(|scope| {
        let commits = shelf.commits();
        let writing = scope.spawn(|| wait(third.commit(batch(missed))));
        while shelf.commits() == commits {
            std::thread::yield_now();
        }
        shelf.trim();
        shelf.be_silent(false);
        writing.join().unwrap().unwrap();
    });
    converge(&shelf, &stores);
    let keys: Vec<_> = contents(&stores[1], e).into_iter().map(|it| it.0).collect();
    assert_eq!(keys, ["changed", "kept", "new"]);
    // Nobody can say what was between.
    let error = wait(watch.next());
    assert!(matches!(error, Err(WatchError::Compacted { .. })));
    let mut watch = stores[1].watch(e, None).unwrap();
    wait(stores[0].commit(put(e, "next", "1"))).unwrap();
    assert_eq!(wait(watch.next()).unwrap().changes().count(), 1);
}

#[test]
fn a_tail_lost_in_a_failover_is_told_even_at_the_same_revision() {
    let hand = Hand::new();
    for more in [false, true] {
        let (shelf, stores, _dir) = fleet(1, &hand);
        let (store, e) = (&stores[0], id(&stores[0], "e"));
        wait(store.commit(put(e, "both", "1"))).unwrap();
        let backup = shelf.backup();
        let mut watch = store.watch(e, None).unwrap();
        let lost = wait(store.commit(put(e, "lost", "1"))).unwrap();
        assert_eq!(wait(watch.next()).unwrap().revision, lost.revision);
        shelf.restore_and_write(backup, "e", "other", "1");
        if more {
            let other = tempfile::tempdir().unwrap();
            let third = node(&shelf, other.path(), &hand).unwrap();
            wait(third.commit(put(e, "more", "1"))).unwrap();
        } else {
            assert_eq!(shelf.revision(), lost.revision);
        }
        let error = wait(watch.next());
        assert!(matches!(error, Err(WatchError::Compacted { .. })));
        converge(&shelf, &stores);
        // Who reads it now can watch from there.
        let since = Position {
            revision: store.snapshot().bucket(e).unwrap().revision(),
            life: None,
        };
        let mut watch = store.watch(e, Some(since)).unwrap();
        wait(store.commit(put(e, "k", "1"))).unwrap();
        let group = wait(watch.next()).unwrap();
        assert_eq!(group.changes().next().unwrap().0, "k");
    }
}

#[test]
fn an_engine_that_went_back_is_believed_and_those_who_watch_are_told() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    wait(store.commit(put(e, "k", "old"))).unwrap();
    let backup = shelf.backup();
    wait(store.commit(put(e, "k", "new"))).unwrap();
    let last = wait(store.commit(put(e, "lost", "1"))).unwrap();
    let mut watch = store.watch(e, None).unwrap();
    shelf.restore(backup);
    let error = wait(watch.next());
    assert!(
        matches!(error, Err(WatchError::Compacted { .. })),
        "what was told is not so any more"
    );
    assert_eq!(contents(store, e), shelf.contents("e"));
    let since = Position {
        revision: last.revision,
        life: None,
    };
    assert!(matches!(
        store.watch(e, Some(since)),
        Err(WatchError::Foreign { .. })
    ));
    // It goes on from there.
    let mut watch = store.watch(e, None).unwrap();
    wait(store.commit(put(e, "k", "newer"))).unwrap();
    assert_eq!(wait(watch.next()).unwrap().changes().count(), 1);
}

#[test]
fn a_start_without_the_engine_begins_with_the_copy() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    let store = node(&shelf, dir.path(), &hand).unwrap();
    let e = id(&store, "e");
    wait(store.commit(put(e, "k", "1"))).unwrap();
    let ttl = Some(Duration::from_secs(600));
    wait(store.commit(put_for(e, "gone", "1", ttl))).unwrap();
    let deadline = |store: &Store| {
        let snapshot = store.snapshot();
        let entry = snapshot.bucket(e).unwrap().get("gone").cloned();
        entry.unwrap().deadline
    };
    let before = contents(&store, e);
    let ends = deadline(&store).expect("it ends");
    store.close();
    drop(store);
    shelf.be_away(true);
    let store = node(&shelf, dir.path(), &hand).unwrap();
    assert_eq!(contents(&store, e), before);
    assert_eq!(deadline(&store), Some(ends));
    let health = &store.health()[0].1;
    assert_eq!(health.lost.as_deref(), Some("the shelf is away"));
    assert!(health.staleness().is_some());
    // What was deleted meanwhile does not come back.
    let other = tempfile::tempdir().unwrap();
    shelf.be_away(false);
    let second = node(&shelf, other.path(), &hand).unwrap();
    wait(second.commit(batch(vec![write(e, "gone", None)]))).unwrap();
    converge(&shelf, &[store, second]);
}

/// It may be written long after its engine was lost.
#[test]
fn a_copy_is_as_old_as_what_is_in_it() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    let store = node(&shelf, dir.path(), &hand).unwrap();
    wait(store.commit(put(id(&store, "e"), "k", "1"))).unwrap();
    shelf.be_away(true);
    until_lost(&store, true);
    let staleness = |store: &Store| store.health()[0].1.staleness().expect("it is known");
    until_so("it is old", || {
        staleness(&store) > Duration::from_millis(500)
    });
    let before = staleness(&store);
    store.close();
    drop(store);
    let store = node(&shelf, dir.path(), &hand).unwrap();
    let after = staleness(&store);
    assert!(after >= before, "{after:?} after {before:?}");
}

/// The revision alone does not say what it is a copy of.
#[test]
fn a_copy_follows_an_engine_that_went_back_and_a_config_with_more() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    let store = node(&shelf, dir.path(), &hand).unwrap();
    let e = id(&store, "e");
    wait(store.commit(put(e, "both", "1"))).unwrap();
    let backup = shelf.backup();
    let lost = wait(store.commit(put(e, "lost", "1"))).unwrap();
    let copy = dir.path().join("etcd.copy");
    let has = |key: &[u8]| {
        let copy = fs::read(&copy).unwrap_or_default();
        copy.windows(key.len()).any(|bytes| bytes == key)
    };
    until_so("it is copied", || has(b"lost"));
    shelf.restore_and_write(backup, "e", "other", "1");
    assert_eq!(shelf.revision(), lost.revision);
    until(&store, |snapshot| {
        let bucket = snapshot.bucket(e).unwrap();
        bucket.get("lost").is_none()
    });
    until_so("it is copied anew", || has(b"other"));
    let more = [shared("e"), memory("own"), shared("more")];
    wait(store.reconfigure(&more)).unwrap();
    store.close();
    drop(store);
    shelf.be_away(true);
    let store = node_with(&more, &shelf, dir.path(), &hand).unwrap();
    assert_eq!(contents(&store, e), shelf.contents("e"));
    assert_eq!(contents(&store, id(&store, "more")), []);
}

#[test]
fn without_the_engine_and_a_whole_copy_there_is_no_start() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    shelf.be_away(true);
    let refused = |dir: &Path| match node(&shelf, dir, &hand) {
        Ok(_) => panic!("the store opened"),
        Err(error) => error.to_string(),
    };
    let error = refused(dir.path());
    assert!(
        error.starts_with(r#"etcd: the shelf is away; there is no copy of bucket "e" in "#),
        "{error}"
    );
    shelf.be_away(false);
    let store = node(&shelf, dir.path(), &hand).unwrap();
    wait(store.commit(put(id(&store, "e"), "k", "value"))).unwrap();
    store.close();
    drop(store);
    shelf.be_away(true);
    let path = dir.path().join("etcd.copy");
    let whole = fs::read(&path).unwrap();
    let at = whole
        .windows(5)
        .position(|bytes| bytes == b"value")
        .unwrap();
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    for bad in [&damaged[..], &whole[..whole.len() - 1], b""] {
        fs::write(&path, bad).unwrap();
        let error = refused(dir.path());
        assert!(error.contains("etcd.copy is damaged: "), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bad, "it is left as it was");
    }
}

#[test]
fn what_another_program_wrote_wrongly_is_absent() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let routes = BucketConfig::new("e", BackendKind::Etcd, ValueKind::Endpoint);
    let store = node_with(&[routes], &shelf, dirs[0].path(), &hand).unwrap();
    let e = id(&store, "e");
    wait(store.commit(put(e, "k", "127.0.0.1:1"))).unwrap();
    // To the other process the bucket is one of bytes.
    let other = node_with(&[shared("e")], &shelf, dirs[1].path(), &hand).unwrap();
    let writes = vec![
        write(e, "k", Some("no address at all")),
        write(e, "good", Some("127.0.0.1:2")),
    ];
    wait(other.commit(batch(writes))).unwrap();
    until(&store, |snapshot| {
        snapshot.bucket(e).unwrap().get("good").is_some()
    });
    let keys: Vec<_> = contents(&store, e).into_iter().map(|it| it.0).collect();
    assert_eq!(keys, ["good"]);
}

#[test]
fn what_is_submitted_to_the_engine_is_applied_in_order() {
    let hand = Hand::new();
    let (shelf, stores, _dir) = fleet(1, &hand);
    let e = id(&stores[0], "e");
    let (done, results) = std::sync::mpsc::channel();
    for round in 0..50 {
        let done = done.clone();
        let submitted = stores[0].submit(put(e, "k", &round.to_string()), move |result| {
            done.send(result.map(|committed| committed.revision))
                .unwrap();
        });
        submitted.unwrap();
    }
    let revisions: Vec<_> = (0..50).map(|_| results.recv().unwrap().unwrap()).collect();
    assert!(revisions.is_sorted());
    assert_eq!(shelf.contents("e")[0].1, "49");
}

#[test]
fn notes_are_told_of_a_shared_write_before_anybody_sees_it() {
    let hand = Hand::new();
    let (_shelf, stores, _dir) = fleet(2, &hand);
    let (store, e) = (&stores[0], id(&stores[0], "e"));
    // This process's own revision is far ahead of the engine's.
    for round in 0..20 {
        wait(store.commit(put(id(store, "own"), "k", &round.to_string()))).unwrap();
    }
    let note = Arc::new(AtomicU64::new(u64::MAX));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut reader = store.reader();
            while !stop.load(Ordering::Relaxed) {
                let snapshot = reader.load();
                let sees = snapshot.bucket(e).unwrap().get("k").is_some();
                let is_told = note.load(Ordering::Acquire) <= snapshot.revision().0;
                assert!(!sees || is_told, "seen before it was told");
            }
        });
        let committed = wait(store.commit_noting(put(e, "k", "1"), vec![note.clone()], None));
        let committed = committed.unwrap();
        assert_eq!(committed.revision, Revision(1));
        assert_eq!(committed.seen.0, note.load(Ordering::Acquire));
        assert!(committed.seen > Revision(20));
        // Nothing is delivered between a write and its note, however fast the log is.
        for round in 0..300 {
            let note = Arc::new(AtomicU64::new(u64::MAX));
            let batch = put(e, "other", &round.to_string());
            let committed = wait(store.commit_noting(batch, vec![note.clone()], None)).unwrap();
            assert_eq!(committed.seen.0, note.load(Ordering::Acquire));
        }
        stop.store(true, Ordering::Relaxed);
        reading.join().unwrap();
    });
}
