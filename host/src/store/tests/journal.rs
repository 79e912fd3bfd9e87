//! What was acknowledged and is not in the data file yet: it survives a kill, and nothing else is taken for it.

use super::deadlines::put_for;
use super::*;
use crate::store::data_file::check_data_file;
use std::time::Duration;

/// A disk whose data file gets nothing new: its syncs do not end.
pub(super) struct Disk {
    pub(super) dir: tempfile::TempDir,
    pub(super) faults: Arc<Faults>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            faults: Arc::default(),
        }
    }

    pub(super) fn open(&mut self, buckets: &[BucketConfig]) -> Running {
        let running = self.open_with(buckets, Arc::default());
        self.faults.stall_data_file(true);
        running
    }

    pub(super) fn open_with(&mut self, buckets: &[BucketConfig], faults: Arc<Faults>) -> Running {
        self.faults = faults;
        let disk = faulty(
            self.dir.path(),
            SyncPolicy::Always,
            Arc::clone(&self.faults),
        );
        let backends = Backends::with_embedded(disk);
        let store = Store::with_backends(buckets, backends, Clock::system()).unwrap();
        Running {
            store,
            faults: Arc::clone(&self.faults),
        }
    }

    /// As if the process was killed.
    pub(super) fn kill(&self, running: Running) {
        self.faults.kill();
        running.store.close();
    }

    pub(super) fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn journal(&self) -> Vec<u8> {
        fs::read(self.file("store.journal")).unwrap()
    }
}

/// A store that can be closed, also if a test fails.
pub(super) struct Running {
    store: Store,
    faults: Arc<Faults>,
}

impl std::ops::Deref for Running {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.faults.stall_data_file(false);
    }
}

const SECTOR: usize = 512;

/// Where records begin.
fn records(journal: &[u8]) -> Vec<usize> {
    let sectors = (0..journal.len()).step_by(SECTOR);
    sectors
        .filter(|at| journal[*at..].starts_with(b"tbrecord"))
        .collect()
}

pub(super) fn keys(dir: &Path) -> Vec<String> {
    let store = opened(&[embedded("e")], dir);
    let found = contents(&store, id(&store, "e"));
    found.into_iter().map(|(key, ..)| key).collect()
}

/// Ten writes that are in the journal alone, of a process that was killed.
pub(super) fn ten_writes() -> (Disk, Vec<String>) {
    let mut disk = Disk::new();
    let store = disk.open(&[embedded("e")]);
    let e = id(&store, "e");
    let names: Vec<_> = (0..10).map(|number| format!("key-{number}")).collect();
    for name in &names {
        wait(store.commit(put(e, name, "a value"))).unwrap();
    }
    disk.kill(store);
    assert_eq!(records(&disk.journal()).len(), 10);
    (disk, names)
}

#[test]
fn all_that_a_write_is_about_is_read_after_a_kill() {
    let mut disk = Disk::new();
    let routes = BucketConfig {
        history: 5,
        ..BucketConfig::new("routes", BackendKind::Embedded, ValueKind::Endpoint)
    };
    let buckets = [routes, embedded("e")];
    let store = disk.open(&buckets);
    let (r, e) = (id(&store, "routes"), id(&store, "e"));
    let by = |name: &str, batch: WriteBatch| WriteBatch {
        by: Some(name.into()),
        ..batch
    };
    wait(store.commit(by("ann", put(r, "id1", "127.0.0.2:80")))).unwrap();
    wait(store.commit(by("bob", put(r, "id1", "127.0.0.3:80")))).unwrap();
    wait(store.commit(put_for(e, "ends", "1", Some(Duration::from_secs(3600))))).unwrap();
    wait(store.commit(put(e, "gone", "1"))).unwrap();
    wait(store.commit(batch(vec![
        write(e, "gone", None),
        write(e, "\u{fc}", Some("")),
    ])))
    .unwrap();
    let state = |store: &Store| {
        let deadline = |key| {
            let snapshot = store.snapshot();
            let entry = snapshot.bucket(e).unwrap().get(key).cloned();
            entry.map(|entry| entry.deadline)
        };
        let revisions = [r, e].map(|it| store.snapshot().bucket(it).unwrap().revision());
        (
            (contents(store, r), contents(store, e)),
            (deadline("ends"), deadline("gone")),
            (store.snapshot().revision(), revisions),
        )
    };
    let before = state(&store);
    disk.kill(store);
    let store = disk.open(&buckets);
    assert_eq!(state(&store), before);
    let past = wait(store.history(r, "id1")).unwrap();
    let past: Vec<_> = past
        .iter()
        .map(|row| (row.by.as_deref(), row.value.as_deref()))
        .collect();
    assert_eq!(
        past,
        [
            (Some("bob"), Some(&b"127.0.0.3:80"[..])),
            (Some("ann"), Some(b"127.0.0.2:80"))
        ]
    );
    // And again: what was read once is not lost, nor made twice.
    disk.kill(store);
    assert_eq!(state(&disk.open(&buckets)), before);
}

