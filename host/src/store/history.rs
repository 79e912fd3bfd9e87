//! The past of keys: the last values of each, with the time and who wrote them, in buckets that are to keep them.
//!
//! A backend that outlives the process keeps it with the values, in the same transaction (`backend/embedded/history.rs`).
//! For every other one it is remembered here, from the start of the process on: what others wrote among it, by whom if the
//! engine's log says so. Readers of values never look at any of it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::backend::Change;
use super::record::Record;
use super::snapshot::Snapshot;
use super::{BucketId, Deadline, Revision};

/// What a kept value takes beside its key, itself and who wrote it: more than its numbers, so that the limit is one.
pub(super) const ROW_BYTES: u64 = 64;

/// Who changed entries, when, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    /// None is the proxy itself, or somebody unknown.
    pub(super) by: Option<Arc<str>>,
    /// In milliseconds of Unix time.
    pub(super) at: u64,
    /// Whether it put back what was.
    pub(super) undo: bool,
}

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It came to be.
    Created,
    /// It got another value.
    Changed,
    /// It was deleted.
    Deleted,
    /// It came to its end.
    Expired,
    /// Not known: it was so when it was looked at for the first time, or after a time without a history.
    Found,
}

/// One change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The revision that made it.
    pub revision: Revision,
    /// When, in milliseconds of Unix time, if it is known.
    pub at: Option<u64>,
    /// By whom, if it is known.
    pub by: Option<Arc<str>>,
    /// What happened.
    pub event: Event,
    /// Whether it put back what was.
    pub undo: bool,
    /// The value from then on; none: there was none.
    pub value: Option<Box<[u8]>>,
    /// When the entry was to end, as that write had it.
    pub deadline: Option<Deadline>,
}

/// What one revision did to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The key.
    pub key: Box<str>,
    /// What it became.
    pub after: Past,
    /// What it was, if that is kept.
    pub before: Option<Past>,
    /// The revision of its last change.
    pub last: Revision,
}

/// Reads what a backend keeps of the past, as of the time it was asked for.
pub(super) trait Histories: Send {
    /// The changes of a key, the last first.
    fn of_key(&self, bucket: &str, key: &str) -> Result<Vec<Past>, String>;

    /// What a revision changed in a bucket, in the order of keys.
    fn of_revision(&self, bucket: &str, revision: Revision) -> Result<Vec<Step>, String>;
}

/// A change as it is kept.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) revision: Revision,
    /// Counts the rows of a key: all but the last so many go.
    pub(super) place: u64,
    pub(super) event: Event,
    pub(super) origin: Option<Arc<Origin>>,
    pub(super) record: Option<Arc<Record>>,
}

/// The last row of a key.
pub(super) struct Last {
    pub(super) revision: Revision,
    pub(super) place: u64,
    pub(super) is_gone: bool,
}

impl Row {
    /// What a change adds to the rows of its key: before its own, one for what was written without a history.
    pub(super) fn of(change: &Change, last: Option<&Last>) -> (Option<Row>, Row) {
        let mut place = last.map_or(0, |last| last.place + 1);
        let revision = change.bucket_after;
        let found = |revision, record: Option<&Arc<Record>>| Row {
            revision,
            place,
            event: Event::Found,
            origin: None,
            record: record.cloned(),
        };
        let unseen = match (&change.before, last) {
            (Some(before), Some(last)) if before.entry.revision <= last.revision => None,
            (Some(before), _) => Some(found(before.entry.revision, Some(before))),
            // It was deleted meanwhile, by the last change of the bucket at the latest.
            (None, Some(last)) if !last.is_gone => {
                let by = change.bucket_before.0.min(revision.0.saturating_sub(1));
                (by > last.revision.0).then(|| found(Revision(by), None))
            }
            (None, _) => None,
        };
        place += u64::from(unseen.is_some());
        let event = match (&change.before, &change.after, change.expired) {
            (None, Some(_), _) => Event::Created,
            (Some(_), Some(_), _) => Event::Changed,
            (_, None, true) => Event::Expired,
            (_, None, false) => Event::Deleted,
        };
        let row = Row {
            revision,
            place,
            event,
            origin: change.origin.clone(),
            record: change.after.clone(),
        };
        (unseen, row)
    }

    /// What it counts against the limit.
    pub(super) fn bytes(&self, key: &str) -> u64 {
        let by = self.origin.as_ref().and_then(|origin| origin.by.as_ref());
        let value = self
            .record
            .as_ref()
            .map_or(0, |record| record.entry.value.len());
        ROW_BYTES + (key.len() + by.map_or(0, |by| by.len()) + value) as u64
    }

    fn past(&self) -> Past {
        let entry = self.record.as_ref().map(|record| &record.entry);
        let origin = self.origin.as_deref();
        Past {
            revision: self.revision,
            at: origin.map(|origin| origin.at),
            by: origin.and_then(|origin| origin.by.clone()),
            event: self.event,
            undo: origin.is_some_and(|origin| origin.undo),
            value: entry.map(|entry| entry.value.to_bytes().into()),
            deadline: entry.and_then(|entry| entry.deadline),
        }
    }
}

/// The past of buckets whose backend does not keep it.
#[derive(Default)]
pub(super) struct Memory {
    /// By [`BucketId`]. Held for as long as it takes to add changes, or to copy those of a key or of a revision.
    buckets: Mutex<Vec<Remembered>>,
}

#[derive(Default)]
struct Remembered {
    /// The oldest row of a key first.
    keys: HashMap<Arc<str>, VecDeque<Row>, ahash::RandomState>,
    /// Every row, the oldest first.
    order: BTreeSet<(Revision, Arc<str>)>,
    bytes: u64,
}

