//! The store's behaviour, by itself.

use std::fs;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::backend::{Faults, faulty};
use super::batch::check_key;
use super::*;

mod anew;
mod behind;
mod changes;
pub(super) mod conformance;
mod crowd;
mod damage;
mod data_file;
mod deadlines;
pub(crate) mod engine;
mod failing_disk;
mod fleet;
mod gate;
pub(super) mod histories;
mod journal;
pub(crate) mod nodes;
mod over;
mod past;
mod reloads;
mod table;
mod watching;

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

fn memory(name: &str) -> BucketConfig {
    BucketConfig::new(name, BackendKind::Memory, ValueKind::Bytes)
}

fn embedded(name: &str) -> BucketConfig {
    BucketConfig::new(name, BackendKind::Embedded, ValueKind::Bytes)
}

fn id(store: &Store, name: &str) -> BucketId {
    store.snapshot().bucket_id(name).unwrap()
}

fn write(bucket: BucketId, key: &str, value: Option<&str>) -> Write {
    match value {
        Some(value) => Write::put(bucket, key, value.as_bytes()),
        None => Write::delete(bucket, key),
    }
}

fn put(bucket: BucketId, key: &str, value: &str) -> WriteBatch {
    batch(vec![write(bucket, key, Some(value))])
}

fn batch(writes: Vec<Write>) -> WriteBatch {
    WriteBatch {
        writes,
        ..WriteBatch::default()
    }
}

fn contents(store: &Store, bucket: BucketId) -> Vec<(String, String, u64)> {
    let snapshot = store.snapshot();
    let entries = snapshot.bucket(bucket).unwrap().sorted();
    entries
        .into_iter()
        .map(|(key, entry)| {
            let value = entry.value.text().unwrap().into_owned();
            (key.to_owned(), value, entry.revision.0)
        })
        .collect()
}

fn opened(buckets: &[BucketConfig], dir: &Path) -> Store {
    Store::open(buckets, dir).unwrap()
}

fn refused(buckets: &[BucketConfig], dir: &Path) -> OpenError {
    match Store::open(buckets, dir) {
        Ok(_) => panic!("the store opened"),
        Err(error) => error,
    }
}

// Batches

#[test]
fn a_batch_with_one_bad_write_changes_nothing_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let routes = BucketConfig::new("routes", BackendKind::Memory, ValueKind::Endpoint);
    let store = opened(&[routes], dir.path());
    let routes = id(&store, "routes");
    let writes = vec![
        write(routes, "id1", Some("127.0.0.2")),
        write(routes, "id2", Some("127.0.0.300")),
    ];
    let error = wait(store.commit(batch(writes))).unwrap_err().to_string();
    assert!(
        error.starts_with(r#"bucket "routes", key "id2": "127.0.0.300" is not an address"#),
        "{error}"
    );
    assert_eq!(store.snapshot().revision(), Revision(0));
    assert!(store.snapshot().bucket(routes).unwrap().is_empty());
}

#[test]
fn keys_are_text_of_bounded_length_without_control_characters() {
    assert!(check_key("tenant/ä b").is_ok());
    assert!(check_key(&"k".repeat(1024)).is_ok());
    for key in ["", "a\nb", "a\0", "\u{85}", &"k".repeat(1025)] {
        assert!(check_key(key).is_err(), "{key:?}");
    }
}

