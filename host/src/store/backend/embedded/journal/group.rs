//! What a record says: a transaction's changes, with all that the data file needs of them.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Group, RECORD_BYTES_MAX};
use crate::store::backend::Change;
use crate::store::bucket::KEY_BYTES_MAX;
use crate::store::history::Origin;
use crate::store::record::Record;
use crate::store::{
    BackendKind, BucketConfig, BucketId, Deadline, Entry, Revision, Value, ValueKind,
};

/// The least that a change takes beside its values.
const LINE_BYTES: u64 = 8;

#[derive(Serialize, Deserialize)]
struct Written<'b> {
    /// The store's revision before the transaction, and after it.
    before: u64,
    revision: u64,
    #[serde(borrow)]
    buckets: Vec<Bucket<'b>>,
    #[serde(borrow)]
    changes: Vec<Line<'b>>,
}

#[derive(Serialize, Deserialize)]
struct Bucket<'b> {
    name: &'b str,
    history: u32,
    history_bytes_max: u64,
}

#[derive(Serialize, Deserialize)]
struct Line<'b> {
    /// Of [`Written::buckets`].
    bucket: usize,
    bucket_before: u64,
    bucket_after: u64,
    key: &'b str,
    #[serde(borrow)]
    before: Option<Kept<'b>>,
    #[serde(borrow)]
    after: Option<Kept<'b>>,
    expired: bool,
    #[serde(borrow)]
    origin: Option<By<'b>>,
}

#[derive(Serialize, Deserialize)]
struct Kept<'b> {
    revision: u64,
    /// 0: none.
    deadline: u64,
    #[serde(borrow)]
    value: std::borrow::Cow<'b, [u8]>,
}

#[derive(Serialize, Deserialize)]
struct By<'b> {
    by: Option<&'b str>,
    at: u64,
    undo: bool,
}

/// Whether a transaction may be small enough for a record. One that is not is not even encoded.
pub(in super::super) fn may_fit(changes: &[Change]) -> bool {
    let mut bytes = 0;
    changes.iter().all(|change| {
        let records = change.before.iter().chain(&change.after);
        bytes += LINE_BYTES + records.map(|record| record.bytes()).sum::<u64>();
        bytes <= RECORD_BYTES_MAX as u64
    })
}

/// The payload of a transaction's record: the store was and is at these revisions.
pub(in super::super) fn encode(
    before: Revision,
    revision: Revision,
    changes: &[Change],
) -> Result<Vec<u8>, postcard::Error> {
    let mut buckets: Vec<Bucket<'_>> = Vec::new();
    let mut places: HashMap<*const BucketConfig, usize> = HashMap::new();
    let mut lines = Vec::with_capacity(changes.len());
    for change in changes {
        let bucket = *places
            .entry(Arc::as_ptr(&change.bucket))
            .or_insert_with(|| {
                buckets.push(Bucket {
                    name: &change.bucket.name,
                    history: change.bucket.history,
                    history_bytes_max: change.bucket.history_bytes_max,
                });
                buckets.len() - 1
            });
        let record = change.after.as_ref().or(change.before.as_ref());
        lines.push(Line {
            bucket,
            bucket_before: change.bucket_before.0,
            bucket_after: change.bucket_after.0,
            key: record.map_or("", |record| record.key()),
            before: change.before.as_deref().map(kept),
            after: change.after.as_deref().map(kept),
            expired: change.expired,
            origin: change.origin.as_deref().map(|origin| By {
                by: origin.by.as_deref(),
                at: origin.at,
                undo: origin.undo,
            }),
        });
    }
    postcard::to_allocvec(&Written {
        before: before.0,
        revision: revision.0,
        buckets,
        changes: lines,
    })
}

fn kept(record: &Record) -> Kept<'_> {
    let entry = &record.entry;
    Kept {
        revision: entry.revision.0,
        deadline: entry.deadline.map_or(0, Deadline::millis),
        value: entry.value.to_bytes(),
    }
}

/// The transaction of a payload, which follows one after which the store was at this revision. Values are bytes, whatever
/// their bucket holds.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode(payload: &[u8], before: Revision) -> Result<Group, String> {
    let unreadable =
        |what: &str| format!("a whole record cannot be read ({what}): it is of another release");
    let written: Written<'_> =
        postcard::from_bytes(payload).map_err(|error| unreadable(&error.to_string()))?;
    if written.before != before.0 {
        return Err(format!(
            "a write of revision {} follows revision {}: it is of another data file",
            written.revision, before.0
        ));
    }
    let buckets: Vec<_> = written.buckets.iter().map(config).collect();
    let changes = written.changes.into_iter().map(|line| {
        let bucket = buckets.get(line.bucket);
        let bucket = bucket.ok_or_else(|| unreadable("it names no bucket"))?;
        if line.key.len() > KEY_BYTES_MAX {
            return Err(unreadable("a key is too long"));
        }
        let record = |kept: Kept<'_>| {
            let value = Value::parse(ValueKind::Bytes, &kept.value);
            let entry = Entry {
                value: value.map_err(|error| unreadable(&error.0))?,
                revision: Revision(kept.revision),
                deadline: Deadline::from_millis(kept.deadline),
            };
            Ok::<_, String>(Arc::new(Record::new(line.key, entry)))
        };
        Ok(Change {
            bucket: Arc::clone(bucket),
            // Only readers have use for it, and they have seen none of this.
            id: BucketId(u32::MAX),
            before: line.before.map(record).transpose()?,
            after: line.after.map(record).transpose()?,
            bucket_before: Revision(line.bucket_before),
            bucket_after: Revision(line.bucket_after),
            expired: line.expired,
            origin: line.origin.map(|origin| {
                Arc::new(Origin {
                    by: origin.by.map(Arc::from),
                    at: origin.at,
                    undo: origin.undo,
                })
            }),
        })
    });
    Ok(Group {
        revision: Revision(written.revision),
        changes: changes.collect::<Result<_, _>>()?,
    })
}

/// As much of a bucket as the data file needs.
fn config(bucket: &Bucket<'_>) -> Arc<BucketConfig> {
    Arc::new(BucketConfig {
        history: bucket.history,
        history_bytes_max: bucket.history_bytes_max,
        ..BucketConfig::new(bucket.name, BackendKind::Embedded, ValueKind::Bytes)
    })
}
