//! What a store must be, written as plainly as can be.

use super::steps::{Act, Batch, BucketWanted, Wanted, key_of};
use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Model {
    pub(super) revision: u64,
    pub(super) buckets: [BTreeMap<String, Known>; 2],
    pub(super) bucket_revisions: [u64; 2],
    /// Milliseconds.
    pub(super) now: u64,
    pub(super) tick: u64,
    /// Whether an entry that ends at another time is written anew, so that everybody is told.
    pub(super) touch_writes: bool,
    /// Of each bucket what was changed at which revision: what who watches it has to see.
    pub(super) events: [Vec<Event>; 2],
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub(super) value: String,
    pub(super) revision: u64,
    pub(super) deadline: Option<u64>,
}

/// A revision, and each key that was changed: to a value, or how it went.
pub(super) type Event = (u64, BTreeMap<String, Result<String, Ending>>);

/// What came of a batch.
#[derive(Debug, PartialEq)]
pub(super) struct Done {
    pub(super) created: u64,
    pub(super) updated: u64,
    pub(super) touched: u64,
    pub(super) deleted: u64,
    pub(super) unchanged: u64,
    pub(super) number: Option<i64>,
}

impl Done {
    pub(super) fn of(committed: &Committed) -> Self {
        Self {
            created: committed.created,
            updated: committed.updated,
            touched: committed.touched,
            deleted: committed.deleted,
            unchanged: committed.unchanged,
            number: committed.number,
        }
    }

    pub(super) fn is_change(&self) -> bool {
        self.created + self.updated + self.deleted > 0
    }
}

impl Model {
    /// The batch as the store takes it: what depends on revisions is filled in.
    pub(super) fn batch(&self, batch: &Batch, ids: [BucketId; 2]) -> WriteBatch {
        let tick = Duration::from_millis(self.tick);
        // Nobody's clock is this one: times to live make up for it.
        let more = Duration::from_millis(if self.touch_writes { self.now } else { 0 });
        let write = |&(bucket, key, act, wanted): &(usize, u8, Act, Wanted)| {
            let expect = self.expected(bucket, key, wanted);
            let write = Write::new(ids[bucket], key_of(key), act.action(tick, more));
            write.expecting(expect)
        };
        let mut made = WriteBatch {
            writes: batch.writes.iter().map(write).collect(),
            replace: batch.replace.iter().map(|&bucket| ids[bucket]).collect(),
            dry_run: batch.dry_run,
            ..WriteBatch::default()
        };
        if let Some((bucket, wanted)) = batch.bucket {
            let (id, current) = (ids[bucket], self.bucket_revisions[bucket]);
            let expect = match wanted {
                BucketWanted::Empty => Expect::Absent,
                BucketWanted::NotEmpty => Expect::Present,
                BucketWanted::Current => Expect::At(Revision(current)),
                BucketWanted::Other => Expect::At(Revision(current + 1)),
                BucketWanted::Unchanged | BucketWanted::UnchangedLonger => Expect::Any,
            };
            made.expect = vec![(id, expect)];
            let since = match wanted {
                BucketWanted::Unchanged => Some(current),
                BucketWanted::UnchangedLonger => Some(current.saturating_sub(1)),
                _ => None,
            };
            let since = since.map(|since| Condition::Unchanged(id, Revision(since)));
            made.conditions = since.into_iter().collect();
        }
        made
    }

    fn expected(&self, bucket: usize, key: u8, wanted: Wanted) -> Expect {
        let known = self.buckets[bucket].get(&key_of(key));
        let current = known.map_or(77, |known| known.revision);
        match wanted {
            Wanted::Any => Expect::Any,
            Wanted::Absent => Expect::Absent,
            Wanted::Present => Expect::Present,
            Wanted::Current => Expect::At(Revision(current)),
            Wanted::Other => Expect::At(Revision(current + 1)),
        }
    }

    fn holds(&self, batch: &Batch) -> bool {
        let bucket_holds = match batch.bucket {
            None => true,
            Some((bucket, BucketWanted::Empty)) => self.buckets[bucket].is_empty(),
            Some((bucket, BucketWanted::NotEmpty)) => !self.buckets[bucket].is_empty(),
            Some((_, BucketWanted::Current | BucketWanted::Unchanged)) => true,
            Some((_, BucketWanted::Other)) => false,
            // Of what was never changed nothing is before.
            Some((bucket, BucketWanted::UnchangedLonger)) => self.bucket_revisions[bucket] == 0,
        };
        bucket_holds
            && batch.writes.iter().all(|&(bucket, key, _, wanted)| {
                let known = self.buckets[bucket].get(&key_of(key));
                match wanted {
                    Wanted::Any => true,
                    Wanted::Absent => known.is_none(),
                    Wanted::Present | Wanted::Current => known.is_some(),
                    Wanted::Other => false,
                }
            })
    }

