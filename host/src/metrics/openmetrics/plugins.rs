//! The part of a scrape that tells of plugins: calls, versions, sessions, canaries and shadows.

use super::Out;
use crate::metrics::{CallTotals, Scrape};
use crate::plugin::generation::DECISION_BUCKETS;
use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use std::fmt;

impl Scrape {
    pub(super) fn encode_plugins(&self, out: &mut Out<'_>) -> fmt::Result {
        let plugins = || self.plugins.iter();
        let active = plugins().filter_map(|row| {
            let version = row.active.as_deref()?;
            Some(([("plugin", row.plugin.as_str()), ("version", version)], 1))
        });
        out.gauges("throwbar_plugin_info", "Active version", active)?;
        let calls = plugins().flat_map(|row| {
            outcomes(&row.calls).map(|(outcome, count)| {
                (
                    [("plugin", row.plugin.as_str()), ("outcome", outcome)],
                    count,
                )
            })
        });
        out.counters("throwbar_plugin_calls", "Calls by outcome", calls)?;
        let dropped =
            plugins().map(|row| ([("plugin", row.plugin.as_str())], row.calls.log_dropped));
        out.counters(
            "throwbar_plugin_log_dropped",
            "Log lines of plugins over their rate",
            dropped,
        )?;
        self.encode_decisions(out)?;
        self.encode_sessions(out)?;
        self.encode_watchers(out)?;
        self.encode_versions(out)?;
        self.encode_trials(out)?;
        let swaps = self.swaps.iter().map(|(plugin, result, count)| {
            ([("plugin", plugin.as_str()), ("result", result)], *count)
        });
        out.counters("throwbar_swaps", "Deploys and rollbacks by result", swaps)
    }

    fn encode_sessions(&self, out: &mut Out<'_>) -> fmt::Result {
        let sessions = self.plugins.iter().flat_map(|row| {
            row.versions.iter().map(|version| {
                let labels = [
                    ("plugin", row.plugin.as_str()),
                    ("version", version.version.as_str()),
                ];
                (labels, version.sessions)
            })
        });
        out.gauges(
            "throwbar_sessions",
            "Sessions of open streams by the version that accepted them",
            sessions,
        )?;
        let plugins = || self.plugins.iter();
        let events =
            plugins().map(|row| ([("plugin", row.plugin.as_str())], row.calls.session_events));
        out.counters(
            "throwbar_session_events",
            "Calls of sessions: streams opened, messages, ticks, ends",
            events,
        )?;
        let errors = plugins().flat_map(|row| {
            let calls = &row.calls;
            [
                ("trap", calls.session_traps),
                ("deadline", calls.session_deadlines),
                ("bad_verdict", calls.bad_verdicts),
                ("refused_write", calls.session_refused_writes),
            ]
            .map(|(kind, count)| ([("plugin", row.plugin.as_str()), ("kind", kind)], count))
        });
        out.counters(
            "throwbar_session_errors",
            "Calls of sessions that failed, or whose writes did, by kind",
            errors,
        )
    }

    fn encode_watchers(&self, out: &mut Out<'_>) -> fmt::Result {
        let plugins = || self.plugins.iter();
        let changes =
            plugins().map(|row| ([("plugin", row.plugin.as_str())], row.calls.watch_changes));
        out.counters(
            "throwbar_watch_changes",
            "Changes that instances with a view of their own were told",
            changes,
        )?;
        let errors = plugins().flat_map(|row| {
            let kinds = [
                ("trap", row.calls.watch_traps),
                ("deadline", row.calls.watch_deadlines),
            ];
            kinds.map(|(kind, count)| ([("plugin", row.plugin.as_str()), ("kind", kind)], count))
        });
        out.counters(
            "throwbar_watch_errors",
            "Calls that tell changes that failed, by kind",
            errors,
        )
    }

