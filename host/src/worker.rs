//! One data-plane thread: its runtime, its listeners, its connection pools, its warm instances.
//!
//! Threads share nothing that a request would wait for: what they serve comes as snapshots, and what the control plane
//! wants of one it asks by `Command`.

use crate::deadline::Deadlines;
use crate::drain::Drain;
use crate::listener::{self, Admission};
use crate::metrics::Counters;
use crate::plugin::{Crew, Generation, GenerationId, Instance, Sessions};
use crate::proxy::access_log::{AccessLog, Batches, Fields};
use crate::proxy::encode::HeadBuffers;
use crate::proxy::route::Instances;
use crate::proxy::site::{Site, SiteView};
use crate::proxy::{Proxy, TICK};
use crate::store::{BucketId, Store};
use crate::stream::{
    Close, CloseReason, Spot, StreamEvent, StreamFacts, StreamFilter, StreamId, StreamInfo, Streams,
};
use crate::upstream::connection::Pool;
use crate::upstream::resolve::Resolver;
use arc_swap::ArcSwap;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

/// Most workers: a worker's number is the low byte of a stream's id.
pub const WORKERS_MAX: usize = 256;
/// Commands that may wait for a worker.
const COMMANDS_MAX: usize = 256;
/// WebSocket close code of a drain: the endpoint is going away (RFC 6455, 7.4.1).
const GOING_AWAY: u16 = 1001;
/// WebSocket close code of a version that is drained: come back, another one serves (RFC 6455, 7.4.1, by IANA).
const SERVICE_RESTART: u16 = 1012;
/// How long streams have for their closing handshake when a drain ends.
const CLOSING_GRACE: Duration = Duration::from_secs(2);

/// Entries of the store that have other values now.
pub type ChangedEntries = Arc<[(BucketId, Box<str>)]>;

/// What the control plane asks of a worker.
enum Command {
    Warm(Arc<Generation>, oneshot::Sender<Result<(), String>>),
    Retire(GenerationId),
    Streams(StreamFilter, usize, oneshot::Sender<Vec<StreamInfo>>),
    CloseStream(StreamId, u16, String, oneshot::Sender<bool>),
    SelectStreams(Arc<StreamFilter>, oneshot::Sender<Vec<Spot>>),
    CloseStreams(Vec<Spot>, Arc<Close>, oneshot::Sender<usize>),
    EntriesChanged(ChangedEntries),
    Listen(listener::Config, std::net::TcpListener),
    Unlisten(String),
    Drain(Duration, oneshot::Sender<()>),
    Stop,
}

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// What is served.
    pub site: Arc<ArcSwap<Site>>,
    /// Counters of all workers.
    pub counters: Arc<Counters>,
    /// The store.
    pub store: Store,
    /// Where access lines go.
    pub batches: Option<Batches>,
}

/// Handles to all data-plane threads; clones share them.
#[derive(Clone)]
pub struct Workers {
    senders: Arc<[mpsc::Sender<Command>]>,
}

