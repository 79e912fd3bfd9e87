//! All streams of a worker: opened, listed, timed out, closed.

use super::entry::{Entry, Progress};
use super::hook::Buffers;
use super::token::{Side, Token};
use super::{CloseReason, Config, StreamEvent, StreamFilter, StreamId, StreamInfo};
use crate::metrics::{Counters, WorkerCounters};
use crate::plugin::Sessions;
use crate::proxy::TICK;
use rustix::event::epoll;
use slab::Slab;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

mod drain;
mod follow;
mod open;
mod sessions;
mod sweep;

pub use drain::Close;
use follow::Follows;

/// Bytes read from a socket at once; also the most that is kept for a peer that does not read.
pub(super) const SCRATCH_BYTES: usize = 64 << 10;

/// How long a closing handshake may take, in ticks.
pub(super) const CLOSE_TICKS: u32 = 10;

/// All upgraded streams of one worker. It belongs to that worker's thread and does nothing unless [`Streams::run`] is
/// polled there and [`Streams::sweep`] is called every [`TICK`].
pub struct Streams {
    worker: usize,
    config: RefCell<Config>,
    counters: Arc<Counters>,
    on_event: Box<dyn Fn(StreamEvent<'_>)>,
    pub(super) epoll: AsyncFd<OwnedFd>,
    pub(super) scratch: RefCell<Box<[u8]>>,
    pub(super) table: RefCell<Table>,
    start: Instant,
    pub(super) tick: Cell<u32>,
    /// What streams with sessions share.
    buffers: Rc<Buffers>,
    sessions: OnceCell<Rc<Sessions>>,
    /// Whether streams of a lost instance are being seen to.
    settling: Cell<bool>,
    /// Streams with bytes that wait for their turn only.
    pub(super) resumable: RefCell<Vec<Token>>,
    pub(super) resumed: Notify,
    drained: Notify,
}

pub(super) struct Table {
    pub(super) entries: Slab<Entry>,
    /// Streams opened so far.
    counter: u64,
    /// Streams in a closing handshake.
    closing: usize,
    /// Streams by the entries they follow.
    follows: Follows,
    /// No stream is over by itself before this tick.
    due: u32,
    /// The tick of the last look at all streams.
    swept: u32,
    /// Streams whose session wants a tick, by when it is due.
    session_ticks: BTreeSet<(u32, usize)>,
}

impl Streams {
    /// No streams yet. `on_event` is called at each start and end, and must not open or close streams itself.
    ///
    /// # Errors
    /// The kernel gives no epoll set, or `worker` does not fit into a [`StreamId`].
    ///
    /// # Panics
    /// Outside a tokio runtime with IO.
    pub fn new(
        worker: usize,
        config: Config,
        counters: Arc<Counters>,
        on_event: Box<dyn Fn(StreamEvent<'_>)>,
    ) -> io::Result<Rc<Self>> {
        if worker > 0xff || worker >= counters.workers.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("worker {worker}: expected fewer than 256, each with counters"),
            ));
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: an `OwnedFd` always gives the same descriptor, and keeps it open for as long as it lives.
        let epoll = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE)? };
        Ok(Rc::new(Self {
            worker,
            config: RefCell::new(config),
            counters,
            on_event,
            epoll,
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            table: RefCell::new(Table {
                entries: Slab::new(),
                counter: 0,
                closing: 0,
                follows: Follows::default(),
                due: u32::MAX,
                swept: 0,
                session_ticks: BTreeSet::new(),
            }),
            start: Instant::now(),
            tick: Cell::new(0),
            buffers: Rc::default(),
            sessions: OnceCell::new(),
            settling: Cell::new(false),
            resumable: RefCell::default(),
            resumed: Notify::new(),
            drained: Notify::new(),
        }))
    }

    /// Takes a new config for streams opened from now on.
    pub fn configure(&self, config: Config) {
        self.config.replace(config);
    }

    /// Streams open now.
    pub fn len(&self) -> usize {
        self.table.borrow().entries.len()
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`Streams::open`] would refuse: to be asked before an upgrade is forwarded.
    pub fn is_full(&self) -> bool {
        self.len() >= self.config.borrow().streams_max
    }

    /// Closes a stream with a WebSocket close frame to both ends, each at the end of a frame, and its sockets when both
    /// have answered or after a second. False if there is no such stream.
    ///
    /// `code` is written as given; `reason` is cut after 123 bytes.
    pub fn close(&self, id: StreamId, code: u16, reason: &str) -> bool {
        let index = {
            let table = self.table.borrow();
            table
                .entries
                .iter()
                .find_map(|(index, entry)| (entry.id() == id).then_some(index))
        };
        let Some(index) = index else {
            return false;
        };
        self.begin_close(index, code, reason, CloseReason::Admin);
        true
    }

    /// Closes every stream as [`Streams::close`] does.
    pub fn close_all(&self, code: u16, reason: &str) {
        for index in self.indices(|_| true) {
            self.begin_close(index, code, reason, CloseReason::Shutdown);
        }
    }

    /// The oldest streams that the filter lets through.
    pub fn list(&self, filter: &StreamFilter, limit: usize) -> Vec<StreamInfo> {
        let table = self.table.borrow();
        let now = self.elapsed();
        let is_meant =
            |entry: &&Entry| filter.matches(&entry.facts(), now.saturating_sub(entry.opened()));
        let entries = table.entries.iter().map(|(_, entry)| entry);
        let mut found: Vec<&Entry> = entries.filter(is_meant).collect();
        found.sort_unstable_by_key(|entry| entry.id());
        found
            .into_iter()
            .take(limit)
            .map(|entry| info(entry, now))
            .collect()
    }

    /// Resolves when no stream is open.
    pub async fn drained(&self) {
        loop {
            let drained = self.drained.notified();
            if self.is_empty() {
                return;
            }
            drained.await;
        }
    }

    fn indices(&self, which: impl Fn(&Entry) -> bool) -> Vec<usize> {
        let table = self.table.borrow();
        let found = table.entries.iter().filter(|(_, entry)| which(entry));
        found.map(|(index, _)| index).collect()
    }

    fn begin_close(&self, index: usize, code: u16, reason: &str, why: CloseReason) {
        if self.table.borrow().entries[index].is_closing() {
            return;
        }
        let deadline = self.tick.get().saturating_add(CLOSE_TICKS);
        self.apply(index, |entry| entry.close(code, reason, why, deadline));
    }

    /// Lets a stream act, counts what it moved, and watches it on or ends it.
    pub(super) fn apply(&self, index: usize, act: impl FnOnce(&mut Entry) -> Progress) -> Progress {
        let ended = {
            let mut table = self.table.borrow_mut();
            let Table {
                entries,
                closing,
                due,
                session_ticks,
                ..
            } = &mut *table;
            let entry = &mut entries[index];
            let before = entry.bytes();
            let (was_closing, tick_was_due) = (entry.is_closing(), entry.tick_due());
            let mut progress = act(entry);
            let after = entry.bytes();
            if entry.is_closing() && !was_closing {
                *closing += 1;
                *due = (*due).min(entry.due());
            }
            let tick_due = entry.tick_due();
            if tick_due != tick_was_due {
                session_ticks.remove(&(tick_was_due, index));
                if tick_due > 0 {
                    session_ticks.insert((tick_due, index));
                }
            }
            add(&self.counted().stream_bytes_up, after[0] - before[0]);
            add(&self.counted().stream_bytes_down, after[1] - before[1]);
            add(&self.counted().stream_pings, entry.take_pings().into());
            if !matches!(progress, Progress::Ended(_))
                && entry
                    .watch(self.epoll.get_ref().as_fd(), slot(index))
                    .is_err()
            {
                progress = Progress::Ended(entry.why(CloseReason::Error));
            }
            let Progress::Ended(reason) = progress else {
                if entry.is_resumable() {
                    let token = Token::of(slot(index), entry.id(), Side::Downstream);
                    self.resumable.borrow_mut().push(token);
                    self.resumed.notify_one();
                    return Progress::More;
                }
                return progress;
            };
            (self.remove(&mut table, index), reason)
        };
        self.finish(ended.0, ended.1);
        Progress::Ended(ended.1)
    }

    fn remove(&self, table: &mut Table, index: usize) -> Entry {
        let entry = table.entries.remove(index);
        self.end_to_follow(table, index, &entry);
        table.session_ticks.remove(&(entry.tick_due(), index));
        if entry.is_closing() {
            table.closing -= 1;
        }
        if table.entries.is_empty() {
            table.entries = Slab::new();
            table.due = u32::MAX;
        }
        entry
    }

    /// Tells of the end of a stream that is out of the table, and frees it.
    fn finish(&self, mut entry: Entry, reason: CloseReason) {
        add(&self.counted().streams_closed, 1);
        add(&self.counted().streams_closed_by[reason as usize], 1);
        let [bytes_up, bytes_down] = entry.bytes();
        let duration = self.elapsed().saturating_sub(entry.opened());
        let session = entry.end_session(duration);
        (self.on_event)(StreamEvent::Closed {
            stream: entry.facts(),
            duration,
            bytes_up,
            bytes_down,
            reason,
            session,
        });
        let on_close = entry.take_on_close();
        drop(entry);
        if let Some(on_close) = on_close {
            on_close();
        }
        if self.is_empty() {
            self.drained.notify_waiters();
        }
    }

    fn counted(&self) -> &WorkerCounters {
        &self.counters.workers[self.worker]
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed().max(TICK * self.tick.get())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for entry in std::mem::take(&mut self.table.get_mut().entries) {
            let reason = entry.1.why(CloseReason::Shutdown);
            self.finish(entry.1, reason);
        }
    }
}

