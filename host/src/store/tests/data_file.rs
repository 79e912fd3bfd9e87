//! The data file as a whole: when it is synced, made smaller, copied, checked.

use super::*;
use crate::store::data_file::{Contents, FileError, check_data_file};
use redb::TableDefinition;
use std::time::Duration;

const NEVER: SyncPolicy = SyncPolicy::Interval(Duration::from_secs(3600));
const AT_ONCE: SyncPolicy = SyncPolicy::Interval(Duration::ZERO);

/// A store on a disk that does as it is told.
fn on(faults: &Arc<Faults>, dir: &Path, sync: SyncPolicy) -> (Store, BucketId) {
    let backends = Backends::with_embedded(faulty(dir, sync, Arc::clone(faults)));
    let store = Store::with_backends(&[embedded("e"), memory("m")], backends, Clock::system());
    let store = store.unwrap();
    let e = id(&store, "e");
    (store, e)
}

fn keys(dir: &Path) -> Vec<String> {
    let store = opened(&[embedded("e")], dir);
    let found = contents(&store, id(&store, "e"));
    found.into_iter().map(|(key, ..)| key).collect()
}

/// With a runtime that has threads for what blocks.
fn block<T>(future: impl Future<Output = T>) -> T {
    wait(future)
}

// Syncing

#[test]
fn what_waits_for_a_sync_is_lost_by_a_kill_and_nothing_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let (store, e) = on(&faults, dir.path(), NEVER);
    wait(store.commit(put(e, "a", "1"))).unwrap();
    store.close();
    drop(store);
    let (store, e) = on(&faults, dir.path(), NEVER);
    wait(store.commit(put(e, "b", "1"))).unwrap();
    let writes = vec![write(e, "c", Some("1")), write(e, "a", None)];
    let last = wait(store.commit(batch(writes))).unwrap().revision;
    assert_eq!(store.snapshot().revision(), last, "it is read at once");
    faults.kill();
    drop(store);
    assert_eq!(keys(dir.path()), ["a"]);
}

#[test]
fn a_sync_comes_by_itself_and_with_a_transaction_that_is_too_large_to_wait() {
    for (sync, more) in [(AT_ONCE, 0), (NEVER, 70_000)] {
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        let (store, e) = on(&faults, dir.path(), sync);
        wait(store.commit(put(e, "a", "1"))).unwrap();
        let many = (0..more).map(|key| write(e, &format!("more-{key}"), Some("1")));
        wait(store.commit(batch(many.collect()))).unwrap();
        // The writer has synced before it looks at this one.
        wait(store.commit(put(id(&store, "m"), "k", "1"))).unwrap();
        faults.kill();
        drop(store);
        assert_eq!(keys(dir.path()).len(), 1 + more);
    }
}

#[test]
fn what_a_disk_did_not_sync_is_written_again_and_what_it_refused_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let (store, e) = on(&faults, dir.path(), AT_ONCE);
    wait(store.commit(put(e, "first", "1"))).unwrap();
    wait(store.commit(put(id(&store, "m"), "k", "1"))).unwrap();
    for round in 0..3 {
        // Acknowledged before the sync fails, and then the disk takes nothing.
        faults.kill();
        let commit = wait(store.commit(put(e, &format!("taken-{round}"), "1")));
        let refused = wait(store.commit(put(e, &format!("refused-{round}"), "1")));
        assert!(matches!(refused, Err(CommitError::Unavailable(_))));
        assert!(commit.is_ok() || round > 0, "{commit:?}");
        faults.write.store(false, Ordering::SeqCst);
        faults.sync.store(false, Ordering::SeqCst);
        wait(store.commit(put(e, &format!("after-{round}"), "1"))).unwrap();
    }
    wait(store.commit(put(id(&store, "m"), "k", "2"))).unwrap();
    let expected = contents(&store, e);
    assert!(expected.iter().any(|(key, ..)| key == "taken-0"));
    let revision = expected.iter().map(|(.., revision)| *revision).max();
    faults.kill();
    drop(store);
    let store = opened(&[embedded("e")], dir.path());
    assert_eq!(contents(&store, id(&store, "e")), expected);
    assert_eq!(Some(store.snapshot().revision().0), revision);
}

#[test]
fn a_slow_disk_holds_up_writers_and_no_reader() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let (store, e) = on(&faults, dir.path(), SyncPolicy::Always);
    wait(store.commit(put(e, "k", "1"))).unwrap();
    faults.stall(true);
    let waiting = std::thread::spawn({
        let store = store.clone();
        move || wait(store.commit(put(e, "k", "2")))
    });
    faults.is_stalled();
    // Others queue up, as many as there are places, and no further.
    wait(async {
        let mut queued = tokio::task::JoinSet::new();
        for key in 0..2 * QUEUE_BATCHES_MAX {
            let (store, batch) = (store.clone(), put(e, &key.to_string(), "1"));
            queued.spawn(async move { store.commit(batch).await });
        }
        while store.inner.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let mut reader = store.reader();
        assert_eq!(reader.load().bucket(e).unwrap().len(), 1);
        assert_eq!(contents(&store, e)[0].1, "1");
        assert!(!waiting.is_finished());
        faults.stall(false);
        for done in queued.join_all().await {
            done.unwrap();
        }
    });
    waiting.join().unwrap().unwrap();
    let there = store.snapshot().bucket(e).unwrap().len();
    assert_eq!(there, 1 + 2 * QUEUE_BATCHES_MAX as u64);
}

