//! A failover of Redis that loses the newest write: it goes on all proxies, and those who watch are told to begin anew.

use super::*;
use crate::harness::TestProxy;
use crate::harness::events::Events;
use crate::harness::relay::Relay;

const KEPT: &str = "/v1/kv/upstreams/kept";
const LOST: &str = "/v1/kv/upstreams/lost";
const NEW: &str = "/v1/kv/upstreams/new";

#[tokio::test]
async fn what_a_failover_of_redis_loses_goes_on_all_proxies_and_is_told_to_watches() {
    let Some(mut master) = Server::start(Engine::Redis).await else {
        return;
    };
    let Some(replica) = Server::start(Engine::Redis).await else {
        return;
    };
    replica.follow(&master).await;
    let relay = Relay::start(master.address()).await;
    let text = Setup::new(config(Engine::Redis, &master)).text();
    let text = text.replace(&master.address(), relay.address());
    let one = TestProxy::start_text(&text).await;
    let two = TestProxy::start_text(&text).await;
    let (proxies, admins) = ([&one, &two], [one.admin(), two.admin()]);
    let upstream = TestUpstream::saying("reached").await;
    let port = upstream.port();
    let routed = async |proxy: &TestProxy, id: &str| {
        let answer = proxy.get("/", &[("x-id", id), ("x-port", &port)]).await;
        answer.status == 200 && answer.text() == "reached"
    };
    admins[0].set("upstreams", "kept", "127.0.0.1").await;
    for admin in &admins {
        has(admin, KEPT, Some("127.0.0.1")).await;
    }
    let tag = admins[0].get(KEPT).await.header("etag").to_owned();
    master.is_followed().await;

    // Promoted while its master is still there and takes one more write.
    replica.promote().await;
    let watched = "/v1/kv/upstreams?watch";
    let mut watch = Events::open(&admins[1], watched, None).await;
    admins[0].set("upstreams", "lost", "127.0.0.1").await;
    let put = watch.next().await.expect("an event");
    assert_eq!(put.data["changes"][0]["key"], "lost", "{put:?}");
    let before = watch.last_id.clone();
    for (proxy, admin) in proxies.iter().zip(&admins) {
        has(admin, LOST, Some("127.0.0.1")).await;
        assert!(routed(proxy, "lost").await, "what is there is not routed");
    }

    relay.cut().await;
    master.kill().await;
    for (proxy, admin) in proxies.iter().zip(&admins) {
        until_lost(admin, Engine::Redis, true).await;
        // Nobody knows yet that it is lost.
        assert!(routed(proxy, "lost").await, "what was there is not routed");
    }
    relay.turn_to(replica.address());
    relay.restore();
    for (proxy, admin) in proxies.iter().zip(&admins) {
        until_lost(admin, Engine::Redis, false).await;
        has(admin, LOST, None).await;
        assert_eq!(admin.get(LOST).await.status, 404);
        assert!(!routed(proxy, "lost").await, "what was lost is routed");
        let kept = admin.get(KEPT).await;
        assert_eq!((kept.status, kept.header("etag")), (200, &*tag));
        assert!(routed(proxy, "kept").await, "what was kept is not routed");
    }
    let last = watch.next().await.expect("an event");
    assert_eq!(last.name, "compacted", "{last:?}");
    let detail = last.data["detail"].as_str().expect("a reason");
    let since = format!("changes after revision {before} are no longer kept");
    assert!(detail.contains(&since), "{detail}");
    assert_eq!(watch.next().await, None, "the watch is over");

    // From there on all is as ever, whoever writes.
    let mut watch = Events::open(&admins[0], watched, None).await;
    admins[1].set("upstreams", "new", "127.0.0.1").await;
    let put = watch.next().await.expect("an event");
    assert_eq!(put.data["changes"][0]["key"], "new", "{put:?}");
    for (proxy, admin) in proxies.iter().zip(&admins) {
        has(admin, NEW, Some("127.0.0.1")).await;
        assert_eq!(admin.get(LOST).await.status, 404);
        assert!(routed(proxy, "new").await, "what is new is not routed");
    }
}