/// The threads themselves, to be joined.
pub struct Threads(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts `count` threads, without listeners.
    ///
    /// # Errors
    /// If a thread or its runtime cannot be made.
    pub fn start(count: usize, shared: &Shared) -> io::Result<(Self, Threads)> {
        let (mut senders, mut threads) = (Vec::new(), Vec::new());
        for worker in 0..count {
            let (sender, commands) = mpsc::channel(COMMANDS_MAX);
            let (started, ready) = std::sync::mpsc::channel();
            let shared = shared.clone();
            let body = move || run(worker, shared, commands, &started);
            threads.push(
                std::thread::Builder::new()
                    .name(format!("worker-{worker}"))
                    .spawn(body)?,
            );
            ready
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("worker ended while it started")))?;
            senders.push(sender);
        }
        Ok((
            Self {
                senders: senders.into(),
            },
            Threads(threads),
        ))
    }

    /// Sends a command made for each worker; its answers, of workers that still run.
    async fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut answers = Vec::with_capacity(self.senders.len());
        for sender in self.senders.iter() {
            let (answer, answered) = oneshot::channel();
            if sender.send(command(answer)).await.is_ok() {
                answers.push(answered);
            }
        }
        let mut given = Vec::with_capacity(answers.len());
        for answered in answers {
            given.extend(answered.await.ok());
        }
        given
    }

    /// Open streams of every worker, oldest first, at most `limit`.
    pub async fn streams(&self, filter: StreamFilter, limit: usize) -> Vec<StreamInfo> {
        let lists = self
            .ask(|answer| Command::Streams(filter.clone(), limit, answer))
            .await;
        let mut streams: Vec<StreamInfo> = lists.into_iter().flatten().collect();
        streams.sort_by_key(|stream| (stream.started_ms, stream.id));
        streams.truncate(limit);
        streams
    }

    /// Closes one stream with this WebSocket close code and reason, towards both ends; false if there is none.
    pub async fn close_stream(&self, id: StreamId, code: u16, reason: String) -> bool {
        let Some(sender) = self.senders.get(id.worker()) else {
            return false;
        };
        let (answer, answered) = oneshot::channel();
        sender
            .send(Command::CloseStream(id, code, reason, answer))
            .await
            .is_ok()
            && answered.await.unwrap_or(false)
    }

    /// Where the streams are that the filter lets through, on every worker.
    pub async fn select_streams(&self, filter: StreamFilter) -> Vec<Spot> {
        let filter = Arc::new(filter);
        let found = self
            .ask(|answer| Command::SelectStreams(filter.clone(), answer))
            .await;
        found.into_iter().flatten().collect()
    }

    /// Closes streams; says how many of them were there still.
    pub async fn close_streams(&self, spots: &[Spot], close: &Arc<Close>) -> usize {
        let mut answers = Vec::with_capacity(self.senders.len());
        for (worker, sender) in self.senders.iter().enumerate() {
            let spots = spots.iter().filter(|spot| spot.id.worker() == worker);
            let spots: Vec<Spot> = spots.copied().collect();
            if spots.is_empty() {
                continue;
            }
            let (answer, answered) = oneshot::channel();
            let command = Command::CloseStreams(spots, close.clone(), answer);
            if sender.send(command).await.is_ok() {
                answers.push(answered);
            }
        }
        let mut closed = 0;
        for answered in answers {
            closed += answered.await.unwrap_or(0);
        }
        closed
    }

    /// Tells one worker of entries that its streams may follow; returns when it has room for the news.
    pub async fn entries_changed(&self, worker: usize, keys: ChangedEntries) {
        if let Some(sender) = self.senders.get(worker) {
            // A worker that is gone has no streams.
            let _ = sender.send(Command::EntriesChanged(keys)).await;
        }
    }

    /// Closes the streams that a filter lets through, oldest first, at equal distances over a time.
    async fn close_evenly(&self, filter: StreamFilter, over: Duration) {
        let mut spots = self.select_streams(filter).await;
        spots.sort_unstable_by_key(|spot| spot.id);
        let close = Arc::new(Close {
            code: SERVICE_RESTART,
            reason: "version is drained".into(),
            why: CloseReason::Drain,
        });
        let began = tokio::time::Instant::now();
        for (index, spot) in spots.iter().enumerate() {
            let at = over.mul_f64(index as f64 / spots.len() as f64);
            tokio::time::sleep_until(began + at).await;
            self.close_streams(std::slice::from_ref(spot), &close).await;
        }
    }

    /// Gives each worker a listening socket of its own.
    pub async fn listen(&self, config: &listener::Config, sockets: Vec<std::net::TcpListener>) {
        for (sender, socket) in self.senders.iter().zip(sockets) {
            // A worker that is gone needs no listener.
            let _ = sender.send(Command::Listen(config.clone(), socket)).await;
        }
    }

    /// Closes a listener; its connections go on.
    pub async fn unlisten(&self, name: &str) {
        for sender in self.senders.iter() {
            let _ = sender.send(Command::Unlisten(name.into())).await;
        }
    }

    /// Stops accepting, finishes requests, and waits up to `grace` for streams before it closes them. Returns when every
    /// worker is empty.
    pub async fn drain(&self, grace: Duration) {
        self.ask(|answer| Command::Drain(grace, answer)).await;
    }

    /// Ends the threads; whatever is still open is cut.
    pub async fn stop(&self) {
        for sender in self.senders.iter() {
            let _ = sender.send(Command::Stop).await;
        }
    }
}

