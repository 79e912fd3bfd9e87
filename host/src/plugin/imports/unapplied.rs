//! Writes of earlier calls of an instance that the store has not applied yet: later calls read them already.

use super::listing::keys_from;
use crate::store::{BucketId, Value};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stands in a [`Fate`] for a batch that was refused.
const REFUSED: u64 = u64::MAX;
/// Most bytes of keys and values that one instance has under way.
const BYTES_MAX: usize = 8 << 20;

/// What became of a batch: 0 until that is known, then one more than the revision after it.
#[derive(Debug, Clone, Default)]
pub(in crate::plugin) struct Fate(Arc<AtomicU64>);

impl Fate {
    /// It was applied, and readers can see it at this revision.
    pub(in crate::plugin) fn applied(&self, revision: u64) {
        self.0.store(revision + 1, Ordering::Release);
    }

    /// It was refused.
    pub(in crate::plugin) fn refused(&self) {
        self.0.store(REFUSED, Ordering::Release);
    }

    /// Whether a state of this revision shows all that will ever come of it.
    fn is_seen_at(&self, revision: u64) -> bool {
        match self.0.load(Ordering::Acquire) {
            0 => false,
            REFUSED => true,
            applied => applied - 1 <= revision,
        }
    }
}

/// Batches under way, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Unapplied {
    batches: VecDeque<Batch>,
    /// Number of the first.
    first: u64,
    /// The newest value of each key, with the number of its batch.
    newest: BTreeMap<BucketId, BTreeMap<Box<str>, Newest>>,
    bytes: usize,
}

/// A value, or none if the key is deleted, and the number of the batch.
type Newest = (Option<Value>, u64);

#[derive(Debug)]
struct Batch {
    fate: Fate,
    keys: Vec<(BucketId, Box<str>)>,
    bytes: usize,
}

/// A write of a batch: the bucket, the key, the value, or none if it deletes.
pub(in crate::plugin) type Planned = (BucketId, Box<str>, Option<Value>);

impl Unapplied {
    /// Whether there is room for so many bytes more. One batch alone always fits.
    pub(in crate::plugin) fn has_room(&self, bytes: usize) -> bool {
        self.batches.is_empty() || self.bytes + bytes <= BYTES_MAX
    }

    /// Remembers a batch.
    pub(in crate::plugin) fn add(&mut self, writes: Vec<Planned>, fate: Fate) {
        let number = self.first + self.batches.len() as u64;
        let mut batch = Batch {
            fate,
            keys: Vec::with_capacity(writes.len()),
            bytes: 0,
        };
        for (bucket, key, value) in writes {
            batch.bytes += key.len() + value.as_ref().map_or(0, Value::len);
            batch.keys.push((bucket, key.clone()));
            let newest = self.newest.entry(bucket).or_default();
            newest.insert(key, (value, number));
        }
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
    }

    /// Forgets what a state of this revision shows.
    pub(in crate::plugin) fn settle(&mut self, revision: u64) {
        while let Some(batch) = self
            .batches
            .pop_front_if(|batch| batch.fate.is_seen_at(revision))
        {
            for (bucket, key) in &batch.keys {
                if let Some(newest) = self.newest.get_mut(bucket)
                    && newest
                        .get(key)
                        .is_some_and(|(_, number)| *number == self.first)
                {
                    newest.remove(key);
                }
            }
            self.bytes -= batch.bytes;
            self.first += 1;
        }
    }

    /// Whether nothing is under way.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// What a key is to become, if anything is under way for it: its value, or none if it is deleted.
    pub(super) fn get(&self, bucket: BucketId, key: &str) -> Option<Option<&Value>> {
        let (value, _) = self.newest.get(&bucket)?.get(key)?;
        Some(value.as_ref())
    }

    /// Every key under way of a bucket, in byte order, and whether it stays.
    pub(super) fn keys(
        &self,
        bucket: BucketId,
        start: Bound<&str>,
    ) -> impl Iterator<Item = (&str, bool)> {
        let newest = keys_from(self.newest.get(&bucket), start);
        newest.map(|(key, (value, _))| (key, value.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: BucketId = BucketId(0);

    fn write(key: &str, value: &str) -> Planned {
        let value = Value::parse(crate::store::ValueKind::Bytes, value.as_bytes());
        (BUCKET, key.into(), Some(value.expect("any bytes")))
    }

    fn read(unapplied: &Unapplied, key: &str) -> Option<String> {
        let value = unapplied.get(BUCKET, key)??;
        Some(String::from_utf8_lossy(&value.to_bytes()).into_owned())
    }

    #[test]
    fn the_last_write_of_a_key_is_read_until_a_state_shows_it() {
        let mut unapplied = Unapplied::default();
        let fates = [Fate::default(), Fate::default(), Fate::default()];
        unapplied.add(vec![write("a", "1"), write("b", "1")], fates[0].clone());
        unapplied.add(vec![write("a", "2")], fates[1].clone());
        unapplied.add(vec![(BUCKET, "b".into(), None)], fates[2].clone());
        assert_eq!(read(&unapplied, "a").as_deref(), Some("2"));
        assert_eq!(unapplied.get(BUCKET, "b"), Some(None));
        fates[0].applied(7);
        unapplied.settle(6);
        assert_eq!(unapplied.keys(BUCKET, Bound::Unbounded).count(), 2);
        unapplied.settle(7);
        assert_eq!(
            read(&unapplied, "a").as_deref(),
            Some("2"),
            "its second write is under way"
        );
        // In order, whatever is known first.
        fates[2].applied(9);
        unapplied.settle(9);
        assert_eq!(unapplied.get(BUCKET, "b"), Some(None));
        fates[1].refused();
        unapplied.settle(9);
        assert!(unapplied.is_empty());
        assert_eq!(unapplied.get(BUCKET, "a"), None);
        assert_eq!(unapplied.bytes, 0);
    }

    #[test]
    fn bytes_under_way_are_bounded_but_one_batch_always_fits() {
        let mut unapplied = Unapplied::default();
        assert!(unapplied.has_room(BYTES_MAX + 1));
        unapplied.add(vec![write("a", "1")], Fate::default());
        assert!(unapplied.has_room(BYTES_MAX - 2));
        assert!(!unapplied.has_room(BYTES_MAX - 1));
    }
}
