//! `POST /v1/kv/{bucket}/undo`: makes a key, or all that one revision changed, what was before, by a write like any other.

use super::Order;
use crate::admin::input::{audit, parse_json, read_body};
use crate::admin::kv::{bucket_condition, condition, undo_problem};
use crate::admin::problem::Problem;
use crate::store::{Expect, Revision, UndoError, Write, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use serde::Deserialize;

/// Longest body.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What is to be undone: a key's last change, or what came after the revision `to`; or all that `revision` changed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    key: Option<String>,
    to: Option<u64>,
    revision: Option<u64>,
    /// Leaves keys as they are that were changed since.
    #[serde(default)]
    skip_changed: bool,
}

pub(super) async fn post(
    order: Order,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if order.query.replace {
        return Err(super::bad_query("replace makes no sense for an undo"));
    }
    let body = read_body(headers, body, BODY_BYTES_MAX).await?;
    let planned = plan(&order, headers, &body).await;
    let (batch, left_out) = planned
        .inspect_err(|problem| audit(&order.actor, "POST", &order.path, problem.code, None))?;
    let mut answer = order.commit(batch).await?;
    if let Some(left_out) = left_out {
        answer["left_out"] = left_out.into();
    }
    Ok(Json(answer).into_response())
}

/// What is to be written, and how many keys are left as they are, if some may be.
async fn plan(
    order: &Order,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(WriteBatch, Option<usize>), Problem> {
    match parse_json(body)? {
        Sent {
            key: Some(key),
            to,
            revision: None,
            skip_changed: false,
        } => Ok((of_key(order, headers, &key, to).await?, None)),
        Sent {
            key: None,
            to: None,
            revision: Some(revision),
            skip_changed,
        } => {
            let expect = {
                let snapshot = order.store.snapshot();
                let bucket = snapshot.bucket(order.bucket);
                bucket.map_or(Ok(Expect::Any), |bucket| bucket_condition(headers, bucket))?
            };
            let (revision, prefix) = (Revision(revision), order.caller.prefix());
            let undone = order
                .store
                .undo_revision(order.bucket, revision, skip_changed, prefix);
            let (mut batch, left_out) = undone.await.map_err(undo_problem)?;
            batch.expect = vec![(order.bucket, expect)];
            Ok((batch, skip_changed.then_some(left_out)))
        }
        _ => Err(Problem::invalid(
            "invalid-body",
            "body: expected key, and to if need be; or revision, and skip_changed if need be",
        )),
    }
}

async fn of_key(
    order: &Order,
    headers: &HeaderMap,
    key: &str,
    to: Option<u64>,
) -> Result<WriteBatch, Problem> {
    // What happened to the keys of others is not told.
    order.caller.may_commit(&WriteBatch {
        writes: vec![Write::delete(order.bucket, key)],
        ..WriteBatch::default()
    })?;
    let required = {
        let snapshot = order.store.snapshot();
        let bucket = snapshot.bucket(order.bucket);
        let bucket = bucket.ok_or_else(|| undo_problem(UndoError::NoSuchBucket))?;
        let current = bucket.get(key).map(|entry| entry.revision);
        condition(headers, &format!("key {key:?}"), current, bucket)?
    };
    let batch = order
        .store
        .undo_key(order.bucket, key, to.map(Revision))
        .await
        .map_err(undo_problem)?;
    // It was looked at twice: what the caller requires has to be so of what is undone.
    let found = batch.writes.first().map(|write| write.expect);
    let holds = match required {
        Expect::Any => true,
        Expect::Present => matches!(found, Some(Expect::At(_))),
        Expect::Absent | Expect::At(_) => found == Some(required),
    };
    if holds {
        return Ok(batch);
    }
    Err(Problem::precondition(format!(
        "key {key:?}: it was changed meanwhile"
    )))
}
