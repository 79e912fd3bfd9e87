//! The commands for keys that end, count, and are watched.

use super::kv_operations::with_notes;
use crate::harness::proxy::{Ended, command, run_with};
use crate::harness::{Setup, TestProxy, eventually};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};

/// A proxy whose admin API is a Unix socket: at the same place after a restart.
async fn proxy() -> TestProxy {
    let mut setup = Setup::new(with_notes());
    let socket = "[admin]\nlisten = \"unix:admin.sock\"";
    setup.frame = setup
        .frame
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", socket);
    assert!(setup.frame.contains(socket), "{}", setup.frame);
    setup.start().await
}

fn prepared() -> tokio::process::Command {
    let mut command = command();
    command.env("THROWBAR_ADMIN", "unix:admin.sock");
    command
}

async fn kv(proxy: &TestProxy, arguments: &[&str]) -> Ended {
    let arguments: Vec<_> = ["kv"].iter().chain(arguments).copied().collect();
    run_with(prepared(), proxy.dir(), &arguments).await
}

async fn ok(proxy: &TestProxy, arguments: &[&str]) -> String {
    let ended = kv(proxy, arguments).await;
    assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
    ended.stdout
}

#[tokio::test]
async fn keys_end_are_renewed_counted_and_asked_for() {
    let proxy = proxy().await;
    ok(&proxy, &["set", "notes", "a=1", "b=2", "--ttl", "300ms"]).await;
    let renewed = ok(&proxy, &["touch", "notes", "a", "--ttl", "1h"]).await;
    assert!(renewed.contains("1 renewed"), "{renewed}");
    eventually("the key has ended", async || {
        (kv(&proxy, &["exists", "notes", "b"]).await.code == 1).then_some(())
    })
    .await;
    assert_eq!(ok(&proxy, &["exists", "notes", "a"]).await, "");
    let listed = ok(&proxy, &["ls", "notes", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert!(listed["entries"][0]["expires_at"].is_string(), "{listed}");
    ok(&proxy, &["touch", "notes", "a", "--forever"]).await;
    assert_eq!(ok(&proxy, &["incr", "notes", "a"]).await, "2\n");
    assert_eq!(ok(&proxy, &["incr", "notes", "a", "-5"]).await, "-3\n");
    let json = ok(
        &proxy,
        &["incr", "notes", "new", "7", "--ttl", "1h", "--json"],
    )
    .await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["value"], &json["outcome"]),
        (&json!(7), &json!("created"))
    );
    assert!(json["expires_at"].is_string(), "{json}");
    let revision = ok(&proxy, &["get", "notes", "a", "--json"]).await;
    let revision: Value = serde_json::from_str(&revision).expect("JSON");
    let revision = revision["revision"].to_string();
    let late = kv(&proxy, &["del", "notes", "a", "--if-revision", "1"]).await;
    assert_eq!(late.code, 1, "{}", late.stderr);
    ok(&proxy, &["del", "notes", "a", "--if-revision", &revision]).await;
    ok(
        &proxy,
        &["set", "notes", "once=1", "--if-absent", "--ttl", "1h"],
    )
    .await;
    let got = ok(&proxy, &["ls", "notes", "--prefix", "once", "--json"]).await;
    assert!(got.contains("expires_at"), "{got}");
    for (arguments, code, said) in [
        (
            &["touch", "notes", "a", "--ttl", "1h"][..],
            1,
            "entry is absent",
        ),
        (&["touch", "notes", "a"], 2, "--ttl"),
        (&["set", "notes", "a=1", "--ttl", "5"], 2, "no unit"),
        (&["incr", "upstreams", "a"], 3, "holds addresses"),
        (&["exists", "none", "a"], 1, "no bucket"),
    ] {
        kv(&proxy, arguments).await.refused(code, said);
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_the_proxy_was_killed() {
    let mut proxy = proxy().await;
    ok(&proxy, &["set", "notes", "a=1"]).await;
    let mut watch = prepared()
        .current_dir(proxy.dir())
        .args(["kv", "watch", "notes", "--since", "0", "--count", "3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command under test runs");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = crate::harness::soon("a line", lines.next_line()).await;
        line.expect("readable").expect("a line")
    };
    assert_eq!(next().await, "1 put a 1");
    proxy.kill().await;
    let mut asides = BufReader::new(watch.stderr.take().expect("piped")).lines();
    let aside = crate::harness::soon("what it says", asides.next_line()).await;
    let aside = aside.expect("readable").expect("a line");
    assert!(aside.contains("trying to go on"), "{aside}");
    proxy.start_again().await;
    ok(&proxy, &["set", "notes", "b=x y"]).await;
    assert_eq!(next().await, "2 put b x y");
    ok(&proxy, &["del", "notes", "a"]).await;
    assert_eq!(next().await, "3 delete a");
    let status = crate::harness::soon("the end", watch.wait()).await;
    assert!(status.expect("it ended").success());
    // The log of the second process begins where that did.
    let gone = kv(&proxy, &["watch", "notes", "--since", "0"]).await;
    assert_eq!(gone.code, 1, "{}", gone.stderr);
    assert!(gone.stderr.contains("no longer kept"), "{}", gone.stderr);
}
