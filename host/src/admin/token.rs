//! The admin token: 32 random bytes in hex, kept in a file that only its owner reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the token's file in the data directory.
pub const FILE_NAME: &str = "admin.token";

const TOKEN_BYTES: usize = 32;
const HEX_LEN: usize = 2 * TOKEN_BYTES;
/// The shortest token that somebody else may make: 128 bits in hex.
const GIVEN_BYTES_MIN: usize = 32;

/// A bearer token; clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("token file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error(
        "token file {}: mode is {mode:04o}, expected 0600: run chmod 600 on it, or remove it to have a new one made",
        path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It does not hold a token.
    #[error(
        "token file {}: expected {HEX_LEN} hex digits: remove it to have a new one made",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("random bytes for the admin token: {0}")]
    Random(String),
}

impl Token {
    /// The token of a data directory, made there if there is none.
    ///
    /// # Errors
    /// See [`TokenError`]: among others if others than its owner may read the file.
    pub fn load_or_create(data: &Path) -> Result<Self, TokenError> {
        let path = data.join(FILE_NAME);
        match Self::load(data) {
            Err(TokenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(&path)?;
                Self::load(data)
            }
            other => other,
        }
    }

    /// The token of a data directory.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn load(data: &Path) -> Result<Self, TokenError> {
        let path = data.join(FILE_NAME);
        let io_error = |source| TokenError::Io {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(io_error)?;
        let mode = file.metadata().map_err(io_error)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Mode { path, mode });
        }
        let mut text = String::new();
        match file.take(HEX_LEN as u64 + 2).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => text.clear(),
            other => {
                other.map_err(io_error)?;
            }
        }
        let text = text.trim_end_matches(['\n', '\r']);
        if text.len() != HEX_LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError::Content { path });
        }
        Ok(Self(text.into()))
    }

    /// A token that somebody else made.
    ///
    /// # Errors
    /// What was expected; never with the text, which is a secret.
    pub fn given(text: &str) -> Result<Self, String> {
        let is_short = text.len() < GIVEN_BYTES_MIN;
        if is_short || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let what = match is_short {
                true => format!("has {} characters", text.chars().count()),
                false => "has other characters".to_owned(),
            };
            return Err(format!(
                "the token {what}, expected {GIVEN_BYTES_MIN} or more ASCII characters without spaces, such as of `openssl rand -hex 32`"
            ));
        }
        Ok(Self(text.into()))
    }

    /// Matches nothing that can be sent: for a process that wants a token and has none.
    pub(super) fn unguessable() -> Self {
        Self("\n".into())
    }

    /// The token as it is sent: 64 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the token, in a time that does not depend on where they differ.
    pub fn matches(&self, presented: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let difference = own
            .iter()
            .zip(presented)
            .fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
        own.len() == presented.len() && difference == 0
    }
}

impl std::fmt::Debug for Token {
    /// Never shows the token: it would end up in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Writes a new token under another name and renames it, so that no one ever reads half of one.
fn create(path: &Path) -> Result<(), TokenError> {
    let random = hex(&random_bytes::<TOKEN_BYTES>()?);
    let suffix = hex(&random_bytes::<8>()?);
    let temporary = path.with_file_name(format!("{FILE_NAME}.{suffix}"));
    let result = write_new(&temporary, &random).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // The error that is told is the first one; a file left behind holds a token no one uses.
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(|source| TokenError::Io {
        path: path.to_owned(),
        source,
    })
}

fn write_new(path: &Path, token: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    // The umask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    writeln!(file, "{token}")?;
    file.sync_all()
}

fn random_bytes<const N: usize>() -> Result<[u8; N], TokenError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| TokenError::Random(error.to_string()))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let first = Token::load_or_create(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE_NAME)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(first.as_str().len(), 64);
        assert_eq!(Token::load_or_create(dir.path()).unwrap(), first);
        assert_eq!(Token::load(dir.path()).unwrap(), first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_directories_have_different_tokens() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_ne!(
            Token::load_or_create(a.path()).unwrap(),
            Token::load_or_create(b.path()).unwrap()
        );
    }

    #[test]
    fn a_token_that_others_may_read_is_refused_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        Token::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Token::load_or_create(dir.path()).unwrap_err().to_string();
        assert!(error.contains("mode is 0640, expected 0600"), "{error}");
        assert!(error.contains("admin.token"), "{error}");
    }

    #[test]
    fn a_file_without_a_token_is_refused_and_not_replaced() {
        for content in ["", "secret", &"g".repeat(64), &"a".repeat(65)] {
            let dir = tempfile::tempdir().unwrap();
            write_new(&dir.path().join(FILE_NAME), content).unwrap();
            let error = Token::load_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains("expected 64 hex digits"), "{error}");
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Token::load_or_create(&dir.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none/admin.token"), "{error}");
    }

    #[test]
    fn a_given_token_is_long_enough_and_one_word() {
        let good = "0123456789abcdef0123456789ABCDEF";
        assert!(Token::given(good).unwrap().matches(good.as_bytes()));
        for bad in [
            "",
            "short",
            &good.replace('0', " "),
            &good.replace('0', "é"),
            &good[1..],
        ] {
            let error = Token::given(bad).unwrap_err();
            assert!(error.contains("32 or more") && (bad.is_empty() || !error.contains(bad)));
        }
    }

    #[test]
    fn only_the_whole_token_matches() {
        let token = Token("0123".into());
        assert!(token.matches(b"0123"));
        for other in [&b""[..], b"012", b"0124", b"01234", b"1123"] {
            assert!(!token.matches(other), "{other:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
