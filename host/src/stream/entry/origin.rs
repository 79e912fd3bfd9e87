//! What a stream keeps of where it came from, in little room.

use crate::plugin::generation::GenerationLabel;
use crate::upstream::address::Address;
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

/// The client's address and the endpoint's in a quarter of the room: others than IPv4 are kept apart.
pub(super) enum Addresses {
    V4([SocketAddrV4; 2]),
    Other(Box<(SocketAddr, Address)>),
}

impl Addresses {
    pub(super) fn new(client: SocketAddr, endpoint: Address) -> Self {
        match (client, endpoint) {
            (SocketAddr::V4(client), Address::Tcp(SocketAddr::V4(endpoint))) => {
                Self::V4([client, endpoint])
            }
            (client, endpoint) => Self::Other(Box::new((client, endpoint))),
        }
    }

    /// The client, then the endpoint.
    pub(super) fn get(&self) -> (SocketAddr, Address) {
        match self {
            Self::V4([client, endpoint]) => (
                SocketAddr::V4(*client),
                Address::Tcp(SocketAddr::V4(*endpoint)),
            ),
            Self::Other(addresses) => (**addresses).clone(),
        }
    }
}
