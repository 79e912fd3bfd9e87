//! What a bucket is: its place, its values, its limits.

use super::lookup::LookupKinds;
use std::time::Duration;

/// A bucket's place in every snapshot of this process; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketId(pub u32);

impl BucketId {
    /// The bit that stands for it in a set of 64, which some share.
    pub fn bit(self) -> u64 {
        1 << (self.0 % 64)
    }
}

/// Where a bucket keeps its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// In memory only: gone at restart.
    Memory,
    /// In `store.redb` of the data directory: an acknowledged write survives a crash of the process or the machine.
    Embedded,
    /// In an etcd that proxies share.
    Etcd,
    /// In a Redis that proxies share.
    Redis,
}

impl BackendKind {
    /// As the config says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
            Self::Redis => "redis",
        }
    }

    /// Whether this build has it: two are features.
    pub fn is_built(self) -> bool {
        match self {
            Self::Memory | Self::Embedded => true,
            Self::Etcd => cfg!(feature = "etcd"),
            Self::Redis => cfg!(feature = "redis"),
        }
    }

    /// Whether other processes write to it, too.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Etcd | Self::Redis)
    }
}

impl BackendKind {
    /// Whether it keeps the past of keys with their values. For any other, each process remembers what it has seen.
    pub fn keeps_history(self) -> bool {
        self == Self::Embedded
    }
}

/// What a bucket's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueKind {
    /// A host or host:port that requests are sent to, checked at write.
    Endpoint,
    /// Anything.
    Bytes,
}

/// One bucket of the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketConfig {
    /// Its name in the config, the admin API and plugins.
    pub name: String,
    /// Where its data is.
    pub backend: BackendKind,
    /// What its values are.
    pub values: ValueKind,
    /// Most keys it may hold.
    pub keys_max: u64,
    /// Most bytes of keys and values together.
    pub bytes_max: u64,
    /// What becomes of streams when the entry they were routed by changes, unless their decision says so.
    pub on_change: OnChange,
    /// Values of each key that are kept after they were changed or deleted, and said by whom; 0: none.
    pub history: u32,
    /// Most bytes of them together: beyond that, the oldest of the bucket go.
    pub history_bytes_max: u64,
    /// How its entries are found.
    pub lookup: LookupKinds,
    /// Most keys that are regular expressions.
    pub regexes_max: usize,
}

/// What becomes of a stream when the entry it was routed by gets another value, or is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnChange {
    /// Nothing.
    #[default]
    Keep,
    /// It is closed later, the streams of an entry one after the other.
    Drain {
        /// From the change to the first that may be closed.
        after: Duration,
        /// From there to the last.
        over: Duration,
    },
    /// It is closed.
    Close,
}

/// Most keys of a bucket unless the config says otherwise.
pub const KEYS_MAX_DEFAULT: u64 = 10_000_000;
/// Most bytes of a bucket unless the config says otherwise.
pub const BYTES_MAX_DEFAULT: u64 = 4 << 30;
/// Most values of a key that are kept.
pub const HISTORY_MAX: u32 = 100;
/// Most bytes of kept values unless the config says otherwise.
pub const HISTORY_BYTES_MAX_DEFAULT: u64 = 256 << 20;
/// The bucket of a fleet: no name that a config can give.
pub(super) const FLEET: &str = "throwbar:fleet";
/// Most keys of a bucket that are regular expressions, unless the config says otherwise.
pub const REGEXES_MAX_DEFAULT: usize = 100;
/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

impl BucketConfig {
    /// A bucket with the default limits.
    pub fn new(name: impl Into<String>, backend: BackendKind, values: ValueKind) -> Self {
        Self {
            name: name.into(),
            backend,
            values,
            keys_max: KEYS_MAX_DEFAULT,
            bytes_max: BYTES_MAX_DEFAULT,
            on_change: OnChange::default(),
            history: 0,
            history_bytes_max: HISTORY_BYTES_MAX_DEFAULT,
            lookup: LookupKinds::default(),
            regexes_max: REGEXES_MAX_DEFAULT,
        }
    }

    /// The bucket of a fleet: to be given with those of the config.
    pub fn of_fleet(backend: BackendKind) -> Self {
        Self::new(FLEET, backend, ValueKind::Bytes)
    }
}
