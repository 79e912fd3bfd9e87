//! Buckets that several proxies share: what the store asks of an engine beside it, etcd or Redis.
//!
//! An engine is a log. Each transaction that changed something is one revision; revisions grow and are the same for
//! every proxy of the engine. Who loads the buckets at a revision and follows the log from there sees every later
//! transaction once, whole, and in order, or is told that there is a gap and loads again. A proxy reads from memory
//! only: a write goes to the engine, comes back through the log, and is answered when this proxy has it, too.
//!
//! | | etcd | Redis |
//! |---|---|---|
//! | an acknowledged write | is on the disks of most members | is in the memory of one server, and on its disk as its `appendfsync` says |
//! | what a failover can lose | nothing | what the promoted replica had not yet received; `replicas` waits for some of them |
//! | writes of other programs | seen, of any key below the prefix | must use this program's script |
//! | a transaction | 128 writes, 1.5 MiB, unless the server is told otherwise | 16,384 writes, 4 MiB |
//! | a time to live | whole seconds, 2 at least, by a clock that does not jump; a change of leader begins it anew; removed some hundred leases a second, of one transaction one for each time to live | milliseconds by the server's wall clock; removed 1,024 at a time |
//! | who wrote | the value of a key beside the bucket's | a field of the log |
//! | the log | up to the compaction | the newest `log_entries` transactions |

use super::Revision;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub mod artifacts;
pub(super) mod commit;
pub(super) mod copy;
#[cfg(any(feature = "etcd", feature = "redis"))]
mod ended;
#[cfg(feature = "etcd")]
mod etcd;
mod health;
mod kept;
pub(super) mod link;
mod links;
mod notes;
mod pause;
mod plan;
#[cfg(feature = "redis")]
mod redis;
mod room;
pub mod settings;
#[cfg(any(feature = "etcd", feature = "redis"))]
mod stranger;
#[cfg(test)]
mod tests;
#[cfg(any(feature = "etcd", feature = "redis"))]
mod tls;
mod turns;

#[cfg(feature = "etcd")]
use etcd::Etcd;
pub use health::Health;
pub(super) use links::Links;
#[cfg(feature = "redis")]
use redis::Redis;

/// Longest time to live of an entry.
#[cfg(any(feature = "etcd", feature = "redis"))]
const TTL_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
/// In steps of so many milliseconds ends of entries are told, rounded up: those that etcd has in the numbers of its leases.
pub(super) const END_TICK_MS: u64 = 250;

/// So long before the end of an entry, by this proxy's clock, the engine is asked for it. Etcd answers in whole seconds, so that
/// an entry of which none is left may be there for one more: asked any later, that is over later than it needs; any earlier,
/// a lease that was granted slowly is still told to last a second, and is asked for twice.
pub(super) const LEAD: Duration = Duration::from_millis(750);

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
    /// When it is absent, as wall-clock milliseconds since 1970; none: it stays. By the clock of the server (Redis) or
    /// of the proxy that wrote it (etcd), so while the engine is there it is asked, see [`Engine::left`], and for a proxy
    /// that has lost it this counts. None too if a program of somebody else's gave the entry its lease in etcd.
    pub(super) expires_at_ms: Option<u64>,
}

/// Writes that are made all or none, under one revision.
#[derive(Debug, Clone, Default)]
pub(super) struct Transaction {
    /// All of them must hold when the engine applies it.
    pub(super) conditions: Vec<Condition>,
    /// At most one for each key.
    pub(super) writes: Vec<SharedWrite>,
    /// Who makes it, for those who keep a history.
    pub(super) author: Option<Author>,
    /// Buckets for whose limits it counts how this changes what they hold: see [`Condition::Sized`].
    pub(super) sized: Vec<Box<str>>,
}

/// Longest text of an author that is read.
#[cfg(any(feature = "etcd", feature = "redis"))]
const AUTHOR_BYTES_MAX: usize = 4096;

/// Who made a transaction: goes through the log with it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Author {
    /// None is a proxy itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<Box<str>>,
    /// Whether it puts back what was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) undo: bool,
}

