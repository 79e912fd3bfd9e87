//! Routing data: buckets of key → value under one revision counter, read from memory, written through a backend.
//!
//! Every read happens on a [`Snapshot`], an immutable state of all buckets at one [`Revision`]; a decision takes one
//! snapshot and keeps it, so it sees one revision, batches included. Writes go to one writer thread that checks them
//! against the newest state, makes them durable in groups, publishes the next snapshot and only then acknowledges.

use std::path::Path;
use std::sync::Arc;

pub mod backend;
pub mod batch;
pub mod bucket;
pub mod snapshot;
pub mod value;

pub use batch::{CommitError, Committed, Expect, Write, WriteBatch};
pub use bucket::{BackendKind, BucketConfig, BucketId, ValueKind};
pub use snapshot::{Bucket, Entry, Page, Snapshot};
pub use value::{Target, Value, ValueError};

/// The store's counter: each applied batch that changed something is one revision.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<arc_swap::ArcSwap<Snapshot>>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {}

impl Store {
    /// Opens.
    ///
    /// # Errors
    /// Never: this is a stand-in.
    pub fn open(buckets: &[BucketConfig], _dir: &Path) -> Result<Store, OpenError> {
        let snapshot = Snapshot {
            revision: Revision(0),
            buckets: buckets.iter().cloned().map(Bucket::new).collect(),
        };
        Ok(Store {
            shared: Arc::new(arc_swap::ArcSwap::from_pointee(snapshot)),
        })
    }
    /// Stand-in.
    pub async fn reconfigure(&self, _buckets: &[BucketConfig]) -> Result<(), OpenError> {
        Ok(())
    }
    /// The newest state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.load_full()
    }
    /// A reader.
    pub fn reader(&self) -> Reader {
        Reader {
            cache: arc_swap::Cache::new(self.shared.clone()),
        }
    }
    /// Applies a batch.
    ///
    /// # Errors
    /// On conflicts.
    pub async fn commit(&self, batch: WriteBatch) -> Result<Committed, CommitError> {
        let mut next = Snapshot::clone(&self.shared.load_full());
        next.revision.0 += 1;
        let revision = next.revision;
        for write in &batch.writes {
            let bucket = next
                .buckets
                .get_mut(write.bucket.0 as usize)
                .ok_or(CommitError::NoSuchBucket)?;
            let found = bucket.get(&write.key).map(|e| e.revision);
            let holds = match write.expect {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
                Expect::At(r) => found == Some(r),
            };
            if !holds {
                return Err(CommitError::Conflict {
                    bucket: bucket.config().name.clone(),
                    key: write.key.to_string(),
                    found,
                });
            }
            match &write.value {
                Some(value) => {
                    let value = Value::parse(bucket.config().values, value).map_err(|e| {
                        CommitError::Invalid {
                            bucket: String::new(),
                            key: write.key.to_string(),
                            reason: e.0,
                        }
                    })?;
                    bucket
                        .entries
                        .insert(write.key.clone(), Entry { value, revision });
                }
                None => {
                    bucket.entries.remove(&write.key);
                }
            }
        }
        self.shared.store(Arc::new(next));
        Ok(Committed {
            revision,
            created: 0,
            updated: 0,
            deleted: 0,
            unchanged: 0,
        })
    }
    /// Stand-in.
    pub fn close(&self) {}
}

/// One thread's view of the newest snapshot.
pub struct Reader {
    cache: arc_swap::Cache<Arc<arc_swap::ArcSwap<Snapshot>>, Arc<Snapshot>>,
}

impl Reader {
    /// The newest state.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.cache.load()
    }
}
