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
