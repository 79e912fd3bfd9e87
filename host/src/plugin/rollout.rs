//! What happens to versions beside a plain swap: tried as a canary or a shadow, promoted, taken back, forgotten, drained.
//!
//! Each step writes the record first and acts then, so that a crash in between leaves what was acknowledged.

use super::accord::Origin;
use super::canary::Canary;
use super::deploy::{Plugins, Shared, blocking, io_error};
use super::guard::Verdict;
use super::migration::OnData;
use super::record::{Activation, Record, ShadowRecord};
use super::report::{DeployError, Deployed, Outcome};
use super::shadow::{Shadow, ShadowReport};
use super::slot::{Turn, canary_record, record_after};
use super::{DrainingFull, Fraction, Generation, GenerationId, Order, PluginSlot, Role, Share};
use std::sync::Arc;

mod allowed;

impl Plugins {
    /// Gives the canary another share. IDs that it has stay with it if the share only grows.
    ///
    /// # Errors
    /// If there is none, or the record cannot be written.
    pub async fn set_share(
        &self,
        name: &str,
        share: Share,
        order: Order<'_>,
    ) -> Result<Deployed, DeployError> {
        self.reshare(name, share, order, Origin::Here).await
    }

    pub(super) async fn reshare(
        &self,
        name: &str,
        share: Share,
        order: Order<'_>,
        origin: Origin,
    ) -> Result<Deployed, DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(name)?;
        let slot = turn.slot();
        let proposal = self.shared.propose(name, origin)?;
        let canary = slot.canary().ok_or_else(|| no_canary(name))?;
        let digest = canary.generation.label().digest.to_string();
        let role = Role::Canary(share.clone());
        let unchanged = slot.unchanged(&digest, &role);
        let mut told = slot.told(&canary.generation);
        if order.dry_run {
            return Ok(unchanged.unwrap_or(told));
        }
        if let Some(proposal) = proposal {
            proposal.role(slot, &digest, &role, order, false).await?;
        }
        if let Some(unchanged) = unchanged {
            return Ok(unchanged);
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let slot = turn.slot();
            shared.rewrite(slot, |record| {
                if let Some(canary) = &mut record.canary {
                    canary.share = share.clone();
                }
            })?;
            let generation = Arc::clone(&canary.generation);
            slot.set_canary(Some(Arc::new(Canary::new(generation, share))));
            Ok(())
        })
        .await?;
        told.outcome = Outcome::Canary;
        Ok(told)
    }

    /// Makes the canary the active version: the generation that is warm already.
    ///
    /// # Errors
    /// If there is none, or as for a deploy.
    pub async fn promote(&self, name: &str, order: Order<'_>) -> Result<Deployed, DeployError> {
        self.promote_canary(name, order, Origin::Here).await
    }

    pub(super) async fn promote_canary(
        &self,
        name: &str,
        order: Order<'_>,
        origin: Origin,
    ) -> Result<Deployed, DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(name)?;
        let slot = turn.slot();
        let proposal = self.shared.propose(name, origin)?;
        let canary = slot.canary().ok_or_else(|| no_canary(name))?;
        let generation = Arc::clone(&canary.generation);
        let digest = Arc::clone(&generation.label().digest);
        if !origin.is_back() {
            slot.check_draining(&digest)?;
        }
        let mut told = slot.told(&generation);
        let shared = &self.shared;
        shared
            .rehearse(&turn, &generation, &Role::Active, order, None, &mut told)
            .await?;
        if order.dry_run {
            return Ok(told);
        }
        let is_agreed = proposal.is_some();
        if let Some(proposal) = proposal {
            let rehearsal = Order {
                dry_run: true,
                ..order
            };
            let mut told = told.clone();
            shared
                .rehearse(
                    &turn,
                    &generation,
                    &Role::Active,
                    rehearsal,
                    None,
                    &mut told,
                )
                .await?;
            proposal
                .role(slot, &digest, &Role::Active, order, false)
                .await?;
        }
        let record = slot.next_record(&generation, order.by, true);
        let on_data = OnData {
            at_any_rate: order.force,
            follows: origin.follows(),
            beside: None,
        };
        let swapped = shared.swap(turn, generation, record, on_data, &mut told);
        match swapped.await {
            Ok(()) => Ok(told),
            Err(error) if is_agreed => Err(DeployError::Agreed(Box::new(error))),
            Err(error) => Err(error),
        }
    }

    /// Ends the canary: every request is the active version's again.
    ///
    /// # Errors
    /// If there is none, or the record cannot be written.
    pub async fn abort(&self, name: &str, order: Order<'_>) -> Result<(), DeployError> {
        self.abort_canary(name, order, Origin::Here).await
    }

    pub(super) async fn abort_canary(
        &self,
        name: &str,
        order: Order<'_>,
        origin: Origin,
    ) -> Result<(), DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(name)?;
        let proposal = self.shared.propose(name, origin)?;
        let canary = turn.slot().canary().ok_or_else(|| no_canary(name))?;
        if order.dry_run {
            return Ok(());
        }
        let digest = Arc::clone(&canary.generation.label().digest);
        drop(canary);
        if let Some(proposal) = proposal {
            proposal.no_canary(turn.slot(), order).await?;
        }
        self.shared.end_canary(turn, None).await?;
        tracing::info!(
            plugin = name,
            version = short(&digest),
            by = order.by,
            "canary is aborted"
        );
        Ok(())
    }

    /// What the shadow found so far.
    ///
    /// # Errors
    /// If there is no plugin or no shadow of that name.
    pub fn shadow_report(&self, name: &str) -> Result<ShadowReport, DeployError> {
        let slot = self.slot(name);
        let slot = slot.ok_or_else(|| DeployError::NoSuchPlugin(name.to_owned()))?;
        let shadow = slot.shadow().ok_or_else(|| no_shadow(name))?;
        Ok(shadow.report())
    }

    /// Ends the shadow.
    ///
    /// # Errors
    /// If there is none, or the record cannot be written.
    pub async fn end_shadow(&self, name: &str, order: Order<'_>) -> Result<(), DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(name)?;
        turn.slot().shadow().ok_or_else(|| no_shadow(name))?;
        if order.dry_run {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let slot = turn.slot();
            shared.rewrite(slot, Record::end_shadow)?;
            slot.set_shadow(None);
            shared.prune(slot);
            Ok(())
        })
        .await
    }

    /// Removes a version from disk and from every list, its mark of failing included. One that is in use is refused; one
    /// that a rollback would activate, or whose streams are open, is removed with `force` only.
    ///
    /// # Errors
    /// See [`DeployError`].
    pub async fn forget(
        &self,
        name: &str,
        version: &str,
        order: Order<'_>,
    ) -> Result<String, DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(name)?;
        let digest = turn.slot().find_version(version)?;
        turn.slot().check_unused(&digest, order.force)?;
        if order.dry_run {
            return Ok(digest);
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let slot = turn.slot();
            if slot.record().is_some() {
                shared.rewrite(slot, |record| record.forget(&digest))?;
            }
            slot.drop_previous(&digest);
            let removed = shared.artifacts.remove(slot.name(), &digest);
            removed.map_err(io_error)?;
            shared.prune(slot);
            let kept = shared.artifacts.all_digests();
            if kept.is_ok_and(|kept| !kept.contains(&digest)) {
                shared.compiler.forget(&digest);
            }
            Ok(digest)
        })
        .await
    }

    /// Ends a canary or an activation that the guard judged, unless it has ended by itself.
    pub(super) async fn take_back(
        &self,
        slot: &Arc<PluginSlot>,
        id: GenerationId,
        verdict: &Verdict,
    ) {
        let _unchanged_config = self.shared.changes.read().await;
        let known = self
            .slot(slot.name())
            .is_some_and(|known| Arc::ptr_eq(&known, slot));
        // While somebody else changes it, it waits for the next look.
        let Some(turn) = slot.take_turn().filter(|_| known) else {
            return;
        };
        let name = slot.name();
        let is = |generation: &Generation| generation.id() == id;
        let canary = slot.canary().filter(|canary| is(&canary.generation));
        let active = slot.active.load_full().filter(|active| is(active));
        let done = match (canary, active) {
            (Some(canary), _) => {
                let version = canary.generation.label().version().to_owned();
                let digest = &canary.generation.label().digest;
                if !self
                    .shared
                    .take_back_agreed(name, digest, None, verdict)
                    .await
                {
                    return;
                }
                drop(canary);
                let ended = self.shared.end_canary(turn, Some(verdict.clone())).await;
                ended.inspect(|()| {
                    tracing::error!(plugin = %name, version, reason = verdict.reason, "guard: canary is aborted");
                })
            }
            (None, Some(active)) => self.roll_back(turn, &active, verdict).await,
            (None, None) => Ok(()),
        };
        if let Err(error) = done {
            tracing::error!(plugin = %name, %error, "guard: the version is not taken back");
        }
    }

    /// Activates the version before, because the active one failed.
    async fn roll_back(
        &self,
        turn: Turn,
        active: &Arc<Generation>,
        verdict: &Verdict,
    ) -> Result<(), DeployError> {
        let (shared, slot) = (&self.shared, turn.slot());
        let (name, digest) = (slot.name().clone(), active.label().digest.to_string());
        let Some(before) = slot
            .record()
            .filter(|record| record.failing(&digest).is_none())
        else {
            // It was said already that there is nothing to go back to.
            return Ok(());
        };
        let (version, reason) = (active.label().version(), &verdict.reason);
        let way_back = before.previous.clone();
        let Some(target) = way_back.filter(|digest| before.failing(digest).is_none()) else {
            let (shared, marked) = (Arc::clone(shared), verdict.clone());
            blocking(move || {
                let slot = turn.slot();
                shared.rewrite(slot, |record| {
                    drop(record.mark_failing(&digest, &marked.reason))
                })
            })
            .await?;
            tracing::error!(plugin = %name, version, reason, "guard: the version fails, and there is none to go back to");
            return Ok(());
        };
        let loaded = shared.load_kept(&name, &target).await?;
        let generation = shared
            .prepare(slot.config(), loaded.code.clone(), &shared.store)
            .await?;
        let agreed = shared.take_back_agreed(&name, &digest, Some(&target), verdict);
        if !agreed.await {
            return Ok(());
        }
        let mut marked = before;
        let took = marked.mark_failing(&digest, &verdict.reason);
        let record = record_after(Some(&marked), &generation, "guard", true);
        let mut told = slot.told(&generation);
        let rolled_back = Arc::clone(slot);
        // A version that fails is worse than data that the one before may not know.
        let on_data = OnData {
            at_any_rate: true,
            follows: false,
            beside: None,
        };
        shared
            .swap(turn, generation, record, on_data, &mut told)
            .await?;
        let span = *took.get_or_init(|| verdict.decided.elapsed());
        rolled_back.note_trip(verdict.limit);
        tracing::error!(plugin = %name, version, to = short(&target), reason, took = ?span, "guard: rolled back");
        Ok(())
    }
}

