//! Stream hooks: a plugin sees the messages of the WebSockets it forwards, each in a session of the version that accepted
//! the stream.

use crate::harness::websocket::{self, Closes, Socket};
use crate::harness::{Raw, Setup, TestProxy, TestUpstream, fixture, fixture_path, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

mod messages;

const ASK: &str = "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// One worker, so that streams share an instance. `x-plain` goes past the plugins, `x-other` to another one of the same
/// bytes.
pub(crate) async fn proxy_to(upstream: &TestUpstream, sessions: &str, streams: &str) -> TestProxy {
    let component = fixture_path("sessions-a");
    let config = format!(
        r#"
[buckets.upstreams]
backend = "memory"
[upstreams.echo]
endpoints = ["{address}"]
[plugins.chat]
source = "{component}"
buckets = {{ upstreams = "write" }}
# Long, for a busy machine.
limits = {{ deadline = "500ms" }}
[plugins.chat.sessions]
{sessions}
[plugins.other]
source = "{component}"
limits = {{ deadline = "500ms" }}
[streams]
{streams}
[[route]]
name = "plain"
match = {{ header = {{ x-plain = "*" }} }}
upstream = "echo"
[[route]]
name = "other"
match = {{ header = {{ x-other = "*" }} }}
plugin = "other"
[[route]]
name = "chat"
plugin = "chat"
"#,
        address = upstream.address,
        component = component.display(),
    );
    Setup::new(config).workers(1).start().await
}

async fn proxy(sessions: &str) -> (TestProxy, TestUpstream, Closes) {
    let (upstream, closes) = websocket::echo().await;
    let proxy = proxy_to(&upstream, sessions, "").await;
    (proxy, upstream, closes)
}

/// An endpoint that accepts an upgrade, and then does nothing until the other side ends.
async fn silent() -> TestUpstream {
    TestUpstream::raw(|mut stream, _| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let _ = stream.write_all(ACCEPT.as_bytes()).await;
        std::future::pending::<()>().await;
    })
    .await
}

async fn raw(proxy: &TestProxy, fields: &str) -> Raw {
    let mut raw = proxy.raw().await;
    let response = raw.ask(format!("{ASK}{fields}\r\n")).await;
    assert_eq!(response.status, 101, "{}", response.head);
    raw
}

/// Sends a text and expects another in answer.
pub(crate) async fn ask(socket: &mut Socket, text: &str, answer: &str) {
    socket.send(Message::text(text)).await;
    assert_eq!(socket.next().await, Message::text(answer), "to {text:?}");
}

/// The status with which an upgrade is refused, and its body.
async fn refused(proxy: &TestProxy, fields: &[(&str, &str)]) -> (u16, String) {
    match websocket::try_open(proxy.address, fields).await {
        Err(Error::Http(response)) => (
            response.status().as_u16(),
            String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned(),
        ),
        Err(other) => panic!("expected a response, got {other}"),
        Ok(_) => panic!("expected a refusal"),
    }
}

#[tokio::test]
async fn a_stream_keeps_its_version_and_state_over_ten_swaps() {
    let (proxy, _upstream, _closes) = proxy("").await;
    let admin = proxy.admin();
    let mut first = websocket::open(proxy.address, &[]).await;
    ask(&mut first, "who", "a 1 1").await;
    let versions = [fixture("sessions-b"), fixture("sessions-a")];
    let mut others = Vec::new();
    for swap in 0..10 {
        admin.push_ok("chat", versions[swap % 2].clone()).await;
        let mut other = websocket::open(proxy.address, &[]).await;
        let name = ["b", "a"][swap % 2];
        ask(&mut other, "who", &format!("{name} 1 1")).await;
        others.push((other, name));
        ask(&mut first, "who", &format!("a 1 {}", swap + 2)).await;
    }
    for (other, name) in &mut others {
        ask(other, "who", &format!("{name} 1 2")).await;
    }
    admin
        .metric_is("throwbar_sessions{plugin=\"chat\"", |sessions| {
            sessions == 11.0
        })
        .await;
    for (other, _) in others {
        other.close().await;
    }
    ask(&mut first, "who", "a 1 12").await;
    first.close().await;
    admin
        .metric_is("throwbar_sessions{plugin=\"chat\"", |sessions| {
            sessions == 0.0
        })
        .await;
}

