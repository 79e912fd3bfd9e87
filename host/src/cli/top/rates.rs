//! What happened between two readings: rates, and quantiles of the decision time.

use super::sample::Sample;
use std::time::Duration;

/// A moment of the proxy.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Rates {
    pub(super) uptime_s: u64,
    pub(super) ready: bool,
    pub(super) requests_per_s: f64,
    pub(super) connections: u64,
    pub(super) streams: u64,
    pub(super) streams_opened_per_s: f64,
    pub(super) streams_closed_per_s: f64,
    /// Revision of the store, and how often it changed.
    pub(super) revision: u64,
    pub(super) map_changes_per_s: f64,
    pub(super) routes: Vec<Route>,
    pub(super) plugins: Vec<Plugin>,
}

/// A route's requests a second.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Route {
    pub(super) route: String,
    pub(super) requests_per_s: f64,
    /// By class: 2xx, 3xx, 4xx, 5xx.
    pub(super) by_class_per_s: [f64; 4],
    pub(super) no_decision_per_s: f64,
}

/// A plugin's decisions.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Plugin {
    pub(super) plugin: String,
    pub(super) active: Option<String>,
    pub(super) decisions_per_s: f64,
    /// Of this interval's decisions; none without one.
    pub(super) p50_ns: Option<u64>,
    pub(super) p99_ns: Option<u64>,
    pub(super) traps_per_s: f64,
    pub(super) other_errors_per_s: f64,
    pub(super) versions: Vec<Version>,
}

/// A version that streams belong to, or that is active.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Version {
    pub(super) version: String,
    pub(super) streams: u64,
}

const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
const REQUESTS: &str = "throwbar_requests_total";
const CALLS: &str = "throwbar_plugin_calls_total";
const DECISIONS: &str = "throwbar_decision_seconds_bucket";

impl Rates {
    /// What happened from one reading to the next.
    pub(super) fn between(before: &Sample, now: &Sample, span: Duration) -> Self {
        let seconds = span.as_secs_f64().max(1e-3);
        // A counter that fell belongs to a process that started anew: nothing is known of the interval.
        let rate = |name: &str, labels: &[(&str, &str)]| {
            (now.sum(name, labels) - before.sum(name, labels)).max(0.0) / seconds
        };
        let gauge = |name: &str| now.sum(name, &[]) as u64;
        let routes = now
            .values(REQUESTS, "route")
            .into_iter()
            .map(|route| Route {
                route: route.to_owned(),
                requests_per_s: rate(REQUESTS, &[("route", route)]),
                by_class_per_s: CLASSES
                    .map(|class| rate(REQUESTS, &[("route", route), ("code_class", class)])),
                no_decision_per_s: rate("throwbar_plugin_failures_total", &[("route", route)]),
            });
        let plugins = now.values(CALLS, "plugin").into_iter().map(|plugin| {
            let outcome = |outcome: &str| rate(CALLS, &[("plugin", plugin), ("outcome", outcome)]);
            let histogram = histogram(before, now, plugin);
            Plugin {
                plugin: plugin.to_owned(),
                active: label_of(now, "throwbar_plugin_info", plugin, "version"),
                decisions_per_s: rate(CALLS, &[("plugin", plugin)]),
                p50_ns: quantile(&histogram, 0.50),
                p99_ns: quantile(&histogram, 0.99),
                traps_per_s: outcome("trap"),
                other_errors_per_s: ["deadline", "bad_decision", "refused_write"]
                    .map(outcome)
                    .iter()
                    .sum(),
                versions: versions(now, plugin),
            }
        });
        Self {
            uptime_s: gauge("throwbar_uptime_seconds"),
            ready: gauge("throwbar_ready") == 1,
            requests_per_s: rate(REQUESTS, &[]),
            connections: gauge("throwbar_connections_open"),
            streams: gauge("throwbar_streams_open"),
            streams_opened_per_s: rate("throwbar_streams_opened_total", &[]),
            streams_closed_per_s: rate("throwbar_streams_closed_total", &[]),
            revision: gauge("throwbar_store_revision"),
            map_changes_per_s: rate("throwbar_store_revision", &[]),
            routes: routes.collect(),
            plugins: plugins.collect(),
        }
    }
}

fn label_of(sample: &Sample, name: &str, plugin: &str, label: &str) -> Option<String> {
    let mut series = sample.series(name).iter();
    let (labels, _) =
        series.find(|(labels, _)| labels.get("plugin").is_some_and(|p| p == plugin))?;
    labels.get(label).cloned()
}

