//! What becomes of streams whose own entry changes: nothing by default, else what their decision or their bucket says.

use crate::harness::websocket::{self, Socket};
use crate::harness::{Admin, Request, TestProxy, TestUpstream, fixture_path, raw, soon};
use futures_util::StreamExt;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A plugin that says what `x-on-change` asks for, over a bucket with a policy of its own.
async fn proxy(bucket_policy: &str) -> TestProxy {
    let config = format!(
        "[buckets.upstreams]\non_change = {bucket_policy}\n\
         [plugins.router]\nsource = \"{}\"\nbuckets = {{ upstreams = \"read\" }}\n\
         settings = {{ header = \"x-id\", port-header = \"x-port\" }}\n\
         [[route]]\nname = \"by-id\"\nplugin = \"router\"\n",
        fixture_path("on-change").display()
    );
    let proxy = TestProxy::start(&config).await;
    for id in ["id1", "id2", "id3"] {
        proxy.admin().set("upstreams", id, "127.0.0.1").await;
    }
    proxy
}

/// A stream of this key; `policy` is what its decision says.
async fn open(proxy: &TestProxy, echo: &TestUpstream, id: &str, policy: Option<&str>) -> Socket {
    let port = echo.port();
    let mut fields = vec![("x-id", id), ("x-port", port.as_str())];
    fields.extend(policy.map(|policy| ("x-on-change", policy)));
    let mut socket = websocket::open(proxy.address, &fields).await;
    socket.echo("hello").await;
    socket
}

async fn delete(admin: &Admin, key: &str) {
    let deleted = admin.delete(&format!("/v1/kv/upstreams/{key}")).await;
    assert_eq!(deleted.status, 204, "{}", deleted.text());
}

#[tokio::test]
async fn only_the_streams_of_a_changed_entry_are_closed() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = proxy("\"close\"").await;
    let admin = proxy.admin();
    let mut kept = [
        open(&proxy, &echo, "id1", None).await,
        open(&proxy, &echo, "id3", None).await,
    ];
    let mut changed = [
        open(&proxy, &echo, "id2", None).await,
        open(&proxy, &echo, "id2", None).await,
    ];
    // The same value again is no change, nor is another bucket's or key's.
    admin.set("upstreams", "id1", "127.0.0.1").await;
    admin.set("upstreams", "id4", "127.0.0.9").await;
    admin.set("upstreams", "id2", "127.0.0.2").await;
    for socket in &mut changed {
        assert_eq!(socket.close_code().await, Some(1012));
    }
    for socket in &mut kept {
        socket.echo("still there").await;
    }
    let line = proxy
        .access_line("the close", |line| line["reason"] == "on-change")
        .await;
    assert_eq!(line["key"], "id2");
    let by_change = "throwbar_streams_closed_total{reason=\"on-change\"}";
    assert_eq!(admin.metric(by_change).await, 2.0);
    // A stream opened after the change follows the new value; to be deleted is to change.
    admin.set("upstreams", "id2", "127.0.0.1").await;
    let mut again = open(&proxy, &echo, "id2", None).await;
    delete(&admin, "id2").await;
    assert_eq!(again.close_code().await, Some(1012));
    kept[0].echo("still there").await;
}

#[tokio::test]
async fn what_a_decision_says_goes_before_what_its_bucket_says() {
    let (echo, _closes) = websocket::echo().await;
    for (bucket, kept_says, closed_says) in [
        ("\"keep\"", None, Some("close")),
        ("\"close\"", Some("keep"), None),
        (
            "{ drain = { after = \"24h\", over = \"24h\" } }",
            None,
            Some("close"),
        ),
    ] {
        let proxy = proxy(bucket).await;
        let mut kept = open(&proxy, &echo, "id1", kept_says).await;
        let mut closed = open(&proxy, &echo, "id1", closed_says).await;
        proxy.admin().set("upstreams", "id1", "127.0.0.2").await;
        assert_eq!(closed.close_code().await, Some(1012), "{bucket}");
        kept.echo("still there").await;
    }
}

