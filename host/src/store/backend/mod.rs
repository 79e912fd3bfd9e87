//! Where a store keeps its data: what the writer asks of a backend, and which ones there are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::table::Record;
use super::{BackendKind, BucketConfig, OpenError, Revision};

mod embedded;
#[cfg(test)]
mod faulty;
mod memory;

use embedded::Embedded;
#[cfg(test)]
pub(super) use faulty::{Faults, faulty};
use memory::Memory;

/// One entry created, changed or deleted. Both records have the same key.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) bucket: Arc<BucketConfig>,
    pub(super) before: Option<Arc<Record>>,
    pub(super) after: Option<Arc<Record>>,
    /// The bucket's revision before the change, and after it.
    pub(super) bucket_before: Revision,
    pub(super) bucket_after: Revision,
}

/// A bucket as the backend has it.
pub(super) struct Loaded {
    pub(super) records: Vec<Arc<Record>>,
    pub(super) revision: Revision,
}

/// Keeps buckets for the writer, which alone calls it.
pub(super) trait Backend: Send {
    /// The newest revision it holds.
    fn revision(&self) -> Revision;

    /// Everything of a bucket.
    fn load(&mut self, bucket: &BucketConfig) -> Result<Loaded, OpenError>;

    /// Makes changes durable, all or none; `revision` is that of the last. After an error the backend has what it
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
    pub(super) fn write(&mut self, revision: Revision, changes: Vec<Change>) -> Result<(), Failed> {
        let durable: Vec<Change> = changes
            .into_iter()
            .filter(|change| change.bucket.backend != BackendKind::Memory)
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
