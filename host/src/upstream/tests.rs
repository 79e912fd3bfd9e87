//! Exchanges with an endpoint that answers with given bytes, cut at every place.

use super::body::{BodyError, Home, UpstreamBody};
use super::connection::{Connection, Pool, PoolLimits};
use super::exchange::{ExchangeError, ExchangeLimits, Outgoing, Response, exchange};
use super::tls::{self, Tls};
use crate::deadline::{Deadlines, Ticks};
use crate::metrics::{Counters, WorkerCounters};
use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::{Full, StreamBody};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

struct Client {
    pool: Rc<Pool>,
    counters: Arc<Counters>,
    deadlines: Arc<Deadlines>,
}

impl Client {
    fn new() -> Self {
        let deadlines = Deadlines::new();
        let counters = Arc::new(Counters {
            workers: Box::new([WorkerCounters::default()]),
        });
        Self {
            pool: Pool::new(deadlines.clone()),
            counters,
            deadlines,
        }
    }

    fn home(&self) -> Home {
        let limits = PoolLimits {
            per_endpoint_max: 1,
            idle_timeout: Ticks::at_least(HOUR),
        };
        Home {
            pool: self.pool.clone(),
            limits,
            counters: self.counters.clone(),
            worker: 0,
        }
    }

    fn limits() -> ExchangeLimits {
        ExchangeLimits {
            response: Ticks::at_least(HOUR),
            write: Ticks::at_least(HOUR),
            head_bytes_max: 4096,
        }
    }

    /// A connection of its own.
    async fn dial(&self, address: SocketAddr) -> Connection {
        let counters = &self.counters.workers[0];
        let tls = Tls::new(tls::Config::default());
        let dialled = self.pool.dial(address.into(), &tls, HOUR, counters);
        dialled.await.expect("dial")
    }

    /// GET, and the body of the response read to its end.
    async fn get(&self, address: SocketAddr) -> Result<(u16, Vec<u8>, HeaderMap), String> {
        let counters = &self.counters.workers[0];
        let mut connection = match self.pool.take(&address.into(), counters) {
            Some(connection) => connection,
            None => self.dial(address).await,
        };
        let outgoing = Outgoing {
            head: b"GET / HTTP/1.1\r\n\r\n",
            method: &Method::GET,
            websocket: false,
            map: &mut HeaderMap::new(),
        };
        let sent = exchange::<Full<Bytes>>(&mut connection, outgoing, None, Self::limits()).await;
        let Response {
            head,
            received,
            sent_all,
        } = sent.map_err(|error| error.to_string())?;
        assert!(sent_all);
        let idle = Ticks::at_least(HOUR);
        let mut body = UpstreamBody::new(
            connection,
            head.coding,
            head.keep_alive,
            received,
            idle,
            self.home(),
        );
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) = poll_fn(|cx| body.poll_next(cx)).await {
            match frame
                .map_err(|error: BodyError| error.to_string())?
                .into_data()
            {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().expect("trailers"),
            }
        }
        assert!(body.is_complete());
        Ok((head.status.as_u16(), data, trailers))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Answers every request of one connection with the same bytes, in the given pieces, then closes.
fn endpoint(answers: usize, pieces: Vec<Vec<u8>>) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("accept");
        socket.set_nodelay(true).expect("nodelay");
        let mut seen = Vec::new();
        for _ in 0..answers {
            read_head(&mut socket, &mut seen);
            for piece in &pieces {
                // The client may have heard enough.
                let _ = socket.write_all(piece);
            }
        }
        seen
    });
    (address, thread)
}

fn read_head(socket: &mut TcpStream, seen: &mut Vec<u8>) {
    let from = seen.len();
    let mut byte = [0];
    while !seen[from..].ends_with(b"\r\n\r\n") && socket.read(&mut byte).expect("read") == 1 {
        seen.push(byte[0]);
    }
}

fn get_once(pieces: Vec<Vec<u8>>) -> Result<(u16, Vec<u8>, HeaderMap), String> {
    let (address, thread) = endpoint(1, pieces);
    let outcome = block_on(Client::new().get(address));
    thread.join().expect("endpoint");
    outcome
}

