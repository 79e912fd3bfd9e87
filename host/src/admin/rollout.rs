//! `/v1/plugins/{name}/…`: activate, forget, canary, shadow.

use super::State as AdminState;
use super::input::{Actor, DryRun, Path, Query, media_type, parse_json, read_body};
use super::operation::{Done, Told};
use super::plugins::{Change, deploy_problem, find};
use super::problem::Problem;
use crate::plugin::{Fraction, Order, Role, Share, StickyField, Wanted};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;

/// Largest body that is no component.
const BODY_BYTES_MAX: usize = 4096;

/// The routes.
pub(super) fn routes() -> Router<AdminState> {
    let canary = get(canary).put(put_canary).delete(abort);
    let shadow = get(shadow).put(put_shadow).delete(end_shadow);
    Router::new()
        .route("/v1/plugins/{name}/activate", post(activate))
        .route("/v1/plugins/{name}/versions/{version}", delete(forget))
        .route("/v1/plugins/{name}/canary", canary)
        .route("/v1/plugins/{name}/canary/promote", post(promote))
        .route("/v1/plugins/{name}/shadow", shadow)
}

/// The query of a change that something may speak against.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Forced {
    #[serde(default)]
    pub(super) dry_run: bool,
    #[serde(default)]
    force: bool,
}

impl Forced {
    /// Of a change that nothing speaks against.
    fn unforced(dry_run: bool) -> Self {
        Self {
            dry_run,
            force: false,
        }
    }

