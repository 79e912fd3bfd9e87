//! `POST /v1/batch`: writes to several buckets, and the activation of a version, in one step.

use super::State as AdminState;
use super::attempt::Told;
use super::input::{Actor, DryRun, Query, parse_json, read_body};
use super::kv::find;
use super::plugins::{Change, deploy_problem};
use super::problem::Problem;
use super::transfer::{BatchBody, Content, commit, committed_json, done, offload};
use crate::plugin::{DeployError, Order, Wanted};
use crate::store::{BucketId, Snapshot, WriteBatch};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What is to be done, all or none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    /// By the name of the bucket.
    #[serde(default)]
    writes: BTreeMap<String, BatchBody>,
    activate: Option<Activate>,
}

/// Which version takes over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Activate {
    plugin: String,
    /// The beginning of the digest of one that is kept.
    version: Option<String>,
    /// A new one, as `{"base64": "…"}`.
    component: Option<Content>,
    #[serde(default)]
    force: bool,
}

/// `POST /v1/batch`
pub(super) async fn post(
    State(state): State<AdminState>,
    Query(DryRun { dry_run }): Query<DryRun>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, state.config.body_bytes_max).await?;
    let snapshot = state.store.snapshot();
    let (mut batch, activate) = offload(move || parse(&body, &snapshot)).await??;
    let Some(activate) = activate else {
        batch.dry_run = dry_run;
        let committed = commit(&state.store, batch, &actor, None).await?;
        let answer = Json(committed_json(&committed, dry_run));
        return Ok(Told::with(done(&committed), dry_run, answer));
    };
    let wanted = match (activate.version, activate.component) {
        (Some(version), None) => Wanted::Version(version),
        (None, Some(component)) if component.0.len() <= state.config.component_bytes_max => {
            Wanted::Component(component.0.into_vec().into())
        }
        (None, Some(_)) => {
            let error = DeployError::TooLarge(state.config.component_bytes_max);
            return Err(deploy_problem(&error));
        }
        _ => {
            let detail = "activate: expected either version or component";
            return Err(Problem::invalid("invalid-body", detail));
        }
    };
    batch.by = Some(actor.0.as_str().into());
    let change = Change::new(&state, &activate.plugin, &headers, dry_run);
    let _turn = change.begin()?;
    let order = Order {
        by: &actor.0,
        dry_run,
        force: activate.force,
    };
    let deployed = state
        .plugins
        .activate_with(&activate.plugin, wanted, order, batch)
        .await;
    change.end(deployed)
}

/// Checks a batch for several buckets, as far as that can be done without these.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub(crate) fn check_batch(text: &str) -> Result<(), String> {
    let sent: Sent = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for (name, writes) in sent.writes {
        let batch = writes.into_batch(BucketId(0));
        batch.map_err(|problem| format!("bucket {name:?}: {}", problem.detail))?;
    }
    Ok(())
}

/// Checks the form of writes by the names of their buckets, as a request would have them.
///
/// # Errors
/// What is wrong, and in which bucket.
pub(crate) fn check_writes(writes: &serde_json::Value) -> Result<(), String> {
    let Some(buckets) = writes.as_object() else {
        return Err("expected an object of buckets, each with set, delete or writes".to_owned());
    };
    for (bucket, writes) in buckets {
        if let Err(error) = BatchBody::deserialize(writes) {
            let error = error.to_string().replace('`', "\"");
            return Err(format!("bucket {bucket:?}: {error}"));
        }
    }
    Ok(())
}

fn parse(body: &[u8], snapshot: &Snapshot) -> Result<(WriteBatch, Option<Activate>), Problem> {
    let sent: Sent = parse_json(body)?;
    let mut all = WriteBatch::default();
    for (name, writes) in sent.writes {
        let (bucket, _) = find(snapshot, &name)?;
        let batch = writes.into_batch(bucket).map_err(|mut problem| {
            problem.detail = format!("bucket {name:?}: {}", problem.detail);
            problem
        })?;
        all.writes.extend(batch.writes);
        all.replace.extend(batch.replace);
    }
    if all.writes.is_empty() && all.replace.is_empty() && sent.activate.is_none() {
        let detail = "nothing to do: expected writes, activate or both";
        return Err(Problem::invalid("invalid-body", detail));
    }
    Ok((all, sent.activate))
}
