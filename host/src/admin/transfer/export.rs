//! A whole bucket as of one revision, in one of three formats, made as the client takes it.

use super::offload;
use crate::admin::handed::Handed;
use crate::admin::kv::{expires_json, expires_text, value_json};
use crate::admin::problem::Problem;
use crate::admin::revocation::{Lost, Revocable};
use crate::store::{Bucket, BucketId, Deadline, Entry, Snapshot};
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes of an export that are made at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks made before the client took them.
const CHUNKS_AHEAD: usize = 4;

/// How a bucket is written out; an import reads each of them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExportFormat {
    /// A JSON object a line, with the revision, and with `expires_at` if it ends.
    Ndjson,
    /// `key,value,revision,expires_at` under a line that names them, as RFC 4180 has it.
    Csv,
    /// `key value`
    Lines,
}

impl ExportFormat {
    /// The format of this name in a query.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "ndjson" => Some(Self::Ndjson),
            "csv" => Some(Self::Csv),
            "lines" => Some(Self::Lines),
            _ => None,
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Lines => "text/plain; charset=utf-8",
        })
    }

    /// Whether an import would read back what this writes, its deadline apart.
    fn holds(self, key: &str, entry: &Entry) -> bool {
        let text = entry.value.text();
        match (self, text) {
            (Self::Ndjson, _) => true,
            (Self::Csv | Self::Lines, None) => false,
            (Self::Csv, Some(_)) => true,
            (Self::Lines, Some(value)) => {
                !key.contains(char::is_whitespace)
                    // The first would begin a comment, and the second be no part of the key.
                    && !key.starts_with(['#', '\u{feff}'])
                    && !value.is_empty()
                    && *value == *value.trim()
                    && !value.contains(['\n', '\r'])
            }
        }
    }
}

/// What is exported of a bucket, and how.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    /// How it is written.
    pub(crate) format: ExportFormat,
    /// How its keys begin.
    pub(crate) prefix: String,
    /// Whether to say when entries end.
    pub(crate) deadlines: bool,
}

impl Export {
    /// What is said of when an entry ends.
    fn deadline(&self, entry: &Entry) -> Option<Deadline> {
        entry.deadline.filter(|_| self.deadlines)
    }

    /// Whether an import would read back what this writes of an entry.
    fn check(&self, key: &str, entry: &Entry) -> Result<(), Problem> {
        if !self.format.holds(key, entry) {
            let others = match ExportFormat::Csv.holds(key, entry) {
                true => "ndjson or csv",
                false => "ndjson",
            };
            return Err(Problem::invalid(
                "format",
                format!("key {key:?}: it or its value does not fit this format: expected {others}"),
            ));
        }
        if self.format == ExportFormat::Lines && self.deadline(entry).is_some() {
            return Err(Problem::invalid(
                "format",
                format!(
                    "key {key:?}: it ends, which lines cannot say: expected ndjson or csv, or deadlines=false to leave that out"
                ),
            ));
        }
        Ok(())
    }
}

/// What is written and not sent yet.
enum Output {
    Ndjson(Vec<u8>),
    Csv(Box<csv::Writer<Vec<u8>>>),
    Lines(Vec<u8>),
}

impl Output {
    fn new(format: ExportFormat) -> Self {
        match format {
            ExportFormat::Ndjson => Self::Ndjson(Vec::with_capacity(CHUNK_BYTES)),
            ExportFormat::Csv => Self::Csv(Box::new(csv::Writer::from_writer(Vec::with_capacity(
                CHUNK_BYTES,
            )))),
            ExportFormat::Lines => Self::Lines(Vec::with_capacity(CHUNK_BYTES)),
        }
    }

    fn begin(&mut self, export: &Export) {
        if let Self::Csv(rows) = self {
            let names = ["key", "value", "revision", "expires_at"];
            let names = &names[..if export.deadlines { 4 } else { 3 }];
            rows.write_record(names).expect(MEMORY);
        }
    }

