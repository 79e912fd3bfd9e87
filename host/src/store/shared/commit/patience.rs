//! How long a commit goes on.

use crate::store::CommitError;
use crate::store::shared::link::{Held, Link, Progress};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a commit goes on: for the engine's timeout, and while something waits at the gate (`gate.rs`), which says itself
/// for how long. Not so what is written for the fleet: the gate may wait for whoever writes it.
pub(super) struct Patience<'l> {
    pub(super) link: &'l Link,
    pub(super) is_of_fleet: bool,
    pub(super) began: Instant,
}

impl<'l> Patience<'l> {
    /// The same, for what begins now.
    pub(super) fn anew(&self) -> Self {
        Self {
            began: Instant::now(),
            ..*self
        }
    }

    /// As it is now: it is later, if something waits by then.
    pub(super) fn deadline(&self) -> Instant {
        let from = match self.link.held() {
            _ if self.is_of_fleet => self.began,
            Held::Never | Held::Closed => self.began,
            Held::Now => Instant::now(),
            Held::Until(end) => self.began.max(end),
        };
        from + self.link.timeout()
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline()
    }

    /// Whether there is time for one more try.
    pub(super) fn check(&self) -> Result<(), CommitError> {
        match self.is_over() {
            false => Ok(()),
            true => Err(CommitError::Unavailable(format!(
                "writes before it, to the same keys or to a bucket close to a limit, took all of {:?}",
                self.link.timeout()
            ))),
        }
    }

    /// Waits as long as something waits at the gate: what a batch depends on does not come any nearer meanwhile.
    pub(super) async fn until_open(
        &self,
        progress: &mut watch::Receiver<Progress>,
    ) -> Result<(), CommitError> {
        if self.link.held() != Held::Now {
            return Ok(());
        }
        if self.is_of_fleet {
            return Err(CommitError::Unavailable(
                "what it depends on was changed, and waits until this process is ready for what the fleet has agreed on".into(),
            ));
        }
        // If the store is closed, the next try says so.
        let _ = progress.wait_for(|it| it.held != Held::Now).await;
        Ok(())
    }
}