fn versions(sample: &Sample, plugin: &str) -> Vec<Version> {
    sample
        .series("throwbar_streams")
        .iter()
        .filter(|(labels, _)| labels.get("plugin").is_some_and(|p| p == plugin))
        .filter_map(|(labels, streams)| {
            Some(Version {
                version: labels.get("version")?.clone(),
                streams: *streams as u64,
            })
        })
        .collect()
}

/// Upper bounds in seconds with how many decisions of the interval took at most so long, shortest first.
fn histogram(before: &Sample, now: &Sample, plugin: &str) -> Vec<(f64, f64)> {
    let bounds = now.values(DECISIONS, "le").into_iter();
    let mut buckets: Vec<(f64, f64)> = bounds
        .filter_map(|le| {
            let labels = [("plugin", plugin), ("le", le)];
            let count = now.sum(DECISIONS, &labels) - before.sum(DECISIONS, &labels);
            Some((le.parse().ok()?, count.max(0.0)))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    buckets
}

/// A quantile in nanoseconds, taking decisions as spread evenly inside their bucket; of the last, open bucket its lower
/// bound.
fn quantile(buckets: &[(f64, f64)], quantile: f64) -> Option<u64> {
    let wanted = buckets.last()?.1 * quantile;
    if wanted <= 0.0 {
        return None;
    }
    let (mut below, mut lower) = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= wanted {
            let share = (wanted - below) / (count - below);
            let seconds = match bound.is_finite() {
                true => lower + (bound - lower) * share,
                false => lower,
            };
            return Some((seconds * 1e9).round() as u64);
        }
        (below, lower) = (count, bound);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(requests: u64, traps: u64, fast: u64, all: u64, revision: u64) -> Sample {
        Sample::parse(&format!(
            "throwbar_requests_total{{route=\"all\",code_class=\"2xx\"}} {requests}\n\
             throwbar_requests_total{{route=\"all\",code_class=\"5xx\"}} 1\n\
             throwbar_plugin_failures_total{{route=\"all\"}} {traps}\n\
             throwbar_plugin_info{{plugin=\"p\",version=\"abc\"}} 1\n\
             throwbar_plugin_calls_total{{plugin=\"p\",outcome=\"ok\"}} {requests}\n\
             throwbar_plugin_calls_total{{plugin=\"p\",outcome=\"trap\"}} {traps}\n\
             throwbar_decision_seconds_bucket{{le=\"0.000001\",plugin=\"p\"}} {fast}\n\
             throwbar_decision_seconds_bucket{{le=\"0.000003\",plugin=\"p\"}} {all}\n\
             throwbar_decision_seconds_bucket{{le=\"+Inf\",plugin=\"p\"}} {all}\n\
             throwbar_streams{{plugin=\"p\",version=\"abc\"}} 4\n\
             throwbar_streams{{plugin=\"other\",version=\"def\"}} 9\n\
             throwbar_ready 1\n\
             throwbar_store_revision {revision}\n"
        ))
        .expect("metrics")
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let (before, now) = (sample(100, 0, 100, 100, 7), sample(300, 4, 200, 300, 10));
        let rates = Rates::between(&before, &now, Duration::from_secs(2));
        assert_eq!(rates.requests_per_s, 100.0);
        assert_eq!(rates.map_changes_per_s, 1.5);
        assert_eq!(rates.routes[0].by_class_per_s, [100.0, 0.0, 0.0, 0.0]);
        let plugin = &rates.plugins[0];
        assert_eq!((plugin.decisions_per_s, plugin.traps_per_s), (102.0, 2.0));
        assert_eq!(plugin.active.as_deref(), Some("abc"));
        assert_eq!(plugin.versions.len(), 1);
        assert_eq!(plugin.versions[0].streams, 4);
        // Half of the interval's decisions took at most 1 µs, the others up to 3.
        assert_eq!((plugin.p50_ns, plugin.p99_ns), (Some(1_000), Some(2_960)));
    }

    #[test]
    fn a_proxy_that_started_anew_has_no_negative_rates() {
        let (before, now) = (sample(300, 4, 200, 300, 10), sample(5, 0, 5, 5, 1));
        let rates = Rates::between(&before, &now, Duration::from_secs(1));
        assert_eq!((rates.requests_per_s, rates.map_changes_per_s), (0.0, 0.0));
        assert_eq!(rates.plugins[0].p50_ns, None);
    }

    #[test]
    fn a_decision_beyond_the_last_bound_counts_as_that_bound() {
        assert_eq!(
            quantile(&[(1e-6, 0.0), (f64::INFINITY, 3.0)], 0.5),
            Some(1_000)
        );
        assert_eq!(quantile(&[(1e-6, 0.0), (f64::INFINITY, 0.0)], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }
}
