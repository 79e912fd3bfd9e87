//! A fleet: proxies that share a backend of the store, and through it which versions of their plugins they have.
//!
//! What the nodes agree on is a bucket without a name in the store (`entry.rs`), written like any other: a change is agreed
//! on if its entry is still as it was when the change began. Components are beside it, in a [`Depot`]. Each node follows
//! (`follow.rs`): it compares what was agreed on with what it has, takes one step after the other, and tells the others how
//! it does (`tell.rs`). What was agreed on together with writes it shows together with them (`moment.rs`). Without the backend it goes on with what it has.

use crate::plugin::{Accord, Agreement, Plugins};
use crate::store::shared::artifacts::Depot;
use crate::store::{BackendKind, BucketId, Gate, Revision, Snapshot, Store};
use entry::PluginEntry;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

mod agree;
mod artifacts;
mod entry;
mod follow;
mod forget;
mod moment;
mod status;
mod step;
mod tell;
#[cfg(test)]
mod tests;

pub use forget::ForgetError;

/// Bounds of [`Config::heartbeat`].
pub const HEARTBEAT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);
/// Longest [`Config::start_timeout`].
pub const START_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// That this proxy is a node of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the fleet agrees; a shared one.
    pub backend: BackendKind,
    /// This node's name; none: made of the host's name and the address of the admin API.
    pub node: Option<String>,
    /// How often a node tells that it is there. After three of these without it, it is gone.
    pub heartbeat: Duration,
    /// How long a start waits for the versions that were agreed on.
    pub start_timeout: Duration,
}

impl Config {
    /// On this backend, with the default of everything else.
    pub fn new(backend: BackendKind) -> Self {
        Self {
            backend,
            node: None,
            heartbeat: Duration::from_secs(5),
            start_timeout: Duration::from_secs(10),
        }
    }
}

/// What others are told of the process.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The digest of its config.
    pub config: Arc<str>,
    /// Whether traffic is welcome.
    pub ready: bool,
}

/// What a [`Fleet`] is made of.
pub struct Parts {
    /// Its config.
    pub config: Config,
    /// The store, which has the bucket of the fleet.
    pub store: Store,
    /// The plugins.
    pub plugins: Arc<Plugins>,
    /// Where components are.
    pub depot: Arc<dyn Depot>,
    /// The address of the admin API.
    pub admin: String,
    /// Tells of the process.
    pub facts: Box<dyn Fn() -> Facts + Send + Sync>,
}

/// This node of a fleet.
pub struct Fleet {
    config: Config,
    node: String,
    store: Store,
    plugins: Arc<Plugins>,
    depot: Arc<dyn Depot>,
    admin: String,
    facts: Box<dyn Fn() -> Facts + Send + Sync>,
    /// A mark of this process.
    life: String,
    started: SystemTime,
    /// How far this node is with each plugin.
    progress: Mutex<BTreeMap<String, Progress>>,
    heartbeats: Mutex<Heartbeats>,
    counters: Counters,
    /// There is something to tell.
    news: Notify,
    /// The process ends: nothing is told any more.
    left: AtomicBool,
    /// There may be components that nobody needs.
    prune_due: AtomicBool,
    /// There is something to look at beside what the store tells.
    look: Notify,
    moments: moment::Moments,
    /// Since when this node knows each entry as it is, by its own clock.
    seen: Mutex<BTreeMap<String, (Revision, Instant)>>,
}

/// How far a node is with what was agreed on of one plugin.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Of the entry that was looked at last.
    revision: Revision,
    /// Of the process, then.
    config: Option<Arc<str>>,
    failure: Option<Failure>,
}

/// Why a node does not have what was agreed on.
#[derive(Debug, Clone)]
struct Failure {
    reason: String,
    tries: u32,
    /// When it is tried again; none: it is the same as long as entry and config are.
    again: Option<Instant>,
}

/// What became of telling that this node is there.
#[derive(Debug, Default)]
struct Heartbeats {
    told: Option<Instant>,
    /// The revision of what was told last, which this node may not see yet.
    told_at: Option<Revision>,
    /// Why it is not told.
    error: Option<String>,
    /// Whether another process uses the name.
    twin: bool,
}

/// What a node counts.
#[derive(Debug, Default)]
struct Counters {
    fetches: AtomicU64,
    fetch_errors: AtomicU64,
    steps: AtomicU64,
    step_errors: AtomicU64,
}

