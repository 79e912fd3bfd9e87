//! The part of a worker's table that sees to sessions: their ticks, and those that are lost.

use super::{Entry, Streams};
use crate::plugin::Sessions;
use std::rc::Rc;

impl Streams {
    /// Says where the sessions of streams live, so that those of a lost instance are seen to; to be called once.
    pub fn set_sessions(&self, sessions: Rc<Sessions>) {
        // Another would be the same.
        let _ = self.sessions.set(sessions);
    }

    /// Tells sessions whose interval has gone by.
    pub(super) fn tick_sessions(&self, tick: u32) {
        let due: Vec<usize> = {
            let table = self.table.borrow();
            let due = table.session_ticks.range(..=(tick, usize::MAX));
            due.map(|&(_, index)| index).collect()
        };
        for index in due {
            // One before it may have ended it.
            if self.table.borrow().entries.contains(index) {
                self.apply(index, |entry| entry.session_tick(tick));
                self.settle_lost();
            }
        }
    }

    /// Sees to the streams whose sessions were lost with their instance.
    pub fn settle_lost(&self) {
        let Some(sessions) = self.sessions.get() else {
            return;
        };
        if self.settling.replace(true) {
            return;
        }
        let tick = self.tick.get();
        while sessions.take_lost() {
            for index in self.indices(Entry::has_lost_session) {
                // One before it may have ended it, or lost its new session too.
                if self
                    .table
                    .borrow()
                    .entries
                    .get(index)
                    .is_some_and(Entry::has_lost_session)
                {
                    self.apply(index, |entry| entry.session_lost(tick));
                }
            }
        }
        self.settling.set(false);
    }
}
