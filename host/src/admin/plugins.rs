//! `/v1/plugins`: list, upload, roll back.

use super::State as AdminState;
use super::input::{Actor, Path, Query, Tags, etag, media_type, read_body};
use super::kv::commit_problem;
use super::operation::{Done, Told};
use super::problem::Problem;
use super::rollout::{Forced, share};
use crate::plugin::{DeployError, Deployed, Order, Outcome, PluginInfo, Role, Wanted};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// `GET /v1/plugins`
pub(super) async fn list(State(state): State<AdminState>) -> Response {
    let plugins: Vec<Value> = state.plugins.list().iter().map(document).collect();
    Json(json!({ "plugins": plugins })).into_response()
}

/// `GET /v1/plugins/{name}`
pub(super) async fn get(
    State(state): State<AdminState>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let plugin = find(&state, &name)?;
    let tag = plugin.active.as_deref().map(etag);
    let response = Json(document(&plugin)).into_response();
    Ok(match tag {
        Some(tag) => ([(header::ETAG, tag)], response).into_response(),
        None => response,
    })
}

/// The query of a push.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Push {
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    force: bool,
    /// As a canary with this share of the requests, in percent.
    canary: Option<f64>,
    /// The field that decides which requests.
    by: Option<String>,
}

impl Push {
    fn role(&self) -> Result<Role, Problem> {
        match (self.canary, &self.by) {
            (None, None) => Ok(Role::Active),
            (percent, by) => Ok(Role::Canary(share(percent, by.as_deref())?)),
        }
    }
}

/// `PUT /v1/plugins/{name}`
pub(super) async fn put(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(push): Query<Push>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    check_condition(&headers, &find(&state, &name)?)?;
    check_media_type(&headers)?;
    let role = push.role()?;
    let bytes_max = state.config.component_bytes_max;
    let component = read_body(&headers, body, bytes_max).await;
    let component = component.map_err(|problem| too_large(problem, bytes_max))?;
    let change = Change::new(&state, &name, &headers, push.dry_run);
    let _turn = change.begin()?;
    let order = Order {
        by: &actor.0,
        dry_run: push.dry_run,
        force: push.force,
    };
    let wanted = Wanted::Component(component);
    let deployed = state.plugins.bring(&name, wanted, role, order).await;
    change.end(deployed)
}

/// `POST /v1/plugins/{name}/rollback`
pub(super) async fn rollback(
    State(state): State<AdminState>,
    Path(name): Path<String>,
    Query(forced): Query<Forced>,
    actor: Actor,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let change = Change::new(&state, &name, &headers, forced.dry_run);
    let _turn = change.begin()?;
    let order = forced.order(&actor);
    let wanted = Wanted::Previous;
    let deployed = state
        .plugins
        .bring(&name, wanted, Role::Active, order)
        .await;
    change.end(deployed)
}

/// Plugins with a deploy between the check of its conditions and its end.
#[derive(Debug, Default)]
pub(super) struct Deploying(Mutex<HashSet<String>>);

/// The right to deploy one plugin.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    deploying: &'a Deploying,
    name: &'a str,
}

impl Deploying {
    /// None while another has it.
    fn take<'a>(&'a self, name: &'a str) -> Option<Turn<'a>> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Lazily: dropping a turn gives it back, that of another as well.
        names.insert(name.to_owned()).then(|| Turn {
            deploying: self,
            name,
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let names = &self.deploying.0;
        names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.name);
    }
}

/// A deploy, a rollback, or another change of what a version is.
pub(super) struct Change<'a> {
    state: &'a AdminState,
    name: &'a str,
    headers: &'a HeaderMap,
    dry_run: bool,
}

impl<'a> Change<'a> {
    pub(super) fn new(
        state: &'a AdminState,
        name: &'a str,
        headers: &'a HeaderMap,
        dry_run: bool,
    ) -> Self {
        Self {
            state,
            name,
            headers,
            dry_run,
        }
    }

