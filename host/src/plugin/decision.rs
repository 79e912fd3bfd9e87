//! What a plugin may answer, checked before anyone acts on it.

use super::PluginLimits;
use super::imports::{HostState, wit};
use crate::store::{BucketId, OnChange, Target, TypedRecord, Value, bucket::KEY_BYTES_MAX};
use http::{HeaderName, HeaderValue, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// A checked decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Send it on.
    Forward(Forward),
    /// Answer it.
    Reply(Reply),
    /// The next matching route decides.
    Pass,
}

/// Where a request goes, and what changes on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Where.
    pub to: RouteTarget,
    /// Label for logs and streams: the key looked up, or what the plugin said.
    pub key: Option<Box<str>>,
    /// Edits of the subscription, shared by every decision of the generation.
    pub constant: Option<Arc<Edits>>,
    /// What varies; none in the common case.
    pub varying: Option<Box<Varying>>,
    /// The entry it was routed by, if the stream that it opens is not to be kept when that changes.
    pub follow: Option<Box<Follow>>,
}

/// An entry, and what becomes of a stream that was routed by it once it is another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// Where it is.
    pub bucket: BucketId,
    /// Its key.
    pub key: Box<str>,
    /// Its value when the stream was routed.
    pub value: Value,
    /// Never [`OnChange::Keep`].
    pub on_change: OnChange,
}

/// What a decision may set beside its target.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Varying {
    /// Made after the constant edits.
    pub edits: Edits,
    /// Path and query to send.
    pub path: Option<http::uri::PathAndQuery>,
    /// At most the limit of the config.
    pub connect_timeout: Option<Duration>,
    /// At most the limit of the config.
    pub response_timeout: Option<Duration>,
    /// For an upgraded stream.
    pub stream_idle_timeout: Option<Duration>,
    /// For an upgraded stream.
    pub stream_age_max: Option<Duration>,
}

/// Header edits both ways, valid and allowed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Edits {
    /// Removed from the request first.
    pub request_remove: Vec<HeaderName>,
    /// Then set.
    pub request_set: Vec<(HeaderName, HeaderValue)>,
    /// Removed from the response first.
    pub response_remove: Vec<HeaderName>,
    /// Then set.
    pub response_set: Vec<(HeaderName, HeaderValue)>,
}

/// The target of a forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteTarget {
    /// A host and its port, or a Unix socket, of which the port says nothing.
    Address(Target, u16),
    /// One of the addresses of a typed record, at this port if there is one, instead of their own.
    Record(Arc<TypedRecord>, Option<u16>),
    /// An upstream of the config, and the key that picks its endpoint.
    Upstream(Box<str>, Option<Box<str>>),
}

/// A response made by a plugin or by the config.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// 200 to 599.
    pub status: StatusCode,
    /// Fields; framing is ours.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: bytes::Bytes,
}

/// Why a decision cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecisionError(pub String);

impl DecisionError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl Decision {
    /// The upstream it names, which only who has the config can tell to exist.
    pub fn upstream(&self) -> Option<&str> {
        match self {
            Self::Forward(Forward {
                to: RouteTarget::Upstream(name, _),
                ..
            }) => Some(name),
            _ => None,
        }
    }
}

impl DecisionError {
    /// It names an upstream that is not in the config.
    pub fn no_upstream(name: &str) -> Self {
        Self(format!("no upstream {} in the config", quote(name)))
    }
}

/// Longest part of a guest's text that an error repeats.
const QUOTE_BYTES_MAX: usize = 100;

