//! Buckets that several proxies share: what the store asks of an engine beside it, etcd or Redis.
//!
//! An engine is a log. Each transaction that changed something is one revision; revisions grow and are the same for
//! every proxy of the engine. Who loads the buckets at a revision and follows the log from there sees every later
//! transaction once, whole, and in order, or is told that there is a gap and loads again. A proxy reads from memory
//! only: a write goes to the engine, comes back through the log, and is answered when this proxy has it, too.

use super::Revision;
use std::time::Duration;
use tokio::sync::mpsc;

/// Entries of some buckets as of one revision.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Loaded {
    /// The newest revision that is in them.
    pub(super) revision: Revision,
    pub(super) entries: Vec<SharedEntry>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SharedEntry {
    pub(super) bucket: Box<str>,
    pub(super) key: Box<str>,
    pub(super) value: Box<[u8]>,
    /// That which wrote it last.
    pub(super) revision: Revision,
    /// When it is absent, as wall-clock milliseconds since 1970; none: it stays.
    pub(super) expires_at_ms: Option<u64>,
}

/// Writes that are made all or none, under one revision.
#[derive(Debug, Clone, Default)]
pub(super) struct Transaction {
    /// All of them must hold when the engine applies it.
    pub(super) conditions: Vec<Condition>,
    /// At most one for each key.
    pub(super) writes: Vec<SharedWrite>,
}

/// What the engine checks itself, since this proxy may be behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// The entry was last written at this revision; none: there is none.
    At {
        bucket: Box<str>,
        key: Box<str>,
        revision: Option<Revision>,
    },
    /// Nothing of the bucket was written after this revision: for what depends on the whole bucket.
    Unchanged { bucket: Box<str>, since: Revision },
}

/// One entry set or deleted.
#[derive(Debug, Clone)]
pub(super) struct SharedWrite {
    pub(super) bucket: Box<str>,
    pub(super) key: Box<str>,
    /// None deletes; ok whether or not it is there.
    pub(super) value: Option<SharedValue>,
}

/// What an entry is set to.
#[derive(Debug, Clone)]
pub(super) struct SharedValue {
    pub(super) bytes: Box<[u8]>,
    /// It is absent after this time unless it is written again.
    pub(super) ttl: Option<Duration>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is durable as far as the engine promises, and in the log at this revision.
    Applied(Revision),
    /// A condition did not hold at this revision: nothing was changed.
    Conflict(Revision),
}

/// Why an engine did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EngineError {
    /// It cannot be reached, or did not answer in time. Nothing was sent, or it was surely not applied.
    #[error("{0}")]
    Unavailable(String),
    /// It was sent and the answer is missing: the log tells whether it was applied.
    #[error("{0}")]
    Unknown(String),
    /// It is larger than the engine takes; names the limit.
    #[error("{0}")]
    TooLarge(String),
    /// Name, password or certificate are refused, or the settings are wrong: trying again does not help.
    #[error("{0}")]
    Refused(String),
}

/// What the log tells.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// One transaction, or what expired at the same moment: everything of one revision.
    Changes {
        revision: Revision,
        changes: Vec<SharedChange>,
    },
    /// The engine is there, and this proxy has everything up to this revision: sent when it catches up after a loss, and
    /// from time to time.
    Current(Revision),
    /// What follows the last event is no longer in the log: load again.
    Gap,
    /// The engine is lost; it is tried again by itself.
    Lost(String),
}

/// One entry set or deleted by somebody.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SharedChange {
    pub(super) bucket: Box<str>,
    pub(super) key: Box<str>,
    /// None: it was deleted or expired.
    pub(super) after: Option<SharedEntry>,
}

/// A place that several proxies share. Clones are handles of one connection.
pub(super) trait Engine: Clone + Send + Sync + 'static {
    /// Everything of these buckets at one revision.
    fn load(
        &self,
        buckets: &[Box<str>],
    ) -> impl Future<Output = Result<Loaded, EngineError>> + Send;

    /// Applies a transaction, all or none. A transaction whose writes change nothing may or may not be a revision.
    fn commit(
        &self,
        transaction: &Transaction,
    ) -> impl Future<Output = Result<Outcome, EngineError>> + Send;

    /// Tells every transaction after `from` that touches these buckets, until the receiver is gone. Reconnects by
    /// itself, with growing pauses.
    fn follow(
        &self,
        buckets: Vec<Box<str>>,
        from: Revision,
        events: mpsc::Sender<Event>,
    ) -> impl Future<Output = ()> + Send;
}
