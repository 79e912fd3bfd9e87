//! `/v1/kv`: buckets, pages of keys, single keys, changes as they happen.

mod condition;
mod history;
mod places;
mod watch;
mod write;

use super::Data;
use super::input::{Path, Query, Tags, etag};
use super::problem::Problem;
use super::rights::Caller;
use super::transfer::{self, Export, ExportFormat};
use crate::store::{Bucket, BucketId, CommitError, Deadline, Entry, Snapshot, Value};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;

pub(super) use condition::Required;
pub(super) use history::undo_problem;
pub(super) use places::Watches;
pub(super) use write::{delete, patch, put};

/// When the entry ends, if it does.
const EXPIRES_AT: HeaderName = HeaderName::from_static("throwbar-expires-at");
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// `GET /v1/kv`: the buckets that are the caller's to read.
pub(super) async fn buckets(State(data): State<Data>, caller: Caller) -> Response {
    let snapshot = data.store.snapshot();
    let own = snapshot.buckets().map(|(_, bucket)| bucket);
    let own = own.filter(|bucket| caller.has_bucket(&bucket.config().name));
    let buckets: Vec<_> = own
        .map(|bucket| {
            let mut bucket = bucket_json(bucket);
            // They are of all keys.
            if let (false, Some(fields)) = (caller.prefix().is_empty(), bucket.as_object_mut()) {
                fields.retain(|name, _| !matches!(name.as_str(), "keys" | "bytes"));
            }
            bucket
        })
        .collect();
    Json(json!({ "revision": snapshot.revision(), "buckets": buckets })).into_response()
}

/// A bucket, for lists.
pub(super) fn bucket_json(bucket: &Bucket) -> serde_json::Value {
    let config = bucket.config();
    json!({
        "name": config.name,
        "backend": config.backend,
        "values": config.values,
        "keys": bucket.len(),
        "keys_max": config.keys_max,
        "bytes": bucket.bytes(),
        "bytes_max": config.bytes_max,
        "revision": bucket.revision(),
        "on_change": config.on_change.json(),
        "lookup": config.lookup.iter().collect::<Vec<_>>(),
        "history": config.history,
    })
}

/// What part of a bucket.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    prefix: String,
    limit: Option<usize>,
    cursor: Option<String>,
    format: Option<String>,
    watch: Option<String>,
    since: Option<String>,
    heartbeat: Option<String>,
    deadlines: Option<bool>,
}

/// `GET /v1/kv/{bucket}`
pub(super) async fn list(
    State(data): State<Data>,
    Path(name): Path<String>,
    Query(query): Query<ListQuery>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.may_list(&query.prefix)?;
    let snapshot = data.store.snapshot();
    let (id, bucket) = find(&snapshot, &name)?;
    if watch::is_wanted(&query)? {
        return watch::start(&data, (id, &name), &query, &caller, &headers).await;
    }
    if let Some(wanted) = query.format.as_deref().filter(|it| *it != "json") {
        let format = ExportFormat::named(wanted).ok_or_else(|| {
            Problem::bad_request(
                "query",
                format!("query: format {wanted:?}: expected json, ndjson, csv or lines"),
            )
        })?;
        if query.limit.is_some() || query.cursor.is_some() {
            return Err(Problem::bad_request(
                "query",
                format!(
                    "query: format={wanted} exports everything: it takes no limit and no cursor"
                ),
            ));
        }
        let export = Export {
            format,
            prefix: query.prefix,
            deadlines: query.deadlines.unwrap_or(true),
        };
        let lost = data.tokens.lost(caller, &name, &export.prefix);
        return transfer::export(snapshot, id, export, lost).await;
    }
    if query.deadlines.is_some() {
        return Err(Problem::bad_request(
            "query",
            "query: deadlines is for an export: expected format beside it",
        ));
    }
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::bad_request(
            "query",
            format!("query: limit {limit}: expected 1 to {LIMIT_MAX}"),
        ));
    }
    let tag = [(header::ETAG, etag(bucket.revision()))];
    // A page may hold thousands.
    let page = transfer::offload(move || {
        let bucket = snapshot.bucket(id)?;
        let page = bucket.page(&query.prefix, query.cursor.as_deref(), limit);
        let entries = page.entries.iter();
        let entries: Vec<_> = entries.map(|(key, entry)| entry_json(key, entry)).collect();
        Some(json!({
            "revision": snapshot.revision(),
            "entries": entries,
            "cursor": page.next,
        }))
    });
    Ok((tag, Json(page.await?)).into_response())
}

