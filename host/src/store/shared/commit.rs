//! Writes to buckets that proxies share.
//!
//! A batch is applied to the state that this process has, to learn what would come of it, and on which entries that depends
//! (`plan.rs`). What it depends on goes to the engine as conditions of one transaction, with what is to be written. If they
//! hold, the outcome is the right one at that moment, a refusal as much as a success; if not, this process was behind, waits
//! for its turn (`turns.rs`) and until it has seen more, and begins anew, as long as the engine's timeout. Then it waits until
//! its own readers see the write. A put or delete that requires nothing depends on nothing, unless there is nothing to change,
//! or it makes a bucket grow that is close to a limit (`room.rs`). If what is to stay as it is, and does not end, has more keys
//! than a transaction has room for, it depends on its bucket. A dry run is the same without the writes; one of more than the
//! engine takes tells what it would do in its refusal.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::link::{Applied, Held, Link, Progress};
use super::pause::Pause;
use super::plan::{Plan, is_long, largest, writes_min};
use super::room::Room;
use super::turns::{Turn, Turns};
use super::{EngineError, Links, Outcome};
use crate::store::Late;
use crate::store::clock::Clock;
use crate::store::{BackendKind, CommitError, Committed, Revision, Snapshot, WriteBatch};
use patience::Patience;

mod patience;

/// Pauses before a batch is tried again that was not refused, nor could be written yet. Short: what it waits for is mostly
/// here sooner, and ends the pause.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_LONGEST: Duration = Duration::from_millis(20);

/// What is needed to commit; clones share it.
#[derive(Clone)]
pub(in crate::store) struct Committer {
    pub(in crate::store) newest: Arc<ArcSwap<Snapshot>>,
    pub(in crate::store) links: Arc<Links>,
    pub(in crate::store) clock: Clock,
    turns: Arc<Turns>,
    room: Arc<Room>,
}

impl Committer {
    pub(in crate::store) fn new(
        newest: Arc<ArcSwap<Snapshot>>,
        links: Arc<Links>,
        clock: Clock,
    ) -> Self {
        Self {
            newest,
            links,
            clock,
            turns: Arc::default(),
            room: Arc::default(),
        }
    }

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

    fn link(&self, backend: BackendKind) -> Result<&Link, CommitError> {
        let closed = || CommitError::Unavailable(format!("{} is not open", backend.as_str()));
        self.links.get(backend).ok_or_else(closed)
    }

    /// Up to where readers see all of a shared backend.
    pub(in crate::store) fn applied(&self, backend: BackendKind) -> Revision {
        let link = self.links.get(backend);
        link.map_or_else(Revision::default, |link| {
            link.progress().borrow().applied.revision
        })
    }

    /// Commits a batch that writes to a shared backend. See [`crate::store::Store::commit_noting`].
    pub(in crate::store) async fn commit(
        &self,
        backend: BackendKind,
        batch: WriteBatch,
        notes: &[Arc<AtomicU64>],
        late: Option<&Late<'_>>,
    ) -> Result<Committed, CommitError> {
        let began = Instant::now();
        let until = match late {
            None => Until::Seen(notes),
            late => Until::SeenAtLast(notes, late),
        };
        self.commit_since(backend, batch, until, began).await
    }

    /// Commits a batch that nobody here waits to see. See [`crate::store::Store::commit_unseen`].
    pub(in crate::store) async fn commit_unseen(
        &self,
        backend: BackendKind,
        batch: WriteBatch,
    ) -> Result<Revision, CommitError> {
        let began = Instant::now();
        let applied = self.commit_since(backend, batch, Until::Applied, began);
        Ok(applied.await?.revision)
    }

    /// Commits one after those that were submitted before it. See [`crate::store::Store::submit`].
    pub(in crate::store) fn submit(
        &self,
        backend: BackendKind,
        batch: WriteBatch,
        done: impl FnOnce(Result<Committed, CommitError>) + Send + 'static,
    ) -> Result<(), CommitError> {
        let link = self.link(backend)?;
        let committer = self.clone();
        // Its time begins here: what is behind an engine that hangs does not come much later.
        let began = Instant::now();
        let submitted = link.in_order(async move {
            let committed =
                committer.commit_since(backend, batch, Until::SeenAtLast(&[], None), began);
            done(committed.await);
        });
        submitted.map_err(|error| refused(error, unmeasured))
    }

