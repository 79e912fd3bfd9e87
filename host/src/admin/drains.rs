//! `/v1/streams/drain`: close many streams, spread over a time; look at it; cancel it.

use super::State as AdminState;
use super::input::{Actor, DryRun, Path, Query, parse_json, read_body};
use super::operation::{Done, Told};
use super::problem::Problem;
use super::streams::{CODE_RESTART, Selector, check_close};
use crate::config::decode::units;
use crate::drains::{Cause, Drain, Order, TooMany};
use crate::stream::{Close, CloseReason};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Longest time over which streams are closed.
const OVER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest body.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What is to be drained, and how.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    key: Option<String>,
    upstream: Option<String>,
    route: Option<String>,
    plugin: Option<String>,
    version: Option<String>,
    client: Option<String>,
    older_than: Option<String>,
    #[serde(default)]
    all: bool,
    over: String,
    code: Option<u16>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    dry_run: bool,
}

/// `POST /v1/streams/drain`
pub(super) async fn start(
    State(state): State<AdminState>,
    Query(query): Query<DryRun>,
    actor: Actor,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, BODY_BYTES_MAX).await?;
    let request: Request = parse_json(&body)?;
    let dry_run = query.dry_run || request.dry_run;
    let order = order(request, &actor)?;
    if dry_run {
        let matched = state.workers.select_streams(order.filter).await.len();
        let answer = Json(json!({ "dry_run": true, "matched": matched }));
        return Ok(Told::Nothing.within(answer));
    }
    let drain = state
        .drains
        .start(&state.workers, order)
        .await
        .map_err(busy)?;
    let progress = drain.progress();
    let path = format!("/v1/streams/drain/{}", progress.id);
    let location = HeaderValue::from_str(&path).expect("a path and a number");
    let answer = (
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        Json(progress),
    );
    Ok(Told::Done(Done::new("started")).within(answer))
}

/// `GET /v1/streams/drain`
pub(super) async fn list(State(state): State<AdminState>) -> Response {
    Json(json!({ "drains": state.drains.list() })).into_response()
}

/// `GET /v1/streams/drain/{id}`
pub(super) async fn get(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(Json(find(&state, &id)?.progress()).into_response())
}

/// `DELETE /v1/streams/drain/{id}`
pub(super) async fn cancel(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    Query(query): Query<DryRun>,
) -> Result<Response, Problem> {
    let drain = find(&state, &id)?;
    let told = match query.dry_run {
        true => Told::Nothing,
        false if drain.cancel() => Told::Done(Done::new("cancelled")),
        false => Told::Done(Done::new("over")),
    };
    Ok(told.within(Json(drain.progress())))
}

fn find(state: &AdminState, id: &str) -> Result<Arc<Drain>, Problem> {
    let drain = id.parse().ok().and_then(|id| state.drains.get(id));
    drain.ok_or_else(|| Problem::not_found("no-such-drain", format!("no drain {id:?}")))
}

fn busy(error: TooMany) -> Problem {
    Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too-many-drains",
        error.to_string(),
    )
}

/// What is asked for, checked.
fn order(request: Request, actor: &Actor) -> Result<Order, Problem> {
    let invalid = |detail: String| Problem::invalid("invalid-body", format!("body: {detail}"));
    let selector = Selector {
        key: request.key,
        upstream: request.upstream,
        route: request.route,
        plugin: request.plugin,
        version: request.version,
        client: request.client,
        older_than: request.older_than,
    };
    let mut shown = serde_json::to_value(&selector).expect("strings only");
    let filter = selector.filter().map_err(invalid)?;
    match (filter.is_empty(), request.all) {
        (true, false) => {
            return Err(invalid(
                "no selector: expected one or more of key, upstream, route, plugin, version, client, older_than, \
                 or \"all\": true for every stream"
                    .to_owned(),
            ));
        }
        (false, true) => {
            return Err(invalid(format!(
                "\"all\" is true beside the selector {shown}: expected one of the two"
            )));
        }
        (true, true) => shown = json!({ "all": true }),
        (false, false) => {}
    }
    let over = units::duration(&request.over)
        .and_then(|over| match over <= OVER_MAX {
            true => Ok(over),
            false => Err("expected at most 24h".to_owned()),
        })
        .map_err(|why| invalid(format!("over {:?}: {why}", request.over)))?;
    let code = request.code.unwrap_or(CODE_RESTART);
    check_close(code, &request.reason).map_err(invalid)?;
    Ok(Order {
        filter,
        selector: shown,
        over,
        close: Close {
            code,
            reason: request.reason.into(),
            why: CloseReason::Drain,
        },
        cause: Cause::Asked,
        actor: actor.0.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: serde_json::Value) -> Result<Order, String> {
        let body = body.to_string();
        let request = parse_json(body.as_bytes()).map_err(|problem| problem.detail)?;
        order(request, &Actor("ann".to_owned())).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_drain_closes_with_1012_over_the_time_it_says() {
        let order = read(json!({ "key": "id2", "older_than": "1h", "over": "5m" })).expect("valid");
        assert_eq!(order.over, Duration::from_secs(300));
        assert_eq!(
            (order.close.code, order.close.why),
            (1012, CloseReason::Drain)
        );
        assert_eq!(order.filter.key.as_deref(), Some("id2"));
        assert_eq!(order.filter.older_than, Some(Duration::from_secs(3_600)));
        assert_eq!(order.selector, json!({ "key": "id2", "older_than": "1h" }));
        let all = read(json!({ "all": true, "over": "0s" })).expect("valid");
        assert!(all.filter.is_empty());
        assert_eq!(all.selector, json!({ "all": true }));
    }

    #[test]
    fn what_could_close_more_than_was_meant_is_refused() {
        for (body, expected) in [
            (
                json!({ "over": "5s" }),
                "no selector: expected one or more of key",
            ),
            (json!({ "kye": "id2", "over": "5s" }), "unknown field `kye`"),
            (json!({ "key": "id2" }), "missing field `over`"),
            (
                json!({ "key": "id2", "all": true, "over": "5s" }),
                "expected one of the two",
            ),
            (
                json!({ "version": "", "over": "5s" }),
                "version \"\": expected",
            ),
            (
                json!({ "version": "xyz", "over": "5s" }),
                "version \"xyz\": expected",
            ),
            (
                json!({ "client": "10.0.0.1/8", "over": "5s" }),
                "client \"10.0.0.1/8\": it has bits",
            ),
            (
                json!({ "older_than": "5", "over": "5s" }),
                "older_than \"5\": it has no unit",
            ),
            (
                json!({ "key": "id2", "over": "5" }),
                "over \"5\": it has no unit",
            ),
            (
                json!({ "key": "id2", "over": "25h" }),
                "over \"25h\": expected at most 24h",
            ),
            (
                json!({ "key": "id2", "over": "5s", "code": 1006 }),
                "code 1006: expected",
            ),
            (
                json!({ "key": "id2", "over": "5s", "reason": "x".repeat(124) }),
                "reason has 124 bytes",
            ),
        ] {
            let error = read(body.clone()).expect_err("refused");
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
