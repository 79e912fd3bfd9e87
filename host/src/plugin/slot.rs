//! One plugin of the config: the pointers that a swap stores to, and what is remembered of its versions.

use super::artifact::{Artifacts, Kept};
use super::canary::Canary;
use super::compile::Loaded;
use super::deploy::millis;
use super::record::Record;
use super::report::{DeployError, Deployed, Outcome, PluginInfo};
use super::shadow::Shadow;
use super::versions::{Known, Past};
use super::{Generation, GenerationId, PluginConfig, RequestHead, Role};
use crate::metrics::CallTotals;
use arc_swap::{ArcSwapOption, Guard};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod recorded;
mod stage;

pub(super) use recorded::{canary_record, record_after};
pub(super) use stage::Stage;
use stage::Staged;

/// Who activated a version that came from the config.
pub const BY_CONFIG: &str = "config";

/// A plugin of the config, as routes hold it: the pointer that a swap stores to.
pub struct PluginSlot {
    name: Arc<str>,
    pub(super) active: ArcSwapOption<Generation>,
    pub(super) previous: ArcSwapOption<Generation>,
    canary: ArcSwapOption<Canary>,
    shadow: ArcSwapOption<Shadow>,
    staged: ArcSwapOption<Staged>,
    /// Whether there is any of these three: without one, a request reads only this.
    tried: AtomicBool,
    state: Mutex<State>,
    /// Whether a deploy is running.
    busy: AtomicBool,
}

struct State {
    config: Arc<PluginConfig>,
    /// What is active, what was, what is tried.
    record: Option<Record>,
    kept: Vec<Kept>,
    /// Every generation that was active or tried and that something still belongs to.
    generations: Vec<Past>,
    /// Calls of those that are gone.
    gone: CallTotals,
    /// How often the guard took a version back, by limit.
    guard_trips: BTreeMap<&'static str, u64>,
}

