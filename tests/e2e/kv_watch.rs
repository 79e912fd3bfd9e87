//! Watching a bucket through the admin API: every change once, in order, over interruptions.

use super::kv_operations::with_notes;
use crate::harness::events::{Event, Events};
use crate::harness::{Request, TestProxy};
use serde_json::{Value, json};

/// An event as `revision: op key value, …`.
fn text(event: Option<Event>) -> String {
    let event = event.expect("an event");
    assert_eq!(event.name, "change");
    let field = |change: &Value, name: &str| change[name].as_str().unwrap_or("-").to_owned();
    let changes = event.data["changes"].as_array().expect("a list");
    let mut changes: Vec<String> = changes
        .iter()
        .map(|it| {
            format!(
                "{} {} {}",
                field(it, "op"),
                field(it, "key"),
                field(it, "value")
            )
        })
        .collect();
    changes.sort();
    format!("{}: {}", event.data["revision"], changes.join(", "))
}

#[tokio::test]
async fn changes_are_told_in_order_and_a_batch_is_one_event() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let mut events = Events::open(&admin, "/v1/kv/notes?watch", None).await;
    let mut some = Events::open(&admin, "/v1/kv/notes?watch=true&prefix=eu-", None).await;
    admin.set("notes", "a", "1").await;
    admin.set("upstreams", "other", "127.0.0.2").await;
    let batch = json!({ "set": { "a": "2", "eu-b": "3" } }).to_string();
    admin.post("/v1/kv/notes/batch", batch).await;
    admin.set("notes", "a", "2").await;
    admin.put("/v1/kv/notes/eu-c?ttl=100ms", "4").await;
    admin.delete("/v1/kv/notes/a").await;
    assert_eq!(text(events.next().await), "1: put a 1");
    assert_eq!(text(events.next().await), "3: put a 2, put eu-b 3");
    let put = events.next().await.expect("an event");
    assert!(put.data["changes"][0]["expires_at"].is_string(), "{put:?}");
    // The delete and the end of the other may come in either order.
    let mut rest = [text(events.next().await), text(events.next().await)];
    rest.sort_by_key(|text| text.contains("expire"));
    assert!(rest[0].ends_with(": delete a -"), "{rest:?}");
    assert!(rest[1].ends_with(": expire eu-c -"), "{rest:?}");
    assert_eq!(text(some.next().await), "3: put eu-b 3");
    assert_eq!(text(some.next().await), "4: put eu-c 4");
    assert!(text(some.next().await).ends_with(": expire eu-c -"));
}

#[tokio::test]
async fn a_client_that_comes_back_misses_nothing_over_a_restart_either() {
    let mut proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let mut events = Events::open(&admin, "/v1/kv/notes?watch", None).await;
    admin.set("notes", "a", "1").await;
    assert_eq!(text(events.next().await), "1: put a 1");
    let last_id = events.last_id.clone();
    drop(events);
    admin.set("notes", "a", "2").await;
    admin.set("notes", "a", "3").await;
    // What it comes back with counts more than where it once began.
    let path = "/v1/kv/notes?watch&since=0";
    let mut events = Events::open(&admin, path, Some(&last_id)).await;
    assert_eq!(text(events.next().await), "2: put a 2");
    assert_eq!(text(events.next().await), "3: put a 3");
    let last_id = events.last_id.clone();
    proxy.kill().await;
    assert_eq!(events.next().await, None);
    proxy.start_again().await;
    let admin = proxy.admin();
    let mut events = Events::open(&admin, path, Some(&last_id)).await;
    admin.set("notes", "a", "4").await;
    assert_eq!(text(events.next().await), "4: put a 4");
    // The log is in memory: what was before is not in it any more.
    let gone = admin.get("/v1/kv/notes?watch&since=1").await;
    assert_eq!(
        (gone.status, gone.json()["code"].clone()),
        (410, json!("compacted"))
    );
    assert!(gone.text().contains("those after 3"), "{}", gone.text());
    let ahead = admin.get("/v1/kv/notes?watch&since=99").await;
    assert_eq!(ahead.status, 410, "{}", ahead.text());
}

#[tokio::test]
async fn who_reads_too_slowly_is_told_that_changes_are_missing() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    admin.set("notes", "first", "1").await;
    let mut prompt = Events::open(&admin, "/v1/kv/notes?watch&prefix=nothing-", None).await;
    // Events of a megabyte each are more than the sockets between us hold.
    let mut stuck = Events::open(&admin, "/v1/kv/notes?watch", None).await;
    let value = "x".repeat(1_000_000);
    for n in 0..20 {
        admin.set("notes", &format!("k{n}"), &value).await;
    }
    let mut told = Vec::new();
    while let Some(event) = stuck.next().await {
        told.push(event);
    }
    let last = told.pop().expect("events");
    assert_eq!(last.name, "compacted", "after {} changes", told.len());
    let detail = last.data["detail"].as_str().expect("a reason");
    assert!(detail.contains("no longer kept"), "{detail}");
    let missed =
        admin.send(Request::get("/v1/kv/notes?watch").field("last-event-id", &stuck.last_id));
    assert_eq!(missed.await.status, 410);
    // Who takes what comes, and has nothing to take, is not behind.
    admin.set("notes", "nothing-else", "1").await;
    assert_eq!(text(prompt.next().await), "22: put nothing-else 1");
}

#[tokio::test]
async fn a_silent_watch_moves_on_and_ends_with_the_proxy() {
    let mut proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let path = "/v1/kv/notes?watch&prefix=eu-&heartbeat=100ms";
    let mut events = Events::open(&admin, path, None).await;
    let first = events.last_id.clone();
    admin.set("notes", "us-1", "x").await;
    assert_ne!(events.id_after(&first).await, first);
    proxy.signal(rustix::process::Signal::TERM);
    while events.next().await.is_some() {}
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn a_watch_that_makes_no_sense_is_refused() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    for (path, status, said) in [
        ("/v1/kv/none?watch", 404, "no bucket"),
        ("/v1/kv/notes?watch=maybe", 400, "expected true or false"),
        ("/v1/kv/notes?watch&limit=5", 400, "a watch takes no limit"),
        ("/v1/kv/notes?since=5", 400, "only a watch takes since"),
        ("/v1/kv/notes?watch&since=five", 400, "expected a revision"),
        (
            "/v1/kv/notes?watch&heartbeat=1h",
            400,
            "expected 100ms to 5m",
        ),
    ] {
        let refused = admin.get(path).await;
        assert_eq!(refused.status, status, "{path}: {}", refused.text());
        assert!(refused.text().contains(said), "{path}: {}", refused.text());
    }
}
