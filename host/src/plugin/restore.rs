//! What was recorded of a plugin, brought back: its version or the one before it, its canary and its shadow, each only as
//! far as it still loads.

use super::canary::Canary;
use super::deploy::{Shared, io_error};
use super::migration::Mark;
use super::record::Record;
use super::registry::Change;
use super::report::DeployError;
use super::{Generation, PluginConfig};
use crate::store::{Snapshot, Store};
use std::sync::Arc;

impl Shared {
    /// What is recorded of a plugin; or what would be, if the process was killed after the data of a version were migrated
    /// and before it was recorded. The data are what counts: nothing older may be served over them.
    pub(super) fn recorded(
        &self,
        plugin: &str,
        snapshot: &Snapshot,
    ) -> Result<(Option<Record>, bool), DeployError> {
        let record = self.artifacts.record(plugin).map_err(io_error)?;
        let Some(finished) = Mark::unfinished(snapshot, plugin, record.as_ref()) else {
            return Ok((record, false));
        };
        let version = finished.active.digest.get(..12).unwrap_or_default();
        let kept = self.artifacts.kept(plugin).map_err(io_error)?;
        if !kept
            .iter()
            .any(|kept| kept.digest == finished.active.digest)
        {
            tracing::error!(
                plugin,
                version,
                "the data are migrated for a version that is not kept any more"
            );
            return Ok((record, false));
        }
        tracing::warn!(
            plugin,
            version,
            "the version is active though it was not recorded: its migration was done"
        );
        Ok((Some(finished), true))
    }

    /// The recorded version, or the one before it.
    pub(super) async fn activate_recorded(
        self: &Arc<Self>,
        change: &mut Change,
        mut record: Record,
        store: &Store,
    ) {
        match self
            .prepare_kept(&change.config, &record.active.digest, store)
            .await
        {
            Ok(active) => change.active = Some(active),
            Err(error) => self.tell_unloadable(&change.config.name, &record.active.digest, &error),
        }
        let Some(previous) = record.previous.clone() else {
            if change.active.is_some() {
                change.record = Some(record);
            }
            return;
        };
        match (
            self.prepare_kept(&change.config, &previous, store).await,
            &change.active,
        ) {
            (Ok(generation), Some(_)) => change.previous = Some(generation),
            (Ok(generation), None) => {
                // In memory only: what was acknowledged stays recorded, and is tried again at the next start.
                record.active.digest = previous;
                record.previous = None;
                change.active = Some(generation);
            }
            (Err(error), _) => self.tell_unloadable(&change.config.name, &previous, &error),
        }
        if change.active.is_some() {
            change.record = Some(record);
        }
    }

    /// Prepares the canary and the shadow of a record under the change's config.
    pub(super) async fn try_again(self: &Arc<Self>, change: &mut Change, store: &Store) {
        if change.active.is_none() {
            return;
        }
        let Some(mut record) = change.record.clone().or_else(|| change.slot.record()) else {
            return;
        };
        if let Some(canary) = record.canary.clone() {
            let digest = &canary.started.digest;
            match self.prepare_kept(&change.config, digest, store).await {
                Ok(generation) => {
                    change.canary = Some(Arc::new(Canary::new(generation, canary.share)));
                }
                Err(error) => {
                    self.tell_unloadable(&change.config.name, digest, &error);
                    record.end_canary();
                }
            }
        }
        if let Some(shadow) = record.shadow.clone() {
            let digest = &shadow.started.digest;
            match self.prepare_kept(&change.config, digest, store).await {
                Ok(generation) => change.shadow = Some((generation, shadow.sample)),
                Err(error) => {
                    self.tell_unloadable(&change.config.name, digest, &error);
                    record.end_shadow();
                }
            }
        }
        // In memory only, as above.
        change.record = Some(record);
    }

    async fn prepare_kept(
        self: &Arc<Self>,
        config: &Arc<PluginConfig>,
        digest: &str,
        store: &Store,
    ) -> Result<Arc<Generation>, DeployError> {
        let loaded = self.load_kept(&config.name, digest).await?;
        self.prepare(Arc::clone(config), loaded.code, store).await
    }

    pub(super) fn tell_unloadable(&self, plugin: &str, digest: &str, error: &DeployError) {
        let version = digest.get(..12).unwrap_or(digest);
        tracing::error!(plugin, version, %error, "a recorded version does not load");
    }
}
