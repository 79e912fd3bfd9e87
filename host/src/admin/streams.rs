//! `/v1/streams`: list, close one.

use super::State as AdminState;
use super::input::{Actor, Path, Query, audit};
use super::problem::Problem;
use crate::plugin::verdict::{CLOSE_REASON_BYTES_MAX as REASON_BYTES_MAX, is_close_code};
use crate::stream::{StreamFilter, StreamId};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 100_000;
/// Going away: what an operator's close is, to both ends.
const CODE_DEFAULT: u16 = 1001;

/// Which streams.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    plugin: Option<String>,
    version: Option<String>,
    key: Option<String>,
    route: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/streams`
pub(super) async fn list(
    State(state): State<AdminState>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::bad_request(
            "query",
            format!("query: limit {limit}: expected 1 to {LIMIT_MAX}"),
        ));
    }
    let filter = StreamFilter {
        plugin: query.plugin,
        version: query.version,
        key: query.key,
        route: query.route,
    };
    let mut streams = state.workers.streams(filter, limit + 1).await;
    let more = streams.len() > limit;
    streams.truncate(limit);
    Ok(Json(json!({ "streams": streams, "more": more })).into_response())
}

/// How to close a stream.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CloseQuery {
    code: Option<u16>,
    #[serde(default)]
    reason: String,
}

/// `DELETE /v1/streams/{id}`
pub(super) async fn close(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    Query(query): Query<CloseQuery>,
    actor: Actor,
) -> Result<Response, Problem> {
    let no_stream = || Problem::not_found("no-such-stream", format!("no stream {id:?}"));
    let stream = id.parse().map(StreamId).map_err(|_| no_stream())?;
    let (code, reason) = check(query)?;
    let closed = state.workers.close_stream(stream, code, reason).await;
    let outcome = if closed { "closed" } else { "no-such-stream" };
    let path = format!("/v1/streams/{id}");
    audit(&actor, "DELETE", &path, outcome, None);
    if closed {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(no_stream())
    }
}

/// What RFC 6455 allows in a close frame.
fn check(query: CloseQuery) -> Result<(u16, String), Problem> {
    let code = query.code.unwrap_or(CODE_DEFAULT);
    if !is_close_code(code) {
        return Err(Problem::bad_request(
            "query",
            format!("query: code {code}: expected 1000 to 1003, 1007 to 1014 or 3000 to 4999"),
        ));
    }
    if query.reason.len() > REASON_BYTES_MAX {
        return Err(Problem::bad_request(
            "query",
            format!(
                "query: reason has {} bytes, expected at most {REASON_BYTES_MAX}",
                query.reason.len()
            ),
        ));
    }
    Ok((code, query.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(code: Option<u16>, reason: &str) -> Result<(u16, String), u16> {
        let reason = reason.to_owned();
        check(CloseQuery { code, reason }).map_err(|problem| problem.status.as_u16())
    }

    #[test]
    fn only_what_a_close_frame_may_hold_is_taken() {
        assert_eq!(close(None, "bye"), Ok((1001, "bye".into())));
        assert_eq!(close(Some(4999), ""), Ok((4999, String::new())));
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            assert_eq!(close(Some(code), ""), Err(400), "{code}");
        }
        assert!(close(None, &"x".repeat(123)).is_ok());
        assert_eq!(close(None, &"x".repeat(124)), Err(400));
    }
}