impl Fleet {
    /// A node that does nothing yet. From now on changes of plugins are agreed on.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn new(parts: Parts) -> anyhow::Result<Arc<Self>> {
        let Parts {
            config,
            store,
            plugins,
            depot,
            admin,
            facts,
        } = parts;
        let node = match &config.node {
            Some(name) => name.clone(),
            None => format!("{}:{}", host_name(), port_of(&admin)),
        };
        let fleet = Arc::new(Self {
            config,
            node,
            store,
            plugins,
            depot,
            admin,
            facts,
            life: random_hex()?,
            started: SystemTime::now(),
            progress: Mutex::default(),
            heartbeats: Mutex::default(),
            counters: Counters::default(),
            news: Notify::new(),
            left: AtomicBool::new(false),
            prune_due: AtomicBool::new(false),
            look: Notify::new(),
            moments: moment::Moments::default(),
            seen: Mutex::default(),
        });
        fleet
            .plugins
            .set_accord(Arc::clone(&fleet) as Arc<dyn Accord>);
        let gate: Weak<dyn Gate> = Arc::downgrade(&(Arc::clone(&fleet) as Arc<dyn Gate>));
        fleet.store.set_gate(gate);
        Ok(fleet)
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The bucket of the fleet; none only before the store has its first config.
    fn bucket(&self, snapshot: &Snapshot) -> Option<BucketId> {
        snapshot.fleet()
    }

    /// Entries whose keys begin so, by the rest of the key. What is not of the expected form is told by its place.
    fn entries<T: DeserializeOwned>(
        &self,
        snapshot: &Snapshot,
        beginning: &str,
    ) -> Vec<(String, Revision, Result<T, String>)> {
        let bucket = self.bucket(snapshot).and_then(|id| snapshot.bucket(id));
        let Some(bucket) = bucket else {
            return Vec::new();
        };
        let all = bucket.range(beginning, None);
        let ours = all.filter_map(|(key, entry)| {
            let name = key.strip_prefix(beginning)?;
            let value = serde_json::from_slice(&entry.value.to_bytes());
            let value = value.map_err(|error: serde_json::Error| error.to_string());
            Some((name.to_owned(), entry.revision, value))
        });
        ours.collect()
    }

    /// For how long, at this time, each entry of nodes and components is as it is. The clocks of nodes may differ: what they say of
    /// themselves is no measure.
    fn ages(&self, snapshot: &Snapshot, now: Instant) -> BTreeMap<String, Duration> {
        let bucket = self.bucket(snapshot).and_then(|id| snapshot.bucket(id));
        let mut seen = locked(&self.seen);
        let all = bucket.iter().flat_map(|bucket| bucket.sorted());
        let there = all.map(|(key, entry)| {
            let known = seen.get(key).filter(|(at, _)| *at == entry.revision);
            let since = known.map_or(now, |(_, since)| *since);
            (key.to_owned(), (entry.revision, since))
        });
        *seen = there.collect();
        let ages = seen.iter();
        ages.map(|(key, (_, since))| (key.clone(), now - *since))
            .collect()
    }

    /// What was agreed on of a plugin, and when.
    fn agreed(
        &self,
        snapshot: &Snapshot,
        plugin: &str,
    ) -> Option<(Revision, Result<PluginEntry, String>)> {
        let bucket = snapshot.bucket(self.bucket(snapshot)?)?;
        let entry = bucket.get(&format!("{}{plugin}", entry::PLUGIN))?;
        let read = PluginEntry::parse(&entry.value.to_bytes());
        Some((entry.revision, read))
    }

    /// Whether this node has what was agreed on.
    fn has(&self, plugin: &str, wanted: &Agreement) -> bool {
        let present = self.plugins.present(plugin);
        present.is_some_and(|present| step::next_step(wanted, &present).is_none())
    }

    fn progress(&self) -> MutexGuard<'_, BTreeMap<String, Progress>> {
        locked(&self.progress)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970.
fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("no random bytes from the system: {error}"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let name: String = name.trim().chars().filter(plain).take(64).collect();
    match name.is_empty() {
        true => "node".to_owned(),
        false => name,
    }
}

/// What tells the admin APIs of one host apart: the port, or the path of a socket.
fn port_of(admin: &str) -> &str {
    match admin.strip_prefix("unix:") {
        Some(path) => path,
        None => admin.rsplit_once(':').map_or(admin, |(_, port)| port),
    }
}
