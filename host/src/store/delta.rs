//! What some buckets have in another state than before, in pages: for whoever keeps a view of them.

use std::sync::Arc;

use super::record::Record;
use super::table::{PARTS, Table};
use super::{BucketId, Snapshot, Value};

/// The way from one state of some buckets to another. It holds both until it is dropped.
pub struct Delta {
    /// None: everything has come since.
    before: Option<Arc<Snapshot>>,
    after: Arc<Snapshot>,
    buckets: Arc<[BucketId]>,
    /// The next part to look at: a place in `buckets`, and a part of that bucket's table.
    next: (usize, usize),
    /// That bucket's, before and after.
    tables: Option<(Table, Table)>,
    /// What the last part has that was not told yet, the next at the end.
    found: Vec<Changed>,
}

/// A changed entry.
pub struct Changed {
    bucket: usize,
    record: Record,
    gone: bool,
}

impl Changed {
    /// The place of its bucket in the list that was asked for.
    pub fn bucket(&self) -> usize {
        self.bucket
    }

    /// Its key.
    pub fn key(&self) -> &str {
        self.record.key()
    }

    /// What it is now; none if it is gone.
    pub fn value(&self) -> Option<&Value> {
        (!self.gone).then_some(&self.record.entry.value)
    }

    /// Bytes of its key and its value.
    fn bytes(&self) -> usize {
        let value = self.value().map_or(0, Value::len);
        self.record.key_bytes().len() + value
    }
}

impl Delta {
    /// What these buckets have in `after` that they have not in `before`, and the other way round.
    pub fn new(
        before: Option<Arc<Snapshot>>,
        after: Arc<Snapshot>,
        buckets: Arc<[BucketId]>,
    ) -> Self {
        Self {
            before,
            after,
            buckets,
            next: (0, 0),
            tables: None,
            found: Vec::new(),
        }
    }

    /// The state that it leads to.
    pub fn after(&self) -> &Arc<Snapshot> {
        &self.after
    }

    /// The next changes, all of one bucket: at most so many, and of so many bytes of keys and values unless the first alone
    /// is of more. Empty at the end.
    pub fn page(&mut self, count_max: usize, bytes_max: usize) -> Vec<Changed> {
        let mut page: Vec<Changed> = Vec::new();
        let mut bytes = 0;
        while page.len() < count_max && self.find() {
            let Some(changed) = self.found.pop() else {
                break;
            };
            bytes += changed.bytes();
            let first = page.first();
            if first.is_some_and(|first| first.bucket != changed.bucket || bytes > bytes_max) {
                self.found.push(changed);
                break;
            }
            page.push(changed);
        }
        page
    }

    /// Whether there is more.
    pub fn has_more(&mut self) -> bool {
        self.find()
    }

    /// Looks for the next changes unless some are known; false at the end.
    fn find(&mut self) -> bool {
        while self.found.is_empty() {
            let (place, part) = self.next;
            let Some(&id) = self.buckets.get(place) else {
                return false;
            };
            let (before, after) = self.tables.get_or_insert_with(|| {
                let before = self.before.as_deref();
                (table(before, id), table(Some(&self.after), id))
            });
            if part == PARTS || before.is_same(after) {
                self.tables = None;
                self.next = (place + 1, 0);
                continue;
            }
            self.next = (place, part + 1);
            let changed = after.changed_in(part, before);
            self.found.extend(changed.map(|(record, gone)| Changed {
                bucket: place,
                record: record.clone(),
                gone,
            }));
        }
        true
    }
}

/// What a bucket has in a state; nothing if it is not there.
fn table(snapshot: Option<&Snapshot>, id: BucketId) -> Table {
    let bucket = snapshot.and_then(|snapshot| snapshot.bucket(id));
    bucket.map_or_else(Table::new, |bucket| bucket.table.clone())
}