#[cfg(any(feature = "etcd", feature = "redis"))]
impl Author {
    /// As it is written in a log.
    fn text(&self) -> String {
        // It has nothing that is no JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// None if it is not what [`Self::text`] makes.
    fn parse(text: &[u8]) -> Option<Self> {
        (text.len() <= AUTHOR_BYTES_MAX).then(|| serde_json::from_slice(text).ok())?
    }
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
    /// The entry was last written at this revision and is over, or is gone.
    Over {
        bucket: Box<str>,
        key: Box<str>,
        revision: Revision,
    },
    /// Nothing of the bucket was written after this revision: for what depends on the whole bucket. In etcd a key that
    /// expired, or was deleted by another program, goes unnoticed.
    Unchanged { bucket: Box<str>, since: Revision },
    /// After this revision nothing of the bucket was deleted, and no transaction has it among its [`Transaction::sized`].
    /// In etcd a key that expired, or was deleted by another program, goes unnoticed; a transaction that is as large as
    /// can be has neither this nor that. There it also fails after a transaction that told its author: whoever is refused for
    /// that alone is not at the next try.
    Sized { bucket: Box<str>, since: Revision },
}

impl SharedEntry {
    /// What counts for a bound of a load.
    #[cfg(any(feature = "etcd", feature = "redis"))]
    fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

impl Condition {
    /// The bucket that it is about.
    pub(super) fn bucket(&self) -> &str {
        match self {
            Self::At { bucket, .. }
            | Self::Over { bucket, .. }
            | Self::Unchanged { bucket, .. }
            | Self::Sized { bucket, .. } => bucket,
        }
    }
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
    pub(super) life: Life,
}

/// How long an entry is there, unless it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Until it is deleted.
    Lasting,
    /// It is absent after this time, rounded up to what the engine counts in.
    For(Duration),
    /// As long as the entry that it replaces would have been; a condition of the transaction requires that one. Only the
    /// engine knows when it ends: what is told of it comes from another clock than this process has.
    AsBefore,
}

impl Life {
    /// The time to live, if it begins now.
    #[cfg(any(feature = "etcd", feature = "redis"))]
    fn ttl(self) -> Option<Duration> {
        match self {
            Self::For(ttl) => Some(ttl),
            Self::Lasting | Self::AsBefore => None,
        }
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is durable as far as the engine promises, and in the log at this revision. If it changed nothing, this is the
    /// engine's newest revision then, and [`Event::Passed`] or [`Event::Current`] tells when the log has come so far.
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
    /// One transaction, or what expired at the same moment: everything of one revision that is in the followed buckets,
    /// and never nothing; that is [`Self::Passed`].
    Changes {
        revision: Revision,
        changes: Vec<SharedChange>,
        /// Who made it, if that was told to the engine.
        author: Option<Author>,
    },
    /// Nothing of this revision is in the followed buckets.
    Passed(Revision),
    /// The engine is there, and this proxy has everything up to this revision, which is all that there was at this moment:
    /// sent when it catches up after a loss, and from time to time.
    Current(Revision, Instant),
    /// What follows the last event is no longer in the log, or the log is not the one it was: load again, then follow
    /// from there. The last event.
    Gap,
    /// The engine is lost, or still is; it is tried again by itself.
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

/// An entry whose end is near, by this proxy's clock.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub(super) bucket: Box<str>,
    pub(super) key: Box<str>,
    pub(super) revision: Revision,
    pub(super) expires_at_ms: u64,
}

/// How long an entry lives, by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It is over after this time for sure, and at most a second earlier.
    Until(Duration),
    /// It lives longer than this: then it is time to ask again.
    Longer(Duration),
    /// Only the log tells.
    #[cfg_attr(
        not(any(feature = "etcd", test)),
        expect(dead_code, reason = "Redis knows of each entry it has")
    )]
    Unknown,
}

/// A place that several proxies share. Clones are handles of one connection.
pub(super) trait Engine: Clone + Send + Sync + 'static {
    /// Most entries that [`Self::left`] is given at once.
    const ENDING_MAX: usize;

    /// Whether a write that it has answered can be lost, in a failover to a replica that does not have it.
    const LOSES_WRITES: bool;

    /// Everything of these buckets at one revision. Never blocks the engine, however much it is.
    fn load(
        &self,
        buckets: &[Box<str>],
    ) -> impl Future<Output = Result<Loaded, EngineError>> + Send {
        self.load_within(buckets, usize::MAX)
    }

    /// The same of buckets whose keys and values are expected to have at most so many bytes; [`EngineError::TooLarge`] as
    /// soon as there are more.
    fn load_within(
        &self,
        buckets: &[Box<str>],
        bytes_max: usize,
    ) -> impl Future<Output = Result<Loaded, EngineError>> + Send;

    /// Whether it takes so many writes, or conditions, at once.
    ///
    /// # Errors
    /// [`EngineError::TooLarge`].
    fn check_count(&self, count: usize) -> Result<(), EngineError>;

    /// As many puts it takes at once for sure, with names of buckets, and keys with their values, of so many bytes each.
    fn writes_max(&self, bucket_bytes: usize, entry_bytes: usize) -> usize;

    /// Whether it takes such a transaction, as far as that can be told without asking it.
    ///
    /// # Errors
    /// What [`Self::commit`] would say.
    fn check(&self, transaction: &Transaction) -> Result<(), EngineError>;

    /// Applies a transaction, all or none. A transaction whose writes change nothing may or may not be a revision.
    /// If the future is dropped it may still be applied.
    fn commit(
        &self,
        transaction: &Transaction,
    ) -> impl Future<Output = Result<Outcome, EngineError>> + Send;

    /// How long the first of these entries live, in their order; at least one if there is any, the others are asked for again at
    /// once. What engines remove by themselves, they may remove late when there is much.
    fn left(
        &self,
        entries: &[Ending],
    ) -> impl Future<Output = Result<Vec<Left>, EngineError>> + Send;

    /// Tells every transaction after `from` that touches these buckets, until the receiver is gone or there is a gap.
    /// `from` comes from this engine: a load, or an event. Reconnects by itself, with growing pauses. Engines do their
    /// chores here, too: what has expired is removed, and leases are given back.
    fn follow(
        &self,
        buckets: Vec<Box<str>>,
        from: Revision,
        events: mpsc::Sender<Event>,
    ) -> impl Future<Output = ()> + Send;
}
