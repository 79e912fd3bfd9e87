//! The body of `batch` into writes.

use crate::admin::input::{Ttl, nullable, parse_json};
use crate::admin::problem::Problem;
use crate::store::{Action, BucketId, Expect, Revision, Write, WriteBatch};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::time::Duration;

/// A batch as it is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct BatchBody {
    #[serde(default)]
    set: BTreeMap<String, Content>,
    /// How long those of `set` live.
    ttl: Option<Ttl>,
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
    /// Null deletes.
    #[serde(default, deserialize_with = "nullable")]
    value: Option<Option<Content>>,
    increment: Option<i64>,
    /// Alone it renews the entry; null lets it live until it is deleted.
    #[serde(default, deserialize_with = "nullable")]
    ttl: Option<Option<Ttl>>,
    /// 0: that there is none.
    if_revision: Option<u64>,
}

impl WriteBody {
    /// What becomes of the entry. One of the fields has to be there, for a mistake must not delete.
    fn action(self) -> Result<Action, &'static str> {
        let ttl = self.ttl.map(|ttl| ttl.map(Duration::from));
        match (self.value, self.increment, ttl) {
            (Some(Some(content)), None, ttl) => Ok(Action::Put {
                value: content.0,
                ttl: ttl.flatten(),
            }),
            (Some(None), None, None) => Ok(Action::Delete),
            (Some(None), None, Some(_)) => Err("a ttl makes no sense for a delete"),
            (None, Some(by), ttl) => Ok(Action::Increment {
                by,
                ttl: ttl.flatten(),
            }),
            (None, None, Some(ttl)) => Ok(Action::Touch { ttl }),
            (Some(_), Some(_), _) => Err("it has both value and increment, expected one of them"),
            (None, None, None) => Err("missing field `value`, expected value, increment or ttl"),
        }
    }
}

/// A value as it is sent: text, a typed record, or `{"base64": "…"}`.
#[derive(Debug, PartialEq)]
pub(in crate::admin) struct Content(pub(in crate::admin) Box<[u8]>);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a text, a typed record {\"addresses\": …} or an object {\"base64\": \"…\"}"
        )]
        enum Sent {
            Text(String),
            Bytes(Base64),
            Typed(Typed),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Base64 {
            base64: String,
        }
        /// Checked where values are.
        #[derive(Deserialize, serde::Serialize)]
        struct Typed {
            addresses: serde_json::Value,
            #[serde(flatten)]
            rest: serde_json::Map<String, serde_json::Value>,
        }
        match Sent::deserialize(deserializer)? {
            Sent::Text(text) => Ok(Self(text.into_bytes().into())),
            Sent::Bytes(Base64 { base64 }) => STANDARD
                .decode(&base64)
                .map(|bytes| Self(bytes.into()))
                .map_err(|error| serde::de::Error::custom(format!("base64: {error}"))),
            Sent::Typed(record) => serde_json::to_vec(&record)
                .map(|text| Self(text.into()))
                .map_err(serde::de::Error::custom),
        }
    }
}

/// Checks a write as a line of a batch has it; returns its key.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub(crate) fn check_write(write: &serde_json::Value) -> Result<String, String> {
    let mut write = WriteBody::deserialize(write).map_err(|error| error.to_string())?;
    let key = std::mem::take(&mut write.key);
    write.action()?;
    Ok(key)
}

/// Reads a batch.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub(super) fn parse_batch(body: &[u8], bucket: BucketId) -> Result<WriteBatch, Problem> {
    parse_json::<BatchBody>(body)?.into_batch(bucket)
}

