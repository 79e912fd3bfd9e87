//! Where a store keeps its data: what the writer asks of a backend, and which ones there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::data_file::{Compacted, FileError, Source, SyncPolicy};
use super::history::{Histories, Origin};
use super::record::Record;
use super::shared::Links;
use super::shared::link::Wanted;
use super::snapshot::Snapshot;
use super::table::Table;
use super::writer::Command;
use super::{BackendKind, BucketConfig, BucketId, OpenError, Revision};

mod data_file;
mod embedded;
#[cfg(test)]
mod faulty;
mod fetch;
mod memory;

use embedded::Embedded;
pub(super) use embedded::{check as check_file, copy as copy_file, use_of as use_of_file};
#[cfg(test)]
pub(super) use faulty::{Faults, faulty};
pub(super) use fetch::{Fetched, Fetcher};
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
    /// Who made it, if its bucket keeps a history and that is known.
    pub(super) origin: Option<Arc<Origin>>,
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
    pub(super) table: Table,
    pub(super) revision: Revision,
}

/// Why a backend did not take a group: nothing of it was applied.
#[derive(Debug)]
pub(super) struct WriteError(pub(super) String);

/// Lets a backend's own thread see what readers see, and tell the writer that something has arrived.
#[derive(Clone)]
pub(super) struct Wake {
    newest: Arc<ArcSwap<Snapshot>>,
    commands: Sender<Command>,
    kind: BackendKind,
    /// Told, and not asked yet: the writer's queue holds one of these at most.
    pending: Arc<AtomicBool>,
}

impl Wake {
    /// Has the writer ask what arrived.
    pub(super) fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            // Nobody is left to be told once the store is closed.
            let _ = self.commands.send(Command::Arrived(self.clone()));
        }
    }

    /// What readers see.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.newest.load_full()
    }

    /// The backend.
    pub(super) fn kind(&self) -> BackendKind {
        self.kind
    }

    /// The backend to ask, from now on to be told of again.
    pub(super) fn take(self) -> BackendKind {
        self.pending.store(false, Ordering::SeqCst);
        self.kind
    }
}

/// Keeps buckets of this process's own for the writer, which alone calls it, on its own thread. What processes share is
/// written and followed in another way: see [`super::shared`].
///
/// What a backend has to do with each part of a write:
/// - **Revisions.** The writer proposes them, one more than the newest it knows of all buckets. An entry, a bucket and the
///   store each have the revision of their last change; a touch moves none of them.
/// - **Transactions.** A group is made durable all or none. What each of its batches required was checked against the state
///   that the writer has. One process alone owns a file or its memory, so a backend need not look again.
/// - **Deadlines** are data of the entry, in Unix time, and the writer deletes what has ended by a write like any other.
pub(super) trait Backend: Send {
    /// The newest revision it holds.
    fn revision(&self) -> Revision;

    /// Everything of a bucket, entries that have ended since among them.
    fn load(&mut self, bucket: &BucketConfig) -> Result<Loaded, OpenError>;

    /// Makes changes durable, all or none; `revision` is the store's after the last. After an error the backend has what it
    /// had before, and the next write is tried afresh.
    fn write(&mut self, revision: Revision, changes: &[Change]) -> Result<(), WriteError>;

    /// When [`Self::sync`] is due; none if all that was written is as durable as it will be.
    fn sync_by(&self) -> Option<Instant> {
        None
    }

