//! A copy on disk of what proxies share, for a start while the engine is away.
//!
//! A thread writes it anew whenever something has changed, seldom enough to cost little, and at the end of the process. It
//! is made beside the old one and takes its place when it is whole. Its time is the file's: until then it was what the
//! engine held. It ends with a checksum; a damaged copy is reported, and not used.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Links, Loaded, SharedEntry};
use crate::store::bucket::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::store::{BackendKind, Bucket, Revision, Snapshot};

/// Least time between two copies.
const INTERVAL: Duration = Duration::from_secs(2);
/// Copies take this share of the time at most: one in so many.
const SHARE: u32 = 20;
const MAGIC: &[u8; 16] = b"throwbar copy 1\n";
const DIGEST_BYTES: usize = 32;
/// Longest description of the buckets.
const HEAD_BYTES_MAX: u32 = 16 << 20;

/// What a copy says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    buckets: Vec<BucketHead>,
}

#[derive(Debug, Serialize, Deserialize)]
struct BucketHead {
    name: String,
    revision: Revision,
    entries: u64,
}

/// What a copy is of.
#[derive(PartialEq, Eq)]
struct Of {
    revision: Revision,
    /// An engine that has gone back may give the same revision to something else.
    loads: u64,
    /// A config may bring more.
    buckets: usize,
}

fn buckets_on(snapshot: &Snapshot, kind: BackendKind) -> impl Iterator<Item = &Bucket> {
    let buckets = snapshot.buckets.iter();
    buckets.filter(move |bucket| bucket.config.backend == kind)
}

/// Writes copies until the other end of `stop` is dropped, and then once more.
pub(in crate::store) fn keep(newest: &ArcSwap<Snapshot>, links: &Arc<Links>, stop: &Receiver<()>) {
    let mut written: Vec<(BackendKind, Of)> = Vec::new();
    let mut pause = INTERVAL;
    loop {
        let is_last = stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
        let began = Instant::now();
        for (kind, link) in links.iter() {
            let progress = *link.progress().borrow();
            let known = written.iter().position(|(other, _)| *other == kind);
            if progress.applied.revision == Revision::default() {
                continue;
            }
            // Of when it is, however long it takes to be written.
            let health = link.health();
            let now = SystemTime::now();
            let dated = now.checked_sub(health.staleness().unwrap_or_default());
            let dated = dated.unwrap_or(now);
            // What is written later has at least that.
            let snapshot = newest.load_full();
            let of = Of {
                revision: progress.applied.revision,
                loads: progress.loads,
                buckets: buckets_on(&snapshot, kind).count(),
            };
            let path = links.copy_path(kind);
            let done = match known {
                // It still is what the engine holds.
                Some(at) if written[at].1 == of => match health.lost {
                    None => date(&path, dated),
                    Some(_) => Ok(()),
                },
                _ => write(&path, kind, &snapshot, dated),
            };
            match (done, known) {
                (Ok(()), Some(at)) => written[at].1 = of,
                (Ok(()), None) => written.push((kind, of)),
                (Err(error), _) => tracing::warn!(
                    file = %path.display(), %error,
                    "no copy is kept of what proxies share: a restart needs it to be there"
                ),
            }
        }
        if is_last {
            return;
        }
        pause = INTERVAL.max(began.elapsed() * SHARE);
    }
}

/// Dates a copy anew.
fn date(path: &Path, at: SystemTime) -> io::Result<()> {
    File::options().append(true).open(path)?.set_modified(at)
}

/// Passes on what is written, and sums it.
struct Summed<W> {
    inner: W,
    sum: Sha256,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.sum.update(&bytes[..read]);
        Ok(read)
    }
}

