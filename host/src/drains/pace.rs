//! When which stream of a drain is closed.

use crate::stream::Spot;
use std::time::Duration;

/// A span cut into as many equal parts as there are streams: each is closed at a random time of its own part. So they
/// never come in step with anything, and never faster than twice the average for more than a moment.
pub(super) struct Pace {
    over: Duration,
}

impl Pace {
    pub(super) fn new(over: Duration) -> Self {
        Self { over }
    }

    /// The end of the streams, from `next` on, whose time has come.
    pub(super) fn due(&self, spots: &[Spot], next: usize, elapsed: Duration) -> usize {
        let waiting = spots.iter().enumerate().skip(next);
        let mut later =
            waiting.skip_while(|(at, spot)| self.time(*at, spots.len(), spot) <= elapsed);
        later.next().map_or(spots.len(), |(at, _)| at)
    }

    /// When the stream at a place has its turn.
    fn time(&self, at: usize, count: usize, spot: &Spot) -> Duration {
        self.over
            .mul_f64((at as f64 + spot.id.fraction()) / count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::StreamId;

    fn spots(count: u64) -> Vec<Spot> {
        (1..=count)
            .map(|id| Spot::at(StreamId(id << 8), 0))
            .collect()
    }

    #[test]
    fn closes_are_spread_evenly() {
        let (spots, pace) = (spots(1_000), Pace::new(Duration::from_secs(10)));
        let mut next = 0;
        for tenth in 1..=100 {
            let due = pace.due(&spots, next, Duration::from_millis(tenth * 100));
            let ideal = tenth as usize * 10;
            assert!(
                due.abs_diff(ideal) <= 1,
                "{due} after {tenth} tenths of a second"
            );
            assert!((8..=12).contains(&(due - next)), "{} at once", due - next);
            next = due;
        }
        assert_eq!(next, 1_000);
    }

    #[test]
    fn the_first_is_not_closed_at_once_and_the_last_not_after_the_end() {
        let mut first = std::collections::BTreeSet::new();
        for id in 1..100 {
            let spots = [Spot::at(StreamId(id << 8), 0)];
            let pace = Pace::new(Duration::from_secs(100));
            let seconds = (0..=100).find(|&s| pace.due(&spots, 0, Duration::from_secs(s)) == 1);
            first.insert(seconds.expect("before the end"));
        }
        assert!(first.len() > 40, "{first:?}");
    }

    #[test]
    fn over_no_time_all_are_due_and_of_none_none() {
        let pace = Pace::new(Duration::ZERO);
        assert_eq!(pace.due(&spots(9), 0, Duration::ZERO), 9);
        assert_eq!(pace.due(&[], 0, Duration::ZERO), 0);
    }
}
