//! The admin API: plugins, store, streams, config, metrics, on a thread of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the admin API listens and who may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address.
    pub listen: Address,
    /// Who may use it.
    pub auth: Auth,
    /// Largest component that may be uploaded, in bytes.
    pub component_bytes_max: usize,
    /// Largest other body, in bytes.
    pub body_bytes_max: usize,
}

/// A TCP address or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket: its file mode is 0660.
    Unix(PathBuf),
}

/// Who may use the admin API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Whoever has the token kept in `admin.token` of the data directory.
    Token,
    /// Everyone who can connect: only on loopback or a Unix socket.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 2019))),
            auth: Auth::Token,
            component_bytes_max: 32 << 20,
            body_bytes_max: 256 << 20,
        }
    }
}
