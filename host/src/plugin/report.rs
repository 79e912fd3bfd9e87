//! What is told about plugins: of a deploy, of why one was refused, of what there is.

use super::migration::Migrated;
use super::record::Failing;
use crate::metrics::CallTotals;
use crate::store::{BackendKind, CommitError, Revision};
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
    /// The store's revision from which on it decides, if it took over together with a change of the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// What its migration did (of a dry run: would do), if it made one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrated: Option<Migrated>,
    /// Why it is active on data that it did not migrate, though it would have: by `force`, or after the guard's rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_migrated: Option<String>,
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
    /// It takes its share of the requests beside the active version.
    Canary,
    /// It is compared with the active version, and decides nothing.
    Shadow,
}

/// A size as the config has it: `32MiB`, or bytes if it is no round one.
fn binary(bytes: usize) -> String {
    match bytes {
        0 => "0".to_owned(),
        bytes if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

/// Why a version was refused; what was active is active still.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// No plugin of that name in the config.
    #[error("no plugin {0:?} in the config")]
    NoSuchPlugin(String),
    /// Larger than the limit.
    #[error("the component is too large, expected at most {} (admin.component_bytes_max)", binary(*.0))]
    TooLarge(usize),
    /// Not a component: truncated, text, a core module, another kind of file.
    #[error("not a component: {0}")]
    NotAComponent(String),
    /// It imports what this host does not offer, or does not export the router's interface, or with other types.
    #[error("{0}")]
    World(String),
    /// Compiling it takes more than it may, or broke the compiler.
    #[error("compile: {0}")]
    Compile(String),
    /// There is no compiler to be had: too busy, it cannot be started, shutting down.
    #[error("compile: {0}")]
    NoCompiler(String),
    /// It compiled, but cannot be instantiated or its `init` failed, trapped or took too long.
    #[error("init: {0}")]
    Init(String),
    /// No version to go back to.
    #[error("plugin {0:?} has no earlier version")]
    NothingToRollBack(String),
    /// Another deploy of this plugin is running.
    #[error("another deploy of plugin {0:?} is running")]
    Busy(String),
    /// A file could not be kept or read; the message names it.
    #[error("{0}")]
    Io(String),
    /// The guard took this version back; `force` activates it all the same.
    #[error(
        "version {version} of plugin {plugin:?} is failing: {reason}; force=true activates it all the same"
    )]
    Failing {
        /// The plugin.
        plugin: String,
        /// The version, short.
        version: String,
        /// What was over its limit.
        reason: String,
    },
    /// No version of that name, or more than one.
    #[error("{0}")]
    NoSuchVersion(String),
    /// What is asked for does not fit what is on: no canary, another canary, a version in use.
    #[error("{0}")]
    Conflict(String),
    /// As many versions as may be draining are.
    #[error("{0}")]
    Draining(String),
    /// It could not migrate the data of its plugin.
    #[error("migrate: {0}")]
    Migrate(String),
    /// Others changed what it migrates, again and again.
    #[error("migrate: {0}")]
    MigrateRace(String),
    /// The store does not take what was to be written beside.
    #[error("{0}")]
    Writes(CommitError),
    /// Its data, or what was to be written beside, are written, and not seen yet.
    #[error("{0}: as soon as it has, the version takes over")]
    Late(CommitError),
    /// What was to be written beside is not where the fleet agrees.
    #[error("bucket {bucket:?} is on {}, and the fleet agrees on versions on {}: expected what is written with an activation \
             to be there, so that both are done or neither", backend.as_str(), fleet.as_str())]
    Apart {
        /// The bucket.
        bucket: String,
        /// Its backend.
        backend: BackendKind,
        /// The fleet's.
        fleet: BackendKind,
    },
    /// The workers could not be warmed.
    #[error("warm workers: {0}")]
    Warm(String),
    /// The fleet has agreed on something else meanwhile, or this node has not taken yet what it agreed on.
    #[error("{0}")]
    Disagreed(String),
    /// The fleet cannot be reached, or does not take a component.
    #[error("fleet: {0}")]
    Fleet(String),
    /// The fleet has agreed, and on this node it came to nothing, for a reason that nobody could know before.
    #[error("the fleet has taken it, this node has not, and tries again: {0}")]
    Agreed(Box<DeployError>),
}

impl DeployError {
    /// Why the store does not take writes beside an activation, or what a fleet was to agree on with them.
    pub(crate) fn beside(error: CommitError) -> Self {
        match error.is_of_fleet() {
            true => Self::Disagreed(
                "fleet: others have agreed on something else meanwhile, look at it and try again"
                    .to_owned(),
            ),
            false => Self::Writes(error),
        }
    }