/// A guest's text in an error: quoted, escaped, cut.
pub(super) fn quote(text: &str) -> String {
    let cut = &text[..text.floor_char_boundary(QUOTE_BYTES_MAX)];
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

/// Checks a decision of the call that just returned; handles are resolved and given up.
///
/// # Errors
/// The first thing that cannot be acted on.
pub(super) fn check(raw: wit::Decision, state: &mut HostState) -> Result<Decision, DecisionError> {
    let (to, forward) = match raw {
        wit::Decision::To(to) => (to, None),
        wit::Decision::Forward(mut forward) => {
            check_size(forward_size(&forward), &state.sandbox.config.limits)?;
            let to = std::mem::replace(&mut forward.to, wit::Target::Entry(0));
            (to, Some(forward))
        }
        wit::Decision::Reply(reply) => {
            check_size(reply_size(&reply), &state.sandbox.config.limits)?;
            return Ok(Decision::Reply(check_reply(reply)?));
        }
        wit::Decision::Pass => return Ok(Decision::Pass),
    };
    let Found {
        to,
        key: looked_up,
        follow,
    } = check_target(to, state)?;
    let (key, varying) = match forward {
        None => (looked_up, None),
        Some(mut forward) => {
            let key = match forward.key.take() {
                Some(key) => Some(check_key(key)?),
                None => looked_up,
            };
            (key, check_varying(forward)?)
        }
    };
    Ok(Decision::Forward(Forward {
        to,
        key,
        constant: state.plan.edits.clone(),
        varying,
        follow,
    }))
}

/// A checked target, and what is known of how it was found.
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub to: RouteTarget,
    /// The key looked up.
    pub key: Option<Box<str>>,
    /// The entry it was found by, if a stream is to follow it.
    pub follow: Option<Box<Follow>>,
}

pub(super) fn check_target(to: wit::Target, state: &mut HostState) -> Result<Found, DecisionError> {
    let (to, key) = match to {
        wit::Target::Entry(handle) => {
            let entry = state.take_entry(handle).ok_or_else(|| {
                DecisionError::new(format!(
                    "entry {handle} is no handle of this call's lookups"
                ))
            })?;
            return Ok(Found {
                follow: state.follow(&entry),
                to: entry.to,
                key: Some(entry.key),
            });
        }
        wit::Target::Address(address) => (check_address(&address)?, None),
        wit::Target::Upstream(name) => (RouteTarget::Upstream(name.into(), None), None),
        wit::Target::UpstreamByKey((name, key)) => {
            let key = check_key(key)?;
            (
                RouteTarget::Upstream(name.into(), Some(key.clone())),
                Some(key),
            )
        }
    };
    Ok(Found {
        to,
        key,
        follow: None,
    })
}

fn check_address(address: &str) -> Result<RouteTarget, DecisionError> {
    let bad = |why: &str| {
        DecisionError::new(format!(
            "address {}: {why}, expected host:port such as 10.0.0.7:8080, or unix:/run/agent.sock",
            quote(address)
        ))
    };
    let target: Target = address
        .parse()
        .map_err(|error: crate::store::ValueError| bad(&error.to_string()))?;
    match target.split_port() {
        (target, Some(port)) => Ok(RouteTarget::Address(target, port)),
        (target @ Target::Unix(_), None) => Ok(RouteTarget::Address(target, 0)),
        (_, None) => Err(bad("no port")),
    }
}

fn check_key(key: String) -> Result<Box<str>, DecisionError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(DecisionError::new(format!(
            "key of {} bytes, at most {KEY_BYTES_MAX} are allowed",
            key.len()
        )));
    }
    if key.chars().any(char::is_control) {
        return Err(DecisionError::new(format!(
            "key {} has a control character",
            quote(&key)
        )));
    }
    Ok(key.into())
}

fn check_varying(forward: wit::Forward) -> Result<Option<Box<Varying>>, DecisionError> {
    let varying = Varying {
        edits: check_edits(forward.edits)?,
        path: forward.path.map(check_path).transpose()?,
        connect_timeout: check_timeout("connect-timeout-ms", forward.connect_timeout_ms)?,
        response_timeout: check_timeout("response-timeout-ms", forward.response_timeout_ms)?,
        stream_idle_timeout: check_timeout(
            "stream-idle-timeout-ms",
            forward.stream_idle_timeout_ms,
        )?,
        stream_age_max: check_timeout("stream-max-age-ms", forward.stream_max_age_ms)?,
    };
    Ok((varying != Varying::default()).then(|| Box::new(varying)))
}