impl Shared {
    /// Warm, record, publish: a share of the requests is the canary's.
    pub(super) async fn begin_canary(
        self: &Arc<Self>,
        turn: Turn,
        canary: Canary,
        by: &str,
    ) -> Result<(), DeployError> {
        let warmed = self.warm(&canary.generation).await?;
        let started = canary_record(&canary, by);
        let shared = Arc::clone(self);
        blocking(move || {
            let slot = turn.slot();
            let label = Arc::clone(canary.generation.label());
            let percent = canary.share.fraction.as_percent();
            shared.rewrite(slot, |record| {
                record.failing.retain(|failing| *failing.digest != *label.digest);
                record.end_canary();
                record.canary = Some(started);
            })?;
            let old = slot.set_canary(Some(Arc::new(canary)));
            warmed.keep();
            shared.retire(&old);
            shared.prune(slot);
            tracing::info!(plugin = %slot.name(), version = label.version(), percent, "canary is on");
            Ok(())
        })
        .await
    }

    /// Record, unpublish, retire; with a verdict, the version is failing from now on.
    async fn end_canary(
        self: &Arc<Self>,
        turn: Turn,
        verdict: Option<Verdict>,
    ) -> Result<(), DeployError> {
        let shared = Arc::clone(self);
        blocking(move || {
            let slot = turn.slot();
            let mut took = None;
            shared.rewrite(slot, |record| {
                let digest = record
                    .canary
                    .as_ref()
                    .map(|canary| canary.started.digest.clone());
                record.end_canary();
                if let (Some(digest), Some(verdict)) = (digest, &verdict) {
                    took = Some(record.mark_failing(&digest, &verdict.reason));
                }
            })?;
            let old = slot.set_canary(None);
            shared.retire(&old);
            if let Some(verdict) = verdict {
                took.map(|took| took.set(verdict.decided.elapsed()));
                slot.note_trip(verdict.limit);
            }
            shared.prune(slot);
            Ok(())
        })
        .await
    }

