//! The store through the admin API: what is acknowledged is there, for everybody, for good.

mod data_file;
mod durability;
mod faults;
mod kills;
mod read_only;
mod slow_disk;

use crate::harness::proxy::BY_HEADER;
use crate::harness::{Request, Setup, TestProxy, TestUpstream};
use serde_json::json;

#[tokio::test]
async fn keys_are_set_read_and_deleted() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let path = "/v1/kv/upstreams/id1";
    assert_eq!(admin.get(path).await.status, 404);
    let created = admin.put(path, "127.0.0.2").await;
    assert_eq!(
        (created.status, &created.json()["outcome"]),
        (201, &json!("created"))
    );
    let got = admin.get(path).await;
    assert_eq!((got.status, got.text().as_str()), (200, "127.0.0.2"));
    assert_eq!(got.header("etag"), created.header("etag"));
    let same = admin.put(path, "127.0.0.2").await;
    assert_eq!(
        (same.status, &same.json()["outcome"]),
        (200, &json!("unchanged"))
    );
    assert_eq!(same.header("etag"), created.header("etag"));
    let changed = admin.put(path, "127.0.0.3").await;
    assert_eq!(
        (changed.status, &changed.json()["outcome"]),
        (200, &json!("changed"))
    );
    assert_ne!(changed.header("etag"), created.header("etag"));
    assert_eq!(admin.delete(path).await.status, 204);
    assert_eq!(admin.get(path).await.status, 404);
    assert_eq!(admin.delete(path).await.status, 404);
}

#[tokio::test]
async fn conditions_hold_or_nothing_is_written() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let put = |name: &str, tag: &str, value: &'static str| {
        Request::new("PUT", "/v1/kv/upstreams/id1")
            .field(name, tag)
            .body(value)
    };
    assert_eq!(
        admin.send(put("if-match", "*", "127.0.0.2")).await.status,
        412
    );
    let created = admin.send(put("if-none-match", "*", "127.0.0.2")).await;
    assert_eq!(created.status, 201);
    assert_eq!(
        admin
            .send(put("if-none-match", "*", "127.0.0.3"))
            .await
            .status,
        412
    );
    assert_eq!(
        admin
            .send(put("if-match", "\"999\"", "127.0.0.3"))
            .await
            .status,
        412
    );
    let tag = created.header("etag").to_owned();
    assert_eq!(
        admin.send(put("if-match", &tag, "127.0.0.3")).await.status,
        200
    );
    assert_eq!(
        admin.send(put("if-match", &tag, "127.0.0.4")).await.status,
        412
    );
    let fresh = admin.get("/v1/kv/upstreams/id1").await;
    assert_eq!(fresh.text(), "127.0.0.3");
    let known = Request::get("/v1/kv/upstreams/id1").field("if-none-match", fresh.header("etag"));
    assert_eq!(admin.send(known).await.status, 304);
    let delete = Request::new("DELETE", "/v1/kv/upstreams/id1").field("if-match", &tag);
    assert_eq!(admin.send(delete).await.status, 412);
}

#[tokio::test]
async fn a_batch_is_written_whole_under_one_revision_or_not_at_all() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let batch = "/v1/kv/upstreams/batch";
    let good = json!({ "set": { "a": "127.0.0.2", "b": "127.0.0.3", "c": "127.0.0.4" } });
    let done = admin.post(batch, good.to_string()).await;
    assert_eq!((done.status, &done.json()["created"]), (200, &json!(3)));
    for bad in [
        json!({ "set": { "d": "127.0.0.5", "e": "no address!" } }),
        json!({ "writes": [{ "key": "d", "value": "127.0.0.5" }, { "key": "a", "value": null, "if_revision": 0 }] }),
    ] {
        let refused = admin.post(batch, bad.to_string()).await;
        assert!(matches!(refused.status, 412 | 422), "{}", refused.text());
        assert_eq!(admin.get("/v1/kv/upstreams/d").await.status, 404);
    }
    let replaced = json!({ "set": { "a": "127.0.0.2", "z": "127.0.0.9" }, "replace": true });
    assert_eq!(admin.post(batch, replaced.to_string()).await.status, 200);
    let page = admin.get("/v1/kv/upstreams").await.json();
    let keys: Vec<_> = page["entries"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| e["key"].clone())
        .collect();
    assert_eq!(keys, [json!("a"), json!("z")]);
}