fn info(entry: &Entry, now: Duration) -> StreamInfo {
    let facts = entry.facts();
    let [bytes_up, bytes_down] = entry.bytes();
    StreamInfo {
        id: facts.id,
        route: facts.route.to_owned(),
        plugin: facts.label.map(|label| label.plugin.to_string()),
        version: facts.label.map(|label| label.digest.to_string()),
        generation: facts.label.map(|label| label.id.0),
        key: facts.key.map(str::to_owned),
        client: facts.client,
        endpoint: facts.endpoint.clone(),
        upstream: facts.upstream.map(str::to_owned),
        started_ms: entry.started_ms(),
        age_s: now.saturating_sub(entry.opened()).as_secs(),
        bytes_up,
        bytes_down,
        session: entry.session_info(),
    }
}

fn slot(index: usize) -> u32 {
    u32::try_from(index).expect("streams_max keeps the table below 2^32")
}

/// Whole ticks of a span.
pub(super) fn ticks(span: Duration) -> u32 {
    u32::try_from(span.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
}

/// A timeout in ticks, rounded up; 0 for none.
pub(super) fn timeout_ticks(timeout: Option<Duration>) -> u32 {
    timeout.map_or(0, |timeout| {
        let ticks = timeout.as_millis().div_ceil(TICK.as_millis()).max(1);
        u32::try_from(ticks).unwrap_or(u32::MAX)
    })
}

fn add(counter: &AtomicU64, by: u64) {
    if by > 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}
