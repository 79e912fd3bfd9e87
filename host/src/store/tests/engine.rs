//! An engine in memory, which can be away, lose what was not yet told, and go back to what it was.

use crate::store::Revision;
use crate::store::shared::{
    Condition, Engine, EngineError, Event, Loaded, Outcome, SharedChange, SharedEntry, Transaction,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};

/// What several stores share.
#[derive(Clone)]
pub(super) struct Shelf {
    state: Arc<Mutex<State>>,
    moved: watch::Sender<()>,
}

#[derive(Clone, Default)]
struct State {
    revision: Revision,
    entries: BTreeMap<(Box<str>, Box<str>), SharedEntry>,
    changed: BTreeMap<Box<str>, Revision>,
    log: Vec<(Revision, Vec<SharedChange>)>,
    /// What is in the log after this.
    trimmed: Revision,
    /// How often it went back.
    life: u64,
    away: bool,
    /// Followers are told nothing, as if it took long.
    silent: bool,
    /// It does not answer who loads.
    stuck: bool,
    /// Who waits for that.
    waiting: usize,
    /// What was loaded, load by load.
    loads: Vec<Vec<Box<str>>>,
    commits: u64,
}

impl Shelf {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
            moved: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.moved.send_replace(());
    }

    pub(super) fn be_away(&self, away: bool) {
        self.change(|state| state.away = away);
    }

    pub(super) fn be_silent(&self, silent: bool) {
        self.change(|state| state.silent = silent);
    }

    /// Whoever loads waits until it is not.
    pub(super) fn be_stuck(&self, stuck: bool) {
        self.change(|state| state.stuck = stuck);
    }

    /// How many wait for a load.
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
    pub(super) fn backup(&self) -> Backup {
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

    /// Deletes what has a deadline, as the engine's clock would.
    pub(super) fn expire(&self) {
        self.change(|state| {
            let revision = Revision(state.revision.0 + 1);
            let ended = state
                .entries
                .values()
                .filter(|it| it.expires_at_ms.is_some());
            let ended: Vec<_> = ended
                .map(|it| (it.bucket.clone(), it.key.clone()))
                .collect();
            let changes = ended.into_iter().map(|at| {
                state.entries.remove(&at);
                state.changed.insert(at.0.clone(), revision);
                SharedChange {
                    bucket: at.0,
                    key: at.1,
                    after: None,
                }
            });
            let changes: Vec<_> = changes.collect();
            state.revision = revision;
            state.log.push((revision, changes));
        });
    }
}

pub(super) struct Backup(State);

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
            Condition::Unchanged { bucket, since } => {
                self.changed.get(bucket).is_none_or(|at| at <= since)
            }
        }
    }
}

impl Engine for Shelf {
    async fn load(&self, buckets: &[Box<str>]) -> Result<Loaded, EngineError> {
        let mut moved = self.moved.subscribe();
        self.state().waiting += 1;
        // Its sender is here.
        while self.state().stuck {
            drop(moved.changed().await);
        }
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

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome, EngineError> {
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
                let after = write.value.as_ref().map(|value| SharedEntry {
                    bucket: at.0.clone(),
                    key: at.1.clone(),
                    value: value.bytes.clone(),
                    revision,
                    expires_at_ms: value.ttl.map(|ttl| ttl.as_millis() as u64),
                });
                match &after {
                    Some(entry) => state.entries.insert(at.clone(), entry.clone()),
                    None => state.entries.remove(&at),
                };
                state.changed.insert(at.0.clone(), revision);
                let (bucket, key) = at;
                changes.push(SharedChange { bucket, key, after });
            }
            state.log.push((revision, changes));
            Outcome::Applied(revision)
        };
        self.moved.send_replace(());
        Ok(outcome)
    }

    async fn follow(&self, buckets: Vec<Box<str>>, from: Revision, events: mpsc::Sender<Event>) {
        let mut moved = self.moved.subscribe();
        let (mut at, life) = (from, self.state().life);
        let mut was_away = false;
        loop {
            let next = {
                let state = self.state();
                let next = state.log.iter().find(|(revision, _)| *revision > at);
                if state.silent {
                    None
                } else if state.away {
                    let lost = Event::Lost("the shelf is away".into());
                    (!std::mem::replace(&mut was_away, true)).then_some(lost)
                } else if state.life != life || at < state.trimmed {
                    Some(Event::Gap)
                } else if let Some((revision, changes)) = next {
                    at = *revision;
                    let changes = changes.iter().filter(|it| buckets.contains(&it.bucket));
                    let changes: Vec<_> = changes.cloned().collect();
                    Some(match changes.is_empty() {
                        true => Event::Current(at),
                        false => Event::Changes {
                            revision: at,
                            changes,
                        },
                    })
                } else {
                    std::mem::take(&mut was_away).then_some(Event::Current(at))
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
