//! Tokens for a part of the store, and the log of who changed what.

use crate::harness::proxy::{command, run_with};
use crate::harness::{Admin, Request, Setup, TestProxy, eventually};
use rustix::process::Signal;
use serde_json::Value;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

const CONFIG: &str = r#"
[buckets.ids]
values = "bytes"
[buckets.names]
values = "bytes"
[admin.tokens.agents]
token = "${file:agents.token}"
buckets = { ids = "write", names = "read" }
prefix = "eu-"
[[route]]
reply = { status = 200 }
"#;

fn setup() -> Setup {
    let mut setup = Setup::new(CONFIG);
    setup.frame = setup.frame.replace(
        "[log]\n",
        "[log]\naudit = \"audit.log\"\nlevel = \"error\"\n",
    );
    setup
}

/// A proxy, and its admin API with the limited token.
async fn limited() -> (TestProxy, Admin) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("agents.token"), format!("{SECRET}\n")).expect("written");
    std::fs::write(dir.path().join("throwbar.toml"), setup().text()).expect("written");
    let proxy = TestProxy::start_in(dir, &["serve", "throwbar.toml"]).await;
    let admin = Admin::new(proxy.admin_address, Some(SECRET.to_owned()));
    (proxy, admin)
}

fn import(path: &str, lines: &str) -> Request {
    Request::post(path, lines.to_owned()).field("content-type", "text/plain")
}