#[test]
fn a_bucket_grows_to_its_limits_and_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = memory("small");
    (small.keys_max, small.bytes_max) = (2, 10);
    let store = opened(&[small.clone()], dir.path());
    let bucket = id(&store, "small");
    wait(store.commit(put(bucket, "a", "1"))).unwrap();
    wait(store.commit(put(bucket, "b", "2"))).unwrap();
    let error = wait(store.commit(put(bucket, "c", "3"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"bucket "small": would hold 3 keys, keys_max is 2"#
    );
    let error = wait(store.commit(put(bucket, "a", "123456789"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"bucket "small": would hold 12 bytes of keys and values, bytes_max is 10"#
    );
    let swap = vec![write(bucket, "b", None), write(bucket, "c", Some("3"))];
    wait(store.commit(batch(swap))).unwrap();

    small.keys_max = 1;
    wait(store.reconfigure(&[small])).unwrap();
    wait(store.commit(put(bucket, "a", "4"))).expect("does not grow");
    assert!(wait(store.commit(put(bucket, "d", "4"))).is_err());
    wait(store.commit(batch(vec![write(bucket, "a", None)]))).unwrap();
}

#[test]
fn replacing_a_bucket_keeps_the_revision_of_equal_entries() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[memory("m")], dir.path());
    let m = id(&store, "m");
    wait(store.commit(put(m, "a", "1"))).unwrap();
    wait(store.commit(put(m, "b", "2"))).unwrap();
    let mut replace = batch(vec![write(m, "a", Some("1")), write(m, "c", Some("3"))]);
    replace.replace = vec![m];
    let done = wait(store.commit(replace)).unwrap();
    assert_eq!((done.created, done.deleted, done.unchanged), (1, 1, 1));
    let expected = [("a", "1", 1), ("c", "3", 3)].map(|(k, v, r)| (k.into(), v.into(), r));
    assert_eq!(contents(&store, m), expected);
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[memory("m")], dir.path());
    let m = id(&store, "m");
    let writes = (0..5_000)
        .map(|key| write(m, &format!("k{key}"), Some("old")))
        .collect();
    wait(store.commit(batch(writes))).unwrap();
    let old = store.snapshot();
    let writes = (0..5_000)
        .map(|key| write(m, &format!("k{key}"), (key % 2 == 0).then_some("new")))
        .collect();
    wait(store.commit(batch(writes))).unwrap();
    let value = |snapshot: &Snapshot, key: &str| {
        let entry = snapshot.bucket(m).unwrap().get(key)?;
        Some(entry.value.text().unwrap().into_owned())
    };
    for key in 0..5_000 {
        let name = format!("k{key}");
        assert_eq!(value(&old, &name).as_deref(), Some("old"));
        assert_eq!(
            value(&store.snapshot(), &name).as_deref(),
            (key % 2 == 0).then_some("new")
        );
    }
    assert_eq!(old.bucket(m).unwrap().len(), 5_000);
    assert_eq!(store.snapshot().bucket(m).unwrap().len(), 2_500);
}

#[test]
fn a_reader_sees_whole_batches_only_and_its_own_commits_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[memory("m")], dir.path());
    let m = id(&store, "m");
    let tagged = |tag: u32| {
        let tag = tag.to_string();
        batch(
            (0..10)
                .map(|key| write(m, &format!("k{key}"), Some(&tag)))
                .collect(),
        )
    };
    wait(store.commit(tagged(0))).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = store.reader();
            let mut last = Revision(0);
            while !done.load(Ordering::Acquire) {
                let snapshot = reader.load();
                assert!(snapshot.revision() >= last);
                last = snapshot.revision();
                let bucket = snapshot.bucket(m).unwrap();
                let first = bucket.get("k0").unwrap();
                for key in 1..10 {
                    assert_eq!(bucket.get(&format!("k{key}")).unwrap(), first);
                }
            }
        });
        let mut reader = store.reader();
        for tag in 1..=1_000 {
            let revision = wait(store.commit(tagged(tag))).unwrap().revision;
            assert_eq!(reader.load().revision(), revision);
        }
        done.store(true, Ordering::Release);
    });
}

#[test]
fn of_many_writers_of_one_absent_key_exactly_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[embedded("e")], dir.path());
    let e = id(&store, "e");
    let results = wait(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..64 {
            let store = store.clone();
            let mut claim = put(e, "leader", &writer.to_string());
            claim.writes[0].expect = Expect::Absent;
            tasks.spawn(async move { store.commit(claim).await });
        }
        tasks.join_all().await
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(store.snapshot().revision(), Revision(1));
}

