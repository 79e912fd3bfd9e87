//! Which entries end when: kept by the writer, so that readers never look at a clock.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::backend::Change;
use super::record::Record;
use super::snapshot::Snapshot;
use super::{BucketId, clock::Deadline};

/// An entry that ends.
pub(super) struct Due {
    pub(super) at: Deadline,
    pub(super) record: Arc<Record>,
}

impl Due {
    fn of(record: &Arc<Record>) -> Option<Self> {
        let at = record.entry.deadline?;
        let record = Arc::clone(record);
        Some(Self { at, record })
    }

    fn order(&self) -> (Deadline, &[u8]) {
        (self.at, self.record.key_bytes())
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Due {}

/// Every entry with a deadline, by bucket, the next to end first.
#[derive(Default)]
pub(super) struct Deadlines {
    /// By [`BucketId`].
    buckets: Vec<BTreeSet<Due>>,
}

impl Deadlines {
    /// Those of a state; a bucket that is the very same as in `before` is taken as known.
    pub(super) fn read(&mut self, before: &Snapshot, after: &Snapshot) {
        self.buckets.resize_with(after.buckets.len(), BTreeSet::new);
        for (index, (bucket, due)) in after.buckets.iter().zip(&mut self.buckets).enumerate() {
            let known = before.buckets.get(index);
            if known.is_some_and(|known| known.table.is_same(&bucket.table))
                // The engine ends them, and its log tells.
                || bucket.config.backend.is_shared()
            {
                continue;
            }
            // Most buckets have none, and need not be looked through.
            *due = match bucket.table.ending() {
                0 => BTreeSet::new(),
                _ => {
                    let ending = bucket.table.iter();
                    let ending = ending.filter(|record| record.entry.deadline.is_some());
                    let ending = ending.map(|record| Arc::new(record.clone()));
                    ending.filter_map(|record| Due::of(&record)).collect()
                }
            };
        }
    }

    /// Follows a change that was made.
    pub(super) fn change(&mut self, change: &Change) {
        if change.bucket.backend.is_shared() {
            return;
        }
        let due = |record: &Option<Arc<Record>>| record.as_ref().and_then(Due::of);
        let Some(bucket) = self.buckets.get_mut(change.id.0 as usize) else {
            return;
        };
        if let Some(due) = due(&change.before) {
            bucket.remove(&due);
        }
        if let Some(due) = due(&change.after) {
            bucket.insert(due);
        }
    }

    /// When the next entry of a bucket of the config ends.
    pub(super) fn first(&self, snapshot: &Snapshot) -> Option<Deadline> {
        if self.buckets.iter().all(BTreeSet::is_empty) {
            return None;
        }
        let buckets = snapshot.ending();
        buckets
            .filter_map(|id| Some(self.buckets.get(id.0 as usize)?.first()?.at))
            .min()
    }

    /// At most `max` entries, of buckets of the config, that have ended at `now`.
    pub(super) fn ended(
        &self,
        snapshot: &Snapshot,
        now: u64,
        max: usize,
    ) -> Vec<(BucketId, Arc<Record>)> {
        let ended = snapshot.ending().flat_map(|id| {
            let due = self.buckets.get(id.0 as usize).into_iter().flatten();
            due.take_while(move |due| due.at.millis() <= now)
                .map(move |due| (id, Arc::clone(&due.record)))
        });
        ended.take(max).collect()
    }
}
