//! The file: made, opened, and what is said of one that cannot be.

use std::any::Any;
use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase};

use super::journal::is_journal;
use super::{BUCKETS, ENTRIES, FORMAT, META, META_FORMAT, META_ID, META_REVISION, NO_ID};
use crate::store::OpenError;
use crate::store::data_file::Use;

pub(in crate::store::backend) const FILE: &str = "store.redb";
/// Where a new file is made, so that `store.redb` is whole from the moment it exists.
const FILE_NEW: &str = "store.redb.new";
/// What a file of the engine begins with.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// The engine's page cache; reads never go there, so it only has to hold what writes touch.
const CACHE_BYTES: usize = 64 << 20;

/// Runs an operation of the engine, which panics on some kinds of damage instead of returning an error. The panic is not
/// printed: what is told of it says more.
pub(super) fn caught<T>(operation: impl FnOnce() -> T) -> std::thread::Result<T> {
    thread_local! {
        static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.try_with(Cell::get).unwrap_or(false) {
                before(panic);
            }
        }));
    });
    let was_quiet = IS_QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(operation));
    IS_QUIET.set(was_quiet);
    result
}

/// The same, with what went wrong as text.
pub(super) fn guarded<T>(operation: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    match caught(operation) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(damage_that_panicked(panic.as_ref())),
    }
}

/// What is said of content that had the engine panic.
pub(super) fn damage_that_panicked(panic: &(dyn Any + Send)) -> String {
    let told = panic.downcast_ref::<String>().map(String::as_str);
    let told = told.or_else(|| panic.downcast_ref::<&str>().copied());
    let told = told.unwrap_or("unexpected content");
    format!("its structure is damaged ({told})")
}

pub(in crate::store::backend) fn io_error(path: &Path, error: impl std::fmt::Display) -> OpenError {
    OpenError::Io {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

pub(super) fn corrupt(path: &Path, reason: String) -> OpenError {
    OpenError::Corrupt {
        path: path.to_owned(),
        reason,
    }
}

/// Makes an empty store, which gets its name when it is complete.
pub(super) fn create(dir: &Path) -> Result<(), OpenError> {
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
        meta.insert(META_ID, new_id())?;
    }
    transaction.commit()?;
    Ok(())
}

/// By chance; without any it is none.
fn new_id() -> u64 {
    getrandom::u64().unwrap_or(NO_ID)
}

/// Gives a file its number.
pub(super) fn give_id(db: &Database) -> Result<(), redb::Error> {
    let transaction = db.begin_write()?;
    transaction.open_table(META)?.insert(META_ID, new_id())?;
    Ok(transaction.commit()?)
}

pub(super) fn open_database(path: &Path) -> Result<Database, OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| io_error(path, error))?;
    database(begins_well(file, path)?, path)
}

/// The file for reading only: neither it nor its directory is written to, not even to finish what a killed process began.
pub(super) fn open_read_only(path: &Path) -> Result<ReadOnlyDatabase, OpenError> {
    let file = File::open(path).map_err(|error| io_error(path, error))?;
    begins_well(file, path)?;
    let opened = caught(|| {
        Builder::new()
            .set_cache_size(CACHE_BYTES)
            .open_read_only(path)
    });
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(DatabaseError::RepairAborted)) => Err(OpenError::NotClosed {
            path: path.to_owned(),
        }),
        Ok(Err(error)) => Err(open_error(error, path)),
        Err(panic) => Err(corrupt(path, damage_that_panicked(panic.as_ref()))),
    }
}

/// Whether a file is one of the engine's, and whether a process has it open: it holds the engine's lock then.
pub(in crate::store) fn use_of(path: &Path) -> io::Result<Use> {
    let mut magic = [0; MAGIC.len()];
    match File::open(path)?.read_exact(&mut magic) {
        Ok(()) if magic == MAGIC => {}
        // It is there only while a proxy runs, or holds what one that was killed has acknowledged.
        Ok(()) if is_journal(&magic) => return Ok(Use::ByProxy),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        _ => return Ok(Use::None),
    }
    Ok(match open_read_only(path) {
        Err(OpenError::InUse { .. }) => Use::ByProxy,
        // One that is damaged is still nothing to write over.
        _ => Use::Unused,
    })
}

/// The same file, if it begins as one of the engine's does: the engine would take an empty one for its own.
fn begins_well(mut file: File, path: &Path) -> Result<File, OpenError> {
    let mut magic = [0; MAGIC.len()];
    match file.read_exact(&mut magic).and_then(|()| file.rewind()) {
        Ok(()) if magic == MAGIC => Ok(file),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(io_error(path, error)),
        _ => Err(corrupt(
            path,
            "it does not begin as a data file does".into(),
        )),
    }
}

pub(super) fn database(file: File, path: &Path) -> Result<Database, OpenError> {
    let opened = caught(|| Builder::new().set_cache_size(CACHE_BYTES).create_file(file));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(open_error(error, path)),
        Err(panic) => Err(corrupt(path, damage_that_panicked(panic.as_ref()))),
    }
}

pub(in crate::store::backend) fn open_error(error: DatabaseError, path: &Path) -> OpenError {
    use redb::StorageError::{Corrupted, Io};
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
            path: path.to_owned(),
        },
        DatabaseError::UpgradeRequired(version) => {
            corrupt(path, format!("its file format is version {version}"))
        }
        DatabaseError::Storage(Corrupted(reason)) => corrupt(path, reason),
        DatabaseError::Storage(Io(error)) if has_unexpected_content(&error) => {
            corrupt(path, error.to_string())
        }
        error => io_error(path, error),
    }
}

/// Whether an I/O error is of what the file has, and not of the disk.
pub(super) fn has_unexpected_content(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}
