//! What a stream keeps of where it came from, in little room.

use crate::plugin::generation::GenerationLabel;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Counts a stream in the label of its generation while it lives.
pub(super) struct LabelLease(Option<Arc<GenerationLabel>>);

impl LabelLease {
    pub(super) fn get(&self) -> Option<&GenerationLabel> {
        self.0.as_deref()
    }

    pub(super) fn new(label: Option<Arc<GenerationLabel>>) -> Self {
        if let Some(label) = &label {
            label.streams.fetch_add(1, Ordering::Relaxed);
        }
        Self(label)
    }
}

impl Drop for LabelLease {
    fn drop(&mut self) {
        if let Some(label) = &self.0 {
            label.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A socket address in half the room: IPv6 is kept apart.
pub(super) enum Address {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(address),
            SocketAddr::V6(address) => Self::V6(Box::new(address)),
        }
    }
}

impl Address {
    pub(super) fn get(&self) -> SocketAddr {
        match self {
            Self::V4(address) => SocketAddr::V4(*address),
            Self::V6(address) => SocketAddr::V6(**address),
        }
    }
}
