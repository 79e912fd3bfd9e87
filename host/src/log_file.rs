//! Files that logs are appended to: a line stays whole, and one that was renamed is begun anew.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that only grows. Whoever rotates it renames it, or removes it: the next line begins a new one at its path.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    mode: u32,
    file: File,
    /// Device and inode of `file`.
    at: (u64, u64),
    /// Whether the last write broke off in a line.
    is_torn: bool,
}

impl LogFile {
    /// Opens a file, and makes it with this mode if it is not there.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path, mode: u32) -> io::Result<Self> {
        let (file, at) = opened(path, mode)?;
        Ok(Self {
            path: path.to_owned(),
            mode,
            file,
            at,
            is_torn: false,
        })
    }

    /// Opens the path once more if another file is there now, or none.
    fn follow(&mut self) -> io::Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(found) if place(&found) == self.at => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        (self.file, self.at) = opened(&self.path, self.mode)?;
        self.is_torn = false;
        Ok(())
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
        }
        // Until it is known that all of it was written.
        self.is_torn = true;
        self.file.write_all(lines)?;
        self.is_torn = false;
        Ok(())
    }
}

impl Write for LogFile {
    /// Appends whole lines. If there should be a new file and it cannot be made, they go to the old one, and that is an error.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let followed = self.follow();
        self.append(lines)?;
        followed.map(|()| lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn opened(path: &Path, mode: u32) -> io::Result<(File, (u64, u64))> {
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(mode).open(path)?;
    let at = place(&file.metadata()?);
    Ok((file, at))
}

fn place(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_was_renamed_or_removed_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut log = LogFile::open(&path, 0o600).unwrap();
        log.write_all(b"one\n").unwrap();
        fs::rename(&path, &old).unwrap();
        log.write_all(b"two\n").unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"one\n");
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three\n");
    }

    #[test]
    fn without_a_place_for_a_new_file_lines_go_to_the_old_one_and_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (at, moved) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&at).unwrap();
        let mut log = LogFile::open(&at.join("log"), 0o600).unwrap();
        fs::rename(&at, &moved).unwrap();
        assert!(log.write_all(b"one\n").is_err());
        assert_eq!(fs::read(moved.join("log")).unwrap(), b"one\n");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut log = LogFile::open(Path::new("/dev/full"), 0o600).unwrap();
        assert!(log.write_all(b"one\n").is_err());
    }
}