    /// Makes durable what was written before, and undoes what was refused. After an error the next call tries again.
    fn sync(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Makes its file smaller.
    fn compact(&mut self) -> Result<Compacted, FileError> {
        Err(FileError::None)
    }

    /// Its file as it is now.
    fn source(&mut self) -> Result<Source, FileError> {
        Err(FileError::None)
    }

    /// Reads, on another thread, what it keeps of the past of keys: that of every write so far. Only asked of a backend that
    /// [keeps it](BackendKind::keeps_history).
    fn histories(&mut self) -> Result<Box<dyn Histories>, String> {
        Err("this backend keeps no history".into())
    }
}

/// The backends of one store, opened when a bucket first needs them.
pub(super) struct Backends {
    dir: PathBuf,
    sync: SyncPolicy,
    memory: Memory,
    embedded: Option<Box<dyn Backend>>,
    /// Those that processes share.
    links: Arc<Links>,
    /// What of each is to be followed.
    followed: BTreeMap<BackendKind, BTreeMap<Box<str>, Option<Revision>>>,
}

impl Backends {
    /// Without any that processes share.
    #[cfg(test)]
    pub(super) fn new(dir: &Path) -> Self {
        let links = Links::new(crate::store::SharedSettings::default(), dir);
        Self::with_links(dir, Arc::new(links))
    }

    pub(super) fn with_links(dir: &Path, links: Arc<Links>) -> Self {
        Self {
            dir: dir.to_owned(),
            sync: SyncPolicy::default(),
            memory: Memory,
            embedded: None,
            links,
            followed: BTreeMap::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn with_embedded(embedded: Box<dyn Backend>) -> Self {
        Self {
            embedded: Some(embedded),
            ..Self::new(Path::new(""))
        }
    }

    pub(super) fn links(&self) -> &Arc<Links> {
        &self.links
    }

    /// One of this process's own.
    fn open(&mut self, is_durable: bool) -> Result<&mut dyn Backend, OpenError> {
        if !is_durable {
            return Ok(&mut self.memory);
        }
        let embedded = match self.embedded.take() {
            Some(embedded) => embedded,
            None => Box::new(Embedded::open(&self.dir, self.sync)?),
        };
        Ok(self.embedded.insert(embedded).as_mut())
    }

    /// Everything of a bucket of this process's own, and the newest revision of the backend.
    pub(super) fn load(&mut self, config: &BucketConfig) -> Result<(Loaded, Revision), OpenError> {
        if config.backend.is_shared() {
            return Err(OpenError::Shared {
                backend: config.backend,
                reason: format!("bucket {:?} was not loaded before", config.name),
            });
        }
        let backend = self.open(config.backend == BackendKind::Embedded)?;
        let loaded = backend.load(config)?;
        Ok((loaded, backend.revision()))
    }

    /// Has buckets followed from now on, each once, beside those that are.
    pub(super) fn add_followed(&mut self, buckets: Vec<(BackendKind, Wanted)>) {
        for (kind, (name, from)) in buckets {
            let followed = self.followed.entry(kind).or_default();
            followed.entry(name).or_insert(from);
        }
    }

    /// Follows all that was loaded.
    pub(super) fn follow(&self) {
        for (kind, buckets) in &self.followed {
            if let Some(link) = self.links.get(*kind) {
                let buckets = buckets.iter();
                link.follow(buckets.map(|(name, from)| (name.clone(), *from)).collect());
            }
        }
    }

    /// Makes a group durable. Only the embedded backend has anything to write, so there is one that can fail.
    pub(super) fn write(
        &mut self,
        revision: Revision,
        changes: &[Change],
    ) -> Result<(), WriteError> {
        let is_durable = |change: &&Change| change.bucket.backend == BackendKind::Embedded;
        let durable = changes.iter().filter(is_durable).count();
        if durable == 0 {
            return Ok(());
        }
        // A group is seldom for several backends, and may be large.
        let some: Vec<Change>;
        let changes = match durable == changes.len() {
            true => changes,
            false => {
                some = changes.iter().filter(is_durable).cloned().collect();
                &some
            }
        };
        self.open(true)
            .map_err(|error| WriteError(error.to_string()))?
            .write(revision, changes)
    }

    /// What the embedded backend keeps of the past of keys.
    pub(super) fn histories(&mut self) -> Result<Box<dyn Histories>, String> {
        let backend = self.open(true).map_err(|error| error.to_string())?;
        backend.histories()
    }
}
