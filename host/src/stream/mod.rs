//! Upgraded streams: two raw sockets joined, in an epoll set of each worker's own.
//!
//! After a valid 101 both sockets leave the HTTP engine and everything around them is freed; what remains of a stream
//! is one entry (`entry.rs`) in its worker's table (`table.rs`), which [`Streams::run`] (`relay.rs`) moves bytes for. A stream holds
//! the label of the generation that accepted it, never its code: changes of plugins, maps and config do not touch it.
//!
//! Invariants: no buffer while idle; a peer that does not read costs at most one scratch buffer; each opened stream is
//! closed once, with one event, whatever ended it.

use crate::plugin::Session;
use crate::plugin::decision::Follow;
use crate::plugin::generation::GenerationLabel;
use crate::upstream::address::Address;
use bytes::Bytes;
use socket2::Socket;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

mod entry;
pub(crate) mod frame;
mod hook;
mod leg;
mod message;
mod relay;
mod select;
mod table;
#[cfg(test)]
mod tests;
mod times;
mod token;

pub use select::{Spot, StreamFilter, UpstreamFilter};
pub use table::{Close, Streams};
pub use times::{RouteTimes, Times};

/// Upgraded streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Of streams whose route says nothing else.
    pub times: Times,
    /// Up to this share of its age a stream is closed earlier, so that streams opened together do not end together.
    pub age_jitter: f64,
    /// How long a drain waits for streams before it closes them with 1001.
    pub shutdown_grace: Duration,
    /// Streams of one worker.
    pub streams_max: usize,
    /// A message of a stream with a session, in bytes.
    pub message_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            times: Times::default(),
            age_jitter: 0.1,
            shutdown_grace: Duration::from_secs(30),
            streams_max: 100_000,
            message_bytes_max: 1 << 20,
        }
    }
}

/// Names a stream in the process: the worker in the low byte.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct StreamId(pub u64);

