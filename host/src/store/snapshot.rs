//! An immutable state of all buckets at one revision.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::lookup::LookupKind;
use super::patterns::Patterns;
use super::record::Record;
use super::table::Table;
use super::{BackendKind, BucketConfig, BucketId, Deadline, Revision, Value};

/// All buckets at one revision.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) revision: Revision,
    /// By [`BucketId`].
    pub(super) buckets: Vec<Bucket>,
    /// Those of the config.
    pub(super) names: Arc<BTreeMap<String, BucketId>>,
    /// Where marks are: one bucket for each backend that has any.
    pub(super) marks: Arc<[BucketId]>,
    /// Where the nodes of a fleet tell each other what they are to have, and have.
    pub(super) fleet: Option<BucketId>,
}

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// When it was last changed.
    pub revision: Revision,
    /// When it ends, if it does.
    pub deadline: Option<Deadline>,
}

/// Some keys of a bucket in byte order.
#[derive(Debug, Clone)]
pub struct Page {
    /// Keys with their entries.
    pub entries: Vec<(Box<str>, Entry)>,
    /// Where the next page begins: give it as `after`. None at the end.
    pub next: Option<Box<str>>,
}

impl Snapshot {
    /// The store's revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A bucket's id by its name in the config.
    pub fn bucket_id(&self, name: &str) -> Option<BucketId> {
        self.names.get(name).copied()
    }

    /// The bucket of marks: what this program itself remembers, in one batch with what it is about, which is on the same
    /// backend. It has no name, so that nobody else finds it. None before the first config.
    pub fn marks_beside(&self, bucket: Option<BucketId>) -> Option<BucketId> {
        let backend = bucket.and_then(|id| Some(self.bucket(id)?.config.backend));
        let shared = backend.filter(|backend| backend.is_shared());
        let beside = shared.and_then(|backend| self.marks_on(backend));
        beside.or_else(|| self.marks.first().copied())
    }

    /// The bucket of the fleet, if this is a node of one. It has no name either.
    pub fn fleet(&self) -> Option<BucketId> {
        self.fleet
    }

    /// The bucket of marks on a backend.
    pub(super) fn marks_on(&self, backend: BackendKind) -> Option<BucketId> {
        let is_on = |id: &&BucketId| {
            let bucket = self.bucket(**id);
            bucket.is_some_and(|bucket| bucket.config.backend == backend)
        };
        self.marks.iter().find(is_on).copied()
    }

    /// The mark of a key, wherever it was set last.
    pub fn mark(&self, key: &str) -> Option<&Entry> {
        let marks = self.marks.iter();
        let marks = marks.filter_map(|id| self.bucket(*id)?.get(key));
        marks.max_by_key(|mark| mark.revision)
    }

    /// The bucket of that name on a backend, whether or not the config still has it.
    pub(super) fn bucket_on(&self, backend: BackendKind, name: &str) -> Option<BucketId> {
        let mut buckets = self.buckets.iter();
        let at = buckets
            .position(|bucket| bucket.config.name == name && bucket.config.backend == backend)?;
        u32::try_from(at).ok().map(BucketId)
    }

    /// A bucket by id.
    pub fn bucket(&self, id: BucketId) -> Option<&Bucket> {
        self.buckets.get(id.0 as usize)
    }

    /// Entries of the buckets asked for whose value is another than in `before`, those that came or went among them.
    pub fn changed_since(
        &self,
        before: &Snapshot,
        is_wanted: impl Fn(BucketId) -> bool,
    ) -> Vec<(BucketId, Box<str>)> {
        let ids = (0..).map(BucketId);
        let buckets = ids.zip(before.buckets.iter().zip(&self.buckets));
        let changed = buckets
            .filter(|(id, (before, after))| is_wanted(*id) && !after.table.is_same(&before.table));
        let keys = changed.flat_map(|(id, (before, after))| {
            let keys = after.table.changed_since(&before.table);
            keys.map(move |key| (id, key.into()))
        });
        keys.collect()
    }

    /// Every bucket of the config, in order of name.
    pub fn buckets(&self) -> impl Iterator<Item = (BucketId, &Bucket)> {
        self.names
            .values()
            .filter_map(|&id| Some((id, self.bucket(id)?)))
    }

    /// The same, and that of the fleet: those whose entries may end.
    pub(super) fn ending(&self) -> impl Iterator<Item = BucketId> {
        self.names.values().copied().chain(self.fleet)
    }
}

/// One bucket at one revision.
#[derive(Clone)]
pub struct Bucket {
    pub(super) config: Arc<BucketConfig>,
    pub(super) table: Table,
    /// Entries that are over, of which the engine that holds them has yet to tell: nobody finds them. Most buckets have none.
    pub(super) over: Option<Box<Table>>,
    /// Those of its entries whose keys stand for others; none in a bucket of exact keys.
    pub(super) patterns: Option<Arc<Patterns>>,
    pub(super) revision: Revision,
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<'s> {
    /// The key of the entry.
    pub key: &'s str,
    /// The entry.
    pub entry: &'s Entry,
    /// What kind of key it has.
    pub kind: LookupKind,
}

impl Bucket {
    /// A bucket of these entries, some of which are over.
    ///
    /// # Errors
    /// The key that the config does not allow, and why.
    pub(super) fn new(
        config: Arc<BucketConfig>,
        table: Table,
        over: Option<Box<Table>>,
        revision: Revision,
    ) -> Result<Self, (Box<str>, String)> {
        if !config.lookup.is_exact() {
            let hidden = over.iter().flat_map(|over| over.iter());
            for record in table.iter().chain(hidden) {
                let checked = config.lookup.check(record.key());
                checked.map_err(|reason| (record.key().into(), reason))?;
            }
        }
        let mut patterns = Patterns::load(config.lookup, table.iter().cloned());
        if let Some(patterns) = &mut patterns {
            patterns.settle(&config.name);
        }
        Ok(Self {
            patterns: patterns.map(Arc::new),
            config,
            table,
            over,
            revision,
        })
    }