    async fn commit_since(
        &self,
        backend: BackendKind,
        mut batch: WriteBatch,
        until: Until<'_>,
        began: Instant,
    ) -> Result<Committed, CommitError> {
        let link = self.link(backend)?;
        let is_dry = std::mem::take(&mut batch.dry_run);
        let batch = Arc::new(batch);
        let fleet = self.newest.load().fleet();
        let is_of_fleet = batch.writes.iter().any(|write| Some(write.bucket) == fleet);
        let patience = Patience {
            link,
            is_of_fleet,
            began,
        };
        if patience.is_over() {
            return Err(CommitError::Unavailable(format!(
                "writes that nobody waits for, before it, took all of {:?}",
                link.timeout()
            )));
        }
        let mut pause = Pause::between(PAUSE_FIRST, PAUSE_LONGEST);
        let mut progress = link.progress();
        let (mut turn, mut has_waited) = (None, false);
        let too_large = |(reason, would): (String, Option<Committed>)| CommitError::TooLarge {
            reason,
            writes_max: writes_max(link, &self.newest.load(), &batch),
            would: would.map(Box::new),
        };
        // What the engine had when it was asked first.
        let mut newest = None;
        loop {
            let known = *progress.borrow_and_update();
            if !is_dry {
                let writes = writes_min(&self.newest.load(), &batch);
                let checked = link.check_count(writes);
                checked.map_err(|error| refused(error, |reason| too_large((reason, None))))?;
            }
            let mut plan = self.judge(&batch, (backend, known)).await?;
            plan.fit(|transaction| link.check(transaction).is_ok());
            let mut excess = None;
            if is_dry {
                (plan, excess) = without_writes(plan, link)?;
            }
            // It need not be so until it is answered: others may never stop to write.
            let has_seen = || newest.is_some_and(|at| known.applied.revision >= at);
            if let Some(reason) = excess.take_if(|_| has_seen()) {
                return Err(too_large((reason, Some(plan.outcome?))));
            }
            // It holds room until readers see what it adds.
            let Some(kept) = self.room.keep(&self.newest, &plan.growths) else {
                // What takes the room is on its way, or will not be.
                sleep_until(patience.deadline().min(Instant::now() + pause.next())).await;
                patience.check()?;
                continue;
            };
            plan.guard(&kept.growing, &kept.shrinking);
            let (lines, depends) = self.turns.lines_of(&plan.transaction);
            // Nobody goes before those who are in line, and close to a limit all go one after the other.
            let is_late = !has_waited && plan.outcome.is_ok() && self.turns.has_line(&lines);
            let needs_turn = !kept.growing.is_empty() || is_late;
            let has_turn = turn
                .as_ref()
                .is_some_and(|turn: &Turn<'_>| turn.is_in(&lines));
            if needs_turn && !has_turn {
                drop((kept, turn.take()));
                turn = self.turns.take(lines, patience.deadline()).await;
                patience.check()?;
                has_waited = true;
                continue;
            }
            let transaction = Arc::new(plan.transaction);
            let writes = transaction.writes.len();
            if transaction.conditions.is_empty() && writes == 0 && !is_dry {
                return plan.outcome;
            }
            if !depends {
                // It had to wait for those before it, and nobody need wait for it.
                turn = None;
            }
            let notes = match until {
                Until::Seen(notes) | Until::SeenAtLast(notes, _) if writes > 0 => notes,
                _ => &[],
            };
            match link.commit_noting(Arc::clone(&transaction), notes).await {
                Ok(Outcome::Applied(revision)) => {
                    let committed = plan.outcome?;
                    if let Some(reason) = excess {
                        return Err(too_large((reason, Some(committed))));
                    }
                    if writes == 0 {
                        return Ok(committed);
                    }
                    if matches!(until, Until::Applied) {
                        return Ok(Committed {
                            revision,
                            ..committed
                        });
                    }
                    if matches!(until, Until::SeenAtLast(_, Some(_))) {
                        // Nobody is to be in line for as long as that may take.
                        drop(turn.take());
                    }
                    let patience = patience.anew();
                    let seen = seen(&patience, until, known, revision).await?.seen;
                    return Ok(Plan::committed(
                        plan.last,
                        &batch,
                        committed,
                        (revision, seen),
                    ));
                }
                Ok(Outcome::Conflict(at)) => {
                    drop(kept);
                    newest.get_or_insert(at);
                    if !has_turn {
                        drop(turn.take());
                        turn = self.turns.take(lines, patience.deadline()).await;
                        has_waited = true;
                    }
                    patience.until_open(&mut progress).await?;
                    let next_try = patience.deadline().min(Instant::now() + pause.next());
                    catch_up(&mut progress, known, at, next_try).await;
                    if patience.is_over() {
                        return Err(late(link, known, at));
                    }
                }
                // Nothing was to be written.
                Err(EngineError::Unknown(reason)) if writes == 0 => {
                    return Err(CommitError::Unavailable(reason));
                }
                // A server that takes less than its setting here says has not told how much.
                Err(error) if link.check(&transaction).is_ok() => {
                    return Err(refused(error, unmeasured));
                }
                Err(error) => {
                    return Err(refused(error, |reason| too_large((reason, None))));
                }
            }
        }
    }

    /// What would come of a batch, on a thread that may take its time if that is long.
    async fn judge(
        &self,
        batch: &Arc<WriteBatch>,
        (backend, known): (BackendKind, Progress),
    ) -> Result<Plan, CommitError> {
        let snapshot = self.newest.load_full();
        let (known, now) = ((backend, known.applied.revision), self.clock.now());
        if !is_long(&snapshot, batch) {
            return Plan::new(&snapshot, known, batch, now);
        }
        let batch = Arc::clone(batch);
        let judged =
            tokio::task::spawn_blocking(move || Plan::new(&snapshot, known, &batch, now)).await;
        judged.unwrap_or_else(|error| {
            Err(CommitError::Unavailable(format!(
                "judging the batch: {error}"
            )))
        })
    }
}

fn refused(error: EngineError, too_large: impl FnOnce(String) -> CommitError) -> CommitError {
    match error {
        EngineError::Unavailable(reason) | EngineError::Refused(reason) => {
            CommitError::Unavailable(reason)
        }
        EngineError::Unknown(reason) => CommitError::Unknown(reason),
        EngineError::TooLarge(reason) => too_large(reason),
    }
}

/// A plan as a dry run asks for it, and why it would be too large if it were none.
fn without_writes(plan: Plan, link: &Link) -> Result<(Plan, Option<String>), CommitError> {
    match link.check(&plan.transaction) {
        Ok(()) => Ok((plan.without_writes(), None)),
        Err(EngineError::TooLarge(reason)) => Ok((plan.without_keys(), Some(reason))),
        Err(error) => Err(refused(error, unmeasured)),
    }
}

/// As many writes like those of a batch as an engine takes at once for sure.
fn writes_max(link: &Link, snapshot: &Snapshot, batch: &WriteBatch) -> Option<usize> {
    let (bucket_bytes, entry_bytes) = largest(snapshot, batch);
    Some(link.writes_max(bucket_bytes, entry_bytes)).filter(|most| *most > 0)
}

/// Too large, and nobody knows by how much.
fn unmeasured(reason: String) -> CommitError {
    CommitError::TooLarge {
        reason,
        writes_max: None,
        would: None,
    }
}

/// When a commit is done.
#[derive(Clone, Copy)]
enum Until<'n> {
    /// Once the engine has it.
    Applied,
    /// Once readers of this process see it. Before, its revision is stored in each of these.
    Seen(&'n [Arc<AtomicU64>]),
    /// The same, however late; who is told once it is. With nobody to tell it was handed over: no one waits for the answer,
    /// and it must not be taken for refused.
    SeenAtLast(&'n [Arc<AtomicU64>], Option<&'n Late<'n>>),
}

/// Waits until this process has seen what a batch depended on, for a moment only: the engine's revision may count what is
/// no concern of ours.
async fn catch_up(
    progress: &mut watch::Receiver<Progress>,
    known: Progress,
    at: Revision,
    until: Instant,
) {
    if known.applied.revision >= at {
        // It depends on something that went by itself.
        return sleep_until(until).await;
    }
    let is_there = |it: &Progress| it.applied.revision >= at || it.loads != known.loads;
    // If the store is closed, the next try says so.
    let _ = timeout_at(until, progress.wait_for(is_there)).await;
}

/// Why a batch met nothing but conflicts.
fn late(link: &Link, known: Progress, at: Revision) -> CommitError {
    let timeout = link.timeout();
    CommitError::Unavailable(if known.applied.revision < at {
        format!("this process has not seen revision {at} of what is shared within {timeout:?}")
    } else {
        format!("other processes have always written first, for {timeout:?}")
    })
}

/// Waits until readers see a revision of what was `known` before it was written.
async fn seen(
    patience: &Patience<'_>,
    until: Until<'_>,
    known: Progress,
    revision: Revision,
) -> Result<Applied, CommitError> {
    let mut progress = patience.link.progress();
    // An engine that has gone back gives revisions that were seen before with other content.
    let went_back = revision < known.applied.revision;
    let is_there = |it: &Progress| {
        let is_anew = it.loads != known.loads;
        it.applied.revision >= revision && (!went_back || is_anew)
    };
    let (has_limit, mut late) = match until {
        Until::SeenAtLast(_, late) => (false, late),
        _ => (true, None),
    };
    let answered = std::time::Instant::now();
    let is_lost = |it: &Progress| {
        let is_anew = it.loads != known.loads;
        patience.link.has_lost(revision, (answered, is_anew), it)
    };
    // Nobody waits for more than there is.
    let is_content = !has_limit && late.is_none();
    let is_over = |it: &Progress| match is_content {
        _ if it.held == Held::Closed => true,
        true => it.loads != known.loads || is_lost(it),
        false => is_lost(it),
    };
    let unseen = || CommitError::Unseen {
        revision,
        waited: patience.began.elapsed(),
    };
    loop {
        let until = match has_limit || late.is_some() {
            true => patience.deadline(),
            false => Instant::now() + patience.link.timeout(),
        };
        let ended = async {
            let ended = progress.wait_for(|it| is_there(it) || is_over(it));
            ended.await.map(|it| *it)
        };
        match timeout_at(until, ended).await {
            Ok(Ok(it)) if is_there(&it) => return Ok(it.applied),
            Ok(Ok(it)) if is_content && it.held != Held::Closed => return Ok(it.applied),
            Ok(Ok(it)) if it.held != Held::Closed => return Err(CommitError::Lost { revision }),
            Ok(_) => return Err(unseen()),
            // The gate may have given it more time.
            Err(_) if !patience.is_over() => {}
            Err(_) if has_limit => return Err(unseen()),
            Err(_) => {
                if let Some(late) = late.take() {
                    late(unseen());
                }
            }
        }
    }
}
