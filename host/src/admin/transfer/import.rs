//! The body of `import` into writes: lines of JSON, lines of text, or a table in CSV.

use super::batch::Content;
use crate::admin::input::media_type;
use crate::admin::problem::Problem;
use crate::store::batch::check_key;
use crate::store::{BucketId, Value, ValueKind, Write, WriteBatch};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

/// Bad lines of an import that are told one by one.
const ERRORS_MAX: usize = 100;

/// How the lines of an import are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `{"key": …, "value": …}`
    Json,
    /// `key value`
    Text,
    /// RFC 4180, under a line that names the columns `key` and `value`.
    Csv,
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
            Some("text/csv") => Ok(Self::Csv),
            other => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content-type",
                format!(
                    "content-type {:?}: expected application/x-ndjson, text/csv or text/plain",
                    other.unwrap_or_default()
                ),
            )),
        }
    }
}

/// Reads an import. In lines, empty ones and those that begin with `#` are skipped. All that is bad is told at once.
///
/// # Errors
/// The bad lines, with their numbers.
pub(super) fn parse_import(
    body: &[u8],
    format: Format,
    bucket: BucketId,
    kind: ValueKind,
) -> Result<WriteBatch, Problem> {
    let mut reading = Reading {
        bucket,
        kind,
        writes: Vec::new(),
        errors: Vec::new(),
        bad: 0,
    };
    match format {
        Format::Csv => reading.table(body)?,
        Format::Json | Format::Text => reading.lines(body, format),
    }
    reading.batch()
}

/// An import, as far as it is read.
struct Reading {
    bucket: BucketId,
    kind: ValueKind,
    writes: Vec<Write>,
    /// The first of what is bad.
    errors: Vec<serde_json::Value>,
    bad: u64,
}

impl Reading {
    fn lines(&mut self, body: &[u8], format: Format) {
        for (number, line) in (1_u64..).zip(body.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii();
            if !line.is_empty() && line[0] != b'#' {
                self.entry(number, parse_line(line, format));
            }
        }
    }

    fn table(&mut self, body: &[u8]) -> Result<(), Problem> {
        let mut rows = csv::ReaderBuilder::new().flexible(true).from_reader(body);
        let names = rows
            .byte_headers()
            .map_err(|error| Problem::invalid("invalid-import", format!("csv: {error}")))?;
        let column = |wanted: &str| {
            let mut names = names.iter().map(<[u8]>::trim_ascii);
            names.position(|name| name.eq_ignore_ascii_case(wanted.as_bytes()))
        };
        let (Some(key), Some(value)) = (column("key"), column("value")) else {
            let detail = "csv: line 1: expected names of columns, among them key and value";
            return Err(Problem::invalid("invalid-import", detail));
        };
        let mut row = csv::ByteRecord::new();
        loop {
            match rows.read_byte_record(&mut row) {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    let line = row.position().map_or(0, csv::Position::line);
                    self.entry(line, parse_row(&row, key, value));
                }
                // Only reading fails, and this reads memory; a row of another length is flexible.
                Err(error) => self.error(0, &error.to_string()),
            }
        }
    }

    fn entry(&mut self, line: u64, entry: Result<(String, Box<[u8]>), String>) {
        match entry.and_then(|entry| check_entry(self.kind, entry)) {
            Ok((key, value)) => self.writes.push(Write::put(self.bucket, key, value)),
            Err(message) => self.error(line, &message),
        }
    }

    fn error(&mut self, line: u64, message: &str) {
        self.bad += 1;
        if self.errors.len() < ERRORS_MAX {
            self.errors
                .push(json!({ "line": line, "message": message }));
        }
    }

    fn batch(self) -> Result<WriteBatch, Problem> {
        if self.bad > 0 {
            let detail = format!("{} bad line(s), nothing was imported", self.bad);
            return Err(Problem::invalid("invalid-import", detail).with_errors(self.errors));
        }
        Ok(WriteBatch {
            writes: self.writes,
            ..WriteBatch::default()
        })
    }
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

fn parse_row(
    row: &csv::ByteRecord,
    key: usize,
    value: usize,
) -> Result<(String, Box<[u8]>), String> {
    let (Some(key), Some(value)) = (row.get(key), row.get(value)) else {
        return Err(format!(
            "{} columns, expected as many as line 1 names",
            row.len()
        ));
    };
    let key = std::str::from_utf8(key).map_err(|_| "not UTF-8".to_owned())?;
    Ok((key.to_owned(), value.into()))
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
        Format::Text | Format::Csv => {
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

    fn write(key: &str, value: &[u8]) -> Write {
        Write::put(BUCKET, key, value)
    }

    fn import(body: &[u8], format: Format) -> Result<Vec<Write>, Problem> {
        parse_import(body, format, BUCKET, ValueKind::Bytes).map(|batch| batch.writes)
    }

    #[test]
    fn imports_are_read_as_lines_of_text_or_json() {
        let text = b"# the map\nid1 127.0.0.2\r\n\nid2\t  127.0.0.3";
        let json = b"{\"key\":\"id1\",\"value\":\"127.0.0.2\",\"revision\":4}\n{\"key\":\"id2\",\"value\":\"127.0.0.3\"}\n";
        let expected = [write("id1", b"127.0.0.2"), write("id2", b"127.0.0.3")];
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

    #[test]
    fn a_table_names_its_columns_and_may_quote_them() {
        let csv =
            b"\xef\xbb\xbfValue,note, KEY\r\n127.0.0.2,first,id1\r\n\"a, \"\"b\"\"\nc\",,id2\n";
        let expected = [write("id1", b"127.0.0.2"), write("id2", b"a, \"b\"\nc")];
        assert_eq!(import(csv, Format::Csv).unwrap(), expected);
        assert!(import(b"key,value\n", Format::Csv).unwrap().is_empty());
        let detail = |csv: &[u8]| import(csv, Format::Csv).unwrap_err().detail;
        assert!(detail(b"id1,127.0.0.2\n").contains("names of columns"));
        assert!(detail(b"").contains("names of columns"));
        let problem = import(b"key,value\na,1\nb\n\xff,2\n", Format::Csv).unwrap_err();
        assert_eq!(problem.errors[0]["line"], 3);
        assert_eq!(problem.errors[1]["line"], 4);
    }
}
