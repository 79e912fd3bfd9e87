//! What time does to streams: those that are due are closed or pinged.

use super::{Streams, ticks};
use crate::stream::CloseReason;
use crate::stream::entry::{Overdue, Progress};
use std::time::Instant;

/// With more streams than this their timeouts are looked at every [`SWEEP_TICKS`] only.
const SWEEP_ALWAYS_MAX: usize = 1_000;

/// Ticks between two looks at the timeouts of many streams.
const SWEEP_TICKS: u32 = 10;

/// Streams closed at one tick for changes of what they follow, which may be that of a whole map.
const CHANGES_PER_SWEEP: usize = 500;

impl Streams {
    /// Takes note of the time, ends streams that are idle or open for too long and closing handshakes that take too long,
    /// and sends the pings that are due. To be called every [`TICK`](crate::proxy::TICK) while a stream is open.
    pub fn sweep(&self, now: Instant) {
        let tick = ticks(now.saturating_duration_since(self.start)).max(self.tick.get());
        self.tick.set(tick);
        self.settle_lost();
        self.tick_sessions(tick);
        {
            let mut table = self.table.borrow_mut();
            let few = table.closing > 0 || table.entries.len() <= SWEEP_ALWAYS_MAX;
            if tick < table.due || !few && tick.saturating_sub(table.swept) < SWEEP_TICKS {
                return;
            }
            table.swept = tick;
        }
        let mut changes = 0;
        for index in self.indices(|entry| entry.due() <= tick) {
            let overdue = self.table.borrow().entries[index].overdue(tick);
            match overdue {
                None => {}
                Some(Overdue::Handshake) => {
                    self.apply(index, |entry| {
                        Progress::Ended(entry.why(CloseReason::Error))
                    });
                }
                Some(Overdue::Idle) => {
                    self.begin_close(index, 1001, "idle timeout", CloseReason::IdleTimeout);
                }
                Some(Overdue::Age) => {
                    self.begin_close(index, 1001, "maximum age", CloseReason::AgeMax);
                }
                Some(Overdue::Change) if changes < CHANGES_PER_SWEEP => {
                    changes += 1;
                    self.begin_close(index, 1012, "entry changed", CloseReason::OnChange);
                }
                // Its turn comes with the next tick.
                Some(Overdue::Change) => {}
                Some(Overdue::Ping) => {
                    self.apply(index, |entry| entry.ping(tick));
                }
            }
        }
        let mut table = self.table.borrow_mut();
        let due = table.entries.iter().map(|(_, entry)| entry.due()).min();
        table.due = due.unwrap_or(u32::MAX);
    }
}
