//! `/v1/kv/{bucket}/batch` and `/import`, and the export: many keys at once, all or none.

mod body;

use super::Data;
use super::input::{Actor, Path, Query, audit, read_body};
use super::kv::{bucket_condition, commit_problem, find, value_json};
use super::problem::Problem;
use crate::store::{BucketId, CommitError, Committed, Snapshot, Store, WriteBatch};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use body::{Format, parse_batch, parse_import};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Frame;
use serde::Deserialize;
use serde_json::json;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Bytes of an export that are made at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks made before the client took them.
const CHUNKS_AHEAD: usize = 4;

/// What a write of many keys may be told in its query.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransferQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    replace: bool,
}

/// `POST /v1/kv/{bucket}/batch` and `POST /v1/kv/{bucket}/import`
pub(super) async fn post(
    State(data): State<Data>,
    Path((name, action)): Path<(String, String)>,
    Query(query): Query<TransferQuery>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (bucket, kind, expect) = {
        let snapshot = data.store.snapshot();
        let (id, bucket) = find(&snapshot, &name)?;
        let expect = bucket_condition(&headers, bucket)?;
        (id, bucket.config().values, expect)
    };
    let format = match action.as_str() {
        "batch" => None,
        "import" => Some(Format::of(&headers)?),
        _ => return Err(post_on_key(&name, &action)),
    };
    let body = read_body(&headers, body, data.body_bytes_max).await?;
    // A large body takes long to parse: the thread that answers probes is not for that.
    let parsed = offload(move || match format {
        None => parse_batch(&body, bucket),
        Some(format) => parse_import(&body, format, bucket, kind),
    })
    .await?;
    let mut batch = parsed?;
    batch.dry_run = query.dry_run;
    batch.expect = vec![(bucket, expect)];
    if query.replace {
        batch.replace = vec![bucket];
    }
    let path = format!("/v1/kv/{name}/{action}");
    let committed = commit(&data.store, batch, &actor, "POST", &path)
        .await
        .map_err(commit_problem)?;
    Ok(committed_response(committed, query.dry_run))
}

fn post_on_key(bucket: &str, key: &str) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!(
            "POST is not allowed on \"/v1/kv/{bucket}/{key}\": expected PUT or PATCH, or POST on batch or import"
        ),
    )
    .with_header(
        header::ALLOW,
        HeaderValue::from_static("GET,HEAD,PUT,PATCH,DELETE"),
    )
}

/// Commits and writes the audit line.
pub(super) async fn commit(
    store: &Store,
    batch: WriteBatch,
    actor: &Actor,
    method: &str,
    path: &str,
) -> Result<Committed, CommitError> {
    let dry_run = batch.dry_run;
    let result = store.commit(batch).await;
    match &result {
        Ok(_) if dry_run => {}
        Ok(committed) => {
            let outcome = outcome(committed);
            audit(actor, method, path, outcome, Some(committed.revision.0));
        }
        Err(error) => audit(actor, method, path, &error.to_string(), None),
    }
    result
}

fn outcome(committed: &Committed) -> &'static str {
    match (
        committed.created + committed.updated + committed.deleted,
        committed.touched,
    ) {
        (0, 0) => "unchanged",
        (0, _) => "touched",
        _ => "changed",
    }
}

fn committed_response(committed: Committed, dry_run: bool) -> Response {
    let mut body = json!({
        "revision": committed.revision,
        "outcome": outcome(&committed),
        "created": committed.created,
        "updated": committed.updated,
        "deleted": committed.deleted,
        "touched": committed.touched,
        "unchanged": committed.unchanged,
    });
    if dry_run {
        body["dry_run"] = true.into();
    }
    Json(body).into_response()
}

/// Runs work that takes long on a thread for such work.
pub(super) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the work was cut",
        )
    })
}

/// Every key of a bucket with this prefix at the snapshot's revision, a JSON object a line, in byte order.
pub(super) fn export(snapshot: Arc<Snapshot>, bucket: BucketId, prefix: String) -> Response {
    let revision = snapshot.revision().0;
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        // Ends early when the client is gone: nobody is there to be told.
        let _ = write_lines(&snapshot, bucket, &prefix, &sender);
    });
    (
        [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/x-ndjson"),
            ),
            (
                http::HeaderName::from_static("throwbar-revision"),
                HeaderValue::from(revision),
            ),
        ],
        Body::new(Chunks(chunks)),
    )
        .into_response()
}

fn write_lines(
    snapshot: &Snapshot,
    bucket: BucketId,
    prefix: &str,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), mpsc::error::SendError<Bytes>> {
    let Some(bucket) = snapshot.bucket(bucket) else {
        return Ok(());
    };
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    for (key, entry) in bucket.sorted() {
        if !key.starts_with(prefix) {
            continue;
        }
        let line = json!({
            "key": key,
            "value": value_json(&entry.value),
            "revision": entry.revision,
        });
        chunk.extend_from_slice(line.to_string().as_bytes());
        chunk.push(b'\n');
        if chunk.len() >= CHUNK_BYTES {
            sender.blocking_send(std::mem::take(&mut chunk).into())?;
        }
    }
    if !chunk.is_empty() {
        sender.blocking_send(chunk.into())?;
    }
    Ok(())
}

/// A body made on another thread.
struct Chunks(mpsc::Receiver<Bytes>);

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}
