//! Counts that must only ever grow, although what counted them comes and goes.

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
        self.nanos += load(&stats.nanos);
        for (sum, counter) in self.histogram.iter_mut().zip(&stats.histogram) {
            *sum += load(counter);
        }
    }

    /// Both together.
    pub fn plus(mut self, other: &Self) -> Self {
        self.ok += other.ok;
        self.traps += other.traps;
        self.deadlines += other.deadlines;
        self.bad_decisions += other.bad_decisions;
        self.refused_writes += other.refused_writes;
        self.log_dropped += other.log_dropped;
        self.session_events += other.session_events;
        self.session_traps += other.session_traps;
        self.session_deadlines += other.session_deadlines;
        self.bad_verdicts += other.bad_verdicts;
        self.nanos += other.nanos;
        for (sum, count) in self.histogram.iter_mut().zip(&other.histogram) {
            *sum += count;
        }
        self
    }
}

/// Calls of each plugin over all its generations, as scrapes saw them.
///
/// Counts are a generation's own and go with it. A scrape that finds another generation active takes the final counts of
/// the one it saw last, if that is the one before; of generations that came and went between two scrapes it knows nothing.
#[derive(Debug, Default)]
pub struct CallHistory(Mutex<BTreeMap<String, Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// Of generations that are gone.
    gone: CallTotals,
    /// The active generation, and what it had counted.
    last: Option<(u64, CallTotals)>,
}

impl CallHistory {
    /// All calls of a plugin, given the counts of its active generation and of the one before.
    pub fn observe(
        &self,
        plugin: &str,
        active: Option<(u64, CallTotals)>,
        previous: Option<(u64, CallTotals)>,
    ) -> CallTotals {
        let mut plugins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = plugins.entry(plugin.to_owned()).or_default();
        if let Some((id, counts)) = seen.last
            && active.is_none_or(|(active, _)| active != id)
        {
            let counts = previous
                .filter(|(previous, _)| *previous == id)
                .map_or(counts, |(_, last)| last);
            seen.gone = seen.gone.plus(&counts);
        }
        seen.last = active;
        active.map_or(seen.gone, |(_, counts)| counts.plus(&seen.gone))
    }

    /// Forgets plugins that are no longer there.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut plugins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plugins.retain(|plugin, _| keep(plugin));
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
    fn calls_of_a_plugin_only_grow_across_swaps() {
        let history = CallHistory::default();
        assert_eq!(history.observe("p", None, None), ok(0));
        assert_eq!(history.observe("p", Some((1, ok(5))), None), ok(5));
        assert_eq!(history.observe("p", Some((1, ok(7))), None), ok(7));
        let swapped = history.observe("p", Some((2, ok(1))), Some((1, ok(9))));
        assert_eq!(swapped, ok(10));
        let twice = history.observe("p", Some((4, ok(2))), Some((3, ok(100))));
        assert_eq!(twice, ok(12));
        assert_eq!(history.observe("p", Some((4, ok(3))), None), ok(13));
        assert_eq!(history.observe("q", Some((5, ok(1))), None), ok(1));
    }

    #[test]
    fn plugins_that_left_are_forgotten() {
        let history = CallHistory::default();
        history.observe("p", Some((1, ok(5))), None);
        history.retain(|plugin| plugin != "p");
        assert_eq!(history.observe("p", Some((2, ok(1))), None), ok(1));
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
