//! Holding all other writes back for a moment, so that a batch finds the store as it was read.

use super::shared::commit::Committer;
use super::writer::{Command, Pending};
use super::{CommitError, Committed, Late, Store, WriteBatch, closed};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// While it is there nothing is written; dropped, or after its time, others go on.
pub struct Hold {
    committer: Committer,
    next: Sender<Pending>,
    permit: OwnedSemaphorePermit,
    at_most: Duration,
}

impl Store {
    /// Holds all other writes back, for at most so long. What waits is applied afterwards, in its order; the newest state is
    /// the newest until then.
    ///
    /// # Errors
    /// If the store is closed. If the future is dropped, nothing is held.
    pub async fn hold(&self, at_most: Duration) -> Result<Hold, CommitError> {
        let place = Arc::clone(&self.inner.places).acquire_owned().await;
        let permit = place.map_err(|_| closed())?;
        let ((held, is_held), (next, queue)) = (oneshot::channel(), channel());
        let command = Command::Hold(held, queue, at_most);
        self.inner.commands.send(command).map_err(|_| closed())?;
        is_held.await.map_err(|_| closed())?;
        Ok(Hold {
            committer: self.inner.committer.clone(),
            next,
            permit,
            at_most,
        })
    }
}

impl Hold {
    /// Applies a batch before all that waits, and ends the hold; see [`Store::commit_noting`]. What other processes write to
    /// a bucket that they share is not held back.
    ///
    /// # Errors
    /// As for [`Store::commit`]; [`CommitError::Unavailable`] if its time is over.
    pub async fn commit_noting(
        self,
        batch: WriteBatch,
        notes: Vec<Arc<AtomicU64>>,
        late: Option<&Late<'_>>,
    ) -> Result<Committed, CommitError> {
        let over = || {
            let reason = format!(
                "other writes were held back for {:?}, no longer",
                self.at_most
            );
            CommitError::Unavailable(reason)
        };
        if let Some(backend) = self.committer.backend_of(&batch)? {
            let Self {
                committer,
                next,
                permit,
                at_most: _,
            } = self;
            // What arrives has to be applied meanwhile.
            drop((next, permit));
            return committer.commit(backend, batch, &notes, late).await;
        }
        let (done, answer) = oneshot::channel();
        let pending = Pending {
            batch,
            notes,
            done: Box::new(|committed| drop(done.send(committed))),
            _permit: self.permit,
        };
        self.next.send(pending).map_err(|_| over())?;
        // Sent in the very moment in which the time was over, it is dropped unanswered.
        answer.await.unwrap_or_else(|_| Err(over()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BackendKind, BucketConfig, ValueKind, Write};
    use std::path::Path;

    fn store() -> (Store, impl Fn(&str) -> WriteBatch) {
        let config = BucketConfig::new("notes", BackendKind::Memory, ValueKind::Bytes);
        let store = Store::open(&[config], Path::new("")).expect("a store");
        let bucket = store.snapshot().bucket_id("notes").expect("a bucket");
        let put = move |key: &str| WriteBatch {
            writes: vec![Write::put(bucket, key, *b"x")],
            ..WriteBatch::default()
        };
        (store, put)
    }

    #[tokio::test]
    async fn what_others_write_meanwhile_comes_after_what_the_holder_does() {
        let (store, put) = store();
        let hold = store.hold(Duration::from_secs(30)).await.expect("held");
        let other = tokio::spawn({
            let (store, batch) = (store.clone(), put("other"));
            async move { store.commit(batch).await.expect("applied").revision }
        });
        tokio::task::yield_now().await;
        let own = hold.commit_noting(put("own"), Vec::new(), None).await;
        assert_eq!(own.expect("applied").revision.0, 1);
        assert_eq!(other.await.expect("no panic").0, 2);
    }

    #[tokio::test]
    async fn a_hold_ends_by_itself_and_when_it_is_dropped() {
        let (store, put) = store();
        let late = store.hold(Duration::from_millis(1)).await.expect("held");
        store.commit(put("a")).await.expect("applied");
        let late = late.commit_noting(put("b"), Vec::new(), None).await;
        assert!(matches!(late, Err(CommitError::Unavailable(_))), "{late:?}");
        drop(store.hold(Duration::from_secs(30)).await.expect("held"));
        store.commit(put("c")).await.expect("applied");
        assert_eq!(store.snapshot().revision().0, 2);
    }
}
