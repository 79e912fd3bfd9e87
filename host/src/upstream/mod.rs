//! Upstreams: named groups of equal endpoints.

pub mod address;
pub mod balance;
pub mod body;
pub mod connection;
pub mod exchange;
pub mod guard;
pub mod records;
pub mod resolve;
pub mod response;
pub mod scratch;
mod socket;
#[cfg(test)]
mod tests;
pub mod tls;

pub use crate::store::Policy;

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
