//! `/v1/config`: the running text, replacing it, checking another.

use super::State as AdminState;
use super::input::{DryRun, Query, Tags, etag, read_body};
use super::operation::{Done, Told};
use super::problem::Problem;
use crate::app::ApplyError;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde_json::json;

/// A config text.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// `GET /v1/config`
pub(super) async fn get(
    State(state): State<AdminState>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let running = state.control.running();
    let text = running.text.as_deref().ok_or_else(|| {
        Problem::not_found(
            "no-config-text",
            "the process was started from flags: there is no config text",
        )
    })?;
    let tag = [(header::ETAG, etag(&running.digest))];
    let known = Tags::from(&headers, header::IF_NONE_MATCH)?;
    if known.is_some_and(|tags| tags.holds_weakly(&running.digest)) {
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    Ok((tag, text.to_owned()).into_response())
}

/// `PUT /v1/config`
pub(super) async fn put(
    State(state): State<AdminState>,
    Query(DryRun { dry_run }): Query<DryRun>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let text = read_text(&headers, body).await?;
    let if_match = Tags::from(&headers, header::IF_MATCH)?;
    let _turn = state.own.configuring.lock().await;
    let running = state.control.running();
    if if_match.is_some_and(|tags| !tags.holds_strongly(Some(&running.digest))) {
        let detail = format!("if-match: the running config is {}", running.digest);
        return Err(Problem::precondition(detail));
    }
    let applied = state.control.apply(&text, dry_run).await;
    let applied = applied.map_err(apply_problem)?;
    let running = state.control.running();
    let digest = &*running.digest;
    let done = Done::new(applied.as_str()).with_digest(digest);
    let answer = Json(json!({ "outcome": applied, "digest": digest }));
    let tag = [(header::ETAG, etag(digest))];
    Ok(Told::with(done, dry_run, (tag, answer)))
}

/// `POST /v1/config/check`
pub(super) async fn check(
    State(state): State<AdminState>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let checked = async {
        let text = read_text(&headers, body).await?;
        let applied = state.control.apply(&text, true).await;
        let applied = applied.map_err(apply_problem)?;
        Ok::<_, Problem>(Json(json!({ "outcome": applied })))
    };
    Told::Nothing.within(checked.await)
}

async fn read_text(headers: &HeaderMap, body: Body) -> Result<String, Problem> {
    let bytes = read_body(headers, body, CONFIG_BYTES_MAX).await?;
    String::from_utf8(bytes.into()).map_err(|error| {
        Problem::invalid(
            "config-invalid",
            format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()),
        )
    })
}

fn apply_problem(error: ApplyError) -> Problem {
    let detail = error.to_string();
    match error {
        ApplyError::Invalid(problems) => {
            let errors = problems
                .iter()
                .map(|problem| {
                    json!({
                        "path": problem.path,
                        "message": problem.message,
                        "label": problem.label,
                        "help": problem.help,
                        "line": problem.line,
                        "column": problem.column,
                    })
                })
                .collect();
            Problem::invalid("config-invalid", detail).with_errors(errors)
        }
        ApplyError::NeedsRestart(_) => Problem::invalid("needs-restart", detail),
        ApplyError::Failed(_) => Problem::invalid("config-failed", detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic;

    #[test]
    fn each_problem_of_a_config_is_told_with_its_place() {
        let problem = apply_problem(ApplyError::Invalid(vec![diagnostic::Problem {
            path: "listener[0].lisen".into(),
            message: "unknown key".into(),
            label: "here".into(),
            help: Some("did you mean `listen`?".into()),
            span: 10..15,
            line: 6,
            column: 1,
        }]));
        assert_eq!(
            (problem.status.as_u16(), problem.code),
            (422, "config-invalid")
        );
        assert_eq!(
            problem.errors,
            [json!({
                "path": "listener[0].lisen",
                "message": "unknown key",
                "label": "here",
                "help": "did you mean `listen`?",
                "line": 6,
                "column": 1,
            })]
        );
        let restart = apply_problem(ApplyError::NeedsRestart("workers".into()));
        assert_eq!(restart.detail, "workers: needs a restart");
    }
}
