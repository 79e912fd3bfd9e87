//! A disk that fails: what it refused stays out, and what it took stays.

use super::journal::{Disk, keys, ten_writes};
use super::*;
use std::time::Duration;

#[test]
fn while_the_data_file_takes_nothing_writes_are_refused_and_what_was_acknowledged_stays() {
    let mut disk = Disk::new();
    let store = disk.open(&[embedded("e")]);
    let e = id(&store, "e");
    disk.faults.stall_data_file(false);
    let mut acknowledged = 0;
    for round in 0..3 {
        disk.faults.data_file.store(true, Ordering::SeqCst);
        // It is noticed with the first checkpoint, which comes by itself.
        let error = loop {
            let key = format!("{round}-{acknowledged}");
            match wait(store.commit(put(e, &key, "1"))) {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        let told = error.to_string();
        assert!(told.contains("store.redb"), "{told}");
        assert_eq!(contents(&store, e).len(), acknowledged);
        wait(store.commit(put(e, "no", "1"))).unwrap_err();
        disk.faults.data_file.store(false, Ordering::SeqCst);
        wait(store.commit(put(e, &format!("{round}-after"), "1"))).unwrap();
        acknowledged += 1;
    }
    let before = contents(&store, e);
    assert!(before.iter().all(|(key, ..)| key != "no"));
    disk.faults.data_file.store(true, Ordering::SeqCst);
    wait(store.commit(put(e, "last", "1"))).unwrap();
    disk.kill(store);
    assert_eq!(keys(disk.dir.path()).len(), acknowledged + 1);
}

#[test]
fn what_was_refused_does_not_come_back_after_a_kill() {
    let mut disk = Disk::new();
    let store = disk.open_with(&[embedded("e")], Arc::default());
    let e = id(&store, "e");
    wait(store.commit(put(e, "a", "1"))).unwrap();
    for round in 0..3 {
        // It is in the journal, whose sync says that it is not.
        disk.faults.sync.store(true, Ordering::SeqCst);
        wait(store.commit(put(e, "refused", "1"))).unwrap_err();
        disk.faults.sync.store(false, Ordering::SeqCst);
        wait(store.commit(put(e, &format!("b{round}"), "1"))).unwrap();
        wait(store.commit(put(e, &format!("c{round}"), "1"))).unwrap();
    }
    disk.kill(store);
    assert_eq!(
        keys(disk.dir.path()),
        ["a", "b0", "b1", "b2", "c0", "c1", "c2"]
    );
}

#[test]
fn a_checkpoint_that_got_there_and_said_that_it_did_not_is_not_made_twice() {
    let mut disk = Disk::new();
    let store = disk.open_with(&[embedded("e")], Arc::default());
    let e = id(&store, "e");
    disk.faults.data_file_sync.store(true, Ordering::SeqCst);
    let mut acknowledged = 0;
    while wait(store.commit(put(e, &acknowledged.to_string(), "1"))).is_ok() {
        acknowledged += 1;
    }
    assert!(acknowledged > 0);
    disk.faults.data_file_sync.store(false, Ordering::SeqCst);
    wait(store.commit(put(e, "after", "1"))).unwrap();
    let before = contents(&store, e);
    assert_eq!(before.len(), acknowledged + 1);
    disk.kill(store);
    let store = opened(&[embedded("e")], disk.dir.path());
    assert_eq!(contents(&store, id(&store, "e")), before);
}

#[test]
fn on_a_disk_that_is_full_at_the_start_everything_is_there_and_writes_are_refused() {
    let (mut disk, mut names) = ten_writes();
    let faults = Arc::new(Faults::default());
    faults.full.store(true, Ordering::SeqCst);
    let store = disk.open_with(&[embedded("e")], faults);
    let e = id(&store, "e");
    let found: Vec<_> = contents(&store, e)
        .into_iter()
        .map(|(key, ..)| key)
        .collect();
    assert_eq!(found, names);
    assert_eq!(store.snapshot().revision(), Revision(10));
    let error = wait(store.commit(put(e, "more", "1")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("store.redb"), "{error}");
    disk.faults.full.store(false, Ordering::SeqCst);
    disk.faults.data_file.store(false, Ordering::SeqCst);
    wait(store.commit(put(e, "more", "1"))).unwrap();
    names.push("more".into());
    disk.kill(store);
    assert_eq!(keys(disk.dir.path()), names);
}

#[test]
fn a_store_that_syncs_later_begins_with_it_on_a_full_disk_too() {
    let (disk, names) = ten_writes();
    let faults = Arc::new(Faults::default());
    faults.full.store(true, Ordering::SeqCst);
    let never = SyncPolicy::Interval(Duration::from_secs(3600));
    let backends = Backends::with_embedded(faulty(disk.dir.path(), never, Arc::clone(&faults)));
    let store = Store::with_backends(&[embedded("e")], backends, Clock::system()).unwrap();
    let e = id(&store, "e");
    assert_eq!(contents(&store, e).len(), names.len());
    wait(store.commit(put(e, "more", "1"))).unwrap_err();
    faults.full.store(false, Ordering::SeqCst);
    faults.data_file.store(false, Ordering::SeqCst);
    wait(store.commit(put(e, "more", "1"))).unwrap();
    drop(store);
    assert_eq!(keys(disk.dir.path()).len(), names.len() + 1);
}

#[test]
fn what_is_no_value_of_its_bucket_any_more_counts_as_it_was_written_last() {
    let mut disk = Disk::new();
    let store = disk.open_with(&[embedded("e")], Arc::default());
    let e = id(&store, "e");
    wait(store.commit(put(e, "k", "no endpoint"))).unwrap();
    drop(store);
    let store = disk.open(&[embedded("e")]);
    wait(store.commit(put(e, "k", "127.0.0.2:80"))).unwrap();
    disk.kill(store);
    let faults = Arc::new(Faults::default());
    faults.full.store(true, Ordering::SeqCst);
    let routes = BucketConfig::new("e", BackendKind::Embedded, ValueKind::Endpoint);
    let store = disk.open_with(&[routes], faults);
    assert_eq!(
        contents(&store, e),
        [("k".into(), "127.0.0.2:80".into(), 2)]
    );
    disk.kill(store);
}

#[test]
fn a_journal_that_somebody_changed_is_told_and_not_written_over() {
    let mut disk = Disk::new();
    let store = disk.open_with(&[embedded("e")], Arc::default());
    let e = id(&store, "e");
    wait(store.commit(put(e, "k", "1"))).unwrap();
    // It is opened again after a write that failed.
    disk.faults.sync.store(true, Ordering::SeqCst);
    wait(store.commit(put(e, "k", "2"))).unwrap_err();
    let mut journal = disk.journal();
    journal[20] ^= 1;
    fs::write(disk.file("store.journal"), &journal).unwrap();
    disk.faults.sync.store(false, Ordering::SeqCst);
    let error = wait(store.commit(put(e, "k", "3"))).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("store.journal") && told.contains("changed by someone else"),
        "{told}"
    );
    assert_eq!(disk.journal(), journal);
    disk.kill(store);
}

#[test]
fn a_write_of_which_the_disk_took_nothing_keeps_no_later_one_out() {
    let mut disk = Disk::new();
    let store = disk.open_with(&[embedded("e")], Arc::default());
    let e = id(&store, "e");
    // Nothing is filled with zeros ahead: the next record goes where the file ends.
    disk.faults.long_writes.store(true, Ordering::SeqCst);
    for round in ["0", "1", "2"] {
        wait(store.commit(put(e, round, "1"))).unwrap();
        disk.faults.write.store(true, Ordering::SeqCst);
        wait(store.commit(put(e, "refused", "1"))).unwrap_err();
        disk.faults.write.store(false, Ordering::SeqCst);
    }
    wait(store.commit(put(e, "last", "1"))).unwrap();
    disk.kill(store);
    assert_eq!(keys(disk.dir.path()), ["0", "1", "2", "last"]);
}
