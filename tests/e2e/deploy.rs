//! Uploads: they swap at once and last. Those that are refused are in `hostile`.

use crate::harness::proxy::{BY_HEADER, run};
use crate::harness::{Request, Setup, TestProxy, TestUpstream, fixture, sha256};

/// A proxy whose router is `version-a`, with an endpoint behind it.
async fn proxy() -> (TestProxy, TestUpstream) {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = TestProxy::start(BY_HEADER).await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    admin.push_ok("router", fixture("version-a")).await;
    (proxy, upstream)
}

async fn version(proxy: &TestProxy, upstream: &TestUpstream) -> String {
    let fields = [("x-id", "id1"), ("x-port", &*upstream.port())];
    let response = proxy.get("/", &fields).await;
    assert_eq!(response.status, 200);
    response.header("x-version").to_owned()
}

#[tokio::test]
async fn a_component_over_the_limit_is_413_before_it_is_read() {
    let upstream = TestUpstream::saying("ok").await;
    let mut setup = Setup::new(format!("{BY_HEADER}\n{}", upstream.route()));
    setup.frame = setup
        .frame
        .replace("[admin]\n", "[admin]\ncomponent_bytes_max = \"64KiB\"\n");
    let proxy = setup.start().await;
    let token = std::fs::read_to_string(proxy.file("data/admin.token")).expect("a token");
    let mut client = crate::harness::Raw::connect(proxy.admin_address).await;
    let head = format!(
        "PUT /v1/plugins/router HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 1000000000\r\n\r\n",
        token.trim()
    );
    assert_eq!(client.ask(head).await.status, 413);
    let without_length = proxy.admin().push("router", vec![0; 65 << 10]).await;
    assert_eq!(without_length.status, 413);
}

#[tokio::test]
async fn the_same_bytes_again_change_nothing_and_say_so() {
    let (proxy, _upstream) = proxy().await;
    let admin = proxy.admin();
    let before = admin.plugin("router").await;
    let response = admin.push("router", fixture("version-a")).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["outcome"], "unchanged");
    assert_eq!(
        admin.plugin("router").await["generation"],
        before["generation"]
    );
}

#[tokio::test]
async fn a_version_is_named_by_the_digest_of_its_bytes() {
    let (proxy, _upstream) = proxy().await;
    let digest = sha256(&fixture("version-a"));
    let plugin = proxy.admin().get("/v1/plugins/router").await;
    assert_eq!(plugin.json()["active"], digest.as_str());
    assert_eq!(plugin.header("etag"), format!("\"{digest}\""));
}

#[tokio::test]
async fn a_push_can_be_made_to_depend_on_the_active_version() {
    let (proxy, upstream) = proxy().await;
    let admin = proxy.admin();
    let push = |tag: String| {
        Request::new("PUT", "/v1/plugins/router")
            .field("if-match", &tag)
            .body(fixture("version-b"))
    };
    assert_eq!(admin.send(push("\"00\"".into())).await.status, 412);
    assert_eq!(version(&proxy, &upstream).await, "a");
    let digest = sha256(&fixture("version-a"));
    assert_eq!(admin.send(push(format!("\"{digest}\""))).await.status, 200);
    assert_eq!(version(&proxy, &upstream).await, "b");
}

#[tokio::test]
async fn a_rollback_goes_to_the_version_before_and_back() {
    let (proxy, upstream) = proxy().await;
    let admin = proxy.admin();
    admin.push_ok("router", fixture("version-b")).await;
    assert_eq!(version(&proxy, &upstream).await, "b");
    let rolled = admin.post("/v1/plugins/router/rollback", "").await;
    assert_eq!(rolled.status, 200, "{}", rolled.text());
    assert_eq!(version(&proxy, &upstream).await, "a");
}

#[tokio::test]
async fn nothing_to_roll_back_to_is_a_conflict() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let response = proxy.admin().post("/v1/plugins/router/rollback", "").await;
    assert_eq!(response.status, 409, "{}", response.text());
    let response = proxy.admin().push("unknown", fixture("version-a")).await;
    assert_eq!(response.status, 404);
}

#[tokio::test]
async fn a_dry_run_tries_everything_and_changes_nothing() {
    let (proxy, upstream) = proxy().await;
    let admin = proxy.admin();
    let before = admin.plugin("router").await;
    let checked = admin
        .put("/v1/plugins/router?dry_run=true", fixture("version-b"))
        .await;
    assert_eq!(
        (checked.status, &checked.json()["outcome"]),
        (200, &"checked".into())
    );
    let refused = admin
        .put("/v1/plugins/router?dry_run=true", fixture("trap-init"))
        .await;
    assert_eq!(refused.status, 422);
    let after = admin.plugin("router").await;
    assert_eq!(
        (&after["active"], &after["generation"]),
        (&before["active"], &before["generation"])
    );
    assert_eq!(version(&proxy, &upstream).await, "a");
}

