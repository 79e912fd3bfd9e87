//! Which streams are meant: the conditions of lists and drains.

use super::{StreamFacts, StreamId};
use crate::upstream::address::Address;
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Duration;

/// Which streams: every given condition holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamFilter {
    /// This plugin's.
    pub plugin: Option<String>,
    /// Accepted by the version whose digest begins so.
    pub version: Option<String>,
    /// With this key.
    pub key: Option<String>,
    /// Of this route.
    pub route: Option<String>,
    /// To this endpoint or upstream.
    pub upstream: Option<UpstreamFilter>,
    /// Of clients in this network.
    pub client: Option<IpNet>,
    /// Open for at least so long.
    pub older_than: Option<Duration>,
}

/// Where streams go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamFilter {
    /// To this address.
    Endpoint(Address),
    /// To any port of this address.
    Host(IpAddr),
    /// To whichever endpoint of the upstream of this name.
    Name(String),
}

impl UpstreamFilter {
    /// An address with its port or without; anything else is the name of an upstream.
    pub fn of(text: &str) -> Self {
        if let Ok(endpoint) = text.parse() {
            return Self::Endpoint(endpoint);
        }
        match text.parse() {
            Ok(host) => Self::Host(host),
            Err(_) => Self::Name(text.to_owned()),
        }
    }

    fn matches(&self, stream: &StreamFacts<'_>) -> bool {
        match self {
            Self::Endpoint(endpoint) => stream.endpoint == *endpoint,
            Self::Host(host) => {
                let ip = stream.endpoint.ip().map(|ip| ip.to_canonical());
                ip == Some(host.to_canonical())
            }
            Self::Name(name) => stream.upstream == Some(name),
        }
    }
}

impl StreamFilter {
    /// Whether it lets every stream through.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a stream that is open for so long is meant.
    pub(super) fn matches(&self, stream: &StreamFacts<'_>, age: Duration) -> bool {
        fn holds<T>(condition: &Option<T>, check: impl FnOnce(&T) -> bool) -> bool {
            condition.as_ref().is_none_or(check)
        }
        let label = stream.label;
        holds(&self.plugin, |plugin| {
            label.is_some_and(|label| *label.plugin == **plugin)
        }) && holds(&self.version, |version| {
            label.is_some_and(|label| label.digest.starts_with(&**version))
        }) && holds(&self.key, |key| stream.key == Some(key))
            && holds(&self.route, |route| stream.route == *route)
            && holds(&self.upstream, |upstream| upstream.matches(stream))
            && holds(&self.client, |network| {
                network.contains(&stream.client.ip().to_canonical())
            })
            && holds(&self.older_than, |span| age >= *span)
    }
}

/// A stream and its place, by which its worker finds it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// The stream.
    pub id: StreamId,
    pub(super) index: usize,
}

#[cfg(test)]
impl Spot {
    pub(crate) fn at(id: StreamId, index: usize) -> Self {
        Self { id, index }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream<'a>() -> StreamFacts<'a> {
        StreamFacts {
            id: StreamId(0x101),
            route: "chat",
            label: None,
            key: Some("id1"),
            client: "[::ffff:10.1.2.3]:5000".parse().expect("an address"),
            endpoint: "127.0.0.2:9001".parse().expect("an address"),
            upstream: Some("app"),
        }
    }

    #[test]
    fn an_upstream_is_an_address_or_a_name() {
        for text in ["127.0.0.2:9001", "127.0.0.2", "app"] {
            assert!(UpstreamFilter::of(text).matches(&stream()), "{text}");
        }
        for text in ["127.0.0.2:9002", "127.0.0.3", "ap", "app2", ""] {
            assert!(!UpstreamFilter::of(text).matches(&stream()), "{text}");
        }
    }

    #[test]
    fn every_condition_has_to_hold() {
        let age = Duration::from_secs(60);
        let meant = |change: fn(&mut StreamFilter)| {
            let mut filter = StreamFilter::default();
            change(&mut filter);
            filter.matches(&stream(), age)
        };
        assert!(meant(|_| {}) && StreamFilter::default().is_empty());
        assert!(meant(|filter| filter.client = "10.0.0.0/8".parse().ok()));
        assert!(!meant(|filter| filter.client = "11.0.0.0/8".parse().ok()));
        assert!(meant(
            |filter| filter.older_than = Some(Duration::from_secs(60))
        ));
        assert!(!meant(
            |filter| filter.older_than = Some(Duration::from_secs(61))
        ));
        assert!(!meant(|filter| filter.plugin = Some("by-header".into())));
        assert!(!meant(|filter| {
            filter.key = Some("id1".into());
            filter.route = Some("feed".into());
        }));
    }
}
