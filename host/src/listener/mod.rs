//! Bind; accept under a limit, with back-off; one task per connection.

use std::net::SocketAddr;

/// Where clients reach us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its name in routes, logs and metrics.
    pub name: String,
    /// The address; port 0 lets the system choose.
    pub address: SocketAddr,
    /// HTTP/1.1 is spoken.
    pub http1: bool,
    /// HTTP/2 with prior knowledge is spoken.
    pub h2c: bool,
}
