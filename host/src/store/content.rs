//! All of some buckets, asked for anew because what came between is not known: made ready beside the store's writer, which
//! then only has to do with what differs, however much is as it was.

use std::collections::HashMap;
use std::sync::Arc;

use super::record::Record;
use super::shared::{Loaded, SharedEntry};
use super::snapshot::{Bucket, Snapshot};
use super::table::Table;
use super::{BackendKind, BucketConfig, Deadline, Entry, Revision, Value, check_key};

/// What an engine holds of some buckets.
pub(super) struct Content {
    pub(super) revision: Revision,
    pub(super) buckets: Vec<BucketContent>,
}

/// What it holds of one.
pub(super) struct BucketContent {
    pub(super) name: Box<str>,
    /// By which its entries were read.
    config: Arc<BucketConfig>,
    /// What the bucket had then.
    known: Table,
    pub(super) loaded: Table,
    /// Keys of which these two have different entries.
    differing: Vec<Box<str>>,
    /// What does not fit the config.
    misfits: Vec<SharedEntry>,
}

impl Content {
    /// Of the buckets of these names, as far as a state has them. Takes a second for a million entries.
    pub(super) fn new(
        snapshot: &Snapshot,
        kind: BackendKind,
        names: &[Box<str>],
        loaded: Loaded,
    ) -> Self {
        let mut by_bucket: HashMap<Box<str>, Vec<SharedEntry>> = HashMap::new();
        for entry in loaded.entries {
            match by_bucket.get_mut(&entry.bucket) {
                Some(entries) => entries.push(entry),
                None => drop(by_bucket.insert(entry.bucket.clone(), vec![entry])),
            }
        }
        let buckets = names.iter().filter_map(|name| {
            let bucket = snapshot.bucket_on(kind, name)?;
            let entries = by_bucket.remove(name).unwrap_or_default();
            Some(BucketContent::new(
                &snapshot.buckets[bucket.0 as usize],
                entries,
            ))
        });
        Self {
            revision: loaded.revision,
            buckets: buckets.collect(),
        }
    }
}

impl BucketContent {
    fn new(bucket: &Bucket, entries: Vec<SharedEntry>) -> Self {
        let (config, known) = (Arc::clone(&bucket.config), bucket.table.clone());
        let mut misfits = Vec::new();
        let records = entries.into_iter().filter_map(|entry| {
            let record = record(&config, &entry);
            if record.is_none() {
                misfits.push(entry);
            }
            record
        });
        let loaded = known.load_like(records);
        let differing = loaded.differing(&known).map(Box::from).collect();
        Self {
            name: config.name.as_str().into(),
            config,
            known,
            loaded,
            differing,
            misfits,
        }
    }

    /// The same for a bucket that has another config by now, if that reads entries in another way.
    pub(super) fn read_for(self, bucket: &Bucket) -> Self {
        let (was, is) = (&self.config, &bucket.config);
        if was.values == is.values && was.lookup == is.lookup {
            return self;
        }
        let records = self.loaded.iter().map(|record| SharedEntry {
            bucket: self.name.clone(),
            key: record.key().into(),
            value: record.entry.value.to_bytes().into(),
            revision: record.entry.revision,
            expires_at_ms: record.entry.deadline.map(Deadline::millis),
        });
        let entries = records.chain(self.misfits).collect();
        Self::new(bucket, entries)
    }

    /// Each key, once, of which a bucket may hold something else than this, with what it holds.
    pub(super) fn differing<'c>(&'c self, bucket: &'c Bucket) -> impl Iterator<Item = Told<'c>> {
        let entry = |table: &'c Table, key: &str| table.get(key).map(|record| &record.entry);
        let differed = move |key: &str| entry(&self.loaded, key) != entry(&self.known, key);
        let changed = move |key: &str| entry(&bucket.table, key) != entry(&self.known, key);
        // What was so when it was loaded, what came since then, and what is hidden.
        let first = self.differing.iter().map(|key| &**key);
        let since = bucket.table.differing(&self.known);
        let since = since.filter(move |key| !differed(key));
        let over = bucket.over.iter().flat_map(|over| over.iter());
        let over = over.map(Record::key);
        let over = over.filter(move |key| !differed(key) && !changed(key));
        first.chain(since).chain(over).map(|key| Told {
            held: bucket.table.get(key).or_else(|| bucket.over(key)),
            loaded: self.loaded.get(key),
        })
    }
}

/// What a bucket holds of a key, and what its engine does.
pub(super) struct Told<'c> {
    pub(super) held: Option<&'c Record>,
    pub(super) loaded: Option<&'c Record>,
}

/// What was loaded of one bucket. Values that do not fit it are left out, and logged.
pub(super) fn table(config: &BucketConfig, loaded: Loaded) -> Table {
    let entries = loaded.entries.iter();
    Table::load(entries.filter_map(|entry| record(config, entry)))
}

/// None, so that the key is absent, if some other program wrote what the bucket cannot hold.
pub(super) fn record(config: &BucketConfig, entry: &SharedEntry) -> Option<Record> {
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
