//! Drains of streams: exactly those that match are closed, one after the other, and whoever asked sees how far it is.

use crate::harness::proxy::BY_HEADER;
use crate::harness::websocket::{self, Socket};
use crate::harness::{Admin, Setup, TestProxy, TestUpstream, eventually, soon};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

/// A proxy by header with an entry for each of these keys.
async fn by_header(keys: &[&str]) -> TestProxy {
    let proxy = TestProxy::start(BY_HEADER).await;
    for key in keys {
        proxy.admin().set("upstreams", key, "127.0.0.1").await;
    }
    proxy
}

async fn open_many(proxy: &TestProxy, echo: &TestUpstream, key: &str, count: usize) -> Vec<Socket> {
    let port = echo.port();
    let fields = [("x-id", key), ("x-port", port.as_str())];
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        sockets.push(websocket::open(proxy.address, &fields).await);
    }
    sockets
}

/// Starts a drain that is not refused.
async fn drain(admin: &Admin, order: Value) -> Value {
    let answer = admin.post("/v1/streams/drain", order.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let started = answer.json();
    let path = format!("/v1/streams/drain/{}", started["id"]);
    assert_eq!(answer.header("location"), path);
    started
}

async fn progress(admin: &Admin, id: &Value) -> Value {
    let progress = admin.get(&format!("/v1/streams/drain/{id}")).await.json();
    let count = |name: &str| progress[name].as_u64().expect("a count");
    assert_eq!(
        count("closed") + count("gone") + count("left"),
        count("matched"),
        "{progress}"
    );
    progress
}

async fn progress_when(admin: &Admin, id: &Value, fits: impl Fn(&Value) -> bool) -> Value {
    eventually("the drain to get there", async || {
        let progress = progress(admin, id).await;
        fits(&progress).then_some(progress)
    })
    .await
}

#[tokio::test]
async fn exactly_those_of_a_key_are_closed_one_after_the_other() {
    let (echo, mut closes) = websocket::echo().await;
    let proxy = by_header(&["id1", "id2"]).await;
    let admin = proxy.admin();
    let mut kept = open_many(&proxy, &echo, "id1", 20).await;
    let drained = open_many(&proxy, &echo, "id2", 200).await;
    admin.streams_are(220).await;
    let order = json!({ "key": "id2", "over": "2s", "reason": "moving house" });
    let started = drain(&admin, order).await;
    assert_eq!(
        (&started["matched"], &started["code"]),
        (&200.into(), &1012.into())
    );
    assert_eq!(started["selector"], json!({ "key": "id2" }));
    let ends = |name: &str| started[name].as_u64().expect("a time");
    assert_eq!(ends("ends_ms") - ends("started_ms"), 2_000);
    let clients = drained.into_iter().map(|mut socket| {
        tokio::spawn(async move {
            let Some(Ok(Message::Close(Some(frame)))) = soon("a close", socket.0.next()).await
            else {
                panic!("expected a close frame");
            };
            let closed = Instant::now();
            let told = (u16::from(frame.code), frame.reason.as_str().to_owned());
            assert_eq!(told, (1012, "moving house".to_owned()));
            while let Some(Ok(_)) = soon("the end", socket.0.next()).await {}
            closed
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut times = Vec::new();
    for client in clients {
        times.push(client.await.expect("closed as it should be"));
    }
    for _ in 0..200 {
        assert_eq!(
            soon("a close upstream", closes.recv()).await,
            Some(Some(1012))
        );
    }
    let done = progress_when(&admin, &started["id"], |it| it["state"] == "done").await;
    assert_eq!((&done["closed"], &done["left"]), (&200.into(), &0.into()));
    admin.streams_are(20).await;
    for socket in &mut kept {
        socket.echo("still there").await;
    }
    let by_drain = "throwbar_streams_closed_total{reason=\"drain\"}";
    assert_eq!(admin.metric(by_drain).await, 200.0);
    eventually("all lines of the access log", async || {
        let lines = proxy.access_lines();
        let closed = lines
            .iter()
            .filter(|line| line["reason"] == "drain" && line["key"] == "id2");
        (closed.count() == 200).then_some(())
    })
    .await;
    times.sort();
    // Even on a busy machine: half of them never went within a tenth of the time, nor all within a half.
    for (first, later) in times.iter().zip(&times[100..]) {
        assert!(*later - *first > Duration::from_millis(200), "{times:?}");
    }
    assert!(times[199] - times[0] > Duration::from_secs(1), "{times:?}");
}

#[tokio::test]
async fn a_cancelled_drain_leaves_the_rest_open() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = by_header(&["id1"]).await;
    let admin = proxy.admin();
    let mut sockets = open_many(&proxy, &echo, "id1", 100).await;
    admin.streams_are(100).await;
    let started = drain(&admin, json!({ "all": true, "over": "1m" })).await;
    let id = &started["id"];
    assert_eq!(admin.metric("throwbar_stream_drains_running").await, 1.0);
    progress_when(&admin, id, |it| it["closed"].as_u64() >= Some(2)).await;
    let path = format!("/v1/streams/drain/{id}");
    let dry = admin.delete(&format!("{path}?dry_run=true")).await;
    assert_eq!(dry.json()["state"], "running");
    let cancelled = admin.delete(&path).await;
    assert_eq!(
        (cancelled.status, &cancelled.json()["state"]),
        (200, &"cancelled".into())
    );
    assert_eq!(admin.metric("throwbar_stream_drains_running").await, 0.0);
    let after = progress(&admin, id).await;
    let left = after["left"].as_u64().expect("a number") as usize;
    assert!((1..=98).contains(&left), "{after}");
    // Whoever was closed ends once it has answered; whoever is left is not even told.
    let mut open = 0;
    let ids: Vec<u64> = admin
        .streams_are(left)
        .await
        .iter()
        .filter_map(|s| s["id"].as_u64())
        .collect();
    assert_eq!(ids.len(), left);
    for socket in &mut sockets {
        use futures_util::SinkExt;
        let told = soon("sent", socket.0.send(Message::text("still there?"))).await;
        match soon("an answer", socket.0.next()).await {
            Some(Ok(Message::Text(_))) if told.is_ok() => open += 1,
            _ => {}
        }
    }
    assert_eq!(open, left);
    assert_eq!(admin.delete(&path).await.json()["state"], "cancelled");
}

#[tokio::test]
async fn selectors_select_the_same_for_lists_and_drains() {
    let (first, _closes) = websocket::echo().await;
    let (second, _closes) = websocket::echo().await;
    let config = format!(
        "[upstreams.app]\nendpoints = [\"{first}\", \"{second}\"]\n\
         [[route]]\nname = \"direct\"\nmatch = {{ header = {{ x-direct = \"*\" }} }}\nto = \"{first}\"\n\
         [[route]]\nname = \"balanced\"\nmatch = {{ header = {{ x-app = \"*\" }} }}\nupstream = \"app\"\n{BY_HEADER}",
        first = first.address,
        second = second.address,
    );
    let proxy = Setup::new(config).start().await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let mut sockets = open_many(&proxy, &second, "id1", 2).await;
    sockets.push(websocket::open(proxy.address, &[("x-direct", "1")]).await);
    // One worker's turns go round by themselves: which endpoint each gets does not matter here.
    for _ in 0..4 {
        sockets.push(websocket::open(proxy.address, &[("x-app", "1")]).await);
    }
    let all = admin.streams_are(7).await;
    let to = |endpoint: &TestUpstream| {
        let address = endpoint.address.to_string();
        all.iter()
            .filter(|stream| stream["endpoint"] == address.as_str())
            .count()
    };
    let version = admin.plugin("router").await["active"]
        .as_str()
        .expect("a digest")
        .to_owned();
    for (name, value, expected) in [
        ("key", "id1", 2),
        ("key", "id", 0),
        ("route", "direct", 1),
        ("route", "balanced", 4),
        ("plugin", "router", 2),
        ("version", &version[..10], 2),
        ("version", "000000000000", 0),
        ("upstream", "app", 4),
        ("upstream", &first.address.to_string(), to(&first)),
        ("upstream", &second.address.to_string(), to(&second)),
        ("upstream", "127.0.0.1", 7),
        ("upstream", "127.0.0.9", 0),
        ("client", "127.0.0.0/8", 7),
        ("client", "10.0.0.0/8", 0),
        ("older_than", "0s", 7),
        ("older_than", "1h", 0),
    ] {
        let listed = admin
            .get(&format!("/v1/streams?{name}={value}"))
            .await
            .json();
        assert_eq!(
            listed["streams"].as_array().map(Vec::len),
            Some(expected),
            "{name}={value}"
        );
        let order = json!({ name: value, "over": "0s", "dry_run": true });
        let counted = admin.post("/v1/streams/drain", order.to_string()).await;
        assert_eq!(counted.status, 200, "{}", counted.text());
        assert_eq!(
            counted.json(),
            json!({ "dry_run": true, "matched": expected }),
            "{name}={value}"
        );
    }
    let order = json!({ "upstream": "app", "client": "127.0.0.1", "over": "0s" });
    let started = drain(&admin, order).await;
    progress_when(&admin, &started["id"], |it| it["state"] == "done").await;
    for socket in &mut sockets[3..] {
        assert_eq!(socket.close_code().await, Some(1012));
    }
    for socket in &mut sockets[..3] {
        socket.echo("still there").await;
    }
}

#[tokio::test]
async fn a_mistyped_drain_closes_nothing_and_drains_are_bounded() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = by_header(&["id1"]).await;
    let admin = proxy.admin();
    let mut sockets = open_many(&proxy, &echo, "id1", 1).await;
    admin.streams_are(1).await;
    for (order, expected) in [
        (json!({ "over": "0s" }), "no selector"),
        (json!({ "kye": "id1", "over": "0s" }), "kye"),
        (json!({ "key": "id1" }), "over"),
    ] {
        let refused = admin.post("/v1/streams/drain", order.to_string()).await;
        assert_eq!(refused.status, 422, "{}", refused.text());
        assert!(refused.text().contains(expected), "{}", refused.text());
    }
    for path in ["/v1/streams/drain/1", "/v1/streams/drain/x"] {
        assert_eq!(admin.get(path).await.status, 404);
        assert_eq!(admin.delete(path).await.status, 404);
    }
    // Over a day, nobody's turn comes during a test.
    let order = json!({ "key": "id1", "older_than": "0s", "over": "24h" });
    let mut ids = Vec::new();
    let refused = loop {
        let answer = admin.post("/v1/streams/drain", order.to_string()).await;
        if answer.status != 202 {
            break answer;
        }
        ids.push(answer.json()["id"].clone());
        assert!(ids.len() < 100, "no bound");
    };
    assert_eq!((refused.status, ids.len()), (429, 16), "{}", refused.text());
    let listed = admin.get("/v1/streams/drain").await.json();
    assert_eq!(listed["drains"].as_array().map(Vec::len), Some(16));
    assert_eq!(listed["drains"][0]["id"], ids[15], "newest first");
    admin.delete(&format!("/v1/streams/drain/{}", ids[3])).await;
    drain(&admin, order).await;
    sockets[0].echo("still there").await;
}
