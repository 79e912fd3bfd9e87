//! The moment between a migration and the swap: requests that see migrated data are decided by the version that knows them.

use super::PluginSlot;
use crate::plugin::Generation;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A revision that no store reaches.
const NEVER: u64 = u64::MAX;

/// A generation that decides every request from a revision of the store on, though it is not published yet.
pub(super) struct Staged {
    generation: Arc<Generation>,
    /// The first revision that it decides on; none is so high until its batch is applied.
    from: Arc<AtomicU64>,
}

/// Has a generation on stage; takes it off when dropped.
pub(in crate::plugin) struct Stage {
    slot: Arc<PluginSlot>,
    from: Arc<AtomicU64>,
    data_since: Arc<AtomicU64>,
}

impl Stage {
    /// Puts a generation on stage. To be done by who has the turn to change the plugin. One that decides from there already
    /// goes on to do so.
    pub(in crate::plugin) fn new(slot: &Arc<PluginSlot>, generation: &Arc<Generation>) -> Self {
        let stage = Self {
            slot: Arc::clone(slot),
            from: Arc::new(AtomicU64::new(NEVER)),
            data_since: Arc::clone(&generation.sandbox.data_since),
        };
        let there = slot.staged.load_full();
        let decides = there.is_some_and(|there| {
            there.generation.id() == generation.id() && there.from.load(Ordering::Acquire) != NEVER
        });
        if !decides {
            slot.staged.store(Some(Arc::new(Staged {
                generation: Arc::clone(generation),
                from: Arc::clone(&stage.from),
            })));
            slot.note_tried();
        }
        stage
    }

    /// What has to be told the revision of the batch before anybody sees it.
    pub(in crate::plugin) fn notes(&self) -> [Arc<AtomicU64>; 2] {
        [Arc::clone(&self.from), Arc::clone(&self.data_since)]
    }

    /// Whether the generation decides on a state of this revision.
    pub(in crate::plugin) fn decides(&self, revision: u64) -> bool {
        self.from.load(Ordering::Acquire) <= revision
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let there = self.slot.staged.load();
        // Another one may be on stage by now, or one that was there before.
        if there
            .as_ref()
            .is_some_and(|there| Arc::ptr_eq(&there.from, &self.from))
        {
            self.slot.staged.compare_and_swap(&there, None);
            self.slot.note_tried();
        }
    }
}

impl PluginSlot {
    /// What has to be told the first revision that a version decides on, if it is on stage; nothing, if it decides by now.
    pub(in crate::plugin) fn notes_of(&self, digest: &str) -> Option<Vec<Arc<AtomicU64>>> {
        let there = self.staged.load();
        let there = there.as_ref()?;
        let is_it = *there.generation.label().digest == *digest;
        is_it.then(|| match there.from.load(Ordering::Acquire) {
            NEVER => {
                let data_since = Arc::clone(&there.generation.sandbox.data_since);
                vec![Arc::clone(&there.from), data_since]
            }
            _ => Vec::new(),
        })
    }

    /// The generation on stage, if it is its turn at this revision. To be asked after the state of the store was taken, and
    /// before the active generation is: whoever finds nobody here, and sees migrated data, finds the new one active.
    #[inline]
    pub fn staged(&self, revision: u64) -> Option<Arc<Generation>> {
        if !self.tried.load(Ordering::Acquire) {
            return None;
        }
        let staged = self.staged.load();
        let staged = staged.as_ref()?;
        (staged.from.load(Ordering::Acquire) <= revision).then(|| Arc::clone(&staged.generation))
    }
}
