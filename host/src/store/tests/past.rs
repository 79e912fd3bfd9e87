//! The past of keys, and back to it, on both backends.

use super::deadlines::{Hand, put_for, until};
use super::engine::Shelf;
use super::nodes::{converge, node_with, shared};
use super::*;
use crate::store::{Event, Past, UndoError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const KINDS: [BackendKind; 2] = [BackendKind::Memory, BackendKind::Embedded];

fn keeping(kind: BackendKind, history: u32) -> BucketConfig {
    BucketConfig {
        history,
        ..BucketConfig::new("b", kind, ValueKind::Bytes)
    }
}

fn open(config: &BucketConfig, dir: &Path) -> (Store, BucketId) {
    let store = Store::open(std::slice::from_ref(config), dir).unwrap();
    let bucket = id(&store, "b");
    (store, bucket)
}

fn by(name: &str, batch: WriteBatch) -> WriteBatch {
    WriteBatch {
        by: Some(name.into()),
        ..batch
    }
}

fn commit(store: &Store, batch: WriteBatch) -> u64 {
    wait(store.commit(batch)).unwrap().revision.0
}

fn rows(store: &Store, bucket: BucketId, key: &str) -> Vec<Past> {
    wait(store.history(bucket, key)).unwrap()
}

/// Revision, event and value of each row.
fn told(rows: &[Past]) -> Vec<(u64, Event, Option<&str>)> {
    let told = rows.iter().map(|row| {
        let value = row.value.as_deref();
        let value = value.map(|value| std::str::from_utf8(value).unwrap());
        (row.revision.0, row.event, value)
    });
    told.collect()
}

fn value(store: &Store, bucket: BucketId, key: &str) -> Option<String> {
    let snapshot = store.snapshot();
    let entry = snapshot.bucket(bucket)?.get(key)?;
    Some(entry.value.text()?.into_owned())
}

fn undo(store: &Store, bucket: BucketId, key: &str, to: Option<u64>) -> WriteBatch {
    wait(store.undo_key(bucket, key, to.map(Revision))).unwrap()
}

#[test]
fn the_last_values_of_a_key_are_kept_with_who_wrote_them_and_when() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let (store, bucket) = open(&keeping(kind, 3), dir.path());
        for (name, value) in [("a", "1"), ("b", "2"), ("b", "2"), ("c", "3")] {
            commit(&store, by(name, put(bucket, "k", value)));
        }
        // It renews, and changes nothing.
        let renewed = put_for(bucket, "k", "3", Some(Duration::from_secs(60)));
        commit(&store, renewed);
        let deleted = batch(vec![write(bucket, "k", None)]);
        assert_eq!(commit(&store, deleted), 4);
        commit(&store, put(bucket, "other", "x"));
        let kept = rows(&store, bucket, "k");
        let expected = [
            (4, Event::Deleted, None),
            (3, Event::Changed, Some("3")),
            (2, Event::Changed, Some("2")),
        ];
        assert_eq!(told(&kept), expected, "{kind:?}");
        let names: Vec<_> = kept.iter().map(|row| row.by.as_deref()).collect();
        assert_eq!(names, [None, Some("c"), Some("b")]);
        assert!(kept.iter().all(|row| row.at.is_some() && !row.undo));
        assert!(rows(&store, bucket, "none").is_empty());
        let off = BucketConfig::new("b", kind, ValueKind::Bytes);
        wait(store.reconfigure(&[off])).unwrap();
        let refused = wait(store.history(bucket, "k")).unwrap_err();
        assert!(matches!(refused, UndoError::Off { .. }), "{refused}");
    }
}

#[test]
fn what_ended_is_in_the_past_and_comes_back() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let hand = Hand::new();
        let config = keeping(kind, 5);
        let backends = Backends::new(dir.path());
        let store =
            Store::with_backends(std::slice::from_ref(&config), backends, hand.clock()).unwrap();
        let bucket = id(&store, "b");
        commit(
            &store,
            put_for(bucket, "k", "1", Some(Duration::from_millis(50))),
        );
        let began = hand.now();
        hand.advance(60);
        until(&store, |state| state.bucket(bucket).unwrap().is_empty());
        let kept = rows(&store, bucket, "k");
        let expected = [(2, Event::Expired, None), (1, Event::Created, Some("1"))];
        assert_eq!(told(&kept), expected, "{kind:?}");
        assert_eq!(kept[1].at, Some(began));
        assert_eq!(kept[1].deadline.map(Deadline::millis), Some(began + 50));
        commit(&store, undo(&store, bucket, "k", None));
        // For good: the time that it was given is over.
        let snapshot = store.snapshot();
        let entry = snapshot.bucket(bucket).unwrap().get("k").unwrap();
        assert_eq!(
            (entry.value.text().as_deref(), entry.deadline),
            (Some("1"), None)
        );
        assert!(rows(&store, bucket, "k")[0].undo);
    }
}

