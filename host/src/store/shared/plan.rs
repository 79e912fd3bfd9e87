//! What the engine is asked for a batch: conditions for what its outcome depends on, and what is to be written.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ahash::RandomState;

use super::room::Growths;
use super::{Author, Condition as SharedCondition, Life, SharedValue, SharedWrite, Transaction};
use crate::store::apply::apply;
use crate::store::backend::Change;
use crate::store::{
    Action, BackendKind, Bucket, BucketId, CommitError, Committed, Condition, Deadline, Expect,
    LookupKind, Revision, Snapshot, Write, WriteBatch,
};

/// What would come of a batch by the state that this process has, and what to ask the engine.
pub(super) struct Plan {
    pub(super) outcome: Result<Committed, CommitError>,
    pub(super) transaction: Transaction,
    pub(super) growths: Growths,
    /// Whether the entry of the last write is there afterwards, if it is changed.
    pub(super) last: Option<bool>,
    /// The buckets of the backend whose limits may matter, and up to where the state has all of them.
    known: Vec<(BucketId, Box<str>, Revision)>,
    /// Where the conditions begin of keys that are only to stay as they are, and have no deadline.
    staying: usize,
}

/// What a batch depends on of a key that it writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Nothing.
    #[default]
    Nothing,
    /// That it is as it is to be already.
    Staying,
    /// What it is.
    Known,
}

/// The state that a batch is judged by.
struct Known<'s> {
    snapshot: &'s Snapshot,
    backend: BackendKind,
    /// It has everything of the backend up to there.
    revision: Revision,
}

impl Known<'_> {
    /// The bucket if it is of the backend.
    fn bucket(&self, id: BucketId) -> Option<&Bucket> {
        let bucket = self.snapshot.bucket(id);
        bucket.filter(|bucket| bucket.config.backend == self.backend)
    }

    fn named(&self, name: &str) -> Option<&Bucket> {
        let mut buckets = self.snapshot.buckets.iter();
        buckets.find(|it| it.config.name == name && it.config.backend == self.backend)
    }

    /// Up to where the state has all of a bucket.
    fn of(&self, bucket: &Bucket) -> Revision {
        bucket.revision.max(self.revision)
    }

    fn at(&self, bucket: &Bucket, key: &str) -> SharedCondition {
        let name = bucket.config.name.as_str().into();
        let key: Box<str> = key.into();
        match bucket.over(&key) {
            Some(over) => SharedCondition::Over {
                bucket: name,
                revision: over.entry.revision,
                key,
            },
            None => SharedCondition::At {
                bucket: name,
                revision: bucket.get(&key).map(|entry| entry.revision),
                key,
            },
        }
    }

    fn unchanged(&self, bucket: &Bucket) -> SharedCondition {
        SharedCondition::Unchanged {
            bucket: bucket.config.name.as_str().into(),
            since: self.of(bucket),
        }
    }
}

impl Plan {
    /// Judges a batch, which is no dry run; none asks the engine nothing, since everybody would refuse the batch.
    pub(super) fn new(
        snapshot: &Snapshot,
        (backend, revision): (BackendKind, Revision),
        batch: &WriteBatch,
        now: u64,
    ) -> Result<Self, CommitError> {
        let mut next = Snapshot::clone(snapshot);
        let mut changes = Vec::new();
        let outcome = apply(&mut next, batch, now, &mut changes);
        let known = Known {
            snapshot,
            backend,
            revision,
        };
        match &outcome {
            Ok(_) => Ok(Self::writing(&known, batch, outcome, (&changes, now))),
            Err(error) => {
                let condition = what_refuses(&known, batch, error);
                let condition = condition.ok_or_else(|| error.clone())?;
                Ok(Self {
                    outcome,
                    transaction: Transaction {
                        conditions: vec![condition],
                        ..Transaction::default()
                    },
                    growths: Growths::default(),
                    last: None,
                    known: Vec::new(),
                    staying: 1,
                })
            }
        }
    }