/// What of a key, or how it is looked at.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetQuery {
    history: Option<String>,
    lookup: Option<String>,
}

/// `GET /v1/kv/{bucket}/{key}`
pub(super) async fn get(
    State(data): State<Data>,
    Path((name, key)): Path<(String, String)>,
    Query(query): Query<GetQuery>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if history::is_wanted(&query)? {
        return history::get(&data, &name, &key).await;
    }
    let snapshot = data.store.snapshot();
    let (_, bucket) = find(&snapshot, &name)?;
    match query.lookup.as_deref() {
        None => {}
        Some("" | "true") => {
            return lookup(&snapshot, bucket, &key, &caller);
        }
        Some(other) => {
            let detail = format!("query: lookup {other:?}: expected lookup or lookup=true");
            return Err(Problem::bad_request("query", detail));
        }
    }
    let entry = bucket.get(&key).ok_or_else(|| no_key(&name, &key))?;
    let revision = entry.revision.to_string();
    let tag = [(header::ETAG, etag(&revision))];
    let known = Tags::from(&headers, header::IF_NONE_MATCH)?;
    if known.is_some_and(|tags| tags.holds_weakly(&revision)) {
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    let bytes = entry.value.to_bytes().into_owned();
    let media_type = if std::str::from_utf8(&bytes).is_ok() {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    };
    let kind = [(header::CONTENT_TYPE, media_type)];
    let mut response = (tag, kind, bytes).into_response();
    let expires = entry.deadline.and_then(expires_text);
    if let Some(expires) = expires.and_then(|text| text.parse().ok()) {
        response.headers_mut().insert(EXPIRES_AT, expires);
    }
    Ok(response)
}

/// What plugins find by a key, and the entry it is found by.
fn lookup(
    snapshot: &Snapshot,
    bucket: &Bucket,
    key: &str,
    caller: &Caller,
) -> Result<Response, Problem> {
    let found = bucket.lookup(key).ok_or_else(|| {
        let name = &bucket.config().name;
        let detail = format!("bucket {name:?}: nothing is found by {key:?}");
        Problem::not_found("no-such-key", detail)
    })?;
    caller.may_read(found.key)?;
    let answer = json!({
        "revision": snapshot.revision(),
        "asked": key,
        "kind": found.kind,
        "entry": entry_json(found.key, found.entry),
    });
    Ok(Json(answer).into_response())
}

/// A bucket by its name.
pub(super) fn find<'a>(
    snapshot: &'a Snapshot,
    name: &str,
) -> Result<(BucketId, &'a Bucket), Problem> {
    snapshot
        .bucket_id(name)
        .and_then(|id| Some((id, snapshot.bucket(id)?)))
        .ok_or_else(|| {
            let names: Vec<_> = snapshot
                .buckets()
                .map(|(_, bucket)| bucket.config().name.as_str())
                .collect();
            let known = if names.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            Problem::not_found("no-such-bucket", format!("no bucket {name:?}: {known}"))
        })
}

fn no_key(bucket: &str, key: &str) -> Problem {
    Problem::not_found("no-such-key", format!("bucket {bucket:?}: no key {key:?}"))
}

