//! `/v1/store`: the data file as a whole, copied while it is in use, and made smaller.

use super::Data;
use super::handed::Handed;
use super::input::{Actor, Query, audit};
use super::problem::Problem;
use crate::store::data_file::{Backup, FileError};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
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
    actor: Actor,
) -> Result<Response, Problem> {
    let path = "/v1/store/backup";
    let backup = audited(data.store.backup().await, &actor, path, "copied")?;
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
    Ok((head, Body::new(Handed(taken))).into_response())
}

/// `POST /v1/store/compact`
pub(super) async fn compact(
    State(data): State<Data>,
    Query(NoQuery {}): Query<NoQuery>,
    actor: Actor,
) -> Result<Response, Problem> {
    let path = "/v1/store/compact";
    let compacted = audited(data.store.compact().await, &actor, path, "compacted")?;
    let sizes = json!({ "bytes_before": compacted.before, "bytes_after": compacted.after });
    Ok(Json(sizes).into_response())
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

fn audited<T>(
    done: Result<T, FileError>,
    actor: &Actor,
    path: &str,
    outcome: &str,
) -> Result<T, Problem> {
    match done {
        Ok(done) => {
            audit(actor, "POST", path, outcome, None);
            Ok(done)
        }
        Err(error) => {
            let detail = error.to_string();
            audit(actor, "POST", path, &detail, None);
            Err(match error {
                FileError::None => Problem::new(StatusCode::CONFLICT, "no-data-file", detail),
                FileError::Busy => Problem::new(StatusCode::CONFLICT, "backup-under-way", detail),
                FileError::Failed(_) | FileError::Closed => {
                    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", detail)
                }
            })
        }
    }
}
