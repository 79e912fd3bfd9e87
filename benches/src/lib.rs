//! What benches share.

pub mod callgrind;
pub mod chats;
pub mod deploys;
pub mod doors;
pub mod load;
pub mod running;
pub mod wire;

use std::sync::Arc;
use throwbar_host::plugin::{CompileIn, Plugins, PluginsOptions};
use throwbar_host::store::Store;

/// Plugins of one worker, compiled in this process.
///
/// # Errors
/// If the directory cannot be used.
pub fn plugins(data: &std::path::Path, store: &Store) -> anyhow::Result<Arc<Plugins>> {
    Plugins::new(PluginsOptions {
        data,
        store: store.clone(),
        workers: 1,
        component_bytes_max: 1 << 20,
        compile_in: CompileIn::Thread,
    })
}
