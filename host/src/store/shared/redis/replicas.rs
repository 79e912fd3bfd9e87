//! Waiting for replicas: one WAIT at a time, for all who have written by then.
//!
//! The server does nothing else that comes by a connection while one waits on it. If each writer waited for itself, a
//! replica that is away would have them wait one after the other.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::sync::Mutex;

/// The rounds of waiting on connections of kind `C`.
pub(super) struct Rounds<C> {
    begun: AtomicU64,
    last: Mutex<Option<Round<C>>>,
}

struct Round<C> {
    number: u64,
    connection: C,
    /// How many replicas have all of before.
    have: Result<u32, String>,
}

impl<C> Default for Rounds<C> {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            last: Mutex::new(None),
        }
    }
}

impl<C> Rounds<C> {
    /// For who has just got the answer to a write on the connection: what a round said that began afterwards, or what
    /// `wait` does, once no other round is under way.
    pub(super) async fn join(
        &self,
        connection: C,
        is_it: impl Fn(&C) -> bool,
        wait: impl Future<Output = Result<u32, String>>,
    ) -> Result<u32, String> {
        let before = self.begun.load(SeqCst);
        let mut last = self.last.lock().await;
        if let Some(round) = &*last
            && round.number > before
            && is_it(&round.connection)
        {
            return round.have.clone();
        }
        let number = self.begun.fetch_add(1, SeqCst) + 1;
        let have = wait.await;
        *last = Some(Round {
            number,
            connection,
            have: have.clone(),
        });
        have
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn who_writes_while_one_waits_joins_the_next_round() {
        let (rounds, waits) = (Rounds::default(), Cell::new(0));
        let join = |connection| {
            let wait = async {
                waits.set(waits.get() + 1);
                tokio::task::yield_now().await;
                Ok(waits.get())
            };
            rounds.join(connection, move |other: &u8| *other == connection, wait)
        };
        let all = tokio::join!(join(1), join(1), join(1), join(2));
        // The first waits for itself, and the others for what they all wrote; another connection tells nothing.
        assert_eq!(all, (Ok(1), Ok(2), Ok(2), Ok(3)));
        assert_eq!(join(2).await, Ok(4));
    }
}
