//! What happened between two readings: rates, and what there is now.

use super::plugins::{Interval, Plugin};
use super::sample::Sample;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// What was read at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) sample: Sample,
    /// Those that run.
    pub(super) drains: Vec<Drain>,
}

/// A drain that runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Drain {
    pub(super) id: u64,
    #[serde(skip_serializing)]
    pub(super) state: String,
    pub(super) matched: u64,
    pub(super) closed: u64,
    pub(super) gone: u64,
    pub(super) left: u64,
    /// Milliseconds since the Unix epoch.
    pub(super) ends_ms: u64,
    pub(super) cause: String,
    pub(super) selector: Value,
}

/// A moment of the proxy.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    pub(super) drains: Vec<Drain>,
}

/// A route's requests a second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Route {
    pub(super) route: String,
    pub(super) requests_per_s: f64,
    /// By class: 2xx, 3xx, 4xx, 5xx.
    pub(super) by_class_per_s: [f64; 4],
    pub(super) no_decision_per_s: f64,
}

const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
const REQUESTS: &str = "throwbar_requests_total";
const UPTIME: &str = "throwbar_uptime_seconds";
const REVISION: &str = "throwbar_store_revision";

impl Rates {
    /// What happened from one reading to the next. Of a process that started anew in between, what happened since.
    pub(super) fn between(before: &Reading, now: &Reading, span: Duration) -> Self {
        let (earlier, now, drains) = (&before.sample, &now.sample, now.drains.clone());
        let gauge = |name: &str| now.sum(name, &[]) as u64;
        let uptime = now.sum(UPTIME, &[]);
        let started_anew = uptime < earlier.sum(UPTIME, &[]);
        let nothing = Sample::default();
        let interval = Interval {
            before: if started_anew { &nothing } else { earlier },
            now,
            seconds: if started_anew {
                uptime
            } else {
                span.as_secs_f64()
            }
            .max(1e-3),
        };
        let rate = |name: &str, labels: &[(&str, &str)]| interval.rate(name, labels);
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
        Self {
            uptime_s: uptime as u64,
            ready: gauge("throwbar_ready") == 1,
            requests_per_s: rate(REQUESTS, &[]),
            connections: gauge("throwbar_connections_open"),
            streams: gauge("throwbar_streams_open"),
            streams_opened_per_s: rate("throwbar_streams_opened_total", &[]),
            streams_closed_per_s: rate("throwbar_streams_closed_total", &[]),
            revision: gauge(REVISION),
            // The revision outlives the process.
            map_changes_per_s: match started_anew {
                true => 0.0,
                false => rate(REVISION, &[]),
            },
            routes: routes.collect(),
            plugins: interval.plugins(),
            drains,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(text: &str) -> Reading {
        Reading {
            sample: Sample::parse(text).expect("metrics"),
            drains: Vec::new(),
        }
    }

    fn sample(requests: u64, traps: u64, fast: u64, all: u64, revision: u64) -> Reading {
        reading(&format!(
            "throwbar_uptime_seconds {requests}\n\
             throwbar_requests_total{{route=\"all\",code_class=\"2xx\"}} {requests}\n\
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
             throwbar_plugin_version_state{{plugin=\"p\",version=\"kep\",state=\"kept\"}} 1\n\
             throwbar_plugin_version_state{{plugin=\"p\",version=\"old\",state=\"draining\"}} 1\n\
             throwbar_plugin_version_state{{plugin=\"p\",version=\"new\",state=\"canary\"}} 1\n\
             throwbar_plugin_version_state{{plugin=\"p\",version=\"try\",state=\"shadow\"}} 1\n\
             throwbar_plugin_version_state{{plugin=\"p\",version=\"abc\",state=\"active\"}} 1\n\
             throwbar_plugin_version_calls_total{{plugin=\"p\",version=\"new\",outcome=\"ok\"}} {fast}\n\
             throwbar_plugin_version_calls_total{{plugin=\"p\",version=\"new\",outcome=\"trap\"}} {traps}\n\
             throwbar_plugin_version_p99_seconds{{plugin=\"p\",version=\"new\"}} 0.000004\n\
             throwbar_canary_percent{{plugin=\"p\",version=\"new\"}} 2.5\n\
             throwbar_shadow_requests_total{{plugin=\"p\",version=\"try\",result=\"same\"}} {all}\n\
             throwbar_shadow_requests_total{{plugin=\"p\",version=\"try\",result=\"differing\"}} {traps}\n\
             throwbar_shadow_requests_total{{plugin=\"p\",version=\"try\",result=\"dropped\"}} 1\n\
             throwbar_ready 1\n\
             throwbar_store_revision {revision}\n"
        ))
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
        // Half of the interval's decisions took at most 1 µs, the others up to 3.
        assert_eq!((plugin.p50_ns, plugin.p99_ns), (Some(1_000), Some(2_960)));
    }

    #[test]
    fn versions_in_use_are_told_with_their_state_and_what_is_kept_only_is_not() {
        let (before, now) = (sample(100, 0, 100, 100, 7), sample(300, 4, 200, 300, 10));
        let rates = Rates::between(&before, &now, Duration::from_secs(2));
        let plugin = &rates.plugins[0];
        let told: Vec<_> = plugin
            .versions
            .iter()
            .map(|one| (&*one.version, &*one.state))
            .collect();
        let expected = [
            ("abc", "active"),
            ("new", "canary"),
            ("try", "shadow"),
            ("old", "draining"),
        ];
        assert_eq!(told, expected);
        assert_eq!(
            (
                plugin.versions[0].streams,
                plugin.versions[0].canary_percent
            ),
            (4, None)
        );
        let canary = &plugin.versions[1];
        assert_eq!(
            (canary.canary_percent, canary.p99_so_far_ns),
            (Some(2.5), Some(4_000))
        );
        assert_eq!((canary.decisions_per_s, canary.traps_per_s), (52.0, 2.0));
        let shadow = plugin.shadow.as_ref().expect("a shadow");
        assert_eq!(
            (shadow.compared, shadow.differing, shadow.dropped),
            (304, 4, 1)
        );
        assert_eq!((&*shadow.version, shadow.sampled_per_s), ("try", 102.0));
    }

    #[test]
    fn of_a_proxy_that_started_anew_only_what_happened_since_is_told() {
        let (before, now) = (sample(300, 4, 200, 300, 10), sample(5, 0, 5, 5, 11));
        let rates = Rates::between(&before, &now, Duration::from_secs(1));
        // It has run for 5 s.
        assert_eq!((rates.requests_per_s, rates.map_changes_per_s), (1.2, 0.0));
        assert_eq!(rates.plugins[0].p50_ns, Some(500));
    }

    #[test]
    fn plugins_come_and_go_between_readings() {
        let (with, without) = (
            sample(5, 0, 5, 5, 1),
            reading("throwbar_uptime_seconds 6\n"),
        );
        let second = Duration::from_secs(1);
        let gone = Rates::between(&with, &without, second);
        assert!(gone.plugins.is_empty() && gone.routes.is_empty());
        let come = Rates::between(&reading("throwbar_uptime_seconds 1\n"), &with, second);
        assert_eq!(come.plugins[0].decisions_per_s, 5.0);
    }

    #[test]
    fn a_counter_that_falls_gives_no_rate_below_zero() {
        let (before, now) = (sample(300, 4, 200, 300, 10), sample(301, 0, 5, 5, 10));
        let rates = Rates::between(&before, &now, Duration::from_secs(1));
        let plugin = &rates.plugins[0];
        assert_eq!(
            (plugin.traps_per_s, plugin.versions[1].decisions_per_s),
            (0.0, 0.0)
        );
        assert_eq!(plugin.p50_ns, None);
    }
}
