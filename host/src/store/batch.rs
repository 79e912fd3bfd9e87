//! What can be written, and how a write is refused.

use std::time::Duration;

use super::bucket::{FLEET, KEY_BYTES_MAX};
use super::value::shown;
use super::{BackendKind, BucketId, Deadline, Revision};
use std::sync::Arc;

/// What a write requires of the entry as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expect {
    /// Nothing.
    #[default]
    Any,
    /// That there is none.
    Absent,
    /// That there is one.
    Present,
    /// That it was last written at this revision.
    At(Revision),
}

/// What a write does to the entry of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Gives it a value, whether or not it was there.
    Put {
        /// The value as text or bytes, checked against the bucket's kind.
        value: Box<[u8]>,
        /// How long it lives; without one until it is deleted, even if it had a deadline before.
        ttl: Option<Duration>,
    },
    /// Deletes it; fine if it was not there.
    Delete,
    /// Renews it: its deadline changes, its value and its revision stay. It has to be there.
    Touch {
        /// How long it lives from now; without one until it is deleted.
        ttl: Option<Duration>,
    },
    /// Adds to the decimal number that it is; one that is not there is 0. Its deadline stays.
    Increment {
        /// How much, negative to count down.
        by: i64,
        /// How long the entry lives if this makes it.
        ttl: Option<Duration>,
    },
}

/// One write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The bucket.
    pub bucket: BucketId,
    /// The key.
    pub key: Box<str>,
    /// What becomes of the entry.
    pub action: Action,
    /// Checked before anything of the batch is applied.
    pub expect: Expect,
    /// When what it puts ends, in place of a time to live: for what was written before, and is read in again.
    pub until: Option<Deadline>,
}

impl Write {
    /// A write that requires nothing.
    pub fn new(bucket: BucketId, key: impl Into<Box<str>>, action: Action) -> Self {
        Self {
            bucket,
            key: key.into(),
            action,
            expect: Expect::Any,
            until: None,
        }
    }

    /// Puts a value that stays, whatever there was.
    pub fn put(bucket: BucketId, key: impl Into<Box<str>>, value: impl Into<Box<[u8]>>) -> Self {
        let value = value.into();
        Self::new(bucket, key, Action::Put { value, ttl: None })
    }

    /// Deletes, whatever there was.
    pub fn delete(bucket: BucketId, key: impl Into<Box<str>>) -> Self {
        Self::new(bucket, key, Action::Delete)
    }

    /// The same with a requirement.
    pub fn expecting(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }
}

/// Writes applied all or none, under one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// Applied in order: a later write of a key finds what an earlier one left.
    pub writes: Vec<Write>,
    /// Buckets emptied first: with the writes, that makes a batch the whole content of a bucket. Keys written again
    /// with an equal value keep their revision.
    pub replace: Vec<BucketId>,
    /// What has to hold beside what the writes expect, checked with them.
    pub conditions: Vec<Condition>,
    /// Buckets and what has to be so of each as a whole: that it holds no key, that it holds one, or that it was last
    /// changed at a revision.
    pub expect: Vec<(BucketId, Expect)>,
    /// Check only: what would be the result, without applying it.
    pub dry_run: bool,
    /// Who writes, for the history of keys; none is the proxy itself.
    pub by: Option<Arc<str>>,
    /// Whether it puts back what was, for the history of keys.
    pub undo: bool,
}

/// What a batch requires of the store beyond the entries that it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Nothing of the bucket was created, changed or deleted after this revision.
    Unchanged(BucketId, Revision),
    /// The mark of this key is still the one that was set at this revision, or there is still none.
    Unmarked(Arc<str>, Option<Revision>),
}

/// What a batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Committed {
    /// The revision it was made under, or the store's if it changed nothing.
    pub revision: Revision,
    /// The store's revision of the first state that has it. Another one only if it is of a bucket that proxies share: such
    /// revisions are those of the engine.
    #[serde(skip)]
    pub seen: Revision,
    /// Entries created.
    pub created: u64,
    /// Entries whose value changed.
    pub updated: u64,
    /// Entries whose deadline changed and nothing else.
    pub touched: u64,
    /// Entries deleted.
    pub deleted: u64,
    /// Keys left as they were.
    pub unchanged: u64,
    /// The revision of the entry that the last write is about, if it is there now.
    pub entry: Option<Revision>,
    /// What the last increment came to.
    pub number: Option<i64>,
}

