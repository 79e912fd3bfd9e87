//! A scrape as OpenMetrics text.
//!
//! No label ever holds a key, a path or an address: series stay as few as the config makes them.

use super::Scrape;
use crate::stream::CloseReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;

mod fleet;
mod plugins;

/// Media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Status classes by index of a route's counters.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The text of a scrape.
///
/// # Errors
/// None that a string as target could give.
pub fn encode(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        self.encode_process(&mut out)?;
        self.encode_requests(&mut out)?;
        self.encode_plugins(&mut out)?;
        self.encode_store(&mut out)?;
        if let Some(fleet) = &self.fleet {
            fleet.encode(&mut out)?;
        }
        self.encode_connections(&mut out)
    }
}

impl Scrape {
    fn encode_process(&self, out: &mut Out<'_>) -> fmt::Result {
        out.gauges(
            "throwbar_build_info",
            "Version of the binary",
            [([("version", self.version)], 1)],
        )?;
        out.gauge("throwbar_uptime_seconds", "Since start", self.uptime_s)?;
        out.gauge(
            "throwbar_ready",
            "Whether traffic is welcome",
            u64::from(self.ready),
        )
    }

    fn encode_requests(&self, out: &mut Out<'_>) -> fmt::Result {
        let by_class = self.routes.iter().flat_map(|row| {
            CLASSES.iter().zip(row.by_class).map(|(class, count)| {
                (
                    [("route", row.route.as_str()), ("code_class", class)],
                    count,
                )
            })
        });
        out.counters("throwbar_requests", "Requests by status class", by_class)?;
        let failures = self
            .routes
            .iter()
            .map(|row| ([("route", row.route.as_str())], row.plugin_failures));
        out.counters(
            "throwbar_plugin_failures",
            "Requests whose plugin gave no decision",
            failures,
        )?;
        out.counter(
            "throwbar_requests_malformed",
            "Requests refused for their framing or head",
            self.workers.requests_malformed,
        )
    }

    fn encode_store(&self, out: &mut Out<'_>) -> fmt::Result {
        out.gauge(
            "throwbar_store_revision",
            "Revision of the store",
            self.store_revision,
        )?;
        let rows = || self.buckets.iter();
        out.gauges(
            "throwbar_bucket_keys",
            "Keys of a bucket",
            rows().map(|row| ([("bucket", row.bucket.as_str())], row.keys)),
        )?;
        out.gauges(
            "throwbar_bucket_bytes",
            "Bytes of a bucket's keys and values",
            rows().map(|row| ([("bucket", row.bucket.as_str())], row.bytes)),
        )?;
        let shared = || {
            self.shared
                .iter()
                .map(|row| ([("backend", row.backend)], row))
        };
        out.gauges(
            "throwbar_shared_up",
            "Whether a backend that proxies share is there",
            shared().map(|(labels, row)| (labels, u64::from(row.is_up))),
        )?;
        out.gauges(
            "throwbar_shared_revision",
            "Newest known revision of a backend that proxies share",
            shared().map(|(labels, row)| (labels, row.revision)),
        )?;
        out.float_gauges(
            "throwbar_shared_staleness_seconds",
            "How old what is known of a backend that proxies share may be",
            shared().filter_map(|(labels, row)| Some((labels, row.staleness_s?))),
        )?;
        out.counters(
            "throwbar_shared_losses",
            "How often a backend that proxies share was lost",
            shared().map(|(labels, row)| (labels, row.losses)),
        )
    }

