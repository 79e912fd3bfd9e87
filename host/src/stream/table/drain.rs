//! What a drain asks of a worker: which streams are meant, and to close some of them.

use crate::stream::{CloseReason, Spot, StreamFilter, Streams};

/// How streams are closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The WebSocket close code.
    pub code: u16,
    /// The reason told to both ends.
    pub reason: Box<str>,
    /// The reason told to logs and metrics.
    pub why: CloseReason,
}

impl Streams {
    /// Where the streams are that the filter lets through.
    pub fn select(&self, filter: &StreamFilter) -> Vec<Spot> {
        let table = self.table.borrow();
        let now = self.elapsed();
        let entries = table.entries.iter().filter(|(_, entry)| {
            !entry.is_closing()
                && filter.matches(&entry.facts(), now.saturating_sub(entry.opened()))
        });
        let spot = |(index, entry): (usize, &super::Entry)| Spot {
            id: entry.id(),
            index,
        };
        entries.map(spot).collect()
    }

    /// Closes these streams as [`Streams::close`] does; says how many were there and not closing already.
    pub fn close_many(&self, spots: &[Spot], close: &Close) -> usize {
        let mut closed = 0;
        for spot in spots {
            let is_open = {
                let table = self.table.borrow();
                let entry = table.entries.get(spot.index);
                entry.is_some_and(|entry| entry.id() == spot.id && !entry.is_closing())
            };
            if is_open {
                closed += 1;
                self.begin_close(spot.index, close.code, &close.reason, close.why);
            }
        }
        closed
    }
}
