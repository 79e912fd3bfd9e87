//! The backend in one file, `store.redb` of the data directory: what it has acknowledged survives a crash.
//!
//! Four tables: `entries` maps (bucket, key) to (revision, value); `deadlines` has when those end that do; `buckets` maps a
//! bucket to its revision, its number of entries and the sum of their hashes, so that a damaged file is noticed when it is
//! loaded and not when a request goes astray; `meta` has the format, the store's revision and the number of transactions.
//! Each group of batches is one transaction.
//!
//! After a failed write the file is opened anew before the next one, because the engine refuses everything after an
//! I/O error. Whether the failed transaction reached the disk is only known then: if it did, it is undone first, so
//! that a write reported as failed does not come back. (Only if the process ends before that can it be found applied.)

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Backend, Change, Loaded, WriteError};
use crate::store::table::Record;
use crate::store::{BucketConfig, Deadline, Entry, OpenError, Revision, Value};

mod sum;

use sum::Sum;

/// How long the file of a process that was killed is waited for: one that it was just starting has a copy of the lock until
/// it runs a program of its own.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks at it.
const RELEASE_LOOK: Duration = Duration::from_millis(20);

pub(super) const FILE: &str = "store.redb";
/// Where a new file is made, so that `store.redb` is whole from the moment it exists.
const FILE_NEW: &str = "store.redb.new";
/// What a file of the engine begins with.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// The engine's page cache; reads never go there, so it only has to hold what writes touch.
const CACHE_BYTES: usize = 64 << 20;
const FORMAT: u64 = 1;

/// A bucket's name and a key.
type Key = (&'static [u8], &'static [u8]);
/// [`Key`] to (revision, value).
const ENTRIES: TableDefinition<Key, (u64, &[u8])> = TableDefinition::new("entries");
/// Bucket to (revision, entries, sum of their hashes).
const BUCKETS: TableDefinition<&[u8], (u64, u64, u64)> = TableDefinition::new("buckets");
/// [`Key`] to when its entry ends, in milliseconds of Unix time. Made with the first such entry.
const DEADLINES: TableDefinition<Key, u64> = TableDefinition::new("deadlines");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";
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
    /// None after a failed write, until the next.
    db: Option<Database>,
    /// Of the last write that succeeded.
    mark: Mark,
    /// The write that failed since, if any.
    failed: Vec<Change>,
}

impl Embedded {
    /// Opens `dir/store.redb`, or makes it. Waits for a moment if another process has it: see [`RELEASE_TIMEOUT`].
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            match Self::try_open(dir) {
                Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(RELEASE_LOOK);
                }
                opened => return opened,
            }
        }
    }

    fn try_open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        if !path.try_exists().map_err(|error| io_error(&path, error))? {
            create(dir)?;
        }
        let file = path.clone();
        Self::with_opener(path, Box::new(move || open_database(&file)))
    }

    pub(super) fn with_opener(path: PathBuf, opener: Opener) -> Result<Self, OpenError> {
        let db = opener()?;
        let mark = guarded(|| read_meta(&db)).map_err(|reason| corrupt(&path, reason))?;
        Ok(Self {
            path,
            opener,
            db: Some(db),
            mark,
            failed: Vec::new(),
        })
    }

    /// Opens the file after a failed write, and undoes that if it reached the disk after all.
    fn reopen(&mut self) -> Result<Database, String> {
        let db = (self.opener)().map_err(|error| error.to_string())?;
        let found = guarded(|| read_meta(&db))?;
        if found != self.mark {
            if self.failed.is_empty() {
                return Err(format!(
                    "data file {} was changed by someone else",
                    self.path.display()
                ));
            }
            let undo: Vec<Change> = self.failed.iter().rev().map(reversed).collect();
            let mark = self.mark;
            guarded(|| transact(&db, mark, &undo))?;
        }
        self.failed.clear();
        Ok(db)
    }
}

impl Backend for Embedded {
    fn revision(&self) -> Revision {
        self.mark.revision
    }

    fn load(&mut self, bucket: &BucketConfig) -> Result<Loaded, OpenError> {
        let db = match self.db.take() {
            Some(db) => db,
            None => self.reopen().map_err(|reason| OpenError::Io {
                path: self.path.clone(),
                reason,
            })?,
        };
        let db = self.db.insert(db);
        let (loaded, refused) =
            guarded(|| read_bucket(db, bucket)).map_err(|reason| corrupt(&self.path, reason))?;
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
        let db = match self.db.take() {
            Some(db) => db,
            None => self.reopen().map_err(WriteError::Unavailable)?,
        };
        let mark = Mark {
            revision,
            writes: self.mark.writes.wrapping_add(1),
        };
        let written = guarded(|| transact(&db, mark, changes));
        match written {
            Ok(()) => {
                self.db = Some(db);
                self.mark = mark;
                Ok(())
            }
            Err(reason) => {
                self.failed = changes.to_vec();
                // Closing writes, which fails like the write before it.
                let _ = guarded(|| {
                    drop(db);
                    Ok(())
                });
                let reason = format!("writing {}: {reason}", self.path.display());
                Err(WriteError::Unavailable(reason))
            }
        }
    }
}

