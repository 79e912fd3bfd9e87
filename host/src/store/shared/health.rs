//! Whether an engine that proxies share is there, and how old what is known of it may be.

use std::time::{Duration, Instant, SystemTime};

use crate::store::Revision;

/// How an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The newest revision that is known.
    pub revision: Revision,
    /// Why it is lost; none: it is there.
    pub lost: Option<String>,
    /// When it was known for the last time that there is nothing newer than what readers see, and how long ago that had been
    /// then: what a copy kept is older than the process. None: never. No jump of the system's time changes it.
    current_at: Option<(Instant, Duration)>,
    /// How often it was lost.
    pub losses: u64,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            revision: Revision::default(),
            lost: None,
            current_at: None,
            losses: 0,
        }
    }

    /// How old what is known may be; none if nothing is known. A second or less while the engine is there.
    pub fn staleness(&self) -> Option<Duration> {
        self.current_at.map(|(at, age)| age + at.elapsed())
    }

    /// It is there, and has told of this revision.
    pub(super) fn there(&mut self, revision: Revision) {
        if self.lost.take().is_some() {
            tracing::info!(%revision, "what proxies share is there again");
        }
        self.revision = revision;
    }

    /// Readers see all that there was then.
    pub(super) fn current(&mut self, at: Instant) {
        self.current_at = Some((at, Duration::ZERO));
    }

    /// It was loaded, by a question that was asked then.
    pub(super) fn loaded(&mut self, at: Instant) {
        self.current_at.get_or_insert((at, Duration::ZERO));
    }

    pub(super) fn lost(&mut self, reason: String) {
        if self.lost.is_none() {
            self.losses += 1;
            tracing::warn!(
                "{reason}: the buckets that proxies share there are read from memory, writes to them are refused"
            );
        }
        self.lost = Some(reason);
    }

    pub(super) fn kept_from(&mut self, at: SystemTime, reason: String) {
        self.lost(reason);
        // A clock that was set back makes nothing younger than now.
        let age = SystemTime::now().duration_since(at).unwrap_or_default();
        self.current_at = Some((Instant::now(), age));
    }
}