#[tokio::test]
async fn pages_of_a_prefix_give_every_key_once_in_order() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let set: serde_json::Map<_, _> = (0..250)
        .map(|n| (format!("eu-{n:03}"), json!("127.0.0.2")))
        .chain([("us-1".into(), json!("127.0.0.3"))])
        .collect();
    assert_eq!(
        admin
            .post("/v1/kv/upstreams/batch", json!({ "set": set }).to_string())
            .await
            .status,
        200
    );
    let (mut keys, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = admin
            .get(&format!("/v1/kv/upstreams?prefix=eu-&limit=70{cursor}"))
            .await
            .json();
        let entries = page["entries"].as_array().expect("a list").clone();
        assert!(entries.len() <= 70);
        keys.extend(
            entries
                .iter()
                .map(|e| e["key"].as_str().expect("a key").to_owned()),
        );
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let expected: Vec<String> = (0..250).map(|n| format!("eu-{n:03}")).collect();
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn a_value_that_is_no_address_is_refused_with_a_reason() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    for bad in [
        "",
        " ",
        "127.0.0.",
        "127.0.0.256",
        "1.2.3.4.5",
        "http://a",
        "a b",
        "a:0",
        "a:65536",
        "a:b",
        "a:80:90",
        "[::1",
        "::1]:80",
        "a/b",
        "a\nb",
        "user@a",
        "-a.example",
        "127.0.0.2\r\nx: y",
    ] {
        let response = admin.put("/v1/kv/upstreams/id1", bad).await;
        assert_eq!(response.status, 422, "{bad:?}: {}", response.text());
        let detail = response.json()["detail"]
            .as_str()
            .expect("a reason")
            .to_owned();
        assert!(
            detail.contains("id1") && detail.contains("upstreams"),
            "{bad:?}: {detail}"
        );
        assert!(detail.len() > 30, "{bad:?}: {detail}");
    }
    for good in [
        "127.0.0.2",
        "127.0.0.2:80",
        "::1",
        "[::1]:80",
        "a.example",
        "a.example:80",
        "localhost",
    ] {
        let response = admin.put("/v1/kv/upstreams/id1", good).await;
        assert!(
            matches!(response.status, 200 | 201),
            "{good}: {}",
            response.text()
        );
    }
}

#[tokio::test]
async fn quotas_of_a_bucket_are_kept() {
    let limits = "values = \"bytes\"\nkeys_max = 3\nbytes_max = \"1KiB\"\n";
    let config = ["memory", "embedded"]
        .map(|backend| format!("[buckets.in-{backend}]\nbackend = \"{backend}\"\n{limits}"));
    let config = format!("{BY_HEADER}\n{}", config.concat());
    let proxy = TestProxy::start(&config).await;
    let admin = proxy.admin();
    let large = "x".repeat(990);
    for bucket in ["in-memory", "in-embedded"] {
        let keys = format!("/v1/kv/{bucket}");
        let refused = async |key: &str, value: &str, said: &str| {
            let over = admin.put(&format!("{keys}/{key}"), value.to_owned()).await;
            let told = over.json();
            assert_eq!((over.status, &told["code"]), (507, &json!("quota")));
            let reason = format!("bucket \"{bucket}\": would hold {said}");
            assert_eq!(told["detail"], reason.as_str());
        };
        for key in ["k0", "k1", "k2"] {
            admin.set(bucket, key, "a value").await;
        }
        refused("k3", "1", "4 keys, keys_max is 3").await;
        admin.set(bucket, "k0", &large).await;
        let shown = admin.get("/v1/status").await.json()["store"]["buckets"][bucket].take();
        assert_eq!((&shown["keys"], &shown["bytes"]), (&json!(3), &json!(1010)));
        let over = "1034 bytes of keys and values, bytes_max is 1024";
        refused("k1", &"y".repeat(31), over).await;
        // Of a batch that goes beyond it nothing is written, whatever would have had room.
        let batch = json!({ "set": { "k1": "b", "k3": "1" } }).to_string();
        let over = admin.post(&format!("{keys}/batch"), batch).await;
        assert_eq!(over.status, 507, "{}", over.text());
        assert_eq!(admin.get(&format!("{keys}/k1")).await.text(), "a value");
        assert_eq!(admin.get(&format!("{keys}/k3")).await.status, 404);
        // What makes room is taken, and then there is room.
        assert_eq!(admin.delete(&format!("{keys}/k0")).await.status, 204);
        admin.set(bucket, "k3", &large).await;
    }
}

/// The request of the user this was made for, byte for byte.
const SEED_BODY: &str = r#"[
    {
    "input": "id1",
    "outputs": ["127.0.0.2"]
    },
    {
    "input": "id2",
    "outputs": ["127.0.0.3"]
    }
    ]"#;

