//! `/v1/fleet`: the nodes and what they agreed on; forgetting what none of them has.

use super::State as AdminState;
use super::input::{DryRun, Path, Query};
use super::kv::commit_problem;
use super::operation::{Done, Told};
use super::problem::Problem;
use crate::fleet::{Fleet, ForgetError};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

/// `GET /v1/fleet`
pub(super) async fn get(State(state): State<AdminState>) -> Result<Response, Problem> {
    Ok(Json(find(&state)?.document()).into_response())
}

/// `DELETE /v1/fleet/plugins/{name}`
pub(super) async fn forget(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(DryRun { dry_run }): Query<DryRun>,
) -> Result<Response, Problem> {
    let forgotten = find(&state)?.forget(&name, dry_run).await;
    forgotten.map_err(forget_problem)?;
    let outcome = if dry_run { "checked" } else { "forgotten" };
    let answer = json!({ "plugin": name, "outcome": outcome });
    let done = Done::new(outcome).of_plugin(&name, None);
    Ok(Told::with(done, dry_run, Json(answer)))
}

fn find(state: &AdminState) -> Result<&Fleet, Problem> {
    state.fleet.as_deref().ok_or_else(|| {
        Problem::not_found(
            "no-fleet",
            "this proxy is no node of a fleet: its config has no [fleet]",
        )
    })
}

fn forget_problem(error: ForgetError) -> Problem {
    let detail = error.to_string();
    match error {
        ForgetError::Unknown(_) => Problem::not_found("no-such-plugin", detail),
        ForgetError::InUse { .. } => Problem::new(StatusCode::CONFLICT, "in-use", detail),
        ForgetError::Changed(_) => Problem::new(StatusCode::CONFLICT, "fleet-disagrees", detail),
        ForgetError::Refused(error) => commit_problem(error),
    }
}
