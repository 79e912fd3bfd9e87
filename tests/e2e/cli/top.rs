//! `throwbar top`, from a terminal's side and a script's.

use super::{ok, serve};
use crate::harness::proxy::command;
use crate::harness::{TestProxy, TestUpstream, fixture, sha256, soon, websocket};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn top_reports_what_happened_between_two_readings() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    let port = upstream.port();
    let traffic = async {
        loop {
            let fields = [("x-id", "id1"), ("x-port", port.as_str())];
            assert_eq!(proxy.get("/", &fields).await.status, 200);
        }
    };
    let report = tokio::select! {
        report = ok(&proxy, &["top", "--once", "--json"]) => report,
        () = traffic => unreachable!("it never ends"),
    };
    let report: serde_json::Value = serde_json::from_str(&report).expect("one line of JSON");
    let (requests, plugin) = (&report["requests_per_s"], &report["plugins"][0]);
    assert!(requests.as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    assert_eq!(
        &report["routes"][0]["by_class_per_s"][0], requests,
        "{report}"
    );
    assert_eq!(plugin["plugin"], "by-header");
    assert!(
        plugin["p99_ns"].as_u64() >= plugin["p50_ns"].as_u64(),
        "{report}"
    );
    assert!(plugin["p50_ns"].is_u64(), "{report}");

    let text = ok(&proxy, &["top", "--count", "1"]).await;
    let version = plugin["active"].as_str().expect("a version");
    for expected in ["ready", "ROUTE", "map changes/s (revision 1)", version] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text:?}");
}

#[tokio::test]
async fn top_shows_what_is_tried_and_drained_and_leaves_out_what_is_gone() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    let admin = proxy.admin();
    let port = echo.port();
    let _socket = websocket::open(proxy.address, &[("x-id", "id1"), ("x-port", &port)]).await;
    let old = admin.plugin("by-header").await["active"].clone();
    admin.push_ok("by-header", fixture("version-a")).await;
    let canary = "/v1/plugins/by-header?canary=2.5&by=header:x-id";
    assert_eq!(admin.put(canary, fixture("version-b")).await.status, 200);
    let shadow = "/v1/plugins/by-header/shadow?sample=1";
    assert_eq!(admin.put(shadow, fixture("count")).await.status, 200);
    assert_eq!(proxy.get("/", &[("x-id", "none")]).await.status, 404);
    let differing = "throwbar_shadow_requests_total{plugin=\"by-header\",version=\"";
    let version = &sha256(&fixture("count"))[..12];
    let differing = format!("{differing}{version}\",result=\"differing\"}}");
    admin.metric_is(&differing, |count| count == 1.0).await;
    ok(
        &proxy,
        &["streams", "drain", "--key", "id1", "--over", "24h"],
    )
    .await;

    let text = ok(&proxy, &["top", "--once"]).await;
    let row = |start: &str| -> Vec<&str> {
        let line = text.lines().find(|line| line.contains(start));
        let line = line.unwrap_or_else(|| panic!("no {start:?} in\n{text}"));
        line.split_whitespace().collect()
    };
    let a = sha256(&fixture("version-a"))[..12].to_owned();
    assert_eq!(row("active")[..4], ["by-header", &a, "active", "0"]);
    let b = sha256(&fixture("version-b"))[..12].to_owned();
    assert_eq!(row("canary")[..5], [&b, "canary", "2.5", "%", "0"]);
    assert_eq!(
        row(&format!("{version}  shadow"))[..3],
        [version, "shadow", "0"]
    );
    let old = old.as_str().expect("a digest");
    assert_eq!(row("draining")[..3], [&old[..12], "draining", "1"]);
    let shadow = format!("by-header@{version}");
    assert_eq!(row(&shadow)[2..5], ["1", "1", "100.0"]);
    let drain = row("key=id1");
    assert_eq!(drain[..4], ["1", "0.0", "%", "1"]);
    assert_eq!(drain[drain.len() - 2..], ["asked", "key=id1"]);

    assert_eq!(admin.delete("/v1/streams/drain/1").await.status, 200);
    for trial in ["canary", "shadow"] {
        let path = format!("/v1/plugins/by-header/{trial}");
        assert_eq!(admin.delete(&path).await.status, 204);
    }
    let report = ok(&proxy, &["top", "--once", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&report).expect("one line of JSON");
    assert_eq!(report["drains"], serde_json::json!([]), "{report}");
    let plugin = &report["plugins"][0];
    let versions = plugin["versions"].as_array().expect("a list");
    let states: Vec<&str> = versions
        .iter()
        .filter_map(|one| one["state"].as_str())
        .collect();
    assert_eq!(states, ["active", "draining"], "{report}");
    assert_eq!(plugin["shadow"], serde_json::Value::Null, "{report}");
}

#[tokio::test]
async fn top_waits_for_a_proxy_that_goes_away_and_says_so_once() {
    let mut proxy = serve(&["--admin-auth", "none"]).await;
    let admin = proxy.admin_address.to_string();
    let mut command = command();
    command.args(["top", "--json", "--admin", &admin]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut top = command.spawn().expect("it runs");
    let mut reports = BufReader::new(top.stdout.take().expect("piped")).lines();
    let mut errors = BufReader::new(top.stderr.take().expect("piped")).lines();
    soon("a report", reports.next_line())
        .await
        .expect("read")
        .expect("a line");
    proxy.kill().await;
    let told = soon("an error", errors.next_line())
        .await
        .expect("read")
        .expect("a line");
    assert!(
        told.contains(&format!("no proxy answers at {admin}")),
        "{told}"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let mut arguments = vec!["serve", "--listen", "127.0.0.1:0", "--admin", &admin];
    arguments.extend(["--admin-auth", "none", "--map", "id1=127.0.0.1"]);
    let _proxy = TestProxy::start_in(dir, &arguments).await;
    // The first one had no entry, so no revision.
    loop {
        let line = soon("a report", reports.next_line()).await;
        let line = line.expect("read").expect("a line");
        let report: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        if report["revision"] == 1 {
            break assert_eq!(report["plugins"][0]["plugin"], "by-header");
        }
    }
    top.start_kill().expect("it runs still");
    let mut rest = Vec::new();
    while let Some(line) = errors.next_line().await.expect("read") {
        rest.push(line);
    }
    let again = rest.iter().filter(|line| line.contains("no proxy answers"));
    assert_eq!(again.count(), 0, "{rest:?}");
}
