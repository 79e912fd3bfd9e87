//! What sessions write: a batch for each call, handed to the store without waiting.

use super::Sessions;
use super::home::Home;
use crate::plugin::generation::{CallStats, GenerationLabel};
use crate::plugin::imports::unapplied::Fate;
use crate::store::CommitError;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Whom a refused batch is told.
#[derive(Clone)]
struct Refusals {
    stats: Arc<[CallStats]>,
    worker: usize,
    label: Arc<GenerationLabel>,
}

impl Refusals {
    /// Counts it. The log is told of the first, the second, the fourth and so on: a session may write with every message.
    fn note(&self, error: &dyn std::error::Error) {
        let counter = &self.stats[self.worker % self.stats.len()].session_refused_writes;
        let refused = counter.fetch_add(1, Ordering::Relaxed) + 1;
        if refused.is_power_of_two() {
            let (plugin, version) = (&*self.label.plugin, self.label.version());
            tracing::warn!(plugin, version, refused, %error, "writes of a session are refused");
        }
    }
}

impl Sessions {
    /// Hands what the last call wrote to the store. Later calls of the instance read it from now on; what becomes of it,
    /// the writer's thread tells.
    pub(super) fn submit(&self, home: &Home) {
        let mut running = home.running.borrow_mut();
        let Some(running) = &mut *running else { return };
        let state = running.store.data_mut();
        let (planned, bytes) = (state.overlay.planned(), state.overlay.bytes());
        let Some(batch) = state.take_session_writes() else {
            return;
        };
        let sandbox = &home.sandbox;
        let refusals = Refusals {
            stats: Arc::clone(&sandbox.stats),
            worker: self.worker,
            label: Arc::clone(&sandbox.label),
        };
        if !state.unapplied.has_room(bytes) {
            let reason = "what the instance wrote before is not applied yet".to_owned();
            return refusals.note(&CommitError::Unavailable(reason));
        }
        let fate = Fate::default();
        let (fated, told) = (fate.clone(), refusals.clone());
        let submitted = sandbox
            .store
            .submit(batch, move |committed| match committed {
                Ok(committed) => fated.applied(committed.seen.0),
                Err(error) => {
                    fated.refused();
                    told.note(&error);
                }
            });
        match submitted {
            Ok(()) => state.unapplied.add(planned, fate),
            Err(error) => refusals.note(&error),
        }
    }

    /// Forgets what the last call wrote: what it returned cannot be acted on.
    pub(super) fn discard(&self, home: &Home) {
        if let Some(running) = &mut *home.running.borrow_mut() {
            running.store.data_mut().overlay.clear();
        }
    }
}
