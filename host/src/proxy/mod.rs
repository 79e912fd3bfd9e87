//! A request's walk: admit → route → forward → stream → log.

use crate::plugin::Reply;
use crate::store::Target;
use std::time::Duration;

pub mod access_log;
pub mod matcher;

/// A route of the config: the first that matches decides.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// Its name in logs and metrics.
    pub name: String,
    /// Which requests it is for.
    pub matcher: matcher::Matcher,
    /// What becomes of them.
    pub handler: Handler,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Handler {
    /// A plugin decides.
    Plugin {
        /// The plugin's name.
        plugin: String,
        /// When it gives no decision.
        on_failure: OnFailure,
    },
    /// An address.
    To(Target, u16),
    /// An upstream.
    Upstream(String),
    /// A reply; `${header.NAME}` in its body is replaced, escaped for JSON if the content type is JSON.
    Reply(Reply),
}

/// What becomes of a request when its plugin gives no decision: trap, deadline, bad decision, refused write, no
/// version yet.
#[derive(Debug, Clone, PartialEq)]
pub enum OnFailure {
    /// An empty reply with this status.
    Reply(http::StatusCode),
    /// The version before the active one decides; if it fails too, 503.
    LastGood,
    /// An upstream of the config.
    Upstream(String),
}

impl Default for OnFailure {
    fn default() -> Self {
        Self::Reply(http::StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// Bounds of requests and connections. Timeouts are kept with a resolution of [`TICK`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Accept to first byte.
    pub first_byte_timeout: Duration,
    /// First byte of a head to its end.
    pub head_timeout: Duration,
    /// Between requests of a connection.
    pub idle_timeout: Duration,
    /// Between two reads of a request body.
    pub body_timeout: Duration,
    /// While a client takes nothing of a response.
    pub write_timeout: Duration,
    /// A request head, in bytes.
    pub head_bytes_max: usize,
    /// Fields of a head.
    pub headers_max: usize,
    /// Path and query, in bytes.
    pub uri_bytes_max: usize,
    /// A request body, in bytes; 0: no bound.
    pub body_bytes_max: u64,
    /// Connections of one worker.
    pub connections_max: usize,
    /// Connections of one client address on one worker.
    pub connections_per_client_max: usize,
    /// Concurrent streams of an HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Dialling an endpoint.
    pub connect_timeout: Duration,
    /// Request sent to response head.
    pub response_timeout: Duration,
    /// Between two reads of a response body.
    pub response_body_timeout: Duration,
    /// Idle connections kept to one endpoint, on each worker.
    pub pool_per_endpoint_max: usize,
    /// How long an idle connection is kept.
    pub pool_idle_timeout: Duration,
    /// Adds a `Via` field both ways.
    pub via: bool,
}

/// Resolution of all timeouts of the data plane.
pub const TICK: Duration = Duration::from_millis(100);

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            head_bytes_max: 64 << 10,
            headers_max: 100,
            uri_bytes_max: 16 << 10,
            body_bytes_max: 0,
            connections_max: 16_384,
            connections_per_client_max: 16_384,
            h2_streams_max: 100,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            response_body_timeout: Duration::from_secs(60),
            pool_per_endpoint_max: 256,
            pool_idle_timeout: Duration::from_secs(30),
            via: false,
        }
    }
}
