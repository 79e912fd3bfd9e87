//! A batch against a snapshot: everything that can be wrong with it is found before anything changes.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use indexmap::IndexMap;

use super::backend::Change;
use super::batch::{
    Action, CommitError, Committed, Condition, Expect, Write, WriteBatch, check_key,
};
use super::clock::{Deadline, check_ttl, check_until, deadline_after};
use super::history::Origin;
use super::patterns::Regexes;
use super::record::Record;
use super::snapshot::{Bucket, Entry, Snapshot};
use super::{BucketId, Revision, Value};

/// What a key is to become: a value and when it ends, or nothing.
type Content = Option<(Value, Option<Deadline>)>;

/// From as many changes on, a bucket takes all of its own together.
const TOGETHER: usize = 16;

/// What each key of the batch is to become, after all of its writes; in their order, which is often that of a data file.
struct Wanted<'a> {
    keys: IndexMap<(BucketId, &'a str), Content, RandomState>,
    /// What the last increment came to.
    number: Option<i64>,
}

/// An entry before and after.
type Planned = (BucketId, Option<Arc<Record>>, Option<Arc<Record>>);

/// Applies a batch to `snapshot` at the time `now` and appends what has to be made durable to `changes`; after an error,
/// and after a dry run, both are as they were.
pub(super) fn apply(
    snapshot: &mut Snapshot,
    batch: &WriteBatch,
    now: u64,
    changes: &mut Vec<Change>,
) -> Result<Committed, CommitError> {
    let wanted = check(snapshot, batch, now)?;
    let revision = Revision(snapshot.revision.0 + 1);
    let mut committed = Committed {
        revision: snapshot.revision,
        seen: snapshot.revision,
        created: 0,
        updated: 0,
        touched: 0,
        deleted: 0,
        unchanged: 0,
        entry: None,
        number: wanted.number,
    };
    let mut planned = Vec::new();
    for (&(id, key), content) in &wanted.keys {
        let before = bucket(snapshot, id)?.table.get(key);
        let entry = |(value, deadline): &(Value, Option<Deadline>), revision| Entry {
            value: value.clone(),
            revision,
            deadline: *deadline,
        };
        let after = match (before, content) {
            (None, None) => {
                committed.unchanged += 1;
                continue;
            }
            (Some(before), Some(content)) if before.entry.value == content.0 => {
                if before.entry.deadline == content.1 {
                    committed.unchanged += 1;
                    continue;
                }
                committed.touched += 1;
                Some(entry(content, before.entry.revision))
            }
            (Some(_), Some(content)) => {
                committed.updated += 1;
                Some(entry(content, revision))
            }
            (None, Some(content)) => {
                committed.created += 1;
                Some(entry(content, revision))
            }
            (Some(_), None) => {
                committed.deleted += 1;
                None
            }
        };
        let after = after.map(|entry| Arc::new(Record::new(key, entry)));
        let before = before.cloned().map(Arc::new);
        planned.push((id, before, after));
    }
    let mut replaced = batch.replace.clone();
    replaced.sort_unstable();
    replaced.dedup();
    for id in replaced {
        for record in bucket(snapshot, id)?.table.iter() {
            if !wanted.keys.contains_key(&(id, record.key())) {
                committed.deleted += 1;
                planned.push((id, Some(Arc::new(record.clone())), None));
            }
        }
    }
    check_quotas(snapshot, &planned)?;
    if committed.created + committed.updated + committed.deleted > 0 {
        (committed.revision, committed.seen) = (revision, revision);
    }
    let compiled = compile(snapshot, &planned)?;
    if batch.dry_run {
        return Ok(committed);
    }
    for (id, regexes) in compiled {
        let bucket = &mut snapshot.buckets[id.0 as usize];
        if let Some(patterns) = &mut bucket.patterns {
            Arc::make_mut(patterns).set_regexes(regexes);
        }
    }
    let origin = Origin {
        by: batch.by.clone(),
        at: now,
        undo: batch.undo,
    };
    execute(
        snapshot,
        committed.revision,
        planned,
        (origin, false),
        changes,
    );
    committed.entry = batch
        .writes
        .last()
        .and_then(|write| Some(snapshot.bucket(write.bucket)?.get(&write.key)?.revision));
    Ok(committed)
}

/// Deletes entries that have ended at the time `now`, under one revision.
pub(super) fn expire(
    snapshot: &mut Snapshot,
    ended: Vec<(BucketId, Arc<Record>)>,
    now: u64,
    changes: &mut Vec<Change>,
) {
    let revision = Revision(snapshot.revision.0 + 1);
    let planned = ended.into_iter();
    let planned = planned.map(|(id, record)| (id, Some(record), None));
    let origin = Origin {
        by: None,
        at: now,
        undo: false,
    };
    let planned = planned.collect();
    execute(snapshot, revision, planned, (origin, true), changes);
    settle(snapshot);
}

