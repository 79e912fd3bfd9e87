//! Where a connection to an endpoint goes.

use crate::store::value::UNIX_MARK;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// An endpoint's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host and its port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(Arc<str>),
}

/// An endpoint's address, and who has to be there: with that, the connection is one over TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The address.
    pub address: Address,
    /// The name or address that its certificate has to be for.
    pub server_name: Option<Arc<str>>,
}

impl Address {
    /// The host's, if it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self {
            address: address.into(),
            server_name: None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX_MARK}{path}"),
        }
    }
}

impl FromStr for Address {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(UNIX_MARK) {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp),
        }
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_shown() {
        for text in ["127.0.0.1:80", "[::1]:80", "unix:/run/a.sock"] {
            let address: Address = text.parse().expect("an address");
            assert_eq!(address.to_string(), text);
            assert_eq!(serde_json::json!(address), text);
        }
        assert!("app".parse::<Address>().is_err());
    }
}
