//! What is read of the file: its mark, and whole buckets.

use std::collections::BTreeMap;

use redb::{Database, ReadableDatabase};

use super::sum::Sum;
use super::{
    BUCKETS, ENTRIES, FORMAT, META, META_FORMAT, META_ID, META_REVISION, META_WRITES, Mark, NO_ID,
    deadlines,
};
use crate::store::backend::{Change, Loaded};
use crate::store::bucket::KEY_BYTES_MAX;
use crate::store::record::Record;
use crate::store::table::Table;
use crate::store::{BucketConfig, Deadline, Entry, Revision, Value};

pub(super) fn read_meta(db: &impl ReadableDatabase) -> Result<Mark, redb::Error> {
    let transaction = db.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name| {
        meta.get(name)
            .map(|found| found.map(|number| number.value()))
    };
    match (number(META_FORMAT)?, number(META_REVISION)?) {
        (Some(FORMAT), Some(revision)) => Ok(Mark {
            revision: Revision(revision),
            writes: number(META_WRITES)?.unwrap_or(0),
        }),
        (format, _) => Err(redb::Error::Corrupted(format!(
            "format {}, expected {FORMAT}",
            format.map_or("unknown".into(), |format| format.to_string())
        ))),
    }
}

/// The file's own number, if it has one.
pub(super) fn read_id(db: &impl ReadableDatabase) -> Result<u64, redb::Error> {
    let meta = db.begin_read()?.open_table(META)?;
    let id = meta.get(META_ID)?;
    Ok(id.map_or(NO_ID, |id| id.value()))
}

/// A key and why its value is not one of the bucket's kind.
type Refused = (String, String);

/// A bucket of the file, and what waits to be written to it.
pub(super) fn read_bucket(
    db: &Database,
    bucket: &BucketConfig,
    waiting: &[Change],
) -> Result<(Loaded, Option<Refused>), redb::Error> {
    let transaction = db.begin_read()?;
    let name = bucket.name.as_bytes();
    let sums = transaction.open_table(BUCKETS)?;
    let expected = sums
        .get(name)?
        .map(|sum| Sum::from(sum.value()))
        .unwrap_or_default();
    let mut found = Sum {
        revision: expected.revision,
        ..Sum::default()
    };
    let mut refused = BTreeMap::new();
    let mut deadlines = deadlines::read(&transaction, name)?.into_iter().peekable();
    let entries = transaction.open_table(ENTRIES)?;
    let end = end_of(name);
    let entries = entries.range((name, &[][..])..(end.as_slice(), &[][..]))?;
    let about = usize::try_from(expected.entries.min(1 << 24)).unwrap_or(0);
    let (mut table, read) = Table::load_beside(about, |add| {
        for entry in entries {
            let (key, value) = entry?;
            let (_, key) = key.value();
            let (revision, value) = value.value();
            let deadline = deadlines.next_if(|(ending, _)| ending == key);
            let deadline = deadline.and_then(|(_, millis)| Deadline::from_millis(millis));
            found.add(key, revision, value, deadline);
            let key = std::str::from_utf8(key).ok();
            let key = key.filter(|key| key.len() <= KEY_BYTES_MAX);
            let key = key
                .ok_or_else(|| redb::Error::Corrupted("a key is too long, or not UTF-8".into()))?;
            let entry = |value| Entry {
                value,
                revision: Revision(revision),
                deadline,
            };
            match Value::parse(bucket.values, value) {
                Ok(value) => add(Record::new(key, entry(value))),
                Err(error) => {
                    refused.insert(key.to_owned(), error.0);
                }
            }
        }
        Ok::<_, redb::Error>(())
    });
    read?;
    // A deadline without its entry stops the walk before its end.
    if found != expected || deadlines.next().is_some() {
        return Err(redb::Error::Corrupted(format!(
            "bucket {:?}: {} entries were found that do not add up to the {} that were written",
            bucket.name, found.entries, expected.entries
        )));
    }
    let mut revision = Revision(found.revision);
    for change in waiting.iter().filter(|it| it.bucket.name == bucket.name) {
        revision = change.bucket_after;
        let record = change.after.as_ref().or(change.before.as_ref());
        refused.remove(record.map_or("", |record| record.key()));
        let Some(record) = &change.after else {
            if let Some(record) = &change.before {
                table.remove(record.key());
            }
            continue;
        };
        // In a journal that was read values are bytes.
        match Value::parse(bucket.values, &record.entry.value.to_bytes()) {
            Ok(value) => {
                let entry = Entry {
                    value,
                    ..record.entry.clone()
                };
                table.insert(&Record::new(record.key(), entry));
            }
            Err(error) => {
                refused.insert(record.key().to_owned(), error.0);
            }
        }
    }
    Ok((Loaded { table, revision }, refused.pop_first()))
}

/// The next string after a bucket's name: what lies between belongs to the bucket.
pub(super) fn end_of(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}