fn reversed(change: &Change) -> Change {
    Change {
        before: change.after.clone(),
        after: change.before.clone(),
        bucket_before: change.bucket_after,
        bucket_after: change.bucket_before,
        ..change.clone()
    }
}

/// Runs an operation of the engine, which panics on some kinds of damage instead of returning an error.
fn guarded<T>(operation: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unexpected content")
            .to_owned()),
    }
}

fn io_error(path: &Path, error: impl std::fmt::Display) -> OpenError {
    OpenError::Io {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

fn corrupt(path: &Path, reason: String) -> OpenError {
    OpenError::Corrupt {
        path: path.to_owned(),
        reason,
    }
}

/// Makes an empty store, which gets its name when it is complete.
fn create(dir: &Path) -> Result<(), OpenError> {
    fs::create_dir_all(dir).map_err(|error| io_error(dir, error))?;
    let path = dir.join(FILE_NEW);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .open(&path)
        .map_err(|error| io_error(&path, error))?;
    // What an interrupted start left behind held nothing.
    match file.try_lock() {
        Ok(()) => file.set_len(0).and_then(|()| file.unlock()),
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse { path }),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
    .map_err(|error| io_error(&path, error))?;
    let db = database(file, &path)?;
    guarded(|| initialise(&db)).map_err(|reason| io_error(&path, reason))?;
    drop(db);
    fs::rename(&path, dir.join(FILE))
        .and_then(|()| File::open(dir))
        .and_then(|dir| dir.sync_all())
        .map_err(|error| io_error(&path, error))
}

fn initialise(db: &Database) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(BUCKETS)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT)?;
        meta.insert(META_REVISION, 0)?;
    }
    transaction.commit()?;
    Ok(())
}

fn open_database(path: &Path) -> Result<Database, OpenError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| io_error(path, error))?;
    let mut magic = [0; MAGIC.len()];
    match file.read_exact(&mut magic).and_then(|()| file.rewind()) {
        Ok(()) if magic == MAGIC => {}
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            return Err(io_error(path, error));
        }
        _ => {
            return Err(corrupt(
                path,
                "it does not begin as a data file does".into(),
            ));
        }
    }
    database(file, path)
}

fn database(file: File, path: &Path) -> Result<Database, OpenError> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        Builder::new().set_cache_size(CACHE_BYTES).create_file(file)
    }));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(open_error(error, path)),
        Err(_) => Err(corrupt(path, "its structure is damaged".into())),
    }
}

pub(super) fn open_error(error: DatabaseError, path: &Path) -> OpenError {
    use redb::StorageError::{Corrupted, Io};
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
            path: path.to_owned(),
        },
        DatabaseError::UpgradeRequired(version) => {
            corrupt(path, format!("its file format is version {version}"))
        }
        DatabaseError::Storage(Corrupted(reason)) => corrupt(path, reason),
        DatabaseError::Storage(Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            corrupt(path, error.to_string())
        }
        error => io_error(path, error),
    }
}

fn read_meta(db: &Database) -> Result<Mark, redb::Error> {
    let transaction = db.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name| {
        meta.get(name)
            .map(|found| found.map(|number| number.value()))
    };
    match (number(META_FORMAT)?, number(META_REVISION)?) {
        (Some(FORMAT), Some(revision)) => Ok(Mark {
            revision: Revision(revision),
            writes: number(META_WRITES)?.unwrap_or(0),
        }),
        (format, _) => Err(redb::Error::Corrupted(format!(
            "format {}, expected {FORMAT}",
            format.map_or("unknown".into(), |format| format.to_string())
        ))),
    }
}

/// A key and why its value is not one of the bucket's kind.
type Refused = (String, String);