    /// Puts a record in the place of what its key had.
    pub(super) fn insert(&mut self, record: &Record) {
        self.insert_beside(record);
        self.table.insert(record);
    }

    /// Puts records of distinct keys in the places of what these had: faster than one by one.
    pub(super) fn insert_all(&mut self, records: &[&Record]) {
        if self.patterns.is_some() || self.over.is_some() {
            records.iter().for_each(|record| self.insert_beside(record));
        }
        self.table.insert_all(records);
    }

    /// What goes with a record that is put, beside the table.
    fn insert_beside(&mut self, record: &Record) {
        if let Some(patterns) = self.patterns_for(record.key()) {
            patterns.insert(record);
        }
        self.forget_over(record.key());
    }

    /// Removes what the key has, if anything.
    pub(super) fn remove(&mut self, key: &str) {
        self.remove_beside(key);
        self.table.remove(key);
    }

    /// Removes what the keys of these records have: faster than one by one.
    pub(super) fn remove_all(&mut self, records: &[&Record]) {
        if self.patterns.is_some() || self.over.is_some() {
            let keys = records.iter().map(|record| record.key());
            keys.for_each(|key| self.remove_beside(key));
        }
        let keys = records.iter().map(|record| record.key_bytes());
        self.table.remove_all(keys);
    }

    /// What goes with a key that is removed, beside the table.
    fn remove_beside(&mut self, key: &str) {
        if let Some(patterns) = self.patterns_for(key) {
            patterns.remove(key);
        }
        self.forget_over(key);
    }

    /// Hides entries that are over, until the engine that holds them tells of it.
    pub(super) fn hide_all(&mut self, records: &[&Record]) {
        self.remove_all(records);
        let over = self.over.get_or_insert_with(|| Box::new(Table::unlisted()));
        records.iter().for_each(|record| over.insert(record));
    }

    /// The entry of a key that is over, if the engine has yet to tell of that.
    pub(super) fn over(&self, key: &str) -> Option<&Record> {
        self.over.as_ref()?.get(key)
    }

    /// Every record that the engine holds, as far as is known: those that are over among them.
    pub(super) fn held(&self) -> impl Iterator<Item = &Record> {
        let over = self.over.iter().flat_map(|over| over.iter());
        self.table.iter().chain(over)
    }

    fn forget_over(&mut self, key: &str) {
        if let Some(over) = &mut self.over {
            over.remove(key);
            if over.len() == 0 {
                self.over = None;
            }
        }
    }

    fn patterns_for(&mut self, key: &str) -> Option<&mut Patterns> {
        let patterns = self.patterns.as_mut()?;
        patterns.is_pattern(key).then(|| Arc::make_mut(patterns))
    }

    /// The entry that is found by a key: the one under it, or the one whose key stands for it.
    #[inline]
    pub fn lookup<'s>(&'s self, key: &'s str) -> Option<Match<'s>> {
        let exact = match &self.patterns {
            Some(patterns) if patterns.is_pattern(key) => None,
            _ => self.get(key),
        };
        match exact {
            Some(entry) => Some(Match {
                key,
                entry,
                kind: LookupKind::Exact,
            }),
            None => self.lookup_pattern(key),
        }
    }

    /// The entry whose key stands for this one, whatever is under the key itself.
    pub fn lookup_pattern(&self, key: &str) -> Option<Match<'_>> {
        let (record, kind) = self.patterns.as_ref()?.find(key)?;
        Some(Match {
            key: record.key(),
            entry: &record.entry,
            kind,
        })
    }

    /// Whether a key stands for others here, and is found by nothing that is asked for.
    pub fn is_pattern(&self, key: &str) -> bool {
        let patterns = self.patterns.as_ref();
        patterns.is_some_and(|patterns| patterns.is_pattern(key))
    }

    /// What kind of key this is here.
    pub fn kind_of(&self, key: &str) -> LookupKind {
        self.config.lookup.shape(key).kind()
    }

    /// Its config.
    pub fn config(&self) -> &BucketConfig {
        &self.config
    }

    /// The entry under a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.table.get(key).map(|record| &record.entry)
    }

    /// How many keys there are.
    pub fn len(&self) -> u64 {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        self.table.bytes()
    }

    /// The revision of the last change to this bucket.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// At most `limit` keys with `prefix`, after `after`, in byte order. Looks at these and no others.
    pub fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let mut found = self.range(prefix, after);
        let entries: Vec<(Box<str>, Entry)> = found
            .by_ref()
            .take(limit)
            .map(|(key, entry)| (key.into(), entry.clone()))
            .collect();
        let last = entries.last().filter(|_| found.next().is_some());
        let next = last.map(|(key, _)| key.clone());
        Page { entries, next }
    }

    /// The keys with `prefix`, after `after`, in byte order.
    pub fn range<'b>(
        &'b self,
        prefix: &'b str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'b str, &'b Entry)> + use<'b> {
        let records = self.table.range(start_of(prefix, after));
        let records = records.map(|record| (record.key(), &record.entry));
        records.take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Every key, in byte order.
    pub fn sorted(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.range("", None)
    }
}

/// Where the keys with `prefix`, after `after`, begin.
pub(crate) fn start_of<'b>(prefix: &'b str, after: Option<&'b str>) -> Bound<&'b str> {
    match after {
        // The prefix itself is a key that has it.
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}
