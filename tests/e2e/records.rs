//! Entries that say more than one address: weights, policies, Unix sockets, tags, and what becomes of their streams.

use crate::harness::{Admin, TestProxy, TestUpstream, fixture_path, websocket};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpStream, UnixListener};

/// The key in `x-key`, and a bucket whose streams are kept or closed.
fn with_bucket(on_change: &str, rest: &str) -> String {
    format!(
        "[buckets.upstreams]\non_change = {on_change:?}\n\
         [plugins.by-key]\nsource = \"builtin:by-header\"\nbuckets = {{ upstreams = \"read\" }}\n\
         settings = {{ header = \"x-key\", port-header = \"\" }}\n\
         limits = {{ deadline = \"1s\" }}\n\
         [[route]]\nname = \"by-key\"\nplugin = \"by-key\"\n{rest}"
    )
}

async fn put(admin: &Admin, key: &str, value: &Value) {
    let path = format!("/v1/kv/upstreams/{key}");
    let response = admin.put(&path, value.to_string()).await;
    assert!(response.status < 300, "{}", response.text());
}

async fn answer(proxy: &TestProxy, key: &str) -> (u16, String) {
    let response = proxy.get("/", &[("x-key", key)]).await;
    (response.status, response.text())
}

fn address(upstream: &TestUpstream) -> String {
    format!("127.0.0.1:{}", upstream.port())
}

/// A Unix socket that leads to an upstream, and how many connected to it.
fn socket(path: PathBuf, upstream: &TestUpstream) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(path).expect("bound");
    let count = Arc::new(AtomicUsize::new(0));
    let (counted, to) = (count.clone(), address(upstream));
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let to = to.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.expect("connected");
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    count
}

/// A proxy that may dial sockets of its directory.
async fn with_sockets(rest: &str) -> (TestProxy, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let sockets = dir.path().join("sockets");
    std::fs::create_dir(&sockets).expect("made");
    let guard = format!("[guard]\nunix = [{:?}]\n", sockets.display().to_string());
    let text = crate::harness::Setup::new(by_key(&(rest.to_owned() + &guard))).text();
    std::fs::write(dir.path().join("throwbar.toml"), text).expect("written");
    let proxy = TestProxy::start_in(dir, &["serve", "throwbar.toml"]).await;
    (proxy, sockets)
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn by_key(rest: &str) -> String {
    with_bucket("keep", rest)
}

#[tokio::test]
async fn requests_are_spread_over_the_addresses_by_their_weights() {
    let proxy = TestProxy::start(&by_key("")).await;
    let upstreams = [
        TestUpstream::saying("a").await,
        TestUpstream::saying("b").await,
        TestUpstream::saying("c").await,
    ];
    let [a, b, c] = upstreams.each_ref().map(address);
    let weighted = json!({"addresses": [a, {"address": b, "weight": 6}, c]});
    put(&proxy.admin(), "id1", &weighted).await;
    let mut counts = [0; 3];
    for _ in 0..80 {
        let (status, text) = answer(&proxy, "id1").await;
        assert_eq!(status, 200, "{text}");
        counts[usize::from(text.as_bytes()[0] - b'a')] += 1;
    }
    // Each worker counts for itself: at most a round of each is not whole.
    let near = |count: i32, expected: i32| (count - expected).abs() <= 6;
    assert!(
        near(counts[0], 10) && near(counts[1], 60) && near(counts[2], 10),
        "{counts:?}"
    );
    // An equal record, written in another way, is the same.
    let text = format!(
        "{{ \"addresses\": [{a:?}, {{\"weight\": 6, \"address\": {b:?}}}, {c:?}], \"tags\": [] }}"
    );
    let again = proxy.admin().put("/v1/kv/upstreams/id1", text).await;
    assert_eq!(again.json()["outcome"], "unchanged", "{}", again.text());
    // What one of them was does not count when the record is another.
    put(&proxy.admin(), "id1", &json!({"addresses": [c]})).await;
    assert_eq!(answer(&proxy, "id1").await.1, "c");
}

#[tokio::test]
async fn the_policy_hash_sends_a_key_to_one_address_and_a_dead_one_is_passed_over() {
    let proxy = TestProxy::start(&by_key("")).await;
    let (a, b) = (
        TestUpstream::saying("a").await,
        TestUpstream::saying("b").await,
    );
    let closed = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        closed.local_addr().expect("bound").to_string()
    };
    let record = json!({"addresses": [address(&a), address(&b)], "policy": "hash"});
    for n in 0..16 {
        put(&proxy.admin(), &format!("id{n}"), &record).await;
    }
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..16 {
        let key = format!("id{n}");
        let first = answer(&proxy, &key).await;
        assert_eq!(first.0, 200);
        for _ in 0..3 {
            assert_eq!(answer(&proxy, &key).await, first);
        }
        seen.insert(first.1);
    }
    assert_eq!(seen.len(), 2, "both are used");
    let record = json!({"addresses": [closed, address(&a)]});
    put(&proxy.admin(), "half", &record).await;
    for _ in 0..8 {
        assert_eq!(answer(&proxy, "half").await, (200, "a".to_owned()));
    }
}

