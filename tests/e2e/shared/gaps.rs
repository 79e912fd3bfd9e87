//! A proxy whose engine was away while its log was forgotten: it begins anew, and says so to those who watch.

use super::*;
use crate::harness::TestProxy;
use crate::harness::events::Events;
use crate::harness::relay::Relay;

/// A proxy that can be cut off from the server, and one that cannot.
struct Pair {
    server: Server,
    relay: Relay,
    direct: TestProxy,
    proxy: TestProxy,
}

impl Pair {
    async fn start(engine: Engine) -> Option<Self> {
        let server = Server::start(engine).await?;
        let relay = Relay::start(server.address()).await;
        let text = Setup::new(config(engine, &server)).text();
        let relayed = text.replace(&server.address(), relay.address());
        Some(Self {
            direct: TestProxy::start_text(&text).await,
            proxy: TestProxy::start_text(&relayed).await,
            server,
            relay,
        })
    }
}

/// The event's name, and its only change as `op key`.
async fn told(watch: &mut Events) -> (String, String) {
    let event = watch.next().await.expect("an event");
    let change = &event.data["changes"][0];
    let text = |name: &str| change[name].as_str().unwrap_or("-").to_owned();
    (event.name, format!("{} {}", text("op"), text("key")))
}

async fn a_gap_in_the_log_is_told_to_watches_and_leaves_nothing_of_before(engine: Engine) {
    let Some(Pair {
        server,
        relay,
        direct,
        proxy,
    }) = Pair::start(engine).await
    else {
        return;
    };
    let (elsewhere, admin) = (direct.admin(), proxy.admin());
    let upstream = TestUpstream::saying("reached").await;
    let port = upstream.port();
    let routed = async |id: &str| {
        let answer = proxy.get("/", &[("x-id", id), ("x-port", &port)]).await;
        answer.status == 200 && answer.text() == "reached"
    };
    let bucket = "/v1/kv/upstreams";
    elsewhere.set("upstreams", "gone", "127.0.0.1").await;
    has(&admin, "/v1/kv/upstreams/gone", Some("127.0.0.1")).await;
    let mut watch = Events::open(&admin, &format!("{bucket}?watch"), None).await;
    elsewhere.set("upstreams", "kept", "127.0.0.1").await;
    assert_eq!(told(&mut watch).await, ("change".into(), "put kept".into()));
    let before = watch.last_id.clone();

    relay.cut().await;
    until_lost(&admin, engine, true).await;
    elsewhere.set("upstreams", "new", "127.0.0.1").await;
    let deleted = elsewhere.delete("/v1/kv/upstreams/gone").await;
    assert_eq!(deleted.status, 204, "{}", deleted.text());
    server.forget_log().await;
    // Nothing of this came through.
    assert_eq!(admin.get("/v1/kv/upstreams/new").await.status, 404);
    assert!(routed("gone").await && !routed("new").await);

    relay.restore();
    let last = watch.next().await.expect("an event");
    assert_eq!(last.name, "compacted", "{last:?}");
    let detail = last.data["detail"].as_str().expect("a reason");
    let since = format!("changes after revision {before} are no longer kept");
    assert!(detail.contains(&since), "{detail}");
    // Who is told so reads the bucket, and finds it as it is.
    assert_eq!(admin.get("/v1/kv/upstreams/gone").await.status, 404);
    has(&admin, "/v1/kv/upstreams/new", Some("127.0.0.1")).await;
    assert!(!routed("gone").await, "what was deleted is routed");
    assert!(routed("new").await && routed("kept").await);
    assert_eq!(watch.next().await, None, "the watch is over");
    assert_eq!(watch.last_id, before, "its last id is as it was");
    let query = Request::get(&format!("{bucket}?watch&since={before}"));
    let header = Request::get(&format!("{bucket}?watch")).field("last-event-id", &before);
    for request in [query, header] {
        let refused = admin.send(request).await;
        assert_eq!(refused.status, 410, "{}", refused.text());
        assert_eq!(refused.json()["code"], "compacted", "{}", refused.text());
    }
    // From there on nothing is missing.
    let mut watch = Events::open(&admin, &format!("{bucket}?watch"), None).await;
    let deleted = elsewhere.delete("/v1/kv/upstreams/kept").await;
    assert_eq!(deleted.status, 204, "{}", deleted.text());
    assert_eq!(
        told(&mut watch).await,
        ("change".into(), "delete kept".into())
    );
    assert!(!routed("kept").await);
    until_lost(&admin, engine, false).await;
}

#[tokio::test]
async fn a_compaction_of_etcd_is_told_to_watches_and_leaves_nothing_of_before() {
    a_gap_in_the_log_is_told_to_watches_and_leaves_nothing_of_before(Engine::Etcd).await;
}

#[tokio::test]
async fn a_trimmed_log_of_redis_is_told_to_watches_and_leaves_nothing_of_before() {
    a_gap_in_the_log_is_told_to_watches_and_leaves_nothing_of_before(Engine::Redis).await;
}

async fn who_was_away_catches_up_by_the_log(engine: Engine) {
    let Some(Pair {
        server: _server,
        relay,
        direct,
        proxy,
    }) = Pair::start(engine).await
    else {
        return;
    };
    let (elsewhere, admin) = (direct.admin(), proxy.admin());
    for key in ["gone", "kept"] {
        elsewhere.set("upstreams", key, "127.0.0.1").await;
        let path = format!("/v1/kv/upstreams/{key}");
        has(&admin, &path, Some("127.0.0.1")).await;
    }
    let watched = "/v1/kv/upstreams?watch";
    let mut watch = Events::open(&admin, watched, None).await;
    elsewhere.set("upstreams", "kept", "127.0.0.2").await;
    assert_eq!(told(&mut watch).await, ("change".into(), "put kept".into()));
    let before = watch.last_id.clone();

    relay.cut().await;
    until_lost(&admin, engine, true).await;
    elsewhere.set("upstreams", "new", "127.0.0.3").await;
    let deleted = elsewhere.delete("/v1/kv/upstreams/gone").await;
    assert_eq!(deleted.status, 204, "{}", deleted.text());
    elsewhere.set("upstreams", "new", "127.0.0.4").await;
    relay.restore();
    // Each change of that time, in its order, and nothing is begun anew.
    let again = Events::open(&admin, watched, Some(&before));
    let mut again = again.await;
    for expected in ["put new", "delete gone", "put new"] {
        let expected = ("change".to_owned(), expected.to_owned());
        assert_eq!(told(&mut watch).await, expected);
        assert_eq!(told(&mut again).await, expected);
    }
    assert_eq!(admin.get("/v1/kv/upstreams/gone").await.status, 404);
    has(&admin, "/v1/kv/upstreams/new", Some("127.0.0.4")).await;
    until_lost(&admin, engine, false).await;
}

#[tokio::test]
async fn who_was_away_catches_up_by_the_log_of_etcd() {
    who_was_away_catches_up_by_the_log(Engine::Etcd).await;
}

#[tokio::test]
async fn who_was_away_catches_up_by_the_log_of_redis() {
    who_was_away_catches_up_by_the_log(Engine::Redis).await;
}
