//! `GET /v1/kv/{bucket}?watch`: changes as they happen, as server-sent events.
//!
//! Each event is what one revision changed, and its `id` is where to go on: a client that comes back with it as
//! `Last-Event-ID` misses nothing, or is told with 410 that it would. Nothing is kept for a client but the event that is on
//! its way; one that falls behind further than the log reaches gets the event `compacted`, and the end. One that may no longer
//! list what it watches gets the event `end`.

use super::places::Place;
use super::{ListQuery, expires_json, value_json};
use crate::admin::Data;
use crate::admin::handed::Handed;
use crate::admin::problem::Problem;
use crate::admin::revocation::Lost;
use crate::admin::rights::Caller;
use crate::config::decode::units;
use crate::store::log::{Ending, Group};
use crate::store::{BucketId, Position, Watch, WatchError};
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;

/// Without an event for so long the client is told where it stands, and that we are there.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(15);
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(300);
/// Where a client that comes back has been.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Whether changes are asked for, rather than keys.
pub(super) fn is_wanted(query: &ListQuery) -> Result<bool, Problem> {
    let wanted = match query.watch.as_deref() {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => {
            return Err(bad_query(format!(
                "watch {other:?}: expected true or false"
            )));
        }
    };
    let page = [
        ("limit", query.limit.is_some()),
        ("cursor", query.cursor.is_some()),
        ("format", query.format.is_some()),
        ("deadlines", query.deadlines.is_some()),
    ];
    let changes = [
        ("since", query.since.is_some()),
        ("heartbeat", query.heartbeat.is_some()),
    ];
    let (foreign, what) = match wanted {
        true => (&page[..], "a watch takes no"),
        false => (&changes[..], "only a watch takes"),
    };
    match foreign.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(bad_query(format!("{what} {name}"))),
        None => Ok(wanted),
    }
}

fn bad_query(detail: String) -> Problem {
    Problem::bad_request("query", format!("query: {detail}"))
}

/// Begins a watch of a bucket.
pub(super) async fn start(
    data: &Data,
    (bucket, name): (BucketId, &str),
    query: &ListQuery,
    caller: &Caller,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let heartbeat = match &query.heartbeat {
        None => HEARTBEAT_DEFAULT,
        Some(text) => units::duration(text)
            .and_then(
                |pause| match (HEARTBEAT_MIN..=HEARTBEAT_MAX).contains(&pause) {
                    true => Ok(pause),
                    false => Err("expected 100ms to 5m".to_owned()),
                },
            )
            .map_err(|why| bad_query(format!("heartbeat {text:?}: {why}")))?,
    };
    let since = since(query, headers)?;
    let watch = data
        .store
        .watch_from(bucket, since)
        .await
        .map_err(refused)?;
    let place = data.watches.take(caller)?;
    let (sender, events) = mpsc::channel(1);
    let watcher = Watcher {
        _place: place,
        watch,
        prefix: query.prefix.clone(),
        lost: data.tokens.lost(caller.clone(), name, &query.prefix),
        heartbeat,
        sender,
    };
    let mut stopping = data.stopping.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = watcher.run() => {}
            // Its client comes back with the last id, to the next process.
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    });
    let fields = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((fields, Body::new(Handed(events))).into_response())
}

/// Where to begin: what a client that comes back says counts more than what it asked for first.
fn since(query: &ListQuery, headers: &HeaderMap) -> Result<Option<Position>, Problem> {
    if let Some(id) = headers.get(LAST_EVENT_ID) {
        let text = String::from_utf8_lossy(id.as_bytes());
        let position = text.parse().map_err(|why| {
            Problem::bad_request("last-event-id", format!("last-event-id: {why}"))
        })?;
        return Ok(Some(position));
    }
    let since = query.since.as_deref().map(str::parse).transpose();
    since.map_err(|why: String| bad_query(format!("since {why}")))
}

fn refused(error: WatchError) -> Problem {
    let detail = error.to_string();
    match error {
        WatchError::Compacted { .. } | WatchError::Foreign { .. } => {
            Problem::new(StatusCode::GONE, "compacted", detail)
        }
        WatchError::NoSuchBucket => Problem::not_found("no-such-bucket", detail),
        WatchError::Closed => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", detail)
        }
    }
}

/// One client that is told of changes.
struct Watcher {
    /// First, so that it is free when the client sees the end.
    _place: Place,
    watch: Watch,
    prefix: String,
    lost: Lost,
    heartbeat: Duration,
    sender: mpsc::Sender<Bytes>,
}

impl Watcher {
    /// Tells until the client is gone, or there is nothing more to tell.
    async fn run(mut self) {
        // The first one says at once where the watch stands.
        let mut event = standing(self.watch.position());
        loop {
            if self.sender.send(event.into()).await.is_err() {
                return;
            }
            event = match self.next().await {
                Some(Ok(event)) => event,
                Some(Err(over)) => {
                    // The last thing it hears; whether it does changes nothing.
                    let _ = self.sender.send(over.event().into()).await;
                    return;
                }
                None => return,
            };
        }
    }

    /// The next event; none when the client is gone.
    async fn next(&mut self) -> Option<Result<String, Over>> {
        let heartbeat = tokio::time::sleep(self.heartbeat);
        let mut heartbeat = std::pin::pin!(heartbeat);
        loop {
            tokio::select! {
                // Nothing is told that came after the right to hear it was gone.
                biased;
                () = self.sender.closed() => return None,
                problem = &mut self.lost => return Some(Err(Over::Lost(problem))),
                () = heartbeat.as_mut() => return Some(Ok(standing(self.watch.position()))),
                next = self.watch.next() => match next {
                    Ok(group) => {
                        let event = changed(&group, &self.prefix, self.watch.position());
                        // What does not fit the prefix is told of by the next heartbeat's id.
                        if let Some(event) = event {
                            return Some(Ok(event));
                        }
                    }
                    Err(error) => return Some(Err(Over::Watch(error))),
                },
            }
        }
    }
}

/// An id without data moves a client's last id and is no event to it.
fn standing(position: Position) -> String {
    format!("id: {position}\n\n")
}

/// Why nothing more is told.
enum Over {
    Watch(WatchError),
    Lost(Problem),
}

impl Over {
    fn event(self) -> String {
        let (event, detail) = match self {
            Self::Watch(error) => match error {
                WatchError::Compacted { .. } | WatchError::Foreign { .. } => {
                    ("compacted", error.to_string())
                }
                WatchError::NoSuchBucket | WatchError::Closed => ("end", error.to_string()),
            },
            Self::Lost(problem) => ("end", problem.detail),
        };
        let data = json!({ "detail": detail });
        format!("event: {event}\ndata: {data}\n\n")
    }
}

/// What a revision changed below a prefix; none if nothing there.
fn changed(group: &Group, prefix: &str, position: Position) -> Option<String> {
    let changes: Vec<_> = group
        .changes()
        .filter(|(key, _)| key.starts_with(prefix))
        .map(|(key, change)| match change {
            Ok(entry) => {
                let value = value_json(&entry.value);
                let mut json = json!({ "key": key, "op": "put", "value": value });
                if let Some(deadline) = entry.deadline {
                    json["expires_at"] = expires_json(deadline);
                }
                json
            }
            Err(Ending::Deleted) => json!({ "key": key, "op": "delete" }),
            Err(Ending::Expired) => json!({ "key": key, "op": "expire" }),
        })
        .collect();
    if changes.is_empty() {
        return None;
    }
    let data = json!({ "revision": group.revision, "changes": changes });
    // JSON is written without a line break.
    Some(format!("event: change\nid: {position}\ndata: {data}\n\n"))
}