impl Crew for Workers {
    fn warm(
        &self,
        generation: Arc<Generation>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let warmed = self
                .ask(|answer| Command::Warm(generation.clone(), answer))
                .await;
            warmed
                .into_iter()
                .collect::<Result<Vec<()>, String>>()
                .map(|_| ())
        })
    }

    fn retire(&self, generation: GenerationId) {
        for sender in self.senders.iter() {
            // A worker with a full queue drops its instance at the next sweep instead.
            let _ = sender.try_send(Command::Retire(generation));
        }
    }

    fn drain(&self, plugin: &str, digest: &str, over: Duration) {
        let filter = StreamFilter {
            plugin: Some(plugin.into()),
            version: Some(digest.into()),
            ..StreamFilter::default()
        };
        let workers = self.clone();
        // Called from the control runtime and its blocking threads; it ends with the runtime at the latest.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { workers.close_evenly(filter, over).await });
        }
    }
}

impl Threads {
    /// Waits for the threads to end, after [`Workers::stop`].
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// A worker's thread.
fn run(
    worker: usize,
    shared: Shared,
    commands: mpsc::Receiver<Command>,
    started: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    runtime.block_on(async move {
        let proxy = match proxy(worker, shared) {
            Ok(proxy) => proxy,
            Err(error) => return drop(started.send(Err(error))),
        };
        if started.send(Ok(())).is_ok() {
            Worker {
                proxy,
                listeners: HashMap::new(),
                admission: Rc::default(),
                drain: Rc::default(),
            }
            .serve(commands)
            .await;
        }
    });
    // Tasks of connections that a forced stop cut are dropped with the runtime.
    runtime.shutdown_background();
}

fn proxy(worker: usize, shared: Shared) -> io::Result<Rc<Proxy>> {
    let Shared {
        site,
        counters,
        store,
        batches,
    } = shared;
    let deadlines = Deadlines::new();
    let view = SiteView::new(site.load_full(), None);
    let log = Rc::new(AccessLog::new(batches, counters.clone(), worker));
    let stream_log = log.clone();
    let on_event = Box::new(move |event: StreamEvent<'_>| log_stream(&stream_log, &event));
    let streams = Streams::new(
        worker,
        view.site.streams.clone(),
        counters.clone(),
        on_event,
    )?;
    let sessions = Sessions::new(worker, store.reader());
    streams.set_sessions(sessions.clone());
    Ok(Rc::new(Proxy {
        worker,
        sessions,
        reader: RefCell::new(store.reader()),
        pool: Pool::new(deadlines.clone()),
        resolver: Resolver::default(),
        instances: RefCell::new(Instances::default()),
        view: RefCell::new(view),
        heads: HeadBuffers::default(),
        requests: Cell::new(0),
        id_prefix: format!("{:x}-{worker:x}-", std::process::id()).into(),
        site,
        counters,
        store,
        deadlines,
        streams,
        log,
    }))
}

struct Worker {
    proxy: Rc<Proxy>,
    listeners: HashMap<String, Rc<Drain>>,
    admission: Rc<Admission>,
    drain: Rc<Drain>,
}

impl Worker {
    /// Obeys commands and sweeps, until every handle is gone.
    async fn serve(mut self, mut commands: mpsc::Receiver<Command>) {
        let relay = tokio::task::spawn_local(relay(self.proxy.clone()));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => self.obey(command),
                },
                _ = ticks.tick() => self.sweep(),
            }
        }
        relay.abort();
        self.proxy.log.flush();
    }

    /// Every tick: deadlines, idle connections, log lines, instances nobody uses.
    fn sweep(&self) {
        let proxy = &self.proxy;
        proxy.deadlines.sweep();
        proxy.streams.sweep(Instant::now());
        proxy.log.flush();
        if proxy.deadlines.now().is_multiple_of(10) {
            proxy
                .pool
                .sweep(proxy.view().site.ticks.pool, proxy.counters());
            // A reader that is idle would keep an old snapshot alive.
            proxy.reader.borrow_mut().load();
            proxy.instances.borrow_mut().sweep();
            proxy.sessions.sweep();
        }
    }

    fn obey(&mut self, command: Command) {
        let proxy = &self.proxy;
        // Whoever asked and went away wants no answer.
        match command {
            Command::Warm(generation, answer) => {
                let warmed = proxy
                    .instances
                    .borrow_mut()
                    .lease(&generation, proxy.worker)
                    .map(|_: &mut Instance| ());
                let _ = answer.send(warmed.map_err(|error| error.to_string()));
            }
            Command::Retire(generation) => {
                proxy.instances.borrow_mut().discard(generation);
                proxy.sessions.sweep();
            }
            Command::Streams(filter, limit, answer) => {
                let _ = answer.send(proxy.streams.list(&filter, limit));
            }
            Command::CloseStream(id, code, reason, answer) => {
                let _ = answer.send(proxy.streams.close(id, code, &reason));
            }
            Command::SelectStreams(filter, answer) => {
                let _ = answer.send(proxy.streams.select(&filter));
            }
            Command::CloseStreams(spots, close, answer) => {
                let _ = answer.send(proxy.streams.close_many(&spots, &close));
            }
            Command::EntriesChanged(keys) => {
                let mut reader = proxy.reader.borrow_mut();
                proxy.streams.entries_changed(reader.load(), &keys);
            }
            Command::Listen(config, socket) => {
                let closing = Rc::new(Drain::default());
                self.listeners.insert(config.name.clone(), closing.clone());
                let (admission, drain) = (self.admission.clone(), self.drain.clone());
                let accepting = listener::accept(
                    proxy.clone(),
                    Rc::new(config),
                    socket,
                    admission,
                    closing,
                    drain,
                );
                tokio::task::spawn_local(accepting);
            }
            Command::Unlisten(name) => {
                if let Some(closing) = self.listeners.remove(&name) {
                    closing.begin();
                }
            }
            Command::Drain(grace, answer) => {
                self.drain.begin();
                tokio::task::spawn_local(drain(proxy.clone(), grace, answer));
            }
            Command::Stop => {}
        }
    }
}

