//! The field of a request by whose value a canary is drawn.

use crate::plugin::RequestHead;
use http::{HeaderName, header};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The field of a request whose value decides which version it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StickyField {
    /// The first value of a header field.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
    /// A parameter of the query, as it is written.
    Query(String),
    /// The client's address.
    ClientIp,
    /// The host and port that the request names.
    Authority,
    /// The path.
    Path,
    /// A segment of the path, the first being 1.
    Segment(u8),
}

impl StickyField {
    /// Its value; none if the request has none, or an empty one.
    pub(super) fn value<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        let value = match self {
            Self::Header(name) => head.headers.get(name)?.as_bytes(),
            Self::Cookie(name) => cookie(head, name.as_bytes())?,
            Self::Query(name) => parameter(head.uri.query()?, name)?.as_bytes(),
            Self::Authority => head.authority.as_str().as_bytes(),
            Self::Path => head.uri.path().as_bytes(),
            Self::Segment(number) => segment(head.uri.path(), *number)?.as_bytes(),
            Self::ClientIp => return None,
        };
        (!value.is_empty()).then_some(value)
    }
}

fn cookie<'a>(head: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    let lines = head.headers.get_all(header::COOKIE).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| {
            let rest = pair.trim_ascii().strip_prefix(name)?;
            rest.strip_prefix(b"=")
        })
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// A segment as it is written; of `/a/b` the second is `b`.
fn segment(path: &str, number: u8) -> Option<&str> {
    // An absolute path begins with nothing.
    path.split('/').nth(number.into())
}

/// How a [`StickyField`] is written.
const FIELD_EXPECTED: &str =
    "header:NAME, cookie:NAME, query:NAME, segment:NUMBER, client-ip, authority or path";
/// The last segment that may be named.
const SEGMENT_MAX: u8 = 100;
/// Longest name of a cookie or parameter.
const NAME_BYTES_MAX: usize = 256;

impl FromStr for StickyField {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("by {text:?}: expected {FIELD_EXPECTED}");
        let named = |name: &str| {
            let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_graphic())
                && !name.contains(['=', ';', '&']);
            is_name.then(|| name.to_owned()).ok_or_else(bad)
        };
        Ok(match text.split_once(':') {
            Some(("header", name)) => {
                match HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())? {
                    // In HTTP/2 it is no header field.
                    header::HOST => Self::Authority,
                    name => Self::Header(name),
                }
            }
            Some(("cookie", name)) => Self::Cookie(named(name)?),
            Some(("query", name)) => Self::Query(named(name)?),
            Some(("segment", number)) => match number.parse() {
                Ok(number @ 1..=SEGMENT_MAX) => Self::Segment(number),
                _ => {
                    return Err(format!(
                        "by {text:?}: expected the number of a segment of the path, 1 to {SEGMENT_MAX}"
                    ));
                }
            },
            None if text == "client-ip" => Self::ClientIp,
            None if text == "authority" => Self::Authority,
            None if text == "path" => Self::Path,
            _ => return Err(bad()),
        })
    }
}

impl fmt::Display for StickyField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::ClientIp => f.write_str("client-ip"),
            Self::Authority => f.write_str("authority"),
            Self::Path => f.write_str("path"),
            Self::Segment(number) => write!(f, "segment:{number}"),
        }
    }
}

impl TryFrom<String> for StickyField {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<StickyField> for String {
    fn from(field: StickyField) -> Self {
        field.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_are_written() {
        for text in [
            "header:x-id",
            "cookie:id",
            "query:id",
            "client-ip",
            "authority",
            "path",
            "segment:2",
        ] {
            let field: StickyField = text.parse().expect(text);
            assert_eq!(field.to_string(), text);
        }
        for bad in [
            "",
            "x-id",
            "header:",
            "header:a b",
            "cookie:",
            "query:a&b",
            "key",
            "path:a",
            "segment",
            "method",
        ] {
            let error = bad.parse::<StickyField>().expect_err(bad);
            assert!(error.contains("expected header:NAME"), "{error}");
        }
        for bad in [
            "segment:",
            "segment:0",
            "segment:101",
            "segment:-1",
            "segment:a",
        ] {
            let error = bad.parse::<StickyField>().expect_err(bad);
            assert!(error.ends_with("of the path, 1 to 100"), "{error}");
        }
        let host: StickyField = "header:Host".parse().expect("a field");
        assert_eq!(host, StickyField::Authority, "whatever the protocol");
    }
}
