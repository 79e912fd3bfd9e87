//! Upgraded streams: two raw sockets joined, in an epoll set of each worker's own.

use std::time::Duration;

/// Upgraded streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// No byte either way for so long closes a stream; none by default.
    pub idle_timeout: Option<Duration>,
    /// A stream is closed at this age; none by default.
    pub age_max: Option<Duration>,
    /// How long a drain waits for streams before it closes them with 1001.
    pub shutdown_grace: Duration,
    /// Streams of one worker.
    pub streams_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            idle_timeout: None,
            age_max: None,
            shutdown_grace: Duration::from_secs(30),
            streams_max: 100_000,
        }
    }
}

/// Names a stream in the process: the worker in the low byte.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct StreamId(pub u64);

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
    pub client: std::net::SocketAddr,
    /// The endpoint.
    pub endpoint: std::net::SocketAddr,
    /// Milliseconds since the Unix epoch at its start.
    pub started_ms: u64,
    /// Seconds it is open.
    pub age_s: u64,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
}

/// Which streams: every given condition holds.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct StreamFilter {
    /// This plugin's.
    pub plugin: Option<String>,
    /// Accepted by the version whose digest begins so.
    pub version: Option<String>,
    /// With this key.
    pub key: Option<String>,
    /// Of this route.
    pub route: Option<String>,
}
// STUB
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
#[allow(missing_docs)]
pub struct Streams;
#[allow(missing_docs)]
pub struct NewStream {
    pub downstream: std::net::TcpStream,
    pub downstream_read_ahead: bytes::Bytes,
    pub upstream: std::net::TcpStream,
    pub upstream_read_ahead: bytes::Bytes,
    pub route: Arc<str>,
    pub label: Option<Arc<crate::plugin::generation::GenerationLabel>>,
    pub key: Option<Box<str>>,
    pub client: SocketAddr,
    pub endpoint: SocketAddr,
    pub idle_timeout: Option<Duration>,
    pub age_max: Option<Duration>,
}
#[allow(missing_docs)]
pub struct StreamEvent<'a>(&'a ());
#[allow(missing_docs)]
impl Streams {
    pub fn new(
        _: usize,
        _: Config,
        _: Arc<crate::metrics::Counters>,
        _: Box<dyn Fn(StreamEvent<'_>)>,
    ) -> std::io::Result<Rc<Self>> {
        unimplemented!()
    }
    pub fn open(&self, _: NewStream) -> Result<StreamId, std::io::Error> {
        unimplemented!()
    }
    pub fn len(&self) -> usize {
        0
    }
    pub async fn run(self: Rc<Self>) {}
    pub async fn drained(&self) {}
    pub fn close_all(&self, _: u16, _: &str) {}
    pub fn close(&self, _: StreamId, _: u16, _: &str) -> bool {
        false
    }
    pub fn list(&self, _: &StreamFilter, _: usize) -> Vec<StreamInfo> {
        vec![]
    }
    pub fn sweep(&self, _: Instant) {}
}
#[allow(missing_docs)]
impl StreamId {
    pub fn worker(self) -> usize {
        (self.0 & 0xff) as usize
    }
}