#[tokio::test]
async fn a_unix_socket_is_dialled_kept_and_carries_streams() {
    let (proxy, sockets) = with_sockets("").await;
    let admin = proxy.admin();
    let upstream = TestUpstream::saying("by socket").await;
    let path = sockets.join("app.sock");
    let connections = socket(path.clone(), &upstream);
    admin.set("upstreams", "id1", &unix(&path)).await;
    put(
        &admin,
        "id2",
        &json!({"addresses": [unix(&path)], "tags": ["x"]}),
    )
    .await;
    for key in ["id1", "id2", "id1", "id2", "id1", "id2"] {
        assert_eq!(answer(&proxy, key).await, (200, "by socket".to_owned()));
    }
    // Each worker keeps its own.
    let count = connections.load(Ordering::SeqCst);
    assert!((1..=2).contains(&count), "{count} connections");
    let line = proxy
        .access_line("the request", |line| line["key"] == "id1")
        .await;
    assert_eq!(line["endpoint"], unix(&path));

    let (echo, _closes) = websocket::echo().await;
    let path = sockets.join("echo.sock");
    socket(path.clone(), &echo);
    admin.set("upstreams", "id3", &unix(&path)).await;
    let mut stream = websocket::open(proxy.address, &[("x-key", "id3")]).await;
    stream.echo("hello").await;
    let listed = admin.streams_are(1).await;
    assert_eq!(listed[0]["endpoint"], unix(&path));
    let of_socket = format!("/v1/streams?upstream={}", unix(&path).replace('/', "%2F"));
    let listed = admin.get(&of_socket).await.json();
    assert_eq!(
        listed["streams"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    stream.close().await;
}

#[tokio::test]
async fn sockets_are_refused_unless_the_guard_names_their_directory() {
    let (proxy, sockets) = with_sockets("").await;
    let upstream = TestUpstream::saying("by socket").await;
    let outside = proxy.file("outside.sock");
    socket(outside.clone(), &upstream);
    proxy.admin().set("upstreams", "id1", &unix(&outside)).await;
    assert_eq!(answer(&proxy, "id1").await.0, 502);
    let line = proxy
        .access_line("the refusal", |line| line["key"] == "id1")
        .await;
    let error = line["error"].as_str().expect("an error");
    assert!(
        error.contains("is in no directory of guard.unix"),
        "{error}"
    );
    let absent = unix(&sockets.join("absent.sock"));
    proxy.admin().set("upstreams", "id2", &absent).await;
    assert_eq!(answer(&proxy, "id2").await.0, 502);
}

#[tokio::test]
async fn what_a_record_says_of_its_streams_goes_before_what_its_bucket_says() {
    let (echo, _closes) = websocket::echo().await;
    for (bucket, said, closes) in [
        ("keep", json!("close"), true),
        ("close", json!("keep"), false),
        ("keep", json!({"drain": {"after_ms": 100}}), true),
    ] {
        let proxy = TestProxy::start(&with_bucket(bucket, "")).await;
        let admin = proxy.admin();
        let record = |zone: &str| json!({"addresses": [address(&echo)], "on_change": said, "tags": {"zone": zone}});
        put(&admin, "id1", &record("a")).await;
        let mut stream = websocket::open(proxy.address, &[("x-key", "id1")]).await;
        stream.echo("hello").await;
        put(&admin, "id1", &record("a")).await;
        stream.echo("the same value is no change").await;
        put(&admin, "id1", &record("b")).await;
        if closes {
            assert_eq!(stream.close_code().await, Some(1012), "{bucket} {said}");
        } else {
            // A change that is acted on, so that the one before would have been.
            admin.set("upstreams", "id2", &address(&echo)).await;
            let mut other = websocket::open(proxy.address, &[("x-key", "id2")]).await;
            other.echo("hello").await;
            admin.set("upstreams", "id2", "127.0.0.1:1").await;
            assert_eq!(other.close_code().await, Some(1012));
            stream.echo("still there").await;
        }
    }
}

#[tokio::test]
async fn bad_records_are_refused_with_the_reason_by_the_admin_api_and_the_command() {
    let proxy = TestProxy::start(&by_key("")).await;
    let admin = proxy.admin();
    for (value, said) in [
        (json!({"addresses": []}), "addresses has 0 items"),
        (
            json!({"addresses": ["127.0.0.1:1"], "weight": 1}),
            "unknown field \"weight\"",
        ),
        (
            json!({"addresses": ["127.0.0.1:99999"]}),
            "addresses[0]: \"127.0.0.1:99999\"",
        ),
        (
            json!({"addresses": [{"address": "a:1", "weight": 1001}]}),
            "weight is 1001",
        ),
        (
            json!({"addresses": ["a:1"], "policy": "first"}),
            "policy is \"first\"",
        ),
    ] {
        let refused = admin.put("/v1/kv/upstreams/id1", value.to_string()).await;
        assert_eq!(refused.status, 422, "{value}");
        let detail = refused.json()["detail"]
            .as_str()
            .expect("a detail")
            .to_owned();
        assert!(
            detail.starts_with("bucket \"upstreams\", key \"id1\": typed record: "),
            "{detail}"
        );
        assert!(detail.contains(said), "{detail}");
    }
    let refused = proxy
        .kv(&["set", "upstreams", "id1={\"addresses\": 1}"])
        .await;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("addresses is 1, expected a list"),
        "{}",
        refused.stderr
    );
    let set = proxy
        .kv(&[
            "set",
            "upstreams",
            "id1={\"addresses\": [\"a:1\"], \"tags\": [\"x\"]}",
        ])
        .await;
    assert_eq!(set.code, 0, "{}", set.stderr);
    let shown = proxy.kv(&["get", "upstreams", "id1"]).await;
    assert_eq!(shown.stdout, "{\"addresses\":[\"a:1\"],\"tags\":[\"x\"]}\n");
}

#[tokio::test]
async fn records_outlive_a_restart_and_go_through_exports_and_imports() {
    let mut proxy = TestProxy::start(&by_key("")).await;
    let upstream = TestUpstream::saying("there").await;
    let record = json!({"addresses": [address(&upstream)], "tags": {"zone": "a b"}});
    put(&proxy.admin(), "id1", &record).await;
    proxy.kill().await;
    proxy.start_again().await;
    let admin = proxy.admin();
    assert_eq!(answer(&proxy, "id1").await, (200, "there".to_owned()));
    for format in ["ndjson", "csv", "lines"] {
        let export = admin
            .get(&format!("/v1/kv/upstreams?format={format}"))
            .await;
        assert_eq!(export.status, 200, "{}", export.text());
        let media_type = export.header("content-type").to_owned();
        let import =
            crate::harness::Request::post("/v1/kv/upstreams/import?replace=true", export.text());
        let import = admin.send(import.field("content-type", &media_type)).await;
        assert_eq!(import.status, 200, "{format}: {}", import.text());
        assert_eq!(import.json()["unchanged"], 1, "{format}: {}", import.text());
    }
}

#[tokio::test]
async fn a_plugin_reads_the_tags_of_what_it_found() {
    let config = format!(
        "[buckets.upstreams]\nlookup = [\"prefix\"]\n\
         [plugins.tags]\nsource = \"{}\"\nbuckets = {{ upstreams = \"read\" }}\nlimits = {{ deadline = \"1s\" }}\n\
         [[route]]\nname = \"tags\"\nplugin = \"tags\"\n",
        fixture_path("tags").display()
    );
    let proxy = TestProxy::start(&config).await;
    let upstream = TestUpstream::saying("there").await;
    let tags = json!({"zone": "eu", "gold": ""});
    let record = json!({"addresses": [address(&upstream)], "tags": tags});
    put(&proxy.admin(), "eu-*", &record).await;
    put(&proxy.admin(), "plain", &json!({"addresses": ["a:1"]})).await;
    proxy.admin().set("upstreams", "id1", "127.0.0.1:1").await;
    for (id, tag, text) in [
        (
            "eu-7",
            "zone",
            r#"Some("eu") [("gold", ""), ("zone", "eu")]"#,
        ),
        ("eu-7", "gold", r#"Some("") [("gold", ""), ("zone", "eu")]"#),
        ("eu-7", "none", r#"None [("gold", ""), ("zone", "eu")]"#),
        ("plain", "zone", "None []"),
        ("id1", "zone", "None []"),
    ] {
        let response = proxy.get("/", &[("x-id", id), ("x-tag", tag)]).await;
        assert_eq!((response.status, &*response.text()), (200, text), "{id}");
    }
    let forwarded = proxy.get("/", &[("x-id", "eu-7")]).await;
    assert_eq!(forwarded.text(), "there");
    let listed = proxy.admin().get("/v1/kv/upstreams?prefix=eu").await.json();
    assert_eq!(listed["entries"][0]["value"]["tags"], tags);
}
