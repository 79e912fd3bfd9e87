//! Which plugins there are: taking a config's plugins into slots, all or nothing, and telling about them.

use super::artifact;
use super::canary::Canary;
use super::compile::Loaded;
use super::deploy::{Plugins, Shared, blocking, io_error};
use super::migration::{Migration, Taking};
use super::record::Record;
use super::report::{DeployError, PluginInfo};
use super::shadow::Shadow;
use super::slot::{BY_CONFIG, record_after};
use super::warm::Warmed;
use super::{Fraction, Generation, PluginConfig, PluginSlot, Source, builtin, migration};
use crate::store::Store;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One plugin of a new config, prepared and not yet published.
pub(super) struct Change {
    pub(super) slot: Arc<PluginSlot>,
    pub(super) config: Arc<PluginConfig>,
    pub(super) active: Option<Arc<Generation>>,
    pub(super) previous: Option<Arc<Generation>>,
    pub(super) canary: Option<Arc<Canary>>,
    pub(super) shadow: Option<(Arc<Generation>, Fraction)>,
    /// Of a slot that is new, or whose version changed: what is recorded.
    pub(super) record: Option<Record>,
    /// Of a version that takes over from another, or is the first: what was recorded before.
    takes_over: Option<Option<Record>>,
    /// Whether the record is to be written: the process was killed before it was.
    unrecorded: bool,
}

impl Change {
    fn new(slot: Arc<PluginSlot>, config: &PluginConfig) -> Self {
        Self {
            slot,
            config: Arc::new(config.clone()),
            active: None,
            previous: None,
            canary: None,
            shadow: None,
            record: None,
            takes_over: None,
            unrecorded: false,
        }
    }

    /// Every generation that requests will meet.
    fn serving(&self) -> impl Iterator<Item = &Arc<Generation>> {
        let canary = self.canary.as_ref().map(|canary| &canary.generation);
        self.active.iter().chain(canary)
    }
}

impl Plugins {
    /// Makes the plugins those of a config. For each new one: activates the version recorded in the data directory, else
    /// that of its source. For one whose config changed: a new generation of the same version. For one no longer named:
    /// its slot goes, its streams stay. All or nothing.
    ///
    /// A recorded version that does not load any more is replaced by the one before it, or by the source, with an error
    /// in the log; a plugin without either then waits for a push.
    ///
    /// # Errors
    /// The first plugin that cannot be loaded, with its name.
    pub async fn apply(&self, plugins: &[PluginConfig]) -> Result<(), (String, DeployError)> {
        let _no_deploys = self.shared.changes.write().await;
        let shared = &self.shared;
        let now = shared.slots.load_full();
        let mut next = BTreeMap::new();
        let mut changes: Vec<(Change, Vec<Warmed>)> = Vec::new();
        let mut policies: Vec<(Arc<PluginSlot>, &PluginConfig)> = Vec::new();
        for config in plugins {
            let failed = |error| (config.name.clone(), error);
            let slot = match now.get(&config.name) {
                Some(slot) if *slot.config() == *config => Arc::clone(slot),
                Some(slot) if slot.config().same_sandbox(config) => {
                    policies.push((Arc::clone(slot), config));
                    Arc::clone(slot)
                }
                known => {
                    let change = match known {
                        Some(slot) => shared.reconfigure(slot, config, &shared.store).await,
                        None => shared.introduce(config, &shared.store).await,
                    };
                    let change = change.map_err(failed)?;
                    let mut warmed = Vec::new();
                    for generation in change.serving() {
                        warmed.push(shared.warm(generation).await.map_err(failed)?);
                    }
                    let slot = Arc::clone(&change.slot);
                    changes.push((change, warmed));
                    slot
                }
            };
            next.insert(config.name.clone(), slot);
        }
        if !changes.is_empty() {
            let shared = Arc::clone(shared);
            // In one piece on a thread of its own: dropping the future cannot come between data and publish.
            let published = blocking(move || Ok(shared.publish_all(changes)));
            let published = published.await;
            published.map_err(|error| (String::new(), error))??;
        }
        // Nothing can fail from here on.
        for (slot, config) in policies {
            slot.set_config(Arc::new(config.clone()));
            shared.prune(&slot);
        }
        for (name, slot) in now.iter().filter(|(name, _)| !next.contains_key(*name)) {
            tracing::info!(plugin = %name, "plugin is no longer in the config");
            slot.set_shadow(None);
            let serving = slot.serving();
            for generation in &serving {
                generation.sandbox.retired.store(true, Ordering::Relaxed);
            }
            let serving: Vec<_> = serving.iter().map(|one| one.id()).collect();
            shared.retire(&serving);
        }
        shared.slots.store(Arc::new(next));
        Ok(())
    }

