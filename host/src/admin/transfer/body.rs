//! Bodies of `batch` and `import` into writes: JSON, and lines of JSON or of text.

use crate::admin::input::{Ttl, media_type, nullable, parse_json};
use crate::admin::problem::Problem;
use crate::store::batch::check_key;
use crate::store::{Action, BucketId, Expect, Revision, Value, ValueKind, Write, WriteBatch};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// Bad lines of an import that are told one by one.
const ERRORS_MAX: usize = 100;

/// A batch as it is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
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

/// A value as it is sent: text, or `{"base64": "…"}`.
#[derive(Debug, PartialEq)]
struct Content(Box<[u8]>);

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
    let ttl = body.ttl.map(Duration::from);
    let set = body.set.into_iter().map(|(key, content)| {
        let value = content.0;
        Ok(Write::new(bucket, key, Action::Put { value, ttl }))
    });
    let delete = body.delete.into_iter();
    let delete = delete.map(|key| Ok(Write::delete(bucket, key)));
    let listed = body.writes.into_iter().map(|mut sent| {
        let expect = match sent.if_revision {
            None => Expect::Any,
            Some(0) => Expect::Absent,
            Some(revision) => Expect::At(Revision(revision)),
        };
        let key = std::mem::take(&mut sent.key);
        let action = sent.action().map_err(|reason| {
            Problem::invalid("invalid-body", format!("body: key {key:?}: {reason}"))
        })?;
        Ok(Write::new(bucket, key, action).expecting(expect))
    });
    let writes = set.chain(delete).chain(listed);
    let writes = writes.collect::<Result<_, Problem>>()?;
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

/// How the lines of an import are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `{"key": …, "value": …}`
    Json,
    /// `key value`
    Text,
}

impl Format {
    /// The format that `content-type` names.
    ///
    /// # Errors
    /// 415 if it names none of them.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let media_type = media_type(headers);
        match media_type.as_deref() {
            Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => {
                Ok(Self::Json)
            }
            Some("text/plain") => Ok(Self::Text),
            other => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content-type",
                format!(
                    "content-type {:?}: expected application/x-ndjson or text/plain",
                    other.unwrap_or_default()
                ),
            )),
        }
    }
}

/// Reads an import; empty lines and lines that begin with `#` are skipped. All bad lines are told at once.
///
/// # Errors
/// The bad lines, with their numbers.
pub(super) fn parse_import(
    body: &[u8],
    format: Format,
    bucket: BucketId,
    kind: ValueKind,
) -> Result<WriteBatch, Problem> {
    let mut writes = Vec::new();
    let (mut errors, mut bad) = (Vec::new(), 0_u64);
    for (number, line) in (1_u64..).zip(body.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        match parse_line(line, format).and_then(|entry| check_entry(kind, entry)) {
            Ok((key, value)) => {
                writes.push(Write::put(bucket, key, value));
            }
            Err(message) => {
                bad += 1;
                if errors.len() < ERRORS_MAX {
                    errors.push(json!({ "line": number, "message": message }));
                }
            }
        }
    }
    if bad > 0 {
        let detail = format!("{bad} bad line(s), nothing was imported");
        return Err(Problem::invalid("invalid-import", detail).with_errors(errors));
    }
    Ok(WriteBatch {
        writes,
        ..WriteBatch::default()
    })
}

/// The store checks each entry again; here it is known at which line it is.
fn check_entry(
    kind: ValueKind,
    (key, value): (String, Box<[u8]>),
) -> Result<(String, Box<[u8]>), String> {
    check_key(&key)?;
    match Value::parse(kind, &value) {
        Ok(_) => Ok((key, value)),
        Err(error) => Err(format!("key {key:?}: {error}")),
    }
}

fn parse_line(line: &[u8], format: Format) -> Result<(String, Box<[u8]>), String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        key: String,
        value: Content,
        /// Exports have it; it is not imported.
        #[serde(rename = "revision")]
        _revision: Option<u64>,
    }
    match format {
        Format::Json => serde_json::from_slice(line)
            .map(|line: Line| (line.key, line.value.0))
            .map_err(|error| error.to_string()),
        Format::Text => {
            let line = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
            let (key, value) = line
                .split_once([' ', '\t'])
                .ok_or_else(|| format!("{line:?}: expected a key, a space and a value"))?;
            Ok((key.to_owned(), value.trim_start().as_bytes().into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, header};

    const BUCKET: BucketId = BucketId(3);

    fn write(key: &str, value: Option<&[u8]>, expect: Expect) -> Write {
        let write = match value {
            Some(value) => Write::put(BUCKET, key, value),
            None => Write::delete(BUCKET, key),
        };
        write.expecting(expect)
    }

    fn import(body: &[u8], format: Format) -> Result<Vec<Write>, Problem> {
        parse_import(body, format, BUCKET, ValueKind::Bytes).map(|batch| batch.writes)
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
        assert!(detail(r#"{"set": {"a": 1}}"#).contains("expected a text or an object"));
        assert!(detail(r#"{"set": {"a": {"base64": "?"}}}"#).contains("base64: "));
        assert!(detail(r#"{"writes": [{"key": "a"}]}"#).contains("missing field `value`"));
        let both = r#"{"writes": [{"key": "a", "value": "", "increment": 1}]}"#;
        assert!(detail(both).contains("key \"a\": it has both"));
        assert!(detail(r#"{"set": {}, "ttl": "5"}"#).contains("it has no unit"));
        let deleted = r#"{"writes": [{"key": "a", "value": null, "ttl": "5s"}]}"#;
        assert!(detail(deleted).contains("no sense for a delete"));
        assert!(detail(r#"{"set": {"a": ""}, "delete": ["a"]}"#).contains("key \"a\" is both"));
    }

    #[test]
    fn imports_are_read_as_lines_of_text_or_json() {
        let text = b"# the map\nid1 127.0.0.2\r\n\nid2\t  127.0.0.3";
        let json = b"{\"key\":\"id1\",\"value\":\"127.0.0.2\",\"revision\":4}\n{\"key\":\"id2\",\"value\":\"127.0.0.3\"}\n";
        let expected = [
            write("id1", Some(b"127.0.0.2"), Expect::Any),
            write("id2", Some(b"127.0.0.3"), Expect::Any),
        ];
        assert_eq!(import(text, Format::Text).unwrap(), expected);
        assert_eq!(import(json, Format::Json).unwrap(), expected);
    }

    #[test]
    fn every_bad_line_is_told_with_its_number() {
        let problem = import(b"id1 a\nid2\n\n\xff b\nid3 c", Format::Text).unwrap_err();
        assert_eq!(problem.status, 422);
        assert_eq!(problem.detail, "2 bad line(s), nothing was imported");
        assert_eq!(problem.errors[0]["line"], 2);
        assert_eq!(
            problem.errors[1],
            json!({ "line": 4, "message": "not UTF-8" })
        );
    }

    #[test]
    fn at_most_a_hundred_bad_lines_are_told_one_by_one() {
        let problem = import("x\n".repeat(250).as_bytes(), Format::Json).unwrap_err();
        assert_eq!(problem.errors.len(), ERRORS_MAX);
        assert!(problem.detail.starts_with("250 "));
    }

    #[test]
    fn the_format_of_an_import_is_its_media_type() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            Format::of(&headers).map_err(|problem| problem.status.as_u16())
        };
        assert_eq!(of("text/plain; charset=utf-8"), Ok(Format::Text));
        assert_eq!(of("Application/X-NDJSON"), Ok(Format::Json));
        assert_eq!(of("application/x-www-form-urlencoded"), Err(415));
    }
}