#[tokio::test]
async fn a_drained_entry_loses_its_streams_one_after_the_other() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = proxy("{ drain = { after = \"500ms\", over = \"2s\" } }").await;
    let mut kept = open(&proxy, &echo, "id2", None).await;
    let mut clients = Vec::new();
    for _ in 0..60 {
        let mut socket = open(&proxy, &echo, "id1", None).await;
        clients.push(tokio::spawn(async move {
            let close = soon("a close", socket.0.next()).await;
            let closed = Instant::now();
            assert!(matches!(close, Some(Ok(message)) if message.is_close()));
            closed
        }));
    }
    let changed = Instant::now();
    delete(&proxy.admin(), "id1").await;
    let mut times = Vec::new();
    for client in clients {
        times.push(client.await.expect("closed") - changed);
    }
    times.sort();
    // A tick is a tenth of a second, and one may have begun.
    assert!(times[0] > Duration::from_millis(350), "{times:?}");
    assert!(times[59] - times[0] > Duration::from_secs(1), "{times:?}");
    for (first, later) in times.iter().zip(&times[30..]) {
        assert!(*later - *first > Duration::from_millis(200), "{times:?}");
    }
    kept.echo("still there").await;
}

#[tokio::test]
async fn a_batch_of_ten_thousand_keys_closes_those_it_changes() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = proxy("\"close\"").await;
    let admin = proxy.admin();
    let mut kept = open(&proxy, &echo, "id1", None).await;
    let mut closed = [
        open(&proxy, &echo, "id2", None).await,
        open(&proxy, &echo, "id3", None).await,
    ];
    let mut lines: String = (0..10_000)
        .map(|n| format!("agent-{n} 10.0.0.1\n"))
        .collect();
    lines.push_str("id1 127.0.0.1\nid2 127.0.0.2\n");
    // What is not in it is deleted: id3.
    let import = Request::post("/v1/kv/upstreams/import?replace=true", lines);
    let imported = admin.send(import.field("content-type", "text/plain")).await;
    assert_eq!(imported.status, 200, "{}", imported.text());
    for socket in &mut closed {
        assert_eq!(socket.close_code().await, Some(1012));
    }
    kept.echo("still there").await;
}

#[tokio::test]
async fn a_change_between_decision_and_stream_is_not_missed() {
    let (asked, mut is_asked) = tokio::sync::mpsc::unbounded_channel();
    let (answer, may_answer) = tokio::sync::watch::channel(false);
    let slow = TestUpstream::raw(move |mut stream, _| {
        let (asked, mut may_answer) = (asked.clone(), may_answer.clone());
        async move {
            let mut head = Vec::new();
            while raw::find(&head, b"\r\n\r\n").is_none() {
                head.push(stream.read_u8().await.expect("a head"));
            }
            let _ = asked.send(());
            let _ = may_answer.wait_for(|answer| *answer).await;
            let accept = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            let _ = stream.write_all(accept.as_bytes()).await;
            let _ = stream.read_to_end(&mut head).await;
        }
    })
    .await;
    let proxy = proxy("\"close\"").await;
    let (echo, _closes) = websocket::echo().await;
    let mut later = open(&proxy, &echo, "id2", None).await;
    let mut client = proxy.raw().await;
    let ask = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-ID: id1\r\nX-Port: {}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        slow.port()
    );
    client.send(ask).await;
    soon("the request upstream", is_asked.recv()).await;
    proxy.admin().set("upstreams", "id1", "127.0.0.2").await;
    // Once a later change is acted on, nobody will be told of this one again.
    proxy.admin().set("upstreams", "id2", "127.0.0.2").await;
    assert_eq!(later.close_code().await, Some(1012));
    answer.send_replace(true);
    let head = client.try_response(true).await.expect("a response");
    assert_eq!(head.status, 101);
    let close = client.exactly(4).await.expect("a close frame");
    assert_eq!((close[0], &close[2..]), (0x88, &1012_u16.to_be_bytes()[..]));
}
