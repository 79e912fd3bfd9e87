//! `POST /v1/kv/{bucket}/undo`: makes a key, or all that one revision changed, what was before, by a write like any other.

use super::Order;
use crate::admin::input::{parse_json, read_body};
use crate::admin::kv::{Required, undo_problem};
use crate::admin::operation::Told;
use crate::admin::problem::Problem;
use crate::store::{Expect, Revision, Write, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::response::Response;
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
    required: Required,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if order.query.replace {
        return Err(super::bad_query("replace makes no sense for an undo"));
    }
    let body = read_body(headers, body, BODY_BYTES_MAX).await?;
    let (batch, left_out, of_bucket) = plan(&order, required, &body).await?;
    let (done, mut answer) = order.commit(batch, of_bucket, false).await?;
    if let Some(left_out) = left_out {
        answer["left_out"] = left_out.into();
    }
    Ok(Told::with(done, order.query.dry_run, Json(answer)))
}

/// What is to be written, how many keys are left as they are, if some may be, and what is required of the bucket.
async fn plan(
    order: &Order,
    required: Required,
    body: &[u8],
) -> Result<(WriteBatch, Option<usize>, Option<Required>), Problem> {
    match parse_json(body)? {
        Sent {
            key: Some(key),
            to,
            revision: None,
            skip_changed: false,
        } => Ok((of_key(order, &required, &key, to).await?, None, None)),
        Sent {
            key: None,
            to: None,
            revision: Some(revision),
            skip_changed,
        } => {
            let (revision, prefix) = (Revision(revision), order.caller.prefix());
            let undone = order
                .store
                .undo_revision(order.bucket, revision, skip_changed, prefix);
            let (batch, left_out) = undone.await.map_err(undo_problem)?;
            Ok((batch, skip_changed.then_some(left_out), Some(required)))
        }
        _ => Err(Problem::invalid(
            "invalid-body",
            "body: expected key, and to if need be; or revision, and skip_changed if need be",
        )),
    }
}

async fn of_key(
    order: &Order,
    required: &Required,
    key: &str,
    to: Option<u64>,
) -> Result<WriteBatch, Problem> {
    // What happened to the keys of others is not told.
    order.permit(&WriteBatch {
        writes: vec![Write::delete(order.bucket, key)],
        ..WriteBatch::default()
    })?;
    let batch = order
        .store
        .undo_key(order.bucket, key, to.map(Revision))
        .await
        .map_err(undo_problem)?;
    // What the caller requires has to be so of what is undone, which is what the batch requires.
    let found = batch.writes.first().and_then(|write| match write.expect {
        Expect::At(revision) => Some(revision),
        Expect::Any | Expect::Absent | Expect::Present => None,
    });
    if required.holds(found) {
        return Ok(batch);
    }
    Err(Problem::precondition(match found {
        Some(revision) => format!("key {key:?}: it is at revision {revision}"),
        None => format!("key {key:?}: it is absent"),
    }))
}