    /// Starts the thread, records, publishes.
    pub(super) async fn begin_shadow(
        self: &Arc<Self>,
        turn: Turn,
        generation: Arc<Generation>,
        sample: Fraction,
        by: &str,
    ) -> Result<(), DeployError> {
        let shared = Arc::clone(self);
        let started = Activation::trial(&generation.label().digest, by);
        blocking(move || {
            let slot = turn.slot();
            let version = generation.label().version().to_owned();
            let shadow = Shadow::start(generation, sample).map_err(io_error)?;
            shared.rewrite(slot, |record| {
                record.end_shadow();
                record.shadow = Some(ShadowRecord { started, sample });
            })?;
            slot.set_shadow(Some(Arc::new(shadow)));
            shared.prune(slot);
            tracing::info!(plugin = %slot.name(), version, sample = sample.part(), "shadow is on");
            Ok(())
        })
        .await
    }

    /// Changes the record, on disk first.
    pub(super) fn rewrite(
        &self,
        slot: &PluginSlot,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), DeployError> {
        let mut record = slot.record().ok_or_else(|| {
            DeployError::Conflict(format!(
                "plugin {:?} has no active version yet",
                slot.name()
            ))
        })?;
        change(&mut record);
        self.write(slot, &record)?;
        slot.set_record(record);
        Ok(())
    }

    /// Begins to close the streams of the oldest versions that are over the number of draining ones.
    pub(super) fn drain_oldest(&self, slot: &PluginSlot) {
        let policy = &slot.config().versions;
        let (Some(max), DrainingFull::DrainOldest(over)) =
            (policy.draining_max, policy.draining_full)
        else {
            return;
        };
        let (Some(crew), Some(active)) = (self.crew(), slot.active().as_ref().cloned()) else {
            return;
        };
        let draining = slot.draining("", false);
        let surplus = draining.len().saturating_sub(max);
        let drained = draining.into_iter().take(surplus).map(|(digest, _)| digest);
        let drained: Vec<String> = drained.collect();
        crew.drain(slot.name(), &drained, &active.label().digest, over);
    }
}

fn no_canary(name: &str) -> DeployError {
    DeployError::Conflict(format!("plugin {name:?} has no canary"))
}

fn no_shadow(name: &str) -> DeployError {
    DeployError::Conflict(format!("plugin {name:?} has no shadow"))
}

/// How people name a version.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
