//! What the admin API does with keys beyond setting them: times to live, counting, conditions, pages beside writers.

use crate::harness::proxy::BY_HEADER;
use crate::harness::{Request, TestProxy, eventually};
use serde_json::json;

/// A bucket on disk for bytes, beside the map.
pub(super) fn with_notes() -> String {
    format!("{BY_HEADER}\n[buckets.notes]\nvalues = \"bytes\"\n")
}

#[tokio::test]
async fn a_key_with_a_ttl_is_gone_after_it_and_over_restarts_too() {
    let mut proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let put = async |key: &str, ttl: &str| {
        let path = format!("/v1/kv/notes/{key}?ttl={ttl}");
        let response = admin.put(&path, "x").await;
        assert_eq!(response.status, 201, "{}", response.text());
        assert!(response.json()["expires_at"].is_string());
    };
    put("brief", "300ms").await;
    put("day", "1d").await;
    let there = admin.send(Request::new("HEAD", "/v1/kv/notes/day")).await;
    assert_eq!((there.status, there.body.len()), (200, 0));
    eventually("the key is gone", async || {
        (admin.get("/v1/kv/notes/brief").await.status == 404).then_some(())
    })
    .await;
    let day = admin.get("/v1/kv/notes/day").await;
    let expires = day.header("throwbar-expires-at").to_owned();
    assert!(expires.ends_with('Z'), "{expires}");
    let page = admin.get("/v1/kv/notes").await.json();
    assert_eq!(page["entries"][0]["expires_at"], json!(expires));

    put("over-restart", "1s").await;
    proxy.kill().await;
    proxy.start_again().await;
    let admin = proxy.admin();
    let day = admin.get("/v1/kv/notes/day").await;
    assert_eq!(day.header("throwbar-expires-at"), expires);
    eventually("the key is gone after the restart", async || {
        (admin.get("/v1/kv/notes/over-restart").await.status == 404).then_some(())
    })
    .await;
    let keys = admin.get("/v1/kv/notes").await.json()["entries"].clone();
    assert_eq!(keys.as_array().map(Vec::len), Some(1));
}

/// So many are looked through beside the thread that answers.
#[tokio::test]
async fn a_large_batch_with_a_ttl_is_told_when_the_first_of_it_ends() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let set: serde_json::Map<_, _> = (0..1_500)
        .map(|number| (format!("k{number}"), json!("x")))
        .collect();
    let batch = json!({ "set": set, "ttl": "1h" });
    let both = json!({ "writes": { "notes": { "set": batch["set"], "ttl": "2h" } } });
    let mut ends = Vec::new();
    for (path, body) in [("/v1/kv/notes/batch", batch), ("/v1/batch", both)] {
        let answer = admin.post(path, body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let got = admin.get("/v1/kv/notes/k1499").await;
        let end = got.header("throwbar-expires-at").to_owned();
        assert_eq!(answer.json()["expires_at"], json!(end), "{path}");
        ends.push(end);
    }
    assert!(ends[0] < ends[1], "{ends:?}");
}

