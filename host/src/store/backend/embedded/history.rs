//! The past of keys in the data file, written in the transaction of what it is about.
//!
//! Three tables, made with the first bucket that is to have a history: `history` maps (bucket, key, revision) to what the
//! key became; `history_order` has the same rows by (bucket, revision, key) with their sizes, so that the oldest of a
//! bucket are found, and all of one revision; `history_sizes` maps a bucket to the sum of these.

use std::ops::RangeInclusive;

use redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::Change;
use super::file::guarded;
use super::read::end_of;
use crate::store::history::{Event, Histories, Last, Past, Row, Step};
use crate::store::{BucketConfig, Deadline, Revision};

/// A bucket's name, a key and a revision.
type Key = (&'static [u8], &'static [u8], u64);
/// Place, time, deadline (0: none of it), event, by whom, value.
type Value = (u64, u64, u64, u8, &'static str, &'static [u8]);
pub(super) const ROWS: TableDefinition<Key, Value> = TableDefinition::new("history");
pub(super) const ORDER: TableDefinition<(&[u8], u64, &[u8]), u64> =
    TableDefinition::new("history_order");
pub(super) const SIZES: TableDefinition<&[u8], u64> = TableDefinition::new("history_sizes");

/// How an [`Event`] is stored.
const EVENTS: [Event; 5] = [
    Event::Created,
    Event::Changed,
    Event::Deleted,
    Event::Expired,
    Event::Found,
];
/// The bits for what put back what was, and for what left no value.
const UNDO: u8 = 1 << 7;
const GONE: u8 = 1 << 6;

/// Keeps changes, which come in the order in which they were made to each key. One that has lost its origin undoes another,
/// which had reached the disk though its write failed: what that has kept is taken back, but not what it let go of.
pub(super) fn write(
    transaction: &WriteTransaction,
    changes: &[&Change],
) -> Result<(), redb::Error> {
    let is_kept = |change: &&&Change| change.bucket.history > 0 && !change.is_touch();
    let kept: Vec<&Change> = changes.iter().filter(is_kept).copied().collect();
    // Most groups have none, and need not look at the tables.
    if kept.is_empty() {
        return Ok(());
    }
    let mut sizes = transaction.open_table(SIZES)?;
    let mut tables = Tables {
        rows: transaction.open_table(ROWS)?,
        order: transaction.open_table(ORDER)?,
        size: 0,
    };
    // They are in the order of buckets.
    for changes in kept.chunk_by(|one, next| one.bucket.name == next.bucket.name) {
        let [.., last] = changes else { continue };
        let bucket = last.bucket.name.as_bytes();
        tables.size = sizes.get(bucket)?.map_or(0, |size| size.value());
        for change in changes {
            match change.origin {
                Some(_) => tables.add(change)?,
                None => tables.remove(bucket, change.key(), change.bucket_before.0)?,
            }
        }
        tables.shrink(&last.bucket)?;
        sizes.insert(bucket, tables.size)?;
    }
    Ok(())
}

struct Tables<'t> {
    rows: redb::Table<'t, Key, Value>,
    order: redb::Table<'t, (&'static [u8], u64, &'static [u8]), u64>,
    /// Of the bucket that is written to.
    size: u64,
}