    /// Checks conditions such that no other deploy can come between the check and the swap.
    pub(super) fn begin(&self) -> Result<Turn<'a>, Problem> {
        let plugin = find(self.state, self.name)?;
        let turn = self
            .state
            .own
            .deploying
            .take(self.name)
            .ok_or_else(|| deploy_problem(&DeployError::Busy(self.name.to_owned())))?;
        check_condition(self.headers, &plugin)?;
        Ok(turn)
    }

    pub(super) fn end(&self, result: Result<Deployed, DeployError>) -> Result<Response, Problem> {
        let swaps = &self.state.own.swaps;
        let deployed = match result {
            Ok(deployed) => deployed,
            Err(error) => {
                let problem = deploy_problem(&error);
                if !self.dry_run {
                    swaps.count(self.name, problem.code);
                }
                return Err(problem);
            }
        };
        let (status, outcome) = match deployed.outcome {
            Outcome::First => (StatusCode::CREATED, "first"),
            Outcome::Swapped => (StatusCode::OK, "swapped"),
            Outcome::Unchanged => (StatusCode::OK, "unchanged"),
            Outcome::Checked => (StatusCode::OK, "checked"),
            Outcome::Canary => (StatusCode::OK, "canary"),
            Outcome::Shadow => (StatusCode::OK, "shadow"),
        };
        if !self.dry_run {
            swaps.count(self.name, outcome);
        }
        let done = Done::new(outcome)
            .of_plugin(self.name, deployed.generation)
            .with_digest(&deployed.digest);
        let tag = [(header::ETAG, etag(&deployed.digest))];
        Ok(Told::with(
            done,
            self.dry_run,
            (status, tag, Json(deployed)),
        ))
    }
}

pub(super) fn find(state: &AdminState, name: &str) -> Result<PluginInfo, Problem> {
    state.plugins.get(name).ok_or_else(|| {
        let mut problem = deploy_problem(&DeployError::NoSuchPlugin(name.to_owned()));
        let names: Vec<_> = state.plugins.list().into_iter().map(|p| p.name).collect();
        problem.detail.push_str(&match names.is_empty() {
            true => ": there are none".to_owned(),
            false => format!(": there are {}", names.join(", ")),
        });
        problem
    })
}

/// A plugin as it is told, its times as text of RFC 3339.
fn document(plugin: &PluginInfo) -> Value {
    let mut document = json!(plugin);
    for (i, version) in plugin.versions.iter().enumerate() {
        let since = version.since.and_then(|at| Timestamp::try_from(at).ok());
        document["versions"][i]["since"] = since.map(|at| format!("{at:.3}")).into();
    }
    document
}

/// `If-Match` names the active version, `If-None-Match: *` wants that there is none.
fn check_condition(headers: &HeaderMap, plugin: &PluginInfo) -> Result<(), Problem> {
    let active = plugin.active.as_deref();
    let state = || {
        active.map_or("no version".to_owned(), |digest| {
            format!("version {digest}")
        })
    };
    let if_match = Tags::from(headers, header::IF_MATCH)?;
    if if_match.is_some_and(|tags| !tags.holds_strongly(active)) {
        return Err(Problem::precondition(format!(
            "if-match: plugin {:?} has {} active",
            plugin.name,
            state()
        )));
    }
    let if_none_match = Tags::from(headers, header::IF_NONE_MATCH)?;
    if let (Some(tags), Some(digest)) = (if_none_match, active)
        && tags.holds_weakly(digest)
    {
        return Err(Problem::precondition(format!(
            "if-none-match: plugin {:?} has {} active",
            plugin.name,
            state()
        )));
    }
    Ok(())
}

pub(super) fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers).as_deref() {
        None | Some("application/wasm" | "application/octet-stream") => Ok(()),
        Some(other) => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-type",
            format!("content-type {other:?}: expected application/wasm"),
        )),
    }
}

/// A body that is too large, told as the component that it is.
pub(super) fn too_large(problem: Problem, bytes_max: usize) -> Problem {
    match problem.status {
        StatusCode::PAYLOAD_TOO_LARGE => deploy_problem(&DeployError::TooLarge(bytes_max)),
        _ => problem,
    }
}

