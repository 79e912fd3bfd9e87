//! Memory that was freed and is given back to the system.
//!
//! The allocator keeps what is freed for the next one who asks: good for single writes, but after a million keys were set
//! and deleted it would be 200 MiB for nobody. So the writer has it given back, after many changes, once nothing else is to be
//! done.

use super::Snapshot;
use crate::memory;
use std::time::{Duration, Instant};

/// Changes, since memory was given back last, from which on it is worth looking again: some 10 MiB.
const CHANGES_MIN: usize = 65_536;
/// How long the writer may go on without a pause before it does so all the same.
const BUSY_MAX: Duration = Duration::from_secs(30);

/// What may have been freed since memory was given back last.
pub(super) struct Slack {
    changes: usize,
    /// When there were enough of them.
    since: Option<Instant>,
}

impl Slack {
    pub(super) fn new() -> Self {
        Self {
            changes: 0,
            since: None,
        }
    }

    /// Notes changes: what they replaced is freed some time, and what they were made of already is.
    pub(super) fn note(&mut self, changes: usize) {
        self.changes = self.changes.saturating_add(changes);
        if self.changes >= CHANGES_MIN && self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// Notes a state that was loaded: it took more memory than it has.
    pub(super) fn note_loaded(&mut self, snapshot: &Snapshot) {
        let keys = snapshot.buckets.iter().map(|bucket| bucket.table.len());
        self.note(usize::try_from(keys.sum::<u64>()).unwrap_or(usize::MAX));
    }

    /// Whether there is something to give back.
    pub(super) fn is_due(&self) -> bool {
        self.since.is_some()
    }

    /// Whether it cannot wait for a pause any longer.
    pub(super) fn is_overdue(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= BUSY_MAX)
    }

    /// Gives it back.
    pub(super) fn give_back(&mut self) {
        *self = Self::new();
        memory::give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_changes_are_not_worth_a_look_and_many_are_once() {
        let mut slack = Slack::new();
        slack.note(CHANGES_MIN - 1);
        assert!(!slack.is_due());
        slack.note(1);
        assert!(slack.is_due() && !slack.is_overdue());
        slack.since = Instant::now().checked_sub(BUSY_MAX);
        assert!(slack.is_overdue());
        slack.give_back();
        assert!(!slack.is_due() && !slack.is_overdue());
    }
}