/// Compiles the regular expressions among keys that came or went, where it is not done.
pub(super) fn settle(snapshot: &mut Snapshot) {
    for bucket in &mut snapshot.buckets {
        if let Some(patterns) = &mut bucket.patterns
            && patterns.is_unsettled()
        {
            Arc::make_mut(patterns).settle(&bucket.config.name);
        }
    }
}

/// What the regular expressions of buckets will be, of those in which one comes or goes.
fn compile(
    snapshot: &Snapshot,
    planned: &[Planned],
) -> Result<Vec<(BucketId, Arc<Regexes>)>, CommitError> {
    let mut changed: HashMap<BucketId, Vec<(&str, bool)>> = HashMap::new();
    for (id, before, after) in planned {
        let is_pattern = |key| bucket(snapshot, *id).is_ok_and(|bucket| bucket.is_pattern(key));
        if snapshot.buckets[id.0 as usize].patterns.is_some()
            && let Some(record) = after.as_ref().or(before.as_ref())
            && is_pattern(record.key())
        {
            let keys = changed.entry(*id).or_default();
            keys.push((record.key(), after.is_some()));
        }
    }
    let mut compiled = Vec::new();
    for (id, keys) in changed {
        let bucket = &snapshot.buckets[id.0 as usize];
        let Some(patterns) = &bucket.patterns else {
            continue;
        };
        let regexes = patterns.compiled_after(keys.into_iter(), bucket.config.regexes_max);
        let regexes = regexes.map_err(|reason| CommitError::Quota {
            bucket: bucket.config.name.clone(),
            reason,
        })?;
        compiled.extend(regexes.map(|regexes| (id, regexes)));
    }
    Ok(compiled)
}

fn execute(
    snapshot: &mut Snapshot,
    revision: Revision,
    planned: Vec<Planned>,
    (origin, expired): (Origin, bool),
    changes: &mut Vec<Change>,
) {
    snapshot.revision = revision;
    let together = planned.len() >= TOGETHER;
    if together {
        let mut written: HashMap<BucketId, [Vec<&Record>; 2]> = HashMap::new();
        for (id, before, after) in &planned {
            let [put, gone] = written.entry(*id).or_default();
            match (before, after) {
                (_, Some(record)) => put.push(record),
                (Some(record), None) => gone.push(record),
                (None, None) => {}
            }
        }
        for (id, [put, gone]) in written {
            let bucket = &mut snapshot.buckets[id.0 as usize];
            bucket.insert_all(&put);
            bucket.remove_all(&gone);
        }
    }
    // Made once, by the first change that needs it.
    let origin = LazyCell::new(|| Arc::new(origin));
    for (id, before, after) in planned {
        let bucket = &mut snapshot.buckets[id.0 as usize];
        match (&before, &after) {
            _ if together => {}
            (_, Some(record)) => bucket.insert(record),
            (Some(record), None) => bucket.remove(record.key()),
            (None, None) => {}
        }
        let mut change = Change {
            bucket: Arc::clone(&bucket.config),
            id,
            before,
            after,
            bucket_before: bucket.revision,
            bucket_after: bucket.revision,
            expired,
            origin: (bucket.config.history > 0).then(|| Arc::clone(&origin)),
        };
        if !change.is_touch() {
            change.bucket_after = revision;
            bucket.revision = revision;
        }
        changes.push(change);
    }
}

/// Checks every write by itself and its expectation, all against the snapshot as it is.
fn check<'a>(
    snapshot: &Snapshot,
    batch: &'a WriteBatch,
    now: u64,
) -> Result<Wanted<'a>, CommitError> {
    for &id in &batch.replace {
        bucket(snapshot, id)?;
    }
    batch
        .conditions
        .iter()
        .try_for_each(|condition| check_condition(snapshot, condition))?;
    for &(id, expect) in &batch.expect {
        check_bucket(bucket(snapshot, id)?, expect)?;
    }
    let mut wanted = Wanted {
        keys: IndexMap::with_capacity_and_hasher(batch.writes.len(), RandomState::new()),
        number: None,
    };
    for write in &batch.writes {
        let bucket = bucket(snapshot, write.bucket)?;
        let invalid = |reason: String| CommitError::Invalid {
            bucket: bucket.config.name.clone(),
            key: write.key.to_string(),
            reason,
        };
        check_key(&write.key).map_err(invalid)?;
        // What is there was checked before.
        if write.action != Action::Delete && bucket.get(&write.key).is_none() {
            let lookup = bucket.config.lookup;
            lookup.check(&write.key).map_err(invalid)?;
        }
        check_expectation(bucket, write)?;
        let ends = |ttl: Option<Duration>| match ttl {
            Some(ttl) => check_ttl(ttl)
                .map(|()| deadline_after(now, ttl))
                .map_err(invalid),
            None => Ok(None),
        };
        let at = (write.bucket, &*write.key);
        let current = || match wanted.keys.get(&at) {
            Some(earlier) => earlier.clone(),
            None if batch.replace.contains(&write.bucket) => None,
            None => {
                let entry = bucket.get(&write.key)?;
                Some((entry.value.clone(), entry.deadline))
            }
        };
        let content = match &write.action {
            Action::Put { value, ttl } => {
                let value = Value::parse(bucket.config.values, value);
                let value = value.map_err(|error| invalid(error.0))?;
                if let Some(until) = write.until {
                    check_until(now, until).map_err(invalid)?;
                }
                Some((value, write.until.or(ends(*ttl)?)))
            }
            Action::Delete => None,
            Action::Touch { ttl } => match current() {
                Some((value, _)) => Some((value, ends(*ttl)?)),
                None => return Err(conflict(bucket, write, None)),
            },
            Action::Increment { by, ttl } => {
                let (known, deadline) = match current() {
                    Some((value, deadline)) => (Some(value), deadline),
                    None => (None, ends(*ttl)?),
                };
                let kind = bucket.config.values;
                let (number, value) = Value::increment(kind, known.as_ref(), *by)
                    .map_err(|error| invalid(error.0))?;
                wanted.number = Some(number);
                Some((value, deadline))
            }
        };
        wanted.keys.insert(at, content);
    }
    Ok(wanted)
}

