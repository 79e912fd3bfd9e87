//! Where a store keeps its data: what the writer asks of a backend, and which ones there are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::table::Record;
use super::{BackendKind, BucketConfig, BucketId, OpenError, Revision};

mod embedded;
#[cfg(test)]
mod faulty;
mod memory;

use embedded::Embedded;
#[cfg(test)]
pub(super) use faulty::{Faults, faulty};
use memory::Memory;

/// One entry created, changed, touched or deleted. Both records have the same key.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) bucket: Arc<BucketConfig>,
    pub(super) id: BucketId,
    pub(super) before: Option<Arc<Record>>,
    pub(super) after: Option<Arc<Record>>,
    /// The bucket's revision before the change, and after it.
    pub(super) bucket_before: Revision,
    pub(super) bucket_after: Revision,
    /// Whether it was deleted because its deadline had come.
    pub(super) expired: bool,
}

impl Change {
    /// Whether only the deadline changed: the entry keeps its revision then.
    pub(super) fn is_touch(&self) -> bool {
        let revision = |record: &Option<Arc<Record>>| record.as_ref().map(|it| it.entry.revision);
        self.before.is_some() && revision(&self.before) == revision(&self.after)
    }

    pub(super) fn key(&self) -> &[u8] {
        let record = self.after.as_ref().or(self.before.as_ref());
        record.map_or(&[], |record| record.key_bytes())
    }
}

/// A bucket as the backend has it.
pub(super) struct Loaded {
    pub(super) records: Vec<Arc<Record>>,
    pub(super) revision: Revision,
}

/// Keeps buckets for the writer, which alone calls it, on its own thread.
///
/// What a backend has to do with each part of a write:
/// - **Revisions.** The writer proposes them, one more than the newest it knows of all buckets. An entry, a bucket and the
///   store each have the revision of their last change; a touch moves none of them.
/// - **Transactions.** A group is made durable all or none. What each of its batches required was checked against the state
///   that the writer has, and is in the changes as data: an entry has to be as `before` says, by its revision, or absent.
///   One process alone owns a file or its memory, so these backends need not look. One that several processes write to has
///   to require it in the same transaction, and to fail the write if it does not hold; the batches are tried afresh then.
/// - **Deadlines** are data of the entry, in Unix time, and the writer deletes what has ended by a write like any other. A
///   backend that ends entries by itself (a lease) may do so; that delete arrives like a write of another process, and the
///   writer's own, finding nothing, is no change. A touch is a change whose records differ in the deadline alone.
/// - **Following.** What other processes write has to reach the writer as changes in order of their revisions, so that it
///   publishes each whole; after a gap the bucket is loaded again by [`Backend::load`] and compared with what there was.
pub(super) trait Backend: Send {
    /// The newest revision it holds.
    fn revision(&self) -> Revision;

    /// Everything of a bucket, entries that have ended since among them.
    fn load(&mut self, bucket: &BucketConfig) -> Result<Loaded, OpenError>;

    /// Makes changes durable, all or none; `revision` is the store's after the last. After an error the backend has what it
    /// had before, and the next write is tried afresh.
    fn write(&mut self, revision: Revision, changes: &[Change]) -> Result<(), String>;
}

/// The backends of one store, opened when a bucket first needs them.
pub(super) struct Backends {
    dir: PathBuf,
    memory: Memory,
    embedded: Option<Box<dyn Backend>>,
}

impl Backends {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            memory: Memory,
            embedded: None,
        }
    }

    #[cfg(test)]
    pub(super) fn with_embedded(embedded: Box<dyn Backend>) -> Self {
        Self {
            dir: PathBuf::new(),
            memory: Memory,
            embedded: Some(embedded),
        }
    }

    pub(super) fn open(&mut self, kind: BackendKind) -> Result<&mut dyn Backend, OpenError> {
        match kind {
            BackendKind::Memory => Ok(&mut self.memory),
            BackendKind::Embedded => {
                let embedded = match self.embedded.take() {
                    Some(embedded) => embedded,
                    None => Box::new(Embedded::open(&self.dir)?),
                };
                Ok(self.embedded.insert(embedded).as_mut())
            }
        }
    }

    /// Makes a group durable. Only the embedded backend has anything to write, so there is one that can fail.
    pub(super) fn write(&mut self, revision: Revision, changes: &[Change]) -> Result<(), Failed> {
        let durable: Vec<Change> = changes
            .iter()
            .filter(|change| change.bucket.backend != BackendKind::Memory)
            .cloned()
            .collect();
        if durable.is_empty() {
            return Ok(());
        }
        let backend = BackendKind::Embedded;
        self.open(backend)
            .map_err(|error| error.to_string())
            .and_then(|embedded| embedded.write(revision, &durable))
            .map_err(|reason| Failed { backend, reason })
    }
}

/// Which backend took nothing of a group, and why.
pub(super) struct Failed {
    pub(super) backend: BackendKind,
    pub(super) reason: String,
}