impl BatchBody {
    /// The writes to a bucket.
    ///
    /// # Errors
    /// What makes no sense.
    pub(in crate::admin) fn into_batch(self, bucket: BucketId) -> Result<WriteBatch, Problem> {
        if let Some(key) = self.delete.iter().find(|key| self.set.contains_key(*key)) {
            return Err(Problem::invalid(
                "invalid-body",
                format!("key {key:?} is both in set and in delete"),
            ));
        }
        let ttl = self.ttl.map(Duration::from);
        let set = self.set.into_iter().map(|(key, content)| {
            let value = content.0;
            Ok(Write::new(bucket, key, Action::Put { value, ttl }))
        });
        let delete = self.delete.into_iter();
        let delete = delete.map(|key| Ok(Write::delete(bucket, key)));
        let listed = self.writes.into_iter().map(|mut sent| {
            let expect = match sent.if_revision {
                None => Expect::Any,
                Some(0) => Expect::Absent,
                Some(revision) => Expect::At(Revision(revision)),
            };
            let key = std::mem::take(&mut sent.key);
            let action = sent.action().map_err(|reason| {
                Problem::invalid("invalid-body", format!("key {key:?}: {reason}"))
            })?;
            Ok(Write::new(bucket, key, action).expecting(expect))
        });
        let writes = set.chain(delete).chain(listed);
        let writes = writes.collect::<Result<_, Problem>>()?;
        let replace = if self.replace {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: BucketId = BucketId(3);

    fn write(key: &str, value: Option<&[u8]>, expect: Expect) -> Write {
        let write = match value {
            Some(value) => Write::put(BUCKET, key, value),
            None => Write::delete(BUCKET, key),
        };
        write.expecting(expect)
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
    fn writes_of_a_batch_count_end_and_renew() {
        let body = br#"{"set": {"a": "1"}, "ttl": "30s",
            "writes": [{"key": "b", "value": "2", "ttl": "1m"}, {"key": "c", "increment": -3},
                       {"key": "d", "increment": 1, "ttl": "1h"}, {"key": "e", "ttl": "5s"}, {"key": "f", "ttl": null}]}"#;
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let put = |value: &str, ttl| Action::Put {
            value: value.as_bytes().into(),
            ttl,
        };
        let expected = [
            ("a", put("1", seconds(30))),
            ("b", put("2", seconds(60))),
            ("c", Action::Increment { by: -3, ttl: None }),
            (
                "d",
                Action::Increment {
                    by: 1,
                    ttl: seconds(3600),
                },
            ),
            ("e", Action::Touch { ttl: seconds(5) }),
            ("f", Action::Touch { ttl: None }),
        ];
        let expected = expected.map(|(key, action)| Write::new(BUCKET, key, action));
        assert_eq!(parse_batch(body, BUCKET).unwrap().writes, expected);
    }

    #[test]
    fn a_batch_that_is_not_one_says_what_was_expected() {
        let detail = |body: &str| parse_batch(body.as_bytes(), BUCKET).unwrap_err().detail;
        assert!(detail(r#"{"sets": {}}"#).contains("unknown field `sets`, expected one of `set`"));
        assert!(detail(r#"{"set": {"a": 1}}"#).contains("expected a text, a typed record"));
        let typed = r#"{"set": {"a": {"addresses": ["b"], "policy": "hash"}}}"#;
        let record = br#"{"addresses":["b"],"policy":"hash"}"#;
        let expected = [write("a", Some(&record[..]), Expect::Any)];
        assert_eq!(
            parse_batch(typed.as_bytes(), BUCKET).unwrap().writes,
            expected
        );
        assert!(detail(r#"{"set": {"a": {"base64": "?"}}}"#).contains("base64: "));
        assert!(detail(r#"{"writes": [{"key": "a"}]}"#).contains("missing field `value`"));
        let both = r#"{"writes": [{"key": "a", "value": "", "increment": 1}]}"#;
        assert!(detail(both).contains("key \"a\": it has both"));
        assert!(detail(r#"{"set": {}, "ttl": "5"}"#).contains("it has no unit"));
        let deleted = r#"{"writes": [{"key": "a", "value": null, "ttl": "5s"}]}"#;
        assert!(detail(deleted).contains("no sense for a delete"));
        assert!(detail(r#"{"set": {"a": ""}, "delete": ["a"]}"#).contains("key \"a\" is both"));
    }
}
