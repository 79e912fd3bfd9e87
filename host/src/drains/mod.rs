//! Drains of streams: those that match at one moment are closed one after the other, spread evenly over a time.
//!
//! A drain is a task of the control plane, which holds where its streams are and tells the workers when to close which.
//! It ends with the process. Bounded: how many run, and how many that ended are kept to be looked at. Whoever asks for
//! one, and the proxy itself when more versions have open streams than a plugin's `max_draining`, start the same drain.

use crate::proxy::TICK;
use crate::stream::{Close, Spot, StreamFilter};
use crate::worker::Workers;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

mod oldest;
mod pace;

pub use oldest::DrainingCrew;
use pace::Pace;

/// Drains of one cause that may run at once.
const RUNNING_MAX: usize = 16;
/// Drains that are kept, those that run included.
const KEPT_MAX: usize = 64;
/// Streams closed before the workers get to do something else.
const CLOSES_PER_TURN: usize = 500;

/// What is to be drained.
#[derive(Debug, Clone)]
pub struct Order {
    /// Which streams.
    pub filter: StreamFilter,
    /// The same, as it was asked for.
    pub selector: serde_json::Value,
    /// From the first close to the last.
    pub over: Duration,
    /// How they are closed.
    pub close: Close,
    /// Why.
    pub cause: Cause,
    /// Who asked.
    pub actor: String,
}

/// Why streams are drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Somebody asked for it.
    Asked,
    /// Their version is one more than the plugin's `max_draining`.
    MaxDraining,
}

/// Why no drain was started.
#[derive(Debug, thiserror::Error)]
#[error("{RUNNING_MAX} drains run already, as many as may: wait for one to end, or cancel one")]
pub struct TooMany;

/// The drains of this process, newest last.
#[derive(Debug, Default)]
pub struct Drains {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    drains: VecDeque<Arc<Drain>>,
    started: u64,
}

/// A drain, running or over.
#[derive(Debug)]
pub struct Drain {
    id: u64,
    order: Order,
    /// Where its streams are, for as long as it runs.
    spots: Weak<[Spot]>,
    matched: usize,
    closed: AtomicUsize,
    gone: AtomicUsize,
    started_ms: u64,
    /// 0 while it runs.
    ended_ms: AtomicU64,
    is_cancelled: AtomicBool,
    cancel: Notify,
}

/// How far a drain is.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Progress {
    /// Its number.
    pub id: u64,
    /// Whether it runs.
    pub state: State,
    /// Streams that matched when it began.
    pub matched: usize,
    /// Of them, closed by it.
    pub closed: usize,
    /// Of them, those that had ended when their turn came.
    pub gone: usize,
    /// Of them, those whose turn is still to come, or never came.
    pub left: usize,
    /// Milliseconds since the Unix epoch at its start.
    pub started_ms: u64,
    /// The same at its end: when it will be, while it runs.
    pub ends_ms: u64,
    /// From the first close to the last, in milliseconds.
    pub over_ms: u64,
    /// The WebSocket close code.
    pub code: u16,
    /// The reason told to both ends.
    pub reason: String,
    /// Which streams.
    pub selector: serde_json::Value,
    /// Why.
    pub cause: Cause,
    /// Who asked for it.
    pub actor: String,
}

/// Whether a drain runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Streams are being closed.
    Running,
    /// Every stream had its turn.
    Done,
    /// It was ended before.
    Cancelled,
}

impl Drains {
    /// Selects streams and begins to close them; returns once they are selected. In a tokio runtime.
    ///
    /// # Errors
    /// If too many drains run.
    pub async fn start(&self, workers: &Workers, order: Order) -> Result<Arc<Drain>, TooMany> {
        check_room(&self.lock(), order.cause)?;
        let spots = workers.select_streams(order.filter.clone()).await;
        let mut kept = self.lock();
        check_room(&kept, order.cause)?;
        Ok(kept.begin(workers, order, spots))
    }

    /// As [`Drains::start`], but for streams only that no drain with the same cause and filter is about to close; none is
    /// started if there are no others.
    ///
    /// # Errors
    /// If too many drains run.
    async fn start_for_rest(
        &self,
        workers: &Workers,
        order: Order,
    ) -> Result<Option<Arc<Drain>>, TooMany> {
        let mut spots = workers.select_streams(order.filter.clone()).await;
        let mut kept = self.lock();
        let drained: HashSet<u64> = kept
            .same(&order.filter, order.cause)
            .filter_map(|drain| drain.spots.upgrade())
            .flat_map(|spots| spots.iter().map(|spot| spot.id.0).collect::<Vec<_>>())
            .collect();
        spots.retain(|spot| !drained.contains(&spot.id.0));
        if spots.is_empty() {
            return Ok(None);
        }
        check_room(&kept, order.cause)?;
        Ok(Some(kept.begin(workers, order, spots)))
    }

    /// Ends the running drains with this filter and cause.
    fn end(&self, filter: &StreamFilter, cause: Cause) {
        self.lock().same(filter, cause).for_each(|drain| {
            drain.cancel();
        });
    }

    /// Every drain that is kept, newest first.
    pub fn list(&self) -> Vec<Progress> {
        let kept = self.lock();
        let newest_first = kept.drains.iter().rev();
        newest_first.map(|drain| drain.progress()).collect()
    }

