//! What sessions write: a batch for each call, in their order, read by the calls after it, waited for by nobody.

use crate::harness::proxy::Setup;
use crate::harness::websocket::{self, Socket};
use crate::harness::{TestProxy, TestUpstream, eventually, fixture_path};
use crate::sessions::ask;
use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::Message;

/// One worker, so that streams share an instance.
async fn proxy(bucket: &str, sessions: &str) -> (TestProxy, TestUpstream) {
    let (upstream, _closes) = websocket::echo().await;
    let config = format!(
        "[buckets.upstreams]\n{bucket}\n[upstreams.echo]\nendpoints = [\"{}\"]\n\
         [plugins.chat]\nsource = \"{}\"\nbuckets = {{ upstreams = \"write\" }}\nlimits = {{ deadline = \"2s\" }}\n\
         [plugins.chat.sessions]\n{sessions}\n[[route]]\nname = \"chat\"\nplugin = \"chat\"\n",
        upstream.address,
        fixture_path("sessions-a").display()
    );
    let proxy = Setup::new(config).workers(1).start().await;
    (proxy, upstream)
}

/// What the store has under a key.
async fn stored(proxy: &TestProxy, key: &str) -> Option<String> {
    let entry = proxy.admin().get(&format!("/v1/kv/upstreams/{key}")).await;
    (entry.status == 200).then(|| entry.text())
}

async fn is_stored(proxy: &TestProxy, key: &str, value: &str) {
    eventually(&format!("{value} under {key}"), async || {
        (stored(proxy, key).await.as_deref() == Some(value)).then_some(())
    })
    .await;
}

async fn text(socket: &mut Socket) -> String {
    let message = socket.next().await.into_text();
    message.expect("text").to_string()
}

#[tokio::test]
async fn messages_ticks_and_the_end_write_to_the_store() {
    let (proxy, _upstream) = proxy("", "").await;
    let fields = [("x-seen", "anna"), ("x-tick", "100")];
    let mut socket = websocket::open(proxy.address, &fields).await;
    assert_eq!(text(&mut socket).await, "tick 1");
    is_stored(&proxy, "anna", "127.0.0.1:1").await;
    ask(&mut socket, "put id1 127.0.0.9", "Ok(())").await;
    ask(&mut socket, "read id1", "127.0.0.9").await;
    is_stored(&proxy, "id1", "127.0.0.9").await;
    drop(socket);
    is_stored(&proxy, "anna-closed", "127.0.0.1").await;
}

#[tokio::test]
async fn a_count_of_messages_misses_none_though_the_disk_is_slower() {
    let (proxy, _upstream) = proxy("", "").await;
    let mut sockets = [
        websocket::open(proxy.address, &[]).await,
        websocket::open(proxy.address, &[]).await,
    ];
    for socket in &mut sockets {
        for _ in 0..200 {
            let count = Message::text("count messages");
            socket.0.feed(count).await.expect("sent");
        }
        socket.0.flush().await.expect("sent");
    }
    for socket in &mut sockets {
        for _ in 0..200 {
            assert!(text(socket).await.parse::<u16>().is_ok());
        }
    }
    is_stored(&proxy, "messages", "127.0.0.1:400").await;
    // Once applied they are told apart by revision, and a later one of somebody else is seen.
    proxy
        .admin()
        .set("upstreams", "messages", "127.0.0.1:7")
        .await;
    ask(&mut sockets[0], "count messages", "8").await;
}

#[tokio::test]
async fn what_the_store_refuses_is_counted_and_read_no_more() {
    let (proxy, _upstream) = proxy("keys_max = 1\n", "").await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    ask(&mut socket, "put id1 127.0.0.1", "Ok(())").await;
    is_stored(&proxy, "id1", "127.0.0.1").await;
    ask(&mut socket, "put id2 127.0.0.2", "Ok(())").await;
    let refused = "throwbar_session_errors_total{plugin=\"chat\",kind=\"refused_write\"}";
    proxy.admin().metric_is(refused, |count| count == 1.0).await;
    proxy.says("writes of a session are refused").await;
    ask(&mut socket, "read id2", "Ok(None)").await;
    ask(&mut socket, "put id1 127.0.0.3", "Ok(())").await;
    is_stored(&proxy, "id1", "127.0.0.3").await;
}

#[tokio::test]
async fn a_call_that_fails_writes_nothing() {
    let (proxy, _upstream) = proxy("", "on_trap = \"rebuild\"").await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    for order in ["put-and-trap id1", "put-and-blunder id2"] {
        socket.send(Message::text(order)).await;
        ask(&mut socket, "put id3 127.0.0.3", "Ok(())").await;
        is_stored(&proxy, "id3", "127.0.0.3").await;
        proxy.admin().delete("/v1/kv/upstreams/id3").await;
    }
    assert_eq!(stored(&proxy, "id1").await, None);
    assert_eq!(stored(&proxy, "id2").await, None);
}

#[tokio::test]
async fn a_rebuilt_session_has_the_fields_and_the_slots_of_its_request() {
    let (proxy, _upstream) = proxy("", "on_trap = \"rebuild\"").await;
    let fields = [("x-id", "anna"), ("x-slot", "-by-slot")];
    let mut socket = websocket::open(proxy.address, &fields).await;
    for _ in 0..2 {
        socket.send(Message::text("trap")).await;
        ask(&mut socket, "state", "+anna-by-slot").await;
    }
}
