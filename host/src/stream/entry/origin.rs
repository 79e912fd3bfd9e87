//! What a stream keeps of where it came from, in little room.

use crate::plugin::generation::GenerationLabel;
use std::net::{SocketAddr, SocketAddrV4};
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

/// The client's address and the endpoint's in a quarter of the room: with IPv6 they are kept apart.
pub(super) enum Addresses {
    V4([SocketAddrV4; 2]),
    Other(Box<[SocketAddr; 2]>),
}

impl Addresses {
    pub(super) fn new(client: SocketAddr, endpoint: SocketAddr) -> Self {
        match (client, endpoint) {
            (SocketAddr::V4(client), SocketAddr::V4(endpoint)) => Self::V4([client, endpoint]),
            _ => Self::Other(Box::new([client, endpoint])),
        }
    }

    /// The client, then the endpoint.
    pub(super) fn get(&self) -> [SocketAddr; 2] {
        match self {
            Self::V4(addresses) => addresses.map(SocketAddr::V4),
            Self::Other(addresses) => **addresses,
        }
    }
}