/// Writes the buckets that a state has on a backend, dated by when it was known that there is nothing newer: that may be long
/// before it is written.
fn write(path: &Path, kind: BackendKind, snapshot: &Snapshot, dated: SystemTime) -> io::Result<()> {
    let new = path.with_extension("copy.new");
    let buckets: Vec<_> = buckets_on(snapshot, kind).collect();
    let head = Head {
        buckets: buckets
            .iter()
            .map(|bucket| BucketHead {
                name: bucket.config.name.clone(),
                revision: bucket.revision,
                entries: bucket.table.len() + bucket.over.as_ref().map_or(0, |over| over.len()),
            })
            .collect(),
    };
    let head = serde_json::to_vec(&head)?;
    let mut file = Summed {
        inner: BufWriter::new(private(&new)?),
        sum: Sha256::new(),
    };
    file.write_all(MAGIC)?;
    let head_len = u32::try_from(head.len()).map_err(io::Error::other)?;
    file.write_all(&head_len.to_le_bytes())?;
    file.write_all(&head)?;
    for bucket in buckets {
        for record in bucket.held() {
            let value = record.entry.value.to_bytes();
            let key = record.key_bytes();
            // Keys and values have bounds far below.
            file.write_all(&(key.len() as u32).to_le_bytes())?;
            file.write_all(&(value.len() as u32).to_le_bytes())?;
            file.write_all(&record.entry.revision.0.to_le_bytes())?;
            let deadline = record
                .entry
                .deadline
                .map_or(0, |deadline| deadline.millis());
            file.write_all(&deadline.to_le_bytes())?;
            file.write_all(key)?;
            file.write_all(&value)?;
        }
    }
    let sum = file.sum.finalize();
    let mut file = file.inner;
    file.write_all(&sum)?;
    let file = file.into_inner()?;
    file.set_modified(dated)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// A new file that is nobody else's to read.
fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// A bucket of a copy, and when that was what the engine held. None if there is no copy, or not of it.
///
/// # Errors
/// If it is damaged or cannot be read.
pub(in crate::store) fn read(
    path: &Path,
    bucket: &str,
) -> Result<Option<(Loaded, SystemTime)>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let damaged = |error: io::Error| {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
            _ => error.to_string(),
        };
        format!(
            "the copy {} is damaged: {what}; a start while the backend is there writes it anew",
            path.display()
        )
    };
    let at = file.metadata().and_then(|data| data.modified());
    let found = read_bucket(file, bucket).map_err(damaged)?;
    let at = at.map_err(damaged)?;
    Ok(found.map(|loaded| (loaded, at)))
}

fn read_bucket(file: File, bucket: &str) -> io::Result<Option<Loaded>> {
    let mut file = Summed {
        inner: BufReader::new(file),
        sum: Sha256::new(),
    };
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if array::<16>(&mut file)? != *MAGIC {
        return Err(wrong("it does not begin like a copy"));
    }
    let head_len = u32::from_le_bytes(array(&mut file)?);
    if head_len > HEAD_BYTES_MAX {
        return Err(wrong("its head is too long"));
    }
    let head: Head = serde_json::from_slice(&bytes(&mut file, head_len as usize)?)?;
    let mut found = None;
    for known in head.buckets {
        let mut entries = Vec::new();
        for _ in 0..known.entries {
            let key_len = u32::from_le_bytes(array(&mut file)?) as usize;
            let value_len = u32::from_le_bytes(array(&mut file)?) as usize;
            if key_len > KEY_BYTES_MAX || value_len > VALUE_BYTES_MAX {
                return Err(wrong("an entry is too long"));
            }
            let revision = Revision(u64::from_le_bytes(array(&mut file)?));
            let deadline = u64::from_le_bytes(array(&mut file)?);
            let key = String::from_utf8(bytes(&mut file, key_len)?);
            let key = key.map_err(|_| wrong("a key is no text"))?;
            let value = bytes(&mut file, value_len)?;
            if known.name == bucket {
                entries.push(SharedEntry {
                    bucket: bucket.into(),
                    key: key.into(),
                    value: value.into(),
                    revision,
                    expires_at_ms: (deadline > 0).then_some(deadline),
                });
            }
        }
        if known.name == bucket {
            found = Some(Loaded {
                revision: known.revision,
                entries,
            });
        }
    }
    let sum = file.sum.clone().finalize();
    if array::<DIGEST_BYTES>(&mut file)? != *sum {
        return Err(wrong("its checksum is another"));
    }
    Ok(found)
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn bytes(from: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
