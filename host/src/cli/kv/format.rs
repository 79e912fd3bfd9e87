//! What a file to import is: lines `KEY VALUE`, lines of JSON, or one JSON object.

use crate::config::diagnostic::shorten;
use ahash::AHashMap;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};
use std::fmt;

/// What a file to import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Lines `KEY VALUE`.
    Text,
    /// Lines of JSON.
    Ndjson,
    /// One JSON object of keys, which is made into such lines.
    Object,
}

/// Media type of lines of JSON.
pub(super) const NDJSON: &str = "application/x-ndjson";

/// Whether the beginning of a file shows what it is.
pub(super) fn is_shown(head: &[u8]) -> bool {
    match head.trim_ascii_start() {
        [] => false,
        [b'{', rest @ ..] => rest.contains(&b'\n'),
        _ => true,
    }
}

/// What a file to import is, found from its beginning.
///
/// # Errors
/// If it begins as JSON and is none of the forms.
pub(super) fn kind_of(head: &[u8]) -> Result<Kind, String> {
    let head = head.trim_ascii_start();
    match head.first() {
        Some(b'{') => {}
        Some(b'[') => {
            return Err(
                "is a JSON array: expected lines `KEY VALUE`, lines of JSON \
                {\"key\":…,\"value\":…}, or one JSON object {\"KEY\":\"VALUE\"}"
                    .to_owned(),
            );
        }
        _ => return Ok(Kind::Text),
    }
    let first_line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let is_entry = serde_json::from_slice::<Value>(first_line)
        .is_ok_and(|value| value.get("key").is_some() && value.get("value").is_some());
    Ok(if is_entry { Kind::Ndjson } else { Kind::Object })
}

/// One JSON object of keys as lines of JSON.
///
/// # Errors
/// If it is none.
pub(super) fn lines_of(object: &[u8]) -> Result<Vec<u8>, String> {
    let Entries(entries) = serde_json::from_slice(object).map_err(|e| {
        format!("is neither lines of JSON {{\"key\":…,\"value\":…}} nor one JSON object: {e}")
    })?;
    let mut lines = Vec::with_capacity(object.len() + entries.len() * 16);
    let mut seen = AHashMap::with_capacity(entries.len());
    for ((key, value), number) in entries.iter().zip(1..) {
        if let Some(first) = seen.insert(key, number) {
            let key = shorten(key);
            return Err(format!(
                "key {key:?} is in the object twice, as entries {first} and {number}: expected once"
            ));
        }
        if !is_value(value) {
            return Err(format!(
                "key {key:?}: expected a text, a typed record or {{\"base64\": \"…\"}}, found {value}"
            ));
        }
        let line = json!({ "key": key, "value": value });
        lines.extend_from_slice(line.to_string().as_bytes());
        lines.push(b'\n');
    }
    Ok(lines)
}

/// The entries of an object as they stand there: a map would keep the last of those with the same key.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// Whether rows of CSV to import have one below the names of the columns.
pub(super) fn has_row(table: &[u8]) -> bool {
    table.trim_ascii().contains(&b'\n')
}

/// Whether lines to import have one with a key: neither empty nor a comment.
pub(super) fn has_entry(lines: &[u8]) -> bool {
    lines
        .split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .any(|line| !line.is_empty() && line[0] != b'#')
}

/// Whether JSON stands for a value: text, or an object when it is a typed record or not UTF-8.
fn is_value(value: &Value) -> bool {
    let is_bytes = || value.get("base64").is_some_and(Value::is_string);
    value.is_string() || value.get("addresses").is_some() || is_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The media type and the lines of a whole file.
    fn body_of(text: Vec<u8>) -> Result<(&'static str, Vec<u8>), String> {
        match kind_of(&text)? {
            Kind::Text => Ok(("text/plain", text)),
            Kind::Ndjson => Ok((NDJSON, text)),
            Kind::Object => Ok((NDJSON, lines_of(&text)?)),
        }
    }

    #[test]
    fn the_beginning_of_a_file_shows_what_it_is_or_more_is_needed() {
        for more in ["", " \n", "{\"key\": 1", " {"] {
            assert!(!is_shown(more.as_bytes()), "{more:?}");
        }
        for enough in ["a", " \n[", "{\n", "{\"key\":\"a\",\"value\":\"b\"}\n"] {
            assert!(is_shown(enough.as_bytes()), "{enough:?}");
        }
    }

    #[test]
    fn the_format_of_an_import_is_found_from_its_beginning() {
        let kind = |text: &str| body_of(text.into()).map(|(kind, _)| kind);
        assert_eq!(kind("# map\nid1 127.0.0.2\n"), Ok("text/plain"));
        assert_eq!(kind(""), Ok("text/plain"));
        assert_eq!(
            kind("{\"key\":\"a\",\"value\":\"b\"}\n{\"key\":\"c\",\"value\":\"d\"}\n"),
            Ok("application/x-ndjson")
        );
        assert!(kind("[1]").is_err_and(|e| e.contains("array")));
        assert!(kind("{\"a\": 1}").is_err_and(|e| e.contains("\"a\"")));
        assert!(kind("{\"a\": {\"base64\": \"/wA=\"}}").is_ok());
        assert!(kind("{oops").is_err());
        let twice = "{\"a\": \"1\", \"b\": \"2\", \"a\": \"3\"}";
        assert!(kind(twice).is_err_and(|e| e.contains("\"a\"") && e.contains("entries 1 and 3")));
    }

    #[test]
    fn a_file_of_comments_or_an_empty_object_has_no_entry() {
        for text in ["", "\n \r\n", "# a b\n  # c d\n", "{}"] {
            let (_, body) = body_of(text.into()).expect("a form");
            assert!(!has_entry(&body), "{text:?}");
        }
        for text in ["# x\na b", "{\"a\": \"b\"}"] {
            let (_, body) = body_of(text.into()).expect("a form");
            assert!(has_entry(&body), "{text:?}");
        }
    }

    #[test]
    fn one_object_of_keys_is_sent_as_lines() {
        let text = "\n{\n  \"id1\": \"127.0.0.2\",\n  \"id2\": \"h:9\"\n}";
        let (kind, body) = body_of(text.into()).expect("a map");
        assert_eq!(kind, "application/x-ndjson");
        let lines: Vec<Value> = body
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], json!({"key": "id1", "value": "127.0.0.2"}));
    }

    #[test]
    fn a_map_whose_first_key_is_named_key_is_still_a_map() {
        let (_, body) = body_of(b"{\"key\": \"10.0.0.1\"}".to_vec()).expect("a map");
        let line: Value = serde_json::from_slice(&body).expect("one line");
        assert_eq!(line, json!({"key": "key", "value": "10.0.0.1"}));
    }
}