    /// Whether a config's plugins could be applied: the same steps up to their trial with `init`, and no change. `store`
    /// has the buckets of that config, and is what the trials see.
    ///
    /// # Errors
    /// The first plugin that cannot be loaded, with its name.
    pub async fn check(
        &self,
        plugins: &[PluginConfig],
        store: &Store,
    ) -> Result<(), (String, DeployError)> {
        let now = self.shared.slots.load_full();
        for config in plugins {
            let change = match now.get(&config.name) {
                Some(slot) if slot.config().same_sandbox(config) => continue,
                Some(slot) => self.shared.reconfigure(slot, config, store).await,
                None => self.shared.introduce(config, store).await,
            };
            change.map_err(|error| (config.name.clone(), error))?;
        }
        Ok(())
    }

    /// The slot that routes hold.
    pub fn slot(&self, name: &str) -> Option<Arc<PluginSlot>> {
        self.shared.slots.load().get(name).cloned()
    }

    /// Every plugin, by name.
    pub fn list(&self) -> Vec<PluginInfo> {
        self.shared
            .slots
            .load()
            .values()
            .map(|slot| slot.info())
            .collect()
    }

    /// One plugin.
    pub fn get(&self, name: &str) -> Option<PluginInfo> {
        Some(self.slot(name)?.info())
    }
}

impl Shared {
    /// A plugin that is new to this process.
    async fn introduce(
        self: &Arc<Self>,
        config: &PluginConfig,
        store: &Store,
    ) -> Result<Change, DeployError> {
        if !artifact::is_name(&config.name) {
            return Err(DeployError::Io(format!(
                "plugin name {:?}: expected {}",
                config.name,
                artifact::NAME_EXPECTED
            )));
        }
        let mut change = Change::new(Arc::new(PluginSlot::new(config)), config);
        let (reader, name) = (Arc::clone(self), config.name.clone());
        let snapshot = store.snapshot();
        let recorded = blocking(move || reader.recorded(&name, &snapshot)).await;
        let recorded = recorded.map(|(record, unrecorded)| {
            change.unrecorded = unrecorded;
            record
        });
        match recorded {
            Ok(None) => {}
            Ok(Some(record)) if record.pushed => {
                self.activate_recorded(&mut change, record, store).await;
            }
            Ok(Some(record)) => change.record = Some(record),
            Err(error) => {
                tracing::error!(plugin = config.name, %error, "the recorded version is unknown: taking the config's source");
            }
        }
        if change.active.is_none() {
            self.activate_source(&mut change, store).await?;
        }
        self.try_again(&mut change, store).await;
        Ok(change)
    }

    /// The version that the config names, if it does.
    async fn activate_source(
        self: &Arc<Self>,
        change: &mut Change,
        store: &Store,
    ) -> Result<(), DeployError> {
        let Some(loaded) = self.load_source(&change.config).await? else {
            return Ok(());
        };
        let active = self
            .prepare(Arc::clone(&change.config), loaded.code, store)
            .await?;
        let known = change.record.take().or_else(|| change.slot.record());
        let record = match known {
            // The same as before: what was tried beside it goes on.
            Some(known) if *known.active.digest == *active.label().digest => known,
            known => {
                let record = record_after(known.as_ref(), &active, BY_CONFIG, false);
                change.takes_over = Some(known);
                record
            }
        };
        change.active = Some(active);
        change.record = Some(record);
        Ok(())
    }

    async fn load_source(
        self: &Arc<Self>,
        config: &PluginConfig,
    ) -> Result<Option<Loaded>, DeployError> {
        let component = match &config.source {
            Source::Pushed => return Ok(None),
            Source::Builtin(name) => {
                Bytes::from_static(builtin::component(name).ok_or_else(|| {
                    let names = builtin::NAMES;
                    DeployError::Io(format!(
                        "no built-in plugin {name:?}, expected one of {names:?}"
                    ))
                })?)
            }
            Source::File(path) => {
                let (path, bytes_max) = (path.clone(), self.component_bytes_max);
                blocking(move || read_component(&path, bytes_max)).await?
            }
        };
        let (keeper, plugin, content) = (Arc::clone(self), config.name.clone(), component.clone());
        // Kept, so that the first push can be rolled back to it.
        let digest = blocking(move || {
            let digest = artifact::digest(&content);
            keeper
                .artifacts
                .keep(&plugin, &digest, &content)
                .map_err(io_error)?;
            Ok(digest)
        })
        .await?;
        self.compiler.load(digest.into(), component).await.map(Some)
    }

