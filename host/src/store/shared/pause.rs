//! How long to wait before something is tried again that failed.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Pauses that double, each shortened by chance, so that a fleet does not come back all at once.
pub(super) struct Pause {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pause {
    /// Those of an engine that is lost.
    pub(super) fn new() -> Self {
        Self::between(FIRST, LONGEST)
    }

    pub(super) fn between(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The engine answered: the next pause is a short one.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The pause to make now: between half of it and all of it.
    pub(super) fn next(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.longest);
        let half = full / 2;
        let chance = getrandom::u32().unwrap_or(u32::MAX);
        half + half.mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew() {
        let mut pause = Pause::new();
        let mut full = FIRST;
        for _ in 0..12 {
            let next = pause.next();
            assert!(full / 2 <= next && next <= full, "{next:?} of {full:?}");
            full = (full * 2).min(LONGEST);
        }
        pause.reset();
        assert!(pause.next() <= FIRST);
    }
}
