//! One activation of a version: compiled, linked, with its subscription; counted while used; freed after.

use super::compile::Code;
use super::decision::Edits;
use super::engine::SessionInstances;
use super::epoch::EpochClock;
use super::imports::logging::LogGate;
use super::subscription::Plan;
use super::{Access, PluginConfig, RouteError};
use crate::metrics;
use crate::store::{BucketId, Snapshot, Store, ValueKind};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

/// Grows with every activation of any plugin, and never repeats in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u64);

/// One activation of a version.
///
/// Only what may still ask for it holds it: its plugin's slot, and a deploy under way. Instances hold what it is made of,
/// and are dropped by their workers when it is gone, so that its compiled code is freed.
pub struct Generation {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) plan: Arc<Plan>,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Generation").field(&self.label()).finish()
    }
}

impl Generation {
    /// Its id.
    pub fn id(&self) -> GenerationId {
        self.sandbox.label.id
    }
    /// The plugin's config it was made with.
    pub fn config(&self) -> &PluginConfig {
        &self.sandbox.config
    }
    /// What streams and logs keep of it; pins no code and no memory of the sandbox.
    pub fn label(&self) -> &Arc<GenerationLabel> {
        &self.sandbox.label
    }
    /// What the worker of this number counts; each worker has its own, so that none waits for another.
    pub fn stats(&self, worker: usize) -> &CallStats {
        &self.sandbox.stats[worker % self.sandbox.stats.len()]
    }
    /// Whether it has stream hooks.
    pub fn has_sessions(&self) -> bool {
        self.sandbox.code.session_exports.is_some()
    }
    /// The first revision of the store that it may decide on.
    #[inline]
    pub fn data_since(&self) -> u64 {
        self.sandbox.data_since.load(Ordering::Acquire)
    }
    /// Instances that a worker may have at the same time, of all plugins together.
    pub fn instances_per_worker(&self) -> usize {
        self.sandbox.instances_per_worker
    }
    /// Edits of the subscription, made to every forward of this generation.
    pub fn constant_edits(&self) -> Option<&Arc<Edits>> {
        self.plan.edits.as_ref()
    }
}

/// What the config grants of a bucket, with what the store says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Its place in snapshots.
    pub(crate) bucket: BucketId,
    /// Read, or write too.
    pub(crate) access: Access,
    /// What its values are.
    pub(crate) values: ValueKind,
}

/// What all instances of a generation share: everything `init` may see.
pub(crate) struct Sandbox {
    pub(super) code: Arc<Code>,
    pub(super) label: Arc<GenerationLabel>,
    pub(super) config: Arc<PluginConfig>,
    pub(super) grants: BTreeMap<String, Grant>,
    pub(super) store: Store,
    pub(super) clock: Arc<EpochClock>,
    /// By worker.
    pub(super) stats: Arc<[CallStats]>,
    /// By worker.
    pub(super) log_gates: Box<[LogGate]>,
    pub(super) started: Instant,
    /// The room for instances with sessions.
    pub(super) session_instances: Arc<SessionInstances>,
    /// The revision of the store from which on its plugin's data have the form that it knows; 0: always. What migrates
    /// them later leaves this generation behind.
    pub(super) data_since: Arc<AtomicU64>,
    /// The key of the mark that says when they were changed.
    pub(super) data_mark: Arc<str>,
    /// Whether something else is active in its place: an instance goes with its last session then.
    pub(super) retired: AtomicBool,
    /// Of all plugins together.
    pub(super) instances_per_worker: usize,
}

/// Takes the grants of a config to the store's buckets.
///
/// # Errors
/// Names the bucket that the store does not have.
pub(super) fn resolve_grants(
    grants: &BTreeMap<String, Access>,
    snapshot: &Snapshot,
) -> Result<BTreeMap<String, Grant>, String> {
    let resolved = grants.iter().map(|(name, &access)| {
        let bucket = snapshot.bucket_id(name);
        let found = bucket.and_then(|id| Some((id, snapshot.bucket(id)?)));
        let (bucket, content) =
            found.ok_or_else(|| format!("bucket {name:?} is granted but not in the store"))?;
        let values = content.config().values;
        Ok((
            name.clone(),
            Grant {
                bucket,
                access,
                values,
            },
        ))
    });
    resolved.collect()
}

