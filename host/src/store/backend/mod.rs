//! Where a store keeps its data: what the writer asks of a backend, and which ones there are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use super::history::{Histories, Origin};
use super::table::Record;
use super::writer::Command;
use super::{BackendKind, BucketConfig, BucketId, Entry, OpenError, Revision};

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
    pub(super) records: Vec<Arc<Record>>,
    pub(super) revision: Revision,
}

/// Why a backend did not take a group: nothing of it was applied.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Another process has written since this one asked last what arrived. After that the batches are tried afresh.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "no backend of this build is shared")
    )]
    Behind,
    /// It takes no writes now; why.
    Unavailable(String),
}

/// What other processes have written.
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "no backend of this build is shared")
)]
pub(super) enum Arrival {
    /// One transaction: entries as they are after it.
    Changes {
        revision: Revision,
        entries: Vec<Arrived>,
    },
    /// All of a bucket, when its changes can no longer be told one by one.
    Content { bucket: String, loaded: Loaded },
}

/// An entry that another process has written.
pub(super) struct Arrived {
    pub(super) bucket: String,
    pub(super) key: Box<str>,
    /// None: it was deleted.
    pub(super) entry: Option<Entry>,
    /// Whether because its deadline had come.
    pub(super) expired: bool,
}

/// Lets a backend's own thread tell the writer that something has arrived.
#[derive(Clone)]
pub(super) struct Wake {
    commands: Sender<Command>,
    kind: BackendKind,
    /// Told, and not asked yet: the writer's queue holds one of these at most.
    pending: Arc<AtomicBool>,
}

impl Wake {
    /// Has the writer ask what arrived.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "no backend of this build is shared")
    )]
    pub(super) fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            // Nobody is left to be told once the store is closed.
            let _ = self.commands.send(Command::Arrived(self.clone()));
        }
    }

    /// The backend to ask, from now on to be told of again.
    pub(super) fn take(self) -> BackendKind {
        self.pending.store(false, Ordering::SeqCst);
        self.kind
    }
}

/// Keeps buckets for the writer, which alone calls it, on its own thread.
///
/// What a backend has to do with each part of a write:
/// - **Revisions.** The writer proposes them, one more than the newest it knows of all buckets. An entry, a bucket and the
///   store each have the revision of their last change; a touch moves none of them. A backend that several processes write
///   to keeps the newest itself, so that no two write at the same one.
/// - **Transactions.** A group is made durable all or none. What each of its batches required was checked against the state
///   that the writer has, and is in the changes as data: an entry has to be as `before` says, by its revision, or absent.
///   One process alone owns a file or its memory, so these backends need not look. A shared one requires, in the same
///   transaction, that nothing has been written that the writer was not told of, and fails with [`WriteError::Behind`] if
///   something was. The writer takes what arrived, and checks and applies the batches anew: of two processes that require
///   the same, one wins.
/// - **Deadlines** are data of the entry, in Unix time, and the writer deletes what has ended by a write like any other: of
///   several processes the first one's is the delete, the others find nothing. A backend that ends entries by itself (a
///   lease) may do so, and tells of it like of any delete. A touch is a change whose records differ in the deadline alone.
/// - **Following.** What others write arrives in order of revisions, each transaction whole, and nothing twice; what this
///   process wrote does not arrive. What waits to be asked for is bounded: a backend that cannot keep it, or finds a gap,
///   gives whole buckets instead, and the writer finds what is different, so a key that was deleted meanwhile goes.
pub(super) trait Backend: Send {
    /// The newest revision it holds.
    fn revision(&self) -> Revision;

    /// Everything of a bucket, entries that have ended since among them.
    fn load(&mut self, bucket: &BucketConfig) -> Result<Loaded, OpenError>;

    /// Makes changes durable, all or none; `revision` is the store's after the last. After an error the backend has what it
    /// had before, and the next write is tried afresh.
    fn write(&mut self, revision: Revision, changes: &[Change]) -> Result<(), WriteError>;

    /// Is called once, before anything else: by `wake` it says that something has arrived. A backend that nobody else writes
    /// to has nothing to say.
    fn follow(&mut self, _wake: Wake) {}

    /// Reads, on another thread, what it keeps of the past of keys: that of every write so far. Only asked of a backend that
    /// [keeps it](BackendKind::keeps_history).
    fn histories(&mut self) -> Result<Box<dyn Histories>, String> {
        Err("this backend keeps no history".into())
    }

    /// What others have written since this was asked last. Values that do not fit their bucket are left out, and logged.
    fn arrived(&mut self) -> Vec<Arrival> {
        Vec::new()
    }
}

/// The backends of one store, opened when a bucket first needs them.
pub(super) struct Backends {
    dir: PathBuf,
    memory: Memory,
    embedded: Option<Box<dyn Backend>>,
    /// Where backends say that something has arrived; none before there is a writer.
    commands: Option<Sender<Command>>,
}

impl Backends {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            memory: Memory,
            embedded: None,
            commands: None,
        }
    }

    #[cfg(test)]
    pub(super) fn with_embedded(embedded: Box<dyn Backend>) -> Self {
        Self {
            dir: PathBuf::new(),
            memory: Memory,
            embedded: Some(embedded),
            commands: None,
        }
    }

    /// Has backends tell a writer of what arrives; before any is opened.
    pub(super) fn wake(&mut self, commands: Sender<Command>) {
        self.commands = Some(commands);
    }

    pub(super) fn open(&mut self, kind: BackendKind) -> Result<&mut dyn Backend, OpenError> {
        match kind {
            BackendKind::Memory => Ok(&mut self.memory),
            BackendKind::Embedded => {
                let mut embedded = match self.embedded.take() {
                    Some(embedded) => embedded,
                    None => Box::new(Embedded::open(&self.dir)?),
                };
                if let Some(commands) = self.commands.take() {
                    embedded.follow(Wake {
                        commands,
                        kind,
                        pending: Arc::default(),
                    });
                }
                Ok(self.embedded.insert(embedded).as_mut())
            }
        }
    }

    /// Makes a group durable. Only the embedded backend has anything to write, so there is one that can fail.
    pub(super) fn write(&mut self, revision: Revision, changes: &[Change]) -> Result<(), Failed> {
        let is_durable = |change: &&Change| change.bucket.backend != BackendKind::Memory;
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
        let backend = BackendKind::Embedded;
        self.open(backend)
            .map_err(|error| WriteError::Unavailable(error.to_string()))
            .and_then(|embedded| embedded.write(revision, changes))
            .map_err(|error| Failed { backend, error })
    }

    /// What a backend keeps of the past of keys.
    pub(super) fn histories(&mut self, kind: BackendKind) -> Result<Box<dyn Histories>, String> {
        let backend = self.open(kind).map_err(|error| error.to_string())?;
        backend.histories()
    }

    /// What others have written to a backend.
    pub(super) fn arrived(&mut self, kind: BackendKind) -> Vec<Arrival> {
        // It is open: it has told of something, or was written to.
        self.open(kind).map(Backend::arrived).unwrap_or_default()
    }
}

/// Which backend took nothing of a group, and why.
pub(super) struct Failed {
    pub(super) backend: BackendKind,
    pub(super) error: WriteError,
}

impl Failed {
    pub(super) fn reason(&self) -> &str {
        match &self.error {
            WriteError::Behind => "other processes have always written first",
            WriteError::Unavailable(reason) => reason,
        }
    }
}
