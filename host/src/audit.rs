//! The audit log: a line for each change through the admin API, or attempt at one, and what is known of lines that were lost.

use crate::log_file::LogFile;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What its lines are for `tracing`.
pub const TARGET: &str = "audit";
/// While lines are being lost, that is said so often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Lines that could not be written; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Losses(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: AtomicU64,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// Why.
    error: String,
    /// How many had been lost when that was said, and when.
    told: u64,
    told_at: Option<Instant>,
}

impl Losses {
    /// How many there are.
    pub fn lines(&self) -> u64 {
        self.0.lines.load(Relaxed)
    }

    /// Says in the process's own log that there are new ones, not too often. For who has just had a line written: while it is
    /// being written, nothing can be logged.
    pub fn tell(&self) {
        let mut last = self.last();
        let lines = self.lines();
        let is_due = last.told_at.is_none_or(|at| at.elapsed() >= TOLD_EVERY);
        if lines == last.told || !is_due {
            return;
        }
        let new = lines - last.told;
        (last.told, last.told_at) = (lines, Some(Instant::now()));
        let error = last.error.clone();
        drop(last);
        tracing::error!(error, lines = new, "audit log cannot be written");
    }

    fn count(&self, error: &io::Error) {
        self.0.lines.fetch_add(1, Relaxed);
        self.last().error = error.to_string();
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file of the audit log, which only its owner reads.
#[derive(Debug)]
pub struct AuditFile {
    file: LogFile,
    losses: Losses,
}

impl AuditFile {
    /// Opens it.
    ///
    /// # Errors
    /// If that fails.
    pub fn open(path: &Path, losses: Losses) -> io::Result<Self> {
        let file = LogFile::open(path, 0o600)?;
        Ok(Self { file, losses })
    }
}

impl Write for AuditFile {
    /// A line. Who asks for one to be written cannot be told that it was not: it is counted.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.file.write_all(line) {
            self.losses.count(&error);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_counted() {
        let losses = Losses::default();
        let mut file = AuditFile::open(Path::new("/dev/full"), losses.clone()).unwrap();
        for _ in 0..3 {
            file.write_all(b"line\n").unwrap();
        }
        assert_eq!(losses.lines(), 3);
        losses.tell();
        assert_eq!(losses.last().told, 3);
        assert!(losses.last().error.contains("space"));
        file.write_all(b"line\n").unwrap();
        losses.tell();
        // Not so soon again.
        assert_eq!((losses.lines(), losses.last().told), (4, 3));
    }
}
