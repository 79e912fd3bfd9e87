//! What is done to a store, one step after the other, made at random.

use super::*;
use std::time::Duration;

/// Keys of each bucket.
pub(super) const KEYS: u8 = 12;

#[derive(Debug, Clone)]
pub(in crate::store) enum Step {
    Commit(Batch),
    /// The same while the backend fails.
    CommitFailing(Batch),
    /// So many ticks go by.
    Advance(u8),
    /// The store is closed, and opened again.
    Reopen,
    /// Its process is killed, and started again.
    Kill,
    /// Somebody watches again from so many events back.
    Rewind(u8),
}

#[derive(Debug, Clone)]
pub(in crate::store) struct Batch {
    pub(super) writes: Vec<(usize, u8, Act, Wanted)>,
    pub(super) replace: Vec<usize>,
    /// What has to be so of a bucket.
    pub(super) bucket: Option<(usize, BucketWanted)>,
    pub(super) dry_run: bool,
}

/// With times to live in ticks.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum Act {
    Put(u8, Option<u8>),
    Delete,
    Touch(Option<u8>),
    Increment(i8, Option<u8>),
}

impl Act {
    /// A time to live is so much longer than its ticks.
    pub(super) fn action(self, tick: Duration, more: Duration) -> Action {
        let ttl = |ticks: Option<u8>| ticks.map(|ticks| tick * u32::from(ticks) + more);
        match self {
            Self::Put(value, ticks) => Action::Put {
                value: value.to_string().into_bytes().into(),
                ttl: ttl(ticks),
            },
            Self::Delete => Action::Delete,
            Self::Touch(ticks) => Action::Touch { ttl: ttl(ticks) },
            Self::Increment(by, ticks) => Action::Increment {
                by: by.into(),
                ttl: ttl(ticks),
            },
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum Wanted {
    Any,
    Absent,
    Present,
    /// The entry's revision as it is.
    Current,
    Other,
}

/// What a batch may require of a bucket as a whole.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) enum BucketWanted {
    Empty,
    NotEmpty,
    Current,
    Other,
    /// Unchanged since it was last changed.
    Unchanged,
    /// Unchanged since before that.
    UnchangedLonger,
}

pub(in crate::store) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        24 => batch().prop_map(Step::Commit),
        2 => batch().prop_map(Step::CommitFailing),
        4 => (1..3_u8).prop_map(Step::Advance),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        2 => (0..8_u8).prop_map(Step::Rewind),
    ];
    prop::collection::vec(step, 1..40)
}

fn batch() -> impl Strategy<Value = Batch> {
    let wanted = prop_oneof![
        12 => Just(Wanted::Any),
        1 => Just(Wanted::Absent),
        1 => Just(Wanted::Present),
        1 => Just(Wanted::Current),
        1 => Just(Wanted::Other),
    ];
    let ttl = || proptest::option::weighted(0.3, 1..4_u8);
    let act = prop_oneof![
        6 => (0..3_u8, ttl()).prop_map(|(value, ttl)| Act::Put(value, ttl)),
        3 => Just(Act::Delete),
        1 => ttl().prop_map(Act::Touch),
        2 => (-2..3_i8, ttl()).prop_map(|(by, ttl)| Act::Increment(by, ttl)),
    ];
    let bucket = prop_oneof![
        Just(BucketWanted::Empty),
        Just(BucketWanted::NotEmpty),
        Just(BucketWanted::Current),
        Just(BucketWanted::Other),
        Just(BucketWanted::Unchanged),
        Just(BucketWanted::UnchangedLonger),
    ];
    let replace = prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec![0]),
        1 => Just(vec![1]),
        1 => Just(vec![1, 0, 1]),
    ];
    (
        prop::collection::vec((0..2_usize, 0..KEYS, act, wanted), 0..6),
        replace,
        proptest::option::weighted(0.2, (0..2_usize, bucket)),
        prop::bool::weighted(0.15),
    )
        .prop_map(|(writes, replace, bucket, dry_run)| Batch {
            writes,
            replace,
            bucket,
            dry_run,
        })
}

/// Some short enough to lie in their record, some not.
pub(super) fn key_of(key: u8) -> String {
    format!("key{}", "x".repeat(usize::from(key) * 5))
}
