//! A worker's thread: it serves its listeners, obeys commands and sweeps, until every handle is gone.

use super::{Command, Shared};
use crate::deadline::Deadlines;
use crate::drain::Drain;
use crate::listener::{self, Admission};
use crate::plugin::Sessions;
use crate::proxy::access_log::{AccessLog, Fields};
use crate::proxy::encode::HeadBuffers;
use crate::proxy::instances::Instances;
use crate::proxy::site::SiteView;
use crate::proxy::{Proxy, TICK};
use crate::stream::{StreamEvent, StreamFacts, Streams};
use crate::upstream::connection::Pool;
use crate::upstream::resolve::Resolver;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

/// WebSocket close code of a drain: the endpoint is going away (RFC 6455, 7.4.1).
const GOING_AWAY: u16 = 1001;
/// How long streams have for their closing handshake when a drain ends.
const CLOSING_GRACE: Duration = Duration::from_secs(2);

/// Serves until every handle is gone, or one says stop; tells `started` once it can.
pub(super) fn run(
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
        records: RefCell::default(),
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
        // What is idle would keep an old snapshot alive.
        let mut reader = proxy.reader.borrow_mut();
        proxy.instances.borrow_mut().refresh(reader.load());
        drop(reader);
        if proxy.deadlines.now().is_multiple_of(10) {
            proxy
                .pool
                .sweep(proxy.view().site.ticks.pool, proxy.counters());
            proxy.instances.borrow_mut().sweep();
            proxy.sessions.sweep();
            proxy.records.borrow_mut().sweep(proxy.deadlines.now());
        }
    }

    fn obey(&mut self, command: Command) {
        let proxy = &self.proxy;
        // Whoever asked and went away wants no answer.
        match command {
            Command::Warm(generation, answer) => {
                let proxy = proxy.clone();
                tokio::task::spawn_local(async move { proxy.warm(&generation, answer).await });
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
        line.endpoint("endpoint", &stream.endpoint);
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
