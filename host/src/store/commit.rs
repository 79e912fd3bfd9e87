//! How a batch gets to the writer, or to the engine of the bucket that it writes to.

use super::writer::{Command, Pending};
use super::{CommitError, Committed, Revision, SUBMITTED_BATCHES_MAX, Store, WriteBatch, closed};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::{TryAcquireError, oneshot};

/// Who is told that a batch is written, and not seen in time.
pub type Late<'l> = dyn Fn(CommitError) + Sync + 'l;

impl Store {
    /// Applies a batch, all or none, and returns once it is durable (as far as its backend is) and visible to every
    /// reader. A batch that changes nothing keeps the revision.
    ///
    /// # Errors
    /// See [`CommitError`]; nothing of the batch was applied, but for [`CommitError::Unseen`] and perhaps
    /// [`CommitError::Unknown`]. If the future is dropped the batch may still be applied.
    pub async fn commit(&self, batch: WriteBatch) -> Result<Committed, CommitError> {
        self.commit_noting(batch, Vec::new(), None).await
    }

    /// The same; before any reader can see the new state, its revision is stored in each of `notes`. With `late`, what is
    /// written and not seen in time is told there, and waited for on.
    ///
    /// # Errors
    /// As for [`Self::commit`]; with `late`, [`CommitError::Unseen`] only if it cannot be seen any more: the engine has lost it,
    /// or the store is closed.
    pub async fn commit_noting(
        &self,
        batch: WriteBatch,
        notes: Vec<Arc<AtomicU64>>,
        late: Option<&Late<'_>>,
    ) -> Result<Committed, CommitError> {
        let committer = &self.inner.committer;
        // What waits for an engine takes no place from those who need none.
        if let Some(backend) = committer.backend_of(&batch)? {
            return committer.commit(backend, batch, &notes, late).await;
        }
        let place = Arc::clone(&self.inner.places).acquire_owned().await;
        let (done, answer) = oneshot::channel();
        let pending = Pending {
            batch,
            notes,
            // Whoever no longer waits does not need the answer.
            done: Box::new(|committed| drop(done.send(committed))),
            _permit: place.map_err(|_| closed())?,
        };
        self.inner
            .commands
            .send(Command::Commit(pending))
            .map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Commits a batch that nobody here waits to see: of one to an engine that proxies share, the engine has it then, and
    /// readers of this process may still wait for what came before it. Nor do the bucket's limits count it until they see it.
    /// The revision that it has made, by which its entries are told.
    ///
    /// # Errors
    /// As for [`Self::commit`], but for [`CommitError::Unseen`].
    pub async fn commit_unseen(&self, batch: WriteBatch) -> Result<Revision, CommitError> {
        let committer = &self.inner.committer;
        match committer.backend_of(&batch)? {
            Some(backend) => committer.commit_unseen(backend, batch).await,
            None => Ok(self.commit(batch).await?.revision),
        }
    }

    /// Hands a batch to the writer, or to the thread of the engine that it writes to, without waiting; those of one thread to
    /// one backend are applied in the order they were handed over. `done` is called by that thread, and has to be short; one
    /// that has not begun within the engine's timeout is refused. If the store is closed before, `done` is dropped instead.
    ///
    /// # Errors
    /// [`CommitError::Unavailable`] if too many wait already for the same, or the store is closed, and
    /// [`CommitError::Mixed`]: it is not applied, and `done` is not called.
    pub fn submit(
        &self,
        batch: WriteBatch,
        done: impl FnOnce(Result<Committed, CommitError>) + Send + 'static,
    ) -> Result<(), CommitError> {
        let committer = &self.inner.committer;
        if let Some(backend) = committer.backend_of(&batch)? {
            return committer.submit(backend, batch, done);
        }
        let place = Arc::clone(&self.inner.submitted).try_acquire_owned();
        let permit = place.map_err(|error| match error {
            TryAcquireError::NoPermits => CommitError::Unavailable(format!(
                "{SUBMITTED_BATCHES_MAX} batches that nobody waits for are waiting already"
            )),
            TryAcquireError::Closed => closed(),
        })?;
        let pending = Pending {
            batch,
            notes: Vec::new(),
            done: Box::new(done),
            _permit: permit,
        };
        self.inner
            .commands
            .send(Command::Commit(pending))
            .map_err(|_| closed())
    }
}