#[tokio::test]
async fn renewing_a_key_keeps_its_revision_and_its_value() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let path = "/v1/kv/notes/k";
    let created = admin.put(&format!("{path}?ttl=1h"), "x").await;
    let tag = created.header("etag").to_owned();
    let expires = async || {
        let got = admin.get(path).await;
        assert_eq!((got.text().as_str(), got.header("etag")), ("x", &*tag));
        got.header("throwbar-expires-at").to_owned()
    };
    let first = expires().await;
    let touched = admin.patch(path, json!({ "ttl": "2h" })).await;
    assert_eq!((touched.status, touched.header("etag")), (200, &*tag));
    assert_eq!(touched.json()["outcome"], "touched");
    assert!(expires().await > first);
    // A put of the same value is a touch, too: without a time it stays.
    let put = admin.put(path, "x").await;
    assert_eq!(
        (put.json()["outcome"].clone(), put.header("etag")),
        (json!("touched"), &*tag)
    );
    assert_eq!(expires().await, "");
    let again = admin.patch(path, json!({ "ttl": null })).await;
    assert_eq!(again.json()["outcome"], "unchanged");
    let absent = admin
        .patch("/v1/kv/notes/none", json!({ "ttl": "1h" }))
        .await;
    assert_eq!(
        (absent.status, absent.json()["code"].clone()),
        (404, json!("no-such-key"))
    );
    for (body, status, said) in [
        (json!({}), 422, "expected increment, or ttl"),
        (json!({ "ttl": "5" }), 422, "it has no unit"),
        (json!({ "ttl": "0s" }), 422, "expected 1ms to 3650d"),
        (json!({ "tll": "5s" }), 422, "unknown field `tll`"),
    ] {
        let refused = admin.patch(path, body.clone()).await;
        assert_eq!(refused.status, status, "{body}");
        assert!(refused.text().contains(said), "{body}: {}", refused.text());
    }
    let refused = admin.put(&format!("{path}?ttl=soon"), "x").await;
    assert_eq!(refused.status, 400, "{}", refused.text());
}

#[tokio::test]
async fn counters_lose_no_increment_and_say_what_is_no_number() {
    let proxy = TestProxy::start(&with_notes()).await;
    let admin = proxy.admin();
    let path = "/v1/kv/notes/hits";
    let adders: Vec<_> = (0..8)
        .map(|_| {
            let admin = admin.clone();
            tokio::spawn(async move {
                let mut sums = Vec::new();
                for _ in 0..5 {
                    let added = admin.patch(path, json!({ "increment": 2 })).await;
                    assert!(matches!(added.status, 200 | 201), "{}", added.text());
                    sums.push(added.json()["value"].as_i64().expect("a sum"));
                }
                sums
            })
        })
        .collect();
    let mut sums = Vec::new();
    for adder in adders {
        sums.extend(adder.await.expect("it ended"));
    }
    sums.sort_unstable();
    assert_eq!(sums, (1..=40).map(|n| n * 2).collect::<Vec<i64>>());
    let tag = admin.get(path).await.header("etag").to_owned();
    let none = admin.patch(path, json!({ "increment": 0 })).await;
    assert_eq!(none.json()["outcome"], "unchanged");
    assert_eq!(none.header("etag"), tag);
    let dry = admin
        .patch(&format!("{path}?dry_run=true"), json!({ "increment": -1 }))
        .await;
    assert_eq!(
        (dry.json()["value"].clone(), dry.header("etag")),
        (json!(79), "")
    );
    assert_eq!(admin.get(path).await.text(), "80");
    admin.put("/v1/kv/notes/text", "forty").await;
    for (path, by, said) in [
        ("/v1/kv/notes/text", 1, "expected a decimal number"),
        (path, i64::MAX, "beyond 64 bits"),
        ("/v1/kv/upstreams/hits", 1, "holds addresses"),
    ] {
        let refused = admin.patch(path, json!({ "increment": by })).await;
        assert_eq!(refused.status, 422, "{path}: {}", refused.text());
        assert!(refused.text().contains(said), "{path}: {}", refused.text());
    }
    let conditional = |name: &str, value: &str| {
        let body = json!({ "increment": 1 }).to_string();
        admin.send(Request::new("PATCH", path).field(name, value).body(body))
    };
    assert_eq!(conditional("if-none-match", "*").await.status, 412);
    assert_eq!(conditional("if-match", "\"0\"").await.status, 412);
    assert_eq!(conditional("if-match", &tag).await.status, 200);
    assert_eq!(conditional("if-match", &tag).await.status, 412);
}

