//! HTTP/2 with prior knowledge, by a real client.

use crate::harness::{Answer, Raw, Setup, TestProxy, TestUpstream, noise, sha256, soon};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use std::net::SocketAddr;
use tokio::net::TcpStream;

async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("connected");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(async move {
        // Whoever sent a request is told.
        let _ = connection.await;
    });
    soon("room for a stream", sender.ready())
        .await
        .expect("ready")
}

fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://example.test{path}"))
}

/// Reads a whole response.
async fn whole(
    response: h2::client::ResponseFuture,
) -> Result<(Response<()>, Vec<u8>, Option<HeaderMap>), h2::Error> {
    let (parts, mut body) = soon("a response", response).await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = soon("a body", body.data()).await {
        let chunk = chunk?;
        bytes.extend_from_slice(&chunk);
        body.flow_control().release_capacity(chunk.len())?;
    }
    let trailers = soon("trailers", body.trailers()).await?;
    Ok((Response::from_parts(parts, ()), bytes, trailers))
}

async fn send(
    address: SocketAddr,
    request: Request<()>,
) -> Result<(Response<()>, Vec<u8>, Option<HeaderMap>), h2::Error> {
    let (response, _) = connect(address).await.send_request(request, true)?;
    whole(response).await
}

/// Sends a body by pieces as the window allows.
async fn send_body(stream: &mut h2::SendStream<Bytes>, mut body: Bytes, end: bool) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = soon("room", std::future::poll_fn(|cx| stream.poll_capacity(cx))).await;
        let room = room
            .expect("the stream is open")
            .expect("room")
            .min(body.len());
        let last = room == body.len() && end;
        stream.send_data(body.split_to(room), last).expect("sent");
    }
}

#[tokio::test]
async fn a_request_goes_out_as_http_1_1() {
    let upstream = TestUpstream::saying("hello").await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let request = get("/p?q=1")
        .header("x-a", "1")
        .header("te", "trailers")
        .body(())
        .expect("valid");
    let (response, body, _) = send(proxy.address, request).await.expect("answered");
    assert_eq!(
        (response.status().as_u16(), body.as_slice()),
        (200, b"hello".as_slice())
    );
    let received = upstream.only();
    assert_eq!(received.line(), "GET /p?q=1 HTTP/1.1");
    assert_eq!(received.header("host"), Some("example.test"));
    assert_eq!(received.header("x-a"), Some("1"));
    assert_eq!(received.header("content-length"), None);
    assert_eq!(received.header("transfer-encoding"), None);
    let line = proxy
        .access_line("the request", |line| line["protocol"] == "h2")
        .await;
    assert_eq!(line["status"], 200);
}

#[tokio::test]
async fn many_streams_of_one_connection_are_answered_side_by_side() {
    let upstream = TestUpstream::answering(|request| Answer::ok(request.line())).await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut sender = connect(proxy.address).await;
    let mut running = Vec::new();
    for n in 0..80 {
        let request = get(&format!("/{n}")).body(()).expect("valid");
        let (response, _) = sender.send_request(request, true).expect("sent");
        sender = soon("room", sender.ready()).await.expect("ready");
        running.push((n, response));
    }
    for (n, response) in running {
        let (_, body, _) = whole(response).await.expect("answered");
        assert_eq!(body, format!("GET /{n} HTTP/1.1").into_bytes());
    }
}