#[test]
fn a_closed_store_leaves_no_journal_and_a_file_beside_one_is_not_all_there_is() {
    let (disk, names) = ten_writes();
    let error = check_data_file(&disk.file("store.redb")).unwrap_err();
    assert!(matches!(error, OpenError::NotClosed { .. }), "{error}");
    assert_eq!(keys(disk.dir.path()), names);
    assert!(!disk.file("store.journal").exists());
    assert_eq!(check_data_file(&disk.file("store.redb")).unwrap().keys, 10);
    // A sound file, but what a proxy that was killed acknowledged is beside it.
    fs::write(disk.file("store.journal"), "").unwrap();
    let error = check_data_file(&disk.file("store.redb")).unwrap_err();
    assert!(matches!(error, OpenError::NotClosed { .. }), "{error}");
    assert_eq!(keys(disk.dir.path()), names);
}

#[test]
fn a_torn_end_is_no_write_and_damage_before_it_is_reported() {
    let (disk, names) = ten_writes();
    let (journal, file) = (disk.journal(), fs::read(disk.file("store.redb")).unwrap());
    let records = records(&journal);
    for (number, &record) in records.iter().enumerate() {
        // In its head, in its seals, and in what it says.
        for at in [0, 9, 20, 30, 40, 50, 70] {
            let mut damaged = journal.clone();
            damaged[record + at] ^= 0x41;
            fs::write(disk.file("store.journal"), &damaged).unwrap();
            fs::write(disk.file("store.redb"), &file).unwrap();
            if number + 1 == records.len() {
                assert_eq!(keys(disk.dir.path()), names[..number]);
                continue;
            }
            let error = refused(&[embedded("e")], disk.dir.path());
            assert!(matches!(error, OpenError::Journal { .. }), "{error}");
            let told = error.to_string();
            assert!(
                told.contains("store.journal") && told.contains("left as it is"),
                "{told}"
            );
            assert!(disk.journal() == damaged, "it was changed");
        }
    }
    // A machine that stops may leave the end of it unwritten.
    for end in (0..journal.len()).step_by(SECTOR / 2) {
        fs::write(disk.file("store.journal"), &journal[..end]).unwrap();
        fs::write(disk.file("store.redb"), &file).unwrap();
        let whole = records.iter().filter(|record| **record + SECTOR <= end);
        let (found, least) = (keys(disk.dir.path()), whole.count());
        // A record may end before its last sector does.
        assert!(
            found == names[..least] || found == names[..least + 1],
            "{end}: {found:?}"
        );
    }
}

