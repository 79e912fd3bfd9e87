//! What takes memory of a request: the guest has its limit, and the host copies nothing that is larger.

use super::guest::Guest;
use super::{CUT_SOON, counted, grows_by_less_than, proxy_with, serves};
use crate::harness::{Request, TestProxy, TestUpstream, fixture};

/// A plugin may have as much memory as any may.
async fn proxy() -> (TestProxy, TestUpstream) {
    proxy_with("deadline = \"2s\"\nmemory = \"64MiB\"", "").await
}

/// Functions of `throwbar:plugin/kv` and `wasi:logging`, and random bytes.
const IMPORTS: &str = r#"
  (import "throwbar:plugin/kv@0.1.0" (instance $kv
    (type $e (record (field "value" (list u8)) (field "revision" u64)))
    (export "entry" (type $entry (eq $e)))
    (type $er (variant (case "no-such-bucket") (case "access-denied") (case "invalid-value" string) (case "quota" string) (case "conflict" (option u64))))
    (export "error" (type $error (eq $er)))
    (export "get" (func (param "bucket" string) (param "key" string) (result (result (option $entry) (error $error)))))))
  (import "wasi:logging/logging@0.1.0-draft" (instance $logging
    (type $l (enum "trace" "debug" "info" "warn" "error" "critical"))
    (export "level" (type $level (eq $l)))
    (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))))
  (import "wasi:random/random@0.2.0" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core func $get (canon lower (func $kv "get") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core func $log (canon lower (func $logging "log") (memory (core memory $m "memory"))))
  (core func $bytes (canon lower (func $random "get-random-bytes") (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))"#;
const GIVEN: &str =
    r#"(export "get" (func $get)) (export "log" (func $log)) (export "bytes" (func $bytes))"#;
const GIVEN_TO: &str = r#"
    (import "host" "get" (func $get (param i32 i32 i32 i32 i32)))
    (import "host" "log" (func $log (param i32 i32 i32 i32 i32)))
    (import "host" "bytes" (func $bytes (param i64 i32)))
    (data (i32.const 1024) "upstreams")"#;

fn calling(route: &str) -> Vec<u8> {
    Guest {
        imports: IMPORTS,
        given: GIVEN,
        items: GIVEN_TO,
        route,
        pages: 1_000,
        ..Guest::default()
    }
    .build()
}

fn guests() -> Vec<(&'static str, Vec<u8>)> {
    // Where to, an address of 50,000,000 bytes from the beginning of memory.
    let string = r#"(data (i32.const 256) "\00\00\00\00\01\00\00\00\00\00\00\00\80\f0\fa\02")"#;
    // A reply of as many bytes.
    let body = r#"(data (i32.const 256) "\02\00\00\00\c8\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\80\f0\fa\02")"#;
    let items = |items: &str, route: &str, pages: u32| {
        Guest {
            items,
            route,
            pages,
            ..Guest::default()
        }
        .build()
    };
    vec![
        (
            "a table that grows",
            items(
                "(table $t 1 funcref)",
                "(loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))) unreachable",
                1,
            ),
        ),
        (
            "calls without end",
            items(
                "(func $deeper (param i64 i64 i64 i64) (call $deeper (local.get 3) (local.get 2) (local.get 1) (local.get 0)) (drop (i64.load (i32.const 0))))",
                "(call $deeper (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4))",
                1,
            ),
        ),
        ("an address of 50 MB", items(string, "", 1_000)),
        ("a body of 50 MB", items(body, "", 1_000)),
        (
            "a key of 48 MB",
            calling(
                "(call $get (i32.const 1024) (i32.const 9) (i32.const 0) (i32.const 48000000) (i32.const 2048))",
            ),
        ),
        (
            "a log line of 48 MB",
            calling(
                "(call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 48000000))",
            ),
        ),
        (
            "random bytes, 48 MB of them",
            calling("(call $bytes (i64.const 48000000) (i32.const 2048))"),
        ),
        (
            "random bytes, all there are",
            calling("(call $bytes (i64.const -1) (i32.const 2048))"),
        ),
    ]
}

#[tokio::test]
async fn what_is_larger_than_a_call_may_carry_is_a_failed_call_and_is_never_copied() {
    let (proxy, upstream) = proxy().await;
    for (name, component) in guests() {
        proxy.admin().push_ok("hostile", component).await;
        grows_by_less_than(&proxy, 40, async {
            for _ in 0..4 {
                let answer = proxy.get("/hostile", &[]).await;
                assert!(
                    matches!(answer.status, 502 | 503),
                    "{name}: {} {}",
                    answer.status,
                    answer.text()
                );
                serves(&proxy, &upstream).await;
            }
        })
        .await;
    }
    counted(&proxy, "trap", 20.0).await;
    // None of it went on until its time was over.
    let late = "throwbar_plugin_calls_total{plugin=\"hostile\",outcome=\"deadline\"}";
    assert_eq!(proxy.admin().metric(late).await, 0.0);
}

#[tokio::test]
async fn a_value_asked_for_ten_thousand_times_at_once_is_not_gathered() {
    let (proxy, upstream) = proxy_with(CUT_SOON, "").await;
    let admin = proxy.admin();
    let large = Request::new("PUT", "/v1/kv/notes/large").body(vec![b'x'; 1 << 20]);
    assert_eq!(admin.send(large).await.status, 201);
    admin.push_ok("hostile", fixture("portable-kv")).await;
    let ask = async |many: &str| {
        let fields = [("x-bucket", "notes"), ("x-key", "large"), ("x-many", many)];
        proxy.get("/hostile", &fields).await.status
    };
    grows_by_less_than(&proxy, 64, async {
        assert_eq!(ask("10000").await, 503);
    })
    .await;
    counted(&proxy, "trap", 1.0).await;
    serves(&proxy, &upstream).await;
}

#[tokio::test]
async fn memory_of_guests_that_were_stopped_is_given_back() {
    let (proxy, upstream) = proxy().await;
    let touching = Guest {
        route: "(memory.fill (i32.const 4096) (i32.const 1) (i32.const 60000000)) unreachable",
        pages: 1_000,
        ..Guest::default()
    };
    proxy.admin().push_ok("hostile", touching.build()).await;
    // Two workers have one instance each at a time.
    grows_by_less_than(&proxy, 2 * 64 + 32, async {
        for _ in 0..20 {
            assert_eq!(proxy.get("/hostile", &[]).await.status, 503);
        }
        serves(&proxy, &upstream).await;
    })
    .await;
}
