//! The body of `import` into writes, as it arrives: lines of JSON, lines of text, or a table in CSV.
//!
//! What is held is the beginning of a row (at most [`ROW_BYTES_MAX`]), what has just arrived, and the writes that were made
//! of the rows before: all of them if the import is to be applied whole, a chunk if it is not.

use super::chunks::CHUNK_BYTES_MAX;
use super::offload;
use super::table::Rows;
use crate::admin::input::{BYTE_ORDER_MARK, Chunks, media_type};
use crate::admin::problem::Problem;
use crate::config::diagnostic::shorten;
use crate::store::batch::check_key;
use crate::store::{BucketId, Value, ValueKind, Write, WriteBatch};
use ahash::AHashMap;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use row::{Columns, Entry, columns, parse_line, parse_row};
use serde_json::json;

mod row;

/// Bad rows of an import that are told one by one.
const ERRORS_MAX: usize = 100;
/// The longest row: a value and a key of the largest size fit, however they are escaped.
const ROW_BYTES_MAX: usize = 8 << 20;

/// Most that is told of one.
const MESSAGE_CHARS_MAX: usize = 500;

/// How the rows of an import are written.
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

/// Reads an import to its end: its writes, and how many of its entries have ended meanwhile and are left out.
///
/// # Errors
/// If the body breaks off or is too long, if the process ends before it is whole, and if rows are bad: all of them, with
/// their lines.
pub(super) async fn take(
    mut intake: Intake,
    body: &mut Chunks,
) -> Result<(WriteBatch, u64), Problem> {
    let unwritten = |mut problem: Problem| {
        if problem.code == Problem::stopping().code {
            problem.detail.push_str(": nothing was written");
        }
        problem
    };
    while let Some(data) = body.next().await.map_err(unwritten)? {
        intake = offload(move || {
            intake.feed(&data);
            intake
        })
        .await?;
    }
    offload(move || {
        intake.end();
        intake.batch()
    })
    .await?
}

/// An import, as far as it has arrived.
pub(super) struct Intake {
    format: Format,
    bucket: BucketId,
    kind: ValueKind,
    /// Rows of a chunk, if it is not applied whole.
    chunk: Option<usize>,
    /// When it began, in milliseconds of Unix time.
    now: u64,
    /// The beginning of a row.
    pending: Vec<u8>,
    /// Lines of the rows before.
    lines: u64,
    table: Rows,
    columns: Option<Columns>,
    writes: Vec<Write>,
    /// Where each of these is.
    lines_of: Vec<u64>,
    /// Of keys and values of these.
    bytes: usize,
    /// Chunks that are whole.
    ready: Vec<Chunk>,
    /// Entries that have ended before they were read.
    ended: u64,
    /// The first of what is bad.
    errors: Vec<serde_json::Value>,
    bad: u64,
    /// Nothing more is read.
    is_stopped: bool,
}

/// Rows that are applied together.
pub(super) struct Chunk {
    pub(super) writes: Vec<Write>,
    /// The line of the last.
    pub(super) line: u64,
}

impl Intake {
    /// Nothing has arrived.
    pub(super) fn new(
        format: Format,
        bucket: BucketId,
        kind: ValueKind,
        chunk: Option<usize>,
    ) -> Self {
        let now = Timestamp::now().as_millisecond();
        Self {
            format,
            bucket,
            kind,
            chunk,
            now: u64::try_from(now).unwrap_or(0),
            pending: Vec::new(),
            lines: 0,
            table: Rows::default(),
            columns: None,
            writes: Vec::new(),
            lines_of: Vec::new(),
            bytes: 0,
            ready: Vec::new(),
            ended: 0,
            errors: Vec::new(),
            bad: 0,
            is_stopped: false,
        }
    }

    /// Reads what has arrived.
    pub(super) fn feed(&mut self, data: &[u8]) {
        if self.is_stopped {
            return;
        }
        let end = match self.format {
            Format::Csv => self.table.read(data),
            Format::Json | Format::Text => memchr::memrchr(b'\n', data).map(|at| at + 1),
        };
        let (whole, begun) = data.split_at(end.unwrap_or(0));
        if !whole.is_empty() {
            if self.pending.is_empty() {
                self.rows(whole);
            } else {
                let mut rows = std::mem::take(&mut self.pending);
                rows.extend_from_slice(whole);
                self.rows(&rows);
            }
        }
        if self.pending.len() + begun.len() > ROW_BYTES_MAX {
            let message = format!("longer than {ROW_BYTES_MAX} bytes, nothing was read after it");
            self.error(self.lines + 1, &message);
            self.is_stopped = true;
            self.pending = Vec::new();
            return;
        }
        self.pending.extend_from_slice(begun);
    }

    /// Nothing more arrives.
    pub(super) fn end(&mut self) {
        let rest = std::mem::take(&mut self.pending);
        if !self.is_stopped && !rest.is_empty() {
            self.rows(&rest);
        }
        if self.format == Format::Csv && self.columns.is_none() && self.bad == 0 {
            self.no_columns();
        }
        match self.chunk {
            Some(_) if self.bad == 0 && !self.writes.is_empty() => self.close_chunk(self.lines),
            Some(_) => {}
            None => self.refuse_repeated(),
        }
    }

