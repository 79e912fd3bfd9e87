//! The past of keys in the data file, written in the transaction of what it is about.
//!
//! Three tables, made with the first bucket that is to have a history: `history` maps (bucket, key, revision) to what the
//! key became; `history_order` has the same rows by (bucket, revision, key), each with its size and a hash of it, so that the
//! oldest of a bucket are found, and all of one revision, and a damaged one is noticed; `history_sizes` maps a bucket to the sum
//! of the sizes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use redb::{AccessGuard, ReadableTable, TableDefinition, WriteTransaction};

use super::Change;
use super::file::{caught, damage_that_panicked, has_unexpected_content};
use super::read::end_of;
use super::sum::fnv;
use crate::store::history::{Event, Last, Row};
use crate::store::{BucketConfig, Deadline, Revision};

mod read;

pub(super) use read::{Read, check};

/// A bucket's name, a key and a revision.
type Key = (&'static [u8], &'static [u8], u64);
/// Place, time, deadline (0: none of it), event, by whom, value.
type Value = (u64, u64, u64, u8, &'static str, &'static [u8]);
/// The same while it is read or written.
type Parts<'r> = (u64, u64, u64, u8, &'r str, &'r [u8]);
type OrderKey = (&'static [u8], u64, &'static [u8]);
pub(super) const ROWS: TableDefinition<Key, Value> = TableDefinition::new("history");
/// [`OrderKey`] to [`Sealed`].
pub(super) const ORDER: TableDefinition<OrderKey, u64> = TableDefinition::new("history_order");
pub(super) const SIZES: TableDefinition<&[u8], u64> = TableDefinition::new("history_sizes");

/// Of a row: what it counts against the limit, in the lower half, and a hash of what is in it. Releases before rows had a hash
/// read all of it as a size: what they write beside it no longer adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sealed(u64);

impl Sealed {
    const BYTES: u64 = u32::MAX as u64;

    fn new(bytes: u64, hash: u32) -> Self {
        Self((u64::from(hash) << 32) | bytes.min(Self::BYTES))
    }

    fn bytes(self) -> u64 {
        self.0 & Self::BYTES
    }

    fn hash(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether a row is the one that was written. Before rows had a hash they had 0 in its place.
    fn is_of(self, key: (&[u8], &[u8], u64), row: Parts<'_>) -> bool {
        self.hash() == 0 || self.hash() == hash(key, row)
    }
}

/// Of a row and what it is about; never 0.
fn hash((bucket, key, revision): (&[u8], &[u8], u64), row: Parts<'_>) -> u32 {
    let (place, at, deadline, flags, by, value) = row;
    let numbers = [
        revision,
        place,
        at,
        deadline,
        bucket.len() as u64,
        key.len() as u64,
        by.len() as u64,
    ]
    .map(u64::to_le_bytes);
    let flags = [flags];
    let parts = [
        numbers.as_flattened(),
        &flags,
        bucket,
        key,
        by.as_bytes(),
        value,
    ];
    ((fnv(parts.into_iter().flatten()) >> 32) as u32).max(1)
}

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

/// Buckets whose past nothing is added to, because it is damaged.
pub(super) type Lost = BTreeSet<Box<str>>;

/// That a bucket's past is damaged.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) bucket: Box<str>,
    pub(super) reason: String,
}

/// Keeps changes, which come in the order in which they were made to each key. One that has lost its origin undoes another,
/// which had reached the disk though its write failed: what that has kept is taken back, but not what it let go of.
///
/// Damage is told apart from what fails for another reason: without the past of its bucket the transaction can be made.
pub(super) fn write(
    transaction: &WriteTransaction,
    changes: &[&Change],
    lost: &Lost,
) -> Result<Result<(), Damaged>, redb::Error> {
    let is_kept = |change: &&&Change| {
        let bucket = &change.bucket;
        bucket.history > 0 && !change.is_touch() && !lost.contains(&bucket.name[..])
    };
    let kept: Vec<&Change> = changes.iter().filter(is_kept).copied().collect();
    // They are in the order of buckets.
    for changes in kept.chunk_by(|one, next| one.bucket.name == next.bucket.name) {
        // The config may be another since the first of them.
        let last = changes.iter().max_by_key(|change| change.bucket_after);
        let Some(last) = last else { continue };
        // A panic has to end here: the engine takes a transaction back unless it is dropped by one.
        let reason = match caught(|| keep(transaction, &last.bucket, changes)) {
            Ok(Ok(())) => continue,
            Ok(Err(error)) if !is_damage(&error) => return Err(error),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => damage_that_panicked(panic.as_ref()),
        };
        let bucket = last.bucket.name.as_str().into();
        return Ok(Err(Damaged { bucket, reason }));
    }
    Ok(Ok(()))
}

