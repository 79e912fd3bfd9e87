//! An immutable state of all buckets at one revision.

use super::{BucketConfig, BucketId, Revision, Value};

/// All buckets at one revision.
pub struct Snapshot {
    _private: (),
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
        unimplemented!()
    }
    /// A bucket's id by its name in the config.
    pub fn bucket_id(&self, _name: &str) -> Option<BucketId> {
        unimplemented!()
    }
    /// A bucket by id.
    pub fn bucket(&self, _id: BucketId) -> Option<&Bucket> {
        unimplemented!()
    }
    /// Every bucket of the config, in order of name.
    pub fn buckets(&self) -> impl Iterator<Item = (BucketId, &Bucket)> {
        std::iter::empty()
    }
}

/// One bucket at one revision.
pub struct Bucket {
    _private: (),
}

impl Bucket {
    /// Its config.
    pub fn config(&self) -> &BucketConfig {
        unimplemented!()
    }
    /// The entry under a key.
    pub fn get(&self, _key: &str) -> Option<&Entry> {
        unimplemented!()
    }
    /// How many keys there are.
    pub fn len(&self) -> u64 {
        unimplemented!()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
    /// The revision of the last change to this bucket.
    pub fn revision(&self) -> Revision {
        unimplemented!()
    }
    /// At most `limit` keys with `prefix`, after `after`, in byte order.
    pub fn page(&self, _prefix: &str, _after: Option<&str>, _limit: usize) -> Page {
        unimplemented!()
    }
    /// Every key, in byte order: for exports; takes memory for one sorted index.
    pub fn sorted(&self) -> Vec<(&str, &Entry)> {
        unimplemented!()
    }
}