// Life

#[test]
fn a_closed_store_refuses_writes_and_goes_on_reading() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[memory("m")], dir.path());
    let m = id(&store, "m");
    wait(store.commit(put(m, "a", "1"))).unwrap();
    store.close();
    store.close();
    assert_eq!(
        wait(store.commit(put(m, "a", "2"))),
        Err(CommitError::Unavailable("store is closed".into()))
    );
    assert!(matches!(
        wait(store.reconfigure(&[])),
        Err(OpenError::Closed)
    ));
    assert_eq!(store.snapshot().bucket(m).unwrap().len(), 1);
}

#[test]
fn a_new_config_adds_and_removes_buckets_and_keeps_data() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[memory("m")], dir.path());
    assert!(!dir.path().join("store.redb").exists(), "made without need");
    let m = id(&store, "m");
    wait(store.commit(put(m, "a", "1"))).unwrap();

    wait(store.reconfigure(&[embedded("e")])).unwrap();
    let snapshot = store.snapshot();
    assert_eq!(snapshot.bucket_id("m"), None);
    assert_eq!(
        snapshot.bucket(m).unwrap().len(),
        1,
        "by id it stays readable"
    );
    assert_eq!(
        wait(store.commit(put(m, "a", "2"))),
        Err(CommitError::NoSuchBucket)
    );
    let e = id(&store, "e");
    let revision = wait(store.commit(put(e, "a", "1"))).unwrap().revision;
    assert_eq!(revision, Revision(2));

    let twice = wait(store.reconfigure(&[memory("m"), memory("m")]));
    assert!(matches!(twice, Err(OpenError::Duplicate { .. })));
    assert_eq!(id(&store, "e"), e, "a refused config changes nothing");

    wait(store.reconfigure(&[memory("m"), memory("other")])).unwrap();
    assert_eq!(id(&store, "m"), m);
    let names: Vec<_> = store
        .snapshot()
        .buckets()
        .map(|(_, b)| b.config().name.clone())
        .collect();
    assert_eq!(names, ["m", "other"]);

    drop((store, snapshot));
    let store = opened(&[embedded("e"), embedded("f")], dir.path());
    assert_eq!(
        contents(&store, id(&store, "e")),
        [("a".into(), "1".into(), 2)]
    );
    assert_eq!(store.snapshot().revision(), Revision(2));
}

#[test]
fn stored_values_that_do_not_fit_the_config_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[embedded("e")], dir.path());
    let writes = vec![
        write(id(&store, "e"), "id1", Some("127.0.0.2:80")),
        write(id(&store, "e"), "id2", Some("no address")),
    ];
    wait(store.commit(batch(writes))).unwrap();
    let routes = BucketConfig::new("e", BackendKind::Embedded, ValueKind::Endpoint);
    let live = wait(store.reconfigure(std::slice::from_ref(&routes)))
        .unwrap_err()
        .to_string();
    assert!(live.contains(r#"bucket "e", key "id2""#), "{live}");
    drop(store);
    let opening = refused(std::slice::from_ref(&routes), dir.path()).to_string();
    assert_eq!(opening, live);

    let store = opened(&[embedded("e")], dir.path());
    let e = id(&store, "e");
    wait(store.commit(batch(vec![write(e, "id2", None)]))).unwrap();
    wait(store.reconfigure(&[routes])).unwrap();
    let snapshot = store.snapshot();
    let entry = snapshot.bucket(e).unwrap().get("id1").unwrap();
    assert_eq!(entry.value.target(), Some(&"127.0.0.2:80".parse().unwrap()));
}

#[cfg(unix)]
#[test]
fn the_data_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let _store = opened(&[embedded("e")], dir.path());
    let mode = fs::metadata(dir.path().join("store.redb"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!dir.path().join("store.redb.new").exists());
}

// Faults

#[test]
fn a_second_open_says_that_the_file_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[embedded("e")], dir.path());
    let error = refused(&[embedded("e")], dir.path());
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    drop(store);
    opened(&[embedded("e")], dir.path());
}