/// Keeps the changes of a bucket.
fn keep(
    transaction: &WriteTransaction,
    config: &BucketConfig,
    changes: &[&Change],
) -> Result<(), redb::Error> {
    let bucket = config.name.as_bytes();
    let mut sizes = transaction.open_table(SIZES)?;
    let size = sizes.get(bucket)?.map_or(0, |size| size.value());
    let mut tables = Tables {
        rows: transaction.open_table(ROWS)?,
        order: transaction.open_table(ORDER)?,
        size,
    };
    for change in changes {
        match change.origin {
            Some(_) => tables.add(change)?,
            None => tables.remove(bucket, change.key(), change.bucket_before.0)?,
        }
    }
    tables.shrink(config)?;
    sizes.insert(bucket, tables.size)?;
    Ok(())
}

/// Whether an error is of what the file has, and not of the disk.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) => true,
        redb::Error::Io(error) => has_unexpected_content(error),
        _ => false,
    }
}

struct Tables<'t> {
    rows: redb::Table<'t, Key, Value>,
    order: redb::Table<'t, OrderKey, u64>,
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
        let last = self.last(bucket, key.as_bytes())?;
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

    /// The last row of a key. One that is so damaged that it cannot be read goes.
    fn last(&mut self, bucket: &[u8], key: &[u8]) -> Result<Option<Last>, redb::Error> {
        loop {
            let (revision, read) = match self.rows.range(all_of(bucket, key))?.next_back() {
                None => return Ok(None),
                Some(row) => {
                    let (at, row) = row?;
                    (at.value().2, place_and_flags(&row))
                }
            };
            if let Some((place, flags)) = read {
                return Ok(Some(Last {
                    revision: Revision(revision),
                    place,
                    is_gone: flags & GONE != 0,
                }));
            }
            self.remove(bucket, key, revision)?;
        }
    }

    /// Lets the rows of a key go up to a place, and any before it that cannot be read.
    fn trim(&mut self, bucket: &[u8], key: &[u8], last: u64) -> Result<(), redb::Error> {
        loop {
            let (revision, read) = match self.rows.range(all_of(bucket, key))?.next() {
                None => return Ok(()),
                Some(row) => {
                    let (at, row) = row?;
                    (at.value().2, place_and_flags(&row))
                }
            };
            if read.is_some_and(|(place, _)| place > last) {
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
        let at = (bucket, key.as_bytes(), revision);
        let parts = (
            row.place,
            origin.map_or(0, |origin| origin.at),
            deadline.map_or(0, Deadline::millis),
            flags,
            origin
                .and_then(|origin| origin.by.as_deref())
                .unwrap_or_default(),
            value.as_deref().unwrap_or_default(),
        );
        self.rows.insert(at, parts)?;
        let sealed = Sealed::new(row.bytes(key), hash(at, parts));
        let replaced = self
            .order
            .insert((bucket, revision, key.as_bytes()), sealed.0)?
            .map_or(0, |replaced| Sealed(replaced.value()).bytes());
        self.size = self
            .size
            .saturating_sub(replaced)
            .saturating_add(sealed.bytes());
        Ok(())
    }

    fn remove(&mut self, bucket: &[u8], key: &[u8], revision: u64) -> Result<(), redb::Error> {
        self.rows.remove((bucket, key, revision))?;
        let bytes = self
            .order
            .remove((bucket, revision, key))?
            .map_or(0, |sealed| Sealed(sealed.value()).bytes());
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

/// None of a row that is so damaged that the engine panics.
fn place_and_flags(row: &AccessGuard<'_, Value>) -> Option<(u64, u8)> {
    let read = || {
        let (place, _, _, flags, ..) = row.value();
        (place, flags)
    };
    caught(read).ok()
}

fn all_of<'a>(bucket: &'a [u8], key: &'a [u8]) -> RangeInclusive<(&'a [u8], &'a [u8], u64)> {
    (bucket, key, 0)..=(bucket, key, u64::MAX)
}
