//! Writes to buckets that proxies share.
//!
//! A batch is applied to the state that this process has, to learn what would come of it, and on which entries that depends.
//! What it depends on goes to the engine as conditions of one transaction, with what is to be written. If they hold, the
//! outcome is the right one at that moment, a refusal as much as a success; if not, this process was behind, waits until it
//! has seen more, and begins anew. Then it waits until its own readers see the write. A put or delete that requires nothing
//! depends on nothing, unless there is nothing to change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ahash::RandomState;
use arc_swap::ArcSwap;
use tokio::time::{Instant, timeout_at};

use super::link::{Applied, Link};
use super::{Author, Links, Transaction};
use super::{Condition as SharedCondition, EngineError, Life, Outcome, SharedValue, SharedWrite};
use crate::store::apply::apply;
use crate::store::backend::Change;
use crate::store::clock::Clock;
use crate::store::{
    Action, BackendKind, BucketId, CommitError, Committed, Condition, Deadline, Expect, Revision,
    Snapshot, WriteBatch,
};

/// How often a batch is tried while other processes write first what it depends on.
const ATTEMPTS_MAX: usize = 64;

/// What is needed to commit; clones share it.
#[derive(Clone)]
pub(in crate::store) struct Committer {
    pub(in crate::store) newest: Arc<ArcSwap<Snapshot>>,
    pub(in crate::store) links: Arc<Links>,
    pub(in crate::store) clock: Clock,
}

impl Committer {
    /// The backend that proxies share and that a batch writes to; none if it only writes to this process's own.
    pub(in crate::store) fn backend_of(
        &self,
        batch: &WriteBatch,
    ) -> Result<Option<BackendKind>, CommitError> {
        let snapshot = self.newest.load();
        let written = batch.writes.iter().map(|write| write.bucket);
        let mut written = written.chain(batch.replace.iter().copied());
        let config = |id| snapshot.bucket(id).map(|bucket| &bucket.config);
        // Most stores share nothing.
        if self.links.is_empty() {
            return Ok(None);
        }
        let Some(first) = written.next().and_then(config) else {
            return Ok(None);
        };
        let other = written
            .filter_map(config)
            .find(|other| other.backend != first.backend);
        if let Some(other) = other
            && (first.backend.is_shared() || other.backend.is_shared())
        {
            return Err(CommitError::Mixed {
                bucket: first.name.clone(),
                backend: first.backend,
                other: other.name.clone(),
                other_backend: other.backend,
            });
        }
        Ok(Some(first.backend).filter(|backend| backend.is_shared()))
    }