#[tokio::test]
async fn writes_of_many_keys_hold_to_the_bucket_that_was_read() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let batch = json!({ "set": { "a": "127.0.0.2" } }).to_string();
    let mappings = r#"[{"input": "b", "outputs": ["127.0.0.3"]}]"#;
    let writes = [
        ("POST", "/v1/kv/upstreams/batch", &*batch),
        ("POST", "/v1/kv/upstreams/import", "c 127.0.0.4\n"),
        ("PATCH", "/id/proxy-map/mappings", mappings),
    ];
    let write = |(method, path, body): (&str, &str, &str), name: &str, value: &str| {
        let request = Request::new(method, path)
            .field("content-type", "text/plain")
            .field(name, value);
        admin.send(request.body(body.to_owned()))
    };
    let tag = async || {
        let page = admin.get("/v1/kv/upstreams").await;
        page.header("etag").to_owned()
    };
    for one in writes {
        assert_eq!(
            write(one, "if-match", "*").await.status,
            412,
            "{one:?}: it is empty"
        );
    }
    let first = write(writes[0], "if-none-match", "*").await;
    assert_eq!(first.status, 200, "{}", first.text());
    let mut known = tag().await;
    for one in writes {
        assert_eq!(
            write(one, "if-none-match", "*").await.status,
            412,
            "{one:?}"
        );
        assert_eq!(
            write(one, "if-match", "\"999\"").await.status,
            412,
            "{one:?}"
        );
        admin
            .set("upstreams", "a", &format!("127.0.1.{}", one.2.len()))
            .await;
        let late = write(one, "if-match", &known).await;
        assert_eq!(late.status, 412, "{one:?}");
        assert!(late.text().contains("bucket"), "{}", late.text());
        let held = write(one, "if-match", &tag().await).await;
        assert_eq!(held.status, 200, "{one:?}: {}", held.text());
        known = tag().await;
    }
    let shown = admin.get("/id/proxy-map/mappings").await;
    assert_eq!(shown.header("etag"), known);
}

#[tokio::test]
async fn pages_with_writes_between_them_give_each_key_that_stays_once() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let stays: Vec<String> = (0..300).map(|n| format!("stay-{n:03}")).collect();
    let set: serde_json::Map<_, _> = stays
        .iter()
        .map(|key| (key.clone(), json!("127.0.0.2")))
        .collect();
    let batch = "/v1/kv/upstreams/batch";
    let filled = admin.post(batch, json!({ "set": set }).to_string()).await;
    assert_eq!(filled.status, 200, "{}", filled.text());
    // Keys before, among and behind those that stay come and go, and a value changes.
    let come_and_go = ["a", "stay-100-", "stay-299-", "z"];
    let (mut round, mut cursor, mut keys) = (0_i64, String::new(), Vec::new());
    loop {
        let page = admin
            .get(&format!("/v1/kv/upstreams?limit=7{cursor}"))
            .await;
        let page = page.json();
        let entries = page["entries"].as_array().expect("a list");
        let listed = entries.iter().map(|entry| entry["key"].as_str());
        keys.extend(listed.map(|key| key.expect("a key").to_owned()));
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
        let changed = format!("stay-{:03}", round * 11 % 300);
        let mut set = serde_json::Map::from_iter([(changed, json!(format!("10.0.0.{round}")))]);
        set.extend(come_and_go.map(|key| (format!("{key}{round}"), json!("127.0.0.3"))));
        let before = round - 1;
        let delete = come_and_go.map(|key| format!("{key}{before}"));
        let body = json!({ "set": set, "delete": delete }).to_string();
        let done = admin.post(batch, body).await;
        assert_eq!(done.status, 200, "{}", done.text());
        round += 1;
    }
    assert!(round > 40, "there were {round} pages");
    assert!(
        keys.is_sorted_by(|one, next| one < next),
        "none comes twice"
    );
    assert!(keys.iter().any(|key| key.starts_with("stay-100-")));
    keys.retain(|key| stays.contains(key));
    assert_eq!(keys, stays);
}
