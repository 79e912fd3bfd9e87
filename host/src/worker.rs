//! One data-plane thread: its runtime, its listeners, its connection pools, its warm instances.
//!
//! Threads share nothing that a request would wait for: what they serve comes as snapshots, and what the control plane
//! wants of one it asks by `Command`.

use crate::listener;
use crate::metrics::Counters;
use crate::plugin::{Generation, GenerationId};
use crate::proxy::access_log::Batches;
use crate::proxy::site::Site;
use crate::store::{BucketId, Store};
use crate::stream::{Close, Spot, StreamFilter, StreamId, StreamInfo};
use arc_swap::ArcSwap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

mod thread;

/// Most workers: a worker's number is the low byte of a stream's id.
pub const WORKERS_MAX: usize = 256;
/// Commands that may wait for a worker.
const COMMANDS_MAX: usize = 256;

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
            let body = move || thread::run(worker, shared, commands, &started);
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

    /// Makes every worker hold an instance of a generation; an error names what went wrong.
    pub(crate) async fn warm(&self, generation: Arc<Generation>) -> Result<(), String> {
        let warmed = self
            .ask(|answer| Command::Warm(generation.clone(), answer))
            .await;
        warmed.into_iter().collect()
    }

    /// Lets every worker drop its instance of a generation that is no longer active.
    pub(crate) fn retire(&self, generation: GenerationId) {
        for sender in self.senders.iter() {
            // A worker with a full queue drops its instance at the next sweep instead.
            let _ = sender.try_send(Command::Retire(generation));
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
