//! What plugins do with keys: times to live, counting, swapping, pages, and reads of one revision beside writers.

use crate::harness::proxy::PATIENT;
use crate::harness::servers::{Engine, Server};
use crate::harness::{Admin, Request, TestProxy, eventually, fixture_path, soon};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

async fn proxy(guest: &str) -> TestProxy {
    proxy_on("", "embedded", guest).await
}

/// The same with its buckets in an engine that proxies share; none, with a loud line, if there is none.
async fn shared(engine: Engine, guest: &str) -> Option<(TestProxy, Server)> {
    let server = Server::start(engine).await?;
    let proxy = proxy_on(&server.config(), engine.name(), guest).await;
    Some((proxy, server))
}

async fn proxy_on(engine: &str, backend: &str, guest: &str) -> TestProxy {
    TestProxy::start(&format!(
        r#"
{engine}
[buckets.notes]
backend = "{backend}"
values = "bytes"
[buckets.upstreams]
backend = "{backend}"
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
    puts_for_a_time_renews_and_counts(&proxy("writer").await, "x 300").await;
}

#[tokio::test]
async fn a_plugin_puts_for_a_time_renews_and_counts_in_etcd() {
    if let Some((proxy, _server)) = shared(Engine::Etcd, "writer").await {
        // A lease has whole seconds.
        puts_for_a_time_renews_and_counts(&proxy, "x 2000").await;
    }
}

#[tokio::test]
async fn a_plugin_puts_for_a_time_renews_and_counts_in_redis() {
    if let Some((proxy, _server)) = shared(Engine::Redis, "writer").await {
        puts_for_a_time_renews_and_counts(&proxy, "x 2000").await;
    }
}

async fn puts_for_a_time_renews_and_counts(proxy: &TestProxy, brief: &str) {
    let admin = proxy.admin();
    let all = format!(
        "bucket notes; put-for brief {brief}; put-for kept {brief}; touch kept -; exists kept; exists none; \
         touch none 5; add hits 2; add hits 3; get hits; add brief 1; put-for bad x 0"
    );
    let said = steps(proxy, &all).await;
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
                    let request = Request::get("/");
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
    both_drafts_count_and_swap(&proxy("portable-kv").await).await;
}

#[tokio::test]
async fn atomics_of_both_drafts_count_and_swap_in_etcd() {
    if let Some((proxy, _server)) = shared(Engine::Etcd, "portable-kv").await {
        both_drafts_count_and_swap(&proxy).await;
    }
}

#[tokio::test]
async fn atomics_of_both_drafts_count_and_swap_in_redis() {
    if let Some((proxy, _server)) = shared(Engine::Redis, "portable-kv").await {
        both_drafts_count_and_swap(&proxy).await;
    }
}

async fn both_drafts_count_and_swap(proxy: &TestProxy) {
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

/// What a draft of `wasi:keyvalue` says of the bucket of notes.
async fn portable(proxy: &TestProxy, draft: &str, fields: &[(&str, &str)]) -> String {
    let request = Request::get("/").fields(&[("x-bucket", "notes"), ("x-draft", draft)]);
    let response = request.fields(fields).send(proxy.address).await;
    assert_eq!(response.status, 200, "{draft}: {}", response.text());
    response.text()
}

#[tokio::test]
async fn either_draft_of_wasi_keyvalue_sets_reads_and_deletes() {
    let proxy = proxy("portable-kv").await;
    let admin = proxy.admin();
    // The first leaves a key that is not there out of what it gives of many, the second names it.
    for (draft, absent) in [
        ("draft", ["none"; 2]),
        ("draft2", ["no-such-key=none", "k=none"]),
    ] {
        let path = "/v1/kv/notes/k";
        let is = |value: &str| {
            let [other, _] = absent;
            format!("{draft}: get {value} exists true many {other} k={value}\n")
        };
        let is_not = format!("{draft}: get none exists false many {}\n", absent.join(" "));
        let look = [("x-key", "k")];
        assert_eq!(portable(&proxy, draft, &look).await, is_not);
        let set = [("x-key", "k"), ("x-value", draft)];
        assert_eq!(portable(&proxy, draft, &set).await, is(draft));
        assert_eq!(admin.get(path).await.text(), draft);
        admin.set("notes", "k", "stored").await;
        assert_eq!(portable(&proxy, draft, &look).await, is("stored"));
        let delete = [("x-key", "k"), ("x-delete", "1")];
        assert_eq!(portable(&proxy, draft, &delete).await, is_not);
        assert_eq!(admin.get(path).await.status, 404, "{draft}");
    }
    let fields = [("x-key", "k"), ("x-value", "127.0.0.7")];
    let both = proxy.get("/", &fields).await.text();
    assert_eq!(
        both,
        "draft: get 127.0.0.7 exists true many none k=127.0.0.7\n\
         draft2: get 127.0.0.7 exists true many no-such-key=none k=127.0.0.7\n"
    );
    assert_eq!(admin.get("/v1/kv/upstreams/k").await.text(), "127.0.0.7");
}

#[tokio::test]
async fn either_draft_of_wasi_keyvalue_sets_and_deletes_many_keys_at_once() {
    let proxy = proxy("portable-kv").await;
    let admin = proxy.admin();
    for (draft, absent) in [("draft", "none"), ("draft2", "b-2=none")] {
        admin.set("notes", "b-2", "stored").await;
        let said = portable(&proxy, draft, &[("x-key", "b"), ("x-batch", "1")]).await;
        assert_eq!(
            said,
            format!("{draft}: b-1=set b-2=set b-3=set, then b-1=set {absent} b-3=set\n")
        );
        for key in ["b-1", "b-3"] {
            let path = format!("/v1/kv/notes/{key}");
            assert_eq!(admin.get(&path).await.text(), "set", "{draft}");
            assert_eq!(admin.delete(&path).await.status, 204, "{draft}");
        }
        let deleted = admin.get("/v1/kv/notes/b-2").await;
        assert_eq!(deleted.status, 404, "{draft}");
    }
}

#[tokio::test]
async fn either_draft_of_wasi_keyvalue_lists_each_key_once_over_pages() {
    let proxy = proxy("portable-kv").await;
    let keys: Vec<String> = (0..2_500).map(|n| format!("k{n:04}")).collect();
    let lines: String = keys.iter().map(|key| format!("{key} v\n")).collect();
    let import = Request::post("/v1/kv/notes/import", lines).field("content-type", "text/plain");
    let imported = proxy.admin().send(import).await;
    assert_eq!(imported.status, 200, "{}", imported.text());
    let pages: Vec<String> = keys.chunks(1_000).map(|page| page.join(",")).collect();
    for draft in ["draft", "draft2"] {
        let listed = portable(&proxy, draft, &[("x-list", "1")]).await;
        // Not shown by their thousands.
        let is_all = listed == format!("{draft}: {}\n", pages.join(" | "));
        let lengths: Vec<usize> = listed
            .split('|')
            .map(|page| page.split(',').count())
            .collect();
        assert!(is_all, "{draft}: pages of {lengths:?}: {listed:.200}");
    }
}

/// Sets `a` and `b` to the same number, in one batch.
async fn set_both(admin: &Admin, number: u64) {
    let set = json!({ "a": number.to_string(), "b": number.to_string() });
    let body = json!({ "writes": { "notes": { "set": set } } }).to_string();
    let done = admin.post("/v1/batch", body).await;
    assert!(matches!(done.status, 200 | 201), "{}", done.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_decision_reads_is_of_one_revision_beside_writers() {
    const REQUESTS: usize = 300;
    const CHANGES: usize = 100;
    let proxy = proxy("writer").await;
    let admin = proxy.admin();
    set_both(&admin, 0).await;
    let over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (admin, over) = (admin.clone(), Arc::clone(&over));
        async move {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                set_both(&admin, number).await;
            }
        }
    });
    let asked = format!("bucket notes; {}get a", "get a; get b; ".repeat(200));
    let (mut requests, mut changes, mut last) = (0, 0, String::new());
    let reading = async {
        while requests < REQUESTS || changes < CHANGES {
            let said = steps(&proxy, &asked).await;
            assert_eq!(said.len(), 401);
            // Each line is a value and its revision.
            let other = said.iter().find(|line| **line != said[0]);
            assert_eq!(other, None, "beside {}", said[0]);
            changes += usize::from(said[0] != last);
            last.clone_from(&said[0]);
            requests += 1;
        }
    };
    soon("requests beside writes", reading).await;
    over.store(true, Ordering::Relaxed);
    writer.await.expect("every write is taken");
}