impl Memory {
    /// Follows a config: what is no longer to be kept is forgotten.
    pub(super) fn read(&self, snapshot: &Snapshot) {
        let mut buckets = self.lock();
        buckets.resize_with(snapshot.buckets.len(), Remembered::default);
        for (remembered, bucket) in buckets.iter_mut().zip(&snapshot.buckets) {
            if bucket.config.history == 0 {
                *remembered = Remembered::default();
            }
        }
    }

    /// Adds changes, in the order in which they were made, at the time `now` if nothing else is known.
    pub(super) fn add(&self, changes: &[Change], now: u64) {
        let is_ours = |change: &&Change| {
            change.bucket.history > 0
                && !change.bucket.backend.keeps_history()
                && !change.is_touch()
        };
        let mut ours = changes.iter().filter(is_ours).peekable();
        if ours.peek().is_none() {
            return;
        }
        let unknown = Arc::new(Origin {
            by: None,
            at: now,
            undo: false,
        });
        let mut buckets = self.lock();
        for change in ours {
            if let Some(bucket) = buckets.get_mut(change.id.0 as usize) {
                bucket.add(change, &unknown);
            }
        }
    }

    /// As [`Histories::of_key`].
    pub(super) fn of_key(&self, bucket: BucketId, key: &str) -> Vec<Past> {
        let buckets = self.lock();
        let rows = buckets
            .get(bucket.0 as usize)
            .and_then(|bucket| bucket.keys.get(key));
        rows.into_iter()
            .flatten()
            .rev()
            .map(|row| row.past())
            .collect()
    }

    /// As [`Histories::of_revision`].
    pub(super) fn of_revision(&self, bucket: BucketId, revision: Revision) -> Vec<Step> {
        let buckets = self.lock();
        let Some(bucket) = buckets.get(bucket.0 as usize) else {
            return Vec::new();
        };
        let end = Revision(revision.0.saturating_add(1));
        let begin: Arc<str> = "".into();
        let keys = bucket
            .order
            .range((revision, Arc::clone(&begin))..(end, begin));
        keys.filter_map(|(_, key)| {
            let rows = bucket.keys.get(key)?;
            let at = rows.iter().rposition(|row| row.revision == revision)?;
            Some(Step {
                key: (&**key).into(),
                after: rows[at].past(),
                before: at.checked_sub(1).map(|at| rows[at].past()),
                last: rows.back()?.revision,
            })
        })
        .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Remembered>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn add(&mut self, change: &Change, unknown: &Arc<Origin>) {
        let record = change.after.as_ref().or(change.before.as_ref());
        let Some(key) = record.map(|record| record.key()) else {
            return;
        };
        let key = match self.keys.get_key_value(key) {
            Some((key, _)) => Arc::clone(key),
            None => key.into(),
        };
        let rows = self.keys.entry(Arc::clone(&key)).or_default();
        let last = rows.back().map(|row| Last {
            revision: row.revision,
            place: row.place,
            is_gone: row.record.is_none(),
        });
        let (unseen, mut row) = Row::of(change, last.as_ref());
        row.origin.get_or_insert_with(|| Arc::clone(unknown));
        let newest = row.place;
        for row in unseen.into_iter().chain([row]) {
            self.bytes += row.bytes(&key);
            self.order.insert((row.revision, Arc::clone(&key)));
            rows.push_back(row);
        }
        let kept = u64::from(change.bucket.history);
        while let Some(row) = rows.pop_front_if(|row| row.place + kept <= newest) {
            self.bytes -= row.bytes(&key);
            self.order.remove(&(row.revision, Arc::clone(&key)));
        }
        while self.bytes > change.bucket.history_bytes_max {
            let Some((_, key)) = self.order.pop_first() else {
                break;
            };
            let Some(rows) = self.keys.get_mut(&key) else {
                continue;
            };
            if let Some(row) = rows.pop_front() {
                self.bytes -= row.bytes(&key);
            }
            if rows.is_empty() {
                self.keys.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BackendKind, BucketConfig, Entry, Value, ValueKind};

    #[test]
    fn what_others_wrote_is_remembered_without_their_name() {
        let config = BucketConfig {
            history: 2,
            ..BucketConfig::new("b", BackendKind::Memory, ValueKind::Bytes)
        };
        let config = Arc::new(config);
        let record = |revision: u64| {
            let entry = Entry {
                value: Value::Bytes(revision.to_string().into_bytes().into()),
                revision: Revision(revision),
                deadline: None,
            };
            Record::new("k", entry)
        };
        let change = |before: Option<u64>, after: u64| Change {
            bucket: Arc::clone(&config),
            id: BucketId(0),
            before: before.map(record).map(Arc::new),
            after: Some(Arc::new(record(after))),
            bucket_before: Revision(before.unwrap_or(0)),
            bucket_after: Revision(after),
            expired: false,
            origin: None,
        };
        let memory = Memory::default();
        memory.lock().push(Remembered::default());
        memory.add(&[change(Some(3), 5), change(Some(5), 9)], 1_000);
        let rows = memory.of_key(BucketId(0), "k");
        let told = rows
            .iter()
            .map(|row| (row.revision.0, row.event, row.at, row.by.clone()));
        let expected = [
            (9, Event::Changed, Some(1_000), None),
            (5, Event::Changed, Some(1_000), None),
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        let steps = memory.of_revision(BucketId(0), Revision(9));
        let [step] = &steps[..] else {
            panic!("{steps:?}");
        };
        let before = step.before.as_ref().map(|row| row.revision.0);
        assert_eq!((before, step.last.0), (Some(5), 9));
    }
}