#[tokio::test]
async fn a_trap_closes_the_sessions_of_its_instance_and_nothing_else() {
    for order in ["trap", "spin", "down:trap"] {
        let (proxy, _upstream, mut closes) = proxy("").await;
        let mut plain = websocket::open(proxy.address, &[("x-plain", "1")]).await;
        let mut other = websocket::open(proxy.address, &[("x-other", "1")]).await;
        let mut beside = websocket::open(proxy.address, &[]).await;
        ask(&mut beside, "who", "a 1 1").await;
        proxy.admin().push_ok("chat", fixture("sessions-b")).await;
        let mut newer = websocket::open(proxy.address, &[]).await;
        ask(&mut newer, "who", "b 1 1").await;
        proxy.admin().push_ok("chat", fixture("sessions-a")).await;
        let mut faulty = websocket::open(proxy.address, &[]).await;
        let mut sharing = websocket::open(proxy.address, &[]).await;
        ask(&mut sharing, "who", "a 2 1").await;
        faulty.send(Message::text(order)).await;
        assert_eq!(faulty.close_code().await, Some(1011), "{order}");
        assert_eq!(sharing.close_code().await, Some(1011), "{order}");
        for _ in 0..2 {
            let code = soon("the close upstream", closes.recv()).await;
            assert_eq!(code, Some(Some(1011)));
        }
        ask(&mut beside, "who", "a 1 2").await;
        ask(&mut newer, "who", "b 1 2").await;
        ask(&mut other, "who", "a 1 1").await;
        plain.echo("drop").await;
        let mut next = websocket::open(proxy.address, &[]).await;
        ask(&mut next, "who", "a 1 1").await;
        let closed = proxy
            .access_line("the end", |line| line["reason"] == "session-failed")
            .await;
        assert_eq!(closed["session"], "failed");
        let kind = if order == "spin" { "deadline" } else { "trap" };
        let name = format!("throwbar_session_errors_total{{plugin=\"chat\",kind=\"{kind}\"}}");
        proxy.admin().metric_is(&name, |errors| errors == 1.0).await;
    }
}

#[tokio::test]
async fn lost_sessions_are_rebuilt_from_the_request_and_what_they_saved() {
    let (proxy, _upstream, _closes) = proxy("on_trap = \"rebuild\"").await;
    let mut faulty = websocket::open(proxy.address, &[("x-id", "id1")]).await;
    let mut sharing = websocket::open(proxy.address, &[("x-id", "id2")]).await;
    for (socket, state) in [(&mut faulty, "save one"), (&mut sharing, "save two")] {
        socket.send(Message::text(state)).await;
        ask(socket, "state", "").await;
    }
    // What it could not judge is not sent on.
    faulty.send(Message::text("trap")).await;
    ask(&mut faulty, "state", "one+id1").await;
    ask(&mut sharing, "state", "two+id2").await;
    // What is not saved again is kept.
    sharing.send(Message::text("trap")).await;
    ask(&mut sharing, "state", "two+id2").await;
    sharing.echo("goes on").await;
    faulty.close().await;
    let closed = proxy
        .access_line("the end", |line| line["kind"] == "stream-close")
        .await;
    assert_eq!(closed["session"], "rebuilt");
}

#[tokio::test]
async fn lists_of_streams_tell_of_their_sessions() {
    let (proxy, _upstream, _closes) = proxy("on_trap = \"rebuild\"\nisolated = true").await;
    let mut plain = websocket::open(proxy.address, &[("x-plain", "1")]).await;
    plain.echo("not shown").await;
    let mut hooked = websocket::open(proxy.address, &[]).await;
    ask(&mut hooked, "who", "a 1 1").await;
    hooked.echo("both ways").await;
    hooked.send(Message::text("trap")).await;
    ask(&mut hooked, "state", "+").await;
    let streams = proxy.admin().streams_are(2).await;
    assert_eq!(streams[0]["session"], serde_json::Value::Null);
    let told = serde_json::json!({
        "state": "rebuilt", "isolated": true, "messages_up": 4, "messages_down": 1, "ticks": 0,
        "failures": 1, "rebuilds": 1,
    });
    assert_eq!(streams[1]["session"], told);
    let listed = proxy.run(&["streams", "ls"]).await;
    for expected in ["SESSION", "rebuilt 1, isolated", "4/1"] {
        assert!(listed.stdout.contains(expected), "{}", listed.stdout);
    }
}

