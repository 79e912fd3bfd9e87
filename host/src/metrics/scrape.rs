//! One scrape: the state of all counters at one moment.

use super::{CallTotals, WorkerCounters};
use crate::stream::CloseReason;
use std::sync::atomic::{AtomicU64, Ordering};

/// Everything that is told at one moment.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Of the binary.
    pub version: &'static str,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Whether traffic is welcome.
    pub ready: bool,
    /// Sums over workers.
    pub workers: WorkerTotals,
    /// By route.
    pub routes: Vec<RouteRow>,
    /// By plugin.
    pub plugins: Vec<PluginRow>,
    /// By bucket.
    pub buckets: Vec<BucketRow>,
    /// The store's revision.
    pub store_revision: u64,
    /// Of the fleet, if this is a node of one.
    pub fleet: Option<FleetRow>,
    /// Backends that proxies share.
    pub shared: Vec<SharedRow>,
    /// Drains of streams that run.
    pub drains_running: u64,
    /// Plugin, result and count.
    pub swaps: Vec<(String, &'static str, u64)>,
    /// Lines of the process's own log dropped because its reader was behind.
    pub process_log_dropped: u64,
    /// Lines of the audit log that could not be written.
    pub audit_log_lost: u64,
}

/// Requests of a route.
#[derive(Debug, Clone, Default)]
pub struct RouteRow {
    /// The route's name.
    pub route: String,
    /// Requests by status class, see [`super::RouteCounters`].
    pub by_class: [u64; 6],
    /// Requests whose plugin gave no decision.
    pub plugin_failures: u64,
}

/// A backend that proxies share.
#[derive(Debug, Clone, Default)]
pub struct SharedRow {
    /// Which.
    pub backend: &'static str,
    /// Whether it is there.
    pub is_up: bool,
    /// The newest revision that is known.
    pub revision: u64,
    /// How often it was lost.
    pub losses: u64,
    /// How old what is known may be, in seconds; none if nothing is known.
    pub staleness_s: Option<f64>,
}

/// A plugin.
#[derive(Debug, Clone, Default)]
pub struct PluginRow {
    /// Its name.
    pub plugin: String,
    /// The active version, short.
    pub active: Option<String>,
    /// Calls of all its generations.
    pub calls: CallTotals,
    /// Its versions.
    pub versions: Vec<VersionRow>,
    /// Its canary.
    pub canary: Option<CanaryRow>,
    /// Its shadow.
    pub shadow: Option<ShadowRow>,
    /// How often the guard took a version back, by limit.
    pub guard_trips: Vec<(&'static str, u64)>,
}

/// A canary.
#[derive(Debug, Clone, Default)]
pub struct CanaryRow {
    /// The version, short.
    pub version: String,
    /// Its share.
    pub percent: f64,
}

/// A shadow.
#[derive(Debug, Clone, Default)]
pub struct ShadowRow {
    /// The version, short.
    pub version: String,
    /// Requests compared.
    pub compared: u64,
    /// Requests decided in another way.
    pub differing: u64,
    /// Requests not compared.
    pub dropped: u64,
}

/// A version of a plugin.
#[derive(Debug, Clone, Default)]
pub struct VersionRow {
    /// The version, short.
    pub version: String,
    /// What it is now.
    pub state: &'static str,
    /// Open streams it accepted.
    pub streams: u64,
    /// Sessions of these streams.
    pub sessions: u64,
    /// Bytes of linear memory of its instances.
    pub memory_bytes: u64,
    /// Calls of its newest generation, if it has one in this process.
    pub calls: Option<CallTotals>,
}

/// A bucket.
#[derive(Debug, Clone, Default)]
pub struct BucketRow {
    /// Its name.
    pub bucket: String,
    /// Its keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// What a node knows and counts of its fleet.
#[derive(Debug, Clone, Default)]
pub struct FleetRow {
    /// Nodes that tell that they are there.
    pub nodes: u64,
    /// By plugin of this node.
    pub plugins: Vec<FleetPluginRow>,
    /// Steps taken because the fleet agreed on something.
    pub steps: u64,
    /// Those that failed.
    pub step_errors: u64,
    /// Components asked for.
    pub fetches: u64,
    /// Those that could not be had.
    pub fetch_errors: u64,
}

/// A plugin, as far as the fleet is concerned.
#[derive(Debug, Clone, Default)]
pub struct FleetPluginRow {
    /// Its name.
    pub plugin: String,
    /// Whether this node has something else than was agreed on.
    pub differs: bool,
    /// Whether it failed to take it.
    pub failed: bool,
}

/// [`WorkerCounters`] of all workers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the sum of the counter of its name")]
pub struct WorkerTotals {
    pub connections_accepted: u64,
    pub connections_refused: u64,
    pub connections_open: u64,
    pub connections_timed_out: u64,
    pub requests_malformed: u64,
    pub upstream_dials: u64,
    pub upstream_dial_errors: u64,
    pub upstream_retries: u64,
    pub upstream_idle: u64,
    pub streams_opened: u64,
    pub streams_closed: u64,
    pub streams_closed_by: [u64; CloseReason::ALL.len()],
    pub stream_pings: u64,
    pub stream_bytes_up: u64,
    pub stream_bytes_down: u64,
    pub log_lines_dropped: u64,
}

impl WorkerTotals {
    /// Sums over workers. Counters move meanwhile: the sums are of about the same moment.
    pub fn sum(workers: &[WorkerCounters]) -> Self {
        let sum = |counter: fn(&WorkerCounters) -> &AtomicU64| {
            workers
                .iter()
                .map(|worker| counter(worker).load(Ordering::Relaxed))
                .sum()
        };
        Self {
            connections_accepted: sum(|worker| &worker.connections_accepted),
            connections_refused: sum(|worker| &worker.connections_refused),
            connections_open: sum(|worker| &worker.connections_open),
            connections_timed_out: sum(|worker| &worker.connections_timed_out),
            requests_malformed: sum(|worker| &worker.requests_malformed),
            upstream_dials: sum(|worker| &worker.upstream_dials),
            upstream_dial_errors: sum(|worker| &worker.upstream_dial_errors),
            upstream_retries: sum(|worker| &worker.upstream_retries),
            upstream_idle: sum(|worker| &worker.upstream_idle),
            // Closed before opened: a stream between the two reads must not make their difference negative.
            streams_closed: sum(|worker| &worker.streams_closed),
            streams_closed_by: CloseReason::ALL.map(|reason| {
                let by = workers.iter().map(|worker| &worker.streams_closed_by);
                by.map(|by| by[reason as usize].load(Ordering::Relaxed))
                    .sum()
            }),
            streams_opened: sum(|worker| &worker.streams_opened),
            stream_pings: sum(|worker| &worker.stream_pings),
            stream_bytes_up: sum(|worker| &worker.stream_bytes_up),
            stream_bytes_down: sum(|worker| &worker.stream_bytes_down),
            log_lines_dropped: sum(|worker| &worker.log_lines_dropped),
        }
    }

    /// Streams that are open.
    pub fn streams_open(&self) -> u64 {
        self.streams_opened.saturating_sub(self.streams_closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed() {
        let workers = [WorkerCounters::default(), WorkerCounters::default()];
        workers[0].upstream_dials.store(2, Ordering::Relaxed);
        workers[1].upstream_dials.store(3, Ordering::Relaxed);
        let sums = WorkerTotals::sum(&workers);
        assert_eq!(sums.upstream_dials, 5);
        assert_eq!(sums.streams_open(), 0);
    }
}
