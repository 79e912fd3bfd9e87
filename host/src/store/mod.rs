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
    _private: Arc<()>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {}

impl Store {
    /// Opens the buckets, loading those of the embedded backend from `dir/store.redb`, and starts the writer thread.
    ///
    /// # Errors
    /// If the file cannot be created, is in use by another process, or is corrupt: the message says which.
    pub fn open(_buckets: &[BucketConfig], _dir: &Path) -> Result<Store, OpenError> {
        unimplemented!()
    }

    /// Makes the buckets those of a new config: adds new ones, changes limits. A bucket no longer named stays
    /// readable by id until restart but no longer by name; its data on disk is kept.
    pub async fn reconfigure(&self, _buckets: &[BucketConfig]) -> Result<(), OpenError> {
        unimplemented!()
    }

    /// The newest state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        unimplemented!()
    }

    /// A reader for one thread: one atomic load when nothing changed.
    pub fn reader(&self) -> Reader {
        unimplemented!()
    }

    /// Applies a batch, all or none, and returns once it is durable (as far as its backend is) and visible to every
    /// reader. A batch that changes nothing keeps the revision.
    ///
    /// # Errors
    /// See [`CommitError`]; nothing of the batch was applied. If the future is dropped the batch may still be applied.
    pub async fn commit(&self, _batch: WriteBatch) -> Result<Committed, CommitError> {
        unimplemented!()
    }

    /// Stops the writer after what is queued; later commits fail with [`CommitError::Unavailable`].
    pub fn close(&self) {
        unimplemented!()
    }
}

/// One thread's view of the newest snapshot.
pub struct Reader {
    _private: (),
}

impl Reader {
    /// The newest state.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        unimplemented!()
    }
}
