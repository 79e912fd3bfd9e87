//! The last changes of each bucket, for those who watch it: bounded, in memory, empty at every start.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::backend::Change;
use super::record::Record;
use super::snapshot::Snapshot;
use super::{BucketId, Entry, Revision};

/// Most changes of a bucket that are kept, and most bytes of their keys and values.
const CHANGES_MAX: usize = 16_384;
const BYTES_MAX: u64 = 4 << 20;

/// What one revision changed in a bucket.
pub struct Group {
    /// The revision.
    pub revision: Revision,
    changes: Vec<Logged>,
    bytes: u64,
}

struct Logged {
    /// The entry as it became, or as it was last.
    record: Arc<Record>,
    end: Option<Ending>,
}

/// How an entry went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Somebody deleted it.
    Deleted,
    /// Its deadline came.
    Expired,
}

impl Group {
    /// Each changed key, with the entry as it became, or how it went.
    pub fn changes(&self) -> impl Iterator<Item = (&str, Result<&Entry, Ending>)> {
        self.changes.iter().map(|logged| {
            let entry = logged.end.map_or(Ok(&logged.record.entry), Err);
            (logged.record.key(), entry)
        })
    }
}

/// The log of every bucket.
#[derive(Default)]
pub(super) struct Log {
    /// By [`BucketId`]. Held for as long as it takes to add or to find a group.
    buckets: Mutex<Vec<BucketLog>>,
}

struct BucketLog {
    /// How often it was loaded anew.
    epoch: u64,
    /// Changes up to this revision are not here.
    floor: Revision,
    groups: VecDeque<Arc<Group>>,
    changes: usize,
    bytes: u64,
}

/// What a log has after a revision.
pub(super) enum After {
    Nothing,
    Group(Arc<Group>),
    /// Something that is no longer here: it has what came after this revision.
    Compacted(Revision),
}

impl Log {
    /// Begins the logs of buckets that are new in a state.
    pub(super) fn read(&self, snapshot: &Snapshot) {
        let mut buckets = self.lock();
        let known = buckets.len();
        let new = snapshot.buckets.iter().skip(known);
        buckets.extend(new.map(|bucket| BucketLog {
            epoch: 0,
            floor: bucket.revision,
            groups: VecDeque::new(),
            changes: 0,
            bytes: 0,
        }));
    }

    /// Adds changes, in the order in which they were made. Touches change nothing that is watched.
    pub(super) fn add<'c>(&self, changes: impl Iterator<Item = &'c Change>) {
        let mut buckets = self.lock();
        // A batch may have written to several buckets in turns.
        let mut open: Vec<Option<Group>> = Vec::new();
        open.resize_with(buckets.len(), || None);
        for change in changes.filter(|change| !change.is_touch()) {
            let at = change.id.0 as usize;
            let (Some(record), Some(open)) = (
                change.after.as_ref().or(change.before.as_ref()),
                open.get_mut(at),
            ) else {
                continue;
            };
            let revision = change.bucket_after;
            let group = match open {
                Some(group) if group.revision == revision => group,
                other => {
                    if let Some(whole) = other.take() {
                        buckets[at].add(whole);
                    }
                    other.insert(Group {
                        revision,
                        changes: Vec::new(),
                        bytes: 0,
                    })
                }
            };
            group.bytes = group.bytes.saturating_add(record.bytes());
            if group.is_too_large() {
                // It will not be kept, and need not take memory meanwhile.
                group.changes = Vec::new();
                group.bytes = u64::MAX;
                continue;
            }
            group.changes.push(Logged {
                record: Arc::clone(record),
                end: match (&change.after, change.expired) {
                    (Some(_), _) => None,
                    (None, false) => Some(Ending::Deleted),
                    (None, true) => Some(Ending::Expired),
                },
            });
        }
        for (bucket, open) in buckets.iter_mut().zip(open) {
            if let Some(whole) = open {
                bucket.add(whole);
            }
        }
    }

    /// A bucket was loaded anew at this revision: what was told is not so any more, or something between was not told.
    pub(super) fn restart(&self, bucket: BucketId, revision: Revision) {
        if let Some(log) = self.lock().get_mut(bucket.0 as usize) {
            log.epoch += 1;
            log.groups.clear();
            (log.changes, log.bytes, log.floor) = (0, 0, revision);
        }
    }

    /// How often a bucket was loaded anew.
    pub(super) fn epoch(&self, bucket: BucketId) -> u64 {
        let buckets = self.lock();
        buckets.get(bucket.0 as usize).map_or(0, |log| log.epoch)
    }

    /// The first group of a bucket after a revision of that epoch.
    pub(super) fn after(&self, bucket: BucketId, (epoch, since): (u64, Revision)) -> After {
        let buckets = self.lock();
        let Some(log) = buckets.get(bucket.0 as usize) else {
            return After::Nothing;
        };
        if since < log.floor || epoch != log.epoch {
            return After::Compacted(log.floor);
        }
        let next = log.groups.partition_point(|group| group.revision <= since);
        match log.groups.get(next) {
            Some(group) => After::Group(Arc::clone(group)),
            None => After::Nothing,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<BucketLog>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn is_too_large(&self) -> bool {
        self.changes.len() >= CHANGES_MAX || self.bytes > BYTES_MAX
    }
}

impl BucketLog {
    fn add(&mut self, group: Group) {
        if group.is_too_large() {
            self.groups.clear();
            (self.changes, self.bytes, self.floor) = (0, 0, group.revision);
            return;
        }
        self.changes += group.changes.len();
        self.bytes += group.bytes;
        self.groups.push_back(Arc::new(group));
        while self.changes > CHANGES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.groups.pop_front() else {
                break;
            };
            self.changes -= oldest.changes.len();
            self.bytes -= oldest.bytes;
            self.floor = oldest.revision;
        }
    }
}