impl Tables<'_> {
    fn add(&mut self, change: &Change) -> Result<(), redb::Error> {
        let record = change.after.as_ref().or(change.before.as_ref());
        let Some(key) = record.map(|record| record.key()) else {
            return Ok(());
        };
        let bucket = change.bucket.name.as_bytes();
        let all = all_of(bucket, key.as_bytes());
        let last = match self.rows.range(all)?.next_back() {
            None => None,
            Some(row) => {
                let (at, row) = row?;
                let (place, _, _, flags, ..) = row.value();
                Some(Last {
                    revision: Revision(at.value().2),
                    place,
                    is_gone: flags & GONE != 0,
                })
            }
        };
        let (unseen, row) = Row::of(change, last.as_ref());
        let newest = row.place;
        for row in unseen.into_iter().chain([row]) {
            self.insert(bucket, key, &row)?;
        }
        let kept = u64::from(change.bucket.history);
        match newest.checked_sub(kept) {
            Some(last) => self.trim(bucket, key.as_bytes(), last),
            None => Ok(()),
        }
    }

    /// Lets the rows of a key go up to a place.
    fn trim(&mut self, bucket: &[u8], key: &[u8], last: u64) -> Result<(), redb::Error> {
        loop {
            let (revision, place) = match self.rows.range(all_of(bucket, key))?.next() {
                None => return Ok(()),
                Some(row) => {
                    let (at, row) = row?;
                    (at.value().2, row.value().0)
                }
            };
            if place > last {
                return Ok(());
            }
            self.remove(bucket, key, revision)?;
        }
    }

    fn insert(&mut self, bucket: &[u8], key: &str, row: &Row) -> Result<(), redb::Error> {
        let entry = row.record.as_ref().map(|record| &record.entry);
        let value = entry.map(|entry| entry.value.to_bytes());
        let deadline = entry.and_then(|entry| entry.deadline);
        let (origin, revision) = (row.origin.as_deref(), row.revision.0);
        let event = EVENTS.iter().position(|event| *event == row.event);
        let mut flags = event.and_then(|at| u8::try_from(at).ok()).unwrap_or(0);
        if origin.is_some_and(|origin| origin.undo) {
            flags |= UNDO;
        }
        if value.is_none() {
            flags |= GONE;
        }
        self.rows.insert(
            (bucket, key.as_bytes(), revision),
            (
                row.place,
                origin.map_or(0, |origin| origin.at),
                deadline.map_or(0, Deadline::millis),
                flags,
                origin
                    .and_then(|origin| origin.by.as_deref())
                    .unwrap_or_default(),
                value.as_deref().unwrap_or_default(),
            ),
        )?;
        let bytes = row.bytes(key);
        let replaced = self
            .order
            .insert((bucket, revision, key.as_bytes()), bytes)?
            .map_or(0, |bytes| bytes.value());
        self.size = self.size.saturating_sub(replaced).saturating_add(bytes);
        Ok(())
    }

    fn remove(&mut self, bucket: &[u8], key: &[u8], revision: u64) -> Result<(), redb::Error> {
        self.rows.remove((bucket, key, revision))?;
        let bytes = self
            .order
            .remove((bucket, revision, key))?
            .map_or(0, |bytes| bytes.value());
        self.size = self.size.saturating_sub(bytes);
        Ok(())
    }

    /// Lets the oldest rows of a bucket go until they fit its limit.
    fn shrink(&mut self, config: &BucketConfig) -> Result<(), redb::Error> {
        let bucket = config.name.as_bytes();
        let end = end_of(bucket);
        while self.size > config.history_bytes_max {
            let all = (bucket, 0, &[][..])..(&end[..], 0, &[][..]);
            let (revision, key) = match self.order.range(all)?.next() {
                None => break,
                Some(row) => {
                    let (at, _) = row?;
                    let (_, revision, key) = at.value();
                    (revision, key.to_vec())
                }
            };
            self.remove(bucket, &key, revision)?;
        }
        Ok(())
    }
}

fn all_of<'a>(bucket: &'a [u8], key: &'a [u8]) -> RangeInclusive<(&'a [u8], &'a [u8], u64)> {
    (bucket, key, 0)..=(bucket, key, u64::MAX)
}

/// The tables as of one transaction.
pub(super) struct Read(pub(super) ReadTransaction);

impl Histories for Read {
    fn of_key(&self, bucket: &str, key: &str) -> Result<Vec<Past>, String> {
        guarded(|| {
            let Some(rows) = opened(self.0.open_table(ROWS))? else {
                return Ok(Vec::new());
            };
            let all = rows.range(all_of(bucket.as_bytes(), key.as_bytes()))?;
            let all = all.rev().map(|row| {
                let (at, row) = row?;
                Ok(past(at.value().2, row.value()))
            });
            all.collect()
        })
    }

    fn of_revision(&self, bucket: &str, revision: Revision) -> Result<Vec<Step>, String> {
        guarded(|| {
            let rows = opened(self.0.open_table(ROWS))?;
            let order = opened(self.0.open_table(ORDER))?;
            let (Some(rows), Some(order)) = (rows, order) else {
                return Ok(Vec::new());
            };
            let bucket = bucket.as_bytes();
            let begin = (bucket, revision.0, &[][..]);
            let end = (bucket, revision.0.saturating_add(1), &[][..]);
            let mut steps = Vec::new();
            for row in order.range(begin..end)? {
                let (at, _) = row?;
                let (_, _, key) = at.value();
                let text = std::str::from_utf8(key);
                let text = text.map_err(|_| redb::Error::Corrupted("a key is not UTF-8".into()))?;
                let mut all = rows.range(all_of(bucket, key))?;
                let Some(last) = all.next_back() else {
                    continue;
                };
                let last = last?.0.value().2;
                let mut until = rows.range((bucket, key, 0)..=(bucket, key, revision.0))?;
                let Some(after) = until.next_back() else {
                    continue;
                };
                let after = after?;
                let before = match until.next_back() {
                    None => None,
                    Some(row) => {
                        let (at, row) = row?;
                        Some(past(at.value().2, row.value()))
                    }
                };
                steps.push(Step {
                    key: text.into(),
                    after: past(after.0.value().2, after.1.value()),
                    before,
                    last: Revision(last),
                });
            }
            Ok(steps)
        })
    }
}

/// A table, if there is one.
fn opened<T>(table: Result<T, TableError>) -> Result<Option<T>, redb::Error> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn past(
    revision: u64,
    (_, at, deadline, flags, by, value): (u64, u64, u64, u8, &str, &[u8]),
) -> Past {
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