/// Why a batch was refused; nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A value or key that the bucket cannot hold.
    #[error("bucket {bucket:?}, key {}: {reason}", shown(key))]
    Invalid {
        /// The bucket's name.
        bucket: String,
        /// The key.
        key: String,
        /// What was expected.
        reason: String,
    },
    /// An [`Expect`] did not hold.
    #[error("bucket {bucket:?}, key {}: entry is {}", shown(key), found.map_or("absent".into(), |r| format!("at revision {r}")))]
    Conflict {
        /// The bucket's name.
        bucket: String,
        /// The key.
        key: String,
        /// The entry's revision.
        found: Option<Revision>,
    },
    /// What was expected of a bucket as a whole did not hold.
    #[error("bucket {bucket:?}: {}", if *empty { "it holds no key".into() } else { format!("it is at revision {found}") })]
    BucketConflict {
        /// Its name.
        bucket: String,
        /// Whether it holds no key.
        empty: bool,
        /// The revision of its last change.
        found: Revision,
    },
    /// A limit of the bucket.
    #[error("bucket {bucket:?}: {reason}")]
    Quota {
        /// The bucket's name.
        bucket: String,
        /// Which limit, and by how much.
        reason: String,
    },
    /// A [`Condition::Unchanged`] did not hold.
    #[error("bucket {bucket:?}: changed at revision {revision}")]
    Changed {
        /// The bucket's name.
        bucket: String,
        /// Its revision.
        revision: Revision,
    },
    /// A [`Condition::Unmarked`] did not hold: somebody else went before.
    #[error("mark {key:?}: set at revision {revision}")]
    Marked {
        /// The mark's key.
        key: String,
        /// When it was set.
        revision: Revision,
    },
    /// A bucket id that does not exist.
    #[error("no such bucket")]
    NoSuchBucket,
    /// It writes to two backends, and there is nothing that could do so all or none.
    #[error("bucket {bucket:?} is on {}, bucket {other:?} on {}: expected a batch to write to one backend",
            backend.as_str(), other_backend.as_str())]
    Mixed {
        /// A bucket.
        bucket: String,
        /// Its backend.
        backend: BackendKind,
        /// Another bucket.
        other: String,
        /// The backend of that.
        other_backend: BackendKind,
    },
    /// Larger than the backend takes at once.
    #[error("{reason}")]
    TooLarge {
        /// Names the limit.
        reason: String,
        /// As many plain puts to one bucket it takes for sure, if each is as large as the largest of these; none if that is not
        /// known, or none.
        writes_max: Option<usize>,
        /// Of a dry run: what the batch would do if it were not too large.
        would: Option<Box<Committed>>,
    },
    /// The backend cannot take writes: closed, disk full, I/O error, away.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The backend was asked, and the answer is missing: it may have been applied.
    #[error("store unavailable, and whether the write was made is unknown: {0}")]
    Unknown(String),
    /// It was applied, and readers of this process do not have it yet.
    #[error("written at revision {revision}, which this process has not seen within {waited:.1?}")]
    Unseen {
        /// The revision of what processes share.
        revision: Revision,
        /// For how long it was waited for.
        waited: Duration,
    },
    /// It was applied, and is gone: a failover was to a replica that did not have it.
    #[error("written at revision {revision}, and lost since, in a failover")]
    Lost {
        /// The revision of what processes share that it had.
        revision: Revision,
    },
}

impl CommitError {
    /// Whether what did not hold is about what a fleet has agreed on.
    pub fn is_of_fleet(&self) -> bool {
        matches!(self, Self::Conflict { bucket, .. } if bucket == FLEET)
    }
}

/// Checks what every key must be: 1 to [`KEY_BYTES_MAX`] bytes of text without control characters.
///
/// # Errors
/// What was expected.
pub fn check_key(key: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err("key is empty, expected at least 1 byte".into());
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(format!(
            "key of {} bytes is too long, expected at most {KEY_BYTES_MAX}",
            key.len()
        ));
    }
    if key.chars().any(char::is_control) {
        return Err(format!(
            "key {} has a control character, expected text without",
            shown(key)
        ));
    }
    Ok(())
}