#[test]
fn a_value_comes_back_with_the_deadline_it_was_written_with() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bucket) = open(&keeping(BackendKind::Embedded, 5), dir.path());
    commit(
        &store,
        put_for(bucket, "k", "1", Some(Duration::from_secs(3600))),
    );
    let deadline = |store: &Store| {
        let snapshot = store.snapshot();
        snapshot.bucket(bucket).unwrap().get("k").unwrap().deadline
    };
    let given = deadline(&store);
    commit(&store, put(bucket, "k", "2"));
    assert_eq!(deadline(&store), None);
    commit(&store, undo(&store, bucket, "k", None));
    assert_eq!(
        (value(&store, bucket, "k").as_deref(), deadline(&store)),
        (Some("1"), given)
    );
    let beyond = Write {
        until: Deadline::from_millis(u64::MAX),
        ..Write::put(bucket, "k", *b"3")
    };
    let refused = wait(store.commit(batch(vec![beyond]))).unwrap_err();
    assert!(refused.to_string().contains("within 3650d"), "{refused}");
}

/// The system's clock may have jumped, in either direction, since the deadline was made.
#[test]
fn whether_what_comes_back_is_over_is_told_by_the_clock_that_made_its_deadline() {
    for kind in KINDS {
        // Decades behind that of the system.
        let hand = Hand::new();
        let dir = tempfile::tempdir().unwrap();
        let store = hand.open(&[keeping(kind, 5)], dir.path());
        let bucket = id(&store, "b");
        let hour = Duration::from_secs(3600);
        commit(&store, put_for(bucket, "k", "1", Some(hour)));
        let snapshot = store.snapshot();
        let given = snapshot.bucket(bucket).unwrap().get("k").unwrap().deadline;
        assert!(given.is_some());
        let replaced = Revision(commit(&store, put(bucket, "k", "2")));
        let until = || {
            let of_all = wait(store.undo_revision(bucket, replaced, false, "")).unwrap();
            let both = [undo(&store, bucket, "k", None), of_all.0];
            both.map(|batch| batch.writes[0].until)
        };
        assert_eq!(until(), [given; 2]);
        hand.advance(3_600_000);
        // It would end at once, and who wants it back wants it to stay.
        assert_eq!(until(), [None; 2]);
    }
}

#[test]
fn a_key_goes_back_step_by_step_or_to_a_revision_unless_it_was_changed_meanwhile() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let (store, bucket) = open(&keeping(kind, 10), dir.path());
        commit(&store, put(bucket, "k", "1"));
        commit(&store, put(bucket, "k", "2"));
        let back = undo(&store, bucket, "k", None);
        commit(&store, back.clone());
        assert_eq!(value(&store, bucket, "k").as_deref(), Some("1"));
        let late = wait(store.commit(back)).unwrap_err();
        assert!(matches!(late, CommitError::Conflict { .. }), "{late}");
        commit(&store, undo(&store, bucket, "k", None));
        assert_eq!(value(&store, bucket, "k").as_deref(), Some("2"));
        commit(&store, undo(&store, bucket, "k", Some(0)));
        assert_eq!(value(&store, bucket, "k"), None);
        let gone = undo(&store, bucket, "k", None);
        commit(&store, put(bucket, "k", "3"));
        let late = wait(store.commit(gone)).unwrap_err();
        assert!(matches!(late, CommitError::Conflict { .. }), "{late}");
        commit(&store, undo(&store, bucket, "k", Some(2)));
        assert_eq!(value(&store, bucket, "k").as_deref(), Some("2"));
        let unknown = wait(store.undo_key(bucket, "none", None)).unwrap_err();
        assert!(matches!(unknown, UndoError::Unknown { .. }), "{unknown}");
    }
}

