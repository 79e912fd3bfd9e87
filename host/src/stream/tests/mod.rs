//! Streams between real sockets on loopback. Nothing sleeps: time is given to `sweep`, everything else is awaited.

use super::*;
use crate::metrics::{Counters, WorkerCounters};
use crate::plugin::generation::{GenerationId, GenerationLabel};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

mod closing;
mod following;
mod pinging;
mod relaying;
mod table;

type Socket = tokio::net::TcpStream;

/// A test that hangs fails instead.
const PATIENCE: Duration = Duration::from_secs(20);

/// The end of a stream, as the access log learns of it.
#[derive(Debug, PartialEq, Eq)]
struct Closed {
    id: StreamId,
    bytes_up: u64,
    bytes_down: u64,
    reason: CloseReason,
}

/// One worker's streams.
struct Worker {
    streams: Rc<Streams>,
    counters: Arc<Counters>,
    opened: Rc<RefCell<Vec<StreamId>>>,
    closed: mpsc::UnboundedReceiver<Closed>,
    /// Of the streams it opens.
    times: Times,
}

/// What is beyond the proxy on both sides of a stream.
struct Ends {
    id: StreamId,
    client: Socket,
    endpoint: Socket,
}

/// Runs a test on a worker of its own.
fn on_worker<F: Future<Output = ()>>(config: Config, test: impl FnOnce(Worker) -> F) {
    // A stream takes four descriptors here, and tests run beside each other.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("as many descriptors as are allowed");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("a runtime");
    runtime.block_on(async {
        let worker = Worker::new(config);
        let relay = tokio::task::spawn_local(worker.streams.clone().run());
        tokio::time::timeout(PATIENCE, test(worker))
            .await
            .expect("the test ends");
        assert!(!relay.is_finished(), "the relay runs on");
        relay.abort();
    });
}

impl Worker {
    fn new(config: Config) -> Self {
        let counters = Arc::new(Counters {
            workers: (0..4).map(|_| WorkerCounters::default()).collect(),
        });
        let opened = Rc::new(RefCell::new(Vec::new()));
        let (send, closed) = mpsc::unbounded_channel();
        let on_event = {
            let opened = opened.clone();
            move |event: StreamEvent<'_>| match event {
                StreamEvent::Opened(stream) => opened.borrow_mut().push(stream.id),
                StreamEvent::Closed {
                    stream,
                    bytes_up,
                    bytes_down,
                    reason,
                    ..
                } => {
                    let id = stream.id;
                    let _gone = send.send(Closed {
                        id,
                        bytes_up,
                        bytes_down,
                        reason,
                    });
                }
            }
        };
        let times = config.times;
        let streams =
            Streams::new(3, config, counters.clone(), Box::new(on_event)).expect("an epoll set");
        Self {
            streams,
            counters,
            opened,
            closed,
            times,
        }
    }

    /// Opens a stream between two new connections.
    async fn open(&self) -> Ends {
        self.open_as(|_| {}).await
    }

    async fn open_as(&self, change: impl FnOnce(&mut NewStream)) -> Ends {
        let (client, downstream) = connection().await;
        let (endpoint, upstream) = connection().await;
        let mut new = new_stream(downstream, upstream);
        new.times = self.times;
        change(&mut new);
        let id = self.streams.open(new).expect("room");
        Ends {
            id,
            client,
            endpoint,
        }
    }

    async fn next_closed(&mut self) -> Closed {
        self.closed.recv().await.expect("an event")
    }

    /// Bytes relayed by the only stream.
    fn bytes(&self) -> [u64; 2] {
        let listed = self.streams.list(&StreamFilter::default(), 2);
        assert_eq!(listed.len(), 1);
        [listed[0].bytes_up, listed[0].bytes_down]
    }

    fn leftover_bytes(&self) -> usize {
        let table = self.streams.table.borrow();
        let entries = table.entries.iter();
        entries.map(|(_, entry)| entry.leftover_bytes()).sum()
    }

    fn counted(&self, which: impl Fn(&WorkerCounters) -> &AtomicU64) -> u64 {
        which(&self.counters.workers[3]).load(Ordering::Relaxed)
    }
}

fn new_stream(downstream: std::net::TcpStream, upstream: std::net::TcpStream) -> NewStream {
    NewStream {
        client: downstream.peer_addr().expect("connected"),
        endpoint: upstream.peer_addr().expect("connected").into(),
        upstream_name: None,
        downstream: downstream.into(),
        downstream_read_ahead: Bytes::new(),
        upstream: upstream.into(),
        upstream_read_ahead: Bytes::new(),
        route: "chat".into(),
        label: None,
        key: None,
        times: Times::default(),
        follow: None,
        hook: None,
        on_close: None,
    }
}

/// A loopback connection: the far end, and the one the proxy has.
async fn connection() -> (Socket, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (far, near) = tokio::join!(Socket::connect(address), listener.accept());
    let near = near.expect("accepted").0.into_std().expect("a socket");
    (far.expect("connected"), near)
}

fn label(plugin: &str, digest: &str, id: u64) -> Arc<GenerationLabel> {
    Arc::new(GenerationLabel {
        id: GenerationId(id),
        plugin: plugin.into(),
        digest: digest.into(),
        writer: plugin.into(),
        since: SystemTime::UNIX_EPOCH,
        streams: AtomicU64::new(0),
        sessions: AtomicU64::new(0),
    })
}

async fn send(socket: &mut Socket, bytes: &[u8]) {
    socket.write_all(bytes).await.expect("sent");
}

/// Asserts that exactly these bytes come next.
async fn expect(socket: &mut Socket, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    socket.read_exact(&mut received).await.expect("received");
    assert!(received == bytes, "expected {bytes:?}, got {received:?}");
}

/// Asserts that the other side ends without another byte.
async fn expect_end(socket: &mut Socket) {
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.expect("an orderly end");
    assert!(rest.is_empty(), "expected the end, got {rest:?}");
}

/// Makes dropping a socket reset its connection.
fn reset(socket: Socket) {
    socket2::SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .expect("an option");
}
