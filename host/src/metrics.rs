//! Every metric: name, unit, labels, one line of help.

use crate::stream::CloseReason;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

mod history;
mod openmetrics;
mod quantile;
mod scrape;

pub use history::{CallTotals, Swaps};
pub use openmetrics::{CONTENT_TYPE, encode};
pub use quantile::quantile;
pub use scrape::{
    BucketRow, CanaryRow, FleetPluginRow, FleetRow, PluginRow, RouteRow, Scrape, ShadowRow,
    SharedRow, VersionRow, WorkerTotals,
};

/// Adds to a counter that only this thread writes: a load and a store, without the locked instruction of `fetch_add`.
#[inline]
pub fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

/// What one worker counts; only it writes, the admin thread reads.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Connections accepted.
    pub connections_accepted: AtomicU64,
    /// Connections refused over a limit.
    pub connections_refused: AtomicU64,
    /// Connections open.
    pub connections_open: AtomicU64,
    /// Connections cut at a deadline.
    pub connections_timed_out: AtomicU64,
    /// Requests refused for their framing or head.
    pub requests_malformed: AtomicU64,
    /// Upstream connections dialled.
    pub upstream_dials: AtomicU64,
    /// Dials that failed.
    pub upstream_dial_errors: AtomicU64,
    /// Requests sent again on a new connection.
    pub upstream_retries: AtomicU64,
    /// Idle upstream connections kept.
    pub upstream_idle: AtomicU64,
    /// Streams opened.
    pub streams_opened: AtomicU64,
    /// Streams closed.
    pub streams_closed: AtomicU64,
    /// The same by [`CloseReason`].
    pub streams_closed_by: [AtomicU64; CloseReason::ALL.len()],
    /// No count, but the buckets that streams of the worker follow entries of, as [`BucketId::bit`] has them.
    ///
    /// [`BucketId::bit`]: crate::store::BucketId::bit
    pub followed_buckets: AtomicU64,
    /// Pings of our own sent in streams.
    pub stream_pings: AtomicU64,
    /// Bytes from clients in streams.
    pub stream_bytes_up: AtomicU64,
    /// Bytes to clients in streams.
    pub stream_bytes_down: AtomicU64,
    /// Access lines dropped because the writer was behind.
    pub log_lines_dropped: AtomicU64,
}

/// What one worker counts for one route.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RouteCounters {
    /// Requests by status class: index 1 to 5 for 1xx to 5xx, 0 for those that ended without a status.
    pub by_class: [AtomicU64; 6],
    /// Requests whose plugin gave no decision.
    pub plugin_failures: AtomicU64,
}

/// Counters of all workers, for one scrape. `routes[r]` holds the counters of route `r` on each worker.
pub struct Counters {
    /// By worker.
    pub workers: Box<[WorkerCounters]>,
}
