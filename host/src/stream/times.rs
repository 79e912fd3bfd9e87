//! When streams end by themselves and when they are pinged: for all, and for those of one route.

use std::time::Duration;

/// Times of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// No byte either way for so long closes it; none by default.
    pub idle_timeout: Option<Duration>,
    /// It is closed at this age; none by default.
    pub age_max: Option<Duration>,
    /// Between two pings of ours to the client; none by default.
    pub ping_client: Option<Duration>,
    /// Between two pings of ours to the endpoint; none by default.
    pub ping_upstream: Option<Duration>,
}

/// What a route has in place of the times of all; zero is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteTimes {
    /// In place of [`Times::idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// In place of [`Times::age_max`].
    pub age_max: Option<Duration>,
    /// In place of [`Times::ping_client`].
    pub ping_client: Option<Duration>,
    /// In place of [`Times::ping_upstream`].
    pub ping_upstream: Option<Duration>,
}

impl RouteTimes {
    /// The times of a stream of this route.
    pub fn over(self, all: Times) -> Times {
        let over = |own: Option<Duration>, all: Option<Duration>| match own {
            Some(own) => (!own.is_zero()).then_some(own),
            None => all,
        };
        Times {
            idle_timeout: over(self.idle_timeout, all.idle_timeout),
            age_max: over(self.age_max, all.age_max),
            ping_client: over(self.ping_client, all.ping_client),
            ping_upstream: over(self.ping_upstream, all.ping_upstream),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_the_times_of_all_but_for_its_own_and_zero_is_never() {
        let [short, long] = [1, 60].map(Duration::from_secs);
        let all = Times {
            idle_timeout: Some(long),
            ping_client: Some(long),
            ping_upstream: Some(long),
            ..Times::default()
        };
        assert_eq!(RouteTimes::default().over(all), all);
        let own = RouteTimes {
            age_max: Some(short),
            ping_client: Some(short),
            ping_upstream: Some(Duration::ZERO),
            ..RouteTimes::default()
        };
        let expected = Times {
            idle_timeout: Some(long),
            age_max: Some(short),
            ping_client: Some(short),
            ping_upstream: None,
        };
        assert_eq!(own.over(all), expected);
    }
}