    /// All of it as one batch, whatever its chunks, and how many entries have ended meanwhile.
    ///
    /// # Errors
    /// The bad rows, with their lines.
    pub(super) fn batch(self) -> Result<(WriteBatch, u64), Problem> {
        if let Some(problem) = self.problem("nothing was imported") {
            return Err(problem);
        }
        let mut writes = self.writes;
        for chunk in self.ready {
            writes.extend(chunk.writes);
        }
        let batch = WriteBatch {
            writes,
            ..WriteBatch::default()
        };
        Ok((batch, self.ended))
    }

    /// What is bad, if anything is.
    pub(super) fn problem(&self, outcome: &str) -> Option<Problem> {
        (self.bad > 0).then(|| {
            let detail = format!("{} bad line(s), {outcome}", self.bad);
            Problem::invalid("invalid-import", detail).with_errors(self.errors.clone())
        })
    }

    /// Chunks that have come together, leaving none.
    pub(super) fn take_ready(&mut self) -> Vec<Chunk> {
        std::mem::take(&mut self.ready)
    }

    /// Entries that have ended before they were read.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// Reads rows that are whole.
    fn rows(&mut self, rows: &[u8]) {
        let rows = match self.lines {
            0 => rows.strip_prefix(BYTE_ORDER_MARK).unwrap_or(rows),
            _ => rows,
        };
        match self.format {
            Format::Csv => self.table(rows),
            Format::Json | Format::Text => {
                // In lines, empty ones and those that begin with `#` are skipped.
                for line in rows
                    .strip_suffix(b"\n")
                    .unwrap_or(rows)
                    .split(|b| *b == b'\n')
                {
                    self.lines += 1;
                    let line = line.trim_ascii();
                    if !line.is_empty() && line[0] != b'#' && !self.is_stopped {
                        self.entry(self.lines, parse_line(line, self.format));
                    }
                }
            }
        }
    }

    fn table(&mut self, rows: &[u8]) {
        let mut reader = csv::ReaderBuilder::new()
            .flexible(true)
            .has_headers(self.columns.is_none())
            .from_reader(rows);
        let columns = match self.columns {
            Some(columns) => columns,
            None => match reader.byte_headers().ok().and_then(columns) {
                Some(columns) => *self.columns.insert(columns),
                None => return self.no_columns(),
            },
        };
        let mut row = csv::ByteRecord::new();
        while !self.is_stopped {
            match reader.read_byte_record(&mut row) {
                Ok(false) => break,
                Ok(true) => {
                    let line = row.position().map_or(0, csv::Position::line);
                    self.entry(self.lines + line, parse_row(&row, columns));
                }
                // Only reading fails, and this reads memory; a row of another length is flexible.
                Err(error) => self.error(self.lines, &error.to_string()),
            }
        }
        self.lines += memchr::memchr_iter(b'\n', rows).count() as u64;
    }

    fn no_columns(&mut self) {
        self.error(
            1,
            "csv: expected names of columns, among them key and value",
        );
        self.is_stopped = true;
    }

    fn entry(&mut self, line: u64, entry: Result<Entry, String>) {
        let entry = match entry.and_then(|entry| self.check(entry)) {
            Ok(entry) => entry,
            Err(message) => return self.error(line, &message),
        };
        if entry.until.is_some_and(|until| until.millis() <= self.now) {
            self.ended += 1;
            return;
        }
        if self.bad > 0 {
            return;
        }
        self.bytes += entry.key.len() + entry.value.len();
        self.lines_of.push(line);
        self.writes.push(Write {
            until: entry.until,
            ..Write::put(self.bucket, entry.key, entry.value)
        });
        let is_whole = self
            .chunk
            .is_some_and(|rows| self.writes.len() >= rows || self.bytes >= CHUNK_BYTES_MAX);
        if is_whole {
            self.close_chunk(line);
        }
    }

    /// Of two rows with the same key one is a mistake, and nobody knows which.
    fn refuse_repeated(&mut self) {
        let mut seen = AHashMap::with_capacity(self.writes.len());
        let mut repeated = Vec::new();
        for (write, line) in self.writes.iter().zip(&self.lines_of) {
            if let Some(first) = seen.insert(&*write.key, *line) {
                let key = shorten(&write.key);
                repeated.push((*line, format!("key {key:?} is on line {first} already")));
            }
        }
        for (line, message) in repeated {
            self.error(line, &message);
        }
    }

    fn close_chunk(&mut self, line: u64) {
        self.bytes = 0;
        self.refuse_repeated();
        self.lines_of.clear();
        if self.writes.is_empty() {
            return;
        }
        let writes = std::mem::take(&mut self.writes);
        self.ready.push(Chunk { writes, line });
    }

    /// The store checks each entry again; here it is known at which line it is.
    fn check(&self, entry: Entry) -> Result<Entry, String> {
        check_key(&entry.key)?;
        match Value::parse(self.kind, &entry.value) {
            Ok(_) => Ok(entry),
            Err(error) => Err(format!("key {:?}: {error}", entry.key)),
        }
    }

    fn error(&mut self, line: u64, message: &str) {
        self.bad += 1;
        // They will not be written.
        self.writes = Vec::new();
        // What comes after it would be written before it is put right.
        self.is_stopped |= self.chunk.is_some();
        self.lines_of = Vec::new();
        if self.errors.len() < ERRORS_MAX {
            let message = cut(message);
            self.errors
                .push(json!({ "line": line, "message": message }));
        }
    }
}

/// A message about a row, which may quote all of it.
fn cut(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((at, _)) => format!("{}… ({} bytes)", &message[..at], message.len()),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
