//! What an engine's log tells of buckets that proxies share, made part of a state.

use std::sync::Arc;

use super::apply::settle;
use super::backend::Change;
use super::content::{BucketContent, record};
use super::history::Origin;
use super::record::Record;
use super::shared::link::Incoming;
use super::shared::{END_TICK_MS, Ending, Left};
use super::snapshot::{Bucket, Snapshot};
use super::{BackendKind, BucketId, Deadline, Revision};

/// What came of an arrival.
#[derive(Default)]
pub(super) struct Arrived {
    /// The time, as the writer's clock has it.
    pub(super) now: u64,
    pub(super) changes: Vec<Change>,
    /// Buckets that were loaded anew and are not what they were: what came between is not known, or what was told of them is
    /// not so any more, even if they are at the same revision. With where among the changes their own begin.
    pub(super) anew: Vec<(BucketId, usize)>,
    /// How long entries live.
    pub(super) left: Vec<(Ending, Left)>,
    /// Whether that was all that was asked.
    pub(super) has_left: bool,
    /// The engine's newest revision.
    pub(super) revision: Option<Revision>,
    /// What was loaded, to be freed by whoever has the time.
    pub(super) used: Vec<BucketContent>,
}

/// Makes an arrival part of a state.
pub(super) fn arrive(
    snapshot: &mut Snapshot,
    kind: BackendKind,
    incoming: Incoming,
    arrived: &mut Arrived,
) {
    match incoming {
        Incoming::Changes {
            revision,
            changes,
            author,
        } => {
            let origin = author.map(|author| {
                Arc::new(Origin {
                    by: author.by.map(Into::into),
                    at: arrived.now,
                    undo: author.undo,
                })
            });
            for shared in changes {
                // A bucket that this process does not have is of no concern to it.
                let Some(id) = snapshot.bucket_on(kind, &shared.bucket) else {
                    continue;
                };
                let bucket = &mut snapshot.buckets[id.0 as usize];
                let after = shared
                    .after
                    .and_then(|entry| record(&bucket.config, &entry));
                let before = bucket.table.get(&shared.key);
                let before = before.or_else(|| bucket.over(&shared.key));
                let both = (before.cloned().map(Arc::new), after.map(Arc::new));
                let change = change(bucket, id, (bucket.revision, revision), both, arrived.now);
                let Some(mut change) = change else { continue };
                match (&change.before, &change.after) {
                    (_, Some(record)) => bucket.insert(record),
                    (Some(record), None) => bucket.remove(record.key()),
                    (None, None) => continue,
                }
                bucket.revision = change.bucket_after;
                let keeps = bucket.config.history > 0;
                change.origin = origin.as_ref().filter(|_| keeps).cloned();
                arrived.changes.push(change);
            }
            arrived.revision = arrived.revision.max(Some(revision));
        }
        Incoming::Content(content) => {
            let revision = content.revision;
            arrived.revision = Some(revision);
            for loaded in content.buckets {
                if let Some(id) = snapshot.bucket_on(kind, &loaded.name) {
                    replace(snapshot, id, (revision, loaded), arrived);
                }
            }
        }
        Incoming::Current(revision) => arrived.revision = arrived.revision.max(Some(revision)),
        Incoming::Left(left, is_last) => {
            arrived.left.extend(left);
            arrived.has_left |= is_last;
        }
    }
    settle(snapshot);
}

/// Makes a bucket what was loaded anew: what is not in it any more is deleted.
fn replace(
    snapshot: &mut Snapshot,
    id: BucketId,
    (revision, loaded): (Revision, BucketContent),
    arrived: &mut Arrived,
) {
    let bucket = &mut snapshot.buckets[id.0 as usize];
    let loaded = loaded.read_for(bucket);
    let went_back = revision < bucket.revision;
    let mut at = match went_back {
        true => revision,
        false => bucket.revision,
    };
    let mut changes = Vec::new();
    for told in loaded.differing(bucket) {
        let both = (
            told.held.cloned().map(Arc::new),
            told.loaded.cloned().map(Arc::new),
        );
        if let Some(change) = change(bucket, id, (at, revision), both, arrived.now) {
            at = change.bucket_after;
            changes.push(change);
        }
    }
    bucket.revision = at;
    let gone = changes.iter().filter(|change| change.after.is_none());
    let gone = gone.filter_map(|change| change.before.as_deref());
    bucket.remove_all(&gone.collect::<Vec<_>>());
    let put = changes.iter().filter_map(|change| change.after.as_deref());
    bucket.insert_all(&put.collect::<Vec<_>>());
    arrived.used.push(loaded);
    if went_back || !changes.is_empty() {
        arrived.anew.push((id, arrived.changes.len()));
    }
    arrived.changes.append(&mut changes);
}

/// A change of a key, from what the bucket holds; none if both are the same.
fn change(
    bucket: &Bucket,
    id: BucketId,
    (at, revision): (Revision, Revision),
    (before, after): (Option<Arc<Record>>, Option<Arc<Record>>),
    now: u64,
) -> Option<Change> {
    if before.as_ref().map(|it| &it.entry) == after.as_ref().map(|it| &it.entry) {
        return None;
    }
    let is_over = |before: &Arc<Record>| {
        let deadline = before.entry.deadline;
        let early = match bucket.config.backend {
            BackendKind::Etcd => END_TICK_MS,
            _ => 0,
        };
        let has_ended = |end: Deadline| end.millis() <= now + early;
        bucket.over(before.key()).is_some() || deadline.is_some_and(has_ended)
    };
    Some(Change {
        bucket: Arc::clone(&bucket.config),
        id,
        expired: after.is_none() && before.as_ref().is_some_and(is_over),
        before,
        after,
        bucket_before: at,
        bucket_after: at.max(revision),
        origin: None,
    })
}