    /// Commits a batch that writes to a shared backend. See [`crate::store::Store::commit_noting`].
    pub(in crate::store) async fn commit(
        &self,
        backend: BackendKind,
        batch: &WriteBatch,
        notes: &[Arc<AtomicU64>],
    ) -> Result<Committed, CommitError> {
        let closed = || CommitError::Unavailable(format!("{} is not open", backend.as_str()));
        let link = self.links.get(backend).ok_or_else(closed)?;
        let mut progress = link.progress();
        for _ in 0..ATTEMPTS_MAX {
            let applied = *progress.borrow_and_update();
            let snapshot = self.newest.load_full();
            let mut next = Snapshot::clone(&snapshot);
            let (now, mut changes) = (self.clock.now(), Vec::new());
            let outcome = apply(&mut next, batch, now, &mut changes);
            if batch.dry_run || outcome.as_ref().is_err_and(is_certain) {
                return outcome;
            }
            let known = (backend, applied.revision);
            let plan = Plan::new(&snapshot, known, batch, &outcome, (&changes, now));
            if plan.transaction.conditions.is_empty() && plan.transaction.writes.is_empty() {
                return outcome;
            }
            match link
                .commit_noting(Arc::clone(&plan.transaction), notes)
                .await
            {
                Ok(Outcome::Applied(revision)) => {
                    let committed = outcome?;
                    if plan.transaction.writes.is_empty() {
                        return Ok(committed);
                    }
                    let applied = seen(link, revision).await?;
                    return Ok(plan.committed(batch, committed, revision, applied.seen));
                }
                Ok(Outcome::Conflict(at)) if applied.revision < at => {
                    // Whatever comes next may be what it depends on.
                    let more = tokio::time::timeout(link.timeout(), progress.changed()).await;
                    if !matches!(more, Ok(Ok(()))) {
                        return Err(behind(link, at));
                    }
                }
                // It depends on something that went by itself.
                Ok(Outcome::Conflict(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => return Err(refused(error)),
            }
        }
        Err(CommitError::Unavailable(
            "other processes have always written first".into(),
        ))
    }
}

/// Whether a refusal needs no confirmation: it does not depend on the state, or on what only grows.
fn is_certain(error: &CommitError) -> bool {
    !matches!(
        error,
        CommitError::Conflict { .. } | CommitError::BucketConflict { .. }
    )
}

fn refused(error: EngineError) -> CommitError {
    match error {
        EngineError::Unavailable(reason) | EngineError::Refused(reason) => {
            CommitError::Unavailable(reason)
        }
        EngineError::Unknown(reason) => CommitError::Unknown(reason),
        EngineError::TooLarge(reason) => CommitError::TooLarge(reason),
    }
}

fn behind(link: &Link, at: Revision) -> CommitError {
    CommitError::Unavailable(format!(
        "this process has not seen revision {at} of what is shared within {:?}",
        link.timeout()
    ))
}

/// Waits until readers see a revision.
async fn seen(link: &Link, revision: Revision) -> Result<Applied, CommitError> {
    let deadline = Instant::now() + link.timeout();
    let mut progress = link.progress();
    let seen = progress.wait_for(|applied| applied.revision >= revision);
    match timeout_at(deadline, seen).await {
        Ok(Ok(applied)) => Ok(*applied),
        _ => Err(CommitError::Unknown(format!(
            "written at revision {revision}, which this process has not seen within {:?}",
            link.timeout()
        ))),
    }
}

/// A batch as the engine is asked for it.
struct Plan {
    transaction: Arc<Transaction>,
    /// Whether the entry of the last write is there afterwards, if it is changed.
    last: Option<bool>,
}

impl Plan {
    fn new(
        snapshot: &Snapshot,
        (backend, known): (BackendKind, Revision),
        batch: &WriteBatch,
        outcome: &Result<Committed, CommitError>,
        (changes, now): (&[Change], u64),
    ) -> Self {
        let is_here = |id: BucketId| {
            let bucket = snapshot.bucket(id);
            bucket.filter(|bucket| bucket.config.backend == backend)
        };
        let changed: HashMap<(BucketId, &[u8]), &Change, RandomState> = changes
            .iter()
            .map(|change| ((change.id, change.key()), change))
            .collect();
        let mut read: HashMap<(BucketId, &str), bool, RandomState> = HashMap::default();
        // Keys that are written otherwise than by counting.
        let mut put: HashSet<(BucketId, &[u8]), RandomState> = HashSet::default();
        for write in &batch.writes {
            let at = (write.bucket, &*write.key);
            let is_blind = write.expect == Expect::Any
                && matches!(write.action, Action::Put { .. } | Action::Delete)
                && outcome.is_ok()
                && changed.contains_key(&(at.0, at.1.as_bytes()));
            *read.entry(at).or_default() |= !is_blind;
            if !matches!(write.action, Action::Increment { .. }) {
                put.insert((at.0, at.1.as_bytes()));
            }
        }
        let mut transaction = Transaction::default();
        for ((id, key), depends) in read {
            let Some(bucket) = is_here(id).filter(|_| depends) else {
                continue;
            };
            let (bucket_name, found) = (bucket.config.name.as_str().into(), bucket.get(key));
            let condition = match bucket.over(key) {
                Some(over) => SharedCondition::Over {
                    bucket: bucket_name,
                    key: key.into(),
                    revision: over.entry.revision,
                },
                None => SharedCondition::At {
                    bucket: bucket_name,
                    key: key.into(),
                    revision: found.map(|entry| entry.revision),
                },
            };
            transaction.conditions.push(condition);
        }
        let whole = batch.replace.iter().copied();
        let whole = whole.chain(batch.expect.iter().map(|(id, _)| *id));
        let whole = whole.chain(batch.conditions.iter().filter_map(|it| match it {
            Condition::Unchanged(id, _) => Some(*id),
            Condition::Unmarked(..) => None,
        }));
        let mut whole: Vec<BucketId> = whole.collect();
        whole.sort_unstable();
        whole.dedup();
        for bucket in whole.into_iter().filter_map(is_here) {
            transaction.conditions.push(SharedCondition::Unchanged {
                bucket: bucket.config.name.as_str().into(),
                // The state has everything up to there.
                since: bucket.revision.max(known),
            });
        }
        for condition in &batch.conditions {
            let Condition::Unmarked(key, _) = condition else {
                continue;
            };
            if let Some(marks) = snapshot.marks_on(backend).and_then(is_here) {
                transaction.conditions.push(SharedCondition::At {
                    bucket: marks.config.name.as_str().into(),
                    key: (&**key).into(),
                    revision: marks.get(key).map(|mark| mark.revision),
                });
            }
        }
        let last = batch.writes.last();
        let last = last.and_then(|write| changed.get(&(write.bucket, write.key.as_bytes())));
        let last = last.map(|change| change.after.is_some());
        let is_kept = changes.iter().any(|change| change.bucket.history > 0);
        let author = Author {
            by: batch.by.as_deref().map(Into::into),
            undo: batch.undo,
        };
        let is_told = is_kept && (author.by.is_some() || author.undo);
        transaction.author = is_told.then_some(author);
        let is_kept = |change: &Change| {
            let is_there = change.before.is_some() && !batch.replace.contains(&change.id);
            is_there && !put.contains(&(change.id, change.key()))
        };
        let life = |change: &Change, deadline: Option<Deadline>| match deadline {
            // Its deadline is by another clock than `now`.
            _ if is_kept(change) => Life::AsBefore,
            None => Life::Lasting,
            Some(deadline) => {
                let left = deadline.millis().saturating_sub(now).max(1);
                Life::For(Duration::from_millis(left))
            }
        };
        transaction.writes = changes
            .iter()
            .map(|change| SharedWrite {
                bucket: change.bucket.name.as_str().into(),
                key: String::from_utf8_lossy(change.key()).into(),
                value: change.after.as_ref().map(|record| SharedValue {
                    bytes: record.entry.value.to_bytes().into(),
                    life: life(change, record.entry.deadline),
                }),
            })
            .collect();
        Self {
            transaction: Arc::new(transaction),
            last,
        }
    }

    /// What the batch did, with the engine's revision.
    fn committed(
        &self,
        batch: &WriteBatch,
        planned: Committed,
        revision: Revision,
        seen: Revision,
    ) -> Committed {
        let entry = match self.last {
            Some(is_there) => is_there.then_some(revision),
            None if batch.writes.is_empty() => None,
            None => planned.entry,
        };
        Committed {
            revision,
            seen,
            entry,
            ..planned
        }
    }
}