    fn writing(
        known: &Known<'_>,
        batch: &WriteBatch,
        outcome: Result<Committed, CommitError>,
        (changes, now): (&[Change], u64),
    ) -> Self {
        let changed: HashMap<(BucketId, &[u8]), &Change, RandomState> = changes
            .iter()
            .map(|change| ((change.id, change.key()), change))
            .collect();
        let last = batch.writes.last();
        let last = last.and_then(|write| changed.get(&(write.bucket, write.key.as_bytes())));
        let last = last.map(|change| change.after.is_some());
        let mut read: HashMap<(BucketId, &str), Need, RandomState> = HashMap::default();
        // Keys that are written otherwise than by counting.
        let mut put: HashSet<(BucketId, &[u8]), RandomState> = HashSet::default();
        for write in &batch.writes {
            let at = (write.bucket, &*write.key);
            let is_blind = write.expect == Expect::Any
                && matches!(write.action, Action::Put { .. } | Action::Delete);
            let need = match is_blind {
                true if changed.contains_key(&(at.0, at.1.as_bytes())) => Need::Nothing,
                true => Need::Staying,
                false => Need::Known,
            };
            let needed = read.entry(at).or_default();
            *needed = need.max(*needed);
            if !matches!(write.action, Action::Increment { .. }) {
                put.insert((at.0, at.1.as_bytes()));
            }
        }
        let (mut conditions, mut staying) = (Vec::new(), Vec::new());
        for ((id, key), need) in read {
            let Some(bucket) = known.bucket(id).filter(|_| need > Need::Nothing) else {
                continue;
            };
            // What ends may do so unnoticed by who asks of the whole bucket.
            let lasts = || match bucket.get(key) {
                Some(entry) => entry.deadline.is_none(),
                None => bucket.over(key).is_none(),
            };
            match need == Need::Staying && lasts() {
                true => staying.push(known.at(bucket, key)),
                false => conditions.push(known.at(bucket, key)),
            }
        }
        let whole = batch.replace.iter().copied();
        let whole = whole.chain(batch.expect.iter().map(|(id, _)| *id));
        let whole = whole.chain(batch.conditions.iter().filter_map(|it| match it {
            Condition::Unchanged(id, _) => Some(*id),
            Condition::Unmarked(..) => None,
        }));
        let mut whole: Vec<BucketId> = whole.collect();
        whole.sort_unstable();
        whole.dedup();
        let whole = whole.into_iter().filter_map(|id| known.bucket(id));
        conditions.extend(whole.map(|bucket| known.unchanged(bucket)));
        for condition in &batch.conditions {
            let Condition::Unmarked(key, _) = condition else {
                continue;
            };
            let marks = known.snapshot.marks_on(known.backend);
            if let Some(marks) = marks.and_then(|id| known.bucket(id)) {
                conditions.push(known.at(marks, key));
            }
        }
        let is_kept = |change: &Change| {
            let is_there = change.before.is_some() && !batch.replace.contains(&change.id);
            is_there && !put.contains(&(change.id, change.key()))
        };
        let life = |change: &Change, deadline: Option<Deadline>| match deadline {
            // Its deadline is by another clock than `now`.
            _ if is_kept(change) => Life::AsBefore,
            None => Life::Lasting,
            Some(deadline) => {
                let left = deadline.millis().saturating_sub(now).max(1);
                Life::For(Duration::from_millis(left))
            }
        };
        let writes = changes.iter().map(|change| SharedWrite {
            bucket: change.bucket.name.as_str().into(),
            key: String::from_utf8_lossy(change.key()).into(),
            value: change.after.as_ref().map(|record| SharedValue {
                bytes: record.entry.value.to_bytes().into(),
                life: life(change, record.entry.deadline),
            }),
        });
        let written = batch.writes.iter().map(|write| write.bucket);
        let written = written.chain(changes.iter().map(|change| change.id));
        let mut written: Vec<BucketId> = written.collect();
        written.sort_unstable();
        written.dedup();
        let written = written.into_iter().filter_map(|id| {
            let bucket = known.bucket(id)?;
            let name = bucket.config.name.as_str().into();
            Some((id, name, known.of(bucket)))
        });
        let asked = conditions.len();
        conditions.append(&mut staying);
        Self {
            outcome,
            transaction: Transaction {
                conditions,
                writes: writes.collect(),
                sized: Vec::new(),
                author: author_of(batch, changes),
            },
            growths: Growths::of(changes),
            last,
            known: written.collect(),
            staying: asked,
        }
    }