#[test]
fn all_that_a_revision_changed_goes_back_at_once() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let (store, bucket) = open(&keeping(kind, 10), dir.path());
        let set = |pairs: &[(&str, &str)]| {
            let writes = pairs
                .iter()
                .map(|(key, value)| write(bucket, key, Some(value)));
            batch(writes.collect())
        };
        commit(&store, set(&[("a", "1"), ("b", "1"), ("c", "1")]));
        let before = contents(&store, bucket);
        let bad = WriteBatch {
            replace: vec![bucket],
            ..set(&[("a", "2"), ("c", "1"), ("d", "2")])
        };
        let bad = Revision(commit(&store, bad));
        let all = wait(store.undo_revision(bucket, bad, false, "")).unwrap();
        assert_eq!((all.0.writes.len(), all.1), (3, 0), "a, b and d");
        let beyond = wait(store.undo_revision(bucket, bad, false, "a")).unwrap_err();
        assert!(matches!(beyond, UndoError::Beyond { .. }), "{beyond}");
        let undone = commit(&store, all.0.clone());
        let values = |contents: Vec<(String, String, u64)>| -> Vec<_> {
            contents
                .into_iter()
                .map(|(key, value, _)| (key, value))
                .collect()
        };
        assert_eq!(values(contents(&store, bucket)), values(before), "{kind:?}");
        assert!(rows(&store, bucket, "b")[0].undo);
        // Undoing the undo is what was imported.
        let again = wait(store.undo_revision(bucket, Revision(undone), false, "")).unwrap();
        commit(&store, again.0);
        assert_eq!(value(&store, bucket, "d").as_deref(), Some("2"));
        let last = store.snapshot().revision();
        commit(&store, put(bucket, "d", "3"));
        let changed = wait(store.undo_revision(bucket, last, false, "")).unwrap_err();
        let UndoError::Changed { count, key, .. } = &changed else {
            panic!("{changed}");
        };
        assert_eq!((*count, key.as_str()), (1, "d"));
        let (some, left_out) = wait(store.undo_revision(bucket, last, true, "")).unwrap();
        assert_eq!((some.writes.len(), left_out), (2, 1));
        commit(&store, some);
        assert_eq!(value(&store, bucket, "d").as_deref(), Some("3"));
        assert_eq!(value(&store, bucket, "b").as_deref(), Some("1"));
        let none = wait(store.undo_revision(bucket, Revision(999), false, "")).unwrap_err();
        assert!(matches!(none, UndoError::NoRevision { .. }), "{none}");
        // What comes between the look and the write is not lost.
        let both = Revision(commit(&store, set(&[("x", "1"), ("y", "1")])));
        let looked = wait(store.undo_revision(bucket, both, false, "")).unwrap();
        commit(&store, put(bucket, "x", "2"));
        let late = wait(store.commit(looked.0)).unwrap_err();
        assert!(matches!(late, CommitError::Conflict { .. }), "{late}");
        assert_eq!(value(&store, bucket, "x").as_deref(), Some("2"));
        assert_eq!(value(&store, bucket, "y").as_deref(), Some("1"));
    }
}

#[test]
fn of_what_was_written_without_a_history_only_what_is_found_is_known() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let (store, bucket) = open(&keeping(kind, 0), dir.path());
        commit(&store, put(bucket, "k", "1"));
        commit(&store, put(bucket, "gone", "1"));
        wait(store.reconfigure(&[keeping(kind, 5)])).unwrap();
        let unknown = wait(store.undo_key(bucket, "k", None)).unwrap_err();
        assert!(matches!(unknown, UndoError::Unknown { .. }), "{unknown}");
        commit(&store, put(bucket, "k", "2"));
        let expected = [(3, Event::Changed, Some("2")), (1, Event::Found, Some("1"))];
        assert_eq!(told(&rows(&store, bucket, "k")), expected, "{kind:?}");
        commit(&store, undo(&store, bucket, "k", None));
        assert_eq!(value(&store, bucket, "k").as_deref(), Some("1"));
        commit(&store, put(bucket, "gone", "2"));
        // On disk, what was kept is there again once it is asked for again.
        wait(store.reconfigure(&[keeping(kind, 0)])).unwrap();
        commit(&store, put(bucket, "k", "3"));
        commit(&store, batch(vec![write(bucket, "gone", None)]));
        wait(store.reconfigure(&[keeping(kind, 5)])).unwrap();
        let unknown = wait(store.undo_key(bucket, "k", None)).unwrap_err();
        assert!(matches!(unknown, UndoError::Unknown { .. }), "{unknown}");
        commit(&store, put(bucket, "gone", "3"));
        commit(&store, undo(&store, bucket, "gone", None));
        assert_eq!(
            value(&store, bucket, "gone"),
            None,
            "{kind:?}: as it was found"
        );
    }
}