fn read_bucket(
    db: &Database,
    bucket: &BucketConfig,
) -> Result<(Loaded, Option<Refused>), redb::Error> {
    let transaction = db.begin_read()?;
    let name = bucket.name.as_bytes();
    let sums = transaction.open_table(BUCKETS)?;
    let expected = sums
        .get(name)?
        .map(|sum| Sum::from(sum.value()))
        .unwrap_or_default();
    let mut found = Sum {
        revision: expected.revision,
        ..Sum::default()
    };
    let mut records =
        Vec::with_capacity(usize::try_from(expected.entries.min(1 << 24)).unwrap_or(0));
    let mut refused = None;
    let mut deadlines = read_deadlines(&transaction, name)?.into_iter().peekable();
    let entries = transaction.open_table(ENTRIES)?;
    let end = end_of(name);
    for entry in entries.range((name, &[][..])..(end.as_slice(), &[][..]))? {
        let (key, value) = entry?;
        let (_, key) = key.value();
        let (revision, value) = value.value();
        let deadline = deadlines.next_if(|(ending, _)| ending == key);
        let deadline = deadline.and_then(|(_, millis)| Deadline::from_millis(millis));
        found.add(key, revision, value, deadline);
        let key = std::str::from_utf8(key).ok();
        let key = key.filter(|key| key.len() <= crate::store::bucket::KEY_BYTES_MAX);
        let key =
            key.ok_or_else(|| redb::Error::Corrupted("a key is too long, or not UTF-8".into()))?;
        match Value::parse(bucket.values, value) {
            Ok(value) => {
                let revision = Revision(revision);
                records.push(Record::new(
                    key,
                    Entry {
                        value,
                        revision,
                        deadline,
                    },
                ));
            }
            Err(error) => {
                refused.get_or_insert((key.to_owned(), error.0));
            }
        }
    }
    // A deadline without its entry stops the walk before its end.
    if found != expected || deadlines.next().is_some() {
        return Err(redb::Error::Corrupted(format!(
            "bucket {:?}: {} entries were found that do not add up to the {} that were written",
            bucket.name, found.entries, expected.entries
        )));
    }
    let revision = Revision(found.revision);
    Ok((Loaded { records, revision }, refused))
}

/// The next string after a bucket's name: what lies between belongs to the bucket.
fn end_of(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}

/// Keys of a bucket that end, and when, in order.
fn read_deadlines(
    transaction: &redb::ReadTransaction,
    name: &[u8],
) -> Result<Vec<(Vec<u8>, u64)>, redb::Error> {
    let table = match transaction.open_table(DEADLINES) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let end = end_of(name);
    let range = table.range((name, &[][..])..(end.as_slice(), &[][..]))?;
    range
        .map(|deadline| {
            let (key, millis) = deadline?;
            Ok((key.value().1.to_vec(), millis.value()))
        })
        .collect()
}

fn write_deadlines(
    transaction: &redb::WriteTransaction,
    changes: &[&Change],
) -> Result<(), redb::Error> {
    let deadline = |record: &Option<std::sync::Arc<Record>>| record.as_ref()?.entry.deadline;
    let mut ending = changes
        .iter()
        .filter(|change| deadline(&change.before) != deadline(&change.after))
        .peekable();
    // Most groups have none, and need not look at the table.
    if ending.peek().is_none() {
        return Ok(());
    }
    let mut table = transaction.open_table(DEADLINES)?;
    for change in ending {
        let key = (change.bucket.name.as_bytes(), change.key());
        match deadline(&change.after) {
            Some(deadline) => table.insert(key, deadline.millis())?,
            None => table.remove(key)?,
        };
    }
    Ok(())
}

fn transact(db: &Database, mark: Mark, changes: &[Change]) -> Result<(), redb::Error> {
    // In order of place in the file; the changes of one key keep their order.
    let mut ordered: Vec<&Change> = changes.iter().collect();
    ordered.sort_by_key(|change| (change.bucket.name.as_bytes(), change.key()));
    let transaction = db.begin_write()?;
    write_deadlines(&transaction, &ordered)?;
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        for change in ordered.into_iter().filter(|change| !change.is_touch()) {
            let key = (change.bucket.name.as_bytes(), change.key());
            match &change.after {
                Some(record) => {
                    let entry = &record.entry;
                    entries.insert(key, (entry.revision.0, entry.value.to_bytes().as_ref()))?;
                }
                None => {
                    entries.remove(key)?;
                }
            }
        }
        let mut buckets = transaction.open_table(BUCKETS)?;
        let mut sums: HashMap<&[u8], Sum> = HashMap::new();
        for change in changes {
            let name = change.bucket.name.as_bytes();
            let sum = match sums.entry(name) {
                std::collections::hash_map::Entry::Occupied(sum) => sum.into_mut(),
                std::collections::hash_map::Entry::Vacant(sum) => {
                    let stored = buckets.get(name)?.map(|sum| Sum::from(sum.value()));
                    sum.insert(stored.unwrap_or_default())
                }
            };
            sum.change(change);
        }
        for (name, sum) in sums {
            buckets.insert(name, (sum.revision, sum.entries, sum.hashes))?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_REVISION, mark.revision.0)?;
        meta.insert(META_WRITES, mark.writes)?;
    }
    transaction.commit()?;
    Ok(())
}
