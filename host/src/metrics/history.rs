//! Counts that must only ever grow, although what counted them comes and goes.

use super::quantile::quantile;
use crate::plugin::generation::{CallStats, DECISION_BUCKETS};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallTotals {
    /// Calls that gave a decision.
    pub ok: u64,
    /// Calls that trapped.
    pub traps: u64,
    /// Calls cut at their deadline.
    pub deadlines: u64,
    /// Decisions that could not be acted on.
    pub bad_decisions: u64,
    /// Writes refused at commit.
    pub refused_writes: u64,
    /// Log lines dropped over the rate.
    pub log_dropped: u64,
    /// Calls of sessions.
    pub session_events: u64,
    /// Calls of sessions that trapped.
    pub session_traps: u64,
    /// Calls of sessions cut at their deadline.
    pub session_deadlines: u64,
    /// Verdicts that could not be acted on.
    pub bad_verdicts: u64,
    /// Batches of sessions that the store did not take.
    pub session_refused_writes: u64,
    /// Changes that instances were told.
    pub watch_changes: u64,
    /// Calls that tell changes that trapped.
    pub watch_traps: u64,
    /// Calls that tell changes cut at their deadline.
    pub watch_deadlines: u64,
    /// Nanoseconds of all calls together.
    pub nanos: u64,
    /// Calls by time: [`DECISION_BUCKETS`] and one for what is longer.
    pub histogram: [u64; DECISION_BUCKETS.len() + 1],
}

impl CallTotals {
    /// Adds what one worker counted.
    pub fn add_stats(&mut self, stats: &CallStats) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.ok += load(&stats.ok);
        self.traps += load(&stats.traps);
        self.deadlines += load(&stats.deadlines);
        self.bad_decisions += load(&stats.bad_decisions);
        self.refused_writes += load(&stats.refused_writes);
        self.log_dropped += load(&stats.log_dropped);
        self.session_events += load(&stats.session_events);
        self.session_traps += load(&stats.session_traps);
        self.session_deadlines += load(&stats.session_deadlines);
        self.bad_verdicts += load(&stats.bad_verdicts);
        self.session_refused_writes += load(&stats.session_refused_writes);
        self.watch_changes += load(&stats.watch_changes);
        self.watch_traps += load(&stats.watch_traps);
        self.watch_deadlines += load(&stats.watch_deadlines);
        self.nanos += load(&stats.nanos);
        for (sum, counter) in self.histogram.iter_mut().zip(&stats.histogram) {
            *sum += load(counter);
        }
    }

    /// Calls that ended, with a decision or without.
    pub fn calls(&self) -> u64 {
        self.ok + self.failed()
    }

    /// Calls that gave no decision.
    pub fn failed(&self) -> u64 {
        self.traps + self.deadlines + self.bad_decisions
    }

    /// Both together.
    pub fn plus(self, other: &Self) -> Self {
        self.with(other, u64::wrapping_add)
    }

    /// What was counted since an earlier moment.
    pub fn since(self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(mut self, other: &Self, each: fn(u64, u64) -> u64) -> Self {
        for (mine, others) in [
            (&mut self.ok, other.ok),
            (&mut self.traps, other.traps),
            (&mut self.deadlines, other.deadlines),
            (&mut self.bad_decisions, other.bad_decisions),
            (&mut self.refused_writes, other.refused_writes),
            (&mut self.log_dropped, other.log_dropped),
            (&mut self.session_events, other.session_events),
            (&mut self.session_traps, other.session_traps),
            (&mut self.session_deadlines, other.session_deadlines),
            (&mut self.bad_verdicts, other.bad_verdicts),
            (
                &mut self.session_refused_writes,
                other.session_refused_writes,
            ),
            (&mut self.watch_changes, other.watch_changes),
            (&mut self.watch_traps, other.watch_traps),
            (&mut self.watch_deadlines, other.watch_deadlines),
            (&mut self.nanos, other.nanos),
        ] {
            *mine = each(*mine, others);
        }
        for (mine, others) in self.histogram.iter_mut().zip(other.histogram) {
            *mine = each(*mine, others);
        }
        self
    }

    /// The time in nanoseconds that this part of the calls took at most, as well as the histogram tells; 0 without calls.
    pub fn quantile(&self, part: f64) -> u64 {
        let bounds = DECISION_BUCKETS.iter().map(|nanos| *nanos as f64);
        let bounds = bounds.chain([f64::INFINITY]);
        quantile(bounds.zip(self.histogram), part).unwrap_or(0)
    }
}

/// Deploys and rollbacks by plugin and result.
#[derive(Debug, Default)]
pub struct Swaps(Mutex<BTreeMap<(String, &'static str), u64>>);

impl Swaps {
    /// Counts one. The plugin is one of the config and results are few, so this stays small.
    pub fn count(&self, plugin: &str, result: &'static str) {
        let mut swaps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *swaps.entry((plugin.to_owned(), result)).or_default() += 1;
    }

    /// Plugin, result and count.
    pub fn rows(&self) -> Vec<(String, &'static str, u64)> {
        let swaps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        swaps
            .iter()
            .map(|((plugin, result), count)| (plugin.clone(), *result, *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(ok: u64) -> CallTotals {
        CallTotals {
            ok,
            ..CallTotals::default()
        }
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        assert_eq!(ok(7).quantile(0.99), 0, "nothing in the histogram");
        let mut totals = ok(100);
        totals.histogram[1] = 90;
        totals.histogram[8] = 9;
        totals.histogram[13] = 1;
        assert_eq!(totals.quantile(0.45), 1_500);
        assert_eq!(totals.quantile(0.99), 100_000);
        assert_eq!(totals.quantile(0.999), 10_000_000);
    }

    #[test]
    fn what_was_counted_since_is_the_difference() {
        let (mut before, mut now) = (ok(5), ok(9));
        (before.traps, now.traps) = (1, 4);
        now.histogram[3] = 7;
        let since = now.since(&before);
        assert_eq!(
            (since.ok, since.traps, since.histogram[3], since.calls()),
            (4, 3, 7, 7)
        );
        assert_eq!(since.plus(&before), now);
    }

    #[test]
    fn stats_of_all_workers_are_added() {
        let stats = CallStats::default();
        stats.traps.store(2, Ordering::Relaxed);
        stats.histogram[13].store(3, Ordering::Relaxed);
        let mut totals = CallTotals::default();
        totals.add_stats(&stats);
        totals.add_stats(&stats);
        assert_eq!((totals.traps, totals.histogram[13]), (4, 6));
    }

    #[test]
    fn swaps_are_counted_by_plugin_and_result() {
        let swaps = Swaps::default();
        swaps.count("p", "swapped");
        swaps.count("p", "swapped");
        swaps.count("p", "init");
        assert_eq!(
            swaps.rows(),
            [("p".into(), "init", 1), ("p".into(), "swapped", 2)]
        );
    }
}
