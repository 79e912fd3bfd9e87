//! What plugins do with keys: times to live, counting, swapping.

use crate::harness::proxy::PATIENT;
use crate::harness::{TestProxy, eventually, fixture_path};
use serde_json::json;

async fn proxy(guest: &str) -> TestProxy {
    TestProxy::start(&format!(
        r#"
[buckets.notes]
values = "bytes"
[buckets.upstreams]
[plugins.router]
source = "{}"
buckets = {{ notes = "write", upstreams = "write" }}
[[route]]
name = "by-id"
plugin = "router"
{PATIENT}"#,
        fixture_path(guest).display()
    ))
    .await
}

async fn steps(proxy: &TestProxy, steps: &str) -> Vec<String> {
    let response = proxy.get("/", &[("x-do", steps)]).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_plugin_puts_for_a_time_renews_and_counts() {
    let proxy = proxy("writer").await;
    let admin = proxy.admin();
    let said = steps(
        &proxy,
        "bucket notes; put-for brief x 300; put-for kept x 300; touch kept -; exists kept; exists none; \
         touch none 5; add hits 2; add hits 3; get hits; add brief 1; put-for bad x 0",
    );
    let said = said.await;
    assert_eq!(said[..5], ["ok", "ok", "ok", "true", "false"]);
    assert_eq!(said[5], "error: the entry is absent");
    assert_eq!(said[6..9], ["2", "5", "5 @0"]);
    assert!(said[9].contains("expected a decimal number"), "{}", said[9]);
    assert!(said[10].contains("expected 1ms to 3650d"), "{}", said[10]);
    eventually("the entry has ended", async || {
        (admin.get("/v1/kv/notes/brief").await.status == 404).then_some(())
    })
    .await;
    let kept = admin.get("/v1/kv/notes/kept").await;
    assert_eq!((kept.status, kept.header("throwbar-expires-at")), (200, ""));
    assert_eq!(admin.get("/v1/kv/notes/hits").await.text(), "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_of_many_requests_and_of_the_admin_api_add_up() {
    let proxy = proxy("writer").await;
    let admin = proxy.admin();
    let address = proxy.address;
    let requests: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..10 {
                    let request = crate::harness::Request::get("/");
                    let request = request.field("x-do", "bucket notes; add hits 1; add hits 1");
                    let response = request.send(address).await;
                    assert_eq!(response.status, 200, "{}", response.text());
                }
            })
        })
        .collect();
    for _ in 0..10 {
        let added = admin
            .patch("/v1/kv/notes/hits", json!({ "increment": 100 }))
            .await;
        assert!(matches!(added.status, 200 | 201));
    }
    for request in requests {
        request.await.expect("it ended");
    }
    assert_eq!(admin.get("/v1/kv/notes/hits").await.text(), "1160");
}

#[tokio::test]
async fn atomics_of_both_drafts_count_and_swap() {
    let proxy = proxy("portable-kv").await;
    let fields = [("x-bucket", "notes"), ("x-key", "n"), ("x-atomics", "1")];
    let said = proxy.get("/", &fields).await.text();
    assert_eq!(
        said,
        "draft 5\ndraft2 3\ncurrent none\nswapped failed 2 swapped\n"
    );
    let said = proxy.get("/", &fields).await.text();
    assert_eq!(
        said,
        "draft 8\ndraft2 6\ncurrent 4\nswapped failed 2 swapped\n"
    );
    let admin = proxy.admin();
    assert_eq!(admin.get("/v1/kv/notes/n").await.text(), "6");
    assert_eq!(admin.get("/v1/kv/notes/n-swap").await.text(), "4");
    admin.set("notes", "n", "-9").await;
    let below = proxy.get("/", &fields).await.text();
    assert!(below.contains("-4 is below 0"), "{below}");
    let addresses = [
        ("x-bucket", "upstreams"),
        ("x-key", "n"),
        ("x-atomics", "1"),
    ];
    let refused = proxy.get("/", &addresses).await.text();
    assert!(refused.contains("holds addresses"), "{refused}");
}