    /// A known plugin under a new config: the same version, unless it came from a source that changed.
    async fn reconfigure(
        self: &Arc<Self>,
        slot: &Arc<PluginSlot>,
        config: &PluginConfig,
        store: &Store,
    ) -> Result<Change, DeployError> {
        let mut change = Change::new(Arc::clone(slot), config);
        let active = slot.active.load_full();
        match active.filter(|_| slot.is_pushed() || slot.config().source == config.source) {
            Some(active) => {
                let code = Arc::clone(&active.sandbox.code);
                change.active = Some(
                    self.prepare(Arc::clone(&change.config), code, store)
                        .await?,
                );
            }
            None => self.activate_source(&mut change, store).await?,
        }
        // With its old config it would keep grants that this one takes away.
        if let Some(previous) = slot.previous.load_full() {
            let code = Arc::clone(&previous.sandbox.code);
            match self.prepare(Arc::clone(&change.config), code, store).await {
                Ok(previous) => change.previous = Some(previous),
                Err(error) => self.tell_unloadable(&config.name, &previous.label().digest, &error),
            }
        }
        self.try_again(&mut change, store).await;
        Ok(change)
    }

    /// Migrates the data for the versions that take over, and publishes every change. To be called on a thread that may
    /// block.
    ///
    /// # Errors
    /// The plugin whose migration failed; nothing is changed then.
    fn publish_all(
        &self,
        mut changes: Vec<(Change, Vec<Warmed>)>,
    ) -> Result<(), (String, DeployError)> {
        let snapshot = self.store.snapshot();
        let migrations = changes
            .iter()
            .enumerate()
            .filter_map(|(index, (change, _))| {
                let before = change.takes_over.as_ref()?;
                let limits = change.config.versions.migration.clone();
                let active = change.active.as_ref()?;
                let migration =
                    Migration::needed(active, before.as_ref(), limits, &snapshot, None)?;
                Some((index, migration))
            });
        let migrations: BTreeMap<usize, Migration> = migrations.collect();
        let changing = changes.iter_mut().enumerate();
        let mut takings: Vec<Taking<'_>> = changing
            .filter_map(|(index, (change, _))| {
                Some(Taking {
                    migration: migrations.get(&index)?,
                    slot: &change.slot,
                    record: change.record.as_mut()?,
                })
            })
            .collect();
        let staged = match &mut takings[..] {
            [] => Vec::new(),
            takings => {
                migration::migrate(&self.store, takings, None).map_err(|(index, error)| {
                    let name = takings
                        .get(index)
                        .map(|taking| taking.slot.name().to_string());
                    (name.unwrap_or_default(), error)
                })?
            }
        };
        for (change, warmed) in changes {
            self.publish(change);
            warmed.into_iter().for_each(Warmed::keep);
        }
        drop(staged);
        Ok(())
    }

    fn publish(&self, change: Change) {
        if let (true, Some(record)) = (change.unrecorded, &change.record)
            && let Err(error) = self.write(&change.slot, record)
        {
            tracing::error!(plugin = %change.slot.name(), %error, "the active version is not recorded");
        }
        let slot = &change.slot;
        slot.set_config(Arc::clone(&change.config));
        if let Some(record) = change.record {
            slot.set_record(record);
        }
        if let Some(active) = change.active {
            let activated = slot.publish(active, change.canary, false, None);
            self.retire(&activated.old);
        }
        slot.previous.store(change.previous);
        let shadow = change.shadow.and_then(|(generation, sample)| {
            let started = Shadow::start(generation, sample);
            let tell = |error: &std::io::Error| {
                tracing::error!(plugin = %slot.name(), %error, "no thread for the shadow");
            };
            started.inspect_err(tell).ok().map(Arc::new)
        });
        slot.set_shadow(shadow);
        self.prune(slot);
    }
}

/// Reads a component of at most so many bytes.
fn read_component(path: &std::path::Path, bytes_max: usize) -> Result<Bytes, DeployError> {
    use std::io::Read;
    let naming = |error: std::io::Error| DeployError::Io(format!("{}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(naming)?;
    let mut bytes = Vec::new();
    let limit = bytes_max as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(naming)?;
    if bytes.len() > bytes_max {
        return Err(DeployError::TooLarge(bytes_max));
    }
    Ok(bytes.into())
}