/// Moves the bytes of all streams.
async fn relay(proxy: Rc<Proxy>) {
    let Err(error) = proxy.streams.clone().run().await;
    tracing::error!(%error, worker = proxy.worker, "streams of this worker stand still");
}

/// Waits until connections and streams have ended; closes the streams left after `grace`.
async fn drain(proxy: Rc<Proxy>, grace: Duration, answer: oneshot::Sender<()>) {
    let empty = async {
        let mut ticks = tokio::time::interval(TICK);
        while proxy.counters().connections_open.load(Relaxed) > 0 {
            ticks.tick().await;
        }
        proxy.streams.drained().await;
    };
    if tokio::time::timeout(grace, empty).await.is_err() {
        proxy.streams.close_all(GOING_AWAY, "proxy is going away");
        // What has not ended by then is cut when the worker ends.
        let _ = tokio::time::timeout(CLOSING_GRACE, proxy.streams.drained()).await;
    }
    proxy.log.flush();
    let _ = answer.send(());
}

/// One line when a stream opens and one when it closes.
fn log_stream(log: &AccessLog, event: &StreamEvent<'_>) {
    let facts = |line: &mut Fields<'_>, stream: &StreamFacts<'_>| {
        line.number("stream", stream.id.0);
        line.text("route", stream.route);
        if let Some(label) = stream.label {
            line.plain("plugin", &label.plugin);
            line.plain("version", label.version());
        }
        if let Some(key) = stream.key {
            line.text("key", key);
        }
        line.address("client", stream.client);
        line.address("endpoint", stream.endpoint);
    };
    match event {
        StreamEvent::Opened(stream) => {
            log.line("stream-open", Instant::now(), |line| facts(line, stream));
        }
        StreamEvent::Closed {
            stream,
            duration,
            bytes_up,
            bytes_down,
            reason,
            session,
        } => {
            log.line("stream-close", Instant::now(), |line| {
                facts(line, stream);
                line.number("duration_ms", duration.as_millis() as u64);
                line.number("bytes_up", *bytes_up);
                line.number("bytes_down", *bytes_down);
                line.plain("reason", reason.name());
                if let Some(session) = session {
                    line.plain("session", session);
                }
            });
        }
    }
}