    /// Asks of whole buckets what it would ask of each key that is only to stay as it is, if there is no room for each: then it
    /// meets a conflict also when somebody writes other keys.
    pub(super) fn fit(&mut self, takes: impl Fn(&Transaction) -> bool) {
        let asked = self.transaction.conditions.len();
        if self.staying == asked {
            return;
        }
        // Of each bucket it may be asked what it holds, beside: see [`Self::guard`].
        let beside = self.known.iter().map(|(_, name, since)| {
            let (bucket, since) = (name.clone(), *since);
            SharedCondition::Unchanged { bucket, since }
        });
        self.transaction.conditions.extend(beside);
        let has_room = takes(&self.transaction);
        self.transaction.conditions.truncate(asked);
        if !has_room {
            self.ask_of_buckets(self.staying);
        }
    }

    /// Leaves no more of a dry run that the engine does not take than whether its buckets are as they are known.
    pub(super) fn without_keys(mut self) -> Self {
        self = self.without_writes();
        self.ask_of_buckets(0);
        self
    }

    fn ask_of_buckets(&mut self, from: usize) {
        let conditions = &mut self.transaction.conditions;
        let of_keys = conditions.split_off(from);
        let mut asked = HashSet::new();
        for condition in of_keys {
            let bucket = condition.bucket();
            let known = self.known.iter().find(|(_, name, _)| **name == *bucket);
            match known {
                None => conditions.push(condition),
                Some((id, name, since)) => {
                    let (bucket, since) = (name.clone(), *since);
                    let whole = SharedCondition::Unchanged { bucket, since };
                    if asked.insert(*id) && !conditions.contains(&whole) {
                        conditions.push(whole);
                    }
                }
            }
        }
    }

    /// Has the engine see to it that nobody else changes meanwhile what these buckets hold.
    pub(super) fn guard(&mut self, growing: &[BucketId], shrinking: &[BucketId]) {
        for (id, name, since) in &self.known {
            let grows = growing.contains(id);
            if grows {
                let (bucket, since) = (name.clone(), *since);
                let condition = SharedCondition::Sized { bucket, since };
                self.transaction.conditions.push(condition);
            }
            if grows || shrinking.contains(id) {
                self.transaction.sized.push(name.clone());
            }
        }
    }

    /// Leaves the conditions only.
    pub(super) fn without_writes(mut self) -> Self {
        self.transaction.writes.clear();
        self.growths = Growths::default();
        // What a dry run has always told.
        if let Ok(committed) = &mut self.outcome {
            committed.entry = None;
        }
        self
    }

    /// What the batch did, with the engine's revision.
    pub(super) fn committed(
        last: Option<bool>,
        batch: &WriteBatch,
        planned: Committed,
        (revision, seen): (Revision, Revision),
    ) -> Committed {
        let entry = match last {
            Some(is_there) => is_there.then_some(revision),
            None if batch.writes.is_empty() => None,
            None => planned.entry,
        };
        Committed {
            revision,
            seen,
            entry,
            ..planned
        }
    }
}

/// Who is told to make a batch, if anybody keeps that.
fn author_of(batch: &WriteBatch, changes: &[Change]) -> Option<Author> {
    let is_kept = changes.iter().any(|change| change.bucket.history > 0);
    let author = Author {
        by: batch.by.as_deref().map(Into::into),
        undo: batch.undo,
    };
    (is_kept && (author.by.is_some() || author.undo)).then_some(author)
}