#[tokio::test]
async fn the_active_version_survives_kill_9() {
    let (mut proxy, upstream) = proxy().await;
    for round in 0..6 {
        let (name, expected) = [("version-b", "b"), ("version-a", "a")][round % 2];
        proxy.admin().push_ok("router", fixture(name)).await;
        proxy.kill().await;
        proxy.start_again().await;
        assert_eq!(version(&proxy, &upstream).await, expected, "round {round}");
        proxy.says("kept over restarts").await;
    }
    let rolled = proxy.admin().post("/v1/plugins/router/rollback", "").await;
    assert_eq!(rolled.status, 200, "{}", rolled.text());
    assert_eq!(version(&proxy, &upstream).await, "b");
}

#[tokio::test]
async fn an_upload_cut_by_kill_9_leaves_the_last_version_active() {
    let (mut proxy, upstream) = proxy().await;
    for round in 0..5 {
        let admin = proxy.admin();
        let push = tokio::spawn(async move {
            let path = "/v1/plugins/router";
            let request = Request::new("PUT", path).body(fixture("count"));
            let _ =
                tokio::time::timeout(std::time::Duration::from_secs(5), admin.send(request)).await;
        });
        // Killed at another moment of the upload each time.
        tokio::time::sleep(std::time::Duration::from_millis(round * 7)).await;
        proxy.kill().await;
        push.abort();
        proxy.start_again().await;
        let active = proxy.admin().plugin("router").await["active"].clone();
        let known = [sha256(&fixture("version-a")), sha256(&fixture("count"))];
        assert!(
            known.iter().any(|digest| active == digest.as_str()),
            "{active}"
        );
        proxy.admin().push_ok("router", fixture("version-a")).await;
        assert_eq!(version(&proxy, &upstream).await, "a");
    }
}

#[tokio::test]
async fn uploads_at_the_same_time_leave_one_of_them_active() {
    let (proxy, upstream) = proxy().await;
    let pushes: Vec<_> = ["version-a", "version-b", "version-a", "version-b"]
        .into_iter()
        .map(|name| {
            let admin = proxy.admin();
            tokio::spawn(async move { admin.push("router", fixture(name)).await.status })
        })
        .collect();
    for push in pushes {
        let status = push.await.expect("answered");
        assert!(matches!(status, 200 | 409), "{status}");
    }
    assert!(matches!(
        version(&proxy, &upstream).await.as_str(),
        "a" | "b"
    ));
}

#[tokio::test]
async fn a_plugin_without_source_waits_for_its_first_push() {
    let config = BY_HEADER.replace("source = \"builtin:by-header\"\n", "");
    let proxy = TestProxy::start(&config).await;
    assert_eq!(proxy.get("/", &[]).await.status, 503);
    let ready = Request::get("/readyz").send(proxy.admin_address).await;
    assert_eq!(ready.status, 503, "{}", ready.text());
    let pushed = proxy.admin().push("router", fixture("version-a")).await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    assert_eq!(proxy.get("/", &[]).await.status, 404);
    assert_eq!(
        Request::get("/readyz")
            .send(proxy.admin_address)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_component_file_that_is_missing_or_bad_is_named_at_start() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("bad.wasm"), b"bad").expect("written");
    for file in ["missing.wasm", "bad.wasm"] {
        let config = Setup::new(BY_HEADER.replace("builtin:by-header", file)).text();
        std::fs::write(dir.path().join("t.toml"), config).expect("written");
        let ended = run(dir.path(), &["serve", "t.toml"]).await;
        assert_ne!(ended.code, 0);
        assert!(
            ended.stderr.contains(file) || ended.stderr.contains("router"),
            "{}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn settings_reach_the_plugin() {
    let config = BY_HEADER.replace("header = \"x-id\"", "colour = \"blue\", header = \"x-id\"");
    let proxy = TestProxy::start(&config).await;
    proxy.admin().push_ok("router", fixture("settings")).await;
    let response = proxy.get("/", &[("x-setting", "colour")]).await;
    assert_eq!(response.text(), "blue");
    assert_eq!(proxy.get("/", &[("x-setting", "none")]).await.status, 404);
}

#[tokio::test]
async fn a_plugin_is_granted_nothing_of_the_system() {
    let proxy = TestProxy::start(BY_HEADER).await;
    proxy.admin().push_ok("router", fixture("wasi-probe")).await;
    let answer = proxy.get("/", &[]).await.text();
    assert!(!answer.is_empty());
    for line in answer.lines() {
        assert!(line.ends_with(": denied"), "{answer}");
    }
}