fn filled(dir: &Path) -> Vec<(String, String, u64)> {
    let store = opened(&[embedded("e")], dir);
    let e = id(&store, "e");
    let writes = (0..2_000)
        .map(|key| write(e, &format!("key-{key:04}"), Some("a value")))
        .collect();
    wait(store.commit(batch(writes))).unwrap();
    contents(&store, e)
}

#[test]
fn a_foreign_or_truncated_file_is_reported_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    let foreign = b"{\"not\": \"a store\"}".to_vec();
    for content in [
        foreign,
        Vec::new(),
        whole[..5].to_vec(),
        whole[..4096].to_vec(),
        whole[..whole.len() / 3].to_vec(),
    ] {
        fs::write(&path, &content).unwrap();
        let error = refused(&[embedded("e")], dir.path());
        assert!(
            matches!(error, OpenError::Corrupt { .. }),
            "{} bytes: {error}",
            content.len()
        );
        let message = error.to_string();
        assert!(
            message.contains("store.redb") && message.contains("restore a copy"),
            "{message}"
        );
        assert_eq!(
            fs::read(&path).unwrap().len(),
            content.len(),
            "the file was changed"
        );
    }
    fs::write(&path, &whole).unwrap();
    opened(&[embedded("e")], dir.path());
}

#[test]
fn a_flipped_byte_is_either_harmless_or_reported_and_never_changes_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let expected = filled(dir.path());
    let path = dir.path().join("store.redb");
    let whole = fs::read(&path).unwrap();
    let mut reported = 0;
    for at in (0..whole.len()).filter(|&at| whole[at] != 0).step_by(1_499) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x41;
        fs::write(&path, &damaged).unwrap();
        match Store::open(&[embedded("e")], dir.path()) {
            Ok(store) => assert!(
                contents(&store, id(&store, "e")) == expected,
                "byte {at}: entries differ"
            ),
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Corrupt { .. }),
                    "byte {at}: {error}"
                );
                reported += 1;
            }
        }
    }
    assert!(reported > 10, "only {reported} of the flips were noticed");
}

#[test]
fn a_write_that_the_disk_refuses_is_not_published_and_the_next_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let backends =
        Backends::with_embedded(faulty(dir.path(), SyncPolicy::Always, Arc::clone(&faults)));
    let store =
        Store::with_backends(&[embedded("e"), memory("m")], backends, Clock::system()).unwrap();
    let (e, m) = (id(&store, "e"), id(&store, "m"));
    wait(store.commit(put(e, "a", "1"))).unwrap();

    for fault in [&faults.write, &faults.sync] {
        fault.store(true, Ordering::SeqCst);
        let before = store.snapshot();
        for value in ["2", "3"] {
            let error = wait(store.commit(put(e, "a", value))).unwrap_err();
            assert!(matches!(error, CommitError::Unavailable(_)), "{error}");
            assert!(
                Arc::ptr_eq(&before, &store.snapshot()),
                "something was published"
            );
        }
        // Batches of one group: those for memory do not suffer.
        let (durable, volatile) = wait(async {
            tokio::join!(
                store.commit(put(e, "a", "4")),
                store.commit(put(m, "a", before.revision().to_string().as_str()))
            )
        });
        assert!(durable.is_err());
        volatile.unwrap();
        fault.store(false, Ordering::SeqCst);
        wait(store.commit(put(e, "b", &before.revision().to_string()))).unwrap();
        assert_eq!(contents(&store, e)[0], ("a".into(), "1".into(), 1));
    }
    let last = contents(&store, e);
    let revision = store.snapshot().revision();
    drop(store);
    let store = opened(&[embedded("e")], dir.path());
    assert_eq!(
        contents(&store, id(&store, "e")),
        last,
        "a refused write came back"
    );
    assert_eq!(store.snapshot().revision(), revision);
}