    /// What comes of a batch at `revision`, if it changes anything; none for a conflict.
    pub(super) fn commit(&mut self, batch: &Batch, revision: u64) -> Option<Done> {
        if !self.holds(batch) {
            return None;
        }
        let before = self.clone();
        for &bucket in &batch.replace {
            self.buckets[bucket].clear();
        }
        let mut number = None;
        for &(bucket, key, act, _) in &batch.writes {
            match self.write(bucket, &key_of(key), act, revision) {
                Some(sum) => number = sum.or(number),
                None => {
                    *self = before;
                    return None;
                }
            }
        }
        let mut done = self.settle(&before, revision, Ending::Deleted);
        done.unchanged = batch
            .writes
            .iter()
            .map(|&(bucket, key, ..)| (bucket, key_of(key)))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|(bucket, key)| {
                let content = |model: &Self| {
                    let known = model.buckets[*bucket].get(key)?;
                    Some((known.value.clone(), known.deadline))
                };
                content(&before) == content(self)
            })
            .count() as u64;
        done.number = number;
        if batch.dry_run {
            *self = before;
        }
        Some(done)
    }

    /// The sum, if it is one; none if it cannot be done.
    fn write(&mut self, bucket: usize, key: &str, act: Act, revision: u64) -> Option<Option<i64>> {
        let ends = |ticks: Option<u8>| ticks.map(|it| self.now + u64::from(it) * self.tick);
        let known = self.buckets[bucket].get(key).cloned();
        let (value, deadline, number) = match (act, known) {
            (Act::Put(value, ttl), _) => (value.to_string(), ends(ttl), None),
            (Act::Delete, _) => {
                self.buckets[bucket].remove(key);
                return Some(None);
            }
            (Act::Touch(ttl), Some(known)) => (known.value, ends(ttl), None),
            (Act::Touch(_), None) => return None,
            (Act::Increment(by, ttl), known) => {
                let value = known
                    .as_ref()
                    .map_or(0, |it| it.value.parse::<i64>().unwrap());
                let sum = value + i64::from(by);
                let deadline = known.map_or_else(|| ends(ttl), |it| it.deadline);
                (sum.to_string(), deadline, Some(sum))
            }
        };
        let known = Known {
            value,
            revision,
            deadline,
        };
        self.buckets[bucket].insert(key.to_owned(), known);
        Some(number)
    }

    /// Compares with what there was: equal values keep their revision, and each change is an event.
    fn settle(&mut self, before: &Self, revision: u64, ending: Ending) -> Done {
        let (mut created, mut updated, mut touched, mut deleted) = (0, 0, 0, 0);
        for (bucket, old) in before.buckets.iter().enumerate() {
            let mut event = BTreeMap::new();
            for (key, known) in &mut self.buckets[bucket] {
                match old.get(key) {
                    Some(was) if was.value == known.value => {
                        let is_touched = was.deadline != known.deadline;
                        touched += u64::from(is_touched);
                        if !(is_touched && self.touch_writes) {
                            known.revision = was.revision;
                            continue;
                        }
                    }
                    Some(_) => updated += 1,
                    None => created += 1,
                }
                event.insert(key.clone(), Ok(known.value.clone()));
            }
            for key in old.keys() {
                if !self.buckets[bucket].contains_key(key) {
                    deleted += 1;
                    event.insert(key.clone(), Err(ending));
                }
            }
            if !event.is_empty() {
                self.revision = revision;
                self.bucket_revisions[bucket] = revision;
                self.events[bucket].push((revision, event));
            }
        }
        Done {
            created,
            updated,
            touched,
            deleted,
            unchanged: 0,
            number: None,
        }
    }

    /// Whether something has ended by a time.
    pub(super) fn ends_by(&self, now: u64) -> bool {
        let mut entries = self.buckets.iter().flat_map(BTreeMap::values);
        entries.any(|known| known.deadline.is_some_and(|deadline| deadline <= now))
    }

    /// What has ended goes, under one revision.
    pub(super) fn end(&mut self, revision: u64) {
        let (before, now) = (self.clone(), self.now);
        for bucket in &mut self.buckets {
            bucket.retain(|_, known| known.deadline.is_none_or(|deadline| deadline > now));
        }
        self.settle(&before, revision, Ending::Expired);
    }
}
