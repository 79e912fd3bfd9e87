//! The audit log: what has a line there, and what becomes of lines that cannot be written; and that a refusal is heard.

use crate::harness::{Raw, Request, Setup, TestProxy, eventually, soon};
use serde_json::Value;
use std::collections::BTreeSet;
use tokio::io::AsyncWriteExt;

const CONFIG: &str = r#"
[buckets.notes]
values = "bytes"
[buckets.upstreams]
[plugins.router]
source = "builtin:by-header"
buckets = { upstreams = "read" }
settings = { header = "x-id", port-header = "x-port" }
[[route]]
reply = { status = 200 }
[compat.caddy]
proxy-map = "upstreams"
"#;

fn setup(audit: &str) -> Setup {
    let mut setup = Setup::new(CONFIG);
    let log = format!("[log]\naudit = \"{audit}\"\n");
    setup.frame = setup.frame.replace("[log]\n", &log);
    setup
}

async fn proxy() -> TestProxy {
    setup("audit.log").start().await
}

fn lines(proxy: &TestProxy) -> Vec<Value> {
    let text = std::fs::read_to_string(proxy.file("audit.log")).expect("there");
    let line = |line| serde_json::from_str(line).expect("JSON");
    text.lines().map(line).collect()
}

#[tokio::test]
async fn every_attempt_has_its_line_whatever_it_fails_by() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    admin.set("notes", "k", "v").await;
    let put = |path: &str| Request::new("PUT", path).body("x");
    let text = |path: &str, body: &'static str| {
        Request::post(path, body).field("content-type", "text/plain")
    };
    let stale = |request: Request| request.field("if-match", "\"9999\"");
    let delete = |path: &str| Request::new("DELETE", path);
    let long = format!("/v1/kv/notes/{}", "k".repeat(1100));
    let all = [
        (stale(put("/v1/kv/notes/k")), 412, "precondition-failed"),
        (stale(delete("/v1/kv/notes/k")), 412, "precondition-failed"),
        (
            Request::new("PATCH", "/v1/kv/notes/k").body(r#"{"x": 1}"#),
            422,
            "invalid-body",
        ),
        (
            Request::post("/v1/kv/notes/batch", r#"{"sets": 1}"#),
            422,
            "invalid-body",
        ),
        (
            stale(Request::post(
                "/v1/kv/notes/batch",
                r#"{"set": {"k": "z"}}"#,
            )),
            412,
            "precondition-failed",
        ),
        (
            text("/v1/kv/notes/import", "nospace\n"),
            422,
            "invalid-import",
        ),
        (
            Request::post("/v1/kv/notes/import", "k v\n").field("content-type", "text/foo"),
            415,
            "content-type",
        ),
        (
            text("/v1/kv/notes/import?chunk=1", "nospace\n"),
            200,
            "invalid-import",
        ),
        (put("/v1/kv/none/k"), 404, "no-such-bucket"),
        (put(&long), 422, "invalid-value"),
        (put("/v1/kv/notes/k?dryrun=true"), 400, "query"),
        (
            Request::new("PUT", "/v1/kv/notes/big").body(vec![b'x'; (1 << 20) + 1]),
            413,
            "too-large",
        ),
        (delete("/v1/kv/notes/none"), 404, "no-such-key"),
        (
            Request::post("/v1/kv/notes/undo", r#"{"key": "none"}"#),
            404,
            "no-history",
        ),
        (
            Request::post("/v1/kv/notes/k", ""),
            405,
            "method-not-allowed",
        ),
        (put("/v1/plugins/none"), 404, "no-such-plugin"),
        (put("/v1/plugins/router"), 422, "not-a-component"),
        (
            Request::post("/v1/batch", r#"{"activate": {"plugin": "router"}}"#),
            422,
            "invalid-body",
        ),
        (put("/v1/config"), 422, "config-invalid"),
        (stale(put("/v1/config")), 412, "precondition-failed"),
        (
            Request::post("/v1/streams/drain", "{}"),
            422,
            "invalid-body",
        ),
        (delete("/v1/streams/99"), 404, "no-such-stream"),
        (delete("/v1/streams/drain/99"), 404, "no-such-drain"),
        (
            Request::new("PATCH", "/id/none/mappings").body("[]"),
            404,
            "no-such-id",
        ),
        (put("/v1/none"), 404, "not-found"),
        (
            put("/v1/kv/notes/k").field("x-throwbar-actor", ""),
            400,
            "actor",
        ),
    ];
    let mut before = lines(&proxy).len();
    for (request, status, outcome) in all {
        let shown = format!("{request:?}");
        let shown = &shown[..shown.len().min(200)];
        let response = admin.send(request).await;
        assert_eq!(response.status, status, "{shown}: {}", response.text());
        let lines = lines(&proxy);
        assert_eq!(lines.len(), before + 1, "{shown}: {lines:?}");
        before = lines.len();
        let line = lines.last().expect("a line");
        assert_eq!(line["outcome"], outcome, "{shown}: {line}");
        assert!(line["detail"].is_string(), "{shown}: {line}");
        assert_eq!(line["actor"], "admin", "{shown}: {line}");
    }
    // What cannot change anything, and what a stranger wants, has none.
    admin.put("/v1/kv/notes/new?dry_run=true", "x").await;
    admin.post("/v1/config/check", "bad").await;
    admin.get("/v1/kv/none").await;
    put("/v1/kv/notes/k").send(proxy.admin_address).await;
    assert_eq!(lines(&proxy).len(), before);
}

#[tokio::test]
async fn a_line_says_what_was_done() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    let batch = r#"{"set": {"a": "1", "b": "2"}}"#;
    admin.post("/v1/kv/notes/batch", batch).await;
    let config = admin.get("/v1/config").await.text();
    let changed = format!("{config}\n# changed\n");
    let digest = admin.put("/v1/config", changed).await.json()["digest"].clone();
    let mappings = r#"[{"input": "id1", "outputs": ["127.0.0.2"]}]"#;
    let patch = Request::new("PATCH", "/id/proxy-map/mappings").body(mappings);
    admin.send(patch).await;
    let rollout = Request::new("DELETE", "/v1/plugins/router/canary");
    admin.send(rollout).await;
    let lines = lines(&proxy);
    let told = |at: usize, name: &str| lines[at][name].clone();
    assert_eq!((told(0, "keys"), told(0, "revision")), (2.into(), 1.into()));
    assert_eq!(told(0, "path"), "/v1/kv/notes/batch");
    assert_eq!(told(1, "digest"), digest, "{:?}", lines[1]);
    assert_eq!((told(2, "keys"), told(2, "revision")), (1.into(), 2.into()));
    assert_eq!(lines.len(), 4, "{lines:?}");
}

#[tokio::test]
async fn what_is_written_for_a_client_that_went_away_is_audited() {
    const CLIENTS: usize = 50;
    let proxy = proxy().await;
    let admin = proxy.admin();
    let authorization = admin.authorization();
    for number in 0..CLIENTS {
        let mut client = Raw::connect(proxy.admin_address).await;
        client
            .send(format!(
                "PUT /v1/kv/notes/gone{number} HTTP/1.1\r\nhost: localhost\r\n{authorization}\
                 content-length: 1\r\n\r\nv"
            ))
            .await;
    }
    // One that was closed before it was looked at has changed nothing, and has no line.
    eventually("a line for each write", async || {
        let lines = lines(&proxy);
        let created = lines.iter().filter(|line| line["outcome"] == "created");
        let created: BTreeSet<_> = created.map(|line| line["path"].to_string()).collect();
        let page = admin.get("/v1/kv/notes?limit=1000").await.json();
        let written = page["entries"].as_array().expect("a list").iter();
        let path =
            |entry: &Value| format!("\"/v1/kv/notes/{}\"", entry["key"].as_str().expect("text"));
        let written: BTreeSet<_> = written.map(path).collect();
        (lines.len() > CLIENTS / 2 && written == created && !written.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn lines_that_cannot_be_written_are_counted_and_told() {
    let proxy = setup("/dev/full").start().await;
    let admin = proxy.admin();
    admin.set("notes", "k", "v").await;
    admin.set("notes", "k", "w").await;
    assert_eq!(admin.metric("throwbar_audit_log_lost_total").await, 2.0);
    eventually("it is told", async || {
        let told = proxy.stderr();
        (told.matches("audit log cannot be written").count() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_log_that_was_renamed_is_begun_anew() {
    let proxy = proxy().await;
    let admin = proxy.admin();
    let moved = |name: &str| {
        let (from, to) = (proxy.file(name), proxy.file(&format!("{name}.1")));
        std::fs::rename(from, to).expect("renamed");
    };
    let count = |name: &str| {
        let text = std::fs::read_to_string(proxy.file(name)).unwrap_or_default();
        text.lines().count()
    };
    admin.set("notes", "a", "v").await;
    proxy.get("/", &[]).await;
    eventually("an access line", async || {
        (count("access.log") == 1).then_some(())
    })
    .await;
    moved("audit.log");
    moved("access.log");
    admin.set("notes", "b", "v").await;
    proxy.get("/", &[]).await;
    eventually("an access line", async || {
        (count("access.log") == 1).then_some(())
    })
    .await;
    for name in ["audit.log", "audit.log.1", "access.log.1"] {
        assert_eq!(count(name), 1, "{name}");
    }
}

#[tokio::test]
async fn a_client_that_still_sends_hears_why_it_was_refused() {
    let proxy = proxy().await;
    let authorization = proxy.admin().authorization();
    let body = vec![b'x'; 200_000];
    for (line, fields, length, status) in [
        ("PUT /v1/kv/none/k", &*authorization, body.len(), 404),
        ("PUT /v1/kv/notes/k", "", body.len(), 401),
        ("PUT /v1/kv/notes/k", &*authorization, 2 << 20, 413),
        ("POST /v1/kv/notes/other", &*authorization, body.len(), 405),
    ] {
        let mut client = Raw::connect(proxy.admin_address).await;
        let head = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: {length}\r\n\r\n"
        );
        client.send(head).await;
        // The answer is there, and nothing more is read for it.
        soon("an answer", client.stream.readable())
            .await
            .expect("a socket");
        for _ in 0..5 {
            // Many a client gives up where it cannot send.
            let taken = client.stream.write_all(&body);
            soon("bytes taken", taken).await.expect(line);
        }
        let heard = client.try_response(false).await;
        let heard = heard.map(|response| response.status);
        assert_eq!(heard, Ok(status), "{line}");
    }
}
