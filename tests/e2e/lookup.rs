//! Keys that stand for others: prefixes, domains, regular expressions and a default, as the config declares them.

use crate::harness::{Admin, TestProxy, TestUpstream, websocket};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The key in `x-key`, a bucket of these settings.
fn by_key(bucket: &str) -> String {
    format!(
        "[buckets.upstreams]\n{bucket}\n\
         [plugins.by-key]\nsource = \"builtin:by-header\"\nbuckets = {{ upstreams = \"read\" }}\n\
         settings = {{ header = \"x-key\", port-header = \"\" }}\n\
         limits = {{ deadline = \"1s\" }}\n\
         [[route]]\nname = \"by-key\"\nplugin = \"by-key\"\n"
    )
}

const ALL: &str =
    "lookup = [\"exact\", \"prefix\", \"suffix\", \"regex\", \"default\"]\nregexes_max = 3";

async fn proxy() -> TestProxy {
    TestProxy::start(&by_key(ALL)).await
}

async fn set(proxy: &TestProxy, key: &str, upstream: &TestUpstream) {
    let key = key.replace('/', "%2F");
    let value = format!("127.0.0.1:{}", upstream.port());
    proxy.admin().set("upstreams", &key, &value).await;
}

async fn answer(proxy: &TestProxy, key: &str) -> (u16, String) {
    let response = proxy.get("/", &[("x-key", key)]).await;
    (response.status, response.text())
}

async fn put(proxy: &TestProxy, key: &str, value: &str) -> (u16, Value) {
    let path = format!("/v1/kv/upstreams/{key}");
    let response = proxy.admin().put(&path, value.to_owned()).await;
    (response.status, response.json())
}

#[tokio::test]
async fn each_kind_of_key_routes_what_the_kinds_before_it_leave() {
    let proxy = proxy().await;
    let mut upstreams = Vec::new();
    for (key, says) in [
        ("/api/users", "exact"),
        ("/api/*", "prefix"),
        ("/api/v2/*", "longer prefix"),
        ("*.example.com", "suffix"),
        ("re:^/v[0-9]+/", "regex"),
        ("*", "default"),
    ] {
        let upstream = TestUpstream::saying(says).await;
        set(&proxy, key, &upstream).await;
        upstreams.push(upstream);
    }
    for (key, says) in [
        ("/api/users", "exact"),
        ("/api/users/", "prefix"),
        ("/api/*", "prefix"),
        ("/api/v2/users", "longer prefix"),
        ("App.Example.COM:8080", "suffix"),
        ("/v17/x", "regex"),
        // A key that stands for others is found by none of them.
        ("re:^/v[0-9]+/", "default"),
        ("example.com", "default"),
    ] {
        assert_eq!(answer(&proxy, key).await, (200, says.to_owned()), "{key}");
    }
    let line = proxy
        .access_line("the request", |line| line["key"] == "/v17/x")
        .await;
    assert_eq!(line["status"], 200);
    let deleted = proxy.admin().delete("/v1/kv/upstreams/*").await;
    assert_eq!(deleted.status, 204);
    assert_eq!(answer(&proxy, "example.com").await.0, 404);
    let deleted = proxy
        .admin()
        .delete("/v1/kv/upstreams/%2Fapi%2Fv2%2F*")
        .await;
    assert_eq!(deleted.status, 204);
    assert_eq!(answer(&proxy, "/api/v2/users").await.1, "prefix");
}

#[tokio::test]
async fn a_pattern_that_would_backtrack_for_ages_answers_like_any_other() {
    /// The longest key there may be.
    const KEY_BYTES_MAX: usize = 1024;
    let proxy = proxy().await;
    let upstream = TestUpstream::saying("found").await;
    for pattern in ["re:^(a+)+$", "re:^(b|bb)+$"] {
        set(&proxy, pattern, &upstream).await;
    }
    for letter in ["a", "b"] {
        let mut key = letter.repeat(KEY_BYTES_MAX);
        assert_eq!(answer(&proxy, &key).await, (200, "found".to_owned()));
        key.replace_range(KEY_BYTES_MAX - 1.., "!");
        let (status, _) = answer(&proxy, &key).await;
        assert_eq!(status, 404, "{letter}");
    }
}

