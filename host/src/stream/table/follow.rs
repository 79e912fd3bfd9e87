//! Which streams follow which entries of the store, and what a change does to them.
//!
//! Whoever watches the store is told by bits which buckets are followed here at all, so that the changes of others cost
//! this thread nothing.

use super::{Entry, Table};
use crate::store::{BucketId, Snapshot};
use crate::stream::{StreamId, Streams};
use std::collections::HashMap;
use std::sync::atomic::{Ordering::SeqCst, fence};

/// Streams by what they follow.
#[derive(Default)]
pub(in crate::stream) struct Follows {
    /// Places in the table by key, by bucket; never empty inside.
    buckets: HashMap<BucketId, HashMap<Box<str>, Vec<usize>>>,
}

impl Follows {
    fn insert(&mut self, bucket: BucketId, key: &str, index: usize) {
        let keys = self.buckets.entry(bucket).or_default();
        match keys.get_mut(key) {
            Some(indices) => indices.push(index),
            None => drop(keys.insert(key.into(), vec![index])),
        }
    }

    fn remove(&mut self, bucket: BucketId, key: &str, index: usize) {
        let Some(keys) = self.buckets.get_mut(&bucket) else {
            return;
        };
        if let Some(indices) = keys.get_mut(key) {
            if let Some(at) = indices.iter().position(|known| *known == index) {
                indices.swap_remove(at);
            }
            if indices.is_empty() {
                keys.remove(key);
            }
        }
        if keys.is_empty() {
            self.buckets.remove(&bucket);
        }
    }

    fn get(&self, bucket: BucketId, key: &str) -> &[usize] {
        let indices = self.buckets.get(&bucket).and_then(|keys| keys.get(key));
        indices.map_or(&[], |indices| indices)
    }

    fn bits(&self) -> u64 {
        self.buckets
            .keys()
            .fold(0, |bits, bucket| bits | bucket.bit())
    }
}

impl Streams {
    /// Puts a stream of the table among those that follow something.
    pub(super) fn begin_to_follow(&self, table: &mut Table, index: usize) {
        let Some(follow) = table.entries[index].follow() else {
            return;
        };
        table.follows.insert(follow.bucket, &follow.key, index);
        self.counted()
            .followed_buckets
            .fetch_or(follow.bucket.bit(), SeqCst);
        // Whoever publishes after this sees the bit, and what was published before is seen by the look that follows.
        fence(SeqCst);
    }

    /// Takes away a stream that has left the table.
    pub(super) fn end_to_follow(&self, table: &mut Table, index: usize, entry: &Entry) {
        if let Some(follow) = entry.follow() {
            table.follows.remove(follow.bucket, &follow.key, index);
            let bits = table.follows.bits();
            self.counted().followed_buckets.store(bits, SeqCst);
        }
    }

    /// Has the streams closed, as each is to be, that were routed by these entries when they had other values.
    pub fn entries_changed(&self, snapshot: &Snapshot, keys: &[(BucketId, Box<str>)]) {
        for (bucket, key) in keys {
            self.entry_changed(snapshot, *bucket, key);
        }
    }

    fn entry_changed(&self, snapshot: &Snapshot, bucket: BucketId, key: &str) {
        let mut table = self.table.borrow_mut();
        let value = snapshot.bucket(bucket).and_then(|bucket| bucket.get(key));
        let value = value.map(|entry| &entry.value);
        let followers = table.follows.get(bucket, key).iter();
        let outdated = followers.filter_map(|&index| {
            let entry = &table.entries[index];
            entry.is_outdated(value).then(|| (entry.id(), index))
        });
        let mut outdated: Vec<(StreamId, usize)> = outdated.collect();
        outdated.sort_unstable_by_key(|(id, _)| id.spread());
        let count = outdated.len() as f64;
        for (at, (id, index)) in outdated.into_iter().enumerate() {
            self.outdate(&mut table, index, (at as f64 + id.fraction()) / count);
        }
    }

    /// Notes that a stream is to be closed for a change.
    pub(super) fn outdate(&self, table: &mut Table, index: usize, share: f64) {
        let entry = &mut table.entries[index];
        entry.outdate(self.tick.get(), share);
        table.due = table.due.min(entry.due());
        // The next tick looks at all streams, however many there are.
        table.swept = 0;
    }
}
