//! Watching a bucket: every change after a revision, in order, each revision as one group.
//!
//! A watch has no buffer of its own. It reads the log at its own pace, and one that falls behind further than the log
//! reaches is told so, instead of missing something.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::log::{After, Group, Log};
use super::{BackendKind, BucketId, Revision, Snapshot, Store};

/// How long a place is waited for that another proxy may have been at.
const AHEAD_MAX: Duration = Duration::from_secs(1);

/// A place in a bucket's changes: what it is written as can be given to a later watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Everything up to this revision is known.
    pub revision: Revision,
    /// The life of the process, where a bucket does not outlive it: its revisions begin anew then.
    pub life: Option<u32>,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.life {
            None => self.revision.fmt(f),
            Some(life) => write!(f, "{}-{life:08x}", self.revision),
        }
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?}: expected a revision, or the id of an event");
        let (revision, life) = match text.split_once('-') {
            None => (text, None),
            Some((revision, life)) => {
                let life = u32::from_str_radix(life, 16).map_err(|_| expected())?;
                (revision, Some(life))
            }
        };
        let revision = revision.parse().map_err(|_| expected())?;
        Ok(Self {
            revision: Revision(revision),
            life,
        })
    }
}

/// Why a watch cannot begin or go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Changes after its place are no longer kept.
    #[error(
        "changes after revision {since} are no longer kept, only those after {floor}: read the bucket, and watch it from there"
    )]
    Compacted {
        /// Where it was.
        since: Revision,
        /// From where on there are changes.
        floor: Revision,
    },
    /// The place is none of this store: the process was restarted, or its data is another.
    #[error(
        "revision {since} is not of this store, which is at {newest}: read the bucket, and watch it from there"
    )]
    Foreign {
        /// Where it was to begin.
        since: Position,
        /// The store's revision.
        newest: Revision,
    },
    /// The bucket is not, or no longer, in the config.
    #[error("no such bucket")]
    NoSuchBucket,
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}

/// One watch of a bucket.
pub struct Watch {
    newest: Arc<ArcSwap<Snapshot>>,
    log: Arc<Log>,
    published: watch::Receiver<Revision>,
    bucket: BucketId,
    epoch: u64,
    at: Position,
}

impl Watch {
    pub(super) fn new(
        newest: Arc<ArcSwap<Snapshot>>,
        log: Arc<Log>,
        published: watch::Receiver<Revision>,
        life: u32,
        bucket: BucketId,
        since: Option<Position>,
    ) -> Result<Self, WatchError> {
        // Before the state: of one that was loaded anew in between the watch is told, and has missed nothing.
        let epoch = log.epoch(bucket);
        let snapshot = newest.load_full();
        let found = named(&snapshot, bucket).ok_or(WatchError::NoSuchBucket)?;
        let brief = found.config().backend == BackendKind::Memory;
        let here = Position {
            revision: found.revision(),
            life: brief.then_some(life),
        };
        let at = match since {
            None => here,
            Some(since) => {
                let other_life = since.life.is_some_and(|life| here.life != Some(life));
                // A shared bucket has revisions of the engine's.
                let newest = match found.config().backend.is_shared() {
                    true => found.revision(),
                    false => snapshot.revision(),
                };
                if other_life || since.revision > newest {
                    return Err(WatchError::Foreign { since, newest });
                }
                let revision = since.revision;
                if let After::Compacted(floor) = log.after(bucket, (epoch, revision)) {
                    let since = revision;
                    return Err(WatchError::Compacted { since, floor });
                }
                Position { revision, ..here }
            }
        };
        Ok(Self {
            newest,
            log,
            published,
            bucket,
            epoch,
            at,
        })
    }

    /// Everything up to here was given, or was there before.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Waits for the next group. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`WatchError`]; there is no more then.
    pub async fn next(&mut self) -> Result<Arc<Group>, WatchError> {
        loop {
            self.published.mark_unchanged();
            if named(&self.newest.load(), self.bucket).is_none() {
                return Err(WatchError::NoSuchBucket);
            }
            let since = self.at.revision;
            match self.log.after(self.bucket, (self.epoch, since)) {
                After::Group(group) => {
                    self.at.revision = group.revision;
                    return Ok(group);
                }
                After::Compacted(floor) => return Err(WatchError::Compacted { since, floor }),
                After::Nothing => {
                    let more = self.published.changed().await;
                    more.map_err(|_| WatchError::Closed)?;
                }
            }
        }
    }
}

impl Store {
    /// As [`Store::watch`]; a place in a bucket that proxies share, where another proxy was and this one is not yet, is waited
    /// for a moment.
    ///
    /// # Errors
    /// As for [`Store::watch`].
    pub async fn watch_from(
        &self,
        bucket: BucketId,
        since: Option<Position>,
    ) -> Result<Watch, WatchError> {
        let mut changes = self.changes();
        let deadline = tokio::time::Instant::now() + AHEAD_MAX;
        loop {
            changes.mark_unchanged();
            let snapshot = self.snapshot();
            let found = snapshot.bucket(bucket);
            let is_shared = found.is_some_and(|found| found.config().backend.is_shared());
            let is_ahead = since.is_some_and(|since| since.life.is_none());
            drop(snapshot);
            let error = match self.watch(bucket, since) {
                Err(error @ WatchError::Foreign { .. }) if is_shared && is_ahead => error,
                watch => return watch,
            };
            let more = tokio::time::timeout_at(deadline, changes.changed()).await;
            if !matches!(more, Ok(Ok(()))) {
                return Err(error);
            }
        }
    }
}

/// A bucket of the config.
fn named(snapshot: &Snapshot, id: BucketId) -> Option<&super::Bucket> {
    let bucket = snapshot.bucket(id)?;
    (snapshot.bucket_id(&bucket.config().name) == Some(id)).then_some(bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        for (text, revision, life) in [("57", 57, None), ("57-0000beef", 57, Some(0xbeef))] {
            let position: Position = text.parse().unwrap();
            let revision = Revision(revision);
            assert_eq!(position, Position { revision, life });
            assert_eq!(position.to_string(), text);
        }
        for bad in ["", "-", "x", "5-", "5-x", "-5", "5-123456789"] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?}");
        }
    }
}
