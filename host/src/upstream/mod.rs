//! Upstreams: named groups of equal endpoints.

pub mod balance;
pub mod body;
pub mod connection;
pub mod exchange;
pub mod guard;
pub mod resolve;
pub mod response;
pub mod scratch;
#[cfg(test)]
mod tests;

/// A named group of equal endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Where requests may go: a host and its port.
    pub endpoints: Vec<(crate::store::Target, u16)>,
    /// Which endpoint a request gets.
    pub policy: Policy,
}

/// Which endpoint a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// One after the other, on each worker.
    #[default]
    RoundRobin,
    /// The one with the fewest requests and streams of this worker.
    LeastRequests,
    /// By rendezvous hash of the key the plugin gave (without one: the client's address).
    Hash,
}
