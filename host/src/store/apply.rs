//! A batch against a snapshot: everything that can be wrong with it is found before anything changes.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use super::backend::Change;
use super::batch::{CommitError, Committed, Condition, Expect, Write, WriteBatch, check_key};
use super::snapshot::{Bucket, Entry, Snapshot};
use super::table::Record;
use super::{BucketId, Revision, Value};

/// What each key of the batch is to become: its last write wins.
type Wanted<'a> = HashMap<(BucketId, &'a str), Option<Value>, RandomState>;

/// Applies a batch to `snapshot` and appends what has to be made durable to `changes`; after an error, and after a dry
/// run, both are as they were.
pub(super) fn apply(
    snapshot: &mut Snapshot,
    batch: &WriteBatch,
    changes: &mut Vec<Change>,
) -> Result<Committed, CommitError> {
    let wanted = check(snapshot, batch)?;
    let revision = Revision(snapshot.revision.0 + 1);
    let mut committed = Committed {
        revision: snapshot.revision,
        created: 0,
        updated: 0,
        deleted: 0,
        unchanged: 0,
    };
    let mut planned = Vec::new();
    for (&(id, key), value) in &wanted {
        let before = bucket(snapshot, id)?.table.get(key);
        if before.map(|record| &record.entry.value) == value.as_ref() {
            committed.unchanged += 1;
            continue;
        }
        match (before, value) {
            (None, _) => committed.created += 1,
            (Some(_), Some(_)) => committed.updated += 1,
            (Some(_), None) => committed.deleted += 1,
        }
        let after = value
            .clone()
            .map(|value| Record::new(key, Entry { value, revision }));
        planned.push((id, before.cloned(), after));
    }
    let mut replaced = batch.replace.clone();
    replaced.sort_unstable();
    replaced.dedup();
    for id in replaced {
        for record in bucket(snapshot, id)?.table.iter() {
            if !wanted.contains_key(&(id, record.key())) {
                committed.deleted += 1;
                planned.push((id, Some(Arc::clone(record)), None));
            }
        }
    }
    check_quotas(snapshot, &planned)?;
    if planned.is_empty() {
        return Ok(committed);
    }
    committed.revision = revision;
    if batch.dry_run {
        return Ok(committed);
    }
    snapshot.revision = revision;
    for (id, before, after) in planned {
        let bucket = &mut snapshot.buckets[id.0 as usize];
        match (&before, &after) {
            (_, Some(record)) => bucket.table.insert(Arc::clone(record)),
            (Some(record), None) => bucket.table.remove(record.key()),
            (None, None) => {}
        }
        changes.push(Change {
            bucket: Arc::clone(&bucket.config),
            before,
            after,
            bucket_before: bucket.revision,
            bucket_after: revision,
        });
        bucket.revision = revision;
    }
    Ok(committed)
}

/// Checks every write by itself and its expectation, all against the snapshot as it is.
fn check<'a>(snapshot: &Snapshot, batch: &'a WriteBatch) -> Result<Wanted<'a>, CommitError> {
    for &id in &batch.replace {
        bucket(snapshot, id)?;
    }
    batch
        .conditions
        .iter()
        .try_for_each(|condition| check_condition(snapshot, condition))?;
    let mut wanted = Wanted::with_capacity_and_hasher(batch.writes.len(), RandomState::new());
    for write in &batch.writes {
        let bucket = bucket(snapshot, write.bucket)?;
        let invalid = |reason: String| CommitError::Invalid {
            bucket: bucket.config.name.clone(),
            key: write.key.to_string(),
            reason,
        };
        check_key(&write.key).map_err(invalid)?;
        let value = match &write.value {
            Some(bytes) => {
                Some(Value::parse(bucket.config.values, bytes).map_err(|error| invalid(error.0))?)
            }
            None => None,
        };
        check_expectation(bucket, write)?;
        wanted.insert((write.bucket, &write.key), value);
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
        Condition::Unmarked(key, since) => {
            if let Some(mark) = snapshot.mark(key).filter(|mark| mark.revision > *since) {
                return Err(CommitError::Marked {
                    key: key.to_string(),
                    revision: mark.revision,
                });
            }
        }
    }
    Ok(())
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
    Err(CommitError::Conflict {
        bucket: bucket.config.name.clone(),
        key: write.key.to_string(),
        found,
    })
}

/// A bucket that takes writes: one of the config, or that of the marks.
fn bucket(snapshot: &Snapshot, id: BucketId) -> Result<&Bucket, CommitError> {
    let takes_writes = |bucket: &&Bucket| {
        snapshot.bucket_id(&bucket.config.name) == Some(id) || snapshot.marks == Some(id)
    };
    snapshot
        .bucket(id)
        .filter(takes_writes)
        .ok_or(CommitError::NoSuchBucket)
}

type Planned = (BucketId, Option<Arc<Record>>, Option<Arc<Record>>);

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