/// What has to be as this process knows it for a batch to be refused so; none if everybody would refuse it, because that
/// does not depend on the state, or on what only grows.
fn what_refuses(
    known: &Known<'_>,
    batch: &WriteBatch,
    error: &CommitError,
) -> Option<SharedCondition> {
    match error {
        CommitError::Conflict { bucket, key, .. } => Some(known.at(known.named(bucket)?, key)),
        CommitError::BucketConflict { bucket, .. } => Some(known.unchanged(known.named(bucket)?)),
        CommitError::Quota { bucket, .. } => {
            let bucket = known.named(bucket)?;
            Some(SharedCondition::Sized {
                bucket: bucket.config.name.as_str().into(),
                since: known.of(bucket),
            })
        }
        // What is added to may have become a number.
        CommitError::Invalid { bucket, key, .. } => {
            let bucket = known.named(bucket)?;
            let is_it = |id| known.bucket(id).is_some_and(|it| std::ptr::eq(it, bucket));
            let adds = batch.writes.iter().any(|write| {
                matches!(write.action, Action::Increment { .. })
                    && *write.key == **key
                    && is_it(write.bucket)
            });
            adds.then(|| known.at(bucket, key))
        }
        CommitError::Changed { .. }
        | CommitError::Marked { .. }
        | CommitError::NoSuchBucket
        | CommitError::Mixed { .. }
        | CommitError::TooLarge { .. }
        | CommitError::Unavailable(_)
        | CommitError::Unknown(_)
        | CommitError::Unseen { .. }
        | CommitError::Lost { .. } => None,
    }
}

/// The least number of writes that a batch comes to, without a look at any entry.
pub(super) fn writes_min(snapshot: &Snapshot, batch: &WriteBatch) -> usize {
    let mut replaced = batch.replace.clone();
    replaced.sort_unstable();
    replaced.dedup();
    let replaced = replaced.into_iter().filter_map(|id| snapshot.bucket(id));
    let held: u64 = replaced.map(Bucket::len).sum();
    usize::try_from(held)
        .unwrap_or(usize::MAX)
        .saturating_sub(batch.writes.len())
}

/// Bytes of the longest name of a bucket, and of the largest key with its value, among what a batch writes.
pub(super) fn largest(snapshot: &Snapshot, batch: &WriteBatch) -> (usize, usize) {
    let name = |write: &Write| {
        let bucket = snapshot.bucket(write.bucket);
        bucket.map_or(0, |bucket| bucket.config.name.len())
    };
    let entry = |write: &Write| write.key.len() + value_bytes(write);
    let (names, entries) = (
        batch.writes.iter().map(name),
        batch.writes.iter().map(entry),
    );
    (names.max().unwrap_or(0), entries.max().unwrap_or(0))
}

fn value_bytes(write: &Write) -> usize {
    match &write.action {
        Action::Put { value, .. } => value.len(),
        Action::Delete | Action::Touch { .. } | Action::Increment { .. } => 0,
    }
}

/// Whether judging a batch takes so long that a thread which serves others should not do it.
pub(super) fn is_long(snapshot: &Snapshot, batch: &WriteBatch) -> bool {
    const WRITES_MAX: usize = 256;
    const BYTES_MAX: usize = 128 << 10;
    // All of a bucket's are compiled when one comes or goes.
    let is_regex = |write: &Write| {
        let bucket = snapshot.bucket(write.bucket);
        bucket.is_some_and(|bucket| bucket.kind_of(&write.key) == LookupKind::Regex)
    };
    let may_have_regexes = |id: &BucketId| {
        let bucket = snapshot.bucket(*id);
        bucket.is_some_and(|bucket| bucket.config.lookup.has(LookupKind::Regex))
    };
    batch.writes.len() > WRITES_MAX
        || writes_min(snapshot, batch) > WRITES_MAX
        || batch.writes.iter().map(value_bytes).sum::<usize>() > BYTES_MAX
        || batch.writes.iter().any(is_regex)
        || batch.replace.iter().any(may_have_regexes)
}

#[cfg(test)]
mod tests;
