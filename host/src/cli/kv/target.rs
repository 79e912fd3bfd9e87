//! The file that an export or a backup is written to: a new one unless it may be replaced, and whole from the moment it has
//! its name.
//!
//! It is written as `.FILE.throwbar-tmp` beside FILE, which is removed if the command fails or is ended by a signal. What is
//! no regular file, such as a pipe, is written straight into. A data file that a proxy uses is never replaced.

use crate::cli::output;
use crate::cli::{Ended, Exit};
use crate::store::data_file::{Use, use_of};
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

const ANOTHER: &str = "another command is writing it";

/// What is written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Keys and values as text: it goes into a pipe, too, and never onto a data file.
    Export,
    /// A data file: it may replace one that no proxy uses.
    Backup,
}

/// A file to write.
pub(super) struct Target {
    /// How messages name it.
    name: String,
    /// Where it is, symbolic links followed.
    path: PathBuf,
    content: Content,
    force: bool,
    file: File,
    /// Where it is written, unless straight into what is there.
    temporary: Option<Temporary>,
}

/// A file that is removed unless it was given another name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Target {
    /// Makes the file that is written. Opening a pipe waits for its reader.
    ///
    /// # Errors
    /// If it is there and may not be replaced, or nothing can be written there.
    pub(super) fn open(file: &Path, force: bool, content: Content) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let (path, found) = resolve(file).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
        let kind = found.as_ref().map(Metadata::file_type);
        if kind.is_some_and(|kind| kind.is_dir()) {
            anyhow::bail!("{name}: is a directory, expected a file");
        }
        if kind.is_some_and(|kind| !kind.is_file()) {
            let goes_on = kind.is_some_and(|kind| kind.is_fifo() || kind.is_char_device());
            if content == Content::Backup || !goes_on {
                anyhow::bail!("{name}: is no regular file, expected one or none");
            }
            let straight = OpenOptions::new().write(true).open(&path);
            return Ok(Self {
                file: straight.map_err(|error| anyhow::anyhow!("{name}: {error}"))?,
                name,
                path,
                content,
                force,
                temporary: None,
            });
        }
        let target = |file, temporary| Self {
            name: name.clone(),
            path: path.clone(),
            content,
            force,
            file,
            temporary,
        };
        if found.is_some() {
            may_replace(&name, &path, force, content)?;
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        anyhow::ensure!(dir.is_dir(), "{name}: no directory {}", dir.display());
        let temporary = temporary_of(dir, &path);
        let cannot = |error: io::Error| {
            anyhow::anyhow!("{name}: cannot write {}: {error}", temporary.display())
        };
        remove_on_signals(name.clone(), temporary.clone()).map_err(cannot)?;
        let file = create(&temporary).map_err(cannot)?;
        let made = target(file, Some(Temporary(temporary.clone())));
        if let Some(found) = found {
            // Whoever could read what is replaced can read what replaces it. Only root may give files away.
            let (user, group) = (found.uid(), found.gid());
            let _ = std::os::unix::fs::fchown(&made.file, Some(user), Some(group));
            made.file
                .set_permissions(found.permissions())
                .map_err(cannot)?;
        }
        Ok(made)
    }

    /// It, to be written to.
    ///
    /// # Errors
    /// If the system has no more files to give.
    pub(super) fn file(&self) -> anyhow::Result<File> {
        let file = self.file.try_clone();
        file.map_err(|error| anyhow::anyhow!("{}: {error}", self.name))
    }

    /// Where what was written can be read back, before it has its name.
    ///
    /// # Errors
    /// If the system does not let go of it.
    pub(super) fn written(&self) -> anyhow::Result<&Path> {
        // The engine takes the lock of a file that it reads.
        let unlocked = self.file.unlock();
        unlocked.map_err(|error| anyhow::anyhow!("{}: {error}", self.name))?;
        Ok(match &self.temporary {
            Some(Temporary(path)) => path,
            None => &self.path,
        })
    }

    /// Gives it its name, on disk, too.
    ///
    /// # Errors
    /// If that cannot be done, or meanwhile a file is there that may not be replaced.
    pub(super) fn keep(self) -> anyhow::Result<()> {
        let failed = |error: io::Error| anyhow::anyhow!("{}: {error}", self.name);
        let Some(Temporary(temporary)) = &self.temporary else {
            return Ok(());
        };
        self.file.sync_all().map_err(failed)?;
        if self.path.symlink_metadata().is_ok() {
            may_replace(&self.name, &self.path, self.force, self.content)?;
        }
        if !is_at(&self.file, temporary) {
            return Err(failed(io::Error::other(ANOTHER)));
        }
        // A link fails if the name is taken meanwhile, which a rename does not. Not every system of files has links.
        let linked = match self.force {
            true => Err(ErrorKind::Unsupported.into()),
            false => std::fs::hard_link(temporary, &self.path),
        };
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                std::fs::rename(temporary, &self.path)
            }
            linked => linked,
        }
        .map_err(failed)?;
        let dir = temporary.parent().unwrap_or(Path::new("."));
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)
    }
}

/// Where a file is when symbolic links are followed, and what is there.
fn resolve(file: &Path) -> io::Result<(PathBuf, Option<Metadata>)> {
    match file.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok((file.to_owned(), None)),
        Err(error) => Err(error),
        Ok(found) if !found.is_symlink() => Ok((file.to_owned(), Some(found))),
        Ok(_) => match file.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(io::Error::other(
                "is a symbolic link to nothing, expected one to a file",
            )),
            Err(error) => Err(error),
            // The path of a pipe behind a link of /proc is none.
            Ok(found) if !found.is_file() => Ok((file.to_owned(), Some(found))),
            Ok(found) => Ok((file.canonicalize()?, Some(found))),
        },
    }
}

