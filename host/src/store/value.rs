//! Values: bytes, or an address that was checked when it was written.

use std::net::IpAddr;

/// A value of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of a bucket of bytes.
    Bytes(Box<[u8]>),
    /// Of a routing bucket.
    Target(Target),
}

/// Where a routing entry points: a host, with or without a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An IP address.
    Ip(IpAddr, Option<u16>),
    /// A host name, lower case, to be resolved when dialled.
    Name(Box<str>, Option<u16>),
}

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

impl std::str::FromStr for Target {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Ok(address) = text.parse::<std::net::SocketAddr>() {
            return Ok(Self::Ip(address.ip(), Some(address.port())));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self::Ip(ip, None));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (
                name,
                Some(
                    port.parse()
                        .map_err(|_| ValueError(format!("bad port {port:?}")))?,
                ),
            ),
            None => (text, None),
        };
        if name.is_empty()
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
        {
            return Err(ValueError(format!("{name:?} is not a host")));
        }
        Ok(Self::Name(name.to_ascii_lowercase().into(), port))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip, None) => write!(f, "{ip}"),
            Self::Ip(ip, Some(port)) => write!(f, "{}", std::net::SocketAddr::new(*ip, *port)),
            Self::Name(name, None) => write!(f, "{name}"),
            Self::Name(name, Some(port)) => write!(f, "{name}:{port}"),
        }
    }
}

impl Value {
    /// Checks a value.
    pub fn parse(kind: super::ValueKind, bytes: &[u8]) -> Result<Self, ValueError> {
        match kind {
            super::ValueKind::Bytes => Ok(Self::Bytes(bytes.into())),
            super::ValueKind::Endpoint => std::str::from_utf8(bytes)
                .map_err(|_| ValueError("not text".into()))?
                .parse()
                .map(Self::Target),
        }
    }
}
