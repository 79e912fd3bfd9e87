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
        Self { idle_timeout: None, age_max: None, shutdown_grace: Duration::from_secs(30), streams_max: 100_000 }
    }
}
