//! Writes of a single key: `PUT`, `PATCH` and `DELETE /v1/kv/{bucket}/{key}`.

use super::condition::Required;
use super::{bucket_and_entry, commit_problem, expires_json, find, no_key};
use crate::admin::Data;
use crate::admin::input::{Actor, DryRun, Path, Query, Ttl, etag, nullable, parse_json, read_body};
use crate::admin::operation::{Done, Told};
use crate::admin::problem::Problem;
use crate::store::bucket::VALUE_BYTES_MAX;
use crate::store::{Action, BucketId, CommitError, Committed, Expect, Write, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
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
    bucket: &'a str,
    key: &'a str,
    write: Write,
    required: Required,
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
    let (id, required) = required(&data, &name, &headers)?;
    let value = read_body(&headers, body, VALUE_BYTES_MAX).await?;
    let action = Action::Put {
        value: value.to_vec().into(),
        ttl: query.ttl.map(Duration::from),
    };
    let order = Order {
        bucket: &name,
        key: &key,
        write: Write::new(id, key.as_str(), action),
        required,
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
    let (id, required) = required(&data, &name, &headers)?;
    let body = read_body(&headers, body, PATCH_BYTES_MAX).await?;
    let action = parse_json::<Patch>(&body)?.action()?;
    if required.expect == Expect::Absent && matches!(action, Action::Touch { .. }) {
        return Err(Problem::bad_request(
            "entity-tag",
            "if-none-match: * makes no sense for a ttl alone",
        ));
    }
    let order = Order {
        bucket: &name,
        key: &key,
        write: Write::new(id, key.as_str(), action),
        required,
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
    let (id, required) = required(&data, &name, &headers)?;
    if required.expect == Expect::Absent {
        return Err(Problem::bad_request(
            "entity-tag",
            "if-none-match: * makes no sense for a delete",
        ));
    }
    let order = Order {
        bucket: &name,
        key: &key,
        write: Write::delete(id, key.as_str()),
        required,
        dry_run,
    };
    let committed = commit(&data, &order, &actor).await?;
    let done = Done::written(outcome(&committed), &committed);
    Ok(Told::with(done, dry_run, StatusCode::NO_CONTENT))
}

/// The bucket, and what the fields of the request require of the entry.
fn required(data: &Data, name: &str, headers: &HeaderMap) -> Result<(BucketId, Required), Problem> {
    let (id, _) = find(&data.store.snapshot(), name)?;
    Ok((id, Required::of(headers)?))
}

async fn commit(data: &Data, order: &Order<'_>, actor: &Actor) -> Result<Committed, Problem> {
    // Whoever requires nothing is told that there is no such key, others that it is not as they require.
    let is_free = order.required.is_nothing();
    let needs_entry =
        is_free && matches!(order.write.action, Action::Delete | Action::Touch { .. });
    let batch = WriteBatch {
        writes: vec![order.write.clone()],
        dry_run: order.dry_run,
        by: Some(actor.0.as_str().into()),
        ..WriteBatch::default()
    };
    let required = order.required.clone();
    let committed = required.commit(&data.store, batch, |batch, expect| {
        for write in &mut batch.writes {
            write.expect = match expect {
                Expect::Any if needs_entry => Expect::Present,
                other => other,
            };
        }
    });
    committed.await.map_err(|error| match error {
        CommitError::Conflict { found: None, .. } if needs_entry => no_key(order.bucket, order.key),
        other => commit_problem(other),
    })
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
        return Told::Nothing.within(Json(body));
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
    let tag = [(header::ETAG, etag(revision))];
    Told::Done(Done::written(outcome, committed)).within((status, tag, Json(body)))
}