fn may_replace(name: &str, path: &Path, force: bool, content: Content) -> anyhow::Result<()> {
    let refused = |why: &str| Err(Ended::error(Exit::Failed, format!("{name}: {why}")));
    match use_of(path) {
        Ok(Use::ByProxy) => {
            refused("it is a data file in use by a proxy, not replaced even with --force")
        }
        Ok(Use::Unused) if content == Content::Export => {
            refused("it is a data file, not replaced by an export even with --force")
        }
        _ if !force => {
            refused("it is there already, expected a new file: give another name, or --force")
        }
        Ok(_) => Ok(()),
        Err(error) => refused(&format!(
            "cannot be read to see whether a proxy uses it: {error}"
        )),
    }
}

fn temporary_of(dir: &Path, path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".throwbar-tmp");
    dir.join(name)
}

/// Makes the file that nobody else writes: what a command left that was killed is removed.
fn create(path: &Path) -> io::Result<File> {
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        match options.open(path) {
            // From here on others see that it is written.
            Ok(file) if file.try_lock().is_ok() && is_at(&file, path) => return Ok(file),
            Ok(_) => continue,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
        let left = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        match left.try_lock() {
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) if is_at(&left, path) => std::fs::remove_file(path)?,
            Ok(()) => {}
        }
    }
    Err(io::Error::other(ANOTHER))
}

fn is_at(file: &File, path: &Path) -> bool {
    let there = path.symlink_metadata();
    let open = file.metadata();
    matches!((there, open), (Ok(there), Ok(open))
        if (there.dev(), there.ino()) == (open.dev(), open.ino()))
}

/// Has Ctrl-C and SIGTERM remove a file before they end the process, as they would without this.
fn remove_on_signals(name: String, temporary: PathBuf) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    // Ends with the process.
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let signal = runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                }
            });
            let _ = std::fs::remove_file(temporary);
            output::aside(format_args!(
                "error: {name}: not written: a signal ended it"
            ));
            // As shells say it of a process that a signal ended.
            std::process::exit(128 + signal.as_raw_value());
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    fn write(path: &Path, force: bool, content: Content) -> anyhow::Result<()> {
        let target = Target::open(path, force, content)?;
        target.file()?.write_all(b"new")?;
        target.keep()
    }

    fn refused(path: &Path, force: bool, content: Content) -> String {
        let error = write(path, force, content).expect_err("refused");
        error.to_string()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("a directory");
        let name = |entry: io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
        entries
            .map(|entry| name(entry).to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_file_that_is_there_is_replaced_only_when_asked_for_and_keeps_its_mode() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("map.txt");
        write(&path, false, Content::Export).expect("written");
        std::fs::write(&path, "old").expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("set");
        for content in [Content::Export, Content::Backup] {
            let why = refused(&path, false, content);
            assert!(why.contains("it is there already"), "{why}");
        }
        assert_eq!(std::fs::read(&path).expect("read"), b"old");
        write(&path, true, Content::Export).expect("replaced");
        assert_eq!(std::fs::read(&path).expect("read"), b"new");
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(names(dir.path()), ["map.txt"]);
    }

    #[test]
    fn a_symbolic_link_stays_one_and_leads_to_what_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        let why = refused(&link, true, Content::Export);
        assert!(why.contains("a symbolic link to nothing"), "{why}");
        std::fs::write(&file, "old").expect("written");
        write(&link, true, Content::Export).expect("written");
        assert!(link.symlink_metadata().expect("there").is_symlink());
        assert_eq!(std::fs::read(&file).expect("read"), b"new");
    }

    #[test]
    fn a_pipe_is_written_straight_into_and_no_place_for_a_backup() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pipe");
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).expect("a pipe");
        let why = refused(&path, true, Content::Backup);
        assert!(why.contains("no regular file"), "{why}");
        let reader = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut text = String::new();
                let mut pipe = File::open(path).expect("opened");
                pipe.read_to_string(&mut text).map(|_| text)
            }
        });
        write(&path, false, Content::Export).expect("written");
        let read = reader.join().expect("it reads").expect("text");
        assert_eq!(read, "new");
        let kind = path.symlink_metadata().expect("there").file_type();
        assert!(kind.is_fifo());
        let why = refused(dir.path(), true, Content::Export);
        assert!(why.contains("is a directory"), "{why}");
    }

    #[test]
    fn what_a_killed_command_left_is_removed_and_two_do_not_write_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("map.txt");
        std::fs::write(dir.path().join(".map.txt.throwbar-tmp"), "left").expect("written");
        let first = Target::open(&path, false, Content::Export).expect("opened");
        let why = refused(&path, false, Content::Export);
        assert!(why.contains("another command is writing it"), "{why}");
        first
            .file()
            .expect("a file")
            .write_all(b"first")
            .expect("written");
        std::fs::write(&path, "meanwhile").expect("written");
        let why = first.keep().expect_err("refused").to_string();
        assert!(why.contains("it is there already"), "{why}");
        assert_eq!(names(dir.path()), ["map.txt"]);
        assert_eq!(std::fs::read(&path).expect("read"), b"meanwhile");
    }
}
