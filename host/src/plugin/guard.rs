//! The guard: takes a canary, or a version that is active for a short time, back when it errs too often or is too slow.
//!
//! It looks at the counters of the workers from the control thread, several times a second; requests know nothing of it.

use super::canary::Fraction;
use super::{GenerationId, Plugins};
use crate::metrics::CallTotals;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks remembered of one generation: a longer window is looked at less finely.
const LOOKS_MAX: u32 = 64;

/// When a version is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The time over which calls are counted.
    pub window: Duration,
    /// With fewer calls in it nothing is judged.
    pub calls_min: u64,
    /// Calls without a decision that could be acted on, as a part of all.
    pub error_rate: Option<Fraction>,
    /// Calls that trapped or were cut at their deadline.
    pub traps: Option<u64>,
    /// 99th percentile of the decision time.
    pub p99: Option<Duration>,
    /// How long an active version is watched after its activation.
    pub probation: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            calls_min: 100,
            error_rate: Fraction::new(0.05),
            traps: None,
            p99: None,
            probation: Duration::from_secs(300),
        }
    }
}

/// What was over its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The limit's name.
    pub(super) limit: &'static str,
    /// For people.
    pub(super) reason: String,
    /// When that was seen.
    pub(super) decided: Instant,
}

impl Verdict {
    fn new(limit: &'static str, reason: String) -> Self {
        Self {
            limit,
            reason,
            decided: Instant::now(),
        }
    }
}

impl Guard {
    /// What of the calls of one window is over its limit.
    fn judge(&self, calls: &CallTotals) -> Option<Verdict> {
        let total = calls.calls();
        if total < self.calls_min.max(1) {
            return None;
        }
        let errors = calls.failed() + calls.refused_writes;
        let of_calls = format!("of {total} calls in {:?}", self.window);
        if let Some(limit) = self.error_rate
            && errors as f64 > limit.part() * total as f64
        {
            let reason = format!(
                "{errors} errors {of_calls}: {:.2} %, at most {} % are allowed",
                errors as f64 * 100.0 / total as f64,
                limit.as_percent()
            );
            return Some(Verdict::new("error_rate", reason));
        }
        let traps = calls.traps + calls.deadlines;
        if let Some(limit) = self.traps.filter(|limit| traps > *limit) {
            let reason = format!("{traps} traps {of_calls}, at most {limit} are allowed");
            return Some(Verdict::new("traps", reason));
        }
        let p99 = Duration::from_nanos(calls.quantile(0.99));
        if let Some(limit) = self.p99.filter(|limit| p99 > *limit) {
            let reason = format!("p99 of {p99:?} {of_calls}, at most {limit:?} is allowed");
            return Some(Verdict::new("p99", reason));
        }
        None
    }
}

/// What was counted of one generation at the last looks.
#[derive(Default)]
struct Window(VecDeque<(Instant, CallTotals)>);

impl Window {
    /// Notes a look, and gives what was counted within the window.
    fn look(&mut self, now: Instant, totals: CallTotals, window: Duration) -> CallTotals {
        // A generation counts from nothing.
        if self.0.is_empty() {
            self.0.push_back((now, CallTotals::default()));
        }
        // The last one before the window is what its beginning is compared with.
        while let Some((next, _)) = self.0.get(1)
            && now.duration_since(*next) >= window
        {
            self.0.pop_front();
        }
        let (_, begin) = self.0[0];
        let (last, _) = self.0[self.0.len() - 1];
        if now.duration_since(last) >= window / LOOKS_MAX {
            self.0.push_back((now, totals));
        }
        totals.since(&begin)
    }
}

impl Plugins {
    /// Looks at what is watched, again and again; the control runtime drops it at the end.
    pub async fn keep_guard(self: Arc<Self>) {
        let mut windows: HashMap<GenerationId, Window> = HashMap::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let now = Instant::now();
            let slots = self.shared.slots.load_full();
            let mut watched = Vec::new();
            for slot in slots.values() {
                let Some(guard) = slot.config().versions.guard.clone() else {
                    continue;
                };
                for (id, totals) in slot.watched(guard.probation) {
                    let counted = windows
                        .entry(id)
                        .or_default()
                        .look(now, totals, guard.window);
                    watched.push(id);
                    if let Some(verdict) = guard.judge(&counted) {
                        self.take_back(slot, id, &verdict).await;
                    }
                }
            }
            windows.retain(|id, _| watched.contains(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(ok: u64, traps: u64) -> CallTotals {
        let mut calls = CallTotals {
            ok,
            traps,
            ..CallTotals::default()
        };
        calls.histogram[5] = ok + traps;
        calls
    }

    fn limit(guard: &Guard, calls: CallTotals) -> Option<&'static str> {
        guard.judge(&calls).map(|verdict| verdict.limit)
    }

    #[test]
    fn each_limit_is_judged_by_enough_calls_only() {
        let guard = Guard {
            error_rate: Fraction::new(0.01),
            ..Guard::default()
        };
        assert_eq!(limit(&guard, calls(98, 2)), Some("error_rate"));
        assert_eq!(limit(&guard, calls(97, 2)), None, "99 calls are too few");
        assert_eq!(limit(&guard, calls(99, 1)), None, "1 % is not over 1 %");
        let guard = Guard {
            error_rate: None,
            traps: Some(3),
            p99: Some(Duration::from_micros(9)),
            ..Guard::default()
        };
        assert_eq!(limit(&guard, calls(1_000, 4)), Some("traps"));
        assert_eq!(limit(&guard, calls(1_000, 3)), Some("p99"));
        let reason = guard.judge(&calls(1_000, 4)).expect("a verdict").reason;
        assert_eq!(
            reason,
            "4 traps of 1004 calls in 10s, at most 3 are allowed"
        );
    }

    #[test]
    fn a_window_counts_what_is_in_it_and_forgets_what_is_older() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let span = Duration::from_secs(10);
        assert_eq!(
            window.look(at(0), calls(5, 0), span).ok,
            5,
            "all since its birth"
        );
        for second in 1..100 {
            let counted = window.look(at(second), calls(5 + second * 10, 0), span).ok;
            let expected = if second <= 10 { 5 + second * 10 } else { 100 };
            assert_eq!(counted, expected, "second {second}");
        }
        assert!(window.0.len() <= 12, "{}", window.0.len());
    }
}