    fn encode_connections(&self, out: &mut Out<'_>) -> fmt::Result {
        let sums = &self.workers;
        for (name, help, count) in [
            (
                "throwbar_connections_accepted",
                "Connections accepted",
                sums.connections_accepted,
            ),
            (
                "throwbar_connections_refused",
                "Connections refused over a limit",
                sums.connections_refused,
            ),
            (
                "throwbar_connections_timed_out",
                "Connections cut at a deadline",
                sums.connections_timed_out,
            ),
            (
                "throwbar_upstream_dials",
                "Upstream connections dialled",
                sums.upstream_dials,
            ),
            (
                "throwbar_upstream_dial_errors",
                "Dials that failed",
                sums.upstream_dial_errors,
            ),
            (
                "throwbar_upstream_retries",
                "Requests sent again on a new connection",
                sums.upstream_retries,
            ),
            (
                "throwbar_streams_opened",
                "Streams opened",
                sums.streams_opened,
            ),
            (
                "throwbar_stream_pings",
                "Pings of the proxy's own sent in streams",
                sums.stream_pings,
            ),
            (
                "throwbar_stream_bytes_up",
                "Bytes from clients in streams",
                sums.stream_bytes_up,
            ),
            (
                "throwbar_stream_bytes_down",
                "Bytes to clients in streams",
                sums.stream_bytes_down,
            ),
            (
                "throwbar_log_dropped",
                "Access lines dropped because the writer was behind",
                sums.log_lines_dropped,
            ),
            (
                "throwbar_process_log_dropped",
                "Lines of the process's own log dropped because its reader was behind",
                self.process_log_dropped,
            ),
            (
                "throwbar_audit_log_lost",
                "Lines of the audit log that could not be written",
                self.audit_log_lost,
            ),
        ] {
            out.counter(name, help, count)?;
        }
        let closed = CloseReason::ALL.map(|reason| {
            let count = sums.streams_closed_by[reason as usize];
            ([("reason", reason.name())], count)
        });
        out.counters(
            "throwbar_streams_closed",
            "Streams closed by reason",
            closed,
        )?;
        out.gauge(
            "throwbar_stream_drains_running",
            "Drains of streams that run",
            self.drains_running,
        )?;
        out.gauge(
            "throwbar_connections_open",
            "Connections open",
            sums.connections_open,
        )?;
        out.gauge(
            "throwbar_upstream_idle",
            "Idle upstream connections kept",
            sums.upstream_idle,
        )?;
        out.gauge("throwbar_streams_open", "Streams open", sums.streams_open())
    }
}

/// Writes families of one shape.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    /// The encoder adds `_total` to the name.
    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        write_counter(&mut metric, count)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn counters<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = ([(&'a str, &'a str); N], u64)>,
    ) -> fmt::Result {
        self.rows((name, help, MetricType::Counter), rows, |mut row, count| {
            write_counter(&mut row, count)
        })
    }

    fn float_gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = ([(&'a str, &'a str); N], f64)>,
    ) -> fmt::Result {
        self.rows((name, help, MetricType::Gauge), rows, |mut row, value| {
            write_gauge(&mut row, value)
        })
    }

    fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = ([(&'a str, &'a str); N], u64)>,
    ) -> fmt::Result {
        self.rows((name, help, MetricType::Gauge), rows, |mut row, value| {
            row.encode_gauge(&value)
        })
    }

    /// A family with a row for each set of labels.
    fn rows<'a, const N: usize, T>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        rows: impl IntoIterator<Item = ([(&'a str, &'a str); N], T)>,
        write: impl Fn(MetricEncoder<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            write(family.encode_family(&labels)?, value)?;
        }
        Ok(())
    }
}

fn write_gauge(metric: &mut MetricEncoder<'_>, value: f64) -> fmt::Result {
    metric.encode_gauge(&value)
}

