//! An immutable state of all buckets at one revision.

use super::{BucketConfig, BucketId, Revision, Value};

/// All buckets at one revision.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) revision: Revision,
    pub(super) buckets: Vec<Bucket>,
}

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// When it was last changed.
    pub revision: Revision,
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
        self.buckets
            .iter()
            .position(|b| b.config.name == name)
            .map(|i| BucketId(i as u32))
    }
    /// A bucket by id.
    pub fn bucket(&self, id: BucketId) -> Option<&Bucket> {
        self.buckets.get(id.0 as usize)
    }
    /// Every bucket.
    pub fn buckets(&self) -> impl Iterator<Item = (BucketId, &Bucket)> {
        self.buckets
            .iter()
            .enumerate()
            .map(|(i, b)| (BucketId(i as u32), b))
    }
}

/// One bucket at one revision.
#[derive(Clone)]
pub struct Bucket {
    config: BucketConfig,
    pub(super) entries: imbl::GenericHashMap<
        Box<str>,
        Entry,
        ahash::RandomState,
        imbl::shared_ptr::DefaultSharedPtr,
    >,
}

impl Bucket {
    pub(super) fn new(config: BucketConfig) -> Self {
        Self {
            config,
            entries: Default::default(),
        }
    }
    /// Its config.
    pub fn config(&self) -> &BucketConfig {
        &self.config
    }
    /// The entry under a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }
    /// How many keys there are.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        0
    }
    /// The revision.
    pub fn revision(&self) -> Revision {
        Revision(0)
    }
    /// At most `limit` keys.
    pub fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let mut entries: Vec<_> = self
            .entries
            .iter()
            .filter(|(k, _)| k.starts_with(prefix) && after.is_none_or(|a| &***k > a))
            .map(|(k, e)| (k.clone(), e.clone()))
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.truncate(limit);
        Page {
            entries,
            next: None,
        }
    }
    /// Every key.
    pub fn sorted(&self) -> Vec<(&str, &Entry)> {
        self.entries.iter().map(|(k, e)| (&**k, e)).collect()
    }
}
