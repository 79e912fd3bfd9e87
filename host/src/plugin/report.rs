//! What is told about plugins: of a deploy, of why one was refused, of what there is.

use std::time::SystemTime;

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
    /// A file could not be kept or read, or the compiler is not to be had; the message names it.
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
    /// Sessions of these streams.
    pub sessions: u64,
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
