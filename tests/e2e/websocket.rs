//! WebSockets: only they are upgraded, and once open they are left alone.

use crate::harness::websocket::{self, CloseCode};
use crate::harness::{Answer, Raw, Setup, TestProxy, TestUpstream, noise, raw, soon};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

const ASK: &str = "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// The answer to the key above.
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An endpoint that accepts an upgrade and hands the raw socket to a function.
async fn accepting<F: std::future::Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + Sync + Clone + 'static,
) -> TestUpstream {
    TestUpstream::raw(move |mut stream, _| {
        let serve = serve.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(ACCEPT.as_bytes()).await;
            serve(stream).await;
        }
    })
    .await
}

async fn read_head(stream: &mut TcpStream) -> Vec<u8> {
    let mut buffer = Vec::new();
    while raw::find(&buffer, b"\r\n\r\n").is_none() {
        match stream.read_u8().await {
            Ok(byte) => buffer.push(byte),
            Err(_) => break,
        }
    }
    buffer
}

async fn upgraded(proxy: &TestProxy) -> Raw {
    let mut client = proxy.raw().await;
    assert_eq!(client.ask(ASK).await.status, 101);
    client
}

#[tokio::test]
async fn messages_of_every_kind_go_both_ways() {
    let (upstream, mut closes) = websocket::echo().await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("hello").await;
    let large = Message::binary(noise(3, 5 << 20));
    socket.send(large.clone()).await;
    assert!(socket.next().await == large, "5 MiB came back whole");
    socket.send(Message::Ping("are you there".into())).await;
    assert_eq!(socket.next().await, Message::Pong("are you there".into()));
    let close = CloseFrame {
        code: CloseCode::Library(4001),
        reason: "done".into(),
    };
    socket.send(Message::Close(Some(close))).await;
    assert_eq!(socket.close_code().await, Some(4001));
    assert_eq!(
        soon("the close upstream", closes.recv()).await,
        Some(Some(4001))
    );
    drop(socket);
    proxy.admin().streams_are(0).await;
}

