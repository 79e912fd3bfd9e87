//! What a migration looks at: the buckets it uses, which must not change meanwhile, and their keys in order.

use crate::store::{BucketId, Condition, Snapshot};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

/// Kept while one migration runs.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    used: BTreeSet<BucketId>,
    /// The keys of a bucket that was listed, sorted once: a migration lists a bucket page by page from one state.
    sorted: HashMap<BucketId, Vec<Box<str>>>,
}

impl Survey {
    /// Notes that a bucket is used.
    pub(super) fn note(&mut self, bucket: BucketId) {
        self.used.insert(bucket);
    }

    /// That nothing changed since in what was used.
    pub(in crate::plugin) fn conditions(&self, snapshot: &Snapshot) -> Vec<Condition> {
        let used = self.used.iter();
        let revision = |id| {
            snapshot
                .bucket(id)
                .map_or(snapshot.revision(), |bucket| bucket.revision())
        };
        used.map(|id| Condition::Unchanged(*id, revision(*id)))
            .collect()
    }

    /// At most `limit` keys with `prefix`, after `after`: those of the state, and those that the call wrote, each with
    /// whether it is there then.
    pub(super) fn page(
        &mut self,
        snapshot: &Snapshot,
        bucket: BucketId,
        own: &BTreeMap<&str, bool>,
        (prefix, after): (&str, Option<&str>),
        limit: usize,
    ) -> Vec<String> {
        let sorted = self.sorted.entry(bucket).or_insert_with(|| {
            let keys = snapshot.bucket(bucket).map(|bucket| bucket.sorted());
            let keys = keys.unwrap_or_default().into_iter();
            keys.map(|(key, _)| key.into()).collect()
        });
        // Below both bounds nothing is wanted; the prefix itself is a key that is.
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let is_before = |key: &str| match from {
            Bound::Excluded(after) => key <= after,
            _ => key < prefix,
        };
        let first = sorted.partition_point(|key| is_before(key));
        let wanted = |key: &&str| key.starts_with(prefix);
        let stored = sorted[first..].iter().map(|key| &**key);
        let mut stored = stored
            .take_while(wanted)
            .filter(|key| !own.contains_key(key))
            .peekable();
        let written = own.range::<str, _>((from, Bound::Unbounded));
        let mut written = written
            .map(|(key, is_there)| (*key, *is_there))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, is_there)| *is_there)
            .map(|(key, _)| key)
            .peekable();
        let merged = std::iter::from_fn(|| match (stored.peek(), written.peek()) {
            (Some(stored_key), Some(own_key)) if own_key < stored_key => written.next(),
            (Some(_), _) => stored.next(),
            (None, _) => written.next(),
        });
        merged.take(limit).map(String::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BackendKind, BucketConfig, Store, ValueKind, Write, WriteBatch};
    use std::path::Path;

    #[tokio::test]
    async fn pages_are_those_of_the_state_under_the_writes_of_the_call() {
        let config = BucketConfig::new("notes", BackendKind::Memory, ValueKind::Bytes);
        let store = Store::open(&[config], Path::new("")).expect("a store");
        let bucket = store.snapshot().bucket_id("notes").expect("a bucket");
        let keys = ["a", "b1", "b2", "b3", "c"];
        let writes = keys.map(|key| Write::put(bucket, key, *b"x"));
        let batch = WriteBatch {
            writes: writes.into(),
            ..WriteBatch::default()
        };
        store.commit(batch).await.expect("written");
        let snapshot = store.snapshot();
        let own = [("b", true), ("b2", false), ("b21", true), ("d", true)].into();
        let mut survey = Survey::default();
        let mut page =
            |prefix, after, limit| survey.page(&snapshot, bucket, &own, (prefix, after), limit);
        assert_eq!(page("", None, 9), ["a", "b", "b1", "b21", "b3", "c", "d"]);
        assert_eq!(page("b", None, 9), ["b", "b1", "b21", "b3"]);
        assert_eq!(page("b", Some("a"), 2), ["b", "b1"]);
        assert_eq!(page("b", Some("b1"), 9), ["b21", "b3"]);
        assert_eq!(page("b", Some("c"), 9), [""; 0]);
        assert_eq!(page("", Some("c"), 9), ["d"]);
    }
}