#[tokio::test]
async fn keys_are_checked_when_they_are_written_and_kinds_are_declared() {
    let proxy = proxy().await;
    for (key, said) in [
        ("re:(a", "unclosed group"),
        ("re:a%7B1000%7D%7B1000%7D", "bytes when compiled"),
        ("*.Example.com", "in upper case"),
        ("%2Fa*b*", "a prefix has a * before its end"),
    ] {
        let (status, problem) = put(&proxy, key, "127.0.0.1:1").await;
        let detail = problem["detail"].as_str().expect("a detail");
        assert_eq!(status, 422, "{detail}");
        assert!(detail.contains(said) && !detail.contains('\n'), "{detail}");
    }
    for n in 0..3 {
        assert_eq!(put(&proxy, &format!("re:{n}"), "127.0.0.1:1").await.0, 201);
    }
    let (status, problem) = put(&proxy, "re:3", "127.0.0.1:1").await;
    assert_eq!(status, 507, "{problem}");
    assert!(
        problem.to_string().contains("regexes_max is 3"),
        "{problem}"
    );
    assert_eq!(put(&proxy, "re:2", "127.0.0.1:2").await.0, 200);

    let exact = TestProxy::start(&by_key("")).await;
    assert_eq!(put(&exact, "*", "127.0.0.1:1").await.0, 201);
    assert_eq!(answer(&exact, "x").await.0, 404);
    let prefixes = TestProxy::start(&by_key("lookup = [\"prefix\"]")).await;
    let (status, problem) = put(&prefixes, "*", "127.0.0.1:1").await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem.to_string().contains("of kind default"), "{problem}");
}

#[tokio::test]
async fn a_config_that_the_stored_keys_do_not_fit_is_refused_and_changes_nothing() {
    let text = by_key("lookup = [\"regex\"]");
    let proxy = TestProxy::start(&text).await;
    let upstream = TestUpstream::saying("found").await;
    set(&proxy, "re:a", &upstream).await;
    let file = proxy.file("throwbar.toml");
    let config = std::fs::read_to_string(&file).expect("the config");
    let other = config.replace("lookup = [\"regex\"]", "lookup = [\"prefix\"]");
    assert_ne!(config, other);
    let refused = proxy.admin().put("/v1/config", other).await;
    assert_ne!(refused.status, 200, "{}", refused.text());
    assert!(refused.text().contains("re:a"), "{}", refused.text());
    assert_eq!(answer(&proxy, "bab").await.1, "found");
    let exact = config.replace("lookup = [\"regex\"]", "");
    let taken = proxy.admin().put("/v1/config", exact).await;
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert_eq!(answer(&proxy, "bab").await.0, 404);
    let back = proxy.admin().put("/v1/config", config).await;
    assert_eq!(back.status, 200, "{}", back.text());
    assert_eq!(answer(&proxy, "bab").await.1, "found");
}

#[tokio::test]
async fn patterns_are_there_after_a_restart() {
    let mut proxy = proxy().await;
    let upstream = TestUpstream::saying("found").await;
    for key in ["/api/*", "*.example.com", "re:^a+$"] {
        set(&proxy, key, &upstream).await;
    }
    proxy.kill().await;
    proxy.start_again().await;
    for key in ["/api/x", "a.example.com", "aaa"] {
        assert_eq!(answer(&proxy, key).await.1, "found", "{key}");
    }
    assert_eq!(answer(&proxy, "aab").await.0, 404);
}

