//! Upstreams that record what they receive byte for byte, and misbehave when told to.

use super::raw::{field, find};
use super::{eventually, soon};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its head, final empty line included.
    pub head: String,
    /// Its body, chunks joined.
    pub body: Vec<u8>,
    /// Every byte of it.
    pub raw: Vec<u8>,
    /// Its trailer section.
    pub trailers: String,
    /// On which connection, counted from 0.
    pub connection: usize,
    /// Which request of that connection, counted from 0.
    pub number: usize,
}

impl Received {
    /// A field's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// The request line.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

/// What to do with a request.
pub enum Answer {
    /// Send bytes and go on.
    Send(Vec<u8>),
    /// Send bytes, then close.
    Last(Vec<u8>),
    /// Keep the connection and say nothing.
    Hang,
    /// Reset the connection.
    Reset,
}

impl Answer {
    /// 200 with a body.
    pub fn ok(body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut bytes =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        Self::Send(bytes)
    }

    /// These bytes, and go on.
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Self {
        Self::Send(bytes.as_ref().to_vec())
    }

    /// These bytes, then close.
    pub fn last(bytes: impl AsRef<[u8]>) -> Self {
        Self::Last(bytes.as_ref().to_vec())
    }
}

/// A running upstream.
pub struct TestUpstream {
    /// Where it listens.
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for TestUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Requests that an upstream holds.
#[derive(Debug)]
pub struct Held {
    arrived: tokio::sync::mpsc::UnboundedReceiver<()>,
    go: tokio::sync::watch::Sender<bool>,
}

impl Held {
    /// Waits for the next one.
    pub async fn arrived(&mut self) {
        soon("a request upstream", self.arrived.recv()).await;
    }

    /// Answers all of them.
    pub fn go(&self) {
        self.go.send_replace(true);
    }
}

impl TestUpstream {
    /// Answers each request as a function says.
    pub async fn answering(answer: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::answering_at("127.0.0.1:0", answer).await
    }

    /// The same at an address.
    pub async fn answering_at(
        address: &str,
        answer: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (received.clone(), Arc::new(answer));
        Self::listening(address, received, move |stream, connection| {
            converse(stream, connection, log.clone(), answer.clone())
        })
        .await
    }

    /// 200 and this text to everything.
    pub async fn saying(text: &'static str) -> Self {
        Self::answering(move |_| Answer::ok(text)).await
    }

    /// 200 and the request's own body.
    pub async fn echoing() -> Self {
        Self::answering(|request| Answer::ok(&request.body)).await
    }

    /// 200 and `ok` to the first request of each connection, once `go` says so; it tells when one has arrived.
    pub async fn holding() -> (Self, Held) {
        let (told, arrived) = tokio::sync::mpsc::unbounded_channel();
        let (go, wait) = tokio::sync::watch::channel(false);
        let upstream = Self::raw(move |mut stream, connection| {
            let (told, mut wait) = (told.clone(), wait.clone());
            async move {
                let mut buffer = Vec::new();
                read_request(&mut stream, &mut buffer, connection, 0).await;
                let _ = told.send(());
                let _ = wait.wait_for(|go| *go).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
            }
        })
        .await;
        (upstream, Held { arrived, go })
    }

    /// Gives each connection to a function.
    pub async fn raw<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        Self::listening("127.0.0.1:0", Arc::default(), serve).await
    }

    async fn listening<F: Future<Output = ()> + Send + 'static>(
        address: &str,
        received: Arc<Mutex<Vec<Received>>>,
        serve: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let connection = counter.fetch_add(1, Ordering::SeqCst);
                tasks.spawn(serve(stream, connection));
            }
        });
        Self {
            address,
            received,
            connections,
            task,
        }
    }

    /// Its port.
    pub fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// A route that sends everything to it.
    pub fn route(&self) -> String {
        format!("[[route]]\nname = \"all\"\nto = \"{}\"\n", self.address)
    }

    /// What it received so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("not poisoned").clone()
    }

    /// The only request it received.
    pub fn only(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received.into_iter().next().expect("one")
    }

    /// Waits for so many requests.
    pub async fn receives(&self, count: usize) -> Vec<Received> {
        eventually(&format!("{count} requests upstream"), || {
            let received = self.received();
            async move { (received.len() >= count).then_some(received) }
        })
        .await
    }

    /// How many connections it has taken.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn converse(
    mut stream: TcpStream,
    connection: usize,
    log: Arc<Mutex<Vec<Received>>>,
    answer: Arc<impl Fn(&Received) -> Answer>,
) {
    let mut buffer = Vec::new();
    for number in 0.. {
        let Some(request) = read_request(&mut stream, &mut buffer, connection, number).await else {
            return;
        };
        log.lock().expect("not poisoned").push(request.clone());
        match answer(&request) {
            Answer::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Answer::Last(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Answer::Hang => {
                // Until the other side has had enough.
                let _ = stream.read_u8().await;
                return;
            }
            Answer::Reset => {
                reset(stream);
                return;
            }
        }
    }
}

/// Ends a connection with a reset.
pub fn reset(stream: TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO));
}

/// Reads one request, or nothing if the connection ends.
pub async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    connection: usize,
    number: usize,
) -> Option<Received> {
    let head_end = until(stream, buffer, 0, b"\r\n\r\n").await?;
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let (mut body, mut trailers) = (Vec::new(), String::new());
    let mut at = head_end;
    if field(&head, "transfer-encoding").is_some() {
        loop {
            let line_end = until(stream, buffer, at, b"\r\n").await?;
            let line = String::from_utf8_lossy(&buffer[at..line_end]).into_owned();
            let size =
                usize::from_str_radix(line.trim(), 16).expect("our chunks have no extensions");
            at = line_end;
            if size == 0 {
                break;
            }
            fill(stream, buffer, at + size + 2).await?;
            body.extend_from_slice(&buffer[at..at + size]);
            at += size + 2;
        }
        loop {
            let line_end = until(stream, buffer, at, b"\r\n").await?;
            let line = String::from_utf8_lossy(&buffer[at..line_end]).into_owned();
            at = line_end;
            if line == "\r\n" {
                break;
            }
            trailers.push_str(&line);
        }
    } else if let Some(length) = field(&head, "content-length") {
        let length: usize = length.parse().expect("our lengths are numbers");
        fill(stream, buffer, at + length).await?;
        body.extend_from_slice(&buffer[at..at + length]);
        at += length;
    }
    let rest = buffer.split_off(at);
    let raw = std::mem::replace(buffer, rest);
    Some(Received {
        head,
        body,
        raw,
        trailers,
        connection,
        number,
    })
}

async fn until(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    from: usize,
    text: &[u8],
) -> Option<usize> {
    loop {
        if let Some(at) = find(&buffer[from..], text) {
            return Some(from + at + text.len());
        }
        more(stream, buffer).await?;
    }
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<()> {
    while buffer.len() < length {
        more(stream, buffer).await?;
    }
    Some(())
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut chunk = vec![0; 64 << 10];
    match stream.read(&mut chunk).await {
        Ok(0) | Err(_) => None,
        Ok(length) => {
            buffer.extend_from_slice(&chunk[..length]);
            Some(())
        }
    }
}
