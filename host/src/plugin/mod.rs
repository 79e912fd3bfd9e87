//! A plugin's life: upload → keep → validate → compile → prepare → swap → drain → free.
//!
//! [`Plugins::deploy`] is the walk. A step that fails leaves the active generation untouched. The data plane meets
//! plugins at one type, [`Instance`], which each worker thread keeps warm for the active [`Generation`].

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

mod accord;
mod ahead;
mod artifact;
pub mod builtin;
mod canary;
mod compile;
pub mod decision;
pub mod deploy;
mod difference;
mod engine;
mod epoch;
pub mod generation;
mod guard;
mod imports;
pub mod inspect;
pub mod instance;
mod migration;
mod order;
mod prepare;
mod record;
mod registry;
mod report;
pub mod request;
mod restore;
mod rollout;
pub mod session;
mod shadow;
mod slot;
mod subscription;
mod swap;
#[cfg(test)]
pub(crate) mod tests;
mod validate;
pub mod verdict;
mod versions;
mod warm;
mod watcher;

pub use accord::{Accord, Agreeing, Agreement, Base, Overtaken, Present, Step};
pub use ahead::Ahead;
pub(crate) use artifact::{NAME_EXPECTED, digest, is_name};
pub use canary::{Fraction, Share, StickyField};
pub(crate) use compile::confined;
pub use compile::{COMPILE_TIMEOUT, CompileBounds, CompileIn};
pub use decision::{Decision, DecisionError, Forward, Reply, RouteTarget};
pub use deploy::{
    CanaryInfo, DeployError, Deployed, Errors, FailingInfo, Order, Outcome, PluginInfo, Plugins,
    PluginsOptions, Role, ShadowInfo, VersionInfo, VersionState, Wanted,
};
pub use difference::Difference;
pub(crate) use engine::MEMORY_RESERVATION;
pub use generation::{Generation, GenerationId};
pub use guard::Guard;
pub use instance::{Instance, RouteError, Routed};
pub use migration::{Migrated, MigrationLimits};
pub use request::RequestHead;
pub use session::{Opened, Session, SessionError, Sessions};
pub use shadow::{DifferingKey, Shadow, ShadowReport};
pub use slot::{BY_CONFIG, PluginSlot};

/// One plugin of the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// Its name.
    pub name: String,
    /// The version to start with when none was pushed yet.
    pub source: Source,
    /// Buckets it may use.
    pub grants: BTreeMap<String, Access>,
    /// What `wasi:config` answers.
    pub settings: BTreeMap<String, String>,
    /// Its bounds.
    pub limits: PluginLimits,
    /// What holds for its sessions, if it has stream hooks.
    pub sessions: SessionConfig,
    /// How its versions are looked after: what its instances never see.
    pub versions: VersionPolicy,
}

impl PluginConfig {
    /// A plugin with nothing but a name and a source.
    pub fn new(name: impl Into<String>, source: Source) -> Self {
        Self {
            name: name.into(),
            source,
            grants: BTreeMap::new(),
            settings: BTreeMap::new(),
            limits: PluginLimits::default(),
            sessions: SessionConfig::default(),
            versions: VersionPolicy::default(),
        }
    }

    /// Whether instances made by either are alike.
    pub(crate) fn same_sandbox(&self, other: &Self) -> bool {
        self.source == other.source
            && self.grants == other.grants
            && self.settings == other.settings
            && self.limits == other.limits
            && self.sessions == other.sessions
    }
}

/// How the versions of a plugin are looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionPolicy {
    /// Versions kept on disk; those in use are, whatever their number.
    pub keep: usize,
    /// Versions that may have open streams beside the active one; none: any number.
    pub draining_max: Option<usize>,
    /// What becomes of one more.
    pub draining_full: DrainingFull,
    /// What takes a version back by itself; none by default.
    pub guard: Option<Guard>,
    /// Bounds of what a version does with the plugin's data before it is activated.
    pub migration: MigrationLimits,
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self {
            keep: 5,
            draining_max: None,
            draining_full: DrainingFull::Refuse,
            guard: None,
            migration: MigrationLimits::default(),
        }
    }
}

/// What becomes of an activation when as many versions as may be draining are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainingFull {
    /// It is refused.
    Refuse,
    /// The streams of the version activated longest ago are closed with 1012, spread over this time.
    DrainOldest(Duration),
}

/// What holds for the sessions of a plugin with stream hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// What becomes of a stream whose session traps, is late or gives a bad verdict, and of the other sessions of a lost
    /// instance.
    pub on_trap: OnTrap,
    /// Whether each stream has an instance of its own.
    pub isolated: bool,
    /// Instances of one stream each, on one worker.
    pub isolated_max: usize,
    /// Failures in a minute, on one worker, after which sessions are closed rather than rebuilt.
    pub rebuilds_per_minute: u32,
    /// Sessions that share an instance.
    pub per_instance_max: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            on_trap: OnTrap::default(),
            isolated: false,
            isolated_max: 100,
            rebuilds_per_minute: 10,
            per_instance_max: 4_096,
        }
    }
}

/// What becomes of a stream whose session is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTrap {
    /// It is closed with code 1011.
    #[default]
    Close,
    /// Another session is opened for it, from what the request said and what the lost one saved.
    Rebuild,
    /// It goes on without a session.
    Pass,
}

/// Where a plugin's first version comes from. A version pushed through the admin API takes its place and survives
/// restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A component file, its path already made absolute or relative to the working directory.
    File(PathBuf),
    /// A plugin built into the binary, such as `by-header`.
    Builtin(String),
    /// None: the plugin waits for its first push, and its routes follow `on_failure` until then.
    Pushed,
}

/// What a plugin may do with a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// Bounds of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginLimits {
    /// For one decision.
    pub deadline: Duration,
    /// For instantiation and `init` together.
    pub init_deadline: Duration,
    /// For telling a plugin that keeps a view of its own what has changed before a call: all of it together.
    pub watch_deadline: Duration,
    /// Linear memory of one instance, in bytes.
    pub memory_bytes_max: usize,
    /// Strings, lists and bodies that one call returns, in bytes together.
    pub returned_bytes_max: usize,
    /// Log lines a second; the rest are counted and dropped.
    pub log_lines_per_second: u32,
    /// Writes of one call.
    pub writes_max: usize,
    /// Calls after which an instance is replaced.
    pub calls_max: u64,
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(5),
            init_deadline: Duration::from_secs(1),
            watch_deadline: Duration::from_secs(1),
            memory_bytes_max: 16 << 20,
            returned_bytes_max: 1 << 20,
            log_lines_per_second: 100,
            writes_max: 1_000,
            calls_max: 1_000_000,
        }
    }
}

/// The threads that run plugins, as deploying sees them.
pub trait Crew: Send + Sync + 'static {
    /// Makes every thread hold an instance of this generation; an error names what went wrong.
    fn warm(
        &self,
        generation: Arc<Generation>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
    /// Lets every thread drop its instance of a generation that is no longer active.
    fn retire(&self, generation: GenerationId);
    /// Closes the open streams that some versions of a plugin accepted, evenly over a time, and no more of those that the
    /// active one did. Returns at once.
    fn drain(&self, plugin: &str, drained: &[String], active: &str, over: Duration);
}