#[tokio::test]
async fn what_a_key_finds_is_told_by_the_admin_api_and_the_command() {
    let secret = "0123456789abcdef0123456789abcdef";
    let text = by_key(ALL)
        + &format!("[admin.tokens.eu]\ntoken = {secret:?}\nprefix = \"eu-\"\n")
        + "buckets = { upstreams = \"read\" }\n";
    let proxy = TestProxy::start(&text).await;
    for key in ["eu-1", "eu-*", "*"] {
        assert_eq!(put(&proxy, key, "127.0.0.1:1").await.0, 201);
    }
    let admin = proxy.admin();
    let found = admin.get("/v1/kv/upstreams/eu-22?lookup").await.json();
    assert_eq!(found["kind"], "prefix");
    assert_eq!(found["asked"], "eu-22");
    assert_eq!(found["entry"]["key"], "eu-*");
    assert_eq!(found["entry"]["value"], "127.0.0.1:1");
    assert_eq!(admin.get("/v1/kv/upstreams/eu-22").await.status, 404);
    assert_eq!(
        admin.get("/v1/kv/upstreams/eu-22?lookup=x").await.status,
        400
    );
    let kinds = admin.get("/v1/kv").await.json();
    let declared = json!(["exact", "prefix", "suffix", "regex", "default"]);
    assert_eq!(kinds["buckets"][0]["lookup"], declared);
    // A token for some keys is not shown those of others, whatever they stand for.
    let limited = Admin::new(proxy.admin_address, Some(secret.to_owned()));
    for (key, status) in [("eu-1", 200), ("eu-22", 200), ("us", 403)] {
        let found = limited.get(&format!("/v1/kv/upstreams/{key}?lookup")).await;
        assert_eq!(found.status, status, "{key}: {}", found.text());
    }
    let deleted = admin.delete("/v1/kv/upstreams/eu-*").await;
    assert_eq!(deleted.status, 204);
    let hidden = limited.get("/v1/kv/upstreams/eu-22?lookup").await;
    assert_eq!(hidden.status, 403, "{}", hidden.text());
    let shown = proxy.kv(&["lookup", "upstreams", "us"]).await;
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert!(shown.stdout.contains("default"), "{}", shown.stdout);
    let refused = proxy.kv(&["set", "upstreams", "re:[=1.2.3.4"]).await;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("is no regular expression"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_stream_follows_the_entry_whose_key_stood_for_its_own() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = TestProxy::start(&by_key(&format!("{ALL}\non_change = \"close\""))).await;
    set(&proxy, "eu-*", &echo).await;
    let mut stream = websocket::open(proxy.address, &[("x-key", "eu-1")]).await;
    stream.echo("hello").await;
    // One that would be found instead from now on is no change of the one that was.
    assert_eq!(put(&proxy, "eu-1", "127.0.0.1:9").await.0, 201);
    let mut other = websocket::open(proxy.address, &[("x-key", "eu-2")]).await;
    other.echo("hello").await;
    stream.echo("still there").await;
    assert_eq!(put(&proxy, "eu-*", "127.0.0.1:9").await.0, 200);
    assert_eq!(stream.close_code().await, Some(1012));
    assert_eq!(other.close_code().await, Some(1012));
}

#[tokio::test]
async fn patterns_change_under_load_without_an_error() {
    let proxy = Arc::new(proxy().await);
    let (one, other) = (
        TestUpstream::saying("one").await,
        TestUpstream::saying("other").await,
    );
    set(&proxy, "*", &one).await;
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (proxy, over) = (proxy.clone(), over.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    let (status, text) = answer(&proxy, "/v1/x").await;
                    assert_eq!(status, 200, "{text}");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for round in 0..30 {
        set(&proxy, "re:^/v[0-9]", &other).await;
        assert_eq!(answer(&proxy, "/v1/x").await.1, "other", "round {round}");
        set(&proxy, "/v1*", &one).await;
        assert_eq!(answer(&proxy, "/v1/x").await.1, "one", "round {round}");
        for key in ["%2Fv1*", "re:%5E%2Fv%5B0-9%5D"] {
            let deleted = proxy
                .admin()
                .delete(&format!("/v1/kv/upstreams/{key}"))
                .await;
            assert_eq!(deleted.status, 204, "{}", deleted.text());
        }
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.expect("no error") > 0);
    }
}
