//! What two states of the store differ in.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

type Content = BTreeMap<String, String>;

fn content(snapshot: &Snapshot, bucket: BucketId) -> Content {
    let entries = snapshot.bucket(bucket).unwrap().sorted();
    let text = |entry: &Entry| entry.value.text().unwrap().into_owned();
    entries
        .into_iter()
        .map(|(key, entry)| (key.to_owned(), text(entry)))
        .collect()
}

fn changed(after: &Snapshot, before: &Snapshot) -> Vec<(BucketId, Box<str>)> {
    let mut changed = after.changed_since(before, |_| true);
    changed.sort();
    changed
}

#[test]
fn states_differ_in_what_was_changed_and_nothing_else() {
    let store = Store::scratch(&[memory("a"), memory("b")]).unwrap();
    let (a, b) = (id(&store, "a"), id(&store, "b"));
    let mut states = vec![store.snapshot()];
    let mut random = 7_u64;
    let mut next = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    // From few keys to thousands, so that leaves split between two states, and back.
    for (writes, keys) in [
        (1, 5),
        (50, 40),
        (5_000, 9_000),
        (3, 9_000),
        (1, 9_000),
        (4_000, 9_000),
    ] {
        let writes = (0..writes).map(|_| {
            let (key, value) = (next(keys).to_string(), next(3));
            let value = (value > 0).then(|| value.to_string());
            write(if next(2) == 0 { a } else { b }, &key, value.as_deref())
        });
        wait(store.commit(batch(writes.collect()))).unwrap();
        states.push(store.snapshot());
    }
    let replace = WriteBatch {
        replace: vec![a],
        ..put(a, "only", "1")
    };
    wait(store.commit(replace)).unwrap();
    states.push(store.snapshot());
    for before in &states {
        for after in &states {
            let mut expected = Vec::new();
            for bucket in [a, b] {
                let (old, new) = (content(before, bucket), content(after, bucket));
                let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                let differ = keys
                    .into_iter()
                    .filter(|key| old.get(*key) != new.get(*key));
                expected.extend(differ.map(|key| (bucket, key.as_str().into())));
            }
            assert_eq!(changed(after, before), expected);
            for bucket in [a, b] {
                let mut content = content(before, bucket);
                follow(&mut content, Some(before), after, bucket);
                assert_eq!(content, self::content(after, bucket));
            }
        }
        let mut all = Content::new();
        follow(&mut all, None, before, a);
        assert_eq!(all, content(before, a));
    }
    let last = states.last().unwrap();
    let wanted = last.changed_since(&states[0], |bucket| bucket == b);
    assert!(!wanted.is_empty() && wanted.iter().all(|(bucket, _)| *bucket == b));
}

/// Does to a copy of a bucket what the pages between two states say, each change of which has to be one.
fn follow(
    content: &mut Content,
    before: Option<&Arc<Snapshot>>,
    after: &Arc<Snapshot>,
    bucket: BucketId,
) {
    let other = BucketId(bucket.0 ^ 1);
    let mut delta = Delta::new(before.cloned(), Arc::clone(after), [other, bucket].into());
    loop {
        let more = delta.has_more();
        let page = delta.page(70, 500);
        let bytes = |one: &Changed| one.key().len() + one.value().map_or(0, Value::len);
        assert!(page.len() <= 70 && page.iter().map(bytes).sum::<usize>() <= 500);
        assert_eq!(page.is_empty(), !more);
        if page.is_empty() {
            return;
        }
        let place = page[0].bucket();
        for one in page {
            assert_eq!(one.bucket(), place, "a page is of one bucket");
            if place == 0 {
                continue;
            }
            let known = match one.value() {
                Some(value) => {
                    let value = value.text().unwrap().into_owned();
                    assert_ne!(content.get(one.key()), Some(&value));
                    content.insert(one.key().to_owned(), value);
                    continue;
                }
                None => content.remove(one.key()),
            };
            assert!(known.is_some(), "{} was not there", one.key());
        }
    }
}

#[test]
fn a_change_larger_than_a_page_is_one() {
    let store = Store::scratch(&[memory("a")]).unwrap();
    let a = id(&store, "a");
    wait(store.commit(put(a, "large", &"1".repeat(1_000)))).unwrap();
    let mut delta = Delta::new(None, store.snapshot(), [a].into());
    assert_eq!(delta.page(10, 100).len(), 1);
    assert!(!delta.has_more());
}

#[test]
fn an_equal_value_is_no_change_and_readers_are_told_of_every_other() {
    let store = Store::scratch(&[memory("a")]).unwrap();
    let a = id(&store, "a");
    let mut changes = store.changes();
    wait(store.commit(put(a, "k", "1"))).unwrap();
    assert!(changes.has_changed().unwrap());
    let revision = changes.borrow_and_update().0;
    assert_eq!(revision, store.snapshot().revision().0);
    let before = store.snapshot();
    wait(store.commit(put(a, "k", "1"))).unwrap();
    assert!(!changes.has_changed().unwrap());
    wait(store.commit(put(a, "k", "2"))).unwrap();
    wait(store.commit(put(a, "k", "1"))).unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(changed(&store.snapshot(), &before), [], "there and back");
    store.close();
    changes.mark_unchanged();
    assert!(wait(changes.changed()).is_err(), "no more");
}
