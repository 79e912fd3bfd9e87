//! The entry of a bucket that a stream was routed by, and what comes of its change.

use super::Entry;
use crate::plugin::decision::Follow;
use crate::proxy::TICK;
use crate::store::{OnChange, Value};
use std::time::Duration;

/// What a stream follows.
pub(in crate::stream) struct Followed {
    pub(in crate::stream) entry: Follow,
    /// The tick at which the stream is closed for a change; `u32::MAX` as long as there was none.
    due: u32,
}

impl Followed {
    pub(in crate::stream) fn new(entry: Follow) -> Box<Self> {
        Box::new(Self {
            entry,
            due: u32::MAX,
        })
    }

    pub(super) fn due(&self) -> u32 {
        self.due
    }
}

impl Entry {
    /// What it follows.
    pub(in crate::stream) fn follow(&self) -> Option<&Follow> {
        self.followed.as_ref().map(|followed| &followed.entry)
    }

    /// Whether it is to be closed for this value of what it follows, and was not said to be for another.
    pub(in crate::stream) fn is_outdated(&self, value: Option<&Value>) -> bool {
        let followed = self.followed.as_ref();
        followed.is_some_and(|it| it.due == u32::MAX && Some(&it.entry.value) != value)
    }

    /// Notes when it is to be closed: `share`, from 0 to 1, is its part of the time over which such streams are.
    pub(in crate::stream) fn outdate(&mut self, tick: u32, share: f64) {
        if let Some(followed) = &mut self.followed {
            let wait = match followed.entry.on_change {
                OnChange::Drain { after, over } => after + over.mul_f64(share),
                OnChange::Close | OnChange::Keep => Duration::ZERO,
            };
            let ticks = u32::try_from(wait.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
            // The greatest tick is never.
            followed.due = tick.saturating_add(ticks).min(u32::MAX - 1);
        }
    }
}
