//! Which entries end when: kept by the writer, so that readers never look at a clock.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::backend::Change;
use super::record::Record;
use super::shared::LEAD;
use super::snapshot::Snapshot;
use super::{BackendKind, BucketId};

/// An entry, and when it is to be looked at.
struct Due {
    at: u64,
    record: Arc<Record>,
}

impl Due {
    fn order(&self) -> (u64, &[u8]) {
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
    buckets: Vec<BucketDeadlines>,
}

#[derive(Default)]
struct BucketDeadlines {
    due: BTreeSet<Due>,
    /// Those that proxies share and that are over then for sure: nobody is asked for them.
    sure: BTreeSet<Due>,
    /// When an entry that proxies share is looked at, if its deadline does not say it, and whether it is over then for sure.
    later: HashMap<Box<[u8]>, (u64, bool), ahash::RandomState>,
    /// Entries that were taken for over by this proxy's clock, while the engine was away: it is asked when it is back.
    doubted: Vec<Arc<Record>>,
}

impl BucketDeadlines {
    /// When an entry is looked at; none if it does not end. Of those that proxies share, the engine is asked a little before.
    fn at(&self, record: &Record, is_shared: bool) -> Option<u64> {
        let deadline = record.entry.deadline?.millis();
        if !is_shared {
            return Some(deadline);
        }
        let later = self.later.get(record.key_bytes());
        let early = deadline.saturating_sub(LEAD.as_millis() as u64);
        Some(later.map_or(early, |(at, _)| *at))
    }

    /// Where an entry is that ends.
    fn queue(&mut self, key: &[u8]) -> &mut BTreeSet<Due> {
        match self.later.get(key) {
            Some((_, true)) => &mut self.sure,
            _ => &mut self.due,
        }
    }

    fn add(&mut self, record: &Arc<Record>, is_shared: bool) {
        if let Some(at) = self.at(record, is_shared) {
            let due = Due {
                at,
                record: Arc::clone(record),
            };
            self.queue(record.key_bytes()).insert(due);
        }
    }

    fn remove(&mut self, record: &Arc<Record>, is_shared: bool) {
        if let Some(at) = self.at(record, is_shared) {
            let due = Due {
                at,
                record: Arc::clone(record),
            };
            self.queue(record.key_bytes()).remove(&due);
        }
        if !self.later.is_empty() {
            self.later.remove(record.key_bytes());
        }
    }
}

impl Deadlines {
    /// Those of a state; a bucket that is the very same as in `before` is taken as known.
    pub(super) fn read(&mut self, before: &Snapshot, after: &Snapshot) {
        self.buckets
            .resize_with(after.buckets.len(), BucketDeadlines::default);
        for (index, (bucket, deadlines)) in after.buckets.iter().zip(&mut self.buckets).enumerate()
        {
            let known = before.buckets.get(index);
            if known.is_some_and(|known| known.table.is_same(&bucket.table)) {
                continue;
            }
            // What is hidden is so with values of another kind, too.
            *deadlines = BucketDeadlines {
                doubted: std::mem::take(&mut deadlines.doubted),
                ..BucketDeadlines::default()
            };
            // Most buckets have none, and need not be looked through.
            if bucket.table.ending() > 0 {
                let ending = bucket.table.iter();
                let ending = ending.filter(|record| record.entry.deadline.is_some());
                for record in ending {
                    let record = Arc::new(record.clone());
                    deadlines.add(&record, bucket.config.backend.is_shared());
                }
            }
        }
    }

    /// Follows a change that was made.
    pub(super) fn change(&mut self, change: &Change) {
        let is_shared = change.bucket.backend.is_shared();
        let Some(bucket) = self.buckets.get_mut(change.id.0 as usize) else {
            return;
        };
        if let Some(before) = &change.before {
            bucket.remove(before, is_shared);
        }
        if let Some(after) = &change.after {
            bucket.add(after, is_shared);
        }
    }

    /// When the next entry of a bucket of the config is to be looked at.
    pub(super) fn first(&self, snapshot: &Snapshot) -> Option<u64> {
        let ends = |bucket: &BucketDeadlines| !bucket.due.is_empty() || !bucket.sure.is_empty();
        if !self.buckets.iter().any(ends) {
            return None;
        }
        let buckets = snapshot.ending();
        let buckets = buckets.filter_map(|id| self.buckets.get(id.0 as usize));
        let first = buckets.flat_map(|bucket| [bucket.due.first(), bucket.sure.first()]);
        first.flatten().map(|due| due.at).min()
    }

    /// At most `max` entries, of buckets of the config and backends that are asked for, that are to be looked at by `now`; or,
    /// of those that proxies share, that are over for sure by then.
    pub(super) fn due(
        &self,
        snapshot: &Snapshot,
        is_wanted: impl Fn(BackendKind) -> bool,
        sure: bool,
        (now, max): (u64, usize),
    ) -> Vec<(BucketId, Arc<Record>)> {
        let wanted = snapshot.ending().filter(|id| {
            let bucket = snapshot.bucket(*id);
            bucket.is_some_and(|bucket| is_wanted(bucket.config.backend))
        });
        let due = wanted.flat_map(|id| {
            let bucket = self.buckets.get(id.0 as usize);
            let due = bucket.into_iter().flat_map(move |bucket| match sure {
                true => &bucket.sure,
                false => &bucket.due,
            });
            let due = due.take_while(move |due| due.at <= now);
            due.map(move |due| (id, Arc::clone(&due.record)))
        });
        due.take(max).collect()
    }

    /// Has an entry that proxies share looked at again then, when it is over for sure or not.
    pub(super) fn look_again(&mut self, id: BucketId, record: &Arc<Record>, at: u64, sure: bool) {
        if let Some(bucket) = self.buckets.get_mut(id.0 as usize) {
            bucket.remove(record, true);
            bucket.later.insert(record.key_bytes().into(), (at, sure));
            bucket.add(record, true);
        }
    }

    /// An entry that proxies share is over; in doubt if only this proxy's clock says so.
    pub(super) fn is_over(&mut self, id: BucketId, record: &Arc<Record>, in_doubt: bool) {
        if let Some(bucket) = self.buckets.get_mut(id.0 as usize) {
            bucket.remove(record, true);
            if in_doubt {
                bucket.doubted.push(Arc::clone(record));
            }
        }
    }

    /// Whether there is any entry on a backend of which it is in doubt whether it is over.
    pub(super) fn has_doubt(&self) -> bool {
        self.buckets.iter().any(|bucket| !bucket.doubted.is_empty())
    }

    /// Takes at most `max` entries on a backend of which it is in doubt whether they are over.
    pub(super) fn take_doubted(
        &mut self,
        snapshot: &Snapshot,
        backend: BackendKind,
        max: usize,
    ) -> Vec<(BucketId, Arc<Record>)> {
        let mut taken = Vec::new();
        for (id, bucket) in (0..).map(BucketId).zip(&mut self.buckets) {
            let found = snapshot.bucket(id);
            if found.is_some_and(|found| found.config.backend == backend) {
                let kept = bucket.doubted.len().saturating_sub(max - taken.len());
                let some = bucket.doubted.drain(kept..);
                taken.extend(some.map(|record| (id, record)));
            }
        }
        taken
    }
}