// Smaller

#[test]
fn a_compacted_file_is_smaller_and_holds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[embedded("e")], dir.path());
    let e = id(&store, "e");
    let many = |value: Option<&str>, from: u32| {
        let keys = from..20_000;
        let writes = keys.map(|key| write(e, &format!("agent-{key:05}"), value));
        batch(writes.collect())
    };
    wait(store.commit(many(Some(&"x".repeat(200)), 0))).unwrap();
    wait(store.commit(many(None, 100))).unwrap();
    let expected = contents(&store, e);
    let done = wait(store.compact()).unwrap();
    let size = fs::metadata(dir.path().join("store.redb")).unwrap().len();
    assert_eq!(done.after, size);
    assert!(done.after < done.before / 4, "{done:?}");
    wait(store.commit(put(e, "after", "1"))).unwrap();
    drop(store);
    let store = opened(&[embedded("e")], dir.path());
    assert_eq!(contents(&store, id(&store, "e"))[1..], expected);
}

#[test]
fn without_a_file_there_is_nothing_to_copy_or_compact() {
    let store = Store::scratch(&[memory("m")]).unwrap();
    assert_eq!(wait(store.compact()), Err(FileError::None));
    assert_eq!(wait(store.backup()).err(), Some(FileError::None));
    store.close();
    assert_eq!(wait(store.compact()), Err(FileError::Closed));
}

// Copied

/// Says so when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_backup_is_the_store_as_it_was_at_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[embedded("e"), embedded("f")], dir.path());
    let (e, f) = (id(&store, "e"), id(&store, "f"));
    let twins = |value: u32| {
        let value = value.to_string();
        batch(vec![
            write(e, "twin", Some(&value)),
            write(f, "twin", Some(&value)),
            write(e, &format!("key-{}", value.len()), Some(&value)),
        ])
    };
    let lasting = Action::Put {
        value: b"1".as_slice().into(),
        ttl: Some(Duration::from_secs(3600)),
    };
    wait(store.commit(batch(vec![Write::new(f, "ends", lasting)]))).unwrap();
    wait(store.commit(twins(0))).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 1.. {
                wait(store.commit(twins(value))).unwrap();
                if is_over.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        // Also if something below fails.
        let _over = Over(&is_over);
        for round in 0..5 {
            let before = store.snapshot().revision();
            let mut backup = block(store.backup()).unwrap();
            let after = store.snapshot().revision();
            let revision = backup.contents.revision;
            assert!(
                revision >= before && revision <= after,
                "{before} {revision} {after}"
            );
            // Another one has to wait until this one is gone.
            assert_eq!(block(store.backup()).err(), Some(FileError::Busy));
            let copy = tempfile::tempdir().unwrap();
            let path = copy.path().join("store.redb");
            let mut file = fs::File::create(&path).unwrap();
            assert_eq!(
                std::io::copy(&mut backup.file, &mut file).unwrap(),
                backup.bytes
            );
            assert_eq!(check_data_file(&path).unwrap(), backup.contents);
            let copied = opened(&[embedded("e"), embedded("f")], copy.path());
            assert_eq!(copied.snapshot().revision(), revision);
            let (e, f) = (contents(&copied, e), contents(&copied, f));
            assert_eq!(
                e.last().map(|it| &it.1),
                f.last().map(|it| &it.1),
                "{round}"
            );
            assert_eq!(backup.contents.keys, (e.len() + f.len()) as u64);
            let snapshot = copied.snapshot();
            let ending = snapshot.bucket(id(&copied, "f")).unwrap().get("ends");
            assert!(ending.unwrap().deadline.is_some());
        }
    });
}

#[test]
fn a_backup_that_the_disk_cut_is_none_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let (store, e) = on(&faults, dir.path(), SyncPolicy::Always);
    wait(store.commit(put(e, "k", "1"))).unwrap();
    // The write that fails closes the file under the copy.
    let source = block(store.ask(crate::store::data_file::FileTask::Source)).unwrap();
    faults.write.store(true, Ordering::SeqCst);
    wait(store.commit(put(e, "k", "2"))).unwrap_err();
    let file = tempfile::tempfile().unwrap();
    let copied = crate::store::backend::copy_file(&source, &file);
    let sound = |contents: &Contents| contents.revision == Revision(1) && contents.keys == 1;
    assert!(copied.as_ref().map_or(true, sound), "{copied:?}");
    faults.write.store(false, Ordering::SeqCst);
    wait(store.commit(put(e, "k", "3"))).unwrap();
    drop(source);
    assert_eq!(block(store.backup()).unwrap().contents.keys, 1);
}