#[test]
fn the_past_of_a_bucket_is_bounded_and_its_oldest_goes_first() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let config = BucketConfig {
            history_bytes_max: 1000,
            ..keeping(kind, 100)
        };
        let (store, bucket) = open(&config, dir.path());
        for number in 0..50 {
            let key = format!("key-{number:02}");
            commit(&store, put(bucket, &key, "x"));
            commit(&store, batch(vec![write(bucket, &key, None)]));
        }
        assert!(rows(&store, bucket, "key-00").is_empty(), "{kind:?}");
        assert_eq!(rows(&store, bucket, "key-49").len(), 2);
        let all = (0..50).map(|number| rows(&store, bucket, &format!("key-{number:02}")).len());
        let all: usize = all.sum();
        assert!((10..=15).contains(&all), "{kind:?}: {all}");
        let large = "x".repeat(2000);
        commit(&store, put(bucket, "large", &large));
        assert!(rows(&store, bucket, "large").is_empty());
        assert_eq!(value(&store, bucket, "large"), Some(large));
        commit(&store, put(bucket, "key-49", "y"));
        assert_eq!(rows(&store, bucket, "key-49").len(), 1, "{kind:?}");
    }
}

#[test]
fn a_backup_has_the_past_of_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let config = keeping(BackendKind::Embedded, 3);
    let (store, bucket) = open(&config, dir.path());
    for value in ["1", "2"] {
        commit(&store, by("ann", put(bucket, "k", value)));
    }
    let mut backup = wait(store.backup()).unwrap();
    let restored = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(restored.path().join("store.redb")).unwrap();
    std::io::copy(&mut backup.file, &mut file).unwrap();
    drop(file);
    let (copy, copied) = open(&config, restored.path());
    assert_eq!(rows(&copy, copied, "k"), rows(&store, bucket, "k"));
    assert_eq!(rows(&copy, copied, "k").len(), 2);
    // And it goes back.
    let undo = wait(copy.undo_key(copied, "k", None)).unwrap();
    commit(&copy, undo);
    assert_eq!(value(&copy, copied, "k").as_deref(), Some("1"));
}

