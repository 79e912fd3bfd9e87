//! `/v1/store`: the data file as a whole, copied while it is in use, and made smaller.

use super::Data;
use super::handed::Handed;
use super::input::Query;
use super::operation::{Done, Told};
use super::problem::Problem;
use crate::store::data_file::{Backup, FileError};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Bytes of a backup that are read at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read before the client took them.
const CHUNKS_AHEAD: usize = 4;
/// How many keys a backup has, and the store's revision in it.
const KEYS: HeaderName = HeaderName::from_static("throwbar-keys");
const REVISION: HeaderName = HeaderName::from_static("throwbar-revision");

/// Nothing: what a compaction would come to is only known when it is done, so it has no dry run.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

/// `POST /v1/store/backup`
pub(super) async fn backup(
    State(data): State<Data>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let backup = data.store.backup().await.map_err(file_problem)?;
    let (contents, bytes) = (backup.contents, backup.bytes);
    let (chunks, taken) = mpsc::channel(CHUNKS_AHEAD);
    // It ends when the client is gone, and with it the copy.
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send(backup, &chunks) {
            tracing::error!(%error, "backup cannot be read back");
        }
    });
    let head = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        ),
        (header::CONTENT_LENGTH, bytes.into()),
        (KEYS, contents.keys.into()),
        (REVISION, contents.revision.0.into()),
    ];
    Ok(Told::Done(Done::new("copied")).within((head, Body::new(Handed(taken)))))
}

/// `POST /v1/store/compact`
pub(super) async fn compact(
    State(data): State<Data>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let compacted = data.store.compact().await.map_err(file_problem)?;
    let sizes = json!({ "bytes_before": compacted.before, "bytes_after": compacted.after });
    Ok(Told::Done(Done::new("compacted")).within(Json(sizes)))
}

fn send(mut backup: Backup, chunks: &mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut left = backup.bytes;
    while left > 0 {
        let mut chunk = vec![0; left.min(CHUNK_BYTES as u64) as usize];
        backup.file.read_exact(&mut chunk)?;
        left -= chunk.len() as u64;
        if chunks.blocking_send(chunk.into()).is_err() {
            break;
        }
    }
    Ok(())
}

fn file_problem(error: FileError) -> Problem {
    let detail = error.to_string();
    match error {
        FileError::None => Problem::new(StatusCode::CONFLICT, "no-data-file", detail),
        FileError::Busy => Problem::new(StatusCode::CONFLICT, "backup-under-way", detail),
        FileError::Failed(_) | FileError::Closed => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", detail)
        }
    }
}
