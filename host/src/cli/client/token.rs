//! The admin API's token: where it is looked for, and what is told if it is not there.

use super::DATA_DEFAULT;
use http::HeaderValue;
use std::path::{Path, PathBuf};

/// The token's file in a data directory.
const TOKEN_FILE: &str = "admin.token";

/// A token, and where it was looked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Token {
    /// As the value of `Authorization`, if there is one.
    pub(super) value: Option<HeaderValue>,
    /// Where it was looked for, or found.
    pub(super) places: Vec<String>,
}

/// Finds the token: the file named, that of the data directory named, or that of a data directory here.
///
/// # Errors
/// If the file that was named cannot be read, or what is found is no token.
pub(super) fn find_token(file: Option<&Path>, data: Option<&Path>) -> anyhow::Result<Token> {
    let candidates: Vec<PathBuf> = match (file, data) {
        (Some(file), _) => vec![file.to_owned()],
        (None, Some(data)) => vec![data.join(TOKEN_FILE)],
        (None, None) => [DATA_DEFAULT, "data"]
            .iter()
            .map(|dir| Path::new(".").join(dir).join(TOKEN_FILE))
            .collect(),
    };
    let mut token = Token::default();
    for path in candidates {
        let place = path.display().to_string();
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                token.value = Some(header_of(text.trim(), &place)?);
                token.places = vec![place];
                return Ok(token);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
                token.places.push(format!("{place} (not there)"));
            }
            // A proxy may need none, so a file we may not read ends the command only if it was asked for.
            Err(error) if file.is_none() => token.places.push(format!("{place} ({error})")),
            Err(error) => return Err(anyhow::anyhow!("token file {place}: {error}")),
        }
    }
    Ok(token)
}

/// The value of `Authorization` for a token read from a place.
///
/// # Errors
/// If it is no token; names the place.
pub(super) fn header_of(token: &str, place: &str) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .ok()
        .filter(|_| !token.is_empty())
        .ok_or_else(|| anyhow::anyhow!("{place}: is not a token: expected one line of text"))?;
    value.set_sensitive(true);
    Ok(value)
}
