//! An engine in memory, which can be away, lose what was not yet told, and go back to what it was.

use crate::store::Revision;
use crate::store::shared::{
    Author, Condition, Ending, Engine, EngineError, Event, Left, Life, Loaded, Outcome,
    SharedChange, SharedEntry, Transaction,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Most writes of a transaction.
pub(super) const WRITES_MAX: usize = 4096;
/// Entries of which it tells at once how long they live.
const LEFT_MAX: usize = 300;

/// What several stores share.
#[derive(Clone)]
pub(crate) struct Shelf {
    state: Arc<Mutex<State>>,
    moved: watch::Sender<()>,
}

#[derive(Clone, Default)]
struct State {
    revision: Revision,
    entries: BTreeMap<(Box<str>, Box<str>), SharedEntry>,
    changed: BTreeMap<Box<str>, Revision>,
    sized: BTreeMap<Box<str>, Revision>,
    log: Vec<(Revision, Vec<SharedChange>, Option<Author>)>,
    /// What is in the log after this.
    trimmed: Revision,
    /// How often it went back.
    life: u64,
    /// Its clock, in milliseconds.
    now: u64,
    away: bool,
    /// Followers are told nothing, as if it took long.
    silent: bool,
    /// Followers are told what changed, and never that this is all.
    behind: bool,
    /// It does what it is asked, and does not answer.
    mute: bool,
    /// It does not answer who loads, or asks how long entries live.
    stuck: bool,
    /// It does not know how long entries live.
    ignorant: bool,
    /// Who waits for that.
    waiting: usize,
    /// What was loaded, load by load.
    loads: Vec<Vec<Box<str>>>,
    commits: u64,
}

impl Shelf {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                now: 1_000_000,
                ..State::default()
            })),
            moved: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits until it is not stuck. Whoever waited is to be counted off with the answer.
    async fn unstuck(&self) {
        let mut moved = self.moved.subscribe();
        self.state().waiting += 1;
        // Its sender is here.
        while self.state().stuck {
            drop(moved.changed().await);
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.moved.send_replace(());
    }

    pub(crate) fn be_away(&self, away: bool) {
        self.change(|state| state.away = away);
    }

    pub(crate) fn be_silent(&self, silent: bool) {
        self.change(|state| state.silent = silent);
    }

    pub(super) fn be_behind(&self, behind: bool) {
        self.change(|state| state.behind = behind);
    }

    pub(super) fn be_mute(&self, mute: bool) {
        self.change(|state| state.mute = mute);
    }

    /// Sets its clock on. It deletes nothing by itself.
    pub(super) fn advance(&self, millis: u64) {
        self.change(|state| state.now += millis);
    }

    pub(super) fn be_ignorant(&self) {
        self.change(|state| state.ignorant = true);
    }

    /// Whoever loads, or asks how long entries live, waits until it is not.
    pub(super) fn be_stuck(&self, stuck: bool) {
        self.change(|state| state.stuck = stuck);
    }

    /// How many wait for that.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// What was loaded, load by load.
    pub(super) fn loads(&self) -> Vec<Vec<Box<str>>> {
        self.state().loads.clone()
    }

    /// Followers that were not told everything have missed something.
    pub(super) fn trim(&self) {
        self.change(|state| {
            state.trimmed = state.revision;
            state.log.clear();
        });
    }

    /// As it is now, to go back to.
    pub(crate) fn backup(&self) -> Backup {
        Backup(self.state().clone())
    }

    pub(super) fn restore(&self, backup: Backup) {
        self.change(|state| {
            let life = state.life + 1;
            *state = backup.0;
            (state.life, state.trimmed) = (life, state.revision);
            state.log.clear();
        });
    }

    /// As it was then, and as followers know it who were not told of anything since: a failover that loses the end of the log.
    pub(crate) fn lose_end(&self, backup: Backup) {
        self.change(|state| *state = backup.0);
    }

    /// As it was then, with one write since that its followers were not told of.
    pub(super) fn restore_and_write(&self, backup: Backup, bucket: &str, key: &str, value: &str) {
        self.change(|state| {
            let life = state.life + 1;
            *state = backup.0;
            let revision = Revision(state.revision.0 + 1);
            let entry = SharedEntry {
                bucket: bucket.into(),
                key: key.into(),
                value: value.as_bytes().into(),
                revision,
                expires_at_ms: None,
            };
            state.entries.insert((bucket.into(), key.into()), entry);
            state.changed.insert(bucket.into(), revision);
            (state.life, state.revision, state.trimmed) = (life, revision, revision);
            state.log.clear();
        });
    }

    pub(super) fn revision(&self) -> Revision {
        self.state().revision
    }

    /// How many transactions it was asked for.
    pub(super) fn commits(&self) -> u64 {
        self.state().commits
    }

    /// Keys, values and revisions of a bucket.
    pub(super) fn contents(&self, bucket: &str) -> Vec<(String, String, u64)> {
        let state = self.state();
        let entries = state.entries.values().filter(|it| &*it.bucket == bucket);
        entries
            .map(|entry| {
                let value = String::from_utf8(entry.value.to_vec()).unwrap();
                (entry.key.to_string(), value, entry.revision.0)
            })
            .collect()
    }

    /// When an entry ends, as the engine has it.
    pub(super) fn end_of(&self, bucket: &str, key: &str) -> Option<u64> {
        let at = (bucket.into(), key.into());
        self.state().entries.get(&at)?.expires_at_ms
    }

    /// Deletes what is over by its clock.
    pub(super) fn expire(&self) {
        self.change(|state| {
            let revision = Revision(state.revision.0 + 1);
            let ended = state
                .entries
                .values()
                .filter(|it| it.expires_at_ms.is_some_and(|end| end <= state.now));
            let ended: Vec<_> = ended
                .map(|it| (it.bucket.clone(), it.key.clone()))
                .collect();
            let changes = ended.into_iter().map(|at| {
                state.entries.remove(&at);
                state.changed.insert(at.0.clone(), revision);
                state.sized.insert(at.0.clone(), revision);
                SharedChange {
                    bucket: at.0,
                    key: at.1,
                    after: None,
                }
            });
            let changes: Vec<_> = changes.collect();
            state.revision = revision;
            state.log.push((revision, changes, None));
        });
    }
}