#[tokio::test]
async fn a_bad_verdict_costs_its_own_session_only() {
    let (proxy, _upstream, _closes) = proxy("on_trap = \"rebuild\"").await;
    let mut faulty = websocket::open(proxy.address, &[]).await;
    let mut sharing = websocket::open(proxy.address, &[]).await;
    ask(&mut sharing, "who", "a 2 1").await;
    for order in ["replace-garbage", "close 1005"] {
        faulty.send(Message::text(order)).await;
        ask(&mut faulty, "state", "+").await;
    }
    ask(&mut sharing, "who", "a 2 2").await;
    let name = "throwbar_session_errors_total{plugin=\"chat\",kind=\"bad_verdict\"}";
    proxy.admin().metric_is(name, |errors| errors == 2.0).await;
    proxy.says("close code 1005, expected").await;
}

#[tokio::test]
async fn sessions_that_fail_too_often_are_closed() {
    let (proxy, _upstream, _closes) = proxy("on_trap = \"rebuild\"\nrebuilds_per_minute = 2").await;
    let mut faulty = websocket::open(proxy.address, &[]).await;
    for _ in 0..2 {
        faulty.send(Message::text("trap")).await;
        ask(&mut faulty, "state", "+").await;
    }
    faulty.send(Message::text("trap")).await;
    assert_eq!(faulty.close_code().await, Some(1011));
    // One whose new session fails, too, is closed at once.
    let (proxy, _upstream, _closes) = self::proxy("on_trap = \"rebuild\"").await;
    let mut hopeless = websocket::open(proxy.address, &[("x-open", "trap-again")]).await;
    let mut sharing = websocket::open(proxy.address, &[]).await;
    hopeless.send(Message::text("trap")).await;
    assert_eq!(hopeless.close_code().await, Some(1011));
    ask(&mut sharing, "state", "+").await;
}

#[tokio::test]
async fn streams_of_lost_sessions_can_go_on_without() {
    let (proxy, _upstream, _closes) = proxy("on_trap = \"pass\"").await;
    let mut faulty = websocket::open(proxy.address, &[]).await;
    let mut sharing = websocket::open(proxy.address, &[]).await;
    // The first fragment of a message that is whole after the trap only.
    let fragment = |text: &str, opcode, last| {
        Message::Frame(Frame::message(
            text.as_bytes().to_vec(),
            OpCode::Data(opcode),
            last,
        ))
    };
    sharing.send(fragment("dr", Data::Text, false)).await;
    sharing.send(Message::Ping("read".into())).await;
    assert_eq!(sharing.next().await, Message::Pong("read".into()));
    faulty.echo("trap").await;
    faulty.echo("drop").await;
    sharing.send(fragment("op", Data::Continue, true)).await;
    assert_eq!(sharing.next().await, Message::text("drop"));
    sharing.close().await;
    let closed = proxy
        .access_line("the end", |line| line["kind"] == "stream-close")
        .await;
    assert_eq!(closed["session"], "unhooked");
    // An open that fails lets the stream go on as well.
    let mut unopened = websocket::open(proxy.address, &[("x-open", "trap")]).await;
    unopened.echo("drop").await;
}

#[tokio::test]
async fn isolated_sessions_share_nothing_and_are_bounded() {
    let (proxy, upstream, _closes) = proxy("isolated = true\nisolated_max = 2").await;
    let mut first = websocket::open(proxy.address, &[]).await;
    let mut second = websocket::open(proxy.address, &[]).await;
    ask(&mut first, "who", "a 1 1").await;
    ask(&mut second, "who", "a 1 1").await;
    let (status, _) = refused(&proxy, &[]).await;
    assert_eq!((status, upstream.connections()), (503, 2));
    let line = proxy
        .access_line("the refusal", |line| line["status"] == 503)
        .await;
    let error = line["error"].as_str().expect("a reason");
    assert!(error.contains("sessions.isolated_max"), "{error}");
    first.send(Message::text("trap")).await;
    assert_eq!(first.close_code().await, Some(1011));
    drop(first);
    ask(&mut second, "who", "a 1 2").await;
    proxy.admin().streams_are(1).await;
    let mut third = websocket::open(proxy.address, &[]).await;
    ask(&mut third, "who", "a 1 1").await;
}