/// What is known of a generation without keeping it alive.
#[derive(Debug)]
pub struct GenerationLabel {
    /// Its id.
    pub id: GenerationId,
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The version: SHA-256 of the component, in hex.
    pub digest: Arc<str>,
    /// Both, as the history of what it writes names it.
    pub writer: Arc<str>,
    /// When it became active.
    pub since: SystemTime,
    /// Open streams that it accepted.
    pub streams: AtomicU64,
    /// Sessions of its streams.
    pub sessions: AtomicU64,
}

impl GenerationLabel {
    /// The first 12 hex digits of the digest: how people name a version.
    pub fn version(&self) -> &str {
        &self.digest[..12]
    }
}

/// How the history of keys names a version of a plugin.
pub(super) fn writer(plugin: &str, digest: &str) -> Arc<str> {
    let version = digest.get(..12).unwrap_or(digest);
    format!("plugin {plugin}@{version}").into()
}

/// Upper bounds of the decision time histogram, in nanoseconds.
pub const DECISION_BUCKETS: [u64; 13] = [
    1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000,
    5_000_000, 10_000_000,
];

/// Calls of one generation on one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CallStats {
    /// Calls that gave a decision.
    pub ok: AtomicU64,
    /// Calls that trapped.
    pub traps: AtomicU64,
    /// Calls cut at their deadline.
    pub deadlines: AtomicU64,
    /// Decisions that could not be acted on.
    pub bad_decisions: AtomicU64,
    /// Writes refused at commit.
    pub refused_writes: AtomicU64,
    /// Log lines dropped over the rate.
    pub log_dropped: AtomicU64,
    /// Calls of sessions: streams opened, messages, ticks, ends.
    pub session_events: AtomicU64,
    /// Of these, calls that trapped.
    pub session_traps: AtomicU64,
    /// Calls cut at their deadline.
    pub session_deadlines: AtomicU64,
    /// Verdicts that could not be acted on.
    pub bad_verdicts: AtomicU64,
    /// Batches of sessions that the store did not take.
    pub session_refused_writes: AtomicU64,
    /// Changes that instances with a view of their own were told.
    pub watch_changes: AtomicU64,
    /// Calls that tell changes that trapped.
    pub watch_traps: AtomicU64,
    /// Of these calls, those cut at their deadline.
    pub watch_deadlines: AtomicU64,
    /// Nanoseconds of all calls together, but for those of sessions.
    pub nanos: AtomicU64,
    /// Bytes of linear memory of the instances there are.
    pub memory_bytes: AtomicU64,
    /// Calls by time: `DECISION_BUCKETS` and one for what is longer; each call counted once.
    pub histogram: [AtomicU64; DECISION_BUCKETS.len() + 1],
}

impl CallStats {
    /// Counts a call that ended. Only its own thread counts here.
    pub fn count(&self, error: Option<&RouteError>, nanos: u64) {
        let kind = match error {
            None => &self.ok,
            Some(RouteError::Trap(_) | RouteError::Instantiate(_) | RouteError::NoRoom(_)) => {
                &self.traps
            }
            Some(RouteError::Deadline(_) | RouteError::WatchDeadline(_)) => &self.deadlines,
            Some(RouteError::Decision(_)) => &self.bad_decisions,
        };
        metrics::add(kind, 1);
        metrics::add(&self.nanos, nanos);
        let bucket = DECISION_BUCKETS
            .iter()
            .position(|&bound| nanos <= bound)
            .unwrap_or(DECISION_BUCKETS.len());
        metrics::add(&self.histogram[bucket], 1);
    }
}