#[tokio::test]
async fn the_curl_line_of_caddys_users_replaces_the_map_and_closes_nothing() {
    let (echo, _closes) = crate::harness::websocket::echo().await;
    let mut setup = Setup::new(BY_HEADER);
    setup.frame = setup
        .frame
        .replace("[admin]\n", "[admin]\nauth = \"none\"\n");
    let proxy = setup.start().await;
    let admin = proxy.admin();
    admin.set("upstreams", "old", "127.0.0.1").await;
    let fields = [("x-id", "old"), ("x-port", &*echo.port())];
    let mut socket = crate::harness::websocket::open(proxy.address, &fields).await;
    socket.echo("before").await;
    let url = format!(
        "http://localhost:{}/id/proxy-map/mappings",
        proxy.admin_address.port()
    );
    let curl = tokio::process::Command::new("curl")
        .args([
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            "PATCH",
            &url,
        ])
        .args(["-H", "Content-Type: application/json", "-d", SEED_BODY])
        .env_remove("http_proxy")
        .output()
        .await;
    match curl {
        Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout), "200", "{output:?}"),
        // No curl here: what it would send.
        Err(_) => {
            let request = Request::new("PATCH", "/id/proxy-map/mappings")
                .field("host", &format!("localhost:{}", proxy.admin_address.port()))
                .field("user-agent", "curl/8.5.0")
                .field("accept", "*/*")
                .field("content-type", "application/json")
                .body(SEED_BODY);
            assert_eq!(request.send(proxy.admin_address).await.status, 200);
        }
    }
    let page = admin.get("/v1/kv/upstreams").await.json();
    let entries: Vec<_> = page["entries"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| (e["key"].clone(), e["value"].clone()))
        .collect();
    assert_eq!(
        entries,
        [
            (json!("id1"), json!("127.0.0.2")),
            (json!("id2"), json!("127.0.0.3"))
        ]
    );
    socket.echo("after").await;
    let shown = admin.get("/id/proxy-map/mappings").await.json();
    assert_eq!(
        shown,
        serde_json::from_str::<serde_json::Value>(SEED_BODY).expect("JSON")
    );
}

#[tokio::test]
async fn a_patch_that_is_wrong_changes_nothing() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    admin.set("upstreams", "old", "127.0.0.1").await;
    for bad in [
        "",
        "{}",
        "[",
        r#"[{"input": "a", "outputs": ["no address!"]}]"#,
        r#"[{"input": "a", "outputs": ["127.0.0.2", "127.0.0.3"]}]"#,
        r#"[{"input_regexp": "a", "outputs": ["127.0.0.2"]}]"#,
        r#"[{"input": "a", "outputs": ["127.0.0.2"]}, {"input": "a", "outputs": ["127.0.0.3"]}]"#,
    ] {
        let request = Request::new("PATCH", "/id/proxy-map/mappings").body(bad);
        let status = admin.send(request).await.status;
        assert!((400..500).contains(&status), "{bad}: {status}");
    }
    let unknown = Request::new("PATCH", "/id/other/mappings").body("[]");
    assert_eq!(admin.send(unknown).await.status, 404);
    assert_eq!(admin.get("/v1/kv/upstreams/old").await.text(), "127.0.0.1");
}

#[tokio::test]
async fn imports_and_exports_are_whole() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    let lines: String = (0..5_000)
        .map(|n| format!("id-{n:05} 10.0.{}.{}\n", n / 250, n % 250))
        .collect();
    let import =
        Request::post("/v1/kv/upstreams/import", lines).field("content-type", "text/plain");
    let done = admin.send(import).await;
    assert_eq!((done.status, &done.json()["created"]), (200, &json!(5_000)));
    let export = admin.get("/v1/kv/upstreams?format=ndjson").await.text();
    assert_eq!(export.lines().count(), 5_000);
    let import = Request::post("/v1/kv/upstreams/import", "a 127.0.0.1\nb\nc 1.2.3.4.5.6\n")
        .field("content-type", "text/plain");
    let refused = admin.send(import).await;
    assert_eq!(refused.status, 422);
    let lines: Vec<_> = refused.json()["errors"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| e["line"].clone())
        .collect();
    assert_eq!(lines, [json!(2), json!(3)]);
    assert_eq!(admin.get("/v1/kv/upstreams/a").await.status, 404);
}

#[tokio::test]
async fn routing_by_many_keys_finds_each() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = TestProxy::start(BY_HEADER).await;
    let lines: String = (0..2_000).map(|n| format!("id-{n} 127.0.0.1\n")).collect();
    let import =
        Request::post("/v1/kv/upstreams/import", lines).field("content-type", "text/plain");
    assert_eq!(proxy.admin().send(import).await.status, 200);
    let mut client = crate::harness::client::KeptAlive::connect(proxy.address)
        .await
        .expect("connected");
    for n in (0..2_000).step_by(97) {
        let request = Request::get("/")
            .field("x-id", &format!("id-{n}"))
            .field("x-port", &upstream.port());
        assert_eq!(client.send(request).await.expect("answered").status, 200);
        let request = Request::get("/")
            .field("x-id", &format!("no-{n}"))
            .field("x-port", &upstream.port());
        assert_eq!(client.send(request).await.expect("answered").status, 404);
    }
}