impl StreamId {
    /// The worker that has it.
    pub fn worker(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// A number that is the stream's own and evenly spread among streams (the finaliser of SplitMix64).
    pub fn spread(self) -> u64 {
        let mixed = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A random number from 0 to less than 1, of other bits than the order by [`StreamId::spread`].
    pub fn fraction(self) -> f64 {
        f64::from(self.spread() as u32) / (f64::from(u32::MAX) + 1.0)
    }

    /// The stream's own part of a span, from 0 to less than all of it.
    fn share(self, span: u32) -> u32 {
        (((self.spread() >> 32) * u64::from(span)) >> 32) as u32
    }
}

/// A stream, for lists.
#[derive(Debug, Clone, serde::Serialize)]
pub struct StreamInfo {
    /// Its id.
    pub id: StreamId,
    /// The route that took it.
    pub route: String,
    /// The plugin that routed it.
    pub plugin: Option<String>,
    /// The version that accepted it: SHA-256 in hex.
    pub version: Option<String>,
    /// Its generation.
    pub generation: Option<u64>,
    /// The key looked up, or the plugin's label.
    pub key: Option<String>,
    /// The client.
    pub client: SocketAddr,
    /// The endpoint.
    pub endpoint: Address,
    /// The upstream of the config that the endpoint is of.
    pub upstream: Option<String>,
    /// Milliseconds since the Unix epoch at its start.
    pub started_ms: u64,
    /// Seconds it is open.
    pub age_s: u64,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// Its session, in the version that accepted it, if its messages are shown to one.
    pub session: Option<SessionInfo>,
}

/// A stream's session, for lists.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SessionInfo {
    /// How it does: `ok`, `rebuilt`, `failed`, or `unhooked` if the stream goes on without it.
    pub state: &'static str,
    /// Whether it has an instance of its own.
    pub isolated: bool,
    /// Messages from the client.
    pub messages_up: u64,
    /// Messages from the endpoint.
    pub messages_down: u64,
    /// Times its interval went by.
    pub ticks: u64,
    /// How often it failed, or was lost with its instance.
    pub failures: u32,
    /// How often another one took its place.
    pub rebuilds: u32,
}

/// A stream to be: both sockets taken out of the HTTP engine after a 101.
pub struct NewStream {
    /// To the client.
    pub downstream: Socket,
    /// What was read from the client after its request.
    pub downstream_read_ahead: Bytes,
    /// To the endpoint.
    pub upstream: Socket,
    /// What was read from the endpoint after its 101.
    pub upstream_read_ahead: Bytes,
    /// The route that took it.
    pub route: Arc<str>,
    /// The generation that routed it; its `streams` count this one while it is open.
    pub label: Option<Arc<GenerationLabel>>,
    /// The key looked up, or the plugin's label.
    pub key: Option<Box<str>>,
    /// The client.
    pub client: SocketAddr,
    /// The endpoint.
    pub endpoint: Address,
    /// The upstream of the config that the endpoint is of.
    pub upstream_name: Option<Arc<str>>,
    /// When it ends by itself, and is pinged.
    pub times: Times,
    /// The entry it was routed by, if something is to become of it when that changes.
    pub follow: Option<Following>,
    /// What its messages are shown to.
    pub hook: Option<Hook>,
    /// Called once when the stream is over, or when it is refused.
    pub on_close: Option<Box<dyn FnOnce()>>,
}

/// An entry that a stream follows.
pub struct Following {
    /// Which one, and what becomes of the stream when it changes.
    pub entry: Follow,
    /// Whether the newest state of the store still has its value. Asked once the stream can be told of changes, so that
    /// none is missed between decision and stream.
    pub is_current: Box<dyn FnOnce(&Follow) -> bool>,
}

/// A session that a stream's messages are shown to.
pub struct Hook {
    /// The session.
    pub session: Session,
    /// Between two ticks.
    pub tick: Option<Duration>,
}

/// Why a stream was not opened; both its sockets are closed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Over `streams.streams_max`.
    #[error("worker {worker} has {max} streams, as many as streams.streams_max allows")]
    Full {
        /// The worker.
        worker: usize,
        /// Its bound.
        max: usize,
    },
    /// The kernel refused.
    #[error("a socket cannot be watched")]
    Socket(#[source] io::Error),
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CloseReason {
    /// The client closed first.
    ClientClosed,
    /// The endpoint closed first.
    UpstreamClosed,
    /// A socket failed: reset, or not reachable any more.
    Error,
    /// No byte either way for too long.
    IdleTimeout,
    /// Open for too long.
    AgeMax,
    /// Closed by hand, by itself.
    Admin,
    /// Closed by hand, with others.
    Drain,
    /// The entry it was routed by changed.
    OnChange,
    /// The process ends.
    Shutdown,
    /// Its session closed it.
    Plugin,
    /// Its session failed.
    SessionFailed,
    /// A side sent what is no WebSocket frame or message, or one that is too large.
    BadFrames,
}

impl CloseReason {
    /// Every reason, each at its own place.
    pub const ALL: [Self; 12] = [
        Self::ClientClosed,
        Self::UpstreamClosed,
        Self::Error,
        Self::IdleTimeout,
        Self::AgeMax,
        Self::Admin,
        Self::Drain,
        Self::OnChange,
        Self::Shutdown,
        Self::Plugin,
        Self::SessionFailed,
        Self::BadFrames,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientClosed => "client-closed",
            Self::UpstreamClosed => "upstream-closed",
            Self::Error => "error",
            Self::IdleTimeout => "idle-timeout",
            Self::AgeMax => "age-max",
            Self::Admin => "admin",
            Self::Drain => "drain",
            Self::OnChange => "on-change",
            Self::Shutdown => "shutdown",
            Self::Plugin => "plugin",
            Self::SessionFailed => "session-failed",
            Self::BadFrames => "bad-frames",
        }
    }
}

/// What is known of a stream.
#[derive(Debug, Clone)]
pub struct StreamFacts<'a> {
    /// Its id.
    pub id: StreamId,
    /// The route that took it.
    pub route: &'a str,
    /// The generation that routed it: plugin and version.
    pub label: Option<&'a GenerationLabel>,
    /// The key looked up, or the plugin's label.
    pub key: Option<&'a str>,
    /// The client.
    pub client: SocketAddr,
    /// The endpoint.
    pub endpoint: Address,
    /// The upstream of the config that the endpoint is of.
    pub upstream: Option<&'a str>,
}

/// What the access log says of streams: one event at the start, one at the end.
#[derive(Debug, Clone)]
pub enum StreamEvent<'a> {
    /// It is open.
    Opened(StreamFacts<'a>),
    /// It is over.
    Closed {
        /// Which one.
        stream: StreamFacts<'a>,
        /// How long it was open.
        duration: Duration,
        /// Bytes from the client.
        bytes_up: u64,
        /// Bytes to the client.
        bytes_down: u64,
        /// Why.
        reason: CloseReason,
        /// How its session did, if it had one.
        session: Option<&'static str>,
    },
}