#[test]
fn responses_are_the_same_wherever_they_are_cut() {
    for (answer, data) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "hello"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
            "hello",
        ),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello", "hello"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
            "x",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
    ] {
        for cut in 0..answer.len() {
            let pieces = [&answer.as_bytes()[..cut], &answer.as_bytes()[cut..]]
                .map(<[u8]>::to_vec)
                .to_vec();
            let (status, body, _) =
                get_once(pieces).unwrap_or_else(|error| panic!("{answer:?} cut at {cut}: {error}"));
            assert_eq!(
                (status, body),
                (200, data.as_bytes().to_vec()),
                "{answer:?} cut at {cut}"
            );
        }
    }
}

#[test]
fn trailers_are_kept_but_for_those_that_frame() {
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-sum: 7\r\ncontent-length: 9\r\n\r\n";
    let (_, _, trailers) = get_once(vec![answer.to_vec()]).expect("a response");
    assert_eq!(
        (trailers.len(), &trailers["x-sum"]),
        (1, &"7".parse().expect("a value"))
    );
}

#[test]
fn what_is_cut_or_malformed_never_looks_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\ncontent-len",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n",
        "",
    ] {
        assert!(
            get_once(vec![answer.as_bytes().to_vec()]).is_err(),
            "{answer:?}"
        );
    }
    let endless = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(11);
    assert!(get_once(vec![endless.into_bytes()]).is_err());
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}", "a".repeat(9000));
    assert!(get_once(vec![huge.into_bytes()]).is_err());
}

#[test]
fn a_complete_connection_is_used_again_and_a_dirty_one_is_not() {
    let clean = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx".to_vec();
    let (address, thread) = endpoint(3, vec![clean.clone()]);
    block_on(async {
        let client = Client::new();
        for _ in 0..3 {
            assert_eq!(client.get(address).await.expect("a response").1, b"x");
        }
    });
    thread.join().expect("one connection served all three");
    let dirty = [&clean[..], b"stray"].concat();
    let (address, thread) = endpoint(1, vec![dirty]);
    block_on(async {
        let client = Client::new();
        client.get(address).await.expect("a response");
        thread.join().expect("endpoint");
        assert!(
            client
                .pool
                .take(&address.into(), &client.counters.workers[0])
                .is_none()
        );
    });
}

#[test]
fn a_late_response_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let client = Client::new();
    let error = block_on(async {
        let mut connection = client.dial(address).await;
        let outgoing = Outgoing {
            head: b"GET / HTTP/1.1\r\n\r\n",
            method: &Method::GET,
            websocket: false,
            map: &mut HeaderMap::new(),
        };
        let limits = ExchangeLimits {
            response: Ticks::at_least(Duration::from_millis(1)),
            ..Client::limits()
        };
        let mut waiting = std::pin::pin!(exchange::<Full<Bytes>>(
            &mut connection,
            outgoing,
            None,
            limits
        ));
        assert!(futures_poll_once(waiting.as_mut()).await.is_none());
        while client.deadlines.sweep() == 0 {}
        waiting.await.err()
    });
    assert!(matches!(error, Some(ExchangeError::Timeout)), "{error:?}");
}

async fn futures_poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[test]
fn request_bodies_go_out_as_framed() {
    let frames = || {
        let data = |text: &'static str| {
            Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(text.as_bytes())))
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().expect("a value"));
        [
            data("hel"),
            data(""),
            data("lo"),
            Ok(http_body::Frame::trailers(trailers)),
        ]
    };
    for (chunked, expected) in [
        (false, "hello"),
        (true, "3\r\nhel\r\n2\r\nlo\r\n0\r\nx-sum: 7\r\n\r\n"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let thread = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("accept");
            let mut seen = vec![0; expected.len()];
            socket.read_exact(&mut seen).expect("body");
            socket
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .expect("answer");
            String::from_utf8(seen).expect("text")
        });
        let client = Client::new();
        block_on(async {
            let mut connection = client.dial(address).await;
            let mut body = StreamBody::new(futures_util::stream::iter(frames()));
            let outgoing = Outgoing {
                head: b"",
                method: &Method::POST,
                websocket: false,
                map: &mut HeaderMap::new(),
            };
            let sent = exchange(
                &mut connection,
                outgoing,
                Some((Pin::new(&mut body), chunked)),
                Client::limits(),
            )
            .await;
            assert_eq!(
                sent.map(|response| response.head.status.as_u16())
                    .expect("a response"),
                204
            );
        });
        assert_eq!(thread.join().expect("endpoint"), expected);
    }
}
