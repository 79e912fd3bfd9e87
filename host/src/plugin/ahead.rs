//! A version that is made ready ahead of the moment in which it takes over: loaded, tried, warm on every worker, and on stage.
//!
//! For nodes of a fleet, when a version and writes were agreed on in one step on another: from the first state on that has
//! the writes, the version decides, whoever has published what by then.

use super::deploy::{Plugins, blocking, io_error};
use super::migration::OnData;
use super::report::{DeployError, Deployed};
use super::slot::{Stage, Turn};
use super::warm::Warmed;
use super::{Generation, Order, Role};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// A version on stage, of a plugin that nobody else can change meanwhile. Dropped, it leaves.
pub struct Ahead {
    // Fields are dropped in this order: who has the turn finds the stage empty.
    stage: Stage,
    warmed: Warmed,
    generation: Arc<Generation>,
    deployed: Deployed,
    turn: Turn,
}

impl Ahead {
    /// Whether it decides on a state of the store.
    pub fn decides(&self, revision: crate::store::Revision) -> bool {
        self.stage.decides(revision.0)
    }
}

impl Plugins {
    /// Puts a version on stage. Of one that is not kept the component has to be given.
    ///
    /// # Errors
    /// As if it were pushed here. If the future is dropped, nothing is on stage.
    pub async fn stage(
        &self,
        plugin: &str,
        digest: &str,
        component: Option<Bytes>,
        force: bool,
    ) -> Result<Ahead, DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(plugin)?;
        let (shared, slot) = (&self.shared, turn.slot());
        slot.check_role(digest, &Role::Active, force)?;
        slot.check_draining(digest)?;
        let digest: Arc<str> = digest.into();
        let began = Instant::now();
        let loaded = match &component {
            Some(component) => shared.load_new(&digest, component).await?,
            None => shared.load_kept(plugin, &digest).await?,
        };
        let compiled = began.elapsed();
        let began = Instant::now();
        let code = Arc::clone(&loaded.code);
        let generation = shared.prepare(slot.config(), code, &shared.store).await?;
        let deployed = slot.deployed(&loaded, compiled, began.elapsed());
        if let Some(component) = component {
            let (keeper, plugin) = (Arc::clone(shared), plugin.to_owned());
            let keep = move || keeper.artifacts.keep(&plugin, &digest, &component);
            blocking(move || keep().map_err(io_error)).await?;
        }
        let warmed = shared.warm(&generation).await?;
        Ok(Ahead {
            stage: Stage::new(slot, &generation),
            warmed,
            generation,
            deployed,
            turn,
        })
    }

    /// What has to be told the first revision that a version decides on, if it is on stage; nothing, if it decides by now.
    pub fn on_stage(&self, plugin: &str, digest: &str) -> Option<Vec<Arc<AtomicU64>>> {
        self.slot(plugin)?.notes_of(digest)
    }

    /// Makes a version active that decides from the stage already.
    ///
    /// # Errors
    /// As the last steps of a push: it decides nothing any more then.
    pub async fn take_over(&self, ahead: Ahead, order: Order<'_>) -> Result<(), DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let Ahead {
            stage,
            warmed,
            generation,
            mut deployed,
            turn,
        } = ahead;
        let slot = self.slot(turn.slot().name()).filter(|slot| {
            let config = slot.config();
            Arc::ptr_eq(slot, turn.slot()) && config.same_sandbox(&generation.sandbox.config)
        });
        if slot.is_none() {
            // It was made for a config that is another by now.
            return Err(DeployError::Busy(turn.slot().name().to_string()));
        }
        let record = turn.slot().next_record(&generation, order.by, true);
        let on_data = OnData {
            at_any_rate: order.force,
            follows: true,
            beside: None,
        };
        let shared = &self.shared;
        let swapped = shared.swap(turn, generation, record, on_data, &mut deployed);
        swapped.await?;
        warmed.keep();
        drop(stage);
        Ok(())
    }
}
