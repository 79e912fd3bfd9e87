//! Telling: an entry of this node's, renewed before it ends, so that a node that is gone vanishes by itself.

use super::entry::{CanaryEntry, NODE, NodeEntry, PluginState, State};
use super::{Fleet, locked, step, unix_ms};
use crate::store::{Action, CommitError, Expect, Revision, Snapshot, Write, WriteBatch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

/// Heartbeats after which a node is gone.
const LIVES: u32 = 3;
/// How long the end of the process waits for the others to be told.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

impl Fleet {
    /// Tells of this node until it is dropped.
    pub async fn tell(self: Arc<Self>) {
        loop {
            self.tell_once().await;
            tokio::select! {
                () = tokio::time::sleep(self.config.heartbeat) => {}
                () = self.news.notified() => {}
            }
        }
    }

    /// Tells the others that this node is gone, if they can be told.
    pub async fn leave(&self) {
        self.left.store(true, Relaxed);
        let Ok(bucket) = self.bucket_id() else {
            return;
        };
        let leaving = async {
            // Another process may have the name by now: one that was started to take over.
            while let Some(revision) = self.newest_own() {
                let gone = Write::delete(bucket, self.node_key());
                let gone = vec![gone.expecting(Expect::At(revision))];
                let Err(CommitError::Conflict { .. }) = self.commit(gone).await else {
                    return;
                };
            }
        };
        // Whoever is not told now sees it a little later.
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, leaving).await;
    }

    pub(super) async fn tell_once(&self) {
        let Ok(bucket) = self.bucket_id() else {
            return;
        };
        if self.left.load(Relaxed) {
            return;
        }
        self.look_for_twin();
        let entry = self.itself(&self.store.snapshot());
        let value = match serde_json::to_vec(&entry) {
            Ok(value) => value.into(),
            Err(error) => return tracing::error!(%error, "fleet: this node cannot be told of"),
        };
        let put = Action::Put {
            value,
            ttl: Some(self.config.heartbeat * LIVES),
        };
        // While the gate holds, this node sees it late, and the others do not.
        let told = self.store.commit_unseen(WriteBatch {
            writes: vec![Write::new(bucket, self.node_key(), put)],
            ..WriteBatch::default()
        });
        let told = told.await;
        let mut heartbeats = locked(&self.heartbeats);
        match told {
            Ok(revision) => {
                heartbeats.told_at = Some(revision);
                if heartbeats.error.take().is_some() {
                    tracing::info!(node = self.node, "fleet: the others are told again");
                }
                heartbeats.told = Some(Instant::now());
            }
            Err(error) => {
                if heartbeats.error.is_none() {
                    tracing::warn!(node = self.node, %error, "fleet: the others are not told");
                }
                heartbeats.error = Some(error.to_string());
            }
        }
    }

    /// What this node is.
    pub(super) fn itself(&self, snapshot: &Snapshot) -> NodeEntry {
        let facts = (self.facts)();
        NodeEntry {
            life: self.life.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: unix_ms(self.started),
            told_ms: unix_ms(SystemTime::now()),
            admin: self.admin.clone(),
            config: facts.config.to_string(),
            ready: facts.ready,
            name_taken: locked(&self.heartbeats).twin,
            revision: snapshot.revision().0,
            plugins: self.states(snapshot),
        }
    }

    /// How far this node is with each plugin.
    pub(super) fn states(&self, snapshot: &Snapshot) -> BTreeMap<String, PluginState> {
        let names = self.plugins.names().into_iter();
        let states = names.filter_map(|name| {
            let present = self.plugins.present(&name)?;
            let known = self.progress().get(&name).cloned();
            let failure = |revision| {
                let known = known.as_ref().filter(|known| known.revision == revision);
                let failure = known.and_then(|known| known.failure.as_ref());
                failure.map(|failure| failure.reason.clone())
            };
            let (state, reason) = match self.agreed(snapshot, &name) {
                None => (State::Own, None),
                Some((revision, Err(_))) => (State::Failed, failure(revision)),
                Some((revision, Ok(entry))) => {
                    let next = step::next_step(&entry.agreement(), &present);
                    match (next, failure(revision)) {
                        (None, _) => (State::Ok, None),
                        (Some(_), None) => (State::Behind, None),
                        (Some(_), reason) => (State::Failed, reason),
                    }
                }
            };
            let canary = present.canary;
            let told = PluginState {
                active: present.active,
                canary: canary.map(|(version, share)| CanaryEntry { version, share }),
                state,
                reason,
            };
            Some((name, told))
        });
        states.collect()
    }

    /// Two processes of one name would tell in turns.
    fn look_for_twin(&self) {
        let other = self.told().filter(|(_, entry)| entry.life != self.life);
        let mut heartbeats = locked(&self.heartbeats);
        // What was there before this process told anything may be of the one before it.
        let is_newer = |(revision, _): (Revision, NodeEntry)| {
            heartbeats.told_at.is_some_and(|told| told < revision)
        };
        let twin = other.is_some_and(is_newer);
        if twin && !heartbeats.twin {
            tracing::error!(
                node = self.node,
                "fleet: another process tells under this name: give each a name of its own, `node` in [fleet]"
            );
        }
        heartbeats.twin = twin;
    }

    /// What was told last under this node's name.
    fn told(&self) -> Option<(Revision, NodeEntry)> {
        let snapshot = self.store.snapshot();
        let bucket = snapshot.bucket(self.bucket(&snapshot)?)?;
        let entry = bucket.get(&self.node_key())?;
        let told = serde_json::from_slice(&entry.value.to_bytes()).ok()?;
        Some((entry.revision, told))
    }

    /// The revision of this node's entry, unless another process has the name.
    fn newest_own(&self) -> Option<Revision> {
        let told_at = locked(&self.heartbeats).told_at;
        let (revision, entry) = self.told()?;
        match told_at.filter(|told| *told > revision) {
            // It is not seen yet.
            Some(told) => Some(told),
            None => (entry.life == self.life).then_some(revision),
        }
    }

    fn node_key(&self) -> String {
        format!("{NODE}{}", self.node)
    }
}
