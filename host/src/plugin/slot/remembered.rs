//! What is remembered of a plugin's versions: its config, the record, what is on disk, generations that something belongs to.

use super::super::artifact::{Artifacts, Kept, hex};
use super::super::canary::Canary;
use super::super::record::{Activation, CanaryRecord, Record};
use super::super::report::DeployError;
use super::super::versions::Past;
use super::super::{Generation, PluginConfig};
use super::PluginSlot;
use crate::metrics::CallTotals;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Under the slot's lock.
pub(super) struct State {
    pub(super) config: Arc<PluginConfig>,
    /// What is active, what was, what is tried.
    pub(super) record: Option<Record>,
    pub(super) kept: Vec<Kept>,
    /// Every generation that was active or tried and that something still belongs to.
    pub(super) generations: Vec<Past>,
    /// Calls of those that are gone.
    pub(super) gone: CallTotals,
    /// How often the guard took a version back, by limit.
    pub(super) guard_trips: BTreeMap<&'static str, u64>,
}

impl PluginSlot {
    pub(in crate::plugin) fn config(&self) -> Arc<PluginConfig> {
        Arc::clone(&self.state().config)
    }

    pub(in crate::plugin) fn set_config(&self, config: Arc<PluginConfig>) {
        self.state().config = config;
    }

    /// Whether the active version was pushed, rather than taken from the config's source.
    pub(in crate::plugin) fn is_pushed(&self) -> bool {
        self.state()
            .record
            .as_ref()
            .is_some_and(|record| record.pushed)
    }

    /// What is recorded.
    pub(in crate::plugin) fn record(&self) -> Option<Record> {
        self.state().record.clone()
    }

    /// What a rollback would activate.
    pub(in crate::plugin) fn rollback_target(&self) -> Option<String> {
        self.state().record.as_ref()?.previous.clone()
    }

    /// The digest of the version that a digest's beginning names.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub(in crate::plugin) fn find_version(&self, wanted: &str) -> Result<String, DeployError> {
        let versions = self.info().versions;
        let mut found = versions.iter().filter(|one| {
            !wanted.is_empty() && one.digest.starts_with(&wanted.to_ascii_lowercase())
        });
        let (first, second) = (found.next(), found.next());
        match (first, second) {
            (Some(one), None) => Ok(one.digest.clone()),
            (None, _) => {
                let known: Vec<&str> = versions.iter().map(|one| &one.digest[..12]).collect();
                Err(DeployError::NoSuchVersion(format!(
                    "no version {wanted:?} of plugin {:?}: there are {}",
                    self.name,
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    }
                )))
            }
            (Some(_), Some(_)) => Err(DeployError::NoSuchVersion(format!(
                "version {wanted:?} of plugin {:?} is more than one: give more of its digest",
                self.name
            ))),
        }
    }

    /// The record of a generation about to be active.
    pub(in crate::plugin) fn next_record(
        &self,
        generation: &Generation,
        by: &str,
        pushed: bool,
    ) -> Record {
        record_after(self.record().as_ref(), generation, by, pushed)
    }

    pub(in crate::plugin) fn set_record(&self, record: Record) {
        self.state().record = Some(record);
    }

    /// Counts what the guard did.
    pub(in crate::plugin) fn note_trip(&self, limit: &'static str) {
        *self.state().guard_trips.entry(limit).or_default() += 1;
    }

    /// Removes artifacts of old versions and remembers which are left.
    pub(in crate::plugin) fn prune(&self, artifacts: &Artifacts) -> std::io::Result<()> {
        let (record, keep) = {
            let state = self.state();
            (state.record.clone(), state.config.versions.keep)
        };
        if let Some(record) = record {
            artifacts.prune(&self.name, &record, keep)?;
        }
        let kept = artifacts.kept(&self.name)?;
        self.state().kept = kept;
        Ok(())
    }
}

impl State {
    pub(super) fn new(config: &PluginConfig) -> Self {
        Self {
            config: Arc::new(config.clone()),
            record: None,
            kept: Vec::new(),
            generations: Vec::new(),
            gone: CallTotals::default(),
            guard_trips: BTreeMap::new(),
        }
    }

    /// Remembers a generation that may decide requests, and forgets those that nothing belongs to any more.
    pub(super) fn note(&mut self, past: Past) {
        // With the last other holder of the label go the calls and streams that could still count.
        let (kept, gone) = std::mem::take(&mut self.generations)
            .into_iter()
            .partition(|past| Arc::strong_count(&past.label) > 1);
        self.generations = kept;
        for past in Vec::<Past>::into_iter(gone).filter(|past| past.decides) {
            self.gone = self.gone.plus(&past.totals());
        }
        // A canary that becomes active is known already.
        self.generations
            .retain(|known| known.label.id != past.label.id);
        self.generations.push(past);
    }

    /// Open streams of all versions.
    pub(super) fn streams(&self) -> u64 {
        self.generations.iter().map(Past::streams).sum()
    }

    /// Calls of all generations.
    pub(super) fn totals(&self) -> CallTotals {
        let all = self.generations.iter().filter(|past| past.decides);
        all.map(Past::totals)
            .fold(self.gone, |sum, totals| sum.plus(&totals))
    }
}

/// The record of a generation about to be active, after another.
pub(in crate::plugin) fn record_after(
    before: Option<&Record>,
    generation: &Generation,
    by: &str,
    pushed: bool,
) -> Record {
    let activation = Activation::now(&generation.label().digest, by);
    Record::after(
        before,
        activation,
        settings_digest(generation.config()),
        pushed,
    )
}

/// What is recorded of a canary that begins.
pub(in crate::plugin) fn canary_record(canary: &Canary, by: &str) -> CanaryRecord {
    CanaryRecord {
        started: Activation::trial(&canary.generation.label().digest, by),
        share: canary.share.clone(),
    }
}

/// Digest of what a version was activated with beside its bytes.
fn settings_digest(config: &PluginConfig) -> String {
    let text = format!(
        "{:?} {:?} {:?} {:?}",
        config.grants, config.settings, config.limits, config.sessions
    );
    hex(&Sha256::digest(text))
}
