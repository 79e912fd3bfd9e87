//! The swap: from a generation that was tried to the active one.

use super::deploy::{Shared, blocking};
use super::migration::{Migrated, Moved, OnData};
use super::record::Record;
use super::report::{DeployError, Deployed, Outcome};
use super::slot::{Activated, Turn};
use super::warm::Warmed;
use super::{Generation, PluginSlot};
use crate::store::{CommitError, Revision};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// What came of it.
struct Swapped {
    activated: Activated,
    publish: Duration,
    /// The first revision that the version decides on, if it changed the data.
    revision: Option<Revision>,
    migrated: Option<Migrated>,
    /// Why it did not migrate them, if that was to stop nothing.
    not_migrated: Option<String>,
}

/// What is left to be published.
struct Ready {
    generation: Arc<Generation>,
    warmed: Warmed,
    warming: Duration,
    /// What is on stage, if that was made for another config.
    replaced: Option<(Arc<Generation>, Warmed)>,
    record: Record,
    moved: Moved,
}

impl Shared {
    /// Warm, migrate, record, publish, retire.
    ///
    /// Outside a fleet, data that are written and not seen in time are told as [`DeployError::Late`], and the rest is done once
    /// they are seen: the version decides from that moment on.
    pub(super) async fn swap(
        self: &Arc<Self>,
        turn: Turn,
        generation: Arc<Generation>,
        record: Record,
        on_data: OnData,
        deployed: &mut Deployed,
    ) -> Result<(), DeployError> {
        let began = Instant::now();
        let warmed = self.warm(&generation).await?;
        let warming = began.elapsed();
        deployed.generation = Some(generation.id().0);
        let shared = Arc::clone(self);
        let (tell, mut late) = mpsc::channel(1);
        let label = Arc::clone(generation.label());
        let tell_late = move |error: CommitError| {
            tracing::warn!(plugin = %label.plugin, version = label.version(), %error, "the version waits for its data");
            // Whoever asked may be gone.
            let _ = tell.try_send(error);
        };
        // In one piece on a thread of its own: dropping the future cannot come between data, pointer and publish.
        let swapping = blocking(move || {
            let is_late = AtomicBool::new(false);
            let tell_late = |error: CommitError| {
                is_late.store(true, Ordering::Relaxed);
                tell_late(error);
            };
            let mut ready = Ready {
                generation,
                warmed,
                warming,
                replaced: None,
                record,
                moved: Moved::default(),
            };
            let Ready {
                generation, record, ..
            } = &mut ready;
            let moved = shared.migrate(turn.slot(), generation, record, on_data, &tell_late);
            let was_late = is_late.into_inner();
            let swapped = moved.and_then(|moved| {
                ready.moved = moved;
                match was_late {
                    true => shared.publish_late(&turn, ready),
                    false => shared.publish_moved(turn.slot(), ready),
                }
            });
            swapped.inspect_err(|error| {
                let is_closed = error.is_written();
                if was_late && !is_closed {
                    // Nobody waits for it any more.
                    tracing::error!(plugin = %turn.slot().name(), %error, "the version that waited for its data does not take over: push it again");
                }
            })
        });
        let swapped = tokio::select! {
            biased;
            swapped = swapping => swapped?,
            Some(error) = late.recv() => return Err(DeployError::Late(error)),
        };
        deployed.revision = swapped.revision;
        deployed.migrated = swapped.migrated;
        deployed.not_migrated = swapped.not_migrated;
        deployed.streams_kept = swapped.activated.streams_kept;
        deployed.publish_us = (warming + swapped.publish).as_nanos() as f64 / 1e3;
        deployed.outcome = match deployed.previous {
            Some(_) => Outcome::Swapped,
            None => Outcome::First,
        };
        Ok(())
    }

    /// Publishes what has waited for its data: the config may be another by now.
    fn publish_late(
        self: &Arc<Self>,
        turn: &Turn,
        mut ready: Ready,
    ) -> Result<Swapped, DeployError> {
        let slot = turn.slot();
        let _unchanged_config = self.changes.blocking_read();
        self.fit(slot, &mut ready)?;
        self.publish_moved(slot, ready)
    }

    /// Makes a version anew for the config as it is now, if it was made for another.
    fn fit(self: &Arc<Self>, slot: &Arc<PluginSlot>, ready: &mut Ready) -> Result<(), DeployError> {
        let known = self.slots.load().get(&**slot.name()).cloned();
        if !known.is_some_and(|known| Arc::ptr_eq(&known, slot)) {
            return Err(DeployError::NoSuchPlugin(slot.name().to_string()));
        }
        if !slot.config().same_sandbox(&ready.generation.sandbox.config) {
            let runtime = Handle::current();
            let code = Arc::clone(&ready.generation.sandbox.code);
            let anew = self.prepare(slot.config(), code, &self.store);
            let anew = runtime.block_on(anew)?;
            let data_since = ready.generation.data_since();
            anew.sandbox.data_since.store(data_since, Ordering::Release);
            let warmed = runtime.block_on(self.warm(&anew))?;
            let staged = std::mem::replace(&mut ready.generation, anew);
            let staged_warmed = std::mem::replace(&mut ready.warmed, warmed);
            ready.replaced = Some((staged, staged_warmed));
        }
        let Record {
            active,
            migration,
            pushed,
            ..
        } = &ready.record;
        let migration = migration.clone();
        ready.record = slot.next_record(&ready.generation, &active.by, *pushed);
        ready.record.migration = migration;
        Ok(())
    }

    /// Record, publish, retire.
    fn publish_moved(&self, slot: &Arc<PluginSlot>, ready: Ready) -> Result<Swapped, DeployError> {
        let Ready {
            generation,
            warmed,
            warming,
            replaced,
            record,
            moved,
        } = ready;
        let (label, id) = (Arc::clone(generation.label()), generation.id().0);
        let recorded = self.write(slot, &record);
        // Once the data are migrated there is no way back; at a restart they say what is active.
        let unrecorded = match recorded {
            Err(error) if moved.made.is_none() => return Err(error),
            recorded => recorded.err(),
        };
        let began = Instant::now();
        let before = slot.record().map(|before| before.active.digest);
        let failed = before.filter(|digest| record.failing(digest).is_some());
        let activated = slot.publish(generation, None, true, failed.as_deref());
        let publish = began.elapsed();
        let revision = moved.made.as_ref().map(|made| made.revision);
        let migrated = moved.made.and_then(|made| made.migrated);
        warmed.keep();
        if let Some((staged, warmed)) = replaced {
            staged.sandbox.retired.store(true, Ordering::Relaxed);
            drop(warmed);
        }
        self.retire(&activated.old);
        let compared = record.shadow.is_some();
        slot.set_record(record);
        if !compared {
            slot.set_shadow(None);
        }
        self.drain_oldest(slot);
        self.prune(slot);
        if let Some(error) = unrecorded {
            return Err(DeployError::Io(format!(
                "the version is active on data that it has migrated, and will be after a restart, but is not recorded: {error}"
            )));
        }
        tracing::info!(
            plugin = %label.plugin,
            version = label.version(),
            generation = id,
            publish_us = (warming + publish).as_nanos() as f64 / 1e3,
            "plugin version is active"
        );
        Ok(Swapped {
            activated,
            publish,
            revision,
            migrated,
            not_migrated: moved.failed,
        })
    }
}
