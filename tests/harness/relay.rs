//! A TCP relay on the loopback, to cut what goes through it, or to hold some of it back.

use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Relays to one address until it is told otherwise, unless it is cut.
pub struct Relay {
    address: String,
    target: watch::Sender<String>,
    cut: watch::Sender<bool>,
    held: watch::Sender<bool>,
    /// How many connections there are.
    connections: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts one to `host:port`.
    pub async fn start(target: String) -> Self {
        Self::start_that_holds(target, None).await
    }

    /// The same; the answers on connections whose client has said this word can be held back.
    pub async fn start_that_holds(target: String, word: Option<&'static str>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (target, cut) = (watch::Sender::new(target), watch::Sender::new(false));
        let (held, connections) = (watch::Sender::new(false), watch::Sender::new(0));
        let to = To {
            target: target.subscribe(),
            word,
            cut: cut.subscribe(),
            held: held.subscribe(),
        };
        let task = tokio::spawn(accept(listener, to, connections.clone()));
        Self {
            address,
            target,
            cut,
            held,
            connections,
            task,
        }
    }

    /// Where it is, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// New connections go to this `host:port`.
    pub fn turn_to(&self, target: String) {
        self.target.send_replace(target);
    }

    /// Closes all connections, and new ones at once. Returns when nothing can come through any more.
    pub async fn cut(&self) {
        self.cut.send_replace(true);
        let mut connections = self.connections.subscribe();
        let closed = connections.wait_for(|count| *count == 0);
        super::soon("the relay is cut", closed)
            .await
            .expect("its sender is here");
    }

    /// Lets new connections through again.
    pub fn restore(&self) {
        self.cut.send_replace(false);
    }

    /// Holds back the answers to who has said the word, or lets them through.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where connections lead, and what becomes of them.
#[derive(Clone)]
struct To {
    target: watch::Receiver<String>,
    word: Option<&'static str>,
    cut: watch::Receiver<bool>,
    held: watch::Receiver<bool>,
}

async fn accept(listener: TcpListener, to: To, counted: watch::Sender<usize>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (to, counted) = (to.clone(), counted.clone());
        counted.send_modify(|count| *count += 1);
        connections.spawn(async move {
            relay(client, to).await;
            counted.send_modify(|count| *count -= 1);
        });
    }
}

async fn relay(mut client: TcpStream, mut to: To) {
    if *to.cut.borrow_and_update() {
        return;
    }
    let target = to.target.borrow().clone();
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let has_said = AtomicBool::new(false);
    let up = up(from_client, to_server, to.word, &has_said);
    let down = down(from_server, to_client, &has_said, to.held);
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        // Whatever it is now: this connection is over.
        _ = to.cut.changed() => {}
    }
}

async fn up(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    word: Option<&str>,
    has_said: &AtomicBool,
) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let piece = &piece[..length];
        let says = |word: &str| piece.windows(word.len()).any(|it| it == word.as_bytes());
        if word.is_some_and(says) {
            has_said.store(true, Ordering::SeqCst);
        }
        if to.write_all(piece).await.is_err() {
            break;
        }
    }
    // Who has gone needs no end.
    let _ = to.shutdown().await;
}

async fn down(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    has_said: &AtomicBool,
    mut held: watch::Receiver<bool>,
) {
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if has_said.load(Ordering::SeqCst) {
            // Without its sender, everything is over.
            let _ = held.wait_for(|held| !held).await;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            break;
        }
    }
    // Who has gone needs no end.
    let _ = to.shutdown().await;
}
