//! One plugin of the config: the pointers that a swap stores to, and what is remembered of its versions.

use super::artifact::{Activation, Artifacts, Kept, Record};
use super::compile::Loaded;
use super::deploy::millis;
use super::generation::{CallStats, GenerationLabel};
use super::report::{Deployed, Outcome, PluginInfo, VersionInfo, VersionState};
use super::{Generation, GenerationId, PluginConfig};
use arc_swap::{ArcSwapOption, Guard};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Who activated a version that came from the config.
pub const BY_CONFIG: &str = "config";
/// Activations remembered of a plugin.
const HISTORY_MAX: usize = 20;

/// A plugin of the config, as routes hold it: the pointer that a swap stores to.
pub struct PluginSlot {
    name: Arc<str>,
    pub(super) active: ArcSwapOption<Generation>,
    pub(super) previous: ArcSwapOption<Generation>,
    state: Mutex<State>,
    /// Whether a deploy is running.
    busy: AtomicBool,
}

struct State {
    config: Arc<PluginConfig>,
    /// What is active and what was, newest first.
    record: Option<Record>,
    /// Whether the record is that on disk: some version was pushed.
    pushed: bool,
    kept: Vec<Kept>,
    /// Every generation that was active and that something still belongs to.
    generations: Vec<Past>,
}

/// What is left of a generation when its code is gone.
struct Past {
    label: Arc<GenerationLabel>,
    stats: Arc<[CallStats]>,
}

/// What a publish replaced.
pub(super) struct Activated {
    pub(super) old: Option<GenerationId>,
    pub(super) streams_kept: u64,
}

/// The right to change what is active; given back when dropped.
pub(super) struct Turn(Arc<PluginSlot>);

