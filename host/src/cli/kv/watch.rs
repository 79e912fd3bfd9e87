//! `throwbar kv watch`: changes as they happen, over every interruption.

use super::segment;
use crate::cli::client::{Client, ClientError, with_query};
use crate::cli::output::{self, Out};
use crate::cli::{Ended, Exit};
use http::HeaderName;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::time::Duration;

/// Where we are, for the proxy.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The proxy says something at least every 15 seconds.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two attempts to come back: doubled from the first to the last.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// An event; the proxy keeps some megabytes of changes.
const EVENT_BYTES_MAX: usize = 256 << 20;

/// Prints changes until the reader or the bucket is gone, or `count` revisions are printed.
///
/// # Errors
/// If the proxy cannot be reached at first, refuses, or no longer knows the changes after the last one.
pub(super) async fn run(
    client: &Client,
    bucket: &str,
    prefix: Option<String>,
    since: Option<String>,
    count: Option<u64>,
    json: bool,
) -> anyhow::Result<()> {
    let query = [
        ("watch", Some("true".to_owned())),
        ("prefix", prefix),
        ("since", since),
    ];
    let path = with_query(format!("/v1/kv/{}", segment("bucket", bucket)?), &query);
    let mut watching = Watching {
        last_id: None,
        left: count,
        json,
        out: Out::stdout(),
    };
    let mut body = client.stream(&path, &[]).await?.into_body();
    loop {
        let interrupted = match watching.follow(&mut body).await? {
            Followed::Done => return Ok(()),
            Followed::Interrupted(reason) => reason,
        };
        output::aside(format_args!(
            "{}: {interrupted}: trying to go on",
            client.address()
        ));
        body = watching.come_back(client, &path).await?;
    }
}

/// How far a command has come.
struct Watching {
    last_id: Option<String>,
    /// Revisions to print yet; without it, all there are.
    left: Option<u64>,
    json: bool,
    out: Out,
}

/// How an answer ended.
enum Followed {
    /// As many revisions as were asked for are printed.
    Done,
    /// It ended, and another may go on.
    Interrupted(String),
}

impl Watching {
    async fn follow(&mut self, body: &mut Incoming) -> anyhow::Result<Followed> {
        let mut pending = Vec::new();
        loop {
            let frame = match tokio::time::timeout(SILENCE_TIMEOUT, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Ok(Followed::Interrupted(error.to_string())),
                Ok(None) => return Ok(Followed::Interrupted("the answer ended".to_owned())),
                Err(_) => {
                    let silence = format!("nothing within {SILENCE_TIMEOUT:?}");
                    return Ok(Followed::Interrupted(silence));
                }
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            pending.extend_from_slice(&data);
            let mut from = 0;
            while let Some(length) = memchr::memmem::find(&pending[from..], b"\n\n") {
                let event = Event::parse(&pending[from..from + length]);
                from += length + 2;
                if self.take(event)? {
                    return Ok(Followed::Done);
                }
            }
            pending.drain(..from);
            self.out.flush()?;
            anyhow::ensure!(
                pending.len() <= EVENT_BYTES_MAX,
                "an event is longer than {}",
                output::size(EVENT_BYTES_MAX as u64)
            );
        }
    }

    /// Prints an event. Whether that was the last one asked for.
    fn take(&mut self, event: Event) -> anyhow::Result<bool> {
        if let Some(id) = event.id {
            self.last_id = Some(id);
        }
        let Some(data) = event.data else {
            return Ok(false);
        };
        let mut data: Value = serde_json::from_str(&data)?;
        if event.name != "change" {
            let detail = data["detail"].as_str().unwrap_or("the watch ended");
            return Err(Ended::error(
                Exit::Failed,
                output::printable(detail).to_string(),
            ));
        }
        if self.json {
            data["id"] = json!(self.last_id);
            self.out.line(&data)?;
        } else {
            let revision = &data["revision"];
            for change in data["changes"].as_array().into_iter().flatten() {
                self.out.line(line(revision, change))?;
            }
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        if self.left == Some(0) {
            self.out.flush()?;
        }
        Ok(self.left == Some(0))
    }

    /// Tries again and again to go on after the last event.
    async fn come_back(&self, client: &Client, path: &str) -> anyhow::Result<Incoming> {
        let id = self.last_id.clone();
        let headers: Vec<_> = id.map(|id| (LAST_EVENT_ID, id)).into_iter().collect();
        let mut pause = PAUSE_MIN;
        loop {
            tokio::time::sleep(pause).await;
            match client.stream(path, &headers).await {
                Ok(response) => return Ok(response.into_body()),
                // A proxy that starts, or ends, or has no place free.
                Err(ClientError::Connect { .. } | ClientError::Broken { .. }) => {}
                Err(ClientError::Problem(problem)) if problem.status == 503 => {}
                Err(error) => return Err(error.into()),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn line(revision: &Value, change: &Value) -> String {
    let text = |name: &str| match &change[name] {
        Value::Null => String::new(),
        value => output::printable(&super::shown(value)).to_string(),
    };
    let (op, key, value) = (text("op"), text("key"), text("value"));
    let line = format!("{revision} {op} {key} {value}");
    line.trim_end().to_owned()
}

/// One event of a stream.
#[derive(Debug, Default, PartialEq)]
struct Event {
    id: Option<String>,
    name: String,
    data: Option<String>,
}

impl Event {
    /// Reads the lines of an event; a line that is no field of ours means nothing.
    fn parse(lines: &[u8]) -> Self {
        let mut event = Self::default();
        for line in String::from_utf8_lossy(lines).lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "id" => event.id = Some(value.to_owned()),
                "event" => event.name = value.to_owned(),
                "data" => {
                    let data = event.data.get_or_insert_default();
                    if !data.is_empty() {
                        data.push('\n');
                    }
                    data.push_str(value);
                }
                _ => {}
            }
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_field_by_field() {
        let event =
            Event::parse(b": nobody cares\nevent: change\nid: 57-beef\ndata: {\"a\":\ndata: 1}");
        let expected = Event {
            id: Some("57-beef".into()),
            name: "change".into(),
            data: Some("{\"a\":\n1}".into()),
        };
        assert_eq!(event, expected);
        assert_eq!(Event::parse(b"id:5").id.as_deref(), Some("5"));
        assert_eq!(Event::parse(b""), Event::default());
    }

    #[test]
    fn a_change_is_one_line_whatever_it_holds() {
        let change = json!({ "op": "put", "key": "a\nb", "value": { "base64": "/w==" } });
        let line = line(&json!(7), &change);
        assert!(
            line.starts_with("7 put a") && line.ends_with("b (not text)"),
            "{line}"
        );
        assert!(!line.contains('\n'));
        let gone = json!({ "op": "expire", "key": "a" });
        assert_eq!(super::line(&json!(8), &gone), "8 expire a");
    }
}
