//! The backend in one file, `store.redb` of the data directory: what it has acknowledged survives a crash.
//!
//! Four tables, and those of `history`: `entries` maps (bucket, key) to (revision, value); `deadlines` has when those end that
//! do; `buckets` maps a bucket to its revision, its number of entries and the sum of their hashes, so that a damaged file is
//! noticed when it is loaded and not when a request goes astray; `meta` has the format, the store's revision and the number
//! of transactions. Each group of batches is one transaction.
//!
//! With [`SyncPolicy::Always`] a transaction is on disk when it is in the [`journal`]; the file gets it with a [`checkpoint`], at
//! most a second later, and before anything else is done with the file. One that is too large for the journal goes to the file.
//!
//! With [`SyncPolicy::Interval`] transactions wait in the engine's memory for the next one that is synced. What they changed is
//! remembered until then, at most [`UNSYNCED_MAX`] of it: if the sync fails, it is written again when the file is opened
//! anew, so that what readers see and what is on disk do not part.
//!
//! After a failed write both files are closed, and opened anew before the next one, because the engine refuses everything
//! after an I/O error. Whether the failed transaction reached the disk is only known then: if it did, it is undone, so
//! that a write reported as failed does not come back. (Only if the process ends before that can it be found applied.)

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redb::{
    CompactionError, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition,
};

use super::{Backend, Change, Loaded, WriteError};
use crate::store::data_file::{Compacted, FileError, Source, SyncPolicy};
use crate::store::history::Histories;
use crate::store::{BucketConfig, OpenError, Revision};

mod checkpoint;
mod copy;
mod deadlines;
mod file;
mod history;
mod journal;
mod read;
mod sum;
mod transact;

use checkpoint::{Checkpoint, Covered};
pub(in crate::store) use copy::{check, copy};
pub(super) use file::FILE;
pub(super) use file::io_error;
#[cfg(test)]
pub(super) use file::open_error;
pub(in crate::store) use file::use_of;
use file::{corrupt, create, give_id, guarded, open_database};
use history::Lost;
#[cfg(test)]
pub(super) use journal::Disk;
use journal::{Journal, Through, path_beside};
use read::{read_bucket, read_id, read_meta};
use transact::{reversed, transact};

/// How long the file of a process that was killed is waited for: one that it was just starting has a copy of the lock until
/// it runs a program of its own.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks at it.
const RELEASE_LOOK: Duration = Duration::from_millis(20);

/// Most changes that wait for a sync; a transaction that would make them more is synced itself.
const UNSYNCED_MAX: usize = 65_536;
/// How long a file that failed is left alone, unless something is written.
const SYNC_RETRY: Duration = Duration::from_secs(1);
const FORMAT: u64 = 1;
/// From so many keys on it is told that they are read, which takes a while.
const TOLD_FROM: u64 = 100_000;

/// A bucket's name and a key.
type Key = (&'static [u8], &'static [u8]);
/// [`Key`] to (revision, value).
const ENTRIES: TableDefinition<Key, (u64, &[u8])> = TableDefinition::new("entries");
/// Bucket to (revision, entries, sum of their hashes).
const BUCKETS: TableDefinition<&[u8], (u64, u64, u64)> = TableDefinition::new("buckets");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";
/// Of the file, by chance: a journal is of one file.
const META_ID: &str = "id";
/// Of files of before it was given, until they are opened.
const NO_ID: u64 = 0;
/// Counts transactions, for not each moves the revision. Files of before it was counted have none.
const META_WRITES: &str = "writes";

/// Opens the file, at the start and after each failed write.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

/// Which transaction a file is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    revision: Revision,
    writes: u64,
}