#[tokio::test]
async fn large_bodies_arrive_whole_both_ways() {
    let upstream = TestUpstream::echoing().await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let body = noise(5, 5 << 20);
    let mut sender = connect(proxy.address).await;
    let request = Request::post("http://a/").body(()).expect("valid");
    let (response, mut stream) = sender.send_request(request, false).expect("sent");
    send_body(&mut stream, body.clone().into(), true).await;
    let (_, back, _) = whole(response).await.expect("answered");
    assert_eq!(sha256(&back), sha256(&body));
    assert_eq!(upstream.only().header("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let upstream = TestUpstream::answering(|_| {
        Answer::bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n")
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut sender = connect(proxy.address).await;
    let request = Request::post("http://a/")
        .header("te", "trailers")
        .body(())
        .expect("valid");
    let (response, mut stream) = sender.send_request(request, false).expect("sent");
    send_body(&mut stream, Bytes::from_static(b"hello"), false).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-up", "8".parse().expect("a value"));
    stream.send_trailers(trailers).expect("sent");
    let (_, body, trailers) = whole(response).await.expect("answered");
    assert_eq!(body, b"abc");
    assert_eq!(trailers.expect("trailers")["x-sum"], "7");
    let received = upstream.only();
    assert_eq!(
        (received.body.as_slice(), received.trailers.as_str()),
        (b"hello".as_slice(), "x-up: 8\r\n")
    );
}

#[tokio::test]
async fn cookies_are_joined_into_one_field() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let request = get("/")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("cookie", "c=3");
    send(proxy.address, request.body(()).expect("valid"))
        .await
        .expect("answered");
    let received = upstream.only();
    assert_eq!(
        received
            .head
            .to_ascii_lowercase()
            .matches("cookie:")
            .count(),
        1
    );
    assert_eq!(received.header("cookie"), Some("a=1; b=2; c=3"));
}

/// The frames of a connection with one request of these fields: no library would send what is sent here.
fn frames(fields: &[(&str, &str)]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    // Literal fields with literal names, not indexed (RFC 7541, 6.2.2).
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(
                u8::try_from(text.len())
                    .ok()
                    .filter(|length| *length < 127)
                    .expect("short"),
            );
            block.extend(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block));
    bytes
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What became of a request: a frame that refuses it, or the first byte of its response's fields.
async fn outcome(address: SocketAddr, fields: &[(&str, &str)]) -> String {
    let mut client = Raw::connect(address).await;
    client.send(frames(fields)).await;
    loop {
        let Ok(head) = client.exactly(9).await else {
            return "closed".to_owned();
        };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Ok(payload) = client.exactly(length).await else {
            return "closed".to_owned();
        };
        match head[3] {
            RST_STREAM | GOAWAY => return "refused".to_owned(),
            // The static table's entries of `:status` 200 and 400 (RFC 7541, appendix A).
            HEADERS => match payload[0] {
                0x88 => return "200".to_owned(),
                0x8c => return "400".to_owned(),
                other => return format!("answered, {other:#x}"),
            },
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_http_2_must_not_carry_is_refused() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let pseudo = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "example.test"),
    ];
    let cases: [(&str, &str); 8] = [
        ("connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("te", "gzip"),
        ("host", "other.test"),
        ("X-Upper", "a"),
    ];
    for case in cases {
        let fields = [&pseudo[..], &[case]].concat();
        let outcome = outcome(proxy.address, &fields).await;
        assert!(
            matches!(&*outcome, "400" | "refused"),
            "{case:?}: {outcome}"
        );
    }
    for (at, value) in [
        (0, ""),
        (1, ""),
        (2, ""),
        (2, "a"),
        (3, "user@a"),
        (3, "a b"),
        (3, ""),
    ] {
        let mut fields = pseudo;
        fields[at].1 = value;
        let outcome = outcome(proxy.address, &fields).await;
        assert!(
            matches!(&*outcome, "400" | "refused"),
            "{fields:?}: {outcome}"
        );
    }
    assert_eq!(upstream.connections(), 0);
    assert_eq!(outcome(proxy.address, &pseudo).await, "200");
}

#[tokio::test]
async fn a_length_that_does_not_fit_the_body_is_no_whole_request() {
    let upstream = TestUpstream::echoing().await;
    let proxy = TestProxy::start(&upstream.route()).await;
    for length in ["3", "30"] {
        let mut sender = connect(proxy.address).await;
        let request = Request::post("http://a/")
            .header("content-length", length)
            .body(())
            .expect("valid");
        let (response, mut stream) = sender.send_request(request, false).expect("sent");
        // The library may refuse to send what does not fit.
        let _ = stream.send_data(Bytes::from_static(b"0123456789"), true);
        if let Ok((response, ..)) = whole(response).await {
            assert!(
                response.status().is_client_error(),
                "{length}: {}",
                response.status()
            );
        }
    }
    assert!(upstream.received().is_empty(), "{:?}", upstream.received());
}

#[tokio::test]
async fn connections_that_reset_streams_rapidly_are_cut_and_others_go_on() {
    let upstream = TestUpstream::answering(|_| Answer::Hang).await;
    let proxy = TestProxy::start(&format!(
        "[[route]]\nmatch = {{ path = \"/ok\" }}\nreply = {{ status = 200 }}\n{}",
        upstream.route()
    ))
    .await;
    let stream = TcpStream::connect(proxy.address).await.expect("connected");
    let (sender, connection) = h2::client::Builder::new()
        .handshake::<_, Bytes>(stream)
        .await
        .expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut sender = soon("room", sender.ready()).await.expect("ready");
    let mut cut = false;
    for _ in 0..5_000 {
        let request = get("/slow").body(()).expect("valid");
        match sender.send_request(request, true) {
            Ok((_, mut stream)) => stream.send_reset(h2::Reason::CANCEL),
            Err(_) => {
                cut = true;
                break;
            }
        }
        match soon("room", sender.ready()).await {
            Ok(ready) => sender = ready,
            Err(_) => {
                cut = true;
                break;
            }
        }
        tokio::task::yield_now().await;
    }
    assert!(cut, "5,000 resets on one connection");
    let _ = connection.await;
    assert_eq!(proxy.get("/ok", &[]).await.status, 200);
    assert!(
        upstream.received().len() < 2_000,
        "{} requests upstream",
        upstream.received().len()
    );
}

#[tokio::test]
async fn a_reset_by_the_client_cancels_the_work_upstream() {
    let (told, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let upstream = TestUpstream::raw(move |mut stream, connection| {
        let told = told.clone();
        async move {
            let mut buffer = Vec::new();
            crate::harness::upstream::read_request(&mut stream, &mut buffer, connection, 0).await;
            let _ = told.send("request");
            crate::harness::upstream::read_request(&mut stream, &mut buffer, connection, 1).await;
            let _ = told.send("ended");
        }
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let mut sender = connect(proxy.address).await;
    let (_response, mut stream) = sender
        .send_request(get("/").body(()).expect("valid"), true)
        .expect("sent");
    assert_eq!(soon("the request", ended.recv()).await, Some("request"));
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!(soon("the end", ended.recv()).await, Some("ended"));
}

#[tokio::test]
async fn a_cut_response_resets_its_stream() {
    let upstream = TestUpstream::answering(|_| {
        Answer::last("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    })
    .await;
    let proxy = TestProxy::start(&upstream.route()).await;
    let result = send(proxy.address, get("/").body(()).expect("valid")).await;
    assert!(!matches!(result, Ok((response, ..)) if response.status() == 200));
}

#[tokio::test]
async fn a_drain_lets_running_requests_end() {
    let (upstream, mut held) = TestUpstream::holding().await;
    let mut proxy = TestProxy::start(&upstream.route()).await;
    let mut sender = connect(proxy.address).await;
    let (h2, _) = sender
        .send_request(get("/").body(()).expect("valid"), true)
        .expect("sent");
    let h1 = tokio::spawn(crate::harness::Request::get("/").send(proxy.address));
    for _ in 0..2 {
        held.arrived().await;
    }
    proxy.signal(rustix::process::Signal::TERM);
    proxy.says("draining").await;
    held.go();
    let (_, body, _) = whole(h2).await.expect("answered");
    assert_eq!(body, b"ok");
    assert_eq!(h1.await.expect("answered").text(), "ok");
    drop(sender);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_listener_speaks_only_its_protocols() {
    let only = |protocols: &str| {
        let mut setup = Setup::new("[[route]]\nreply = { status = 200 }\n");
        setup.frame = setup.frame.replace(
            "name = \"web\"\n",
            &format!("name = \"web\"\nprotocols = [{protocols}]\n"),
        );
        setup
    };
    let h1 = only("\"h1\"").start().await;
    assert_eq!(h1.get("/", &[]).await.status, 200);
    let stream = TcpStream::connect(h1.address).await.expect("connected");
    let (mut sender, connection) = h2::client::Builder::new()
        .handshake::<_, Bytes>(stream)
        .await
        .expect("a preface sent");
    let connection = tokio::spawn(connection);
    if let Ok((response, _)) = sender.send_request(get("/").body(()).expect("valid"), true) {
        assert!(whole(response).await.is_err());
    }
    assert!(soon("the end", connection).await.expect("ended").is_err());
    let h2 = only("\"h2c\"").start().await;
    let (response, ..) = send(h2.address, get("/").body(()).expect("valid"))
        .await
        .expect("answered");
    assert_eq!(response.status(), 200);
    let mut client = h2.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!client.rest().await.starts_with(b"HTTP/1.1 200"));
}
