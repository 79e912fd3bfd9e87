//! A gate for what a fleet agrees on: what an engine tells of it waits, for a moment, until this process is ready for it.
//!
//! Everything that came after it at that engine waits behind it, so readers never see a part. Nothing else does: not the
//! writer, not what other backends have.

use super::bucket::FLEET;
use super::shared::link::{Incoming, Link};
use super::writer::Command;
use super::{BackendKind, Store};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

/// What becomes of an entry of the fleet that has arrived.
pub enum Passage {
    /// Readers may see it.
    Open,
    /// They may, once the revision of the first state that has it is stored in each of these.
    Noting(Vec<Arc<AtomicU64>>),
    /// Not yet: it is asked for again when [`Store::ask_gate`] says so, or at this moment.
    Wait(Instant),
}

/// Asked before readers see an entry of the fleet that an engine tells of.
pub trait Gate: Send + Sync + 'static {
    /// What becomes of it; `anew` if everything is loaded anew, so that what came between may not be told. Called by the
    /// store's writer, so it has to be quick. It does not wait for ever: asked after the moment that it named, it lets it
    /// pass.
    fn arrives(&self, key: &str, value: &[u8], anew: bool) -> Passage;
}

/// Where the gate of a store is, once there is one.
pub(super) type GatePlace = Arc<OnceLock<Weak<dyn Gate>>>;

impl Store {
    /// Has a gate asked from now on, for as long as it is there; to be called once.
    pub fn set_gate(&self, gate: Weak<dyn Gate>) {
        // A second one would be a mistake of the caller's; the first one stays.
        let _ = self.inner.gate.set(gate);
    }

    /// Has the gate asked again for what waits.
    pub fn ask_gate(&self) {
        // A store that is closed shows nothing new to anybody.
        let _ = self.inner.commands.send(Command::AskGate);
    }
}

/// What waits at the gate. The writer's.
#[derive(Default)]
pub(super) struct Waiting {
    gate: GatePlace,
    by_backend: BTreeMap<BackendKind, Queue>,
}

/// What waits of a backend.
struct Queue {
    arrivals: VecDeque<Incoming>,
    /// When it was known that there is nothing newer than that, if it was.
    current_at: Option<Instant>,
    /// When the gate is to be asked again.
    until: Instant,
}

/// What readers may see.
#[derive(Default)]
pub(super) struct Passed {
    /// In the order in which it arrived.
    pub(super) open: VecDeque<Incoming>,
    /// When it was known that there is nothing newer, if it was.
    pub(super) current_at: Option<Instant>,
    /// To be told of the first state that has it.
    pub(super) notes: Vec<Arc<AtomicU64>>,
}

impl Waiting {
    pub(super) fn at(gate: GatePlace) -> Self {
        Self {
            gate,
            ..Self::default()
        }
    }

    /// Backends of which something waits.
    pub(super) fn backends(&self) -> Vec<BackendKind> {
        self.by_backend.keys().copied().collect()
    }

    /// Whether something of a backend waits.
    pub(super) fn holds(&self, backend: BackendKind) -> bool {
        self.by_backend.contains_key(&backend)
    }

    /// When the gate is to be asked again.
    pub(super) fn until(&self) -> Option<Instant> {
        self.by_backend.values().map(|queue| queue.until).min()
    }

    /// What readers may see of all that arrived.
    pub(super) fn pass(&mut self, backend: BackendKind, link: &Link) -> Passed {
        let gate = self.gate.get().and_then(Weak::upgrade);
        let mut passed = Passed::default();
        let waited = self.by_backend.remove(&backend);
        let mut waited = waited.map(|queue| (queue.arrivals, queue.current_at));
        loop {
            // While something waits, what comes after it stays in the link's inbox, which is bounded.
            let is_last = waited.is_none();
            let (mut arrivals, current_at) = waited.take().unwrap_or_else(|| link.take());
            while let Some(incoming) = arrivals.pop_front() {
                if let Some(gate) = &gate
                    && let Err(until) = ask(&**gate, &incoming, &mut passed.notes)
                {
                    arrivals.push_front(incoming);
                    let queue = Queue {
                        arrivals,
                        current_at,
                        until,
                    };
                    self.by_backend.insert(backend, queue);
                    return passed;
                }
                if matches!(incoming, Incoming::Content(_)) {
                    link.count_load();
                }
                passed.open.push_back(incoming);
            }
            passed.current_at = current_at.or(passed.current_at);
            if is_last {
                return passed;
            }
        }
    }
}

/// Asks for all that one arrival has, so that all of it is made ready at once; until when it waits, if it does.
fn ask(
    gate: &dyn Gate,
    incoming: &Incoming,
    notes: &mut Vec<Arc<AtomicU64>>,
) -> Result<(), Instant> {
    let (mut told, mut waits) = (Vec::new(), None);
    let anew = matches!(incoming, Incoming::Content(_));
    let mut ask_for = |key: &str, value: &[u8]| match gate.arrives(key, value, anew) {
        Passage::Open => {}
        Passage::Noting(notes) => told.extend(notes),
        Passage::Wait(until) => {
            waits = Some(waits.map_or(until, |first: Instant| first.min(until)))
        }
    };
    match incoming {
        Incoming::Changes { changes, .. } => {
            for change in changes.iter().filter(|change| &*change.bucket == FLEET) {
                if let Some(entry) = &change.after {
                    ask_for(&change.key, &entry.value);
                }
            }
        }
        Incoming::Content(content) => {
            let mut buckets = content.buckets.iter();
            let fleet = buckets.find(|bucket| &*bucket.name == FLEET);
            for record in fleet.iter().flat_map(|bucket| bucket.loaded.iter()) {
                ask_for(record.key(), &record.entry.value.to_bytes());
            }
        }
        Incoming::Current(_) | Incoming::Left(..) => {}
    }
    if let Some(until) = waits {
        return Err(until);
    }
    notes.append(&mut told);
    Ok(())
}

/// Tells the revision of a state that nobody can see yet.
pub(super) fn tell(notes: Vec<Arc<AtomicU64>>, seen: super::Revision) {
    for note in notes {
        note.store(seen.0, Ordering::Release);
    }
}
