//! The data file as a whole: when it is synced, made smaller, copied while the store runs, and checked.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::ReadTransaction;
use tokio::sync::oneshot;

use super::backend::{Backends, check_file, copy_file, use_of_file};
use super::writer::Command;
use super::{OpenError, Revision, Store};

/// How long writes may wait for a sync unless the config says otherwise.
pub const SYNC_INTERVAL_DEFAULT: Duration = Duration::from_millis(100);

/// When writes to the data file are synced to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Before they are acknowledged: an acknowledged write survives a crash of the process and of the machine.
    #[default]
    Always,
    /// Within this time, or as soon as what is under way then has ended: a crash of the process or of the machine loses what was acknowledged since the last sync, all
    /// of it and nothing of before. Closing the store, as SIGTERM does, syncs.
    Interval(Duration),
}

/// Sizes of the data file around a compaction, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Before it.
    pub before: u64,
    /// After it.
    pub after: u64,
}

/// What a data file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The store's revision.
    pub revision: Revision,
    /// Buckets that have been written to.
    pub buckets: u64,
    /// Keys of all of them.
    pub keys: u64,
}

/// A copy of the data file, itself one: moved to `store.redb` of a data directory, the store opens it.
pub struct Backup {
    /// Without a name, at its beginning.
    pub file: File,
    /// Its size.
    pub bytes: u64,
    /// What is in it.
    pub contents: Contents,
    /// Another one may begin once this is gone.
    _under_way: Arc<()>,
}

/// Why nothing was done with the data file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// No bucket needs one.
    #[error("no bucket is embedded, so there is no data file")]
    None,
    /// Another one has not ended.
    #[error("a backup of the data file is under way, expected none")]
    Busy,
    /// The system or the file did not allow it.
    #[error("{0}")]
    Failed(String),
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}

/// The file as it is at one moment, whatever is written meanwhile. It ends with the open file, which a failed write closes.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) transaction: ReadTransaction,
    pub(super) under_way: Arc<()>,
}

/// What the writer is asked to do with the file, between two groups of writes.
pub(super) enum FileTask {
    Compact(oneshot::Sender<Result<Compacted, FileError>>),
    Source(oneshot::Sender<Result<Source, FileError>>),
}

impl FileTask {
    /// Whoever no longer waits does not need the answer.
    pub(super) fn run(self, backends: &mut Backends) {
        match self {
            Self::Compact(done) => drop(done.send(backends.compact())),
            Self::Source(done) => drop(done.send(backends.source())),
        }
    }
}

impl Store {
    /// Gives space that the data file no longer needs back to the system. Writes wait until it is done, reads go on.
    ///
    /// # Errors
    /// [`FileError`]; nothing is lost then. If the future is dropped, it is done all the same.
    pub async fn compact(&self) -> Result<Compacted, FileError> {
        self.ask(FileTask::Compact).await
    }

    /// Copies the data file as it is now, while reads and writes go on. The copy has no name and is gone with the result;
    /// it takes space in the directory of the data file until then. Needs a runtime of tokio.
    ///
    /// # Errors
    /// [`FileError`]. If the future is dropped, the copy is made and thrown away.
    pub async fn backup(&self) -> Result<Backup, FileError> {
        let source = self.ask(FileTask::Source).await?;
        let copied = tokio::task::spawn_blocking(move || backup(source));
        copied
            .await
            .unwrap_or_else(|_| Err(FileError::Failed("the copy was cut".into())))
    }

    pub(super) async fn ask<T>(
        &self,
        task: impl FnOnce(oneshot::Sender<Result<T, FileError>>) -> FileTask,
    ) -> Result<T, FileError> {
        let (done, answer) = oneshot::channel();
        if self.inner.places.is_closed() {
            return Err(FileError::Closed);
        }
        self.inner
            .commands
            .send(Command::File(task(done)))
            .map_err(|_| FileError::Closed)?;
        answer.await.unwrap_or(Err(FileError::Closed))
    }
}

/// What a file is to proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// No data file.
    None,
    /// A data file that no process has open, such as a backup.
    Unused,
    /// A data file that a process has open.
    ByProxy,
}

/// Says whether a regular file is a data file, and in use, under whatever name.
///
/// # Errors
/// If it cannot be read.
pub fn use_of(path: &Path) -> io::Result<Use> {
    use_of_file(path)
}

fn backup(source: Source) -> Result<Backup, FileError> {
    let dir = source.path.parent().unwrap_or(Path::new("."));
    let failed =
        |error: std::io::Error| FileError::Failed(format!("backup in {}: {error}", dir.display()));
    let mut file = tempfile::tempfile_in(dir).map_err(failed)?;
    let contents = copy_file(&source, &file)?;
    let bytes = file.metadata().map_err(failed)?.len();
    file.rewind().map_err(failed)?;
    Ok(Backup {
        file,
        bytes,
        contents,
        _under_way: source.under_way,
    })
}

/// Reads a whole data file, such as a backup, that no process has open, and changes nothing of it.
///
/// # Errors
/// [`OpenError`]: above all if it is damaged, in use, or was left by a process that was killed.
pub fn check_data_file(path: &Path) -> Result<Contents, OpenError> {
    check_file(path)
}
