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
// STUB
#[allow(missing_docs)] pub mod token { pub struct Token; impl Token { pub fn path(&self) -> &std::path::Path { unimplemented!() } } pub fn prepare(_: &super::Config, _: &std::path::Path) -> anyhow::Result<Option<Token>> { unimplemented!() } }
#[allow(missing_docs)] pub struct Bound; #[allow(missing_docs)] impl Bound { pub fn tcp_address(&self) -> Option<SocketAddr> { None } }
#[allow(missing_docs)] pub fn bind(_: &Config) -> std::io::Result<Bound> { unimplemented!() }
#[allow(missing_docs)] pub struct State; #[allow(missing_docs)] impl State { pub fn new(_: crate::store::Store, _: std::sync::Arc<crate::plugin::Plugins>, _: crate::worker::Workers, _: crate::app::Control, _: std::sync::Arc<crate::metrics::Counters>, _: Option<token::Token>, _: Config) -> Self { State } }
#[allow(missing_docs)] pub async fn serve(_: State, _: Bound, _: impl Future<Output=()> + Send) {}
