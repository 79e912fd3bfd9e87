//! Routing data: buckets of key → value under one revision counter, read from memory, written through a backend.
//!
//! Every read happens on a [`Snapshot`], an immutable state of all buckets at one [`Revision`]; a decision takes one
//! snapshot and keeps it, so it sees one revision, batches included. Writes go to one writer thread that checks them
//! against the newest state, makes them durable in groups, publishes the next snapshot and only then acknowledges.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

mod apply;
mod arrive;
pub mod backend;
pub mod batch;
pub mod bucket;
mod clock;
mod commit;
mod configure;
mod content;
pub mod data_file;
mod delta;
mod expiry;
mod gate;
mod gathering;
pub mod history;
mod hold;
pub mod log;
pub mod lookup;
pub(crate) mod ordered;
mod patterns;
mod record;
pub mod shared;
mod slack;
pub mod snapshot;
mod table;
#[cfg(test)]
pub(crate) mod tests;
pub mod typed;
mod undo;
pub mod value;
pub mod watch;
mod writer;

pub use batch::{Action, CommitError, Committed, Condition, Expect, Write, WriteBatch, check_key};
pub use bucket::{BackendKind, BucketConfig, BucketId, OnChange, ValueKind};
pub use clock::{Deadline, check_ttl};
pub use commit::Late;
pub use data_file::SyncPolicy;
pub use delta::{Changed, Delta};
pub use gate::{Gate, Passage};
pub use history::{Event, Past};
pub use hold::Hold;
pub use lookup::{LookupKind, LookupKinds};
pub(crate) use snapshot::start_of;
pub use snapshot::{Bucket, Entry, Match, Page, Snapshot};
pub use typed::{Policy, RecordTls, TypedRecord, WeightedTarget};
pub use undo::UndoError;
pub use value::{Target, Value, ValueError};
pub use watch::{Position, Watch, WatchError};

pub use shared::Health;
pub use shared::settings::SharedSettings;

use backend::{Backends, Fetcher};
use clock::Clock;
use log::Log;
use shared::commit::Committer;
use shared::{Links, copy};
use writer::{Command, Writer};

/// Most batches that wait for the writer; whoever commits more waits for a place.
const QUEUE_BATCHES_MAX: usize = 1024;
/// Most batches that wait for the writer, or for an engine, without anybody who waits for them.
const SUBMITTED_BATCHES_MAX: usize = 1024;

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

/// A handle to the store; clones share it. The last one to go closes it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    newest: Arc<ArcSwap<Snapshot>>,
    /// Bounded by `places`: each batch in it holds one.
    commands: Sender<Command>,
    places: Arc<Semaphore>,
    /// The same for those that nobody waits for: these can never crowd out the others.
    submitted: Arc<Semaphore>,
    published: tokio::sync::watch::Receiver<Revision>,
    log: Arc<Log>,
    past: Arc<history::Memory>,
    gate: gate::GatePlace,
    /// A mark of this process, which its memory buckets do not outlive.
    life: u32,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Threads that load what a config brings.
    loading: Mutex<Vec<JoinHandle<()>>>,
    /// For buckets that proxies share.
    committer: Committer,
    /// Keeps copies of these; ends when the other end of the channel is dropped.
    copies: Mutex<Option<Copies>>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data file or its directory cannot be created, read or written.
    #[error("data file {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another process has it open.
    #[error("data file {}: in use by another process, expected to be its only user: stop the other or give this one \
             another data directory", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged, or no data file of this program.
    #[error("data file {}: corrupt or not a data file of this program: {reason}; it was left as it is: restore a copy \
             of it, or move it away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What was acknowledged last is in the journal of the data file, which is damaged or of another data file.
    #[error("journal {}: {reason}; it was left as it is: restore it together with its data file, or move it away to start \
             without the newest writes", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that proxies share is away, and there is no copy of it to begin with, or its settings are wrong.
    #[error("{}{reason}", if reason.starts_with(backend.as_str()) { String::new() } else { format!("{}: ", backend.as_str()) })]
    Shared {
        /// Which.
        backend: BackendKind,
        /// What was expected.
        reason: String,
    },
    /// It was to be read only, and would have to be written to first.
    #[error("data file {}: it was not closed, or is not whole: if its proxy was killed, a start of it puts that \
             right", path.display())]
    NotClosed {
        /// The file.
        path: PathBuf,
    },
    /// A bucket has a value that is not of the kind the config gives it.
    #[error("bucket {bucket:?}, key {key:?}: stored value does not fit the config: {reason}")]
    Value {
        /// The bucket's name.
        bucket: String,
        /// The key.
        key: String,
        /// What was expected.
        reason: String,
    },
    /// A bucket has a key that is of no kind the config gives it.
    #[error("bucket {bucket:?}, key {key:?}: stored key does not fit the config: {reason}")]
    Key {
        /// The bucket's name.
        bucket: String,
        /// The key.
        key: String,
        /// What was expected.
        reason: String,
    },
    /// Two buckets have the same name.
    #[error("bucket {bucket:?} is named twice")]
    Duplicate {
        /// The name.
        bucket: String,
    },
    /// The writer thread cannot be started.
    #[error("store writer thread: {0}")]
    Thread(std::io::Error),
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}