#[test]
fn a_journal_of_another_file_or_another_time_is_reported_and_left_alone() {
    let (disk, names) = ten_writes();
    let journal = disk.journal();
    // Another store, which has as many writes as were made before the journal.
    let other = tempfile::tempdir().unwrap();
    keys(other.path());
    fs::write(other.path().join("store.journal"), &journal).unwrap();
    let error = refused(&[embedded("e")], other.path()).to_string();
    assert!(error.contains("it is of another data file"), "{error}");
    fs::remove_file(other.path().join("store.journal")).unwrap();
    assert_eq!(keys(other.path()), [""; 0]);
    assert_eq!(keys(disk.dir.path()), names);
    // A backup of before, and a journal that goes on from later.
    let mut disk = Disk::new();
    keys(disk.dir.path());
    let backup = fs::read(disk.file("store.redb")).unwrap();
    let store = opened(&[embedded("e")], disk.dir.path());
    let e = id(&store, "e");
    for key in ["a", "b"] {
        wait(store.commit(put(e, key, "1"))).unwrap();
    }
    drop(store);
    let store = disk.open(&[embedded("e")]);
    wait(store.commit(put(e, "last", "1"))).unwrap();
    disk.kill(store);
    fs::write(disk.file("store.redb"), &backup).unwrap();
    let error = refused(&[embedded("e")], disk.dir.path()).to_string();
    assert!(
        error.contains("write 3 is in it, and not the one after write 0"),
        "{error}"
    );
    fs::remove_file(disk.file("store.journal")).unwrap();
    assert_eq!(keys(disk.dir.path()), [""; 0]);
    // What the proxy itself copied is another file, whatever its journal would follow.
    let mut disk = Disk::new();
    let store = opened(&[embedded("e")], disk.dir.path());
    let mut backup = wait(store.backup()).unwrap();
    drop(store);
    let store = disk.open(&[embedded("e")]);
    wait(store.commit(put(id(&store, "e"), "first", "1"))).unwrap();
    disk.kill(store);
    let mut copy = fs::File::create(disk.file("store.redb")).unwrap();
    std::io::copy(&mut backup.file, &mut copy).unwrap();
    drop(copy);
    let error = refused(&[embedded("e")], disk.dir.path()).to_string();
    assert!(error.contains("it is of another data file"), "{error}");
    // Something else by that name.
    fs::write(disk.file("store.journal"), vec![b'x'; 10_000]).unwrap();
    let error = refused(&[embedded("e")], disk.dir.path()).to_string();
    assert!(error.contains("does not begin as a journal"), "{error}");
}

#[test]
fn a_journal_that_fills_again_and_again_loses_nothing() {
    let mut disk = Disk::new();
    let store = disk.open(&[embedded("e")]);
    let e = id(&store, "e");
    // Checkpoints go on.
    disk.faults.stall_data_file(false);
    for round in 0..60 {
        // Some are too large for it.
        let bytes = [1_000, 300_000, 1_048_576][round % 3];
        let value = format!("{round}-{}", "x".repeat(bytes - 10));
        wait(store.commit(put(e, &format!("key-{}", round % 7), &value))).unwrap();
    }
    let before = contents(&store, e);
    disk.kill(store);
    let store = opened(&[embedded("e")], disk.dir.path());
    assert!(contents(&store, e) == before, "something is lost");
}

#[test]
fn writers_wait_for_a_checkpoint_only_when_the_journal_is_full() {
    let mut disk = Disk::new();
    let store = disk.open(&[embedded("e")]);
    let e = id(&store, "e");
    let large = |number: usize| put(e, &format!("key-{number}"), &"x".repeat(500_000));
    // Half of its first half; the checkpoint that begins then does not end.
    for number in 0..5 {
        wait(store.commit(large(number))).unwrap();
    }
    disk.faults.is_data_file_stalled();
    for number in 5..12 {
        wait(store.commit(large(number))).unwrap();
    }
    let waiting = std::thread::spawn({
        let (store, batches) = (
            Store::clone(&store),
            (12..16).map(large).collect::<Vec<_>>(),
        );
        move || {
            for batch in batches {
                wait(store.commit(batch)).unwrap();
            }
        }
    });
    let mut reader = store.reader();
    let there = reader.load().bucket(e).unwrap().len();
    assert!((12..16).contains(&there), "{there}");
    assert!(!waiting.is_finished());
    disk.faults.stall_data_file(false);
    waiting.join().unwrap();
    disk.kill(store);
    assert_eq!(keys(disk.dir.path()).len(), 16);
}

#[test]
fn a_store_that_syncs_later_begins_with_what_another_left_in_the_journal() {
    let (disk, names) = ten_writes();
    for _ in 0..2 {
        let faults = Arc::new(Faults::default());
        let never = SyncPolicy::Interval(Duration::from_secs(3600));
        let backends = Backends::with_embedded(faulty(disk.dir.path(), never, Arc::clone(&faults)));
        let store = Store::with_backends(&[embedded("e")], backends, Clock::system()).unwrap();
        let e = id(&store, "e");
        wait(store.commit(put(e, "unsynced", "1"))).unwrap();
        faults.kill();
        store.close();
        drop(store);
        assert_eq!(keys(disk.dir.path()), names);
    }
}

