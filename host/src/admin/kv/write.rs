//! Writes of a single key: `PUT`, `PATCH` and `DELETE /v1/kv/{bucket}/{key}`.

use super::{bucket_and_entry, commit_problem, condition, expires_json, find, no_key};
use crate::admin::Data;
use crate::admin::input::{
    Actor, DryRun, Path, Query, Ttl, audit, etag, nullable, parse_json, read_body,
};
use crate::admin::problem::Problem;
use crate::store::bucket::VALUE_BYTES_MAX;
use crate::store::{Action, BucketId, CommitError, Committed, Expect, Write, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde_json::json;
use std::time::Duration;

/// Longest body of a `PATCH`.
const PATCH_BYTES_MAX: usize = 4096;

/// The query of a `PUT`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct PutQuery {
    #[serde(default)]
    dry_run: bool,
    ttl: Option<Ttl>,
}

/// The body of a `PATCH`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    increment: Option<i64>,
    /// Null: until it is deleted.
    #[serde(default, deserialize_with = "nullable")]
    ttl: Option<Option<Ttl>>,
}

impl Patch {
    fn action(self) -> Result<Action, Problem> {
        let ttl = self.ttl.map(|ttl| ttl.map(Duration::from));
        match (self.increment, ttl) {
            (Some(by), ttl) => Ok(Action::Increment {
                by,
                ttl: ttl.flatten(),
            }),
            (None, Some(ttl)) => Ok(Action::Touch { ttl }),
            (None, None) => Err(Problem::invalid(
                "invalid-body",
                "body: nothing to do: expected increment, or ttl, or both",
            )),
        }
    }
}

/// One write as it was asked for.
struct Order<'a> {
    method: &'static str,
    bucket: &'a str,
    key: &'a str,
    write: Write,
    dry_run: bool,
}

/// `PUT /v1/kv/{bucket}/{key}`
pub(in crate::admin) async fn put(
    State(data): State<Data>,
    Path((name, key)): Path<(String, String)>,
    Query(query): Query<PutQuery>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let asked = ("PUT", &*name, &*key);
    let (id, expect) = required(&data, asked, &headers, &actor)?;
    let value = read_body(&headers, body, VALUE_BYTES_MAX).await?;
    let action = Action::Put {
        value: value.to_vec().into(),
        ttl: query.ttl.map(Duration::from),
    };
    let order = Order {
        method: "PUT",
        bucket: &name,
        key: &key,
        write: Write::new(id, key.as_str(), action).expecting(expect),
        dry_run: query.dry_run,
    };
    let committed = commit(&data, &order, &actor).await?;
    Ok(answer(&data, &order, &committed))
}

/// `PATCH /v1/kv/{bucket}/{key}`
pub(in crate::admin) async fn patch(
    State(data): State<Data>,
    Path((name, key)): Path<(String, String)>,
    Query(DryRun { dry_run }): Query<DryRun>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let asked = ("PATCH", &*name, &*key);
    let (id, expect) = required(&data, asked, &headers, &actor)?;
    let body = read_body(&headers, body, PATCH_BYTES_MAX).await?;
    let action = parse_json::<Patch>(&body)?.action()?;
    if expect == Expect::Absent && matches!(action, Action::Touch { .. }) {
        return Err(Problem::bad_request(
            "entity-tag",
            "if-none-match: * makes no sense for a ttl alone",
        ));
    }
    let order = Order {
        method: "PATCH",
        bucket: &name,
        key: &key,
        write: Write::new(id, key.as_str(), action).expecting(expect),
        dry_run,
    };
    let committed = commit(&data, &order, &actor).await?;
    Ok(answer(&data, &order, &committed))
}

/// `DELETE /v1/kv/{bucket}/{key}`
pub(in crate::admin) async fn delete(
    State(data): State<Data>,
    Path((name, key)): Path<(String, String)>,
    Query(DryRun { dry_run }): Query<DryRun>,
    actor: Actor,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = ("DELETE", &*name, &*key);
    let (id, expect) = required(&data, asked, &headers, &actor)?;
    let expect = match expect {
        Expect::Any => Expect::Present,
        Expect::Absent => {
            return Err(Problem::bad_request(
                "entity-tag",
                "if-none-match: * makes no sense for a delete",
            ));
        }
        other => other,
    };
    let order = Order {
        method: "DELETE",
        bucket: &name,
        key: &key,
        write: Write::delete(id, key.as_str()).expecting(expect),
        dry_run,
    };
    commit(&data, &order, &actor).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The bucket, and what the fields of the request require of the entry. What they refuse is an attempt, too.
fn required(
    data: &Data,
    (method, name, key): (&str, &str, &str),
    headers: &HeaderMap,
    actor: &Actor,
) -> Result<(BucketId, Expect), Problem> {
    let snapshot = data.store.snapshot();
    let (id, bucket) = find(&snapshot, name)?;
    let current = bucket.get(key).map(|entry| entry.revision);
    let expect = condition(headers, &format!("key {key:?}"), current, bucket);
    let expect = expect.inspect_err(|problem| {
        let path = format!("/v1/kv/{name}/{key}");
        audit(actor, method, &path, problem.code, None);
    })?;
    Ok((id, expect))
}

/// Commits and writes the audit line.
async fn commit(data: &Data, order: &Order<'_>, actor: &Actor) -> Result<Committed, Problem> {
    let path = format!("/v1/kv/{}/{}", order.bucket, order.key);
    let needs_entry = order.write.expect == Expect::Present
        || order.write.expect == Expect::Any && matches!(order.write.action, Action::Touch { .. });
    let batch = WriteBatch {
        writes: vec![order.write.clone()],
        dry_run: order.dry_run,
        by: Some(actor.0.as_str().into()),
        ..WriteBatch::default()
    };
    let committed = data
        .store
        .commit(batch)
        .await
        .map_err(|error| match error {
            CommitError::Conflict { found: None, .. } if needs_entry => {
                no_key(order.bucket, order.key)
            }
            other => commit_problem(other),
        })
        .inspect_err(|problem| audit(actor, order.method, &path, problem.code, None))?;
    if !order.dry_run {
        let revision = Some(committed.revision.0);
        audit(actor, order.method, &path, outcome(&committed), revision);
    }
    Ok(committed)
}

fn outcome(committed: &Committed) -> &'static str {
    let Committed {
        created,
        updated,
        touched,
        deleted,
        ..
    } = *committed;
    match (created, updated, touched, deleted) {
        (1.., ..) => "created",
        (_, 1.., ..) => "changed",
        (_, _, 1.., _) => "touched",
        (_, _, _, 1..) => "deleted",
        _ => "unchanged",
    }
}

/// What was done, with the entry's revision: one that only the deadline changed of, or nothing, keeps it.
fn answer(data: &Data, order: &Order<'_>, committed: &Committed) -> Response {
    let outcome = outcome(committed);
    let revision = committed.entry.unwrap_or(committed.revision);
    let mut body = json!({ "revision": revision, "outcome": outcome });
    if let Some(number) = committed.number {
        body["value"] = number.into();
    }
    if order.dry_run {
        body["dry_run"] = true.into();
        return Json(body).into_response();
    }
    let snapshot = data.store.snapshot();
    let entry = bucket_and_entry(&snapshot, order.write.bucket, order.key);
    // Unless somebody has written it once more.
    let entry = entry.filter(|entry| entry.revision == revision);
    if let Some(deadline) = entry.and_then(|entry| entry.deadline) {
        body["expires_at"] = expires_json(deadline);
    }
    let status = match outcome {
        "created" => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    (status, [(header::ETAG, etag(revision))], Json(body)).into_response()
}