pub(super) fn deploy_problem(error: &DeployError) -> Problem {
    let (status, code) = match error {
        DeployError::NoSuchPlugin(_) => (StatusCode::NOT_FOUND, "no-such-plugin"),
        DeployError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
        DeployError::NotAComponent(_) => (StatusCode::UNPROCESSABLE_ENTITY, "not-a-component"),
        DeployError::World(_) => (StatusCode::UNPROCESSABLE_ENTITY, "world"),
        DeployError::Compile(_) => (StatusCode::UNPROCESSABLE_ENTITY, "compile"),
        DeployError::NoCompiler(_) => (StatusCode::SERVICE_UNAVAILABLE, "no-compiler"),
        DeployError::Init(_) => (StatusCode::UNPROCESSABLE_ENTITY, "init"),
        DeployError::NothingToRollBack(_) => (StatusCode::CONFLICT, "nothing-to-roll-back"),
        DeployError::Busy(_) => (StatusCode::CONFLICT, "busy"),
        DeployError::Failing { .. } => (StatusCode::CONFLICT, "failing"),
        DeployError::NoSuchVersion(_) => (StatusCode::NOT_FOUND, "no-such-version"),
        DeployError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
        DeployError::Draining(_) => (StatusCode::CONFLICT, "draining"),
        DeployError::Io(_) => (StatusCode::INSUFFICIENT_STORAGE, "io"),
        DeployError::Migrate(_) => (StatusCode::UNPROCESSABLE_ENTITY, "migrate"),
        DeployError::MigrateRace(_) => (StatusCode::CONFLICT, "migrate-race"),
        DeployError::Apart { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "several-backends"),
        DeployError::Warm(_) => (StatusCode::SERVICE_UNAVAILABLE, "warm"),
        DeployError::Disagreed(_) => (StatusCode::CONFLICT, "fleet-disagrees"),
        DeployError::Fleet(_) => (StatusCode::SERVICE_UNAVAILABLE, "fleet-unavailable"),
        DeployError::Late(_) => (StatusCode::SERVICE_UNAVAILABLE, "unseen"),
        DeployError::Agreed(_) => (StatusCode::SERVICE_UNAVAILABLE, "not-taken-here"),
        DeployError::Writes(error) => return commit_problem(error.clone()),
    };
    Problem::new(status, code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(active: Option<&str>) -> PluginInfo {
        PluginInfo {
            name: "p".into(),
            active: active.map(Into::into),
            generation: None,
            versions: Vec::new(),
            canary: None,
            shadow: None,
            failing: Vec::new(),
            guard_trips: Vec::new(),
            grants: Default::default(),
            totals: Default::default(),
        }
    }

    fn holds(name: &'static str, value: &str, active: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        check_condition(&headers, &plugin(active)).is_ok()
    }

    #[test]
    fn conditions_are_about_the_active_version() {
        assert!(holds("if-match", "\"aa\"", Some("aa")));
        assert!(!holds("if-match", "\"aa\"", Some("bb")));
        assert!(!holds("if-match", "*", None));
        assert!(holds("if-none-match", "*", None));
        assert!(!holds("if-none-match", "*", Some("aa")));
        assert!(check_condition(&HeaderMap::new(), &plugin(None)).is_ok());
    }

    #[test]
    fn times_are_told_as_text() {
        let mut plugin = plugin(None);
        plugin.versions.push(crate::plugin::VersionInfo {
            digest: "aa".into(),
            generation: None,
            canary: None,
            failing: None,
            bytes: None,
            state: crate::plugin::VersionState::Kept,
            since: Some(std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_500)),
            by: "test".into(),
            streams: 0,
            sessions: 0,
            calls: 0,
            errors: 0,
            errors_by_kind: Default::default(),
            decision_ns: 0,
            decision_p50_ns: 0,
            decision_p99_ns: 0,
            memory_bytes: 0,
            totals: Default::default(),
        });
        let since = &document(&plugin)["versions"][0]["since"];
        assert_eq!(since, "1970-01-01T00:00:01.500Z");
    }

    #[test]
    fn a_plugin_has_one_deploy_at_a_time() {
        let deploying = Deploying::default();
        let turn = deploying.take("a").unwrap();
        assert!(deploying.take("a").is_none());
        assert!(deploying.take("b").is_some());
        drop(turn);
        assert!(deploying.take("a").is_some());
    }

    #[test]
    fn only_component_media_types_are_taken() {
        let mut headers = HeaderMap::new();
        assert!(check_media_type(&headers).is_ok());
        headers.insert(header::CONTENT_TYPE, "application/wasm".parse().unwrap());
        assert!(check_media_type(&headers).is_ok());
        headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        assert_eq!(check_media_type(&headers).unwrap_err().status, 415);
    }
}
