//! Formats of imports and exports: lines `KEY VALUE`, lines of JSON, one JSON object.

use crate::cli::output::Out;
use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

/// Formats of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Lines `KEY VALUE`
    Lines,
    /// One JSON object {"KEY":"VALUE",…}
    Json,
    /// A line of JSON for each key, with its revision
    Ndjson,
}

/// What a file to import is, found from its first characters; an object of keys is made into lines of JSON.
///
/// # Errors
/// If it begins as JSON and is none of the forms.
pub(super) fn body_of(text: Vec<u8>) -> Result<(&'static str, Vec<u8>), String> {
    const NDJSON: &str = "application/x-ndjson";
    let start = text.iter().position(|b| !b.is_ascii_whitespace());
    match start.map(|at| text[at]) {
        Some(b'{') => {}
        Some(b'[') => {
            return Err(
                "is a JSON array: expected lines `KEY VALUE`, lines of JSON \
                {\"key\":…,\"value\":…}, or one JSON object {\"KEY\":\"VALUE\"}"
                    .to_owned(),
            );
        }
        _ => return Ok(("text/plain", text)),
    }
    let first_line = text[start.unwrap_or_default()..]
        .split(|b| *b == b'\n')
        .next()
        .unwrap_or_default();
    let is_entry = serde_json::from_slice::<Value>(first_line)
        .is_ok_and(|value| value.get("key").is_some() && value.get("value").is_some());
    if is_entry {
        return Ok((NDJSON, text));
    }
    let map: serde_json::Map<String, Value> = serde_json::from_slice(&text).map_err(|e| {
        format!("is neither lines of JSON {{\"key\":…,\"value\":…}} nor one JSON object: {e}")
    })?;
    let mut lines = Vec::with_capacity(text.len() + map.len() * 16);
    for (key, value) in &map {
        if !is_value(value) {
            return Err(format!(
                "key {key:?}: expected a text or {{\"base64\": \"…\"}}, found {value}"
            ));
        }
        let line = json!({ "key": key, "value": value });
        lines.extend_from_slice(line.to_string().as_bytes());
        lines.push(b'\n');
    }
    Ok((NDJSON, lines))
}

/// Whether lines to import have one with a key: neither empty nor a comment.
pub(super) fn has_entry(lines: &[u8]) -> bool {
    lines
        .split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .any(|line| !line.is_empty() && line[0] != b'#')
}

/// Turns the lines of an export into a format.
pub(super) struct Exporter {
    format: Format,
    /// Entries so far.
    pub(super) written: u64,
}

#[derive(Deserialize)]
struct ExportedEntry {
    key: String,
    value: Value,
}

impl Exporter {
    /// For one export.
    pub(super) fn new(format: Format) -> Self {
        Self { format, written: 0 }
    }

    /// Writes what comes first.
    pub(super) fn begin(&mut self, out: &mut Out) -> anyhow::Result<()> {
        match self.format {
            Format::Json => out.bytes(b"{"),
            Format::Lines | Format::Ndjson => Ok(()),
        }
    }

    /// Writes one line of the export.
    ///
    /// # Errors
    /// If the format cannot hold it.
    pub(super) fn entry(&mut self, line: &[u8], out: &mut Out) -> anyhow::Result<()> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        match self.format {
            Format::Ndjson => {
                out.bytes(line)?;
                out.bytes(b"\n")?;
            }
            Format::Lines => {
                let entry = exported(line)?;
                let Some(value) = entry.value.as_str() else {
                    anyhow::bail!(
                        "key {:?}: its value is no text: use --format json",
                        entry.key
                    );
                };
                out.line(line_of(&entry.key, value)?)?;
            }
            Format::Json => {
                let entry = exported(line)?;
                let comma = if self.written > 0 { "," } else { "" };
                let (key, value) = (Value::from(entry.key), entry.value);
                out.bytes(format!("{comma}\n  {key}: {value}").as_bytes())?;
            }
        }
        self.written += 1;
        Ok(())
    }

    /// Writes what comes last.
    pub(super) fn end(&mut self, out: &mut Out) -> anyhow::Result<()> {
        match self.format {
            Format::Json => out.bytes(b"\n}\n"),
            Format::Lines | Format::Ndjson => Ok(()),
        }
    }
}

fn exported(line: &[u8]) -> anyhow::Result<ExportedEntry> {
    serde_json::from_slice(line).context("a line of the export")
}

/// Whether JSON stands for a value: text, or an object when it is not UTF-8.
fn is_value(value: &Value) -> bool {
    value.is_string() || value.get("base64").is_some_and(Value::is_string)
}

/// A line that an import reads back as the same key and value.
fn line_of(key: &str, value: &str) -> anyhow::Result<String> {
    let fits = !key.contains(char::is_whitespace)
        && !key.starts_with('#')
        && !key.starts_with('{')
        && !key.starts_with('[')
        && !value.is_empty()
        && value == value.trim()
        && !value.contains(['\n', '\r']);
    anyhow::ensure!(
        fits,
        "key {key:?}: it or its value cannot be written as a line `KEY VALUE`: use --format json"
    );
    Ok(format!("{key} {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn an_export_gives_each_format() {
        let lines: [&[u8]; 2] = [
            br#"{"key":"a","value":"10.0.0.1","revision":3}"#,
            br#"{"key":"b","value":"h:1","revision":4}"#,
        ];
        let render = |format| {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let mut out = Out::to(file.reopen().expect("open"));
            let mut exporter = Exporter::new(format);
            exporter.begin(&mut out).expect("begin");
            for line in lines {
                exporter.entry(line, &mut out).expect("an entry");
            }
            exporter.end(&mut out).expect("end");
            out.flush().expect("flush");
            std::fs::read_to_string(file.path()).expect("read")
        };
        assert_eq!(render(Format::Lines), "a 10.0.0.1\nb h:1\n");
        assert_eq!(
            render(Format::Json),
            "{\n  \"a\": \"10.0.0.1\",\n  \"b\": \"h:1\"\n}\n"
        );
        assert_eq!(render(Format::Ndjson).lines().count(), 2);
    }

    #[test]
    fn a_line_that_would_not_read_back_is_refused() {
        assert!(line_of("a b", "c").is_err());
        assert!(line_of("#a", "c").is_err());
        assert!(line_of("a", "c\nd").is_err());
        assert!(line_of("a", "").is_err());
        assert_eq!(line_of("a", "c d").expect("fits"), "a c d");
    }
}
