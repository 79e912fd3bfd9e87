//! Damage in what the data file keeps of the past: it is told, and takes nothing else with it.

use super::*;
use crate::store::data_file::check_data_file;
use redb::TableDefinition;

/// Rows of the past are of a key, a revision, and what the key became.
type Row = (&'static [u8], &'static [u8], u64);
type Became = (u64, u64, u64, u8, &'static str, &'static [u8]);

#[test]
fn a_past_of_which_something_is_missing_or_changed_is_reported() {
    const ROWS: TableDefinition<Row, Became> = TableDefinition::new("history");
    const ORDER: TableDefinition<(&[u8], u64, &[u8]), u64> = TableDefinition::new("history_order");
    const SIZES: TableDefinition<&[u8], u64> = TableDefinition::new("history_sizes");
    type Damage = fn(&redb::WriteTransaction);
    let damages: [(&str, Damage); 5] = [
        ("1 values of the past were found, of 2", |transaction| {
            let mut rows = transaction.open_table(ROWS).unwrap();
            rows.remove((&b"e"[..], &b"k"[..], 1)).unwrap().unwrap();
        }),
        ("key \"k\" at revision 2", |transaction| {
            let mut order = transaction.open_table(ORDER).unwrap();
            order.remove((&b"e"[..], 2, &b"k"[..])).unwrap().unwrap();
        }),
        ("key \"k\" at revision 1", |transaction| {
            let mut rows = transaction.open_table(ROWS).unwrap();
            let at = (&b"e"[..], &b"k"[..], 1);
            let row = (1, 7, 0, 0, "", &b"another"[..]);
            rows.insert(at, row).unwrap().unwrap();
        }),
        ("values of the past take", |transaction| {
            let mut sizes = transaction.open_table(SIZES).unwrap();
            sizes.insert(&b"e"[..], 1).unwrap().unwrap();
        }),
        ("bytes, not the 0 that were written", |transaction| {
            let mut sizes = transaction.open_table(SIZES).unwrap();
            sizes.remove(&b"e"[..]).unwrap().unwrap();
        }),
    ];
    for (expected, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let keeping = BucketConfig {
            history: 5,
            ..embedded("e")
        };
        let store = opened(std::slice::from_ref(&keeping), dir.path());
        let e = id(&store, "e");
        for value in ["one", "two"] {
            wait(store.commit(put(e, "k", value))).unwrap();
        }
        drop(store);
        check_data_file(&path).expect(expected);
        let db = redb::Database::open(&path).unwrap();
        let transaction = db.begin_write().unwrap();
        damage(&transaction);
        transaction.commit().unwrap();
        drop(db);
        let error = check_data_file(&path).expect_err(expected);
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        // What is there now is whole.
        let store = opened(&[keeping], dir.path());
        assert_eq!(store.snapshot().bucket(e).unwrap().len(), 1);
    }
}

#[test]
fn a_damaged_row_of_the_past_keeps_no_write_out_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let keeping = BucketConfig {
        history: 3,
        ..embedded("e")
    };
    let buckets = std::slice::from_ref(&keeping);
    let store = opened(buckets, dir.path());
    let e = id(&store, "e");
    let by = |key: &str, value: &str| WriteBatch {
        by: Some("somebody-of-the-past".into()),
        ..put(e, key, value)
    };
    wait(store.commit(by("k", "1"))).unwrap();
    drop(store);
    let mut bytes = fs::read(&path).unwrap();
    let name = b"somebody-of-the-past";
    let places: Vec<_> = (0..bytes.len() - name.len())
        .filter(|at| bytes[*at..].starts_with(name))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        // No text any more: the engine panics when it reads it.
        bytes[at] = 0xff;
    }
    fs::write(&path, bytes).unwrap();
    let store = opened(buckets, dir.path());
    for value in ["2", "3"] {
        wait(store.commit(by("k", value))).unwrap();
        wait(store.commit(by("other", value))).unwrap();
    }
    wait(store.compact()).unwrap();
    let values: Vec<_> = wait(store.history(e, "k")).unwrap();
    let values: Vec<_> = values.iter().map(|row| row.value.as_deref()).collect();
    assert_eq!(values[..2], [Some(&b"3"[..]), Some(b"2")]);
    drop(store);
    check_data_file(&path).unwrap();
}

#[test]
fn a_damaged_structure_of_the_past_costs_the_history_of_its_bucket_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let [keeping, other] = ["keeping", "other"].map(|name| BucketConfig {
        history: 3,
        ..embedded(name)
    });
    let buckets = [keeping, other, embedded("plain")];
    let store = opened(&buckets, dir.path());
    let [k, o, p] = ["keeping", "other", "plain"].map(|name| id(&store, name));
    let by = |bucket, value: &str| WriteBatch {
        by: Some("somebody-of-the-past".into()),
        ..put(bucket, "k", value)
    };
    wait(store.commit(by(k, "1"))).unwrap();
    drop(store);
    let mut bytes = fs::read(&path).unwrap();
    let name = b"somebody-of-the-past";
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(name) {
            // What a page is: the engine panics when it reads it.
            // How many rows a page says it has: the engine panics when it reads them.
            let page = at & !4095;
            bytes[page + 2..page + 4].fill(0xff);
        }
    }
    fs::write(&path, bytes).unwrap();
    for round in ["2", "3"] {
        let store = opened(&buckets, dir.path());
        for bucket in [k, o, p] {
            wait(store.commit(by(bucket, round))).unwrap();
        }
        // Has what waits written to the file.
        let error = wait(store.history(k, "k")).unwrap_err();
        let told = "the history of bucket keeping is damaged";
        assert!(error.to_string().contains(told), "{error}");
        for bucket in [k, o, p] {
            wait(store.commit(by(bucket, &format!("{round} again")))).unwrap();
        }
        drop(store);
        assert!(!dir.path().join("store.journal").exists());
    }
    let store = opened(&buckets, dir.path());
    for bucket in [k, o, p] {
        let snapshot = store.snapshot();
        let entry = snapshot.bucket(bucket).unwrap().get("k").cloned().unwrap();
        assert_eq!(entry.value.to_bytes().as_ref(), b"3 again");
    }
}