impl Turn {
    pub(super) fn slot(&self) -> &Arc<PluginSlot> {
        &self.0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl PluginSlot {
    /// A slot without a version.
    pub(super) fn new(config: &PluginConfig) -> Self {
        Self {
            name: config.name.as_str().into(),
            active: ArcSwapOption::empty(),
            previous: ArcSwapOption::empty(),
            state: Mutex::new(State {
                config: Arc::new(config.clone()),
                record: None,
                pushed: false,
                kept: Vec::new(),
                generations: Vec::new(),
            }),
            busy: AtomicBool::new(false),
        }
    }

    /// The plugin's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The generation that new requests use.
    pub fn active(&self) -> Guard<Option<Arc<Generation>>> {
        self.active.load()
    }

    /// The generation before it, for routes whose fallback is the last good version.
    pub fn previous(&self) -> Guard<Option<Arc<Generation>>> {
        self.previous.load()
    }

    /// The right to change what is active, unless another has it.
    pub(super) fn take_turn(self: &Arc<Self>) -> Option<Turn> {
        let taken = self.busy.swap(true, Ordering::Acquire);
        (!taken).then(|| Turn(Arc::clone(self)))
    }

    pub(super) fn config(&self) -> Arc<PluginConfig> {
        Arc::clone(&self.state().config)
    }

    pub(super) fn set_config(&self, config: Arc<PluginConfig>) {
        self.state().config = config;
    }

    /// Whether the active version was pushed, rather than taken from the config's source.
    pub(super) fn is_pushed(&self) -> bool {
        self.state().pushed
    }

    /// What a rollback would activate.
    pub(super) fn rollback_target(&self) -> Option<String> {
        self.state().record.as_ref()?.previous.clone()
    }

    /// The answer to a deploy of what is active already.
    pub(super) fn unchanged(&self, digest: &str) -> Option<Deployed> {
        let active = self.active.load_full()?;
        let state = self.state();
        if *active.label().digest != *digest || active.sandbox.config != state.config {
            return None;
        }
        Some(Deployed {
            plugin: self.name.to_string(),
            digest: digest.to_owned(),
            generation: Some(active.id().0),
            previous: Some(digest.to_owned()),
            outcome: Outcome::Unchanged,
            bytes: active.sandbox.code.bytes,
            imports: active.sandbox.code.imports.clone(),
            cached: true,
            compile_ms: 0.0,
            init_ms: 0.0,
            publish_us: 0.0,
            streams_kept: state.streams(),
        })
    }

    /// The answer to a deploy that got as far as its trial.
    pub(super) fn deployed(&self, loaded: &Loaded, compile: Duration, init: Duration) -> Deployed {
        let active = self.active.load();
        let previous = active
            .as_ref()
            .map(|active| active.label().digest.to_string());
        Deployed {
            plugin: self.name.to_string(),
            digest: loaded.code.digest.to_string(),
            generation: None,
            previous,
            outcome: Outcome::Checked,
            bytes: loaded.code.bytes,
            imports: loaded.code.imports.clone(),
            cached: loaded.cached,
            compile_ms: millis(compile),
            init_ms: millis(init),
            publish_us: 0.0,
            streams_kept: self.state().streams(),
        }
    }

    /// The record of a generation about to be active.
    pub(super) fn next_record(&self, generation: &Generation, by: &str) -> Record {
        let digest = generation.label().digest.to_string();
        let (mut previous, mut history) = (None, Vec::new());
        if let Some(record) = &self.state().record {
            previous = match record.active.digest == digest {
                true => record.previous.clone(),
                false => Some(record.active.digest.clone()),
            };
            history.push(record.active.clone());
            history.extend(record.history.iter().cloned());
            let mut seen = std::collections::BTreeSet::from([digest.clone()]);
            history.retain(|activation: &Activation| seen.insert(activation.digest.clone()));
            history.truncate(HISTORY_MAX);
        }
        Record {
            active: Activation {
                digest,
                by: by.to_owned(),
                at: SystemTime::now(),
            },
            previous,
            settings: settings_digest(generation.config()),
            history,
        }
    }

    pub(super) fn set_record(&self, record: Record, pushed: bool) {
        let mut state = self.state();
        state.record = Some(record);
        state.pushed = pushed;
    }

    /// The swap: what was active becomes the previous version, the new one active, in this order, so that a fallback
    /// finds one of both always. With `keep_previous`, a generation of the same version does not become its own
    /// predecessor.
    pub(super) fn publish(&self, generation: Arc<Generation>, keep_previous: bool) -> Activated {
        let past = Past {
            label: Arc::clone(generation.label()),
            stats: Arc::clone(&generation.sandbox.stats),
        };
        let old = self.active.load_full();
        let digest = Arc::clone(&past.label.digest);
        let replaced = old
            .as_ref()
            .filter(|old| keep_previous && old.label().digest != digest);
        if let Some(replaced) = replaced {
            self.previous.store(Some(Arc::clone(replaced)));
        }
        self.active.store(Some(generation));
        if let Some(old) = &old {
            old.sandbox.retired.store(true, Ordering::Relaxed);
        }
        let mut state = self.state();
        state.generations.push(past);
        // With the last other holder of the label go the calls and streams that could still count.
        state
            .generations
            .retain(|past| Arc::strong_count(&past.label) > 1);
        Activated {
            old: old.map(|old| old.id()),
            streams_kept: state.streams(),
        }
    }

    /// Removes artifacts of old versions and remembers which are left.
    pub(super) fn prune(&self, artifacts: &Artifacts) -> std::io::Result<()> {
        let record = self.state().record.clone();
        if let Some(record) = record {
            artifacts.prune(&self.name, &record)?;
        }
        let kept = artifacts.kept(&self.name)?;
        self.state().kept = kept;
        Ok(())
    }

    /// The plugin, for lists.
    pub(super) fn info(&self) -> PluginInfo {
        let active = self.active.load_full();
        let state = self.state();
        PluginInfo {
            name: self.name.to_string(),
            active: active
                .as_ref()
                .map(|active| active.label().digest.to_string()),
            generation: active.as_ref().map(|active| active.id().0),
            versions: state.versions(active.as_deref()),
            grants: state.config.grants.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Open streams of all versions.
    fn streams(&self) -> u64 {
        self.generations
            .iter()
            .map(|past| past.label.streams.load(Ordering::Relaxed))
            .sum()
    }

    /// Versions, newest activation first.
    fn versions(&self, active: Option<&Generation>) -> Vec<VersionInfo> {
        let mut digests: Vec<&str> = Vec::new();
        let mut add = |digest| {
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        };
        if let Some(active) = active {
            add(&active.label().digest);
        }
        if let Some(record) = &self.record {
            add(&record.active.digest);
            record.previous.iter().for_each(|digest| add(digest));
            record
                .history
                .iter()
                .for_each(|activation| add(&activation.digest));
        }
        self.kept.iter().for_each(|kept| add(&kept.digest));
        self.generations
            .iter()
            .rev()
            .for_each(|past| add(&past.label.digest));
        let active = active.map(|active| &*active.label().digest);
        let infos = digests
            .into_iter()
            .map(|digest| self.version(digest, active == Some(digest)));
        infos
            .filter(|info| info.bytes.is_some() || info.state != VersionState::Kept)
            .collect()
    }

    fn version(&self, digest: &str, active: bool) -> VersionInfo {
        let mut generations = self
            .generations
            .iter()
            .filter(|past| *past.label.digest == *digest);
        let sum = |count: fn(&GenerationLabel) -> u64| {
            generations.clone().map(|past| count(&past.label)).sum()
        };
        let streams = sum(|label| label.streams.load(Ordering::Relaxed));
        let sessions = sum(|label| label.sessions.load(Ordering::Relaxed));
        let newest = generations.next_back();
        let counts = newest
            .map(|past| Counts::of(&past.stats))
            .unwrap_or_default();
        let activation = self.record.as_ref().and_then(|record| {
            let mut all = std::iter::once(&record.active).chain(&record.history);
            all.find(|activation| activation.digest == digest)
        });
        VersionInfo {
            digest: digest.to_owned(),
            bytes: self
                .kept
                .iter()
                .find(|kept| kept.digest == digest)
                .map(|kept| kept.bytes),
            state: match (active, streams) {
                (true, _) => VersionState::Active,
                (false, 0) => VersionState::Kept,
                (false, _) => VersionState::Draining,
            },
            since: newest
                .map(|past| past.label.since)
                .or(activation.map(|activation| activation.at)),
            by: activation
                .map_or(BY_CONFIG, |activation| &activation.by)
                .to_owned(),
            streams,
            sessions,
            calls: counts.ok,
            errors: counts.errors,
            decision_ns: counts
                .nanos
                .checked_div(counts.ok + counts.errors)
                .unwrap_or(0),
        }
    }
}

#[derive(Default)]
struct Counts {
    ok: u64,
    errors: u64,
    nanos: u64,
}

impl Counts {
    /// Of all workers.
    fn of(stats: &[CallStats]) -> Self {
        let mut counts = Self::default();
        for worker in stats {
            counts.ok += worker.ok.load(Ordering::Relaxed);
            counts.nanos += worker.nanos.load(Ordering::Relaxed);
            let errors = [
                &worker.traps,
                &worker.deadlines,
                &worker.bad_decisions,
                &worker.refused_writes,
            ];
            counts.errors += errors
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .sum::<u64>();
        }
        counts
    }
}

/// Digest of what a version was activated with beside its bytes.
fn settings_digest(config: &PluginConfig) -> String {
    let text = format!(
        "{:?} {:?} {:?} {:?}",
        config.grants, config.settings, config.limits, config.sessions
    );
    super::artifact::hex(&Sha256::digest(text))
}
