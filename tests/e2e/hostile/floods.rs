//! What floods the host with calls, or writes what would mean something to whoever reads the log.

use super::{counted, proxy, proxy_with, serves};
use crate::harness::fixture;

#[tokio::test]
async fn calls_of_the_host_without_end_are_cut_at_the_deadline() {
    let (proxy, upstream) = proxy().await;
    proxy.admin().push_ok("hostile", fixture("stall")).await;
    for (number, door) in ["get", "header-all", "kv", "config", "find"]
        .iter()
        .enumerate()
    {
        let answer = proxy.get("/hostile", &[("x-door", door)]).await;
        assert_eq!(answer.status, 503, "{door}");
        serves(&proxy, &upstream).await;
        let failed = async {
            let admin = proxy.admin();
            let calls = "throwbar_plugin_calls_total{plugin=\"hostile\",outcome=";
            let all = ["trap\"}", "deadline\"}"];
            let mut sum = 0.0;
            for outcome in all {
                sum += admin.metric(&format!("{calls}\"{outcome}")).await;
            }
            sum
        };
        assert!(failed.await > number as f64, "{door}");
    }
}

#[tokio::test]
async fn writes_without_end_are_refused_at_their_quota_and_none_is_kept_in_part() {
    let (proxy, upstream) = proxy_with("writes = 100\ndeadline = \"2s\"", "").await;
    proxy.admin().push_ok("hostile", fixture("writer")).await;
    let answer = proxy
        .get("/hostile", &[("x-do", "fill 1000000 127.0.0.2")])
        .await;
    let kept = proxy
        .admin()
        .get("/v1/kv/upstreams?prefix=fill-&limit=10000")
        .await;
    let kept = kept.json()["entries"].as_array().expect("a list").len();
    match answer.status {
        // It was told, and went on: what it wrote until then is one batch.
        200 => {
            assert!(answer.text().starts_with("error: "), "{}", answer.text());
            assert_eq!(kept, 100);
        }
        status => assert_eq!((status, kept), (503, 0)),
    }
    serves(&proxy, &upstream).await;
}

#[tokio::test]
async fn nothing_that_a_guest_says_reaches_a_log_raw() {
    let (proxy, _upstream) = proxy().await;
    proxy.admin().push_ok("hostile", fixture("log-flood")).await;
    let answer = proxy.get("/hostile", &[("x-escapes", "1")]).await;
    assert_eq!(answer.status, 503);
    counted(&proxy, "trap", 1.0).await;
    proxy.says("forged line").await;
    let line = proxy
        .access_line("the trap", |line| line["path"] == "/hostile")
        .await;
    assert!(line["error"].is_string(), "{line}");
    let access = std::fs::read_to_string(proxy.file("access.log")).expect("an access log");
    for (log, text) in [("standard error", proxy.stderr()), ("access", access)] {
        let raw = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(raw), "{log}: {text:?}");
        let forged = text.lines().find(|line| line.starts_with("forged"));
        assert_eq!(forged, None, "{log}");
    }
}

#[tokio::test]
async fn nothing_that_a_refused_guest_says_reaches_a_log_or_an_answer_raw() {
    let (proxy, _upstream) = proxy().await;
    let config = proxy.admin().get("/v1/config").await.text();
    let config = config.replace(
        "[plugins.hostile]\nbuckets = { upstreams = \"write\", notes = \"write\" }\nsettings = { header = \"x-id\" }",
        "[plugins.hostile]\nsettings = { because = \"\\u001b[2J\\r\\nforged line\" }",
    );
    assert!(config.contains("forged"), "{config}");
    let applied = proxy.admin().put("/v1/config", config).await;
    assert_eq!(applied.status, 200, "{}", applied.text());
    let refused = proxy.admin().push("hostile", fixture("refuse-init")).await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.text().contains("forged line"), "{}", refused.text());
    for text in [refused.text(), proxy.stderr()] {
        assert!(!text.contains(['\x1b', '\r']), "{text:?}");
        assert!(
            !text.lines().any(|line| line.starts_with("forged")),
            "{text:?}"
        );
    }
}