    pub(super) fn order(self, actor: &Actor) -> Order<'_> {
        Order {
            by: &actor.0,
            dry_run: self.dry_run,
            force: self.force,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedVersion {
    version: String,
}

/// `POST /v1/plugins/{name}/activate`
async fn activate(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(forced): Query<Forced>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
    let WantedVersion { version } = parse_json(&body)?;
    let change = Change::new(&state, &name, &headers, forced.dry_run);
    let _turn = change.begin()?;
    let (wanted, order) = (Wanted::Version(version), forced.order(&actor));
    let done = state
        .plugins
        .bring(&name, wanted, Role::Active, order)
        .await;
    change.end(done)
}

/// `DELETE /v1/plugins/{name}/versions/{version}`
async fn forget(
    State(state): State<AdminState>,
    Path((name, version)): Path<(String, String)>,
    Query(forced): Query<Forced>,
    actor: Actor,
) -> Result<Response, Problem> {
    find(&state, &name)?;
    let done = state
        .plugins
        .forget(&name, &version, forced.order(&actor))
        .await;
    let digest = done.map_err(|error| deploy_problem(&error))?;
    let outcome = if forced.dry_run {
        "checked"
    } else {
        "forgotten"
    };
    let answer = json!({ "plugin": name, "digest": digest, "outcome": outcome });
    let done = Done::new(outcome).of_plugin(&name, None);
    let done = done.with_digest(&digest.to_string());
    Ok(Told::with(done, forced.dry_run, Json(answer)))
}

/// `GET /v1/plugins/{name}/canary`
async fn canary(
    State(state): State<AdminState>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let plugin = find(&state, &name)?;
    let canary = plugin
        .canary
        .ok_or_else(|| Problem::not_found("no-canary", format!("plugin {name:?} has no canary")))?;
    Ok(Json(canary).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CanaryBody {
    /// Without one, the canary that is on.
    version: Option<String>,
    percent: Option<f64>,
    by: Option<String>,
}

/// `PUT /v1/plugins/{name}/canary`
async fn put_canary(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(forced): Query<Forced>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
    let body: CanaryBody = parse_json(&body)?;
    let change = Change::new(&state, &name, &headers, forced.dry_run);
    let _turn = change.begin()?;
    let now = find(&state, &name)?.canary;
    let is_on = match (&now, &body.version) {
        (Some(now), Some(version)) => {
            !version.is_empty() && now.version.starts_with(&version.to_ascii_lowercase())
        }
        (Some(_), None) => true,
        (None, _) => false,
    };
    let now = now.filter(|_| is_on);
    let percent = body.percent.or(now.as_ref().map(|now| now.percent));
    let by = body.by.or(now.map(|now| now.by));
    let share = share(percent, by.as_deref())?;
    let order = forced.order(&actor);
    let done = match body.version {
        _ if is_on => state.plugins.set_share(&name, share, order).await,
        Some(version) => {
            let wanted = Wanted::Version(version);
            state
                .plugins
                .bring(&name, wanted, Role::Canary(share), order)
                .await
        }
        None => {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "conflict",
                format!("plugin {name:?} has no canary: give its version"),
            ));
        }
    };
    change.end(done)
}

/// A share from its two parts.
pub(super) fn share(percent: Option<f64>, by: Option<&str>) -> Result<Share, Problem> {
    let invalid = |detail: String| Problem::invalid("invalid-share", detail);
    let percent =
        percent.ok_or_else(|| invalid("percent: expected a number from 0 to 100".into()))?;
    let by = by.ok_or_else(|| invalid("by: expected a field such as header:x-id".into()))?;
    Ok(Share {
        fraction: Fraction::percent(percent).map_err(invalid)?,
        field: by.parse::<StickyField>().map_err(invalid)?,
    })
}

/// `POST /v1/plugins/{name}/canary/promote`
async fn promote(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(forced): Query<Forced>,
    actor: Actor,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let change = Change::new(&state, &name, &headers, forced.dry_run);
    let _turn = change.begin()?;
    let order = forced.order(&actor);
    let done = state.plugins.promote(&name, order).await;
    change.end(done)
}

/// `DELETE /v1/plugins/{name}/canary`
async fn abort(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(DryRun { dry_run }): Query<DryRun>,
    actor: Actor,
) -> Result<Response, Problem> {
    find(&state, &name)?;
    let order = Forced::unforced(dry_run).order(&actor);
    let done = state.plugins.abort(&name, order).await;
    done.map_err(|error| deploy_problem(&error))?;
    let done = Done::new("aborted").of_plugin(&name, None);
    Ok(Told::with(done, dry_run, StatusCode::NO_CONTENT))
}

/// `GET /v1/plugins/{name}/shadow`
async fn shadow(
    State(state): State<AdminState>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    find(&state, &name)?;
    let report = state.plugins.shadow_report(&name);
    let report = report.map_err(|error| Problem::not_found("no-shadow", error.to_string()))?;
    Ok(Json(report).into_response())
}

/// The query of a shadow whose body is its component.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShadowQuery {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    force: bool,
    sample: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShadowBody {
    version: String,
    sample: Option<f64>,
}

/// `PUT /v1/plugins/{name}/shadow`
async fn put_shadow(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(query): Query<ShadowQuery>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    find(&state, &name)?;
    let is_json = media_type(&headers).as_deref() == Some("application/json");
    let (wanted, sample) = if is_json {
        let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
        let body: ShadowBody = parse_json(&body)?;
        (Wanted::Version(body.version), body.sample.or(query.sample))
    } else {
        super::plugins::check_media_type(&headers)?;
        let bytes_max = state.config.component_bytes_max;
        let component = read_body(&headers, body, bytes_max).await;
        let component =
            component.map_err(|problem| super::plugins::too_large(problem, bytes_max))?;
        (Wanted::Component(component), query.sample)
    };
    let sample = sample.unwrap_or(1.0);
    let sample = Fraction::new(sample).ok_or_else(|| {
        let detail = format!("sample {sample}: expected a number from 0 to 1");
        Problem::invalid("invalid-sample", detail)
    })?;
    let change = Change::new(&state, &name, &headers, query.dry_run);
    let _turn = change.begin()?;
    let forced = Forced {
        dry_run: query.dry_run,
        force: query.force,
    };
    let role = Role::Shadow(sample);
    let done = state
        .plugins
        .bring(&name, wanted, role, forced.order(&actor))
        .await;
    change.end(done)
}

/// `DELETE /v1/plugins/{name}/shadow`
async fn end_shadow(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(DryRun { dry_run }): Query<DryRun>,
    actor: Actor,
) -> Result<Response, Problem> {
    find(&state, &name)?;
    let order = Forced::unforced(dry_run).order(&actor);
    let done = state.plugins.end_shadow(&name, order).await;
    done.map_err(|error| deploy_problem(&error))?;
    let done = Done::new("ended").of_plugin(&name, None);
    Ok(Told::with(done, dry_run, StatusCode::NO_CONTENT))
}
