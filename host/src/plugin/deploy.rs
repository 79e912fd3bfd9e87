//! Deploying: the plugin's walk from uploaded bytes to the active generation, and what is told about it.

use super::{Crew, PluginConfig, PluginSlot};
use crate::store::Store;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Every plugin of the config, and the walk that changes what is active.
pub struct Plugins {
    _private: (),
}

/// What a deploy or rollback did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Deployed {
    /// The plugin.
    pub plugin: String,
    /// The version now active (of a dry run: that would be), SHA-256 in hex.
    pub digest: String,
    /// Its generation; the active one for `Unchanged`, none for a dry run.
    pub generation: Option<u64>,
    /// The version before.
    pub previous: Option<String>,
    /// What happened.
    pub outcome: Outcome,
    /// Bytes of the component.
    pub bytes: u64,
    /// What it imports beyond what every Rust guest does.
    pub imports: Vec<String>,
    /// Whether compiled code came from the cache.
    pub cached: bool,
    /// Milliseconds to compile or load compiled code.
    pub compile_ms: f64,
    /// Milliseconds of the trial instantiation with `init`.
    pub init_ms: f64,
    /// Microseconds of the publish: warm workers to the atomic store.
    pub publish_us: f64,
    /// Open streams that stay with the version that accepted them.
    pub streams_kept: u64,
}

/// What a deploy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The plugin had no version before.
    First,
    /// It replaced another version.
    Swapped,
    /// The same version and settings are active already.
    Unchanged,
    /// A dry run: checked, nothing changed.
    Checked,
}

/// Why a version was refused; what was active is active still.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// No plugin of that name in the config.
    #[error("no plugin {0:?} in the config")]
    NoSuchPlugin(String),
    /// Larger than the limit.
    #[error("component is larger than {0} bytes")]
    TooLarge(usize),
    /// Not a component: truncated, text, a core module, another kind of file.
    #[error("not a component: {0}")]
    NotAComponent(String),
    /// It imports what this host does not offer, or does not export the router's interface, or with other types.
    #[error("{0}")]
    World(String),
    /// It compiled, but cannot be instantiated or its `init` failed, trapped or took too long.
    #[error("init: {0}")]
    Init(String),
    /// No version to go back to.
    #[error("plugin {0:?} has no earlier version")]
    NothingToRollBack(String),
    /// Another deploy of this plugin is running.
    #[error("another deploy of plugin {0:?} is running")]
    Busy(String),
    /// A file could not be kept; the message names it.
    #[error("{0}")]
    Io(String),
    /// The workers could not be warmed.
    #[error("warm workers: {0}")]
    Warm(String),
}

/// A plugin, for lists.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// The active version's digest.
    pub active: Option<String>,
    /// Its generation.
    pub generation: Option<u64>,
    /// Versions, newest activation first: the active one, what a rollback would activate, others kept on disk, and
    /// versions that only streams still belong to.
    pub versions: Vec<VersionInfo>,
    /// Buckets granted.
    pub grants: std::collections::BTreeMap<String, super::Access>,
}

/// A version, for lists.
#[derive(Debug, Clone, serde::Serialize)]
pub struct VersionInfo {
    /// SHA-256 in hex.
    pub digest: String,
    /// Bytes of the component; none if it is no longer kept.
    pub bytes: Option<u64>,
    /// What it is now.
    pub state: VersionState,
    /// Last activation.
    pub since: Option<SystemTime>,
    /// Who pushed it.
    pub by: String,
    /// Open streams it accepted.
    pub streams: u64,
    /// Decisions since activation.
    pub calls: u64,
    /// Calls without a decision, all kinds.
    pub errors: u64,
    /// Mean decision time in nanoseconds.
    pub decision_ns: u64,
}

/// What a version is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionState {
    /// New requests use it.
    Active,
    /// It accepted streams that are open, and takes no new requests.
    Draining,
    /// On disk only.
    Kept,
}

/// How to build [`Plugins`].
pub struct PluginsOptions<'a> {
    /// The data directory.
    pub data: &'a Path,
    /// The store plugins read and write.
    pub store: Store,
    /// Data-plane threads: for per-worker counters and the instance pool.
    pub workers: usize,
    /// Largest component, in bytes.
    pub component_bytes_max: usize,
}

impl Plugins {
    /// Makes the engine and its epoch ticker; loads nothing yet.
    ///
    /// # Errors
    /// If the engine cannot be made on this machine, or the directories not created.
    pub fn new(_options: PluginsOptions<'_>) -> anyhow::Result<Arc<Plugins>> {
        unimplemented!()
    }

    /// Gives the threads that run plugins; before the first deploy.
    pub fn set_crew(&self, _crew: Arc<dyn Crew>) {
        unimplemented!()
    }

    /// Makes the plugins those of a config. For each new one: activates the version recorded in the data directory, else
    /// that of its source. For one whose config changed: a new generation of the same version. For one no longer named:
    /// its slot goes, its streams stay. All or nothing.
    ///
    /// # Errors
    /// The first plugin that cannot be loaded, with its name.
    pub async fn apply(&self, _plugins: &[PluginConfig]) -> Result<(), (String, DeployError)> {
        unimplemented!()
    }

    /// The slot that routes hold.
    pub fn slot(&self, _name: &str) -> Option<Arc<PluginSlot>> {
        unimplemented!()
    }

    /// Upload → active. See the module's walk.
    ///
    /// # Errors
    /// See [`DeployError`]; the active version is unchanged then.
    pub async fn deploy(
        &self,
        _name: &str,
        _component: Bytes,
        _by: &str,
        _dry_run: bool,
    ) -> Result<Deployed, DeployError> {
        unimplemented!()
    }

    /// Activates the version that was active before, as a new generation.
    ///
    /// # Errors
    /// See [`DeployError`].
    pub async fn rollback(
        &self,
        _name: &str,
        _by: &str,
        _dry_run: bool,
    ) -> Result<Deployed, DeployError> {
        unimplemented!()
    }

    /// Every plugin, by name.
    pub fn list(&self) -> Vec<PluginInfo> {
        unimplemented!()
    }

    /// One plugin.
    pub fn get(&self, _name: &str) -> Option<PluginInfo> {
        unimplemented!()
    }

    /// Stops the epoch ticker and the compile thread.
    pub fn close(&self) {
        unimplemented!()
    }
}

/// Compile time bound of a request's wait for the compile thread.
pub const COMPILE_TIMEOUT: Duration = Duration::from_secs(120);
