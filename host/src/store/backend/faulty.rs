//! The embedded backend on a disk that fails when told to, for tests.

use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, StorageBackend};

use super::Backend;
use super::embedded::{Disk, Embedded, FILE, io_error, open_error};
use crate::store::SyncPolicy;

/// Of a journal.
const HEAD_BYTES: usize = 4096;

/// What the disk under [`faulty`] fails at, from now on.
#[derive(Debug, Default)]
pub(in crate::store) struct Faults {
    pub(in crate::store) write: AtomicBool,
    pub(in crate::store) sync: AtomicBool,
    /// The journal takes nothing longer than its head: the disk is almost full.
    pub(in crate::store) long_writes: AtomicBool,
    /// The data file alone takes no write.
    pub(in crate::store) data_file: AtomicBool,
    /// Its syncs alone say that they failed.
    pub(in crate::store) data_file_sync: AtomicBool,
    /// It takes none from when it has been opened.
    pub(in crate::store) full: AtomicBool,
    /// Its first sync after it has been opened says that it failed.
    pub(in crate::store) first_sync: AtomicBool,
    next_sync: AtomicBool,
    syncs: Gate,
    data_file_syncs: Gate,
}

impl Faults {
    /// A disk that takes nothing any more: for the files it is as if their process was killed at this moment.
    pub(in crate::store) fn kill(&self) {
        self.write.store(true, Ordering::SeqCst);
        self.sync.store(true, Ordering::SeqCst);
        self.stall(false);
        self.stall_data_file(false);
    }

    /// Lets no sync end, or lets them go on.
    pub(in crate::store) fn stall(&self, stalled: bool) {
        self.syncs.close(stalled);
    }

    /// The same, for syncs of the data file alone.
    pub(in crate::store) fn stall_data_file(&self, stalled: bool) {
        self.data_file_syncs.close(stalled);
    }

    /// Waits until a sync is stalled.
    pub(in crate::store) fn is_stalled(&self) {
        self.syncs.is_waited_for();
    }

    /// Waits until one of the data file is.
    pub(in crate::store) fn is_data_file_stalled(&self) {
        self.data_file_syncs.is_waited_for();
    }
}

/// What some wait for, as long as it is closed.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is, and how many wait.
    state: Mutex<(bool, usize)>,
    moved: Condvar,
}

impl Gate {
    fn close(&self, closed: bool) {
        self.state.lock().unwrap().0 = closed;
        self.moved.notify_all();
    }

    fn is_waited_for(&self) {
        let state = self.state.lock().unwrap();
        drop(self.moved.wait_while(state, |(_, waiting)| *waiting == 0));
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.moved.notify_all();
        let mut state = self.moved.wait_while(state, |(closed, _)| *closed).unwrap();
        state.1 -= 1;
    }
}

/// The embedded backend on a disk that fails when told to.
pub(in crate::store) fn faulty(
    dir: &Path,
    sync: SyncPolicy,
    faults: Arc<Faults>,
) -> Box<dyn Backend> {
    let path = dir.join(FILE);
    if !path.exists() {
        drop(Embedded::open(dir, sync).unwrap());
    }
    let opener = {
        let (path, faults) = (path.clone(), Arc::clone(&faults));
        move || {
            if faults.full.load(Ordering::SeqCst) {
                faults.data_file.store(false, Ordering::SeqCst);
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|error| io_error(&path, error))?;
            let disk = FaultyDisk {
                file: FileBackend::new(file).unwrap(),
                is_data_file: true,
                faults: Arc::clone(&faults),
            };
            let opened = Builder::new()
                .create_with_backend(disk)
                .map_err(|error| open_error(error, &path))?;
            if faults.full.load(Ordering::SeqCst) {
                faults.data_file.store(true, Ordering::SeqCst);
            }
            let first_sync = faults.first_sync.swap(false, Ordering::SeqCst);
            faults.next_sync.store(first_sync, Ordering::SeqCst);
            Ok(opened)
        }
    };
    let through = move |file| -> Box<dyn Disk> {
        Box::new(FaultyDisk {
            file: FileBackend::new(file).unwrap(),
            is_data_file: false,
            faults: Arc::clone(&faults),
        })
    };
    let opened = Embedded::with_opener(path, sync, Box::new(opener), Box::new(through));
    Box::new(opened.unwrap())
}

impl Disk for FaultyDisk {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        StorageBackend::write(self, at, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[derive(Debug)]
struct FaultyDisk {
    file: FileBackend,
    is_data_file: bool,
    faults: Arc<Faults>,
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.faults.syncs.pass();
        if self.is_data_file {
            self.faults.data_file_syncs.pass();
        }
        self.file.sync_data()?;
        let fails = |fault: &AtomicBool| fault.load(Ordering::SeqCst);
        let data_file_fails = || {
            fails(&self.faults.data_file_sync)
                || self.faults.next_sync.swap(false, Ordering::SeqCst)
        };
        if fails(&self.faults.sync) || self.is_data_file && data_file_fails() {
            return Err(io::Error::other("sync fails"));
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let fails = |fault: &AtomicBool| fault.load(Ordering::SeqCst);
        let fails_here = match self.is_data_file {
            true => fails(&self.faults.data_file),
            false => data.len() > HEAD_BYTES && fails(&self.faults.long_writes),
        };
        if fails(&self.faults.write) || fails_here {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}
