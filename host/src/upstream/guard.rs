//! What may be dialled, whatever a plugin or the map says.

use ipnet::IpNet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

/// What plugins and the map may have dialled. Addresses of `to` and `upstreams` of the config are trusted and need no
/// entry here; link-local addresses, our own listeners and the admin address are refused always, for everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Networks; all but link-local by default.
    pub allow: Vec<IpNet>,
    /// Ports; all by default.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: vec![
                "0.0.0.0/0".parse().expect("a network"),
                "::/0".parse().expect("a network"),
            ],
            ports: vec![1..=65535],
        }
    }
}

/// The checks, made for one config.
#[derive(Debug, Clone)]
pub struct Guard {
    config: Config,
    own: Vec<SocketAddr>,
}

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not in `guard.allow`.
    #[error("address {0} is in no network of guard.allow")]
    Network(SocketAddr),
    /// Not in `guard.ports`.
    #[error("port of {0} is not in guard.ports")]
    Port(SocketAddr),
    /// Link-local, unspecified, multicast or broadcast.
    #[error("address {0} is link-local, unspecified or multicast")]
    Special(SocketAddr),
    /// One of our own listeners or the admin address.
    #[error("address {0} is our own")]
    Own(SocketAddr),
}

impl Guard {
    /// `own`: bound listeners and the admin address. An unspecified one (0.0.0.0, ::) stands for its port on every
    /// loopback and unspecified address.
    pub fn new(config: Config, own: Vec<SocketAddr>) -> Self {
        Self { config, own }
    }

    /// Checks an address before it is dialled; `trusted` addresses come from the config and skip networks and ports.
    ///
    /// # Errors
    /// [`Refused`] says which rule.
    pub fn check(&self, _address: SocketAddr, _trusted: bool) -> Result<(), Refused> {
        let _ = (&self.config, &self.own);
        unimplemented!()
    }
}
