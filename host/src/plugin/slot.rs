//! One plugin of the config: the pointers that a swap stores to.

use super::canary::Canary;
use super::shadow::Shadow;
use super::versions::Past;
use super::{Generation, GenerationId, PluginConfig, RequestHead};
use crate::metrics::CallTotals;
use arc_swap::{ArcSwapOption, Guard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod remembered;
mod stage;
mod told;

use remembered::State;
pub(super) use remembered::{canary_record, record_after};
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
            state: Mutex::new(State::new(config)),
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
        // Of two at once, the one that looks last is the one that says.
        let _one_by_one = self.state();
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

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
