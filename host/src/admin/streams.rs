//! `/v1/streams`: list, close one.

use super::State as AdminState;
use super::input::{Path, Query};
use super::operation::{Done, Told};
use super::problem::Problem;
use crate::config::decode::{address, units};
use crate::plugin::verdict::{CLOSE_REASON_BYTES_MAX as REASON_BYTES_MAX, is_close_code};
use crate::stream::{StreamFilter, StreamId, UpstreamFilter};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 100_000;
/// Going away: what an operator's close is, to both ends.
const CODE_DEFAULT: u16 = 1001;

/// Closing to start again elsewhere: what a drain is.
pub(super) const CODE_RESTART: u16 = 1012;

/// Which streams: what lists and drains may say.
#[derive(Debug, Default, serde::Serialize)]
pub(super) struct Selector {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plugin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) older_than: Option<String>,
}

impl Selector {
    /// The conditions.
    ///
    /// # Errors
    /// What is none, with what was expected.
    pub(super) fn filter(self) -> Result<StreamFilter, String> {
        for (name, value) in [
            ("upstream", &self.upstream),
            ("route", &self.route),
            ("plugin", &self.plugin),
        ] {
            if value.as_deref() == Some("") {
                return Err(format!("{name} \"\": expected a name"));
            }
        }
        let is_digest = |version: &str| {
            (1..=64).contains(&version.len())
                && version.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if let Some(version) = self.version.as_deref()
            && !is_digest(version)
        {
            return Err(format!(
                "version {version:?}: expected the beginning of a digest in hex"
            ));
        }
        let client = self.client.map(|client| {
            address::network(&client).map_err(|why| format!("client {client:?}: {why}"))
        });
        let older_than = self.older_than.map(|span| {
            units::duration(&span).map_err(|why| format!("older_than {span:?}: {why}"))
        });
        Ok(StreamFilter {
            plugin: self.plugin,
            version: self.version.map(|version| version.to_ascii_lowercase()),
            key: self.key,
            route: self.route,
            upstream: self.upstream.as_deref().map(UpstreamFilter::of),
            client: client.transpose()?,
            older_than: older_than.transpose()?,
        })
    }
}

/// Which streams.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    key: Option<String>,
    upstream: Option<String>,
    route: Option<String>,
    plugin: Option<String>,
    version: Option<String>,
    client: Option<String>,
    older_than: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/streams`
pub(super) async fn list(
    State(state): State<AdminState>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(bad_query(format!(
            "limit {limit}: expected 1 to {LIMIT_MAX}"
        )));
    }
    let selector = Selector {
        key: query.key,
        upstream: query.upstream,
        route: query.route,
        plugin: query.plugin,
        version: query.version,
        client: query.client,
        older_than: query.older_than,
    };
    let filter = selector.filter().map_err(bad_query)?;
    let mut streams = state.workers.streams(filter, limit + 1).await;
    let more = streams.len() > limit;
    streams.truncate(limit);
    Ok(Json(json!({ "streams": streams, "more": more })).into_response())
}

fn bad_query(detail: String) -> Problem {
    Problem::bad_request("query", format!("query: {detail}"))
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
) -> Result<Response, Problem> {
    let no_stream = || Problem::not_found("no-such-stream", format!("no stream {id:?}"));
    let stream = id.parse().map(StreamId).map_err(|_| no_stream())?;
    let (code, reason) = check(query)?;
    let closed = state.workers.close_stream(stream, code, reason).await;
    if closed {
        Ok(Told::Done(Done::new("closed")).within(StatusCode::NO_CONTENT))
    } else {
        Err(no_stream())
    }
}

/// What RFC 6455 allows in a close frame.
fn check(query: CloseQuery) -> Result<(u16, String), Problem> {
    let code = query.code.unwrap_or(CODE_DEFAULT);
    check_close(code, &query.reason).map_err(bad_query)?;
    Ok((code, query.reason))
}

/// Checks what a close frame is to hold.
///
/// # Errors
/// What it may not hold, with what was expected.
pub(super) fn check_close(code: u16, reason: &str) -> Result<(), String> {
    if !is_close_code(code) {
        return Err(format!(
            "code {code}: expected 1000 to 1003, 1007 to 1014 or 3000 to 4999"
        ));
    }
    if reason.len() > REASON_BYTES_MAX {
        return Err(format!(
            "reason has {} bytes, expected at most {REASON_BYTES_MAX}",
            reason.len()
        ));
    }
    Ok(())
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