#[test]
fn while_a_copy_is_read_the_file_is_not_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[embedded("e")], dir.path());
    let e = id(&store, "e");
    wait(store.commit(put(e, "k", "1"))).unwrap();
    let source = block(store.ask(crate::store::data_file::FileTask::Source)).unwrap();
    assert_eq!(wait(store.compact()), Err(FileError::Busy));
    wait(store.commit(put(e, "k", "2"))).unwrap();
    drop(source);
    wait(store.compact()).unwrap();
    assert_eq!(contents(&store, e), [("k".into(), "2".into(), 2)]);
}

// Checked

#[test]
fn a_check_tells_what_is_in_a_file_or_what_is_wrong_with_it_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = filled(dir.path());
    let path = dir.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    let contents = check_data_file(&path).unwrap();
    assert_eq!(
        (contents.keys, contents.buckets),
        (expected.len() as u64, 1)
    );
    assert_eq!(fs::read(&path).unwrap(), whole);

    let mut reported = 0;
    for at in (0..whole.len()).filter(|&at| whole[at] != 0).step_by(2_999) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x41;
        fs::write(&path, &damaged).unwrap();
        match check_data_file(&path) {
            Ok(found) => assert_eq!(found, contents, "byte {at}"),
            Err(_) => reported += 1,
        }
        assert!(
            fs::read(&path).unwrap() == damaged,
            "byte {at}: it was changed"
        );
    }
    assert!(reported > 5, "only {reported} of the flips were noticed");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(check_data_file(&path).is_err());
    assert!(check_data_file(dir.path()).is_err(), "a directory");

    fs::write(&path, &whole).unwrap();
    let store = opened(&[embedded("e")], dir.path());
    let error = check_data_file(&path).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    drop(store);
    check_data_file(&path).unwrap();
}

/// Adds what no bucket counts to a file that nobody has open.
fn add_uncounted(path: &Path, table: &str, bucket: &str) {
    type Key = (&'static [u8], &'static [u8]);
    let key = (bucket.as_bytes(), &b"zzz"[..]);
    let db = redb::Database::open(path).unwrap();
    let transaction = db.begin_write().unwrap();
    if table == "entries" {
        let entries = TableDefinition::<Key, (u64, &[u8])>::new(table);
        let mut entries = transaction.open_table(entries).unwrap();
        entries.insert(key, (1, &b"1"[..])).unwrap();
    } else {
        let deadlines = TableDefinition::<Key, u64>::new(table);
        let mut deadlines = transaction.open_table(deadlines).unwrap();
        deadlines.insert(key, 1).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn what_is_in_a_file_and_counted_by_no_bucket_is_reported() {
    for (table, bucket, expected) in [
        ("entries", "a", "do not add up"),
        ("entries", "e", "do not add up"),
        ("entries", "z", "entries of no bucket"),
        ("deadlines", "a", "entries of no bucket"),
        ("deadlines", "e", "entries of no bucket"),
        ("deadlines", "z", "entries of no bucket"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let whole = filled(dir.path());
        let path = dir.path().join("store.redb");
        add_uncounted(&path, table, bucket);
        let what = format!("{table} of {bucket:?}");
        let error = check_data_file(&path).expect_err(&what);
        assert!(
            matches!(error, OpenError::Corrupt { .. }),
            "{what}: {error}"
        );
        assert!(error.to_string().contains(expected), "{what}: {error}");
        // Whoever has that bucket would have what nobody wrote.
        let error = refused(&[embedded(bucket)], dir.path());
        assert!(
            matches!(error, OpenError::Corrupt { .. }),
            "{what}: {error}"
        );
        if bucket != "e" {
            let store = opened(&[embedded("e")], dir.path());
            assert_eq!(contents(&store, id(&store, "e")), whole);
        }
    }
}

#[test]
fn a_file_whose_process_was_killed_is_not_put_right_by_a_check() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let (store, e) = on(&faults, dir.path(), SyncPolicy::Always);
    wait(store.commit(put(e, "k", "1"))).unwrap();
    faults.kill();
    drop(store);
    let path = dir.path().join("store.redb");
    let error = check_data_file(&path).unwrap_err();
    assert!(matches!(error, OpenError::NotClosed { .. }), "{error}");
    assert_eq!(keys(dir.path()), ["k"]);
    assert_eq!(check_data_file(&path).unwrap().keys, 1);
}

#[test]
fn a_torn_tail_is_put_right_or_reported_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = filled(dir.path());
    let path = dir.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    // A page that was being added when the machine stopped, and one that was cut.
    let longer = [whole.clone(), vec![0x5a; 1_000]].concat();
    for torn in [longer, whole[..whole.len() - 100].to_vec()] {
        fs::write(&path, &torn).unwrap();
        match Store::open(&[embedded("e")], dir.path()) {
            Ok(store) => assert_eq!(contents(&store, id(&store, "e")), expected),
            Err(error) => {
                assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
                assert!(fs::read(&path).unwrap() == torn, "it was changed");
            }
        }
    }
}

#[test]
fn a_directory_in_the_place_of_the_file_is_told_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("store.redb/inside")).unwrap();
    let error = refused(&[embedded("e")], dir.path());
    assert!(error.to_string().contains("store.redb"), "{error}");
    assert!(dir.path().join("store.redb/inside").is_dir());
}