#[tokio::test]
async fn an_endpoint_may_close_first() {
    let upstream = TestUpstream::raw(|stream, _| async move {
        use futures_util::{SinkExt, StreamExt};
        let mut socket = tokio_tungstenite::accept_async(stream)
            .await
            .expect("accepted");
        let close = CloseFrame {
            code: CloseCode::Library(4002),
            reason: "".into(),
        };
        let _ = socket.send(Message::Close(Some(close))).await;
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    assert_eq!(socket.close_code().await, Some(4002));
    drop(socket);
    proxy.admin().streams_are(0).await;
}

#[tokio::test]
async fn bytes_right_behind_either_head_are_not_lost() {
    let upstream = TestUpstream::raw(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream
            .write_all(format!("{ACCEPT}welcome").as_bytes())
            .await;
        let mut buffer = [0; 5];
        let _ = stream.read_exact(&mut buffer).await;
        let _ = stream.write_all(&buffer).await;
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = upgraded(&proxy).await;
    assert_eq!(client.exactly(7).await.expect("bytes"), b"welcome");
    client.send("early").await;
    assert_eq!(client.exactly(5).await.expect("bytes"), b"early");
}

#[tokio::test]
async fn nothing_is_forwarded_before_a_valid_101() {
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let (go, wait) = tokio::sync::watch::channel(false);
    let upstream = TestUpstream::raw(move |mut stream, _| {
        let (told, mut wait) = (told.clone(), wait.clone());
        async move {
            let head = read_head(&mut stream).await;
            // Whatever was sent on before the answer would be here by the time the test says go.
            let _ = wait.wait_for(|go| *go).await;
            let mut early = [0; 64];
            let early = stream.try_read(&mut early).unwrap_or(0);
            let _ = told.send((head, early));
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
            let _ = stream.write_all(answer).await;
            let mut after = Vec::new();
            let _ = stream.read_to_end(&mut after).await;
            let _ = told.send((after, 0));
        }
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    client
        .send(format!("{ASK}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"))
        .await;
    // Another request is answered meanwhile: the bytes have had their time.
    proxy.admin().get("/v1/status").await;
    go.send_replace(true);
    let (_, early) = soon("the head upstream", seen.recv()).await.expect("seen");
    assert_eq!(early, 0, "bytes before the 101");
    if let Ok(response) = client.try_response(false).await {
        assert!(matches!(response.status, 200 | 400), "{response:?}");
    }
    client.rest().await;
    let (after, _) = soon("the end upstream", seen.recv()).await.expect("seen");
    assert!(after.is_empty(), "{:?}", String::from_utf8_lossy(&after));
}

#[tokio::test]
async fn only_websockets_are_upgraded() {
    let upstream = TestUpstream::saying("plain").await;
    let proxy = TestProxy::start(&upstream.route()).await;
    for upgrade in ["h2c", "websocket, h2c", "TLS/1.0", "websockets"] {
        let mut client = proxy.raw().await;
        let message = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\n\
             HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
        );
        let response = client.ask(message).await;
        assert_eq!(response.status, 200, "{upgrade}");
    }
    for received in upstream.received() {
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(received.header(name), None, "{}", received.head);
        }
    }
}

#[tokio::test]
async fn a_wrong_answer_to_the_key_is_502() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let upstream = TestUpstream::answering(move |_| Answer::bytes(answer)).await;
        let proxy = TestProxy::start(&upstream.route()).await;
        let mut client = proxy.raw().await;
        assert_eq!(client.ask(ASK).await.status, 502);
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn another_answer_to_an_upgrade_is_relayed_and_ends_the_connection() {
    let upstream = TestUpstream::answering(|_| {
        Answer::bytes("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = proxy.raw().await;
    let response = client.ask(ASK).await;
    assert_eq!(
        (response.status, response.body.as_slice()),
        (403, b"no".as_slice())
    );
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn requests_to_upgrade_that_are_not_valid_are_refused() {
    let upstream = TestUpstream::saying("no").await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let cases = [
        (ASK.replace("GET", "POST"), 400),
        (ASK.replace("Version: 13", "Version: 8"), 426),
        (ASK.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
        (
            ASK.replace("\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc"),
            400,
        ),
        (
            ASK.replace(
                "\r\n\r\n",
                "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            400,
        ),
    ];
    for (message, status) in cases {
        let mut client = proxy.raw().await;
        assert_eq!(client.ask(&message).await.status, status, "{message}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a_half_close_is_relayed_at_once_and_the_other_half_goes_on() {
    let upstream = accepting(|mut stream| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        let _ = stream
            .write_all(format!("got {}", all.len()).as_bytes())
            .await;
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut client = upgraded(&proxy).await;
    client.send("12345").await;
    client.stream.shutdown().await.expect("half closed");
    assert_eq!(client.rest().await, b"got 5");
    proxy.admin().streams_are(0).await;
}

#[tokio::test]
async fn a_peer_that_never_reads_costs_little_memory_and_holds_the_other_back() {
    const EACH: usize = 32 << 20;
    let upstream = accepting(|mut stream| async move {
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..EACH / chunk.len() {
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut clients = vec![upgraded(&proxy).await];
    let before = proxy.rss_kib();
    for _ in 1..30 {
        clients.push(upgraded(&proxy).await);
    }
    proxy.admin().streams_are(30).await;
    let grown = proxy.rss_kib().saturating_sub(before);
    assert!(
        grown < 10 << 10,
        "{grown} KiB for 30 streams that nobody reads"
    );
    assert_eq!(clients[7].rest().await.len(), EACH);
}

#[tokio::test]
async fn an_idle_stream_is_closed_after_its_time() {
    let (upstream, mut closes) = websocket::echo().await;
    let config = format!("[streams]\nidle_timeout = \"500ms\"\n{}", upstream.route());
    let proxy = TestProxy::start(&config).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("hello").await;
    assert!(
        socket.close_code().await.is_some(),
        "a close frame, not a cut"
    );
    soon("the close upstream", closes.recv()).await;
    proxy.admin().streams_are(0).await;
}

#[tokio::test]
async fn an_old_stream_is_closed_though_it_is_busy() {
    let (upstream, _closes) = websocket::echo().await;
    let config = format!("[streams]\nage_max = \"500ms\"\n{}", upstream.route());
    let proxy = TestProxy::start(&config).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    let busy = async {
        use futures_util::{SinkExt, StreamExt};
        loop {
            if socket.0.send(Message::text("x")).await.is_err() {
                return;
            }
            match socket.0.next().await {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    };
    soon("the old stream closed", busy).await;
    proxy.admin().streams_are(0).await;
}

#[tokio::test]
async fn streams_are_listed_and_one_can_be_closed_towards_both_ends() {
    let (upstream, mut closes) = websocket::echo().await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let admin = proxy.admin();
    let mut kept = websocket::open(proxy.address, &[]).await;
    kept.echo("kept").await;
    let old = admin.streams_are(1).await;
    let mut closed = websocket::open(proxy.address, &[]).await;
    closed.echo("closed").await;
    let both = admin.streams_are(2).await;
    let new = both
        .iter()
        .find(|s| s["id"] != old[0]["id"])
        .expect("another")
        .clone();
    assert_eq!(new["route"], "all");
    assert_eq!(new["endpoint"], upstream.address.to_string());
    assert!(new["bytes_up"].as_u64().expect("a number") > 0, "{new}");
    assert!(new["bytes_down"].as_u64().expect("a number") > 0, "{new}");
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_536] {
        let refused = admin
            .delete(&format!("/v1/streams/{}?code={code}", new["id"]))
            .await;
        assert_eq!(refused.status, 400, "{code}");
        assert!(refused.text().contains("code"), "{}", refused.text());
    }
    admin.streams_are(2).await;
    let path = format!("/v1/streams/{}?code=4321&reason=bye", new["id"]);
    assert_eq!(admin.delete(&path).await.status, 204);
    assert_eq!(closed.close_code().await, Some(4321));
    assert_eq!(
        soon("the close upstream", closes.recv()).await,
        Some(Some(4321))
    );
    assert_eq!(admin.delete(&path).await.status, 404);
    kept.echo("still there").await;
    admin.streams_are(1).await;
    assert_eq!(admin.metric("throwbar_streams_opened_total").await, 2.0);
}

#[tokio::test]
async fn a_drain_waits_for_streams_then_closes_them_with_1001() {
    let (upstream, mut closes) = websocket::echo().await;
    let config = format!("[streams]\nshutdown_grace = \"1s\"\n{}", upstream.route());
    let mut proxy = TestProxy::start(&config).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("before").await;
    proxy.signal(Signal::TERM);
    proxy.says("draining").await;
    socket.echo("during the grace").await;
    assert_eq!(socket.close_code().await, Some(1001));
    assert_eq!(
        soon("the close upstream", closes.recv()).await,
        Some(Some(1001))
    );
    assert_eq!(proxy.ended().await.code(), Some(0));
}

/// A proxy that drains for ten minutes, and the stream it waits for.
async fn draining_with_a_stream() -> (
    TestProxy,
    websocket::Socket,
    (TestUpstream, websocket::Closes),
) {
    let (upstream, closes) = websocket::echo().await;
    let config = format!("[streams]\nshutdown_grace = \"10m\"\n{}", upstream.route());
    let proxy = TestProxy::start(&config).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("before").await;
    proxy.signal(Signal::TERM);
    proxy.says("draining").await;
    (proxy, socket, (upstream, closes))
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let (mut proxy, mut socket, _upstream) = draining_with_a_stream().await;
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    assert_eq!(socket.close_code().await, None);
}

#[tokio::test]
async fn a_drain_ends_as_soon_as_the_last_stream_does() {
    let (mut proxy, socket, _upstream) = draining_with_a_stream().await;
    socket.close().await;
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() {
    let (upstream, _closes) = websocket::echo().await;
    let config = format!("[streams]\nstreams_max = 2\n{}", upstream.route());
    let proxy = Setup::new(config).workers(1).start().await;
    let mut first = websocket::open(proxy.address, &[]).await;
    let _second = websocket::open(proxy.address, &[]).await;
    proxy.admin().streams_are(2).await;
    assert!(websocket::try_open(proxy.address, &[]).await.is_err());
    first.echo("as before").await;
}