pub(crate) struct Backup(State);

impl State {
    fn check(&self) -> Result<(), EngineError> {
        match self.away {
            true => Err(EngineError::Unavailable("the shelf is away".into())),
            false => Ok(()),
        }
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::At {
                bucket,
                key,
                revision,
            } => {
                let at = (bucket.clone(), key.clone());
                self.entries.get(&at).map(|entry| entry.revision) == *revision
            }
            Condition::Over {
                bucket,
                key,
                revision,
            } => {
                let found = self.entries.get(&(bucket.clone(), key.clone()));
                found.is_none_or(|entry| entry.revision == *revision)
            }
            Condition::Unchanged { bucket, since } => {
                self.changed.get(bucket).is_none_or(|at| at <= since)
            }
            Condition::Sized { bucket, since } => {
                self.sized.get(bucket).is_none_or(|at| at <= since)
            }
        }
    }
}

impl Engine for Shelf {
    const ENDING_MAX: usize = 1000;
    const LOSES_WRITES: bool = true;

    async fn load_within(&self, buckets: &[Box<str>], _: usize) -> Result<Loaded, EngineError> {
        self.unstuck().await;
        let mut state = self.state();
        state.waiting -= 1;
        state.check()?;
        state.loads.push(buckets.to_vec());
        let entries = state.entries.values();
        Ok(Loaded {
            revision: state.revision,
            entries: entries
                .filter(|entry| buckets.contains(&entry.bucket))
                .cloned()
                .collect(),
        })
    }

    fn check_count(&self, count: usize) -> Result<(), EngineError> {
        if count > WRITES_MAX {
            let reason = format!("{count} writes or conditions do not fit the shelf");
            return Err(EngineError::TooLarge(reason));
        }
        Ok(())
    }

    fn writes_max(&self, _: usize, _: usize) -> usize {
        WRITES_MAX
    }