#[tokio::test]
async fn a_limited_token_reads_and_writes_its_keys_and_nothing_else() {
    let (proxy, limited) = limited().await;
    assert!(limited.put("/v1/kv/ids/eu-1", "a").await.status < 300);
    assert_eq!(limited.get("/v1/kv/ids/eu-1").await.text(), "a");
    assert_eq!(limited.get("/v1/kv/ids?prefix=eu-").await.status, 200);
    assert_eq!(
        limited.get("/v1/kv/names?prefix=eu-&limit=1").await.status,
        200
    );
    assert_eq!(
        limited
            .send(import("/v1/kv/ids/import", "eu-2 b\n"))
            .await
            .status,
        200
    );
    assert_eq!(
        limited
            .post("/v1/kv/ids/batch", r#"{"delete": ["eu-2"]}"#)
            .await
            .status,
        200
    );
    let revision = proxy.admin().get("/v1/kv").await.text();

    for (what, response) in [
        ("a key beyond", limited.put("/v1/kv/ids/us-1", "a").await),
        (
            "a bucket to read",
            limited.put("/v1/kv/names/eu-1", "a").await,
        ),
        ("a list of all", limited.get("/v1/kv/ids").await),
        (
            "an export of all",
            limited.get("/v1/kv/ids?format=ndjson").await,
        ),
        (
            "one line beyond",
            limited
                .send(import("/v1/kv/ids/import", "eu-3 b\nus-3 c\n"))
                .await,
        ),
        (
            "one write beyond",
            limited
                .post("/v1/kv/ids/batch", r#"{"set": {"eu-3": "a", "us-3": "a"}}"#)
                .await,
        ),
        (
            "a whole bucket",
            limited
                .send(import("/v1/kv/ids/import?replace=true", "eu-3 b\n"))
                .await,
        ),
        ("the status", limited.get("/v1/status").await),
        ("a plugin", limited.put("/v1/plugins/x", "x").await),
    ] {
        assert_eq!(response.status, 403, "{what}: {}", response.text());
        assert!(
            response.text().contains("\\\"agents\\\""),
            "{what}: {}",
            response.text()
        );
    }
    assert_eq!(proxy.admin().get("/v1/kv").await.text(), revision);
    assert_eq!(limited.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn the_buckets_that_a_limited_token_lists_are_its_own() {
    let text = setup().text();
    let more = "[buckets.secret]\nvalues = \"bytes\"\n[admin.tokens.agents]";
    let text = text.replace("[admin.tokens.agents]", more);
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("agents.token"), format!("{SECRET}\n")).expect("written");
    std::fs::write(dir.path().join("throwbar.toml"), text).expect("written");
    let proxy = TestProxy::start_in(dir, &["serve", "throwbar.toml"]).await;
    let limited = Admin::new(proxy.admin_address, Some(SECRET.to_owned()));
    let listed = limited.get("/v1/kv").await;
    assert_eq!(listed.status, 200, "{}", listed.text());
    let listed = listed.json();
    let buckets = listed["buckets"].as_array().expect("a list");
    let names: Vec<_> = buckets.iter().map(|bucket| &bucket["name"]).collect();
    assert_eq!(names, ["ids", "names"], "{listed}");
    // How many keys there are is told of all of them, and these are not the token's.
    assert_eq!(buckets[0].get("keys"), None, "{listed}");

    std::fs::write(proxy.file("eu.map"), "eu-1 a\neu-2 b\n").expect("written");
    std::fs::write(proxy.file("all.map"), "us-1 a\n").expect("written");
    let own = ["--token-file", "agents.token"];
    let import = ["import", "ids", "eu.map", "--format", "haproxy-map"];
    let done = proxy.kv(&[&import[..], &own].concat()).await.ok();
    assert!(done.starts_with("ids: 2 added"), "{done}");
    let beyond = ["import", "ids", "all.map", "--format", "haproxy-map"];
    let beyond = proxy.kv(&[&beyond[..], &own].concat()).await;
    beyond.refused(1, "is not for key \"us-1\"");
    let table = proxy.kv(&[&["ls"][..], &own].concat()).await.ok();
    assert!(
        table.contains("names") && !table.contains("secret"),
        "{table}"
    );
}

#[tokio::test]
async fn a_prefix_is_looked_at_as_it_is_read() {
    let text = setup().text().replace("\"eu-\"", "\"a+\"");
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("agents.token"), format!("{SECRET}\n")).expect("written");
    std::fs::write(dir.path().join("throwbar.toml"), text).expect("written");
    let proxy = TestProxy::start_in(dir, &["serve", "throwbar.toml"]).await;
    let limited = Admin::new(proxy.admin_address, Some(SECRET.to_owned()));
    proxy.admin().set("ids", "a%20secret", "s").await;
    proxy.admin().set("ids", "a+mine", "m").await;
    // In a query, a plus is a space.
    for query in [
        "prefix=a+",
        "prefix=a%20",
        "prefix=a+&format=ndjson",
        "prefix=a+&watch",
        "prefix=a%2B&prefix=a",
        "prefix=a&prefix=a%2B",
        "Prefix=a%2B",
        "prefix=a%2B;prefix=a",
        "",
    ] {
        let response = limited.get(&format!("/v1/kv/ids?{query}")).await;
        assert!(
            matches!(response.status, 400 | 403) || !response.text().contains("secret"),
            "{query}: {}",
            response.text()
        );
    }
    assert_eq!(limited.get("/v1/kv/ids?prefix=a+").await.status, 403);
    let page = limited.get("/v1/kv/ids?prefix=a%2B").await.json();
    assert_eq!(page["entries"][0]["key"], "a+mine", "{page}");
    let beyond = limited.get("/v1/kv/ids?prefix=a%2B&cursor=a").await;
    assert!(!beyond.text().contains("secret"), "{}", beyond.text());
    assert_eq!(limited.get("/v1/kv/ids/a+mine").await.text(), "m");
    for path in ["/v1/kv/ids/a%20secret", "/v1/kv/ids/a%20secret?lookup"] {
        assert_eq!(limited.get(path).await.status, 403, "{path}");
    }
}

#[tokio::test]
async fn a_token_is_good_for_as_long_as_the_config_has_it() {
    let (proxy, limited) = limited().await;
    assert!(limited.put("/v1/kv/ids/eu-1", "a").await.status < 300);
    let text = setup().text();
    let begin = text.find("[admin.tokens.agents]").expect("there");
    let end = text.find("[[route]]").expect("there");
    std::fs::write(
        proxy.file("throwbar.toml"),
        format!("{}{}", &text[..begin], &text[end..]),
    )
    .expect("written");
    proxy.signal(Signal::HUP);
    eventually("the token is good no longer", async || {
        (limited.get("/v1/kv/ids/eu-1").await.status == 401).then_some(())
    })
    .await;
    assert_eq!(proxy.admin().get("/v1/kv/ids/eu-1").await.status, 200);
}

#[tokio::test]
async fn every_change_and_every_refused_one_is_in_the_audit_log_before_it_is_answered() {
    let (mut proxy, limited) = limited().await;
    let lines = |proxy: &TestProxy| -> Vec<Value> {
        let text = std::fs::read_to_string(proxy.file("audit.log")).expect("there");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    };
    let told = |line: &Value| {
        ["actor", "method", "path", "outcome"]
            .map(|name| line[name].as_str().unwrap_or_default().to_owned())
    };
    let named = Request::new("PUT", "/v1/kv/ids/eu-1")
        .field("x-throwbar-actor", "anna")
        .body("a");
    limited.send(named).await;
    assert_eq!(
        told(&lines(&proxy)[0]),
        ["agents/anna", "PUT", "/v1/kv/ids/eu-1", "created"]
    );
    assert_eq!(lines(&proxy)[0]["revision"], 1);
    assert!(lines(&proxy)[0]["timestamp"].is_string());
    limited.put("/v1/kv/ids/us-1", "a").await;
    assert_eq!(
        told(&lines(&proxy)[1]),
        ["agents", "PUT", "/v1/kv/ids/us-1", "forbidden"]
    );
    limited
        .post("/v1/kv/ids/batch", r#"{"delete": ["us-1"]}"#)
        .await;
    assert_eq!(
        told(&lines(&proxy)[2]),
        ["agents", "POST", "/v1/kv/ids/batch", "forbidden"]
    );
    proxy.admin().delete("/v1/kv/ids/eu-1").await;
    assert_eq!(
        told(&lines(&proxy)[3]),
        ["admin", "DELETE", "/v1/kv/ids/eu-1", "deleted"]
    );
    limited.get("/v1/kv/ids/eu-1").await;
    assert_eq!(lines(&proxy).len(), 4);
    // What is refused for what there is, or is not, is an attempt like any other.
    let missing = r#"{"writes": [{"key": "eu-1", "value": "b", "if_revision": 9}]}"#;
    for (method, path, body, tag, outcome) in [
        ("DELETE", "/v1/kv/ids/eu-1", "", None, "no-such-key"),
        (
            "PUT",
            "/v1/kv/ids/eu-1",
            "b",
            Some("\"1\""),
            "precondition-failed",
        ),
        (
            "POST",
            "/v1/kv/ids/batch",
            "{}",
            Some("\"9\""),
            "precondition-failed",
        ),
        (
            "POST",
            "/v1/kv/ids/batch",
            missing,
            None,
            "precondition-failed",
        ),
        (
            "POST",
            "/v1/kv/ids/undo",
            r#"{"key": "eu-1"}"#,
            None,
            "no-history",
        ),
        (
            "PUT",
            "/v1/config",
            "",
            Some("\"other\""),
            "precondition-failed",
        ),
    ] {
        let before = lines(&proxy).len();
        let request = Request::new(method, path).body(body);
        let request = match tag {
            Some(tag) => request.field("if-match", tag),
            None => request,
        };
        let refused = proxy.admin().send(request).await;
        assert!(refused.status >= 400, "{method} {path}: {}", refused.text());
        let [line] = &lines(&proxy)[before..] else {
            panic!("{method} {path}: {:?}", lines(&proxy));
        };
        let [actor, by, to, told] = told(line);
        assert_eq!([&*actor, &*by, &*to], ["admin", method, path]);
        assert!(told.contains(outcome), "{method} {path}: {told}");
    }
    let count = lines(&proxy).len();
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(lines(&proxy).len(), count);
}

#[tokio::test]
async fn a_token_that_could_not_work_is_told_by_check_and_never_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = CONFIG
        .replace("${file:agents.token}", "hunter2")
        .replace("names = \"read\"", "nmes = \"read\"");
    let text = Setup::new(config).text();
    std::fs::write(dir.path().join("throwbar.toml"), text).expect("written");
    let ended = run_with(command(), dir.path(), &["check", "throwbar.toml", "--json"]).await;
    assert_eq!(ended.code, 3);
    assert!(
        ended.stdout.contains("32 or more ASCII characters"),
        "{}",
        ended.stdout
    );
    let text = CONFIG
        .replace("names = \"read\"", "nmes = \"read\"")
        .replace("${file:agents.token}", SECRET);
    std::fs::write(dir.path().join("throwbar.toml"), Setup::new(text).text()).expect("written");
    let ended = run_with(command(), dir.path(), &["check", "throwbar.toml", "--json"]).await;
    assert!(
        ended.stdout.contains("no bucket is named \\\"nmes\\\""),
        "{}",
        ended.stdout
    );
    assert!(!ended.stdout.contains(SECRET), "{}", ended.stdout);
}
