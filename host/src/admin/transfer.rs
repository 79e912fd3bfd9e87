//! `/v1/kv/{bucket}/batch` and `/import`, and the export: many keys at once, all or none.

mod batch;
mod diff;
mod export;
mod import;

use super::Data;
use super::input::{Actor, Path, Query, audit, read_body};
use super::kv::{bucket_condition, commit_problem, find};
use super::problem::Problem;
use super::rights::Caller;
use crate::store::{CommitError, Committed, Store, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use batch::parse_batch;
pub(super) use batch::{BatchBody, Content};
use diff::diff;
pub(super) use export::{ExportFormat, export};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use import::{Format, parse_import};
use serde::Deserialize;
use serde_json::json;

/// What a write of many keys may be told in its query.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransferQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    replace: bool,
    #[serde(default)]
    diff: bool,
}

/// `POST /v1/kv/{bucket}/batch` and `POST /v1/kv/{bucket}/import`
pub(super) async fn post(
    State(data): State<Data>,
    Path((name, action)): Path<(String, String)>,
    Query(query): Query<TransferQuery>,
    caller: Caller,
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
    if query.diff && !query.dry_run {
        return Err(Problem::bad_request(
            "query",
            "query: diff=true shows what would be changed: expected dry_run=true beside it",
        ));
    }
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
    caller
        .may_commit(&batch)
        .inspect_err(|problem| audit(&actor, "POST", &path, problem.code, None))?;
    let changes = if query.diff {
        let snapshot = data.store.snapshot();
        let (changes, kept) = offload(move || {
            let changes = snapshot.bucket(bucket).map(|bucket| diff(bucket, &batch));
            (changes, batch)
        })
        .await?;
        batch = kept;
        changes
    } else {
        None
    };
    let committed = commit(&data.store, batch, &actor, "POST", &path)
        .await
        .map_err(commit_problem)?;
    let mut answer = committed_json(committed, query.dry_run);
    if let Some((changes, more)) = changes {
        answer["changes"] = changes.into();
        answer["changes_not_shown"] = more.into();
    }
    Ok(Json(answer).into_response())
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

pub(super) fn committed_json(committed: Committed, dry_run: bool) -> serde_json::Value {
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
    body
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