    fn check(&self, transaction: &Transaction) -> Result<(), EngineError> {
        let conditions = transaction.conditions.iter();
        let conditions = conditions.filter(|it| !matches!(it, Condition::Sized { .. }));
        self.check_count(transaction.writes.len().max(conditions.count()))
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome, EngineError> {
        self.check(transaction)?;
        let outcome = {
            let mut state = self.state();
            state.check()?;
            state.commits += 1;
            if !transaction.conditions.iter().all(|it| state.holds(it)) {
                return Ok(Outcome::Conflict(state.revision));
            }
            if transaction.writes.is_empty() {
                return Ok(Outcome::Applied(state.revision));
            }
            let revision = Revision(state.revision.0 + 1);
            state.revision = revision;
            let mut changes = Vec::new();
            for write in &transaction.writes {
                let at = (write.bucket.clone(), write.key.clone());
                let before = state.entries.get(&at);
                let before = before.and_then(|entry| entry.expires_at_ms);
                let after = write.value.as_ref().map(|value| SharedEntry {
                    bucket: at.0.clone(),
                    key: at.1.clone(),
                    value: value.bytes.clone(),
                    revision,
                    expires_at_ms: match value.life {
                        Life::Lasting => None,
                        Life::For(ttl) => Some(state.now + ttl.as_millis() as u64),
                        Life::AsBefore => before,
                    },
                });
                match &after {
                    Some(entry) => state.entries.insert(at.clone(), entry.clone()),
                    None => {
                        state.sized.insert(at.0.clone(), revision);
                        state.entries.remove(&at)
                    }
                };
                state.changed.insert(at.0.clone(), revision);
                let (bucket, key) = at;
                changes.push(SharedChange { bucket, key, after });
            }
            let author = transaction.author.clone();
            state.log.push((revision, changes, author));
            let sized = transaction.sized.iter();
            state.sized.extend(sized.map(|it| (it.clone(), revision)));
            Outcome::Applied(revision)
        };
        self.moved.send_replace(());
        let mut moved = self.moved.subscribe();
        while self.state().mute {
            drop(moved.changed().await);
        }
        Ok(outcome)
    }

    async fn left(&self, entries: &[Ending]) -> Result<Vec<Left>, EngineError> {
        self.unstuck().await;
        let mut state = self.state();
        state.waiting -= 1;
        state.check()?;
        let left = |entry: &Ending| match entry.expires_at_ms.saturating_sub(state.now) {
            _ if state.ignorant => Left::Unknown,
            left @ 3001.. => Left::Longer(Duration::from_millis(left - 1000)),
            left => Left::Until(Duration::from_millis(left)),
        };
        Ok(entries.iter().take(LEFT_MAX).map(left).collect())
    }

    async fn follow(&self, buckets: Vec<Box<str>>, from: Revision, events: mpsc::Sender<Event>) {
        let mut moved = self.moved.subscribe();
        let (mut at, life) = (from, self.state().life);
        let mut was_away = false;
        loop {
            let next = {
                let state = self.state();
                let next = state.log.iter().find(|(revision, ..)| *revision > at);
                if state.silent {
                    None
                } else if state.away {
                    let lost = Event::Lost("the shelf is away".into());
                    (!std::mem::replace(&mut was_away, true)).then_some(lost)
                } else if state.life != life || at < state.trimmed {
                    Some(Event::Gap)
                } else if let Some((revision, changes, author)) = next {
                    at = *revision;
                    let changes = changes.iter().filter(|it| buckets.contains(&it.bucket));
                    let changes: Vec<_> = changes.cloned().collect();
                    Some(match changes.is_empty() {
                        true => Event::Passed(at),
                        false => Event::Changes {
                            revision: at,
                            changes,
                            author: author.clone(),
                        },
                    })
                } else {
                    let is_all = was_away && !state.behind;
                    was_away &= !is_all;
                    is_all.then(|| Event::Current(at, Instant::now()))
                }
            };
            let Some(event) = next else {
                tokio::select! {
                    moved = moved.changed() => if moved.is_err() { return },
                    () = events.closed() => return,
                }
                continue;
            };
            let is_last = event == Event::Gap;
            if events.send(event).await.is_err() || is_last {
                return;
            }
        }
    }
}
