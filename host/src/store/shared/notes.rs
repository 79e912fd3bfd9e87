//! Who is to be told of a transaction before a reader can see it.
//!
//! The log may tell of a transaction before its answer is here. So what it tells of keys that such a transaction writes
//! waits for the answer; all else goes by.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use tokio::sync::Notify;

use super::Transaction;
use super::link::Incoming;
use crate::store::Revision;

/// Buckets and keys that a transaction writes.
type Places = HashSet<(Box<str>, Box<str>), RandomState>;

#[derive(Default)]
pub(super) struct Notes {
    state: Mutex<State>,
    answered: Notify,
}

#[derive(Default)]
struct State {
    /// What transactions write that have no answer yet.
    awaited: Vec<Arc<Places>>,
    /// To be told the store's revision of the first state that has this one of the engine's.
    due: Vec<(Revision, Vec<Arc<AtomicU64>>)>,
}

/// A transaction that has no answer yet.
pub(super) struct Awaited<'n> {
    notes: &'n Notes,
    places: Arc<Places>,
}

impl Notes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the transaction is sent.
    pub(super) fn wait_for(&self, transaction: &Transaction) -> Awaited<'_> {
        let writes = transaction.writes.iter();
        let places = writes.map(|write| (write.bucket.clone(), write.key.clone()));
        let places = Arc::new(places.collect());
        self.state().awaited.push(Arc::clone(&places));
        Awaited {
            notes: self,
            places,
        }
    }

    /// Waits for the answer, if this may be of a transaction that has none.
    pub(super) async fn until_answered(&self, incoming: &Incoming) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // An answer that comes after the look is not missed.
            answered.as_mut().enable();
            if !self.is_awaited(incoming) {
                return;
            }
            answered.await;
        }
    }

    fn is_awaited(&self, incoming: &Incoming) -> bool {
        let state = self.state();
        match incoming {
            Incoming::Current(_) | Incoming::Left(..) => false,
            Incoming::Content(_) => !state.awaited.is_empty(),
            Incoming::Changes { changes, .. } => state.awaited.iter().any(|places| {
                let mut changes = changes.iter();
                changes.any(|it| places.contains(&(it.bucket.clone(), it.key.clone())))
            }),
        }
    }

    /// The state `seen`, which nobody can see yet, has everything up to `revision`.
    pub(super) fn tell(&self, revision: Revision, seen: Revision) {
        self.state().due.retain(|(at, notes)| {
            let is_in = *at <= revision;
            if is_in {
                for note in notes {
                    note.store(seen.0, Ordering::Release);
                }
            }
            !is_in
        });
    }
}

impl Awaited<'_> {
    /// It was applied.
    pub(super) fn applied(self, revision: Revision, notes: Vec<Arc<AtomicU64>>) {
        self.notes.state().due.push((revision, notes));
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let mut state = self.notes.state();
        let is_other = |places: &Arc<Places>| !Arc::ptr_eq(places, &self.places);
        state.awaited.retain(is_other);
        drop(state);
        self.notes.answered.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shared::{SharedChange, SharedWrite};
    use futures_util::FutureExt;

    fn change(key: &str) -> Incoming {
        Incoming::Changes {
            revision: Revision(7),
            author: None,
            changes: vec![SharedChange {
                bucket: "b".into(),
                key: key.into(),
                after: None,
            }],
        }
    }

    #[test]
    fn only_what_a_transaction_without_an_answer_writes_waits() {
        let notes = Notes::default();
        let transaction = Transaction {
            writes: vec![SharedWrite {
                bucket: "b".into(),
                key: "mine".into(),
                value: None,
            }],
            ..Transaction::default()
        };
        let awaited = notes.wait_for(&transaction);
        let passes = |incoming: &Incoming| notes.until_answered(incoming).now_or_never().is_some();
        assert!(passes(&change("other")) && passes(&Incoming::Current(Revision(9))));
        assert!(!passes(&change("mine")));
        let note = Arc::new(AtomicU64::new(0));
        awaited.applied(Revision(7), vec![Arc::clone(&note)]);
        assert!(passes(&change("mine")));
        notes.tell(Revision(6), Revision(40));
        assert_eq!(note.load(Ordering::Acquire), 0);
        notes.tell(Revision(7), Revision(41));
        notes.tell(Revision(8), Revision(42));
        assert_eq!(note.load(Ordering::Acquire), 41);
    }
}
