//! The whole configuration: one field per module, each its own type.

use crate::worker::WORKERS_MAX;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub mod decode;
pub mod diagnostic;
pub mod validate;

/// A checked configuration: what `run` needs, without a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Data-plane threads; one per core by default.
    pub workers: usize,
    /// Where the store, plugin versions, compiled code and the admin token are.
    pub data: PathBuf,
    /// The admin API.
    pub admin: crate::admin::Config,
    /// Where clients reach us.
    pub listeners: Vec<crate::listener::Config>,
    /// The engines that proxies share.
    pub store: crate::store::SharedSettings,
    /// When the store's data file is synced to the disk.
    pub sync: crate::store::SyncPolicy,
    /// Buckets of the store.
    pub buckets: Vec<crate::store::BucketConfig>,
    /// Named groups of endpoints.
    pub upstreams: Vec<crate::upstream::Config>,
    /// Who is trusted of endpoints that are reached over TLS.
    pub upstream_tls: crate::upstream::tls::Config,
    /// Plugins.
    pub plugins: Vec<crate::plugin::PluginConfig>,
    /// Routes: the first that matches decides.
    pub routes: Vec<crate::proxy::RouteConfig>,
    /// What may be dialled.
    pub guard: crate::upstream::guard::Config,
    /// Bounds of requests and connections.
    pub limits: crate::proxy::Limits,
    /// Upgraded streams.
    pub streams: crate::stream::Config,
    /// That this proxy is a node of a fleet, if it is.
    pub fleet: Option<crate::fleet::Config>,
    /// Logs.
    pub log: crate::proxy::access_log::Config,
    /// Caddy's `@id` of a map → bucket: `PATCH /id/{id}/mappings` replaces that bucket.
    pub caddy_ids: BTreeMap<String, String>,
}

impl Config {
    /// Reads and checks a config. Relative paths are relative to the directory of `file`, without one to the working
    /// directory. `${env:NAME}` is read from the environment of the process, `${file:PATH}` from disk.
    ///
    /// # Errors
    /// Every problem of the text, in its order.
    pub fn parse(text: &str, file: Option<&Path>) -> Result<Self, Vec<diagnostic::Problem>> {
        let sources = decode::Sources {
            directory: file.and_then(Path::parent).unwrap_or(Path::new("")),
            env: &|name| std::env::var(name).ok(),
        };
        decode::decode(text, &sources)
    }
}

impl Config {
    /// The buckets of the store: those that have a name, and that of the fleet.
    pub fn store_buckets(&self) -> Vec<crate::store::BucketConfig> {
        let fleet = self.fleet.as_ref();
        let fleet = fleet.map(|fleet| crate::store::BucketConfig::of_fleet(fleet.backend));
        self.buckets.iter().cloned().chain(fleet).collect()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, |n| n.get().min(WORKERS_MAX)),
            data: PathBuf::from("data"),
            admin: Default::default(),
            listeners: Vec::new(),
            store: Default::default(),
            sync: Default::default(),
            buckets: Vec::new(),
            upstreams: Vec::new(),
            upstream_tls: Default::default(),
            plugins: Vec::new(),
            routes: Vec::new(),
            guard: Default::default(),
            limits: Default::default(),
            streams: Default::default(),
            fleet: None,
            log: Default::default(),
            caddy_ids: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests;
