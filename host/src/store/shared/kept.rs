//! The one connection that loads and commits of a proxy share.

use super::EngineError;
use std::time::Instant;
use tokio::sync::Mutex;

/// A connection that is made by the first who needs it, and kept until it is of no use.
pub(super) struct Kept<C> {
    state: Mutex<State<C>>,
}

struct State<C> {
    connection: Option<C>,
    /// When making one failed last, and why.
    failed: Option<(Instant, EngineError)>,
}

impl<C: Clone> Kept<C> {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                connection: None,
                failed: None,
            }),
        }
    }

    /// The connection if it is usable, else a new one. Whoever waits while another one fails to make it fails, too,
    /// instead of trying the same again.
    pub(super) async fn get(
        &self,
        usable: impl Fn(&C) -> bool,
        make: impl Future<Output = Result<C, EngineError>>,
    ) -> Result<C, EngineError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection
            && usable(connection)
        {
            return Ok(connection.clone());
        }
        state.connection = None;
        match &state.failed {
            Some((at, error)) if *at > asked => return Err(error.clone()),
            _ => {}
        }
        match make.await {
            Ok(made) => {
                state.failed = None;
                Ok(state.connection.insert(made).clone())
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Lets go of a connection, unless another one has taken its place.
    pub(super) async fn forget(&self, is_it: impl Fn(&C) -> bool) {
        let mut state = self.state.lock().await;
        state.connection.take_if(|kept| is_it(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn failed() -> EngineError {
        EngineError::Unavailable("away".into())
    }

    #[tokio::test]
    async fn a_connection_is_made_once_and_again_when_it_is_of_no_use() {
        let kept = Kept::new();
        assert_eq!(kept.get(|_| true, async { Ok(1) }).await, Ok(1));
        assert_eq!(kept.get(|_| true, async { Ok(2) }).await, Ok(1));
        assert_eq!(kept.get(|_| false, async { Ok(3) }).await, Ok(3));
        kept.forget(|kept| *kept == 1).await;
        assert_eq!(kept.get(|_| true, async { Ok(4) }).await, Ok(3));
        kept.forget(|kept| *kept == 3).await;
        assert_eq!(kept.get(|_| true, async { Ok(5) }).await, Ok(5));
    }

    #[tokio::test]
    async fn all_who_wait_fail_with_the_first_who_tries() {
        let kept: Kept<()> = Kept::new();
        let tries = Cell::new(0);
        let attempt = || async {
            tries.set(tries.get() + 1);
            tokio::task::yield_now().await;
            Err(failed())
        };
        let (first, second) = tokio::join!(
            kept.get(|()| true, attempt()),
            kept.get(|()| true, attempt())
        );
        assert_eq!((first, second), (Err(failed()), Err(failed())));
        assert_eq!(tries.get(), 1);
        // Whoever comes later tries again.
        assert_eq!(kept.get(|()| true, async { Ok(()) }).await, Ok(()));
    }
}
