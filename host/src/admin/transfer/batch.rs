//! The body of `batch` into writes.

use crate::admin::input::parse_json;
use crate::admin::problem::Problem;
use crate::store::{BucketId, Expect, Revision, Write, WriteBatch};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// A batch as it is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    #[serde(default)]
    set: BTreeMap<String, Content>,
    #[serde(default)]
    delete: Vec<String>,
    #[serde(default)]
    writes: Vec<WriteBody>,
    #[serde(default)]
    replace: bool,
}

/// One write of a batch as it is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteBody {
    key: String,
    /// Null deletes; leaving it out is an error, for a mistake must not delete.
    #[serde(deserialize_with = "Option::deserialize")]
    value: Option<Content>,
    /// 0: that there is none.
    if_revision: Option<u64>,
}

/// A value as it is sent: text, or `{"base64": "…"}`.
#[derive(Debug, PartialEq)]
pub(super) struct Content(pub(super) Box<[u8]>);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a text or an object {\"base64\": \"…\"}"
        )]
        enum Sent {
            Text(String),
            Bytes(Base64),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Base64 {
            base64: String,
        }
        match Sent::deserialize(deserializer)? {
            Sent::Text(text) => Ok(Self(text.into_bytes().into())),
            Sent::Bytes(Base64 { base64 }) => STANDARD
                .decode(&base64)
                .map(|bytes| Self(bytes.into()))
                .map_err(|error| serde::de::Error::custom(format!("base64: {error}"))),
        }
    }
}

/// Reads a batch.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub(super) fn parse_batch(body: &[u8], bucket: BucketId) -> Result<WriteBatch, Problem> {
    let body: BatchBody = parse_json(body)?;
    if let Some(key) = body.delete.iter().find(|key| body.set.contains_key(*key)) {
        return Err(Problem::invalid(
            "invalid-body",
            format!("key {key:?} is both in set and in delete"),
        ));
    }
    let write = |key: String, value: Option<Content>, expect| Write {
        bucket,
        key: key.into(),
        value: value.map(|content| content.0),
        expect,
    };
    let set = body.set.into_iter();
    let delete = body.delete.into_iter();
    let listed = body.writes.into_iter().map(|sent| {
        let expect = match sent.if_revision {
            None => Expect::Any,
            Some(0) => Expect::Absent,
            Some(revision) => Expect::At(Revision(revision)),
        };
        write(sent.key, sent.value, expect)
    });
    let writes = set
        .map(|(key, value)| write(key, Some(value), Expect::Any))
        .chain(delete.map(|key| write(key, None, Expect::Any)))
        .chain(listed)
        .collect();
    let replace = if body.replace {
        vec![bucket]
    } else {
        Vec::new()
    };
    Ok(WriteBatch {
        writes,
        replace,
        ..WriteBatch::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: BucketId = BucketId(3);

    fn write(key: &str, value: Option<&[u8]>, expect: Expect) -> Write {
        Write {
            bucket: BUCKET,
            key: key.into(),
            value: value.map(Into::into),
            expect,
        }
    }

    #[test]
    fn both_forms_of_a_batch_become_writes_in_order() {
        let body =
            br#"{"set": {"a": "1", "b": {"base64": "/w=="}}, "delete": ["c"], "replace": true,
            "writes": [{"key": "d", "value": "2", "if_revision": 7},
                       {"key": "e", "value": null, "if_revision": 0}, {"key": "f", "value": ""}]}"#;
        let batch = parse_batch(body, BUCKET).unwrap();
        assert_eq!(batch.replace, [BUCKET]);
        assert_eq!(
            batch.writes,
            [
                write("a", Some(b"1"), Expect::Any),
                write("b", Some(b"\xff"), Expect::Any),
                write("c", None, Expect::Any),
                write("d", Some(b"2"), Expect::At(Revision(7))),
                write("e", None, Expect::Absent),
                write("f", Some(b""), Expect::Any),
            ]
        );
    }

    #[test]
    fn a_batch_that_is_not_one_says_what_was_expected() {
        let detail = |body: &str| parse_batch(body.as_bytes(), BUCKET).unwrap_err().detail;
        assert!(detail(r#"{"sets": {}}"#).contains("unknown field `sets`, expected one of `set`"));
        assert!(detail(r#"{"set": {"a": 1}}"#).contains("expected a text or an object"));
        assert!(detail(r#"{"set": {"a": {"base64": "?"}}}"#).contains("base64: "));
        assert!(detail(r#"{"writes": [{"key": "a"}]}"#).contains("missing field `value`"));
        assert!(detail(r#"{"set": {"a": ""}, "delete": ["a"]}"#).contains("key \"a\" is both"));
    }
}
