//! `GET /v1/kv/{bucket}/{key}?history`: the last values of a key, with the time and who wrote them.

use super::{GetQuery, bytes_json, commit_problem, expires_json, find, no_key};
use crate::admin::Data;
use crate::admin::problem::Problem;
use crate::store::{CommitError, Deadline, Entry, Event, Past, UndoError};
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

/// Whether a query asks for it.
///
/// # Errors
/// 400 if it is neither true nor false.
pub(super) fn is_wanted(query: &GetQuery) -> Result<bool, Problem> {
    match query.history.as_deref() {
        None | Some("false") => Ok(false),
        Some("" | "true") => Ok(true),
        Some(other) => Err(Problem::bad_request(
            "query",
            format!("query: history {other:?}: expected true or false"),
        )),
    }
}

pub(super) async fn get(data: &Data, bucket_name: &str, key: &str) -> Result<Response, Problem> {
    let (bucket, _) = find(&data.store.snapshot(), bucket_name)?;
    let rows = data.store.history(bucket, key).await;
    let mut rows: Vec<Value> = rows.map_err(undo_problem)?.iter().map(row_json).collect();
    if rows.is_empty() {
        // Written before the bucket had a history.
        let snapshot = data.store.snapshot();
        let entry = super::bucket_and_entry(&snapshot, bucket, key);
        let entry = entry.ok_or_else(|| no_key(bucket_name, key))?;
        rows.push(row_json(&found(entry)));
    }
    Ok(Json(json!({ "key": key, "history": rows })).into_response())
}

fn found(entry: &Entry) -> Past {
    Past {
        revision: entry.revision,
        at: None,
        by: None,
        event: Event::Found,
        undo: false,
        value: Some(entry.value.to_bytes().into()),
        deadline: entry.deadline,
    }
}

fn row_json(row: &Past) -> Value {
    let event = match row.event {
        Event::Created => "created",
        Event::Changed => "changed",
        Event::Deleted => "deleted",
        Event::Expired => "expired",
        Event::Found => "found",
    };
    let at = row.at.and_then(Deadline::from_millis);
    let mut json = json!({
        "revision": row.revision,
        "at": at.map(expires_json),
        "by": row.by.as_deref(),
        "event": event,
        "value": row.value.as_deref().map(bytes_json),
    });
    if row.undo {
        json["undo"] = true.into();
    }
    if let Some(deadline) = row.deadline {
        json["expires_at"] = expires_json(deadline);
    }
    json
}

/// Why the past cannot be told, or put back, as a response.
pub(in crate::admin) fn undo_problem(error: UndoError) -> Problem {
    let detail = error.to_string();
    match error {
        UndoError::NoSuchBucket => Problem::not_found("no-such-bucket", detail),
        UndoError::Off { .. } => Problem::not_found("no-history", detail),
        UndoError::Unknown { .. } | UndoError::NoRevision { .. } | UndoError::NotYet { .. } => {
            Problem::not_found("not-kept", detail)
        }
        UndoError::Changed { .. } => Problem::precondition(detail),
        UndoError::Beyond { .. } => Problem::new(StatusCode::FORBIDDEN, "forbidden", detail),
        UndoError::Unavailable(reason) => commit_problem(CommitError::Unavailable(reason)),
    }
}
