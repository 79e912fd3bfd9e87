//! The journal, `store.journal` beside the data file: what was acknowledged and is not in that file yet.
//!
//! A transaction is one record, synced before it is acknowledged: bytes in a row, where the data file takes ten pages
//! anywhere in it. A checkpoint writes what has gathered to the data file, in one transaction and on a thread of its own. The
//! journal has two halves that take turns: while a checkpoint is under way, records go to the half that it needs no more.
//! Ahead of the records a half is filled with zeros, a piece at a time, so that a sync has no new length to write.
//!
//! Nothing is erased but what was refused. Records have the numbers of their transactions, and those that the data file has
//! are of no interest; the others have to follow it without a gap. One that a crash tore was not acknowledged, and is the
//! last. Each begins at a sector, which a disk is assumed to write whole: what is written with it again is as it was. And
//! each has a seal that needs the key in the file's head: no value that a client writes is taken for a record.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Mark;
use crate::store::backend::Change;
use crate::store::{OpenError, Revision};

mod group;

pub(super) use group::{encode, may_fit};

/// Its name in the data directory.
const FILE: &str = "store.journal";
/// What the file begins with; behind it are the key, the number of the data file, and a seal of the two.
const MAGIC: &[u8; 16] = b"throwbar-log-1\r\n";
const KEY_BYTES: usize = 16;
const HEAD_BYTES: u64 = 4096;
const HALF_BYTES: u64 = 4 << 20;
/// The least that disks write whole.
const SECTOR_BYTES: usize = 512;
/// Before a record: magic, its number, the length of what follows, a seal of these two, and one of all.
const RECORD_MAGIC: &[u8; 8] = b"tbrecord";
const RECORD_HEAD_BYTES: usize = 48;
const HEAD_SEAL_BYTES: usize = 8;
const SEAL_BYTES: usize = 16;
/// Most bytes of a transaction: what is larger gains nothing from being written twice.
pub(super) const RECORD_BYTES_MAX: usize = 1 << 20;
/// So far ahead a half is filled with zeros: to write where a file has bytes is faster than to make it longer.
const AHEAD_BYTES: u64 = 64 << 10;