impl Store {
    /// Opens the buckets, loading those of the embedded backend from `dir/store.redb`, and starts the writer thread.
    /// Without an embedded bucket no file is made or read. The revision goes on from the file's; changes of memory
    /// buckets are not counted there, so their revisions mean nothing to the next process.
    ///
    /// # Errors
    /// If the file cannot be created, is in use by another process, or is corrupt: the message says which.
    pub fn open(buckets: &[BucketConfig], dir: &Path) -> Result<Store, OpenError> {
        let shared = SharedSettings::default();
        Self::open_with(buckets, dir, SyncPolicy::default(), shared)
    }

    /// The same with a file whose writes are synced as `sync` says, and with buckets that proxies share. What the engine of
    /// these holds is loaded into memory, followed, and kept as a copy in `dir`; if it is away, that copy is what there is
    /// until it returns.
    ///
    /// # Errors
    /// As for [`Store::open`], and if an engine is away that no copy is kept of.
    pub fn open_with(
        buckets: &[BucketConfig],
        dir: &Path,
        sync: SyncPolicy,
        shared: SharedSettings,
    ) -> Result<Store, OpenError> {
        let links = Arc::new(Links::new(shared, dir));
        let backends = Backends::with_links(dir, links).syncing(sync);
        Self::with_backends(buckets, backends, Clock::system())
    }

