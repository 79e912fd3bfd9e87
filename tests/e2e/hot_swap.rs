//! The promise: changes of plugin and map take effect for the next request and touch nothing that is open.

use crate::harness::client::KeptAlive;
use crate::harness::proxy::{BY_HEADER, PATIENT};
use crate::harness::websocket::{self, Socket};
use crate::harness::{Request, Setup, TestProxy, TestUpstream, eventually, fixture, soon};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SWAPS: usize = 100;
const MAP_CHANGES: usize = 10_000;
const STREAMS: usize = 200;
const CLIENTS: usize = 10;
/// Ten clients with a request each every 10 ms: 1,000 a second.
const REQUEST_EVERY: Duration = Duration::from_millis(10);
const ECHO_EVERY: Duration = Duration::from_millis(500);

async fn proxy() -> TestProxy {
    let config = BY_HEADER.replace(
        "[buckets.upstreams]",
        "[buckets.upstreams]\nbackend = \"memory\"",
    );
    // A busy machine may well let a plugin wait for 5 ms.
    Setup::new(format!("{config}{PATIENT}")).start().await
}

/// Sends requests at a steady pace until told to stop; returns how many were right. Any that was not ends the test.
async fn requests(proxy: std::net::SocketAddr, port: String, stop: Arc<AtomicBool>) -> usize {
    let mut client = KeptAlive::connect(proxy).await.expect("connected");
    let mut pace = tokio::time::interval(REQUEST_EVERY);
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        pace.tick().await;
        let request = Request::get("/")
            .field("x-id", "id1")
            .field("x-port", &port);
        let response = client.send(request).await.expect("no failed request");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        assert!(
            matches!(response.header("x-version"), "a" | "b"),
            "{:?}",
            response.headers
        );
        count += 1;
    }
    count
}

/// Echoes until told to stop, then hands the socket back.
async fn echoes(mut socket: Socket, number: usize, stop: Arc<AtomicBool>) -> (Socket, usize) {
    let mut pace = tokio::time::interval(ECHO_EVERY);
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        pace.tick().await;
        socket.echo(&format!("{number}:{count}")).await;
        count += 1;
    }
    (socket, count)
}