fn write_counter(metric: &mut MetricEncoder<'_>, count: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{
        BucketRow, CallTotals, CanaryRow, FleetPluginRow, FleetRow, PluginRow, RouteRow, ShadowRow,
        SharedRow, VersionRow, WorkerTotals,
    };

    #[test]
    fn a_scrape_names_every_series() {
        let mut calls = CallTotals {
            ok: 3,
            traps: 1,
            nanos: 2_000,
            ..CallTotals::default()
        };
        calls.histogram[0] = 3;
        calls.histogram[13] = 1;
        let text = encode(Scrape {
            version: "0.1.0",
            uptime_s: 7,
            ready: true,
            workers: WorkerTotals {
                streams_opened: 5,
                streams_closed: 2,
                streams_closed_by: [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0],
                ..WorkerTotals::default()
            },
            routes: vec![RouteRow {
                route: "by-id".into(),
                by_class: [0, 0, 8, 0, 1, 0],
                plugin_failures: 4,
            }],
            plugins: vec![PluginRow {
                plugin: "p".into(),
                active: Some("aa".into()),
                calls,
                versions: vec![VersionRow {
                    version: "aa".into(),
                    state: "active",
                    streams: 3,
                    sessions: 2,
                    memory_bytes: 65_536,
                    calls: Some(calls),
                }],
                canary: Some(CanaryRow {
                    version: "bb".into(),
                    percent: 2.5,
                }),
                shadow: Some(ShadowRow {
                    version: "cc".into(),
                    compared: 9,
                    differing: 4,
                    dropped: 1,
                }),
                guard_trips: vec![("traps", 2)],
            }],
            buckets: vec![BucketRow {
                bucket: "upstreams".into(),
                keys: 2,
                bytes: 30,
            }],
            store_revision: 9,
            fleet: Some(FleetRow {
                nodes: 3,
                plugins: vec![FleetPluginRow {
                    plugin: "p".into(),
                    differs: true,
                    failed: false,
                }],
                steps: 5,
                step_errors: 1,
                fetches: 4,
                fetch_errors: 2,
            }),
            shared: vec![SharedRow {
                backend: "etcd",
                is_up: false,
                revision: 7,
                losses: 1,
                staleness_s: Some(2.5),
            }],
            drains_running: 1,
            swaps: vec![("p".into(), "swapped", 6)],
            process_log_dropped: 11,
            audit_log_lost: 12,
        })
        .unwrap();
        for line in [
            "throwbar_build_info{version=\"0.1.0\"} 1",
            "throwbar_uptime_seconds 7",
            "throwbar_ready 1",
            "throwbar_requests_total{route=\"by-id\",code_class=\"2xx\"} 8",
            "throwbar_requests_total{route=\"by-id\",code_class=\"4xx\"} 1",
            "throwbar_plugin_failures_total{route=\"by-id\"} 4",
            "throwbar_plugin_info{plugin=\"p\",version=\"aa\"} 1",
            "throwbar_plugin_calls_total{plugin=\"p\",outcome=\"ok\"} 3",
            "throwbar_plugin_calls_total{plugin=\"p\",outcome=\"trap\"} 1",
            "throwbar_decision_seconds_count{plugin=\"p\"} 4",
            "throwbar_decision_seconds_bucket{le=\"+Inf\",plugin=\"p\"} 4",
            "throwbar_streams{plugin=\"p\",version=\"aa\"} 3",
            "throwbar_plugin_version_state{plugin=\"p\",version=\"aa\",state=\"active\"} 1",
            "throwbar_plugin_version_memory_bytes{plugin=\"p\",version=\"aa\"} 65536",
            "throwbar_plugin_version_calls_total{plugin=\"p\",version=\"aa\",outcome=\"trap\"} 1",
            "throwbar_plugin_version_p99_seconds{plugin=\"p\",version=\"aa\"} 0.01",
            "throwbar_canary_percent{plugin=\"p\",version=\"bb\"} 2.5",
            "throwbar_shadow_requests_total{plugin=\"p\",version=\"cc\",result=\"same\"} 5",
            "throwbar_guard_trips_total{plugin=\"p\",limit=\"traps\"} 2",
            "throwbar_streams_open 3",
            "throwbar_sessions{plugin=\"p\",version=\"aa\"} 2",
            "throwbar_session_errors_total{plugin=\"p\",kind=\"trap\"} 0",
            "throwbar_streams_opened_total 5",
            "throwbar_streams_closed_total{reason=\"drain\"} 2",
            "throwbar_stream_drains_running 1",
            "throwbar_swaps_total{plugin=\"p\",result=\"swapped\"} 6",
            "throwbar_store_revision 9",
            "throwbar_fleet_nodes 3",
            "throwbar_fleet_plugin_differs{plugin=\"p\"} 1",
            "throwbar_fleet_plugin_failed{plugin=\"p\"} 0",
            "throwbar_fleet_step_errors_total 1",
            "throwbar_fleet_fetches_total 4",
            "throwbar_fleet_fetch_errors_total 2",
            "throwbar_shared_up{backend=\"etcd\"} 0",
            "throwbar_shared_revision{backend=\"etcd\"} 7",
            "throwbar_shared_staleness_seconds{backend=\"etcd\"} 2.5",
            "throwbar_shared_losses_total{backend=\"etcd\"} 1",
            "throwbar_bucket_keys{bucket=\"upstreams\"} 2",
            "throwbar_log_dropped_total 0",
            "throwbar_process_log_dropped_total 11",
            "throwbar_audit_log_lost_total 12",
        ] {
            assert!(
                text.lines().any(|got| got == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