    /// Empty buckets of the same names and kinds of values, in memory only: for trying out what is to use them.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn scratch(buckets: &[BucketConfig]) -> Result<Store, OpenError> {
        let in_memory = |bucket: &BucketConfig| BucketConfig {
            backend: BackendKind::Memory,
            history: 0,
            ..bucket.clone()
        };
        let buckets: Vec<_> = buckets.iter().map(in_memory).collect();
        // No backend of these has a file.
        Self::open(&buckets, Path::new(""))
    }

    fn with_backends(
        buckets: &[BucketConfig],
        mut backends: Backends,
        clock: Clock,
    ) -> Result<Store, OpenError> {
        let (commands, queue) = channel();
        let empty = Snapshot::empty();
        let newest = Arc::new(ArcSwap::from_pointee(empty.clone()));
        let fetcher = Fetcher {
            links: Arc::clone(backends.links()),
            newest: Arc::clone(&newest),
            commands: commands.clone(),
        };
        let fetched = fetcher.fetch(&empty, buckets)?;
        let first = configure::configure(&empty, buckets, fetched, &mut backends)?;
        newest.store(Arc::new(first));
        backends.follow();
        let committer = Committer::new(Arc::clone(&newest), fetcher.links, clock.clone());
        let copies = keep_copies(&committer).map_err(OpenError::Thread)?;
        let (publish, published) = tokio::sync::watch::channel(Revision::default());
        let log = Arc::new(Log::default());
        let past = Arc::new(history::Memory::default());
        let gate = gate::GatePlace::default();
        let writer = Writer::new(
            Arc::clone(&newest),
            backends,
            clock,
            Arc::clone(&log),
            Arc::clone(&past),
            gate::Waiting::at(Arc::clone(&gate)),
            publish,
        );
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&queue))
            .map_err(OpenError::Thread)?;
        Ok(Store {
            inner: Arc::new(Inner {
                newest,
                commands,
                places: Arc::new(Semaphore::new(QUEUE_BATCHES_MAX)),
                submitted: Arc::new(Semaphore::new(SUBMITTED_BATCHES_MAX)),
                published,
                log,
                past,
                gate,
                life: ahash::RandomState::new().hash_one(0) as u32,
                writer: Mutex::new(Some(thread)),
                loading: Mutex::default(),
                committer,
                copies: Mutex::new(copies),
            }),
        })
    }

    /// The newest state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.newest.load_full()
    }

    /// Tells of each new state, after it can be read; of the last only, if there were several. Ends when the store is
    /// closed.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<Revision> {
        self.inner.published.clone()
    }

    /// Watches a bucket: every change after `since`, or after now.
    ///
    /// # Errors
    /// [`WatchError`]: above all if changes after `since` are no longer kept.
    pub fn watch(&self, bucket: BucketId, since: Option<Position>) -> Result<Watch, WatchError> {
        let inner = &self.inner;
        Watch::new(
            Arc::clone(&inner.newest),
            Arc::clone(&inner.log),
            inner.published.clone(),
            inner.life,
            bucket,
            since,
        )
    }

    /// A reader for one thread: one atomic load when nothing changed.
    pub fn reader(&self) -> Reader {
        Reader {
            newest: arc_swap::Cache::new(Arc::clone(&self.inner.newest)),
        }
    }

    /// How what proxies share is, by backend; empty if nothing is shared.
    pub fn health(&self) -> Vec<(BackendKind, Health)> {
        let links = self.inner.committer.links.iter();
        links.map(|(kind, link)| (kind, link.health())).collect()
    }

    /// Stops the writer after what is queued and waits for it; later commits fail with [`CommitError::Unavailable`].
    /// Reads go on. Blocks for as long as the last write takes.
    pub fn close(&self) {
        self.inner.close();
    }
}

/// The thread that keeps copies of what proxies share, and what ends it.
type Copies = (JoinHandle<()>, Sender<()>);

/// Starts that thread, if there may be anything to keep.
fn keep_copies(committer: &Committer) -> std::io::Result<Option<Copies>> {
    if !committer.links.is_configured() {
        return Ok(None);
    }
    let (newest, links) = (Arc::clone(&committer.newest), Arc::clone(&committer.links));
    let (stop, stopped) = channel();
    let thread = std::thread::Builder::new()
        .name("store-copies".into())
        .spawn(move || copy::keep(&newest, &links, &stopped))?;
    Ok(Some((thread, stop)))
}

fn closed() -> CommitError {
    CommitError::Unavailable("store is closed".into())
}

impl Inner {
    fn close(&self) {
        self.places.close();
        self.submitted.close();
        let copies = self
            .copies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((thread, stop)) = copies {
            drop(stop);
            // It is gone already if it panicked, which was logged then.
            let _ = thread.join();
        }
        self.committer.links.close();
        let loading =
            std::mem::take(&mut *self.loading.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in loading {
            // It is gone already if it panicked, which was logged then.
            let _ = thread.join();
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.take() {
            // It is gone already if it panicked, which was logged then.
            let _ = self.commands.send(Command::Close);
            let _ = writer.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// One thread's view of the newest snapshot.
pub struct Reader {
    newest: arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
}

impl Reader {
    /// The newest state.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.newest.load()
    }
}
