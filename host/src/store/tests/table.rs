//! The map behind a bucket.

use super::*;

#[test]
fn a_page_begins_at_the_later_of_its_prefix_and_its_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(&[memory("m")], dir.path());
    let m = id(&store, "m");
    let keys = ["a", "b", "b1", "b2", "c"];
    let writes = keys.map(|key| write(m, key, Some("x")));
    wait(store.commit(batch(writes.into()))).unwrap();
    let snapshot = store.snapshot();
    let bucket = snapshot.bucket(m).unwrap();
    for (prefix, after, limit, expected, next) in [
        ("", None, 9, &keys[..], None),
        ("b", None, 9, &["b", "b1", "b2"], None),
        ("b", None, 2, &["b", "b1"], Some("b1")),
        ("b", Some("a"), 3, &["b", "b1", "b2"], None),
        ("b", Some("b"), 1, &["b1"], Some("b1")),
        ("b", Some("b11"), 9, &["b2"], None),
        ("b", Some("c"), 9, &[], None),
        ("c1", None, 9, &[], None),
        ("", Some("c"), 9, &[], None),
    ] {
        let page = bucket.page(prefix, after, limit);
        let found: Vec<_> = page.entries.iter().map(|(key, _)| &**key).collect();
        assert_eq!(found, expected, "{prefix:?} after {after:?}");
        assert_eq!(page.next.as_deref(), next, "{prefix:?} after {after:?}");
    }
}

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
    assert!(bucket.sorted().next().is_none());
    assert!(bucket.get("agent-1").is_none());
}