/// The open file.
pub(super) struct Embedded {
    path: PathBuf,
    opener: Opener,
    sync: SyncPolicy,
    /// None while a checkpoint has it, and after a failed write, until the next.
    db: Option<Database>,
    journal: Journal,
    /// Of the last write that succeeded.
    mark: Mark,
    /// Of the last one that the file has on disk.
    synced: Mark,
    /// What was written between the two.
    unsynced: Vec<Change>,
    /// When that is to be synced; none if there is nothing.
    sync_by: Option<Instant>,
    checkpoint: Option<Checkpoint>,
    /// What was last to be written of it, if that failed.
    covered: Option<Covered>,
    /// Whether the file is to have everything before the journal takes more.
    is_behind: bool,
    /// The write to the file that failed since, if any.
    failed: Vec<Change>,
    /// Found damaged since the file was opened first.
    lost: Lost,
    /// The backup that is under way, if one is.
    backup: Weak<()>,
}

impl Embedded {
    /// Opens `dir/store.redb`, or makes it. Waits for a moment if another process has it: see [`RELEASE_TIMEOUT`].
    pub(super) fn open(dir: &Path, sync: SyncPolicy) -> Result<Self, OpenError> {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            match Self::try_open(dir, sync) {
                Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(RELEASE_LOOK);
                }
                opened => return opened,
            }
        }
    }

    fn try_open(dir: &Path, sync: SyncPolicy) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        if !path.try_exists().map_err(|error| io_error(&path, error))? {
            create(dir)?;
        }
        let file = path.clone();
        let opener = Box::new(move || open_database(&file));
        Self::with_opener(path, sync, opener, Box::new(|file| Box::new(file)))
    }

    pub(super) fn with_opener(
        path: PathBuf,
        sync: SyncPolicy,
        opener: Opener,
        through: Through,
    ) -> Result<Self, OpenError> {
        let mut db = opener()?;
        let synced = guarded(|| read_meta(&db)).map_err(|reason| corrupt(&path, reason))?;
        // What is wrong with it is told when it is read.
        if let Ok(keys @ TOLD_FROM..) = guarded(|| keys_of(&db)) {
            tracing::info!(keys, "reading {}: {keys} keys", path.display());
        }
        let id_of =
            |db: &Database| guarded(|| read_id(db)).map_err(|reason| corrupt(&path, reason));
        let mut id = id_of(&db)?;
        if id == NO_ID && !path_beside(&path).exists() {
            // A disk that takes nothing now can be read when the file is opened again, which may have its number all the same.
            if guarded(|| give_id(&db)).is_err() {
                drop(db);
                db = opener()?;
            }
            id = id_of(&db)?;
        }
        let mut journal = Journal::beside(&path, id, through);
        let (mark, unsynced) = journal.read(synced)?;
        let mut opened = Self {
            path,
            opener,
            sync,
            db: None,
            journal,
            mark,
            synced,
            unsynced,
            sync_by: None,
            checkpoint: None,
            covered: None,
            is_behind: false,
            failed: Vec::new(),
            lost: Lost::new(),
            backup: Weak::new(),
        };
        if opened.mark != opened.synced {
            let writes = opened.mark.writes - opened.synced.writes;
            tracing::info!(
                writes,
                "taking over what {} has",
                opened.journal.path().display()
            );
        }
        // What a full disk does not take now stays in the journal, and can be read.
        match opened.cover(db) {
            Ok(db) => opened.db = Some(db),
            Err(reason) => tracing::error!(reason, "store cannot write what its journal has"),
        }
        Ok(opened)
    }

    /// The file, opened anew if a write has failed.
    fn take(&mut self) -> Result<Database, String> {
        self.end_checkpoint();
        match self.db.take() {
            Some(db) => Ok(db),
            None => self.reopen(),
        }
    }

    /// Opens the file after a failed write, and undoes that if it reached the disk after all. What was not synced before is
    /// to be written again if it did not.
    fn reopen(&mut self) -> Result<Database, String> {
        let db = (self.opener)().map_err(|error| error.to_string())?;
        let found = guarded(|| read_meta(&db))?;
        if found == self.mark {
            self.is_synced();
        } else if found == self.synced {
            // As it was before.
        } else if let Some(covered) = self.covered.filter(|it| it.mark == found) {
            self.is_covered(covered);
        } else if self.failed.is_empty() {
            return Err(format!(
                "data file {} was changed by someone else",
                self.path.display()
            ));
        } else {
            let undo: Vec<Change> = self.failed.iter().rev().map(reversed).collect();
            let undone = transact(&db, self.mark, &undo, Durability::Immediate, &self.lost);
            undone.map_err(|failed| {
                self.give_up_history(&failed);
                failed.reason
            })?;
            self.is_synced();
        }
        (self.covered, self.failed) = (None, Vec::new());
        let mended = self.journal.mend();
        mended.map_err(|error| format!("writing {}: {error}", self.journal.path().display()))?;
        Ok(db)
    }

    /// Whether the file that is open does not show everything that was written.
    fn has_waiting(&self) -> bool {
        self.sync == SyncPolicy::Always || self.is_behind
    }

    /// Everything that was written is on disk.
    fn is_synced(&mut self) {
        self.is_covered(Covered {
            mark: self.mark,
            changes: self.unsynced.len(),
        });
    }

    /// Closes the files after something failed. What has to be written or undone is tried again, also if nobody writes.
    fn give_up(&mut self) {
        self.is_behind = true;
        self.sync_by = Some(Instant::now() + SYNC_RETRY);
        self.journal.close();
        let db = self.db.take();
        // Closing writes, which fails like the write before it.
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
    }
}

