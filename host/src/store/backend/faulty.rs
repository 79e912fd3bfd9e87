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
use super::embedded::{Embedded, FILE, open_error};
use crate::store::SyncPolicy;

/// What the disk under [`faulty`] fails at, from now on.
#[derive(Debug, Default)]
pub(in crate::store) struct Faults {
    pub(in crate::store) write: AtomicBool,
    pub(in crate::store) sync: AtomicBool,
    /// Whether a sync takes until this is over, and how many wait for that.
    stalled: Mutex<(bool, usize)>,
    moved: Condvar,
}

impl Faults {
    /// A disk that takes nothing any more: for the file it is as if its process was killed at this moment.
    pub(in crate::store) fn kill(&self) {
        self.write.store(true, Ordering::SeqCst);
        self.sync.store(true, Ordering::SeqCst);
    }

    /// Lets no sync end, or lets them go on.
    pub(in crate::store) fn stall(&self, stalled: bool) {
        self.stalled.lock().unwrap().0 = stalled;
        self.moved.notify_all();
    }

    /// Waits until a sync is stalled.
    pub(in crate::store) fn is_stalled(&self) {
        let state = self.stalled.lock().unwrap();
        drop(self.moved.wait_while(state, |(_, waiting)| *waiting == 0));
    }

    fn pass(&self) {
        let mut state = self.stalled.lock().unwrap();
        state.1 += 1;
        self.moved.notify_all();
        let mut state = self
            .moved
            .wait_while(state, |(stalled, _)| *stalled)
            .unwrap();
        state.1 -= 1;
    }
}

/// The embedded backend on a disk that fails when told to.
pub(in crate::store) fn faulty(
    dir: &Path,
    sync: SyncPolicy,
    faults: Arc<Faults>,
) -> Box<dyn Backend> {
    drop(Embedded::open(dir, sync).unwrap());
    let path = dir.join(FILE);
    let opener = {
        let path = path.clone();
        move || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            let disk = FaultyDisk {
                file: FileBackend::new(file).unwrap(),
                faults: Arc::clone(&faults),
            };
            Builder::new()
                .create_with_backend(disk)
                .map_err(|error| open_error(error, &path))
        }
    };
    Box::new(Embedded::with_opener(path, sync, Box::new(opener)).unwrap())
}

#[derive(Debug)]
struct FaultyDisk {
    file: FileBackend,
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
        self.faults.pass();
        self.file.sync_data()?;
        if self.faults.sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("sync fails"));
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        if self.faults.write.load(Ordering::SeqCst) {
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
