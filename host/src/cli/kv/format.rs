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

/// Whether the beginning of a file shows what it is: it has the whole line of the first entry.
pub(super) fn is_shown(head: &[u8]) -> bool {
    first_line(head).is_some_and(|(_, is_whole)| is_whole)
}

/// The first line that is neither empty nor a comment, and whether it has its end.
fn first_line(head: &[u8]) -> Option<(&[u8], bool)> {
    head.split_inclusive(|b| *b == b'\n').find_map(|line| {
        let text = line.trim_ascii();
        let is_entry = !text.is_empty() && text[0] != b'#';
        is_entry.then(|| (text, line.ends_with(b"\n")))
    })
}

/// What a file to import is, found from its beginning.
///
/// # Errors
/// If that would write keys that nobody meant: what is missing, or which format to name.
pub(super) fn kind_of(head: &[u8]) -> Result<Kind, String> {
    let Some((line, _)) = first_line(head) else {
        return Ok(Kind::Text);
    };
    match line[0] {
        b'{' => {}
        b'[' => {
            return Err(format!(
                "begins as a JSON array does: expected lines `KEY VALUE`, lines of JSON {{\"key\":…,\"value\":…}}, or one JSON object \
                 {{\"KEY\":\"VALUE\"}}; {LINES}"
            ));
        }
        _ if is_table(line) => {
            return Err(format!(
                "its first line {:?} is that of a table: give --format csv, whose first line names the columns key and \
                 value, or --format lines if it is a key and a value",
                shorten(&String::from_utf8_lossy(line))
            ));
        }
        _ => return Ok(Kind::Text),
    }
    let entry: Value = serde_json::from_slice(line).unwrap_or_default();
    match (entry.get("key"), entry.get("value")) {
        (Some(_), Some(_)) => Ok(Kind::Ndjson),
        // One JSON object of such keys is rarer than a line of JSON with a mistake in it.
        (Some(_), None) => Err(
            "its first line has `key` and no `value`: expected lines of JSON {\"key\":…,\"value\":…}; give --format \
             json if it is one JSON object, and `key` one of its keys"
                .to_owned(),
        ),
        (None, _) => Ok(Kind::Object),
    }
}

/// Whether a line is that of a table in CSV: the names of its columns, or cells without a blank to end a key.
fn is_table(line: &[u8]) -> bool {
    let cells = line.split(|b| *b == b',').map(|cell| {
        let cell = cell.trim_ascii();
        let unquoted = cell
            .strip_prefix(b"\"")
            .and_then(|it| it.strip_suffix(b"\""));
        unquoted.unwrap_or(cell)
    });
    let named = |wanted: &[u8]| cells.clone().any(|cell| cell.eq_ignore_ascii_case(wanted));
    let is_header = named(b"key") && named(b"value");
    is_header || (line.contains(&b',') && !line.iter().any(|b| matches!(b, b' ' | b'\t')))
}

/// What to do about a key that looks like the beginning of JSON.
const LINES: &str = "give --format lines if it is lines whose first key begins so";

/// One JSON object of keys as lines of JSON.
///
/// # Errors
/// If it is none; of one that nobody said to be one, what else it might be.
pub(super) fn lines_of(object: &[u8], is_told: bool) -> Result<Vec<u8>, String> {
    let Entries(entries) = serde_json::from_slice(object).map_err(|e| match is_told {
        true => format!("is not one JSON object {{\"KEY\":\"VALUE\"}}: {e}"),
        false => format!(
            "is neither lines of JSON {{\"key\":…,\"value\":…}} nor one JSON object: {e}; {LINES}"
        ),
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
            Kind::Object => Ok((NDJSON, lines_of(&text, false)?)),
        }
    }

    #[test]
    fn the_beginning_of_a_file_shows_what_it_is_or_more_is_needed() {
        for more in [
            "",
            " \n",
            "{\"key\": 1",
            " {",
            "a",
            "key,",
            "# a\n",
            "# a\nb",
        ] {
            assert!(!is_shown(more.as_bytes()), "{more:?}");
        }
        for enough in [
            "a\n",
            " \n[\n",
            "# a\nb\n",
            "{\n",
            "{\"key\":\"a\",\"value\":\"b\"}\n",
        ] {
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
    fn what_would_write_keys_that_nobody_meant_is_refused_with_the_format_to_name() {
        let refused = |text: &str| kind_of(text.as_bytes()).expect_err(text);
        for text in ["{\"key\":\"n1\"}", "# a\n{\"key\":\"n1\",\"val\":\"x\"}\n"] {
            let why = refused(text);
            assert!(
                why.contains("no `value`") && why.contains("--format json"),
                "{why}"
            );
        }
        for text in [
            "key, value\nid1, a\n",
            "\"Value\",x,\"Key\"\n",
            "id1,127.0.0.1\n",
        ] {
            let why = refused(text);
            assert!(why.contains("give --format csv"), "{text}: {why}");
        }
        for text in ["id1 a,b\n", "key value\n", "keys, values\n"] {
            assert_eq!(kind_of(text.as_bytes()), Ok(Kind::Text), "{text}");
        }
        assert!(refused("[a] b\n").contains("--format lines"));
        let no_object = lines_of(b"{a} b", false).expect_err("no object");
        assert!(no_object.contains("--format lines"), "{no_object}");
        assert_eq!(
            kind_of(b"# a\n{\"key\":\"a\",\"value\":\"b\"}"),
            Ok(Kind::Ndjson)
        );
    }

    #[test]
    fn a_map_that_is_said_to_be_one_may_have_a_key_named_key() {
        let lines = lines_of(b"{\"key\": \"10.0.0.1\"}", true).expect("a map");
        let line: Value = serde_json::from_slice(&lines).expect("one line");
        assert_eq!(line, json!({"key": "key", "value": "10.0.0.1"}));
        assert!(lines_of(b"{oops", true).is_err_and(|why| !why.contains("lines")));
    }
}
