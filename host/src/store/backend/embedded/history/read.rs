//! What is kept of the past is read, and each row of it compared with its hash.

use std::collections::HashMap;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, TableError};

use super::{
    EVENTS, GONE, Key, Lost, ORDER, OrderKey, Parts, ROWS, SIZES, Sealed, UNDO, Value, all_of,
};
use crate::store::backend::embedded::file::guarded;
use crate::store::history::{Event, Histories, Past, Step};
use crate::store::{Deadline, Revision};

/// The tables as of one transaction.
pub(in super::super) struct Read {
    transaction: ReadTransaction,
    lost: Lost,
}

impl Read {
    pub(in super::super) fn new(transaction: ReadTransaction, lost: Lost) -> Self {
        Self { transaction, lost }
    }

    /// What is kept, if anything ever was. What was added to no more would not be the past.
    fn of(&self, bucket: &str) -> Result<Option<Kept>, redb::Error> {
        match self.lost.contains(bucket) {
            false => Kept::open(&self.transaction),
            true => Err(redb::Error::Corrupted(format!(
                "the history of bucket {bucket} is damaged: its later writes are not in it"
            ))),
        }
    }
}

/// What is kept, if anything ever was.
struct Kept {
    rows: ReadOnlyTable<Key, Value>,
    order: ReadOnlyTable<OrderKey, u64>,
}

impl Kept {
    fn open(transaction: &ReadTransaction) -> Result<Option<Self>, redb::Error> {
        let rows = opened(transaction.open_table(ROWS))?;
        let order = opened(transaction.open_table(ORDER))?;
        Ok(rows.zip(order).map(|(rows, order)| Self { rows, order }))
    }

    /// A row, if it is the one that was written.
    fn whole<'r>(
        &self,
        at: (&[u8], &[u8], u64),
        row: Parts<'r>,
    ) -> Result<(Parts<'r>, Sealed), redb::Error> {
        let (bucket, key, revision) = at;
        let sealed = self.order.get((bucket, revision, key))?;
        let sealed = sealed.map(|sealed| Sealed(sealed.value()));
        let sealed = sealed.filter(|sealed| sealed.is_of(at, row));
        let sealed = sealed.ok_or_else(|| not_as_written(at))?;
        Ok((row, sealed))
    }

    fn past(&self, at: (&[u8], &[u8], u64), row: Parts<'_>) -> Result<Past, redb::Error> {
        let (row, _) = self.whole(at, row)?;
        Ok(past(at.2, row))
    }
}

/// Reads all that is kept: whether each row is the one that was written, and all add up to what their buckets say.
pub(in super::super) fn check(transaction: &ReadTransaction) -> Result<(), redb::Error> {
    let mut sizes: HashMap<Vec<u8>, u64> = HashMap::new();
    if let Some(kept) = Kept::open(transaction)? {
        for row in kept.rows.iter()? {
            let (at, row) = row?;
            let (_, sealed) = kept.whole(at.value(), row.value())?;
            let (bucket, ..) = at.value();
            match sizes.get_mut(bucket) {
                Some(size) => *size = size.saturating_add(sealed.bytes()),
                None => {
                    sizes.insert(bucket.to_vec(), sealed.bytes());
                }
            }
        }
        let (rows, order) = (kept.rows.len()?, kept.order.len()?);
        if rows != order {
            return Err(redb::Error::Corrupted(format!(
                "{rows} values of the past were found, of {order} that were written"
            )));
        }
    }
    let differs = |bucket: &[u8], found: u64, expected: u64| {
        redb::Error::Corrupted(format!(
            "bucket {:?}: values of the past take {found} bytes, not the {expected} that were written",
            String::from_utf8_lossy(bucket)
        ))
    };
    if let Some(expected) = opened(transaction.open_table(SIZES))? {
        for row in expected.iter()? {
            let (bucket, expected) = row?;
            let found = sizes.remove(bucket.value()).unwrap_or(0);
            if found != expected.value() {
                return Err(differs(bucket.value(), found, expected.value()));
            }
        }
    }
    // Nothing was written of these.
    if let Some((bucket, found)) = sizes.into_iter().next() {
        return Err(differs(&bucket, found, 0));
    }
    Ok(())
}

impl Histories for Read {
    fn of_key(&self, bucket: &str, key: &str) -> Result<Vec<Past>, String> {
        guarded(|| {
            let Some(kept) = self.of(bucket)? else {
                return Ok(Vec::new());
            };
            let all = kept.rows.range(all_of(bucket.as_bytes(), key.as_bytes()))?;
            let all = all.rev().map(|row| {
                let (at, row) = row?;
                kept.past(at.value(), row.value())
            });
            all.collect()
        })
    }

    fn of_revision(&self, bucket: &str, revision: Revision) -> Result<Vec<Step>, String> {
        guarded(|| {
            let Some(kept) = self.of(bucket)? else {
                return Ok(Vec::new());
            };
            let bucket = bucket.as_bytes();
            let begin = (bucket, revision.0, &[][..]);
            let end = (bucket, revision.0.saturating_add(1), &[][..]);
            let mut steps = Vec::new();
            for row in kept.order.range(begin..end)? {
                let (at, _) = row?;
                let (_, _, key) = at.value();
                let text = std::str::from_utf8(key);
                let text = text.map_err(|_| redb::Error::Corrupted("a key is not UTF-8".into()))?;
                let mut all = kept.rows.range(all_of(bucket, key))?;
                let at = (bucket, key, revision.0);
                let last = all.next_back().ok_or_else(|| not_as_written(at))?;
                let last = last?.0.value().2;
                let after = kept.rows.get(at)?;
                let after = after.ok_or_else(|| not_as_written(at))?;
                let mut until = kept.rows.range((bucket, key, 0)..at)?;
                let before = match until.next_back() {
                    None => None,
                    Some(row) => {
                        let (at, row) = row?;
                        Some(kept.past(at.value(), row.value())?)
                    }
                };
                steps.push(Step {
                    key: text.into(),
                    after: kept.past(at, after.value())?,
                    before,
                    last: Revision(last),
                });
            }
            Ok(steps)
        })
    }
}

fn not_as_written((bucket, key, revision): (&[u8], &[u8], u64)) -> redb::Error {
    redb::Error::Corrupted(format!(
        "bucket {:?}: what is kept of key {:?} at revision {revision} is not what was written; it goes when later writes of \
         the key take its place",
        String::from_utf8_lossy(bucket),
        String::from_utf8_lossy(key)
    ))
}

/// A table, if there is one.
fn opened<T>(table: Result<T, TableError>) -> Result<Option<T>, redb::Error> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn past(revision: u64, (_, at, deadline, flags, by, value): Parts<'_>) -> Past {
    let event = usize::from(flags & !(UNDO | GONE));
    Past {
        revision: Revision(revision),
        at: (at > 0).then_some(at),
        by: (!by.is_empty()).then(|| by.into()),
        // A number that no version has written is one of a later version.
        event: EVENTS.get(event).copied().unwrap_or(Event::Found),
        undo: flags & UNDO != 0,
        value: (flags & GONE == 0).then(|| value.into()),
        deadline: Deadline::from_millis(deadline),
    }
}
