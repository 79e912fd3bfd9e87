//! Uploaded components, kept under their digest, and the record of which is active; both survive a crash.
//!
//! `plugins/<name>/<digest>.wasm` is written to a temporary name, synced and renamed; `plugins/<name>/active.json` is
//! the pointer, replaced the same way. A reader sees the old file or the new one, never half of either.

use super::record::Record;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const POINTER: &str = "active.json";
const TEMPORARY: &str = ".tmp";

/// A version on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) digest: String,
    pub(super) bytes: u64,
}

/// The directory of all plugins.
#[derive(Debug, Clone)]
pub(super) struct Artifacts {
    dir: PathBuf,
}

/// SHA-256 in hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        })
}

/// What the name of a plugin is made of.
pub(crate) const NAME_EXPECTED: &str = "1 to 64 of a-z, 0-9 and `-`";

/// Whether a plugin may have this name: it becomes a directory.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// Removes files that a crash left half written.
pub(super) fn remove_temporary(dir: &Path) -> io::Result<()> {
    for file in std::fs::read_dir(dir)? {
        let file = file?;
        if file.file_name().to_string_lossy().ends_with(TEMPORARY) {
            std::fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

impl Artifacts {
    /// Opens `plugins/` of the data directory, and clears it of what a crash left half written.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let dir = data.join("plugins");
        if dir.is_file() {
            let why = format!("{} is a file, expected a directory", dir.display());
            return Err(io::Error::other(why));
        }
        std::fs::create_dir_all(&dir).map_err(|error| naming(&dir, error))?;
        for plugin in std::fs::read_dir(&dir).map_err(|error| naming(&dir, error))? {
            let plugin = plugin?.path();
            if plugin.is_dir() {
                remove_temporary(&plugin).map_err(|error| naming(&plugin, error))?;
            }
        }
        Ok(Self { dir })
    }

    /// Keeps a component under its digest; nothing is written if it is there already.
    pub(super) fn keep(&self, plugin: &str, digest: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.component(plugin, digest)?;
        if std::fs::metadata(&path).is_ok_and(|kept| kept.len() == bytes.len() as u64) {
            return Ok(());
        }
        replace(&path, bytes)
    }

    /// Reads a component and checks that it is what was kept.
    pub(super) fn load(&self, plugin: &str, digest: &str) -> io::Result<Bytes> {
        let path = self.component(plugin, digest)?;
        let bytes = std::fs::read(&path).map_err(|error| naming(&path, error))?;
        let found = self::digest(&bytes);
        if found != digest {
            let reason = format!("content has digest {found}, expected the one it is named by");
            return Err(naming(
                &path,
                io::Error::new(io::ErrorKind::InvalidData, reason),
            ));
        }
        Ok(bytes.into())
    }

    /// What is recorded of a plugin; none if nothing was ever pushed.
    pub(super) fn record(&self, plugin: &str) -> io::Result<Option<Record>> {
        let path = self.plugin(plugin)?.join(POINTER);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(naming(&path, error)),
        };
        let record = serde_json::from_slice(&text).map_err(|error| {
            let reason = format!("not a record of an active version: {error}");
            naming(&path, io::Error::new(io::ErrorKind::InvalidData, reason))
        })?;
        Ok(Some(record))
    }

    /// Switches the pointer; once this returned, a crash does not undo it.
    pub(super) fn write_record(&self, plugin: &str, record: &Record) -> io::Result<()> {
        let path = self.plugin(plugin)?.join(POINTER);
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        replace(&path, &text)
    }

    /// Versions of a plugin on disk.
    pub(super) fn kept(&self, plugin: &str) -> io::Result<Vec<Kept>> {
        let dir = self.plugin(plugin)?;
        let files = match std::fs::read_dir(&dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(naming(&dir, error)),
        };
        let mut kept = Vec::new();
        for file in files {
            let file = file.map_err(|error| naming(&dir, error))?;
            let name = file.file_name();
            if let Some(digest) = name.to_str().and_then(|name| name.strip_suffix(".wasm")) {
                kept.push(Kept {
                    digest: digest.to_owned(),
                    bytes: file
                        .metadata()
                        .map_err(|error| naming(&file.path(), error))?
                        .len(),
                });
            }
        }
        Ok(kept)
    }

    /// Removes versions that a record does not keep.
    pub(super) fn prune(&self, plugin: &str, record: &Record, keep: usize) -> io::Result<()> {
        let keep = record.keeps(keep);
        for kept in self.kept(plugin)? {
            if !keep.contains(kept.digest.as_str()) {
                self.remove(plugin, &kept.digest)?;
            }
        }
        Ok(())
    }

    /// Removes a version.
    pub(super) fn remove(&self, plugin: &str, digest: &str) -> io::Result<()> {
        let path = self.component(plugin, digest)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(naming(&path, error)),
            _ => Ok(()),
        }
    }

    /// Digests of all versions of all plugins.
    pub(super) fn all_digests(&self) -> io::Result<BTreeSet<String>> {
        let mut digests = BTreeSet::new();
        for plugin in std::fs::read_dir(&self.dir).map_err(|error| naming(&self.dir, error))? {
            if let Some(name) = plugin?.file_name().to_str().filter(|name| is_name(name)) {
                digests.extend(self.kept(name)?.into_iter().map(|kept| kept.digest));
            }
        }
        Ok(digests)
    }

    fn plugin(&self, plugin: &str) -> io::Result<PathBuf> {
        if !is_name(plugin) {
            let reason = format!("plugin name {plugin:?}: expected {NAME_EXPECTED}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Ok(self.dir.join(plugin))
    }

    fn component(&self, plugin: &str, digest: &str) -> io::Result<PathBuf> {
        // A record that was tampered with must not lead out of the directory.
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let reason = format!("plugin {plugin:?}: {digest:?} is not a SHA-256 digest in hex");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(self.plugin(plugin)?.join(format!("{digest}.wasm")))
    }
}

/// Writes a file that appears whole and stays: temporary name, sync, rename, sync of the directory.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path
        .parent()
        .expect("every path here is inside the plugins directory");
    let written = (|| {
        std::fs::create_dir_all(dir)?;
        let mut file = tempfile::Builder::new()
            .suffix(TEMPORARY)
            .tempfile_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(dir)?.sync_all()?;
        // The plugin's own directory may be new.
        dir.parent()
            .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    })();
    written.map_err(|error| naming(path, error))
}

/// Puts the path before an error, which has none by itself.
fn naming(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::record::Activation;
    use super::*;

    fn record(digest: &str, before: Option<&Record>) -> Record {
        let activation = Activation::now(digest, "test");
        Record::after(before, activation, String::new(), true)
    }

    #[test]
    fn a_component_is_kept_and_read_back_under_its_digest() {
        let dir = tempfile::tempdir().expect("a directory");
        let artifacts = Artifacts::open(dir.path()).expect("open");
        let digest = digest(b"bytes");
        artifacts.keep("p", &digest, b"bytes").expect("keep");
        assert_eq!(artifacts.load("p", &digest).expect("load"), &b"bytes"[..]);
        assert_eq!(artifacts.kept("p").expect("kept").len(), 1);
    }

    #[test]
    fn a_changed_component_is_refused_with_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let artifacts = Artifacts::open(dir.path()).expect("open");
        let digest = digest(b"bytes");
        artifacts.keep("p", &digest, b"bytes").expect("keep");
        std::fs::write(
            dir.path().join(format!("plugins/p/{digest}.wasm")),
            b"bytez",
        )
        .expect("write");
        let error = artifacts
            .load("p", &digest)
            .expect_err("changed")
            .to_string();
        assert!(
            error.contains(&digest) && error.contains("expected"),
            "{error}"
        );
    }

    #[test]
    fn the_pointer_survives_and_a_broken_one_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let artifacts = Artifacts::open(dir.path()).expect("open");
        assert_eq!(artifacts.record("p").expect("none yet"), None);
        let record = record(&digest(b"1"), None);
        artifacts.write_record("p", &record).expect("write");
        assert_eq!(artifacts.record("p").expect("read"), Some(record));
        std::fs::write(dir.path().join("plugins/p/active.json"), "{").expect("write");
        let error = artifacts.record("p").expect_err("broken").to_string();
        assert!(error.contains("active.json"), "{error}");
    }

    #[test]
    fn names_and_digests_cannot_lead_out_of_the_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let artifacts = Artifacts::open(dir.path()).expect("open");
        for name in ["", "..", "a/b", "A", "a b", &"a".repeat(65)] {
            assert!(artifacts.record(name).is_err(), "{name:?}");
        }
        assert!(artifacts.load("p", "../../etc/passwd").is_err());
    }

    #[test]
    fn as_many_of_the_newest_versions_stay_as_are_to_be_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let artifacts = Artifacts::open(dir.path()).expect("open");
        let digests: Vec<String> = (0..8u8).map(|i| digest(&[i])).collect();
        for (i, digest) in digests.iter().enumerate() {
            artifacts.keep("p", digest, &[i as u8]).expect("keep");
        }
        let newest = digests
            .iter()
            .fold(None, |before, digest| Some(record(digest, before.as_ref())));
        artifacts
            .prune("p", &newest.expect("eight of them"), 5)
            .expect("prune");
        let mut kept: Vec<String> = artifacts
            .kept("p")
            .expect("kept")
            .into_iter()
            .map(|kept| kept.digest)
            .collect();
        let mut expected: Vec<String> = [3, 4, 5, 6, 7].map(|i| digests[i].clone()).into();
        kept.sort();
        expected.sort();
        assert_eq!(kept, expected);
    }

    #[test]
    fn opening_removes_what_a_crash_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let left = dir.path().join("plugins/p/half.tmp");
        std::fs::create_dir_all(left.parent().expect("a parent")).expect("create");
        std::fs::write(&left, b"half").expect("write");
        Artifacts::open(dir.path()).expect("open");
        assert!(!left.exists());
    }
}
