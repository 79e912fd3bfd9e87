//! Traffic that runs beside the steps of the demonstration: one WebSocket that echoes, and plain requests.

use super::websocket::WebSocket;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

const ECHO_EVERY: Duration = Duration::from_millis(200);
const REQUEST_EVERY: Duration = Duration::from_millis(10);
const TIMEOUT: Duration = Duration::from_secs(5);
const BODY_BYTES_MAX: usize = 1 << 20;

/// An answer to a plain request.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its status.
    pub(super) status: StatusCode,
    /// Its body.
    pub(super) body: String,
    /// Sent to read.
    pub(super) took: Duration,
}

/// Requests on one connection, which is kept.
pub(super) struct Requests {
    proxy: SocketAddr,
    sender: SendRequest<Empty<Bytes>>,
}

impl Requests {
    /// Connects.
    ///
    /// # Errors
    /// If nobody answers there.
    pub(super) async fn open(proxy: SocketAddr) -> anyhow::Result<Self> {
        let socket = tokio::net::TcpStream::connect(proxy).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        Ok(Self { proxy, sender })
    }

    /// Asks for `/` with these header fields.
    ///
    /// # Errors
    /// If there is no whole answer in time.
    pub(super) async fn get(&mut self, fields: &[(&str, String)]) -> anyhow::Result<Answer> {
        let mut request = Request::get("/").header(header::HOST, self.proxy.to_string());
        for (name, value) in fields {
            request = request.header(*name, value);
        }
        let request = request.body(Empty::new())?;
        let started = Instant::now();
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
                .collect()
                .await
                .map_err(|e| anyhow::anyhow!("read the answer: {e}"))?
                .to_bytes();
            Ok(Answer {
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
                took: started.elapsed(),
            })
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {TIMEOUT:?}"))?
    }
}

/// What happened to one kind of traffic so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Exchanges that went well.
    pub(super) done: u64,
    /// The longest of them.
    pub(super) longest: Duration,
    /// What ended it.
    pub(super) failure: Option<String>,
}

/// Traffic of one kind; it ends when this is dropped.
pub(super) struct Traffic {
    tally: Rc<RefCell<Tally>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Traffic {
    /// Echoes on a WebSocket, five times a second.
    pub(super) fn echoes(mut socket: WebSocket) -> Self {
        Self::start(move |tally| async move {
            loop {
                let started = Instant::now();
                let number = tally.borrow().done + 1;
                socket.echo(&format!("message {number}")).await?;
                count(&tally, started);
                tokio::time::sleep(ECHO_EVERY).await;
            }
        })
    }

    /// Sends a request a hundred times a second; each must be answered with 200.
    pub(super) fn requests(mut requests: Requests, fields: Vec<(&'static str, String)>) -> Self {
        Self::start(move |tally| async move {
            loop {
                let started = Instant::now();
                let answer = requests.get(&fields).await?;
                anyhow::ensure!(
                    answer.status == StatusCode::OK,
                    "a request was answered with {}: {}",
                    answer.status,
                    answer.body
                );
                count(&tally, started);
                tokio::time::sleep(REQUEST_EVERY).await;
            }
        })
    }

    fn start<F>(work: impl FnOnce(Rc<RefCell<Tally>>) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + 'static,
    {
        let tally = Rc::<RefCell<Tally>>::default();
        let work = work(tally.clone());
        let task = tokio::task::spawn_local({
            let tally = tally.clone();
            async move {
                if let Err(error) = work.await {
                    tally.borrow_mut().failure = Some(format!("{error:#}"));
                }
            }
        });
        Self { tally, task }
    }

    /// What happened so far.
    pub(super) fn tally(&self) -> Tally {
        self.tally.borrow().clone()
    }

    /// Waits until `more` exchanges began and ended from now on, or one failed.
    pub(super) async fn goes_on(&self, more: u64) -> Tally {
        // The one that runs now may have been answered before: it proves nothing.
        let wanted = self.tally().done + 1 + more;
        let deadline = Instant::now() + TIMEOUT * 2;
        loop {
            let mut tally = self.tally();
            if tally.done >= wanted || tally.failure.is_some() {
                return tally;
            }
            if Instant::now() > deadline {
                tally.failure = Some("it stands still".to_owned());
                return tally;
            }
            tokio::time::sleep(REQUEST_EVERY).await;
        }
    }
}

fn count(tally: &RefCell<Tally>, started: Instant) {
    let mut tally = tally.borrow_mut();
    tally.done += 1;
    tally.longest = tally.longest.max(started.elapsed());
}