    fn write(&mut self, key: &str, entry: &Entry, export: &Export) {
        let deadline = export.deadline(entry);
        match self {
            Self::Ndjson(out) => {
                let mut line = json!({
                    "key": key,
                    "value": value_json(&entry.value),
                    "revision": entry.revision,
                });
                if let Some(deadline) = deadline {
                    line["expires_at"] = expires_json(deadline);
                }
                out.extend_from_slice(line.to_string().as_bytes());
                out.push(b'\n');
            }
            Self::Csv(rows) => {
                let revision = entry.revision.to_string();
                let (key, value) = (key.as_bytes(), &entry.value.to_bytes());
                let row = [key, value, revision.as_bytes()];
                if export.deadlines {
                    let expires = deadline.and_then(expires_text).unwrap_or_default();
                    rows.write_record(row.iter().copied().chain([expires.as_bytes()]))
                } else {
                    rows.write_record(row)
                }
                .expect(MEMORY);
            }
            Self::Lines(out) => {
                out.extend_from_slice(key.as_bytes());
                out.push(b' ');
                out.extend_from_slice(&entry.value.to_bytes());
                out.push(b'\n');
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Ndjson(out) | Self::Lines(out) => out.len(),
            Self::Csv(rows) => rows.get_ref().len(),
        }
    }

    fn take(&mut self) -> Bytes {
        match self {
            Self::Ndjson(out) | Self::Lines(out) => std::mem::take(out).into(),
            Self::Csv(rows) => {
                let next = csv::Writer::from_writer(Vec::with_capacity(CHUNK_BYTES));
                let written = std::mem::replace(&mut **rows, next).into_inner();
                written
                    .map_err(|error| error.into_error())
                    .expect(MEMORY)
                    .into()
            }
        }
    }
}

/// Why writing rows of one length never fails.
const MEMORY: &str = "memory takes what is written";

/// Every key asked for of a bucket at the snapshot's revision, in byte order, unless its caller may no longer have them.
///
/// # Errors
/// 422 if the format cannot hold one of them: nothing is sent then.
pub(crate) async fn export(
    snapshot: Arc<Snapshot>,
    bucket: BucketId,
    export: Export,
    lost: Lost,
) -> Result<Response, Problem> {
    let (revision, format) = (snapshot.revision().0, export.format);
    let (for_check, wanted) = (Arc::clone(&snapshot), export.clone());
    let keys = offload(move || {
        let bucket = for_check.bucket(bucket);
        bucket.map_or(Ok(0), |bucket| count(bucket, &wanted))
    })
    .await??;
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Some(bucket) = snapshot.bucket(bucket) {
            // Ends early when the client is gone: nobody is there to be told.
            let _ = write_all(bucket, &export, &sender);
        }
    });
    let headers = [
        (header::CONTENT_TYPE, format.content_type()),
        (
            HeaderName::from_static("throwbar-revision"),
            revision.into(),
        ),
        (HeaderName::from_static("throwbar-keys"), keys.into()),
    ];
    let body = Revocable::new(Body::new(Handed(chunks)), lost);
    Ok((headers, Body::new(body)).into_response())
}

/// How many keys there are, if the format holds them all.
fn count(bucket: &Bucket, export: &Export) -> Result<u64, Problem> {
    let mut keys = 0;
    for (key, entry) in bucket.range(&export.prefix, None) {
        export.check(key, entry)?;
        keys += 1;
    }
    Ok(keys)
}

fn write_all(
    bucket: &Bucket,
    export: &Export,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), mpsc::error::SendError<Bytes>> {
    let mut output = Output::new(export.format);
    output.begin(export);
    for (key, entry) in bucket.range(&export.prefix, None) {
        output.write(key, entry, export);
        if output.len() >= CHUNK_BYTES {
            sender.blocking_send(output.take())?;
        }
    }
    let rest = output.take();
    if !rest.is_empty() {
        sender.blocking_send(rest)?;
    }
    Ok(())
}
