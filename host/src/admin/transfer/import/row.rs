//! One row of an import, parsed.

use super::Format;
use crate::admin::transfer::batch::Content;
use crate::config::diagnostic::shorten;
use crate::store::Deadline;
use jiff::Timestamp;
use serde::Deserialize;

/// Where the cells of a table are.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    key: usize,
    value: usize,
    expires_at: Option<usize>,
    /// How many there are.
    all: usize,
}

/// A row that was read.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Box<[u8]>,
    pub(super) until: Option<Deadline>,
}

pub(super) fn columns(names: &csv::ByteRecord) -> Option<Columns> {
    let column = |wanted: &str| {
        let mut names = names.iter().map(<[u8]>::trim_ascii);
        names.position(|name| name.eq_ignore_ascii_case(wanted.as_bytes()))
    };
    Some(Columns {
        key: column("key")?,
        value: column("value")?,
        expires_at: column("expires_at"),
        all: names.len(),
    })
}

pub(super) fn parse_row(row: &csv::ByteRecord, columns: Columns) -> Result<Entry, String> {
    let (key, value) = match (row.get(columns.key), row.get(columns.value)) {
        (Some(key), Some(value)) if row.len() == columns.all => (key, value),
        _ => {
            return Err(format!(
                "{} columns, expected {}, as many as line 1 names",
                row.len(),
                columns.all
            ));
        }
    };
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned());
    let until = columns.expires_at.and_then(|at| row.get(at));
    let until = until.filter(|until| !until.is_empty());
    Ok(Entry {
        key: text(key)?.to_owned(),
        value: value.into(),
        until: until.map(text).transpose()?.map(parse_until).transpose()?,
    })
}

pub(super) fn parse_line(line: &[u8], format: Format) -> Result<Entry, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        key: String,
        value: Content,
        /// Exports have it; it is not imported.
        #[serde(rename = "revision")]
        _revision: Option<u64>,
        expires_at: Option<String>,
    }
    match format {
        Format::Json => {
            let line: Line = serde_json::from_slice(line).map_err(|error| said_of(&error))?;
            Ok(Entry {
                key: line.key,
                value: line.value.0,
                until: line.expires_at.as_deref().map(parse_until).transpose()?,
            })
        }
        Format::Text | Format::Csv => {
            let line = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
            let (key, value) = line
                .split_once([' ', '\t'])
                .ok_or_else(|| format!("{}: expected a key, a space and a value", quoted(line)))?;
            Ok(Entry {
                key: key.to_owned(),
                value: value.trim_start().as_bytes().into(),
                until: None,
            })
        }
    }
}

/// What is wrong with a line of JSON, without the line: to its reader it was the first and only one.
fn said_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |it| it.0);
    match what.starts_with("unknown field `ttl`") {
        true => {
            "unknown field `ttl`: an import says when an entry ends, in `expires_at`".to_owned()
        }
        false if error.is_data() => what.to_owned(),
        false => format!("{what} at column {}", error.column()),
    }
}

/// A text of a message, with its length if it is cut.
fn quoted(text: &str) -> String {
    let shown = shorten(text);
    match shown.len() < text.len() {
        true => format!("{shown:?} ({} bytes)", text.len()),
        false => format!("{shown:?}"),
    }
}

/// When an entry ends, as exports say it.
fn parse_until(text: &str) -> Result<Deadline, String> {
    let time: Option<Timestamp> = text.parse().ok();
    let millis = time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
    millis.and_then(Deadline::from_millis).ok_or_else(|| {
        format!("expires_at {text:?}: expected a time such as 2027-01-31T12:00:00.000Z")
    })
}