/// What a publish replaced.
pub(super) struct Activated {
    /// Generations that nothing needs any more on the workers.
    pub(super) old: Vec<GenerationId>,
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
            canary: ArcSwapOption::empty(),
            shadow: ArcSwapOption::empty(),
            staged: ArcSwapOption::empty(),
            tried: AtomicBool::new(false),
            state: Mutex::new(State {
                config: Arc::new(config.clone()),
                record: None,
                kept: Vec::new(),
                generations: Vec::new(),
                gone: CallTotals::default(),
                guard_trips: BTreeMap::new(),
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

    /// The canary's generation, if there is one and this request is in its share.
    #[inline]
    pub fn canary_for(&self, head: &RequestHead) -> Option<Arc<Generation>> {
        if !self.tried.load(Ordering::Relaxed) {
            return None;
        }
        let canary = self.canary.load();
        let canary = canary.as_ref().filter(|canary| canary.takes(head))?;
        Some(Arc::clone(&canary.generation))
    }

    /// The version that is compared with the active one; without any it may be told for a moment that there is one.
    #[inline]
    pub fn compared(&self) -> Option<Guard<Option<Arc<Shadow>>>> {
        self.tried
            .load(Ordering::Relaxed)
            .then(|| self.shadow.load())
    }

    /// The shadow.
    pub(super) fn shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.load_full()
    }

    /// Lets go of the generation before, if it is of this version.
    pub(super) fn drop_previous(&self, digest: &str) {
        let is = |one: &Arc<Generation>| *one.label().digest == *digest;
        if self.previous.load().as_ref().is_some_and(is) {
            self.previous.store(None);
        }
    }

    /// Every generation that requests may meet: for workers that have just started.
    pub fn serving(&self) -> Vec<Arc<Generation>> {
        let canary = self.canary.load_full();
        let canary = canary.map(|canary| Arc::clone(&canary.generation));
        self.active.load_full().into_iter().chain(canary).collect()
    }

    /// The canary.
    pub(super) fn canary(&self) -> Option<Arc<Canary>> {
        self.canary.load_full()
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
        self.state()
            .record
            .as_ref()
            .is_some_and(|record| record.pushed)
    }

    /// What is recorded.
    pub(super) fn record(&self) -> Option<Record> {
        self.state().record.clone()
    }

    /// What a rollback would activate.
    pub(super) fn rollback_target(&self) -> Option<String> {
        self.state().record.as_ref()?.previous.clone()
    }

    /// The digest of the version that a digest's beginning names.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub(super) fn find_version(&self, wanted: &str) -> Result<String, DeployError> {
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

    /// The answer to a deploy of what is there already, in the same role.
    pub(super) fn unchanged(&self, digest: &str, role: &Role) -> Option<Deployed> {
        let generation = match role {
            Role::Active => self.active.load_full()?,
            Role::Canary(share) => {
                let canary = self.canary.load_full()?;
                (canary.share == *share).then(|| Arc::clone(&canary.generation))?
            }
            Role::Shadow(sample) => {
                let shadow = self.shadow.load_full()?;
                (shadow.sample() == *sample).then(|| Arc::clone(shadow.generation()))?
            }
        };
        let state = self.state();
        let same = generation.sandbox.config.same_sandbox(&state.config);
        if *generation.label().digest != *digest || !same {
            return None;
        }
        Some(Deployed {
            plugin: self.name.to_string(),
            digest: digest.to_owned(),
            generation: Some(generation.id().0),
            previous: Some(digest.to_owned()),
            outcome: Outcome::Unchanged,
            bytes: generation.sandbox.code.bytes,
            imports: generation.sandbox.code.imports.clone(),
            cached: true,
            compile_ms: 0.0,
            init_ms: 0.0,
            publish_us: 0.0,
            migrated: None,
            not_migrated: None,
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
            migrated: None,
            not_migrated: None,
            streams_kept: self.state().streams(),
        }
    }

    /// The record of a generation about to be active.
    pub(super) fn next_record(&self, generation: &Generation, by: &str, pushed: bool) -> Record {
        record_after(self.record().as_ref(), generation, by, pushed)
    }

    pub(super) fn set_record(&self, record: Record) {
        self.state().record = Some(record);
    }

    /// The swap: what was active becomes the previous version, the new one active, in this order, so that a fallback
    /// finds one of both always. With `keep_previous`, a generation of the same version does not become its own
    /// predecessor; what failed is no predecessor. A canary ends, or gives way to another.
    pub(super) fn publish(
        &self,
        generation: Arc<Generation>,
        canary: Option<Arc<Canary>>,
        keep_previous: bool,
        failed: Option<&str>,
    ) -> Activated {
        let id = generation.id();
        let digest = Arc::clone(&generation.label().digest);
        let past = Past::of(&generation);
        let old = self.active.load_full();
        let failed = |one: &Generation| failed == Some(&*one.label().digest);
        if keep_previous && let Some(old) = old.as_ref().filter(|old| old.label().digest != digest)
        {
            if !failed(old) {
                self.previous.store(Some(Arc::clone(old)));
            } else if self
                .previous
                .load()
                .as_ref()
                .is_some_and(|one| one.label().digest == digest)
            {
                // The way back was taken.
                self.previous.store(None);
            }
        }
        self.active.store(Some(generation));
        if let Some(old) = old.as_ref().filter(|old| old.id() != id) {
            old.sandbox.retired.store(true, Ordering::Relaxed);
        }
        let canary = self.set_canary(canary);
        let mut state = self.state();
        state.note(past);
        let old = old.map(|old| old.id()).into_iter().chain(canary);
        Activated {
            old: old.filter(|old| *old != id).collect(),
            streams_kept: state.streams(),
        }
    }

    /// Puts a canary in the place of another, or of none. The generation that the workers need no longer, if there is one.
    pub(super) fn set_canary(&self, canary: Option<Arc<Canary>>) -> Option<GenerationId> {
        if let Some(canary) = &canary {
            self.state().note(Past::of(&canary.generation));
        }
        let now = canary.as_ref().map(|canary| canary.generation.id());
        let old = self.canary.swap(canary);
        self.note_tried();
        let old = old.filter(|old| now != Some(old.generation.id()))?;
        let old = &old.generation;
        // One that was promoted is active by now.
        let is_active = self
            .active
            .load()
            .as_ref()
            .is_some_and(|one| one.id() == old.id());
        old.sandbox.retired.store(!is_active, Ordering::Relaxed);
        Some(old.id())
    }

    /// Puts a shadow in the place of another, or of none; the other one's thread has ended when this returns.
    pub(super) fn set_shadow(&self, shadow: Option<Arc<Shadow>>) {
        if let Some(shadow) = &shadow {
            self.state().note(Past {
                decides: false,
                ..Past::of(shadow.generation())
            });
        }
        let old = self.shadow.swap(shadow);
        self.note_tried();
        if let Some(old) = old {
            old.stop();
        }
    }

    fn note_tried(&self) {
        let tried = self.canary.load().is_some()
            || self.shadow.load().is_some()
            || self.staged.load().is_some();
        self.tried.store(tried, Ordering::Release);
    }

    /// What the guard looks at, with what it has counted: a canary, and an active version for some time.
    pub(super) fn watched(&self, probation: Duration) -> Vec<(GenerationId, CallTotals)> {
        let active = self.active.load().as_ref().map(|active| active.id());
        let canary = self
            .canary
            .load()
            .as_ref()
            .map(|canary| canary.generation.id());
        let state = self.state();
        let age = state
            .record
            .as_ref()
            .and_then(|record| record.active.at.elapsed().ok());
        let active = active.filter(|_| age.is_none_or(|age| age < probation));
        let is_watched = |past: &&Past| [active, canary].contains(&Some(past.label.id));
        let watched = state.generations.iter().filter(is_watched);
        watched.map(|past| (past.label.id, past.totals())).collect()
    }

    /// Counts what the guard did.
    pub(super) fn note_trip(&self, limit: &'static str) {
        *self.state().guard_trips.entry(limit).or_default() += 1;
    }

    /// Versions but one with open streams, that activated longest ago first, each with their number. With `active`, the
    /// active version counts as one of them.
    pub(super) fn draining(&self, without: &str, active: bool) -> Vec<(String, u64)> {
        let now = self.active.load_full();
        let canary = self.canary.load_full();
        let spared = |digest: &str| {
            let is = |one: &Generation| *one.label().digest == *digest;
            digest == without
                || (!active && now.as_deref().is_some_and(is))
                || canary.as_ref().is_some_and(|canary| is(&canary.generation))
        };
        let mut draining: Vec<(String, u64)> = Vec::new();
        // Oldest first; a version's last generation says when it was activated.
        for past in self.state().generations.iter().rev() {
            let (digest, streams) = (&*past.label.digest, past.streams());
            if streams == 0 || spared(digest) {
                continue;
            }
            match draining.iter_mut().find(|(known, _)| known == digest) {
                Some((_, sum)) => *sum += streams,
                None => draining.push((digest.to_owned(), streams)),
            }
        }
        draining.reverse();
        draining
    }

    /// Removes artifacts of old versions and remembers which are left.
    pub(super) fn prune(&self, artifacts: &Artifacts) -> std::io::Result<()> {
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

    /// The plugin, for lists.
    pub(super) fn info(&self) -> PluginInfo {
        let active = self.active.load_full();
        let canary = self.canary.load_full();
        let shadow = self.shadow.load_full();
        let state = self.state();
        let name =
            |generation: &Generation| (generation.id(), generation.label().digest.to_string());
        let [active, canary, tried] = [
            active.as_deref(),
            canary.as_ref().map(|canary| &*canary.generation),
            shadow.as_ref().map(|shadow| &**shadow.generation()),
        ]
        .map(|generation| generation.map(name));
        fn borrowed(one: &Option<(GenerationId, String)>) -> Option<(GenerationId, &str)> {
            one.as_ref().map(|(id, digest)| (*id, digest.as_str()))
        }
        let known = Known {
            record: state.record.as_ref(),
            kept: &state.kept,
            generations: &state.generations,
            active: borrowed(&active),
            canary: borrowed(&canary),
            shadow: borrowed(&tried),
        };
        PluginInfo {
            name: self.name.to_string(),
            versions: known.list(),
            canary: canary.as_ref().and_then(|_| known.canary_info()),
            shadow: shadow.map(|shadow| shadow.info()),
            failing: known.failing(),
            guard_trips: state
                .guard_trips
                .iter()
                .map(|(limit, n)| (*limit, *n))
                .collect(),
            grants: state.config.grants.clone(),
            totals: state.totals(),
            generation: active.as_ref().map(|(id, _)| id.0),
            active: active.map(|(_, digest)| digest),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Remembers a generation that may decide requests, and forgets those that nothing belongs to any more.
    fn note(&mut self, past: Past) {
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
    fn streams(&self) -> u64 {
        self.generations.iter().map(Past::streams).sum()
    }

    /// Calls of all generations.
    fn totals(&self) -> CallTotals {
        let all = self.generations.iter().filter(|past| past.decides);
        all.map(Past::totals)
            .fold(self.gone, |sum, totals| sum.plus(&totals))
    }
}
