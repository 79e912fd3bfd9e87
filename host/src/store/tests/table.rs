//! The map behind a bucket.

use super::*;

#[test]
fn a_table_gives_its_branches_back_when_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[memory("m")], dir.path());
    let m = id(&store, "m");
    let writes = |value: Option<&str>| {
        batch(
            (0..50_000)
                .map(|key| write(m, &format!("agent-{key}"), value))
                .collect(),
        )
    };
    assert_eq!(
        wait(store.commit(writes(Some("x")))).unwrap().created,
        50_000
    );
    assert_eq!(store.snapshot().bucket(m).unwrap().len(), 50_000);
    assert_eq!(wait(store.commit(writes(None))).unwrap().deleted, 50_000);
    let snapshot = store.snapshot();
    let bucket = snapshot.bucket(m).unwrap();
    assert_eq!((bucket.len(), bucket.bytes()), (0, 0));
    assert_eq!(bucket.sorted(), []);
    assert!(bucket.get("agent-1").is_none());
}