/// A refused batch as a response.
pub(super) fn commit_problem(error: CommitError) -> Problem {
    let detail = error.to_string();
    match error {
        CommitError::Invalid { bucket, key, .. } => {
            Problem::invalid("invalid-value", detail).about(bucket, key)
        }
        CommitError::Conflict { bucket, key, .. } => {
            Problem::precondition(detail).about(bucket, key)
        }
        CommitError::BucketConflict { .. }
        | CommitError::Changed { .. }
        | CommitError::Marked { .. } => Problem::precondition(detail),
        CommitError::Quota { .. } => {
            Problem::new(StatusCode::INSUFFICIENT_STORAGE, "quota", detail)
        }
        CommitError::NoSuchBucket => Problem::not_found("no-such-bucket", detail),
        CommitError::Mixed { .. } => Problem::invalid("several-backends", detail),
        CommitError::TooLarge { writes_max, .. } => {
            let code = "batch-too-large";
            let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail);
            Problem {
                writes_max,
                ..problem
            }
        }
        CommitError::Unknown(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unknown-outcome", detail)
        }
        CommitError::Unseen { .. } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unseen", detail)
        }
        CommitError::Lost { .. } => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "lost", detail),
        CommitError::Unavailable(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", detail)
        }
    }
}

/// A value in JSON: text, or an object when it is a typed record or not UTF-8.
pub(super) fn value_json(value: &Value) -> serde_json::Value {
    if let Value::Typed(record) = value {
        return record.json();
    }
    bytes_json(&value.to_bytes())
}

fn bytes_json(bytes: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

fn entry_json(key: &str, entry: &Entry) -> serde_json::Value {
    let mut json =
        json!({ "key": key, "value": value_json(&entry.value), "revision": entry.revision });
    if let Some(deadline) = entry.deadline {
        json["expires_at"] = expires_json(deadline);
    }
    json
}

/// When an entry ends, as text of RFC 3339.
pub(super) fn expires_json(deadline: Deadline) -> serde_json::Value {
    expires_text(deadline).map_or(serde_json::Value::Null, Into::into)
}

/// None for a time that has no such text, thousands of years away.
pub(super) fn expires_text(deadline: Deadline) -> Option<String> {
    let time = Timestamp::from_millisecond(deadline.millis().try_into().ok()?).ok()?;
    Some(format!("{time:.3}"))
}

fn bucket_and_entry<'s>(snapshot: &'s Snapshot, id: BucketId, key: &str) -> Option<&'s Entry> {
    snapshot.bucket(id)?.get(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ValueKind;

    #[test]
    fn values_are_text_or_base64() {
        let bytes = |bytes: &[u8]| value_json(&Value::Bytes(bytes.into()));
        assert_eq!(bytes(b"a"), json!("a"));
        assert_eq!(bytes(&[0xff, 0]), json!({ "base64": "/wA=" }));
        let endpoint = Value::parse(ValueKind::Endpoint, b"127.0.0.2:80").unwrap();
        assert_eq!(value_json(&endpoint), json!("127.0.0.2:80"));
        let record = json!({ "addresses": ["127.0.0.2:80"], "tags": ["a"] });
        let typed = Value::parse(ValueKind::Endpoint, record.to_string().as_bytes()).unwrap();
        assert_eq!(value_json(&typed), record);
    }

    #[test]
    fn refused_batches_have_the_status_of_their_cause() {
        let (bucket, key, reason) = (String::from("b"), String::from("k"), String::from("r"));
        let invalid = commit_problem(CommitError::Invalid {
            bucket: bucket.clone(),
            key: key.clone(),
            reason: reason.clone(),
        });
        assert_eq!(invalid.status, 422);
        assert_eq!(invalid.detail, "bucket \"b\", key \"k\": r");
        let status = |error| commit_problem(error).status.as_u16();
        let conflict = CommitError::Conflict {
            bucket: bucket.clone(),
            key,
            found: None,
        };
        assert_eq!(status(conflict), 412);
        assert_eq!(status(CommitError::Quota { bucket, reason }), 507);
        assert_eq!(status(CommitError::NoSuchBucket), 404);
        assert_eq!(status(CommitError::Unavailable("closed".into())), 503);
    }
}