#[test]
fn the_past_on_disk_survives_and_what_is_refused_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let config = keeping(BackendKind::Embedded, 5);
    let backends =
        Backends::with_embedded(faulty(dir.path(), SyncPolicy::Always, Arc::clone(&faults)));
    let buckets = std::slice::from_ref(&config);
    let store = Store::with_backends(buckets, backends, Clock::system()).unwrap();
    let bucket = id(&store, "b");
    commit(&store, by("ann", put(bucket, "k", "1")));
    faults.sync.store(true, Ordering::SeqCst);
    wait(store.commit(put(bucket, "k", "2"))).unwrap_err();
    faults.sync.store(false, Ordering::SeqCst);
    commit(&store, put(bucket, "other", "x"));
    let created = [(1, Event::Created, Some("1"))];
    assert_eq!(told(&rows(&store, bucket, "k")), created);
    commit(&store, put(bucket, "k", "3"));
    let expected = [(3, Event::Changed, Some("3")), created[0]];
    assert_eq!(told(&rows(&store, bucket, "k")), expected);
    store.close();
    drop(store);
    let (store, bucket) = open(&config, dir.path());
    let kept = rows(&store, bucket, "k");
    assert_eq!(told(&kept), expected);
    assert_eq!(kept[1].by.as_deref(), Some("ann"));
    commit(&store, undo(&store, bucket, "k", None));
    assert_eq!(value(&store, bucket, "k").as_deref(), Some("1"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_the_end_of_what_happened(
        steps in prop::collection::vec((0_usize..4, 0_usize..4), 1..40),
        history in 1_u32..6,
    ) {
        for kind in KINDS {
            let dir = tempfile::tempdir().unwrap();
            let (store, bucket) = open(&keeping(kind, history), dir.path());
            let mut model: BTreeMap<usize, Vec<(u64, Option<String>)>> = BTreeMap::new();
            for &(key, what) in &steps {
                let name = format!("k{key}");
                // 0 deletes; else one of three values.
                let wanted = (what > 0).then(|| what.to_string());
                let revision = commit(&store, batch(vec![write(bucket, &name, wanted.as_deref())]));
                let past = model.entry(key).or_default();
                if past.last().and_then(|(_, value)| value.clone()) != wanted {
                    past.push((revision, wanted));
                }
            }
            for (key, past) in &model {
                let name = format!("k{key}");
                let kept = rows(&store, bucket, &name);
                let kept: Vec<_> = told(&kept)
                    .into_iter()
                    .map(|(revision, _, value)| (revision, value.map(str::to_owned)))
                    .collect();
                let expected: Vec<_> = past.iter().rev().take(history as usize).cloned().collect();
                prop_assert_eq!(&kept, &expected);
                // Of each revision that is kept, it is known what the key was before if one more row is.
                for (at, (revision, _)) in expected.iter().enumerate() {
                    let found = wait(store.undo_revision(bucket, Revision(*revision), true, ""));
                    let before = past.iter().rev().nth(at + 1);
                    match (at, expected.get(at + 1), before) {
                        (0, Some((_, value)), _) => {
                            commit(&store, WriteBatch { dry_run: true, ..found.clone().unwrap().0 });
                            let action = &found.unwrap().0.writes[0].action;
                            let put = match action {
                                Action::Put { value, .. } => Some(value.to_vec()),
                                _ => None,
                            };
                            prop_assert_eq!(put, value.as_ref().map(|value| value.as_bytes().to_vec()));
                        }
                        (0, None, Some((_, Some(_)))) => prop_assert!(found.is_err()),
                        _ => {}
                    }
                }
            }
        }
    }
}

#[test]
fn who_wrote_is_told_to_every_process() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let keeping = BucketConfig {
        history: 5,
        ..shared("e")
    };
    let stores = dirs.each_ref().map(|dir| {
        let buckets = [keeping.clone(), memory("own")];
        node_with(&buckets, &shelf, dir.path(), &hand).unwrap()
    });
    let e = id(&stores[0], "e");
    let by = |by: Option<&str>, value: &str, undo| WriteBatch {
        by: by.map(Into::into),
        undo,
        ..put(e, "k", value)
    };
    wait(stores[0].commit(by(Some("ann"), "1", false))).unwrap();
    wait(stores[1].commit(by(Some("ben"), "2", true))).unwrap();
    wait(stores[0].commit(by(None, "3", false))).unwrap();
    converge(&shelf, &stores);
    for store in &stores {
        let rows = wait(store.history(e, "k")).unwrap();
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.by.as_deref(), row.undo))
            .collect();
        assert_eq!(
            told,
            [(None, false), (Some("ben"), true), (Some("ann"), false)]
        );
    }
}

/// The store's own counter is ahead of the engine's, and says nothing of it.
#[test]
fn a_revision_that_the_engine_has_not_reached_is_none_to_go_back_to() {
    let (hand, shelf) = (Hand::new(), Shelf::new());
    let dir = tempfile::tempdir().unwrap();
    let keeping = BucketConfig {
        history: 5,
        ..shared("e")
    };
    let buckets = [keeping, shared("other"), memory("own")];
    let store = node_with(&buckets, &shelf, dir.path(), &hand).unwrap();
    let (e, own) = (id(&store, "e"), id(&store, "own"));
    for value in 0..20 {
        commit(&store, put(own, "k", &value.to_string()));
    }
    commit(&store, put(e, "k", "1"));
    // It counts what is written to any bucket of the engine.
    commit(&store, put(id(&store, "other"), "k", "1"));
    let now = undo(&store, e, "k", Some(2));
    commit(&store, now);
    assert_eq!(shelf.revision(), Revision(2), "it changes nothing");
    assert_eq!(value(&store, e, "k").as_deref(), Some("1"));
    let refused = wait(store.undo_key(e, "k", Some(Revision(3)))).unwrap_err();
    assert!(
        matches!(refused, UndoError::NotYet { newest, .. } if newest == Revision(2)),
        "{refused}"
    );
}
