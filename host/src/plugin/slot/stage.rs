//! The moment between a migration and the swap: requests that see migrated data are decided by the version that knows them.

use super::PluginSlot;
use crate::plugin::Generation;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A generation that decides every request from a revision of the store on, though it is not published yet.
pub(super) struct Staged {
    generation: Arc<Generation>,
    /// The first revision that it decides on; none is so high until its batch is applied.
    from: Arc<AtomicU64>,
}

/// Has a generation on stage; takes it off when dropped.
pub(in crate::plugin) struct Stage {
    slot: Arc<PluginSlot>,
    notes: [Arc<AtomicU64>; 2],
}

impl Stage {
    /// Puts a generation on stage. To be done by who has the turn to change the plugin.
    pub(in crate::plugin) fn new(slot: &Arc<PluginSlot>, generation: &Arc<Generation>) -> Self {
        let from = Arc::new(AtomicU64::new(u64::MAX));
        let data_since = Arc::clone(&generation.sandbox.data_since);
        slot.staged.store(Some(Arc::new(Staged {
            generation: Arc::clone(generation),
            from: Arc::clone(&from),
        })));
        slot.note_tried();
        Self {
            slot: Arc::clone(slot),
            notes: [from, data_since],
        }
    }

    /// What has to be told the revision of the batch before anybody sees it.
    pub(in crate::plugin) fn notes(&self) -> [Arc<AtomicU64>; 2] {
        self.notes.clone()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.slot.staged.store(None);
        self.slot.note_tried();
    }
}

impl PluginSlot {
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