    /// A drain by its number.
    pub fn get(&self, id: u64) -> Option<Arc<Drain>> {
        let kept = self.lock();
        kept.drains.iter().find(|drain| drain.id == id).cloned()
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.lock().running().count()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_room(kept: &Kept, cause: Cause) -> Result<(), TooMany> {
    let running = kept.running();
    match running.filter(|drain| drain.order.cause == cause).count() < RUNNING_MAX {
        true => Ok(()),
        false => Err(TooMany),
    }
}

impl Kept {
    fn running(&self) -> impl Iterator<Item = &Arc<Drain>> {
        self.drains.iter().filter(|drain| drain.is_running())
    }

    /// Those that run with this filter and cause.
    fn same(&self, filter: &StreamFilter, cause: Cause) -> impl Iterator<Item = &Arc<Drain>> {
        self.running()
            .filter(move |drain| drain.order.cause == cause && drain.order.filter == *filter)
    }

    /// Starts a drain of these streams. There is room for it.
    fn begin(&mut self, workers: &Workers, order: Order, mut spots: Vec<Spot>) -> Arc<Drain> {
        // Streams opened together are next to each other now, and often are of one client.
        spots.sort_by_cached_key(|spot| spot.id.spread());
        let spots: Arc<[Spot]> = spots.into();
        self.started += 1;
        let drain = Arc::new(Drain::new(self.started, order, &spots));
        if self.drains.len() >= KEPT_MAX {
            let ended = self.drains.iter().position(|drain| !drain.is_running());
            self.drains.remove(ended.expect("fewer run than are kept"));
        }
        self.drains.push_back(drain.clone());
        if spots.is_empty() {
            drain.end();
        } else {
            tokio::spawn(run(drain.clone(), workers.clone(), spots));
        }
        drain
    }
}

impl Drain {
    fn new(id: u64, order: Order, spots: &Arc<[Spot]>) -> Self {
        Self {
            id,
            order,
            spots: Arc::downgrade(spots),
            matched: spots.len(),
            closed: AtomicUsize::new(0),
            gone: AtomicUsize::new(0),
            started_ms: unix_ms(),
            ended_ms: AtomicU64::new(0),
            is_cancelled: AtomicBool::new(false),
            cancel: Notify::new(),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let (closed, gone) = (self.closed.load(Relaxed), self.gone.load(Relaxed));
        let over_ms = millis(self.order.over);
        let (state, ends_ms) = match self.ended_ms.load(Relaxed) {
            0 => (State::Running, self.started_ms.saturating_add(over_ms)),
            ended if self.is_cancelled.load(Relaxed) => (State::Cancelled, ended),
            ended => (State::Done, ended),
        };
        Progress {
            id: self.id,
            state,
            matched: self.matched,
            closed,
            gone,
            left: self.matched.saturating_sub(closed + gone),
            started_ms: self.started_ms,
            ends_ms,
            over_ms,
            code: self.order.close.code,
            reason: self.order.close.reason.to_string(),
            selector: self.order.selector.clone(),
            cause: self.order.cause,
            actor: self.order.actor.clone(),
        }
    }

    /// Ends it: no stream is closed after this but those the workers are told of already. False if it is over.
    pub fn cancel(&self) -> bool {
        if !self.is_running() || self.is_cancelled.swap(true, Relaxed) {
            return false;
        }
        self.end();
        self.cancel.notify_one();
        true
    }

    fn is_running(&self) -> bool {
        self.ended_ms.load(Relaxed) == 0
    }

    fn end(&self) {
        self.ended_ms.store(unix_ms().max(1), Relaxed);
    }
}

/// Closes the streams of a drain, each at its time.
async fn run(drain: Arc<Drain>, workers: Workers, spots: Arc<[Spot]>) {
    let close = Arc::new(drain.order.close.clone());
    let pace = Pace::new(drain.order.over);
    let started = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = 0;
    while next < spots.len() {
        tokio::select! {
            biased;
            () = drain.cancel.notified() => return,
            _ = ticks.tick() => {}
        }
        loop {
            let due = pace.due(&spots, next, started.elapsed());
            let turn = &spots[next..due.min(next + CLOSES_PER_TURN)];
            if turn.is_empty() || !drain.is_running() {
                break;
            }
            let closed = workers.close_streams(turn, &close).await;
            next += turn.len();
            drain.closed.fetch_add(closed, Relaxed);
            drain.gone.fetch_add(turn.len() - closed, Relaxed);
        }
    }
    if drain.is_running() {
        drain.end();
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    millis(since.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{CloseReason, StreamId};

    fn drain() -> Drain {
        let close = Close {
            code: 1012,
            reason: "moving".into(),
            why: CloseReason::Drain,
        };
        let order = Order {
            filter: StreamFilter::default(),
            selector: serde_json::json!({ "all": true }),
            over: Duration::from_secs(10),
            close,
            cause: Cause::Asked,
            actor: "ann".into(),
        };
        let spots: Vec<Spot> = (1..=5).map(|id| Spot::at(StreamId(id << 8), 0)).collect();
        Drain::new(7, order, &spots.into())
    }

    #[test]
    fn a_drain_tells_how_far_it_is() {
        let drain = drain();
        drain.closed.store(2, Relaxed);
        drain.gone.store(1, Relaxed);
        let running = drain.progress();
        assert_eq!((running.state, running.left), (State::Running, 2));
        assert_eq!(running.ends_ms - running.started_ms, 10_000);
        drain.end();
        assert_eq!(drain.progress().state, State::Done);
        assert!(!drain.cancel(), "it is over");
        assert_eq!(drain.progress().state, State::Done);
    }

    #[test]
    fn a_drain_is_cancelled_once() {
        let drain = drain();
        assert!(drain.cancel());
        assert!(!drain.cancel());
        let progress = drain.progress();
        assert_eq!((progress.state, progress.left), (State::Cancelled, 5));
    }
}