    /// Whether what was to be written is, and only not seen yet.
    pub(super) fn is_written(&self) -> bool {
        matches!(self, Self::Writes(CommitError::Unseen { .. }))
    }
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
    /// Versions: the active one, those that are tried, then others by their last activation, newest first: kept on disk,
    /// failing, or with open streams.
    pub versions: Vec<VersionInfo>,
    /// The version that takes a share of the requests.
    pub canary: Option<CanaryInfo>,
    /// The version that is compared.
    pub shadow: Option<ShadowInfo>,
    /// Versions that the guard took back, newest first.
    pub failing: Vec<FailingInfo>,
    /// How often the guard took a version back, by what was over its limit.
    pub guard_trips: Vec<(&'static str, u64)>,
    /// Buckets granted.
    pub grants: std::collections::BTreeMap<String, super::Access>,
    /// Calls of all its generations since the start of the process, those that are gone included.
    #[serde(skip)]
    pub totals: CallTotals,
}

/// A canary.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CanaryInfo {
    /// Its version.
    pub version: String,
    /// Its share, from 0 to 100.
    pub percent: f64,
    /// The field whose hash decides.
    pub by: String,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    pub since: SystemTime,
    /// Who began it.
    pub started_by: String,
}

/// A version that the guard took back.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FailingInfo {
    /// The version.
    pub version: String,
    /// What was over its limit.
    pub reason: String,
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// Milliseconds from the guard's verdict until the version decided nothing any more; none if it still decides, for want of
    /// another, and after a restart.
    pub took_ms: Option<f64>,
}

impl From<&Failing> for FailingInfo {
    fn from(failing: &Failing) -> Self {
        Self {
            version: failing.digest.clone(),
            reason: failing.reason.clone(),
            at: failing.at,
            took_ms: failing.took.get().copied().map(super::deploy::millis),
        }
    }
}

/// A shadow, in short.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ShadowInfo {
    /// Its version.
    pub version: String,
    /// Its part of the requests, from 0 to 1.
    pub sample: f64,
    /// Requests compared.
    pub compared: u64,
    /// Of those, how many were decided in another way.
    pub differing: u64,
    /// Calls of the shadow without a decision.
    pub errors: u64,
    /// Requests that were not compared because the shadow was behind.
    pub dropped: u64,
}

/// A version, for lists.
#[derive(Debug, Clone, serde::Serialize)]
pub struct VersionInfo {
    /// SHA-256 in hex.
    pub digest: String,
    /// Its newest generation in this process.
    pub generation: Option<u64>,
    /// Bytes of the component; none if it is no longer kept.
    pub bytes: Option<u64>,
    /// What it is now.
    pub state: VersionState,
    /// Its share, if it is a canary.
    pub canary: Option<CanaryInfo>,
    /// Why the guard took it back, if it did.
    pub failing: Option<FailingInfo>,
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
    /// Calls without a decision that could be acted on, all kinds.
    pub errors: u64,
    /// The same by kind.
    pub errors_by_kind: Errors,
    /// Mean decision time in nanoseconds.
    pub decision_ns: u64,
    /// Median decision time in nanoseconds, from a histogram.
    pub decision_p50_ns: u64,
    /// 99th percentile of the decision time in nanoseconds, from a histogram.
    pub decision_p99_ns: u64,
    /// Bytes of linear memory of its instances.
    pub memory_bytes: u64,
    /// Calls of its newest generation.
    #[serde(skip)]
    pub totals: CallTotals,
}

/// Calls without a decision that could be acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Errors {
    /// Trapped, or could not be instantiated.
    pub trap: u64,
    /// Cut at the deadline.
    pub deadline: u64,
    /// Decided what cannot be done.
    pub bad_decision: u64,
    /// Wrote what the store refused.
    pub refused_write: u64,
}

impl From<&CallTotals> for Errors {
    fn from(totals: &CallTotals) -> Self {
        Self {
            trap: totals.traps,
            deadline: totals.deadlines,
            bad_decision: totals.bad_decisions,
            refused_write: totals.refused_writes,
        }
    }
}

/// What a version is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionState {
    /// New requests use it.
    Active,
    /// It takes a share of the requests.
    Canary,
    /// It is compared with the active version.
    Shadow,
    /// The guard took it back.
    Failing,
    /// It accepted streams that are open, and takes no new requests.
    Draining,
    /// On disk only.
    Kept,
}

impl VersionState {
    /// As the admin API and metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Canary => "canary",
            Self::Shadow => "shadow",
            Self::Failing => "failing",
            Self::Draining => "draining",
            Self::Kept => "kept",
        }
    }
}

/// A time as text of RFC 3339.
pub(super) fn rfc3339<S: serde::Serializer>(
    at: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match jiff::Timestamp::try_from(*at) {
        Ok(at) => serializer.collect_str(&format_args!("{at:.3}")),
        Err(_) => serializer.serialize_none(),
    }
}
