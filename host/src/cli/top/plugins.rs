//! What a plugin's versions did between two readings, and what they are now.

use super::sample::Sample;
use crate::metrics::quantile;

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
    pub(super) session_errors_per_s: f64,
    /// Those in use or with open streams: the active one, canary, shadow, then others.
    pub(super) versions: Vec<Version>,
    pub(super) shadow: Option<Shadow>,
}

/// A version.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Version {
    pub(super) version: String,
    pub(super) state: String,
    /// The share of a canary.
    pub(super) canary_percent: Option<f64>,
    pub(super) streams: u64,
    pub(super) decisions_per_s: f64,
    pub(super) traps_per_s: f64,
    pub(super) other_errors_per_s: f64,
    /// Of all its decisions since it was activated; none without one.
    pub(super) p99_so_far_ns: Option<u64>,
}

/// What a shadow was asked, and how it differed.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Shadow {
    pub(super) version: String,
    pub(super) sampled_per_s: f64,
    pub(super) compared: u64,
    pub(super) differing: u64,
    /// Sampled, but not compared: it was behind.
    pub(super) dropped: u64,
}

const CALLS: &str = "throwbar_plugin_calls_total";
const VERSION_CALLS: &str = "throwbar_plugin_version_calls_total";
const DECISIONS: &str = "throwbar_decision_seconds_bucket";
const SHADOWED: &str = "throwbar_shadow_requests_total";
/// Outcomes of calls that are neither a decision nor a trap.
const OTHER_ERRORS: [&str; 3] = ["deadline", "bad_decision", "refused_write"];
/// States in the order of their rows; any other comes after them.
const STATES: [&str; 5] = ["active", "canary", "shadow", "draining", "failing"];

/// Two readings and the seconds between them.
pub(super) struct Interval<'a> {
    pub(super) before: &'a Sample,
    pub(super) now: &'a Sample,
    pub(super) seconds: f64,
}

impl Interval<'_> {
    /// How much a counter grew, a second. One that fell was started anew: nothing is known of it.
    pub(super) fn rate(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        (self.now.sum(name, labels) - self.before.sum(name, labels)).max(0.0) / self.seconds
    }

    /// Every plugin there is now.
    pub(super) fn plugins(&self) -> Vec<Plugin> {
        let plugins = self.now.values(CALLS, "plugin").into_iter();
        plugins.map(|plugin| self.plugin(plugin)).collect()
    }

    fn plugin(&self, plugin: &str) -> Plugin {
        let of = ("plugin", plugin);
        let outcome = |outcome: &str| self.rate(CALLS, &[of, ("outcome", outcome)]);
        let histogram = self.histogram(plugin);
        let quantile = |part| quantile(histogram.iter().copied(), part);
        let mut active = self.now.labelled("throwbar_plugin_info", of);
        Plugin {
            plugin: plugin.to_owned(),
            active: active.find_map(|(labels, _)| labels.get("version").cloned()),
            decisions_per_s: self.rate(CALLS, &[of]),
            p50_ns: quantile(0.50),
            p99_ns: quantile(0.99),
            traps_per_s: outcome("trap"),
            other_errors_per_s: OTHER_ERRORS.map(outcome).iter().sum(),
            session_errors_per_s: self.rate("throwbar_session_errors_total", &[of]),
            versions: self.versions(plugin),
            shadow: self.shadow(plugin),
        }
    }

    /// Those that are more than kept.
    fn versions(&self, plugin: &str) -> Vec<Version> {
        let states = self
            .now
            .labelled("throwbar_plugin_version_state", ("plugin", plugin));
        let mut versions: Vec<Version> = states
            .filter_map(|(labels, _)| {
                Some(self.version(plugin, labels.get("version")?, labels.get("state")?))
            })
            .filter(|version| version.state != "kept" || version.streams > 0)
            .collect();
        let rank = |version: &Version| {
            let rank = STATES.iter().position(|state| *state == version.state);
            rank.unwrap_or(STATES.len())
        };
        versions.sort_by_key(rank);
        versions
    }

    fn version(&self, plugin: &str, version: &str, state: &str) -> Version {
        let of = [("plugin", plugin), ("version", version)];
        let outcome =
            |outcome: &str| self.rate(VERSION_CALLS, &[of[0], of[1], ("outcome", outcome)]);
        let p99 = self.now.sum("throwbar_plugin_version_p99_seconds", &of);
        let canary = self.now.sum("throwbar_canary_percent", &of);
        Version {
            version: version.to_owned(),
            state: state.to_owned(),
            canary_percent: (state == "canary").then_some(canary),
            streams: self.now.sum("throwbar_streams", &of) as u64,
            decisions_per_s: self.rate(VERSION_CALLS, &of),
            traps_per_s: outcome("trap"),
            other_errors_per_s: OTHER_ERRORS.map(outcome).iter().sum(),
            p99_so_far_ns: (p99 > 0.0).then_some((p99 * 1e9).round() as u64),
        }
    }

    fn shadow(&self, plugin: &str) -> Option<Shadow> {
        let of = ("plugin", plugin);
        let mut shadows = self.now.labelled(SHADOWED, of);
        let version = shadows.find_map(|(labels, _)| labels.get("version"))?;
        let of = [of, ("version", version.as_str())];
        let result = |result| self.now.sum(SHADOWED, &[of[0], of[1], ("result", result)]) as u64;
        let [same, differing, dropped] = ["same", "differing", "dropped"].map(result);
        Some(Shadow {
            version: version.clone(),
            sampled_per_s: self.rate(SHADOWED, &of),
            compared: same + differing,
            differing,
            dropped,
        })
    }

    /// Upper bounds in nanoseconds with how many decisions of the interval took so long, shortest first.
    fn histogram(&self, plugin: &str) -> Vec<(f64, u64)> {
        let bounds = self.now.values(DECISIONS, "le").into_iter();
        let mut buckets: Vec<(f64, f64)> = bounds
            .filter_map(|le| {
                let labels = [("plugin", plugin), ("le", le)];
                let at_most =
                    self.now.sum(DECISIONS, &labels) - self.before.sum(DECISIONS, &labels);
                // One that fell was started anew.
                Some((le.parse::<f64>().ok()? * 1e9, at_most.max(0.0)))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0.0;
        let each = buckets.into_iter().map(|(bound, at_most)| {
            let count = (at_most - below).max(0.0) as u64;
            below = at_most;
            (bound, count)
        });
        each.collect()
    }
}