/// Versions by id of their streams, as the list has them.
fn labels(streams: &[Value]) -> HashMap<u64, String> {
    let label = |s: &Value| {
        let id = s["id"].as_u64().expect("an id");
        (id, s["version"].as_str().expect("a version").to_owned())
    };
    streams.iter().map(label).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_swaps_and_ten_thousand_map_changes_fail_no_request_and_close_no_stream() {
    let upstream = TestUpstream::saying("ok").await;
    let (echo, _closes) = websocket::echo().await;
    let proxy = proxy().await;
    let admin = proxy.admin();
    let components = [fixture("version-a"), fixture("version-b")];
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let mut active = admin.push_ok("router", components[0].clone()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let fields = [("x-id", "id1"), ("x-port", &*echo.port())];
    let mut sockets = Vec::new();
    for number in 0..STREAMS {
        let socket = websocket::open(proxy.address, &fields).await;
        sockets.push(tokio::spawn(echoes(socket, number, stop.clone())));
    }
    // What each stream was labelled when it was accepted: that must never change.
    let mut accepted = labels(&admin.streams_are(STREAMS).await);
    assert!(accepted.values().all(|version| *version == active));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(requests(proxy.address, upstream.port(), stop.clone())))
        .collect();

    let changed = Arc::new(AtomicUsize::new(0));
    let map = {
        let (admin, changed) = (admin.clone(), changed.clone());
        tokio::spawn(async move {
            while changed.load(Ordering::SeqCst) < MAP_CHANGES {
                let n = changed.fetch_add(1, Ordering::SeqCst);
                // Some of what the requests use, most of what nobody does.
                match n % 10 {
                    0 => {
                        admin
                            .set("upstreams", "id1", ["127.0.0.1", "localhost"][n / 10 % 2])
                            .await
                    }
                    _ => {
                        admin
                            .set(
                                "upstreams",
                                &format!("other-{}", n % 500),
                                &format!("10.0.{}.{}", n / 250 % 250, n % 250),
                            )
                            .await
                    }
                }
            }
        })
    };
    for swap in 1..=SWAPS {
        active = admin.push_ok("router", components[swap % 2].clone()).await;
        // The very next request is decided by the new version, on whatever worker it lands.
        let next = proxy
            .get("/", &[("x-id", "id1"), ("x-port", &upstream.port())])
            .await;
        assert_eq!(
            next.header("x-version"),
            ["a", "b"][swap % 2],
            "after swap {swap}"
        );
        if swap % 10 == 0 {
            let socket = websocket::open(proxy.address, &fields).await;
            sockets.push(tokio::spawn(echoes(socket, STREAMS + swap, stop.clone())));
            let streams = admin.streams_are(sockets.len()).await;
            for (id, version) in labels(&streams) {
                let label = accepted.entry(id).or_insert_with(|| active.clone());
                assert_eq!(*label, version, "stream {id} after swap {swap}");
            }
        }
    }
    // Every change arrives within the time of a test, however slow the machine.
    tokio::time::timeout(Duration::from_secs(180), map)
        .await
        .expect("all changes")
        .expect("no change failed");
    assert!(changed.load(Ordering::SeqCst) >= MAP_CHANGES);

    stop.store(true, Ordering::SeqCst);
    let mut answered = 0;
    for client in clients {
        answered += soon("a client stops", client)
            .await
            .expect("no request failed");
    }
    assert!(answered > SWAPS, "{answered} requests");
    assert_eq!(labels(&admin.streams().await), accepted);
    let mut open = Vec::new();
    for socket in sockets {
        let (socket, count) = soon("a stream stops", socket)
            .await
            .expect("no stream was closed");
        assert!(count > 0);
        open.push(socket);
    }
    for (socket, n) in open.iter_mut().zip(0..) {
        socket.echo(&format!("last {n}")).await;
    }
    drop(open);
    admin.streams_are(0).await;
    // Nothing of the versions between is left.
    let states = eventually("no version draining", async || {
        let plugin = admin.plugin("router").await;
        let versions = plugin["versions"].as_array().expect("a list").clone();
        let done = versions
            .iter()
            .all(|v| v["state"] != "draining" && v["streams"] == 0);
        done.then_some(versions)
    })
    .await;
    assert!(states.len() <= 4, "{states:?}");
    assert_eq!(admin.metric("throwbar_streams{").await, 0.0);
    let swaps = admin
        .metric("throwbar_swaps_total{plugin=\"router\",result=\"swapped\"}")
        .await;
    assert!(swaps >= SWAPS as f64, "{swaps}");
    for outcome in ["trap", "deadline", "bad_decision"] {
        let labels =
            format!("throwbar_plugin_calls_total{{plugin=\"router\",outcome=\"{outcome}\"}}");
        assert_eq!(admin.metric(&labels).await, 0.0, "{outcome}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_change_is_seen_by_the_next_request_on_every_connection() {
    let (one, two) = (
        TestUpstream::saying("one").await,
        TestUpstream::saying("two").await,
    );
    let proxy = Setup::new(BY_HEADER.replace("\"x-port\"", "\"\""))
        .workers(4)
        .start()
        .await;
    let admin = proxy.admin();
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(KeptAlive::connect(proxy.address).await.expect("connected"));
    }
    for round in 0..40 {
        let (upstream, expected) = if round % 2 == 0 {
            (&one, "one")
        } else {
            (&two, "two")
        };
        admin
            .set("upstreams", "id1", &upstream.address.to_string())
            .await;
        for client in &mut clients {
            let response = client
                .send(Request::get("/").field("x-id", "id1"))
                .await
                .expect("answered");
            assert_eq!(response.text(), expected, "round {round}");
        }
    }
}

#[tokio::test]
async fn a_request_that_is_running_ends_as_it_began() {
    let (upstream, mut held) = TestUpstream::holding().await;
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    admin.push_ok("router", fixture("version-a")).await;
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let request = Request::get("/")
        .field("x-id", "id1")
        .field("x-port", &upstream.port());
    let running = tokio::spawn(request.send(proxy.address));
    held.arrived().await;
    admin.push_ok("router", fixture("version-b")).await;
    assert_eq!(admin.delete("/v1/kv/upstreams/id1").await.status, 204);
    held.go();
    let response = running.await.expect("it ended");
    assert_eq!((response.status, response.header("x-version")), (200, "a"));
}
