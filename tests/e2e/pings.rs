//! Pings of the proxy's own: they keep boxes on the way awake, and disturb neither end.

use crate::harness::websocket::{self, Socket};
use crate::harness::{TestProxy, TestUpstream, noise, soon};
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

const PINGS: &str = "[streams]\nping_client = \"200ms\"\nping_upstream = \"200ms\"\n";
/// The other end's silence after which a box forgets a connection.
const FORGETS_AFTER: Duration = Duration::from_secs(2);

/// Sends messages in four fragments, over and over, and tells of every message it gets.
async fn talkative(fragments: Vec<Vec<u8>>) -> (TestUpstream, mpsc::UnboundedReceiver<Message>) {
    let (tell, told) = mpsc::unbounded_channel();
    let upstream = TestUpstream::raw(move |stream, _| {
        let (tell, fragments) = (tell.clone(), fragments.clone());
        async move {
            let socket = tokio_tungstenite::accept_async(stream).await;
            let (mut write, mut read) = socket.expect("a WebSocket").split();
            let talking = async {
                loop {
                    for (at, bytes) in fragments.iter().enumerate() {
                        let data = if at == 0 {
                            Data::Binary
                        } else {
                            Data::Continue
                        };
                        let last = at + 1 == fragments.len();
                        let frame = Frame::message(bytes.clone(), OpCode::Data(data), last);
                        if write.send(Message::Frame(frame)).await.is_err() {
                            return;
                        }
                    }
                }
            };
            let listening = async {
                while let Some(Ok(message)) = read.next().await {
                    if tell.send(message).is_err() {
                        return;
                    }
                }
            };
            tokio::join!(talking, listening);
        }
    })
    .await;
    (upstream, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_go_between_the_frames_of_large_messages_and_their_pongs_end_at_the_proxy() {
    let whole = noise(5, 1 << 20);
    let fragments = whole.chunks(whole.len() / 4).map(<[u8]>::to_vec).collect();
    let (upstream, told) = talkative(fragments).await;
    let proxy = TestProxy::start(&format!("{PINGS}{}", upstream.route())).await;
    pings_disturb_nobody(&proxy, told, &whole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_go_between_the_messages_of_a_stream_with_a_session() {
    let whole = noise(6, 1 << 18);
    let fragments = whole.chunks(whole.len() / 4).map(<[u8]>::to_vec).collect();
    let (upstream, told) = talkative(fragments).await;
    let intervals = PINGS.trim_start_matches("[streams]\n");
    let proxy = crate::sessions::proxy_to(&upstream, "", intervals).await;
    pings_disturb_nobody(&proxy, told, &whole).await;
}

/// The client gets the endpoint's messages whole, with pings between them, and the endpoint the client's pongs but none
/// that answers a ping of the proxy.
async fn pings_disturb_nobody(
    proxy: &TestProxy,
    mut told: mpsc::UnboundedReceiver<Message>,
    whole: &[u8],
) {
    let mut socket = websocket::open(proxy.address, &[]).await;
    let (mut pings, mut messages) = (0, 0);
    while pings < 4 || messages < 4 {
        match socket.next().await {
            Message::Ping(_) => {
                pings += 1;
                // The library queues the pong; this sends it. So another's pong follows each of ours.
                socket
                    .send(Message::Pong(format!("mine {pings}").into()))
                    .await;
            }
            Message::Binary(message) => {
                assert!(message == whole, "a message came through as it was sent");
                messages += 1;
            }
            other => panic!("expected a message or a ping, got {other:?}"),
        }
    }
    let (mut pings_upstream, mut pongs) = (0, 0);
    while pongs < pings {
        match soon("a message upstream", told.recv()).await.expect("told") {
            Message::Ping(payload) => {
                assert_eq!(payload.len(), 8);
                pings_upstream += 1;
            }
            Message::Pong(payload) => {
                pongs += 1;
                assert_eq!(
                    payload,
                    format!("mine {pongs}"),
                    "no pong of ours, and every other"
                );
            }
            other => panic!("expected a ping or a pong, got {other:?}"),
        }
    }
    assert!(pings_upstream > 0);
    let counted = proxy.admin().metric("throwbar_stream_pings_total").await;
    assert!(counted >= f64::from(pings + pings_upstream), "{counted}");
}

#[tokio::test]
async fn a_route_may_have_intervals_of_its_own_or_none() {
    let (upstream, _closes) = websocket::echo().await;
    let to = upstream.address;
    let config = format!(
        "[streams]\nping_client = \"300ms\"\n\
         [[route]]\nname = \"quiet\"\nmatch = {{ header = {{ x-quiet = \"*\" }} }}\nto = \"{to}\"\n\
         streams = {{ ping_client = \"0s\" }}\n\
         [[route]]\nname = \"often\"\nmatch = {{ header = {{ x-often = \"*\" }} }}\nto = \"{to}\"\n\
         streams = {{ ping_client = \"100ms\" }}\n{}",
        upstream.route()
    );
    let proxy = TestProxy::start(&config).await;
    let mut quiet = websocket::open(proxy.address, &[("x-quiet", "1")]).await;
    let mut as_all = websocket::open(proxy.address, &[]).await;
    let mut often = websocket::open(proxy.address, &[("x-often", "1")]).await;
    for _ in 0..3 {
        assert!(matches!(as_all.next().await, Message::Ping(_)));
    }
    // What came meanwhile waits to be read before the answer.
    often.send(Message::text("now")).await;
    let mut pings = 0;
    while let Message::Ping(_) = often.next().await {
        pings += 1;
    }
    assert!(pings > 3, "{pings} pings of 100 ms while three came of 300");
    quiet.send(Message::text("first")).await;
    assert_eq!(
        quiet.next().await,
        Message::text("first"),
        "no ping before it"
    );
}

#[tokio::test]
async fn pings_of_the_ends_are_answered_by_the_ends() {
    let (upstream, _closes) = websocket::echo().await;
    let proxy = TestProxy::start(&format!("{PINGS}{}", upstream.route())).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    for at in 0..20 {
        let mine = format!("mine {at}");
        socket.send(Message::Ping(mine.clone().into())).await;
        let pong = loop {
            match socket.next().await {
                Message::Ping(_) => {}
                other => break other,
            }
        };
        assert_eq!(pong, Message::Pong(mine.into()));
    }
}

/// A box that cuts a connection over which nothing comes for a while.
async fn forgetful_box(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(to).await.expect("connected");
                let (mut up, mut down) = ([0; 4096], [0; 4096]);
                loop {
                    let moved = tokio::time::timeout(FORGETS_AFTER, async {
                        tokio::select! {
                            read = inside.read(&mut up) => {
                                let read = read.unwrap_or(0);
                                (read > 0 && outside.write_all(&up[..read]).await.is_ok()).then_some(())
                            }
                            read = outside.read(&mut down) => {
                                let read = read.unwrap_or(0);
                                (read > 0 && inside.write_all(&down[..read]).await.is_ok()).then_some(())
                            }
                        }
                    });
                    if !matches!(moved.await, Ok(Some(()))) {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Opens a silent WebSocket through a forgetful box.
async fn silent(proxy: &TestProxy) -> Socket {
    let mut socket = websocket::open(forgetful_box(proxy.address).await, &[]).await;
    socket.send(Message::text("hello")).await;
    loop {
        match socket.next().await {
            Message::Ping(_) => {}
            other => {
                assert_eq!(other, Message::text("hello"));
                return socket;
            }
        }
    }
}

#[tokio::test]
async fn a_box_that_forgets_silent_connections_is_kept_awake() {
    let (upstream, _closes) = websocket::echo().await;
    let without = TestProxy::start(&upstream.route()).await;
    let mut cut = silent(&without).await;
    assert!(
        !matches!(soon("the cut", cut.0.next()).await, Some(Ok(_))),
        "the box does forget"
    );
    let proxy = TestProxy::start(&format!("{PINGS}{}", upstream.route())).await;
    let mut socket = silent(&proxy).await;
    // So many that the box would have forgotten it twice.
    let pings = 2 * FORGETS_AFTER.as_millis() / 200;
    for _ in 0..pings {
        assert!(matches!(socket.next().await, Message::Ping(_)));
    }
    socket.send(Message::text("still there")).await;
    while let Message::Ping(_) = socket.next().await {}
    assert_eq!(proxy.admin().streams().await.len(), 1);
}

#[tokio::test]
async fn a_client_that_only_answers_pings_is_idle() {
    let (upstream, mut closes) = websocket::echo().await;
    let config = format!("{PINGS}idle_timeout = \"1s\"\n{}", upstream.route());
    let proxy = TestProxy::start(&config).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    // It reads, and so answers, until it is closed.
    let closed = soon("a close, whatever comes before", socket.close_code()).await;
    assert_eq!(closed, Some(1001));
    soon("the close upstream", closes.recv()).await;
    let line = proxy
        .access_line("the close", |line| line["reason"] == "idle-timeout")
        .await;
    assert_eq!(line["route"], "all");
}