    /// A version's series go with it.
    fn encode_versions(&self, out: &mut Out<'_>) -> fmt::Result {
        let versions = || {
            self.plugins.iter().flat_map(|row| {
                let plugin = row.plugin.as_str();
                row.versions.iter().map(move |version| {
                    let labels = [("plugin", plugin), ("version", version.version.as_str())];
                    (labels, version)
                })
            })
        };
        out.gauges(
            "throwbar_streams",
            "Open streams by the version that accepted them",
            versions().map(|(labels, version)| (labels, version.streams)),
        )?;
        out.gauges(
            "throwbar_plugin_version_state",
            "What each version is now",
            versions()
                .map(|([plugin, name], version)| ([plugin, name, ("state", version.state)], 1)),
        )?;
        out.gauges(
            "throwbar_plugin_version_memory_bytes",
            "Linear memory of a version's instances",
            versions().map(|(labels, version)| (labels, version.memory_bytes)),
        )?;
        let counted = || versions().filter_map(|(labels, one)| Some((labels, one.calls?)));
        let calls = counted().flat_map(|([plugin, name], calls)| {
            outcomes(&calls).map(|(outcome, count)| ([plugin, name, ("outcome", outcome)], count))
        });
        out.counters(
            "throwbar_plugin_version_calls",
            "Calls of a version's newest generation by outcome",
            calls,
        )?;
        let p99 = counted().map(|(labels, calls)| (labels, calls.quantile(0.99) as f64 / 1e9));
        out.float_gauges(
            "throwbar_plugin_version_p99_seconds",
            "99th percentile of the decision time of a version's newest generation",
            p99,
        )
    }

    fn encode_trials(&self, out: &mut Out<'_>) -> fmt::Result {
        let canaries = self.plugins.iter().filter_map(|row| {
            let canary = row.canary.as_ref()?;
            let labels = [
                ("plugin", row.plugin.as_str()),
                ("version", &*canary.version),
            ];
            Some((labels, canary.percent))
        });
        out.float_gauges("throwbar_canary_percent", "Share of a canary", canaries)?;
        let shadows = self.plugins.iter().filter_map(|row| {
            let shadow = row.shadow.as_ref()?;
            Some((row.plugin.as_str(), shadow))
        });
        let requests = shadows.flat_map(|(plugin, shadow)| {
            [
                ("same", shadow.compared - shadow.differing),
                ("differing", shadow.differing),
                ("dropped", shadow.dropped),
            ]
            .map(|(result, count)| {
                let version = shadow.version.as_str();
                (
                    [("plugin", plugin), ("version", version), ("result", result)],
                    count,
                )
            })
        });
        out.counters(
            "throwbar_shadow_requests",
            "Requests of a shadow by result",
            requests,
        )?;
        let trips = self.plugins.iter().flat_map(|row| {
            let plugin = row.plugin.as_str();
            let trips = row.guard_trips.iter();
            trips.map(move |(limit, count)| ([("plugin", plugin), ("limit", *limit)], *count))
        });
        out.counters(
            "throwbar_guard_trips",
            "Versions taken back, by the limit passed",
            trips,
        )
    }

    fn encode_decisions(&self, out: &mut Out<'_>) -> fmt::Result {
        let mut family = out.0.encode_descriptor(
            "throwbar_decision_seconds",
            "Time of a plugin's decision",
            None,
            MetricType::Histogram,
        )?;
        for row in &self.plugins {
            let bounds = DECISION_BUCKETS
                .iter()
                .map(|nanos| *nanos as f64 / 1e9)
                .chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(row.calls.histogram).collect();
            let count = row.calls.histogram.iter().sum();
            family
                .encode_family(&[("plugin", row.plugin.as_str())])?
                .encode_histogram::<NoLabelSet>(
                    row.calls.nanos as f64 / 1e9,
                    count,
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

/// Calls by the value of the label `outcome`.
fn outcomes(calls: &CallTotals) -> [(&'static str, u64); 5] {
    [
        ("ok", calls.ok),
        ("trap", calls.traps),
        ("deadline", calls.deadlines),
        ("bad_decision", calls.bad_decisions),
        ("refused_write", calls.refused_writes),
    ]
}
