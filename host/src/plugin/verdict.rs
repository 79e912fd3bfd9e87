//! What a session may answer, checked before anyone acts on it.

use super::PluginLimits;
use super::decision::quote;
use super::imports::wit_streams as wit;

/// Longest reason of a close frame.
pub const CLOSE_REASON_BYTES_MAX: usize = 123;

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the endpoint.
    Up,
    /// From the endpoint to the client.
    Down,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8, checked.
    Text,
    /// Any bytes.
    Binary,
}

/// What becomes of a message; what is sent in its place is of the same kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it came.
    Pass,
    /// This goes on in its place.
    Replace(Vec<u8>),
    /// Nothing goes on.
    Drop,
    /// Nothing goes on, and its sender gets this.
    SendBack(Vec<u8>),
    /// The stream is closed.
    Close(Close),
}

/// What a tick leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Impulse {
    /// Nothing.
    Nothing,
    /// A message.
    Send(Direction, Kind, Vec<u8>),
    /// The stream is closed.
    Close(Close),
}

/// What a close frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// Its code.
    pub code: u16,
    /// Its reason, at most [`CLOSE_REASON_BYTES_MAX`] long.
    pub reason: String,
}

/// Whether a close frame may hold this code (RFC 6455, 7.4).
pub fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

impl From<Direction> for wit::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Up => Self::Up,
            Direction::Down => Self::Down,
        }
    }
}

impl From<Kind> for wit::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text,
            Kind::Binary => Self::Binary,
        }
    }
}

impl From<wit::Kind> for Kind {
    fn from(kind: wit::Kind) -> Self {
        match kind {
            wit::Kind::Text => Self::Text,
            wit::Kind::Binary => Self::Binary,
        }
    }
}

/// Checks a verdict on a message of this kind.
///
/// # Errors
/// The first thing that cannot be acted on.
pub(super) fn check(
    raw: wit::Verdict,
    kind: Kind,
    limits: &PluginLimits,
) -> Result<Verdict, String> {
    Ok(match raw {
        wit::Verdict::Pass => Verdict::Pass,
        wit::Verdict::Replace(bytes) => Verdict::Replace(check_message(kind, bytes, limits)?),
        wit::Verdict::Drop => Verdict::Drop,
        wit::Verdict::SendBack(bytes) => Verdict::SendBack(check_message(kind, bytes, limits)?),
        wit::Verdict::Close((code, reason)) => Verdict::Close(check_close(code, reason)?),
    })
}

/// Checks what a tick led to.
///
/// # Errors
/// The first thing that cannot be acted on.
pub(super) fn check_impulse(raw: wit::Impulse, limits: &PluginLimits) -> Result<Impulse, String> {
    let (direction, (kind, bytes)) = match raw {
        wit::Impulse::Nothing => return Ok(Impulse::Nothing),
        wit::Impulse::Close((code, reason)) => {
            return Ok(Impulse::Close(check_close(code, reason)?));
        }
        wit::Impulse::SendUp(message) => (Direction::Up, message),
        wit::Impulse::SendDown(message) => (Direction::Down, message),
    };
    let kind = kind.into();
    Ok(Impulse::Send(
        direction,
        kind,
        check_message(kind, bytes, limits)?,
    ))
}

fn check_message(kind: Kind, bytes: Vec<u8>, limits: &PluginLimits) -> Result<Vec<u8>, String> {
    let (size, size_max) = (bytes.len(), limits.returned_bytes_max);
    if size > size_max {
        return Err(format!(
            "message of {size} bytes, at most {size_max} are allowed"
        ));
    }
    match kind {
        Kind::Text => String::from_utf8(bytes)
            .map(String::into_bytes)
            .map_err(|error| format!("text message: {}", error.utf8_error())),
        Kind::Binary => Ok(bytes),
    }
}

fn check_close(code: u16, reason: String) -> Result<Close, String> {
    if !is_close_code(code) {
        return Err(format!(
            "close code {code}, expected 1000 to 1003, 1007 to 1014 or 3000 to 4999"
        ));
    }
    if reason.len() > CLOSE_REASON_BYTES_MAX {
        return Err(format!(
            "close reason {} of {} bytes, at most {CLOSE_REASON_BYTES_MAX} are allowed",
            quote(&reason),
            reason.len()
        ));
    }
    Ok(Close { code, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(raw: wit::Verdict) -> Result<Verdict, String> {
        let limits = PluginLimits {
            returned_bytes_max: 4,
            ..PluginLimits::default()
        };
        check(raw, Kind::Text, &limits)
    }

    #[test]
    fn what_can_be_acted_on_is_taken() {
        let text = || b"abcd".to_vec();
        assert_eq!(
            verdict(wit::Verdict::Replace(text())),
            Ok(Verdict::Replace(text()))
        );
        let close = Close {
            code: 4000,
            reason: "r".repeat(123),
        };
        let raw = wit::Verdict::Close((4000, "r".repeat(123)));
        assert_eq!(verdict(raw), Ok(Verdict::Close(close)));
        let raw = wit::Impulse::SendDown((wit::Kind::Binary, vec![0xff]));
        let sent = Impulse::Send(Direction::Down, Kind::Binary, vec![0xff]);
        assert_eq!(check_impulse(raw, &PluginLimits::default()), Ok(sent));
    }

    #[test]
    fn each_mistake_is_named() {
        let cases = [
            (
                wit::Verdict::Replace(vec![b'x'; 5]),
                "message of 5 bytes, at most 4",
            ),
            (wit::Verdict::SendBack(vec![0xff]), "text message: invalid"),
            (
                wit::Verdict::Close((1005, String::new())),
                "close code 1005",
            ),
            (
                wit::Verdict::Close((1000, "é".repeat(62))),
                "of 124 bytes, at most 123",
            ),
        ];
        for (raw, expected) in cases {
            let error = verdict(raw).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