fn check_condition(snapshot: &Snapshot, condition: &Condition) -> Result<(), CommitError> {
    match condition {
        Condition::Unchanged(id, since) => {
            let bucket = bucket(snapshot, *id)?;
            if bucket.revision > *since {
                return Err(CommitError::Changed {
                    bucket: bucket.config.name.clone(),
                    revision: bucket.revision,
                });
            }
        }
        Condition::Unmarked(key, seen) => {
            let found = snapshot.mark(key).map(|mark| mark.revision);
            if found != *seen {
                return Err(CommitError::Marked {
                    key: key.to_string(),
                    revision: found.unwrap_or(snapshot.revision),
                });
            }
        }
    }
    Ok(())
}

fn conflict(bucket: &Bucket, write: &Write, found: Option<Revision>) -> CommitError {
    CommitError::Conflict {
        bucket: bucket.config.name.clone(),
        key: write.key.to_string(),
        found,
    }
}

fn check_expectation(bucket: &Bucket, write: &Write) -> Result<(), CommitError> {
    if write.expect == Expect::Any {
        return Ok(());
    }
    let found = bucket.get(&write.key).map(|entry| entry.revision);
    let holds = match write.expect {
        Expect::Any => true,
        Expect::Absent => found.is_none(),
        Expect::Present => found.is_some(),
        Expect::At(revision) => found == Some(revision),
    };
    if holds {
        return Ok(());
    }
    Err(conflict(bucket, write, found))
}

fn check_bucket(bucket: &Bucket, expect: Expect) -> Result<(), CommitError> {
    let holds = match expect {
        Expect::Any => true,
        Expect::Absent => bucket.is_empty(),
        Expect::Present => !bucket.is_empty(),
        Expect::At(revision) => bucket.revision == revision,
    };
    if holds {
        return Ok(());
    }
    Err(CommitError::BucketConflict {
        bucket: bucket.config.name.clone(),
        empty: bucket.is_empty() && expect == Expect::Present,
        found: bucket.revision,
    })
}

/// A bucket that takes writes: one of the config, that of the marks, or that of the fleet.
fn bucket(snapshot: &Snapshot, id: BucketId) -> Result<&Bucket, CommitError> {
    let takes_writes = |bucket: &&Bucket| {
        snapshot.bucket_id(&bucket.config.name) == Some(id)
            || snapshot.marks.contains(&id)
            || snapshot.fleet == Some(id)
    };
    snapshot
        .bucket(id)
        .filter(takes_writes)
        .ok_or(CommitError::NoSuchBucket)
}

/// A bucket may exceed a limit only by having it lowered: then it may shrink, but not grow.
fn check_quotas(snapshot: &Snapshot, planned: &[Planned]) -> Result<(), CommitError> {
    let mut grown: HashMap<BucketId, (i128, i128)> = HashMap::new();
    for (id, before, after) in planned {
        let (keys, bytes) = grown.entry(*id).or_default();
        *keys += i128::from(after.is_some()) - i128::from(before.is_some());
        let size =
            |record: &Option<Arc<Record>>| record.as_ref().map_or(0, |r| i128::from(r.bytes()));
        *bytes += size(after) - size(before);
    }
    for (id, (keys, bytes)) in grown {
        let bucket = bucket(snapshot, id)?;
        let config = &bucket.config;
        for (grown, held, max, limit, unit) in [
            (keys, bucket.len(), config.keys_max, "keys_max", "keys"),
            (
                bytes,
                bucket.bytes(),
                config.bytes_max,
                "bytes_max",
                "bytes of keys and values",
            ),
        ] {
            let wanted = i128::from(held) + grown;
            if grown > 0 && wanted > i128::from(max) {
                return Err(CommitError::Quota {
                    bucket: config.name.clone(),
                    reason: format!("would hold {wanted} {unit}, {limit} is {max}"),
                });
            }
        }
    }
    Ok(())
}
