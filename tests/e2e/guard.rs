//! The guard: what fails is taken back by itself, says why, and stays back.

use crate::harness::client::KeptAlive;
use crate::harness::proxy::{BY_HEADER, PATIENT};
use crate::harness::{Request, TestProxy, eventually, fixture, sha256};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const GUARD: &str =
    "\n[plugins.router.guard]\nwindow = \"30s\"\nmin_calls = 50\nerror_rate = 0.01\n";

async fn proxy(guard: &str) -> TestProxy {
    let proxy = TestProxy::start(&format!("{BY_HEADER}{PATIENT}{guard}")).await;
    proxy.admin().push_ok("router", fixture("version-a")).await;
    proxy
}

/// Requests of which every fiftieth makes the guest `trap` trap, until told to stop.
async fn two_percent_traps(address: SocketAddr, stop: Arc<AtomicBool>) {
    let mut client = KeptAlive::connect(address).await.expect("connected");
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let mut request = Request::get("/").field("x-id", &format!("id{number}"));
        if number % 50 == 0 {
            request = request.field("x-trap", "1");
        }
        client.send(request).await.expect("a response");
    }
}

/// The guard did not wait for the end of its window, and neither did what it decided; told by the proxy's own clocks.
fn acted_in_time(told: &Value) {
    let at = |value: &Value| {
        let text = value.as_str().expect("a time");
        text.parse::<jiff::Timestamp>().expect("of RFC 3339")
    };
    let waited = at(&told["failing"]["at"]).duration_since(at(&told["since"]));
    assert!(waited.as_secs() < 30, "{told}");
    // Some ms, and as long as a busy disk takes to write the record.
    let took = told["failing"]["took_ms"].as_f64().expect("a span");
    assert!(took < 20_000.0, "{told}");
}

/// Lets requests flow until a version is failing; what is told of it.
async fn failing(proxy: &TestProxy, digest: &str) -> Value {
    let stop = Arc::new(AtomicBool::new(false));
    let flow = tokio::spawn(two_percent_traps(proxy.address, stop.clone()));
    let admin = proxy.admin();
    let told = eventually("the version is failing", async || {
        let plugin = admin.plugin("router").await;
        let versions = plugin["versions"].as_array().expect("a list").clone();
        let is = |one: &Value| one["digest"] == digest && one["state"] == "failing";
        versions.into_iter().find(is)
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    flow.await.expect("no failed request");
    told
}

#[tokio::test]
async fn a_version_that_traps_is_rolled_back_and_stays_back() {
    let mut proxy = proxy(GUARD).await;
    let digest = proxy.admin().push_ok("router", fixture("trap")).await;
    let told = failing(&proxy, &digest).await;
    acted_in_time(&told);
    let reason = told["failing"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("at most 1 % are allowed"), "{reason}");
    let good = sha256(&fixture("version-a"));
    let check = async |proxy: &TestProxy| {
        let admin = proxy.admin();
        let plugin = admin.plugin("router").await;
        assert_eq!(plugin["active"], good.as_str());
        assert_eq!(plugin["failing"][0]["version"], digest.as_str());
        let again = admin.push("router", fixture("trap")).await;
        assert_eq!(again.status, 409, "{}", again.text());
        assert_eq!(again.json()["code"], "failing", "{}", again.text());
        let back = admin.post("/v1/plugins/router/rollback", "").await;
        assert_ne!(back.json()["digest"], digest.as_str(), "{}", back.text());
        admin.push_ok("router", fixture("version-a")).await;
    };
    proxy.says("guard: rolled back").await;
    assert_eq!(
        proxy
            .admin()
            .metric("throwbar_guard_trips_total{plugin=\"router\",limit=\"error_rate\"}")
            .await,
        1.0
    );
    check(&proxy).await;
    proxy.kill().await;
    proxy.start_again().await;
    check(&proxy).await;
    let forced = proxy
        .admin()
        .put("/v1/plugins/router?force=true", fixture("trap"))
        .await;
    assert_eq!(forced.status, 200, "{}", forced.text());
    assert_eq!(
        proxy.admin().plugin("router").await["active"],
        digest.as_str()
    );
}

#[tokio::test]
async fn a_canary_that_traps_is_aborted_and_the_active_version_serves() {
    let mut proxy = proxy(GUARD).await;
    let path = "/v1/plugins/router?canary=50&by=header:x-id";
    let begun = proxy.admin().put(path, fixture("trap")).await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let digest = sha256(&fixture("trap"));
    acted_in_time(&failing(&proxy, &digest).await);
    let plugin = proxy.admin().plugin("router").await;
    assert_eq!(plugin["active"], sha256(&fixture("version-a")).as_str());
    assert_eq!(plugin["canary"], Value::Null);
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(proxy.admin().plugin("router").await["canary"], Value::Null);
    let again = proxy.admin().put(path, fixture("trap")).await;
    assert_eq!(again.status, 409, "{}", again.text());
}

#[tokio::test]
async fn a_version_with_nothing_before_it_is_marked_and_serves_on() {
    let config = BY_HEADER.replace("source = \"builtin:by-header\"\n", "");
    let proxy = TestProxy::start(&format!("{config}{PATIENT}{GUARD}")).await;
    let digest = proxy.admin().push_ok("router", fixture("trap")).await;
    let stop = Arc::new(AtomicBool::new(false));
    let flow = tokio::spawn(two_percent_traps(proxy.address, stop.clone()));
    proxy.says("there is none to go back to").await;
    stop.store(true, Ordering::Relaxed);
    flow.await.expect("no failed request");
    let plugin = proxy.admin().plugin("router").await;
    assert_eq!(plugin["active"], digest.as_str());
    assert_eq!(plugin["failing"][0]["version"], digest.as_str());
}

#[tokio::test]
async fn without_a_guard_nothing_is_taken_back() {
    let proxy = proxy("").await;
    let digest = proxy.admin().push_ok("router", fixture("trap")).await;
    let mut client = KeptAlive::connect(proxy.address).await.expect("connected");
    for _ in 0..200 {
        let request = Request::get("/").field("x-trap", "1");
        client.send(request).await.expect("a response");
    }
    // What a guard would have done by then is done by a guarded one in the tests above.
    let plugin = proxy.admin().plugin("router").await;
    assert_eq!(plugin["active"], digest.as_str());
    assert_eq!(plugin["versions"][0]["errors_by_kind"]["trap"], 200);
}