#[tokio::test]
async fn a_session_may_refuse_its_stream_before_anything_is_dialled() {
    let (proxy, upstream, _closes) = proxy("").await;
    let answer = refused(&proxy, &[("x-refuse", "not you")]).await;
    assert_eq!(answer, (403, "not you".to_owned()));
    for (field, value, status) in [
        ("x-open", "trap", 503),
        ("x-open", "spin", 503),
        ("x-upstream", "nowhere", 503),
        ("x-address", "no port", 503),
        ("x-tick", "0", 503),
        ("x-address", "169.254.1.1:80", 502),
    ] {
        let (given, _) = refused(&proxy, &[(field, value)]).await;
        assert_eq!(given, status, "{field}: {value}");
    }
    assert_eq!(upstream.connections(), 0);
    proxy
        .admin()
        .metric_is("throwbar_sessions{plugin=\"chat\"", |sessions| {
            sessions == 0.0
        })
        .await;
    // Requests that become no stream have no session.
    let (status, _) = {
        let response = proxy.get("/", &[("x-refuse", "not you")]).await;
        (response.status, ())
    };
    assert_ne!(status, 403);
}

#[tokio::test]
async fn a_session_may_name_where_its_stream_goes() {
    let (upstream, _closes) = websocket::echo().await;
    let proxy = proxy_to(&silent().await, "", "").await;
    let address = upstream.address.to_string();
    let mut socket = websocket::open(proxy.address, &[("x-address", &address)]).await;
    socket.echo("here").await;
    let streams = proxy.admin().streams_are(1).await;
    assert_eq!(streams[0]["endpoint"], address);
}

#[tokio::test]
async fn sessions_tick_at_the_interval_they_ask_for() {
    let (proxy, _upstream, mut closes) = proxy("").await;
    let mut socket = websocket::open(proxy.address, &[("x-tick", "150")]).await;
    assert_eq!(socket.next().await, Message::text("tick 1"));
    // Sent up, echoed, and replaced on its way down.
    assert_eq!(socket.next().await, Message::text("tick 2"));
    assert_eq!(socket.close_code().await, Some(4003));
    assert_eq!(
        soon("the close upstream", closes.recv()).await,
        Some(Some(4003))
    );
}

#[tokio::test]
async fn a_session_is_told_of_the_end_of_its_stream() {
    let (proxy, _upstream, _closes) = proxy("").await;
    let mut client = raw(&proxy, "").await;
    client.send(b"\x81\x85\0\0\0\0hello").await;
    assert_eq!(client.exactly(7).await.expect("the echo"), b"\x81\x05hello");
    client.send(b"\x88\x82\0\0\0\0\x0f\xa5").await;
    assert_eq!(
        client.exactly(4).await.expect("a close"),
        b"\x88\x02\x0f\xa5"
    );
    drop(client);
    proxy
        .says("session over: code Some(4005) up 19 down 11 for ")
        .await;
    // One that just goes away says nothing.
    let client = raw(&proxy, "").await;
    drop(client);
    proxy.says("session over: code None up 0 down 0 for ").await;
    let admin = proxy.admin();
    admin.streams_are(0).await;
    let events = "throwbar_session_events_total{plugin=\"chat\"}";
    // Two opened, two ended, a message each way.
    admin.metric_is(events, |events| events == 6.0).await;
}

#[tokio::test]
async fn what_the_router_says_of_the_response_holds_for_a_101_too() {
    let upstream = silent().await;
    let proxy = proxy_to(&upstream, "", "").await;
    let mut client = proxy.raw().await;
    let response = client.ask(format!("{ASK}\r\n")).await;
    assert_eq!(response.status, 101);
    assert_eq!(response.header("x-routed-by"), Some("a"));
}

#[tokio::test]
async fn state_over_its_bound_is_a_trap() {
    let (proxy, _upstream, _closes) = proxy("").await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.send(Message::text("save-many 65536")).await;
    socket.echo("goes on").await;
    socket.send(Message::text("save-many 65537")).await;
    assert_eq!(socket.close_code().await, Some(1011));
    proxy.says("at most 65536 are allowed").await;
}

#[tokio::test]
async fn a_drain_closes_streams_with_sessions_too() {
    let (upstream, mut closes) = websocket::echo().await;
    let mut proxy = proxy_to(&upstream, "", "shutdown_grace = \"100ms\"").await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    ask(&mut socket, "who", "a 1 1").await;
    proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(socket.close_code().await, Some(1001));
    let code = soon("the close upstream", closes.recv()).await;
    assert_eq!(code, Some(Some(1001)));
    proxy.ended().await;
    assert!(proxy.stderr().contains("session over: code Some(1001)"));
}
