//! One activation of a version: compiled, linked, with its subscription; counted while used; freed after.

/// Grows with every activation of any plugin, and never repeats in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u64);

/// One activation of a version.
pub struct Generation {
    _private: (),
}

use super::PluginConfig;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

impl Generation {
    /// Its id.
    pub fn id(&self) -> GenerationId {
        unimplemented!()
    }
    /// The plugin's config it was made with.
    pub fn config(&self) -> &PluginConfig {
        unimplemented!()
    }
    /// What streams and logs keep of it; pins no code and no memory of the sandbox.
    pub fn label(&self) -> &Arc<GenerationLabel> {
        unimplemented!()
    }
    /// What the worker of this number counts; each worker has its own, so that none waits for another.
    pub fn stats(&self, _worker: usize) -> &CallStats {
        unimplemented!()
    }
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
    /// When it became active.
    pub since: SystemTime,
    /// Open streams that it accepted.
    pub streams: AtomicU64,
}

impl GenerationLabel {
    /// The first 12 hex digits of the digest: how people name a version.
    pub fn version(&self) -> &str {
        &self.digest[..12]
    }
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
    /// Nanoseconds of all calls together.
    pub nanos: AtomicU64,
    /// Calls by time: `DECISION_BUCKETS` and one for what is longer; each call counted once.
    pub histogram: [AtomicU64; DECISION_BUCKETS.len() + 1],
}
