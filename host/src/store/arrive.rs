//! What other processes have written, made part of a state.

use std::collections::HashMap;
use std::sync::Arc;

use super::backend::{Arrival, Arrived, Change, Loaded};
use super::bucket::KEY_BYTES_MAX;
use super::snapshot::Snapshot;
use super::table::Record;
use super::{BackendKind, BucketId, Revision};

/// Applies what arrived from a backend, and appends what it changed to `changes`.
pub(super) fn arrive(
    snapshot: &mut Snapshot,
    kind: BackendKind,
    arrival: Arrival,
    changes: &mut Vec<Change>,
) {
    match arrival {
        Arrival::Changes { revision, entries } => {
            for arrived in entries {
                // A bucket that this process does not have is of no concern to it.
                if let Some(id) = bucket_of(snapshot, kind, &arrived.bucket) {
                    entry(snapshot, id, revision, arrived, changes);
                }
            }
            snapshot.revision = snapshot.revision.max(revision);
        }
        Arrival::Content { bucket, loaded } => {
            if let Some(id) = bucket_of(snapshot, kind, &bucket) {
                content(snapshot, id, loaded, changes);
            }
        }
    }
}

fn bucket_of(snapshot: &Snapshot, kind: BackendKind, name: &str) -> Option<BucketId> {
    let at = snapshot
        .buckets
        .iter()
        .position(|bucket| bucket.config.name == name && bucket.config.backend == kind)?;
    u32::try_from(at).ok().map(BucketId)
}

fn entry(
    snapshot: &mut Snapshot,
    id: BucketId,
    revision: Revision,
    arrived: Arrived,
    changes: &mut Vec<Change>,
) {
    if arrived.key.len() > KEY_BYTES_MAX {
        // Nobody can have written it by way of a proxy.
        return;
    }
    let after = arrived.entry.map(|entry| Record::new(&arrived.key, entry));
    let before = snapshot.buckets[id.0 as usize].table.get(&arrived.key);
    let before = before.cloned();
    change(
        snapshot,
        id,
        revision,
        (before, after),
        arrived.expired,
        changes,
    );
}

/// Makes a bucket what was loaded anew: what is not in it any more is deleted.
fn content(snapshot: &mut Snapshot, id: BucketId, loaded: Loaded, changes: &mut Vec<Change>) {
    let known = loaded
        .records
        .iter()
        .map(|record| (record.key_bytes(), record));
    let known: HashMap<&[u8], &Arc<Record>, ahash::RandomState> = known.collect();
    let table = snapshot.buckets[id.0 as usize].table.clone();
    let gone = table
        .iter()
        .filter(|record| !known.contains_key(record.key_bytes()));
    for record in gone {
        let both = (Some(Arc::clone(record)), None);
        change(snapshot, id, loaded.revision, both, false, changes);
    }
    for record in &loaded.records {
        let both = (table.get(record.key()).cloned(), Some(Arc::clone(record)));
        change(snapshot, id, loaded.revision, both, false, changes);
    }
    snapshot.revision = snapshot.revision.max(loaded.revision);
}

fn change(
    snapshot: &mut Snapshot,
    id: BucketId,
    revision: Revision,
    (before, after): (Option<Arc<Record>>, Option<Arc<Record>>),
    expired: bool,
    changes: &mut Vec<Change>,
) {
    let entry = |record: &Option<Arc<Record>>| record.as_ref().map(|it| it.entry.clone());
    if entry(&before) == entry(&after) {
        return;
    }
    let bucket = &mut snapshot.buckets[id.0 as usize];
    match (&before, &after) {
        (_, Some(record)) => bucket.table.insert(Arc::clone(record)),
        (Some(record), None) => bucket.table.remove(record.key()),
        (None, None) => return,
    }
    let mut change = Change {
        bucket: Arc::clone(&bucket.config),
        id,
        before,
        after,
        bucket_before: bucket.revision,
        bucket_after: bucket.revision,
        expired,
    };
    if !change.is_touch() {
        change.bucket_after = bucket.revision.max(revision);
        bucket.revision = change.bucket_after;
    }
    changes.push(change);
}