impl Drop for Embedded {
    /// A file that is closed has everything.
    fn drop(&mut self) {
        let removed = self.take_whole().and_then(|db| {
            // Before another process may have the file.
            let removed = self.journal.remove().map_err(|error| error.to_string());
            let closed = guarded(|| {
                drop(db);
                Ok(())
            });
            removed.and(closed)
        });
        if let Err(reason) = removed {
            let journal = self.journal.path().display();
            match self.sync {
                SyncPolicy::Always => {
                    tracing::warn!(reason, "what store.redb does not have stays in {journal}");
                }
                SyncPolicy::Interval(_) => {
                    tracing::error!(reason, "what was written since the last sync is lost");
                }
            }
        }
    }
}

impl Embedded {
    /// Syncs what waits in the engine's memory.
    fn sync_file(&mut self) -> Result<(), String> {
        if self.sync_by.is_none() {
            return Ok(());
        }
        // To write it again syncs, too.
        let Some(db) = self.db.take_if(|_| !self.is_behind) else {
            self.db = Some(self.take_whole()?);
            return Ok(());
        };
        let synced = guarded(|| Ok(db.begin_write()?.commit()?));
        self.db = Some(db);
        match synced {
            Ok(()) => {
                self.is_synced();
                Ok(())
            }
            Err(reason) => {
                self.give_up();
                Err(format!("syncing {}: {reason}", self.path.display()))
            }
        }
    }
}

/// How many keys all buckets have, without reading them.
fn keys_of(db: &Database) -> Result<u64, redb::Error> {
    let transaction = db.begin_read()?;
    let buckets = transaction.open_table(BUCKETS)?;
    buckets.iter()?.try_fold(0, |keys: u64, bucket| {
        let (_, entries, _) = bucket?.1.value();
        Ok(keys.saturating_add(entries))
    })
}

impl Backend for Embedded {
    fn revision(&self) -> Revision {
        self.mark.revision
    }

    fn load(&mut self, bucket: &BucketConfig) -> Result<Loaded, OpenError> {
        let db = self.take().map_err(|reason| OpenError::Io {
            path: self.path.clone(),
            reason,
        })?;
        let is_part = self.has_waiting();
        let db = self.db.insert(db);
        let waiting: &[Change] = match is_part {
            true => &self.unsynced,
            false => &[],
        };
        let (loaded, refused) = guarded(|| read_bucket(db, bucket, waiting))
            .map_err(|reason| corrupt(&self.path, reason))?;
        match refused {
            None => Ok(loaded),
            Some((key, reason)) => Err(OpenError::Value {
                bucket: bucket.name.clone(),
                key,
                reason,
            }),
        }
    }

