//! What a plugin may answer, checked before anyone acts on it.

use crate::store::Target;
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
    /// A host and its port.
    Address(Target, u16),
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