#[cfg(unix)]
#[test]
fn the_journal_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let mut disk = Disk::new();
    let store = disk.open(&[embedded("e")]);
    wait(store.commit(put(id(&store, "e"), "k", "1"))).unwrap();
    let permissions = fs::metadata(disk.file("store.journal"))
        .unwrap()
        .permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    disk.kill(store);
}

#[test]
fn the_past_that_waits_is_bounded_by_the_config_of_its_last_write() {
    let mut disk = Disk::new();
    let keeping = |history_bytes_max| BucketConfig {
        history: 10,
        history_bytes_max,
        ..embedded("e")
    };
    let store = disk.open(&[keeping(1 << 20)]);
    let e = id(&store, "e");
    for number in 0..9 {
        wait(store.commit(put(e, "k", &format!("{number}{}", "x".repeat(1000))))).unwrap();
    }
    wait(store.reconfigure(&[keeping(3000)])).unwrap();
    wait(store.commit(put(e, "k", "last"))).unwrap();
    disk.faults.stall_data_file(false);
    let rows = wait(store.history(e, "k")).unwrap();
    let sizes: Vec<_> = rows
        .iter()
        .map(|row| row.value.as_ref().map(|value| value.len()))
        .collect();
    assert_eq!(sizes, [Some(4), Some(1001), Some(1001)]);
    disk.kill(store);
}

/// Makes a data file one of before journals.
fn forget_number(dir: &Path) {
    const META: redb::TableDefinition<&str, u64> = redb::TableDefinition::new("meta");
    let db = redb::Database::open(dir.join("store.redb")).unwrap();
    let transaction = db.begin_write().unwrap();
    transaction
        .open_table(META)
        .unwrap()
        .remove("id")
        .unwrap()
        .unwrap();
    transaction.commit().unwrap();
}

#[test]
fn a_data_file_of_before_journals_gets_the_number_that_ties_one_to_it() {
    let mut disk = Disk::new();
    let store = disk.open_with(&[embedded("e")], Arc::default());
    wait(store.commit(put(id(&store, "e"), "k", "1"))).unwrap();
    drop(store);
    forget_number(disk.dir.path());
    // A disk that takes nothing keeps nobody from reading.
    let faults = Arc::new(Faults::default());
    faults.full.store(true, Ordering::SeqCst);
    let dir = disk.dir.path().to_owned();
    let store = disk.open_with(&[embedded("e")], faults);
    assert_eq!(contents(&store, id(&store, "e")).len(), 1);
    disk.kill(store);
    let store = disk.open(&[embedded("e")]);
    wait(store.commit(put(id(&store, "e"), "k", "2"))).unwrap();
    disk.kill(store);
    // Another file of before has another number.
    let other = tempfile::tempdir().unwrap();
    drop(opened(&[embedded("e")], other.path()));
    forget_number(other.path());
    fs::copy(
        dir.join("store.journal"),
        other.path().join("store.journal"),
    )
    .unwrap();
    let error = Store::open(&[embedded("e")], other.path())
        .map(drop)
        .unwrap_err();
    assert!(
        error.to_string().contains("of another data file"),
        "{error}"
    );
    assert_eq!(keys(&dir), ["k"]);
}

#[test]
fn the_number_is_that_of_the_file_also_if_giving_it_was_said_to_fail() {
    let mut disk = Disk::new();
    drop(opened(&[embedded("e")], disk.dir.path()));
    forget_number(disk.dir.path());
    let faults = Arc::new(Faults::default());
    faults.first_sync.store(true, Ordering::SeqCst);
    let store = disk.open_with(&[embedded("e")], faults);
    disk.faults.stall_data_file(true);
    wait(store.commit(put(id(&store, "e"), "k", "1"))).unwrap();
    disk.kill(store);
    assert_eq!(keys(disk.dir.path()), ["k"]);
}