fn check_path(path: String) -> Result<http::uri::PathAndQuery, DecisionError> {
    if !path.starts_with('/') {
        return Err(DecisionError::new(format!(
            "path {}: expected one that begins with \"/\"",
            quote(&path)
        )));
    }
    // A fragment is not sent; http would drop it without a word.
    if path.contains('#') {
        return Err(DecisionError::new(format!(
            "path {}: has a \"#\"",
            quote(&path)
        )));
    }
    let quoted = quote(&path);
    http::uri::PathAndQuery::from_maybe_shared(bytes::Bytes::from(path))
        .map_err(|error| DecisionError::new(format!("path {quoted}: {error}")))
}

pub(super) fn check_timeout(
    name: &str,
    millis: Option<u32>,
) -> Result<Option<Duration>, DecisionError> {
    match millis {
        Some(0) => Err(DecisionError::new(format!(
            "{name} is 0, expected at least 1"
        ))),
        millis => Ok(millis.map(|millis| Duration::from_millis(millis.into()))),
    }
}

pub(super) fn check_reply(reply: wit::Reply) -> Result<Reply, DecisionError> {
    let status = StatusCode::from_u16(reply.status)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or_else(|| {
            DecisionError::new(format!("status {}, expected 200 to 599", reply.status))
        })?;
    if matches!(status.as_u16(), 204 | 205 | 304) && !reply.body.is_empty() {
        return Err(DecisionError::new(format!("status {status} with a body")));
    }
    Ok(Reply {
        status,
        headers: check_headers(reply.headers)?,
        body: reply.body.into(),
    })
}

/// Checks edits of a decision or of a subscription.
///
/// # Errors
/// The first name or value that is invalid, or not a plugin's to change.
pub(super) fn check_edits(edits: wit::Edits) -> Result<Edits, DecisionError> {
    Ok(Edits {
        request_remove: check_names(&edits.request_remove)?,
        request_set: check_headers(edits.request_set)?,
        response_remove: check_names(&edits.response_remove)?,
        response_set: check_headers(edits.response_set)?,
    })
}

fn check_names(names: &[String]) -> Result<Vec<HeaderName>, DecisionError> {
    names.iter().map(|name| check_name(name)).collect()
}

fn check_headers(
    headers: Vec<(String, String)>,
) -> Result<Vec<(HeaderName, HeaderValue)>, DecisionError> {
    let checked = headers.into_iter().map(|(name, value)| {
        let checked = check_name(&name)?;
        let quoted = quote(&value);
        let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).map_err(|_| {
            DecisionError::new(format!("header {name:?}: {quoted} is not a header value"))
        })?;
        Ok((checked, value))
    });
    checked.collect()
}

fn check_name(name: &str) -> Result<HeaderName, DecisionError> {
    let checked = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| DecisionError::new(format!("{} is not a header name", quote(name))))?;
    if is_hosts(checked.as_str()) {
        return Err(DecisionError::new(format!(
            "header {name:?} is the host's: framing, connection and forwarding fields cannot be changed"
        )));
    }
    Ok(checked)
}

/// Whether a header field is the host's alone.
fn is_hosts(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "content-length"
            | "expect"
            | "forwarded"
            | "host"
            | "http2-settings"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "via"
            // The handshake was checked with these.
            | "sec-websocket-accept"
            | "sec-websocket-key"
            | "sec-websocket-version"
    ) || name.starts_with("proxy-")
        || name.starts_with("x-forwarded-")
}

pub(super) fn check_size(size: usize, limits: &PluginLimits) -> Result<(), DecisionError> {
    let size_max = limits.returned_bytes_max;
    if size > size_max {
        return Err(DecisionError::new(format!(
            "{size} bytes returned, at most {size_max} are allowed"
        )));
    }
    Ok(())
}

fn pairs_size(pairs: &[(String, String)]) -> usize {
    pairs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum()
}

fn names_size(names: &[String]) -> usize {
    names.iter().map(String::len).sum()
}

pub(super) fn reply_size(reply: &wit::Reply) -> usize {
    reply.body.len() + pairs_size(&reply.headers)
}

fn forward_size(forward: &wit::Forward) -> usize {
    let edits = &forward.edits;
    names_size(&edits.request_remove)
        + pairs_size(&edits.request_set)
        + names_size(&edits.response_remove)
        + pairs_size(&edits.response_set)
        + forward.path.as_ref().map_or(0, String::len)
        + forward.key.as_ref().map_or(0, String::len)
}