    fn write(&mut self, revision: Revision, changes: &[Change]) -> Result<(), WriteError> {
        let mark = Mark {
            revision,
            writes: self.mark.writes.wrapping_add(1),
        };
        if self.sync == SyncPolicy::Always && journal::may_fit(changes) {
            if self.is_behind {
                self.db = Some(self.take_whole().map_err(WriteError)?);
            }
            let payload = journal::encode(self.mark.revision, revision, changes);
            let payload = payload.map_err(|error| WriteError(error.to_string()))?;
            if payload.len() <= journal::RECORD_BYTES_MAX {
                return self.write_ahead(mark, &payload, changes);
            }
        }
        let mut db = self.take_whole().map_err(WriteError)?;
        let later = match self.sync {
            SyncPolicy::Interval(interval)
                if self.unsynced.len() + changes.len() <= UNSYNCED_MAX =>
            {
                Some(interval)
            }
            _ => None,
        };
        let durability = match later {
            Some(_) => Durability::None,
            None => Durability::Immediate,
        };
        while let Err(failed) = transact(&db, mark, changes, durability, &self.lost) {
            self.failed = changes.to_vec();
            self.db = Some(db);
            self.give_up();
            if !self.give_up_history(&failed) {
                let reason = format!("writing {}: {}", self.path.display(), failed.reason);
                return Err(WriteError(reason));
            }
            db = self.take_whole().map_err(WriteError)?;
        }
        self.db = Some(db);
        self.mark = mark;
        match later {
            Some(interval) => {
                self.unsynced.extend_from_slice(changes);
                self.sync_by.get_or_insert(Instant::now() + interval);
            }
            None => self.is_synced(),
        }
        Ok(())
    }

    fn sync_by(&self) -> Option<Instant> {
        match &self.checkpoint {
            Some(under_way) => Some(under_way.look_at),
            None => self.sync_by,
        }
    }

    fn sync(&mut self) -> Result<(), String> {
        let done = match self.sync {
            SyncPolicy::Always => self.go_on(),
            SyncPolicy::Interval(_) => self.sync_file(),
        };
        done.inspect_err(|_| self.sync_by = Some(Instant::now() + SYNC_RETRY))
    }

    fn compact(&mut self) -> Result<Compacted, FileError> {
        let size = |path: &Path| {
            let found = std::fs::metadata(path);
            found.map_or(0, |found| found.len())
        };
        let mut db = self.take_whole().map_err(FileError::Failed)?;
        if let Some(bucket) = self.lost.first() {
            let reason = format!("the history of bucket {bucket} is damaged");
            self.db = Some(db);
            return Err(FileError::Failed(format!(
                "compacting {}: {reason}",
                self.path.display()
            )));
        }
        let before = size(&self.path);
        let mut busy = false;
        let compacted = guarded(|| match db.compact() {
            Err(CompactionError::TransactionInProgress) => {
                busy = true;
                Ok(false)
            }
            other => Ok(other?),
        });
        match compacted {
            Ok(_) if busy => {
                self.db = Some(db);
                Err(FileError::Busy)
            }
            Ok(_) => {
                self.db = Some(db);
                // Its own transactions took what waited with them.
                self.is_synced();
                let after = size(&self.path);
                Ok(Compacted { before, after })
            }
            Err(reason) => {
                self.db = Some(db);
                self.give_up();
                let reason = format!("compacting {}: {reason}", self.path.display());
                Err(FileError::Failed(reason))
            }
        }
    }

    fn source(&mut self) -> Result<Source, FileError> {
        if self.backup.strong_count() > 0 {
            return Err(FileError::Busy);
        }
        let db = self.take_whole().map_err(FileError::Failed)?;
        let db = self.db.insert(db);
        let transaction = guarded(|| Ok(db.begin_read()?)).map_err(FileError::Failed)?;
        let under_way = Arc::new(());
        self.backup = Arc::downgrade(&under_way);
        Ok(Source {
            path: self.path.clone(),
            transaction,
            under_way,
        })
    }

    fn histories(&mut self) -> Result<Box<dyn Histories>, String> {
        let keeps = |change: &Change| change.bucket.history > 0;
        let db = match self.unsynced.iter().any(keeps) {
            true => self.take_whole()?,
            false => self.take()?,
        };
        let read = guarded(|| Ok(self.db.insert(db).begin_read()?))?;
        Ok(Box::new(history::Read::new(read, self.lost.clone())))
    }
}
