//! Shadows: compared on live requests, never acted on.

use crate::harness::client::KeptAlive;
use crate::harness::proxy::{BY_HEADER, PATIENT};
use crate::harness::{Request, TestProxy, TestUpstream, eventually, fixture, sha256};
use serde_json::Value;

const SHADOW: &str = "/v1/plugins/router/shadow";

/// An ID in the map, an endpoint behind it, and `trap` as a router that does as it should.
async fn proxy() -> (TestProxy, TestUpstream) {
    let upstream = TestUpstream::saying("ok").await;
    let config = BY_HEADER.replace("\"read\"", "\"write\"");
    let proxy = TestProxy::start(&format!("{config}{PATIENT}")).await;
    let admin = proxy.admin();
    for id in ["even", "odd"] {
        admin.set("upstreams", id, "127.0.0.1").await;
    }
    admin.push_ok("router", fixture("trap")).await;
    (proxy, upstream)
}

async fn compared(proxy: &TestProxy, count: u64) -> Value {
    let admin = proxy.admin();
    eventually("all requests compared", async || {
        let report = admin.get(SHADOW).await.json();
        (report["compared"].as_u64() >= Some(count)).then_some(report)
    })
    .await
}

#[tokio::test]
async fn what_a_candidate_would_do_otherwise_is_found_and_nothing_of_it_is_done() {
    let (mut proxy, upstream) = proxy().await;
    let admin = proxy.admin();
    let begun = admin.put(SHADOW, fixture("disagree")).await;
    assert_eq!(
        (begun.status, &begun.json()["outcome"]),
        (200, &"shadow".into()),
        "{}",
        begun.text()
    );
    let revision = admin.get("/v1/status").await.json()["store"]["revision"].clone();
    let mut client = KeptAlive::connect(proxy.address).await.expect("connected");
    for number in 0..1_000 {
        let id = if number % 100 < 3 { "odd" } else { "even" };
        let request = Request::get("/")
            .field("x-id", id)
            .field("x-port", &upstream.port());
        let response = client.send(request).await.expect("a response");
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    }
    let report = compared(&proxy, 1_000).await;
    assert_eq!(
        (&report["differing"], &report["dropped"]),
        (&30.into(), &0.into()),
        "{report}"
    );
    assert_eq!(report["fields"]["decision"], 30);
    let key = &report["keys"][0];
    assert_eq!(
        (&key["key"], &key["count"]),
        (&"odd".into(), &30.into()),
        "{report}"
    );
    assert_eq!(key["example"][0]["active"], "forward");
    assert_eq!(key["example"][0]["candidate"], "reply");
    let after = admin.get("/v1/status").await.json()["store"]["revision"].clone();
    assert_eq!(after, revision, "nothing was written");
    let requests = "throwbar_shadow_requests_total{plugin=\"router\"";
    assert_eq!(admin.metric(requests).await, 1_000.0);

    proxy.kill().await;
    proxy.start_again().await;
    let report = proxy.admin().get(SHADOW).await.json();
    assert_eq!(report["version"], sha256(&fixture("disagree")).as_str());
    assert_eq!(proxy.admin().delete(SHADOW).await.status, 204);
    assert_eq!(proxy.admin().get(SHADOW).await.status, 404);
    assert_eq!(
        proxy.admin().metric(requests).await,
        0.0,
        "its series go with it"
    );
}

#[tokio::test]
async fn a_sample_is_a_part_of_the_requests_and_a_trap_of_a_shadow_is_only_counted() {
    let (proxy, upstream) = proxy().await;
    let admin = proxy.admin();
    admin.push_ok("router", fixture("version-a")).await;
    let path = format!("{SHADOW}?sample=0.5");
    assert_eq!(admin.put(&path, fixture("trap")).await.status, 200);
    let mut client = KeptAlive::connect(proxy.address).await.expect("connected");
    let (mut sent, port) = (0, upstream.port());
    // Until its thread has looked at one, what it asks for is not copied: more are sent as long as that takes.
    let report = eventually("errors counted", async || {
        for _ in 0..50 {
            let fields = [("x-id", "even"), ("x-port", &*port), ("x-trap", "1")];
            let response = client.send(Request::get("/").fields(&fields)).await;
            let response = response.expect("a response");
            assert_eq!((response.status, response.header("x-version")), (200, "a"));
            sent += 1;
        }
        let report = admin.get(SHADOW).await.json();
        (report["errors"]["trap"].as_u64() >= Some(100)).then_some(report)
    })
    .await;
    let compared = report["compared"].as_u64().expect("a count");
    assert!(compared < sent * 3 / 4, "{report} of {sent}");
    let refused = admin
        .put(&format!("{SHADOW}?sample=2"), fixture("trap"))
        .await;
    assert_eq!(refused.status, 422, "{}", refused.text());
}
