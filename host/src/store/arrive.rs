//! What an engine's log tells of buckets that proxies share, made part of a state.

use std::collections::HashMap;
use std::sync::Arc;

use super::apply::settle;
use super::backend::Change;
use super::history::Origin;
use super::record::Record;
use super::shared::link::Incoming;
use super::shared::{Ending, Left, Loaded, SharedEntry};
use super::snapshot::Snapshot;
use super::table::Table;
use super::{BackendKind, BucketConfig, BucketId, Deadline, Entry, Revision, Value, check_key};

/// What came of an arrival.
#[derive(Default)]
pub(super) struct Arrived {
    /// The time, as the writer's clock has it.
    pub(super) now: u64,
    pub(super) changes: Vec<Change>,
    /// Buckets that were loaded anew and are not what they were: what came between is not known, or what was told of them is
    /// not so any more, even if they are at the same revision.
    pub(super) anew: Vec<BucketId>,
    /// How long entries live.
    pub(super) left: Vec<(Ending, Left)>,
    /// The engine's newest revision.
    pub(super) revision: Option<Revision>,
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
                let Some(id) = bucket_of(snapshot, kind, &shared.bucket) else {
                    continue;
                };
                let config = &snapshot.buckets[id.0 as usize].config;
                let after = shared.after.and_then(|entry| record(config, entry));
                let after = after.map(Arc::new);
                let bucket = &snapshot.buckets[id.0 as usize];
                let before = bucket.table.get(&shared.key);
                let before = before.or_else(|| bucket.over(&shared.key));
                let both = (before.cloned().map(Arc::new), after);
                change(snapshot, id, (revision, origin.as_ref()), both, arrived);
            }
            arrived.revision = arrived.revision.max(Some(revision));
        }
        Incoming::Content { buckets, loaded } => {
            arrived.revision = Some(loaded.revision);
            let mut by_bucket: HashMap<Box<str>, Vec<SharedEntry>> = HashMap::new();
            for entry in loaded.entries {
                by_bucket
                    .entry(entry.bucket.clone())
                    .or_default()
                    .push(entry);
            }
            for name in buckets {
                let entries = by_bucket.remove(&name).unwrap_or_default();
                if let Some(id) = bucket_of(snapshot, kind, &name) {
                    content(snapshot, id, (loaded.revision, entries), arrived);
                }
            }
        }
        Incoming::Current(revision) => arrived.revision = arrived.revision.max(Some(revision)),
        Incoming::Left(left) => arrived.left.extend(left),
    }
    settle(snapshot);
}

/// What was loaded of one bucket. Values that do not fit it are left out, and logged.
pub(super) fn table(config: &BucketConfig, loaded: Loaded) -> Table {
    let entries = loaded.entries.into_iter();
    Table::load(entries.filter_map(|entry| record(config, entry)))
}

/// None, so that the key is absent, if some other program wrote what the bucket cannot hold.
fn record(config: &BucketConfig, entry: SharedEntry) -> Option<Record> {
    let value = check_key(&entry.key)
        .and_then(|()| config.lookup.check(&entry.key))
        .and_then(|()| Value::parse(config.values, &entry.value).map_err(|error| error.0));
    let value = value.inspect_err(|reason| {
        tracing::error!(
            bucket = config.name,
            key = &*entry.key,
            reason,
            "what another program wrote does not fit the bucket: it is taken as absent"
        );
    });
    let entry_of = |value| Entry {
        value,
        revision: entry.revision,
        deadline: entry.expires_at_ms.and_then(Deadline::from_millis),
    };
    Some(Record::new(&entry.key, entry_of(value.ok()?)))
}

pub(super) fn bucket_of(snapshot: &Snapshot, kind: BackendKind, name: &str) -> Option<BucketId> {
    let at = snapshot
        .buckets
        .iter()
        .position(|bucket| bucket.config.name == name && bucket.config.backend == kind)?;
    u32::try_from(at).ok().map(BucketId)
}

/// Makes a bucket what was loaded anew: what is not in it any more is deleted.
fn content(
    snapshot: &mut Snapshot,
    id: BucketId,
    (revision, entries): (Revision, Vec<SharedEntry>),
    arrived: &mut Arrived,
) {
    let bucket = &mut snapshot.buckets[id.0 as usize];
    let went_back = revision < bucket.revision;
    if went_back {
        bucket.revision = revision;
    }
    let known_changes = arrived.changes.len();
    let config = Arc::clone(&bucket.config);
    let records = entries
        .into_iter()
        .filter_map(|entry| record(&config, entry));
    let records: Vec<_> = records.collect();
    let known = records.iter().map(|record| record.key_bytes());
    let known: std::collections::HashSet<&[u8], ahash::RandomState> = known.collect();
    let before = bucket.clone();
    let gone = before
        .held()
        .filter(|record| !known.contains(record.key_bytes()));
    for record in gone {
        let both = (Some(Arc::new(record.clone())), None);
        change(snapshot, id, (revision, None), both, arrived);
    }
    for record in records {
        let key = record.key();
        let known = before.table.get(key).or_else(|| before.over(key));
        let both = (known.cloned().map(Arc::new), Some(Arc::new(record)));
        change(snapshot, id, (revision, None), both, arrived);
    }
    if went_back || arrived.changes.len() > known_changes {
        arrived.anew.push(id);
    }
}

fn change(
    snapshot: &mut Snapshot,
    id: BucketId,
    (revision, origin): (Revision, Option<&Arc<Origin>>),
    (before, after): (Option<Arc<Record>>, Option<Arc<Record>>),
    arrived: &mut Arrived,
) {
    let (changes, now) = (&mut arrived.changes, arrived.now);
    let is_same = match (&before, &after) {
        (Some(before), Some(after)) => before.entry == after.entry,
        _ => false,
    };
    if is_same {
        return;
    }
    let bucket = &mut snapshot.buckets[id.0 as usize];
    let key = before.as_ref().or(after.as_ref()).map(|it| it.key());
    let was_over = key.is_some_and(|key| bucket.over(key).is_some());
    match (&before, &after) {
        (_, Some(record)) => bucket.insert(record),
        (Some(record), None) => bucket.remove(record.key()),
        (None, None) => return,
    }
    let deadline = before.as_ref().and_then(|before| before.entry.deadline);
    let has_ended = was_over || deadline.is_some_and(|deadline| deadline.millis() <= now);
    let bucket_before = bucket.revision;
    bucket.revision = bucket.revision.max(revision);
    changes.push(Change {
        bucket: Arc::clone(&bucket.config),
        id,
        expired: after.is_none() && has_ended,
        before,
        after,
        bucket_before,
        bucket_after: bucket.revision,
        origin: origin.filter(|_| bucket.config.history > 0).cloned(),
    });
}
