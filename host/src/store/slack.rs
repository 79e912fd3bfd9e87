//! Memory that was freed and is given back to the system.
//!
//! The allocator keeps what is freed for the next one who asks: good for single writes, but after a million keys were set
//! and deleted it would be 200 MiB for nobody. Small pieces are not even joined to pages until it is told to. So the writer
//! tells it, after many changes, once nothing else is to be done.

use super::Snapshot;
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

    /// Gives it back; some milliseconds for each 100 MiB. Other threads wait for it only to allocate in the part of the
    /// heap that is being looked at, and theirs are small.
    pub(super) fn give_back(&mut self) {
        *self = Self::new();
        trim();
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    unsafe extern "C" {
        /// malloc.h: gives free pages of every part of the heap back, but for `pad` bytes at its end.
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc's own function; it may be called by any thread at any time, and touches free memory only.
    let _gave_some = unsafe { malloc_trim(0) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

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
