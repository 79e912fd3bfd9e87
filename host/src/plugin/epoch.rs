//! The clock that cuts guests: ticks of the engine's epoch, fast while calls run, slow otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wasmtime::{Engine, Store};

/// Between two ticks while calls run.
const TICK: Duration = Duration::from_millis(5);
/// Between two ticks when none ran for a while.
const IDLE_TICK: Duration = Duration::from_millis(20);

/// The ticker thread and what it shares with the threads that call guests.
pub(crate) struct EpochClock {
    shared: Arc<Shared>,
    ticker: std::sync::Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    /// Fast ticks that running calls may still need.
    wanted: AtomicU64,
    stop: AtomicBool,
}

impl EpochClock {
    /// Starts the ticker.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        // Weak, so that the thread never keeps the pool of a dropped engine mapped.
        let (weak, seen) = (engine.weak(), Arc::clone(&shared));
        let ticker = std::thread::Builder::new()
            .name("epoch".into())
            .spawn(move || {
                while !seen.stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(seen.next_tick());
                    match weak.upgrade() {
                        Some(engine) => engine.increment_epoch(),
                        None => return,
                    }
                }
            })?;
        Ok(Self {
            shared,
            ticker: std::sync::Mutex::new(Some(ticker)),
        })
    }

    /// Ticks after which a call has run for `deadline` at least. The first tick may come at once, hence one more.
    pub(crate) fn ticks(deadline: Duration) -> u64 {
        let ticks = deadline.as_nanos().div_ceil(TICK.as_nanos());
        u64::try_from(ticks)
            .unwrap_or(u64::MAX / 2)
            .min(u64::MAX / 2)
            + 1
    }

    /// Lets the store's next call run for so many ticks: cut not before the deadline, and within it and
    /// [`IDLE_TICK`]. To be called before every call, since deadlines are absolute.
    #[inline]
    pub(crate) fn arm<T>(&self, store: &mut Store<T>, ticks: u64) {
        store.set_epoch_deadline(ticks);
        // Written at most once a tick, so that workers do not fight for the cache line.
        if self.shared.wanted.load(Ordering::Relaxed) < ticks {
            self.shared.wanted.fetch_max(ticks, Ordering::Relaxed);
        }
    }

    /// Stops the ticker; guests running then are no longer cut.
    pub(crate) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ticker = self
            .ticker
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if let Some(ticker) = ticker {
            ticker.thread().unpark();
            // It neither panics nor blocks.
            let _ = ticker.join();
        }
    }
}

impl Drop for EpochClock {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// How long to the next tick; only the ticker takes from `wanted`.
    fn next_tick(&self) -> Duration {
        if self.wanted.load(Ordering::Relaxed) == 0 {
            return IDLE_TICK;
        }
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        TICK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_one_tick_more_than_it_lasts() {
        assert_eq!(EpochClock::ticks(Duration::from_millis(5)), 2);
        assert_eq!(EpochClock::ticks(Duration::from_millis(1)), 2);
        assert_eq!(EpochClock::ticks(Duration::from_millis(6)), 3);
        assert_eq!(EpochClock::ticks(Duration::from_secs(1)), 201);
        assert!(EpochClock::ticks(Duration::MAX) < u64::MAX);
    }

    #[test]
    fn ticks_are_fast_while_calls_want_them_and_slow_after() {
        let shared = Shared::default();
        assert_eq!(shared.next_tick(), IDLE_TICK);
        shared.wanted.store(2, Ordering::Relaxed);
        assert_eq!([shared.next_tick(), shared.next_tick()], [TICK, TICK]);
        assert_eq!(shared.next_tick(), IDLE_TICK);
    }
}