/// Where the journal is written.
pub(in crate::store::backend) trait Disk: Send {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

impl Disk for File {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// What an open file is written through.
pub(in crate::store::backend) type Through = Box<dyn Fn(File) -> Box<dyn Disk> + Send>;

/// The journal of a data file.
pub(super) struct Journal {
    path: PathBuf,
    /// Of the data file.
    id: u64,
    through: Through,
    /// None until it is needed, and after it failed.
    disk: Option<Box<dyn Disk>>,
    /// Of the file, if there is one that can be used.
    key: Option<[u8; KEY_BYTES]>,
    /// Where the next record goes.
    half: usize,
    at: u64,
    /// How far each half has bytes.
    filled: [u64; 2],
    /// Where a record is that was refused, though it may be whole.
    refused: Option<u64>,
    record: Vec<u8>,
}

impl Journal {
    /// That of a data file with this number.
    pub(super) fn beside(data_file: &Path, id: u64, through: Through) -> Self {
        Self {
            path: path_beside(data_file),
            id,
            through,
            disk: None,
            key: None,
            half: 0,
            at: 0,
            filled: [0; 2],
            refused: None,
            record: Vec::new(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file has and a data file does not have, which is at this transaction. Nothing is changed.
    pub(super) fn read(&mut self, from: Mark) -> Result<(Mark, Vec<Change>), OpenError> {
        let damaged = |reason: String| OpenError::Journal {
            path: self.path.clone(),
            reason,
        };
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((from, Vec::new())),
            Err(error) => return Err(damaged(error.to_string())),
        };
        // Its head is on the disk before anything else is written.
        if bytes.len() as u64 <= HEAD_BYTES {
            return Ok((from, Vec::new()));
        }
        let head = head_of(&bytes);
        let (key, id) = head.ok_or_else(|| damaged("it does not begin as a journal".into()))?;
        if id != self.id {
            return Err(damaged("it is of another data file".into()));
        }
        let found = records(&bytes, &key, from.writes);
        let (mut mark, mut changes) = (from, Vec::new());
        for (number, payload) in found {
            if number != mark.writes.wrapping_add(1) {
                return Err(damaged(format!(
                    "write {number} is in it, and not the one after write {}, which is the last before it: it is damaged, or of \
                     another data file",
                    mark.writes
                )));
            }
            let read = group::decode(payload, mark.revision).map_err(damaged)?;
            mark = Mark {
                revision: read.revision,
                writes: number,
            };
            changes.extend(read.changes);
        }
        self.key = Some(key);
        Ok((mark, changes))
    }

    /// Whether a transaction has room where records go now.
    pub(super) fn fits(&self, payload: usize) -> bool {
        self.at + padded(payload) as u64 <= HALF_BYTES
    }

    /// Whether it is time to turn to the other half.
    pub(super) fn is_half_full(&self) -> bool {
        self.at >= HALF_BYTES / 2
    }

    /// Turns to the other half, all of whose records the data file has.
    pub(super) fn turn(&mut self) {
        (self.half, self.at) = (1 - self.half, 0);
    }

    /// Begins anew: the data file has everything.
    pub(super) fn rewind(&mut self) {
        (self.half, self.at) = (0, 0);
    }

    /// Adds a transaction and syncs. After an error it is to be [mended](Self::mend) first.
    pub(super) fn append(&mut self, number: u64, payload: &[u8]) -> io::Result<()> {
        let at = HEAD_BYTES + self.half as u64 * HALF_BYTES + self.at;
        let result = self.try_append(number, payload, at);
        match &result {
            Ok(()) => self.at += self.record.len() as u64,
            Err(_) => {
                self.disk = None;
                self.refused = Some(at);
            }
        }
        result
    }

    fn try_append(&mut self, number: u64, payload: &[u8], at: u64) -> io::Result<()> {
        let key = self.open()?;
        let disk = self.disk.as_ref().ok_or(io::ErrorKind::NotFound)?;
        self.record.clear();
        self.record.extend_from_slice(RECORD_MAGIC);
        self.record.extend_from_slice(&number.to_le_bytes());
        let length = u64::try_from(payload.len()).map_err(io::Error::other)?;
        self.record.extend_from_slice(&length.to_le_bytes());
        let head = &self.record[RECORD_MAGIC.len()..];
        let seals: ([u8; HEAD_SEAL_BYTES], [u8; SEAL_BYTES]) =
            (seal(&key, head, &[]), seal(&key, head, payload));
        self.record.extend_from_slice(&seals.0);
        self.record.extend_from_slice(&seals.1);
        self.record.extend_from_slice(payload);
        self.record.resize(padded(payload.len()), 0);
        let end = self.at + self.record.len() as u64;
        if end > self.filled[self.half] {
            let until = (end + AHEAD_BYTES).min(HALF_BYTES);
            let zeros = vec![0; (until - end) as usize];
            // A disk that is too full for these may have room for the record.
            if disk.write_at(&zeros, at + self.record.len() as u64).is_ok() {
                self.filled[self.half] = until;
            }
        }
        disk.write_at(&self.record, at)?;
        disk.sync()
    }

    /// The file's key. Opens it, or makes it.
    fn open(&mut self) -> io::Result<[u8; KEY_BYTES]> {
        if let (Some(_), Some(key)) = (&self.disk, self.key) {
            return Ok(key);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        if let Some(key) = self.key {
            match options.open(&self.path) {
                Ok(file) => {
                    let mut head = [0; HEAD_USED_BYTES];
                    file.read_exact_at(&mut head, 0)?;
                    if head != head_with(key, self.id) {
                        return Err(io::Error::other("it was changed by someone else"));
                    }
                    self.disk = Some((self.through)(file));
                    return Ok(key);
                }
                // Somebody took it away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.key = None,
                Err(error) => return Err(error),
            }
        }
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        let file = options.create(true).truncate(true).open(&self.path)?;
        let disk = (self.through)(file.try_clone()?);
        let mut head = [0; HEAD_BYTES as usize];
        head[..HEAD_USED_BYTES].copy_from_slice(&head_with(key, self.id));
        disk.write_at(&head, 0)?;
        disk.sync()?;
        file.sync_all()?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()?;
        (self.disk, self.key, self.filled) = (Some(disk), Some(key), [0; 2]);
        Ok(key)
    }

    /// Takes out what was refused.
    pub(super) fn mend(&mut self) -> io::Result<()> {
        let Some(at) = self.refused else {
            return Ok(());
        };
        // Without a key there is no file with records, and a disk that is full has taken nothing of it.
        if self.key.is_some() && self.is_begun(at)? {
            self.open()?;
            let disk = self.disk.as_ref().ok_or(io::ErrorKind::NotFound)?;
            let mended = disk.write_at(&[0; SECTOR_BYTES], at);
            if let Err(error) = mended.and_then(|()| disk.sync()) {
                self.disk = None;
                return Err(error);
            }
        }
        self.refused = None;
        Ok(())
    }

    /// Whether a record may be there.
    fn is_begun(&self, at: u64) -> io::Result<bool> {
        let mut first = [0; RECORD_MAGIC.len()];
        let read = File::open(&self.path).and_then(|file| file.read_exact_at(&mut first, at));
        match read {
            Ok(()) => Ok(first == *RECORD_MAGIC),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Lets go of the file.
    pub(super) fn close(&mut self) {
        self.disk = None;
    }

    /// Takes the file away: the data file has everything.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        (self.disk, self.key, self.refused) = (None, None, None);
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The journal of a data file.
pub(super) fn path_beside(data_file: &Path) -> PathBuf {
    data_file.with_file_name(FILE)
}

/// Whether a file begins as a journal does, by its first bytes.
pub(super) fn is_journal(first: &[u8]) -> bool {
    MAGIC.starts_with(first)
}

const HEAD_USED_BYTES: usize = MAGIC.len() + KEY_BYTES + 8 + SEAL_BYTES;

fn head_with(key: [u8; KEY_BYTES], id: u64) -> [u8; HEAD_USED_BYTES] {
    let id = id.to_le_bytes();
    let seal: [u8; SEAL_BYTES] = seal(&key, &id, &[]);
    let mut head = [0; HEAD_USED_BYTES];
    let parts = [&MAGIC[..], &key, &id, &seal].concat();
    head.copy_from_slice(&parts);
    head
}

/// Key and number of the data file, if the head is whole.
fn head_of(bytes: &[u8]) -> Option<([u8; KEY_BYTES], u64)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (key, rest) = rest.split_first_chunk()?;
    let id = u64::from_le_bytes(*rest.first_chunk()?);
    bytes
        .starts_with(&head_with(*key, id))
        .then_some((*key, id))
}

/// With head and padding.
fn padded(payload: usize) -> usize {
    (RECORD_HEAD_BYTES + payload).next_multiple_of(SECTOR_BYTES)
}

fn seal<const N: usize>(key: &[u8; KEY_BYTES], head: &[u8], payload: &[u8]) -> [u8; N] {
    let digest = Sha256::new()
        .chain_update(key)
        .chain_update(head)
        .chain_update(payload)
        .finalize();
    let mut seal = [0; N];
    seal.copy_from_slice(&digest[..N]);
    seal
}

/// All whole records with higher numbers than this, in order.
fn records<'b>(
    bytes: &'b [u8],
    key: &[u8; KEY_BYTES],
    after: u64,
) -> impl Iterator<Item = (u64, &'b [u8])> + use<'b> {
    let mut found = Vec::new();
    let mut rest = bytes.get(HEAD_BYTES as usize..).unwrap_or_default();
    while !rest.is_empty() {
        let step = match record(rest, key) {
            Some((number, payload)) => {
                if number > after {
                    found.push((number, payload));
                }
                padded(payload.len())
            }
            None => SECTOR_BYTES,
        };
        rest = rest.get(step..).unwrap_or_default();
    }
    found.sort_unstable_by_key(|(number, _)| *number);
    found.into_iter()
}

/// The record that these bytes begin with, if it is whole. Without a sealed head nothing behind it is read.
fn record<'b>(bytes: &'b [u8], key: &[u8; KEY_BYTES]) -> Option<(u64, &'b [u8])> {
    let rest = bytes.strip_prefix(RECORD_MAGIC)?;
    let (head, rest) = rest.split_first_chunk::<16>()?;
    let (head_seal, rest) = rest.split_first_chunk::<HEAD_SEAL_BYTES>()?;
    if seal(key, head, &[]) != *head_seal {
        return None;
    }
    let (found, rest) = rest.split_first_chunk::<SEAL_BYTES>()?;
    let (number, length) = head.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*number);
    let length = u64::from_le_bytes(length.try_into().ok()?);
    let payload = rest.get(..usize::try_from(length).ok()?)?;
    (seal(key, head, payload) == *found).then_some((number, payload))
}

/// What a record holds.
struct Group {
    /// The store's, after it.
    revision: Revision,
    changes: Vec<Change>,
}
