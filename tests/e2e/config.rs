//! A new config takes effect for the next request, closes nothing, and a bad one changes nothing.

use crate::harness::proxy::run;
use crate::harness::websocket;
use crate::harness::{Setup, TestProxy, TestUpstream, eventually, soon};
use rustix::process::Signal;

fn reply(text: &str, echo: &TestUpstream) -> Setup {
    Setup::new(format!(
        "[[route]]\nname = \"socket\"\nmatch = {{ upgrade = \"websocket\" }}\nto = \"{}\"\n\
         [[route]]\nname = \"hello\"\nreply = {{ status = 200, body = \"{text}\" }}\n",
        echo.address
    ))
}

async fn says(proxy: &TestProxy, text: &str) {
    eventually(&format!("the answer {text:?}"), async || {
        (proxy.get("/", &[]).await.text() == text).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sighup_applies_the_file_and_closes_no_websocket() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = reply("one", &echo).start().await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("before").await;
    says(&proxy, "one").await;
    std::fs::write(proxy.file("throwbar.toml"), reply("two", &echo).text()).expect("written");
    proxy.signal(Signal::HUP);
    says(&proxy, "two").await;
    socket.echo("after").await;
}

#[tokio::test]
async fn put_config_applies_the_body_and_closes_no_websocket() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = reply("one", &echo).start().await;
    let admin = proxy.admin();
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("before").await;
    for n in 0..20 {
        let text = format!("answer {n}");
        let put = admin.put("/v1/config", reply(&text, &echo).text()).await;
        assert_eq!(
            (put.status, &put.json()["outcome"]),
            (200, &"changed".into()),
            "{}",
            put.text()
        );
        assert_eq!(proxy.get("/", &[]).await.text(), text);
        socket.echo(&text).await;
    }
    let same = admin
        .put("/v1/config", reply("answer 19", &echo).text())
        .await;
    assert_eq!(same.json()["outcome"], "unchanged");
    assert_eq!(
        admin.get("/v1/config").await.text(),
        reply("answer 19", &echo).text()
    );
    let stale = crate::harness::Request::new("PUT", "/v1/config")
        .field("if-match", "\"old\"")
        .body(reply("x", &echo).text());
    assert_eq!(admin.send(stale).await.status, 412);
    let dry = admin
        .put("/v1/config?dry_run=true", reply("x", &echo).text())
        .await;
    assert_eq!(
        (dry.status, &dry.json()["outcome"]),
        (200, &"checked".into())
    );
    assert_eq!(proxy.get("/", &[]).await.text(), "answer 19");
}

#[tokio::test]
async fn a_bad_config_changes_nothing_and_every_problem_has_its_place() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = reply("one", &echo).start().await;
    let admin = proxy.admin();
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("before").await;
    let bad = reply("two", &echo)
        .text()
        .replace("reply =", "repply =")
        .replace("workers = 2", "worker = 2");
    let refused = admin.put("/v1/config", bad.clone()).await;
    assert_eq!(refused.status, 422);
    let problem = refused.json();
    let errors = problem["errors"].as_array().expect("a list");
    assert!(errors.len() >= 2, "{problem}");
    for error in errors {
        assert!(error["line"].as_u64().is_some_and(|n| n > 0), "{error}");
        assert!(error["column"].as_u64().is_some_and(|n| n > 0), "{error}");
    }
    let helps: Vec<_> = errors.iter().filter_map(|e| e["help"].as_str()).collect();
    assert!(helps.iter().any(|help| help.contains("reply")), "{helps:?}");
    assert!(
        helps.iter().any(|help| help.contains("workers")),
        "{helps:?}"
    );
    std::fs::write(proxy.file("throwbar.toml"), bad).expect("written");
    proxy.signal(Signal::HUP);
    proxy.says("refused").await;
    assert!(proxy.stderr().contains("repply"), "{}", proxy.stderr());
    assert_eq!(proxy.get("/", &[]).await.text(), "one");
    socket.echo("after").await;
}

#[tokio::test]
async fn a_config_whose_plugin_refuses_changes_nothing() {
    // `init` is the last step that can fail: by then the buckets of the config were looked at.
    let upstream = TestUpstream::saying("up").await;
    let config = |bucket: &str, weights: &str| {
        Setup::new(format!(
            "[buckets.{bucket}]\n\
             [upstreams.app]\nendpoints = [\"{address}\"]\n\
             [plugins.router]\nsource = \"builtin:by-header\"\nbuckets = {{ {bucket} = \"read\" }}\n\
             settings = {{ header = \"x-id\", bucket = \"{bucket}\" }}\n\
             [plugins.split]\nsource = \"builtin:canary\"\nsettings = {{ weights = \"{weights}\" }}\n\
             [[route]]\nmatch = {{ path = \"/split\" }}\nplugin = \"split\"\n\
             [[route]]\nplugin = \"router\"\n",
            address = upstream.address,
        ))
    };
    let proxy = config("upstreams", "app=1").start().await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let fields = [("x-id", "id1"), ("x-port", &*upstream.port())];
    assert_eq!(proxy.get("/", &fields).await.text(), "up");
    for path in ["/v1/config", "/v1/config?dry_run=true"] {
        let refused = admin.put(path, config("renamed", "nonsense").text()).await;
        assert!(
            (400..500).contains(&refused.status),
            "{path}: {}",
            refused.text()
        );
        assert!(refused.text().contains("nonsense"), "{}", refused.text());
        assert_eq!(proxy.get("/", &fields).await.text(), "up");
        assert_eq!(
            admin.get("/v1/kv/upstreams/id1").await.status,
            200,
            "{path}"
        );
        assert_eq!(admin.get("/v1/kv/renamed/id1").await.status, 404, "{path}");
    }
    let good = admin
        .put("/v1/config", config("renamed", "app=2").text())
        .await;
    assert_eq!(good.status, 200, "{}", good.text());
    assert_eq!(proxy.get("/", &fields).await.status, 404);
    assert_eq!(proxy.get("/split", &[]).await.text(), "up");
}

#[tokio::test]
async fn a_config_that_needs_a_restart_says_so() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = reply("one", &echo).start().await;
    let refused = proxy
        .admin()
        .put("/v1/config", reply("two", &echo).workers(3).text())
        .await;
    assert_eq!(refused.status, 422);
    assert!(
        refused.text().contains("workers") && refused.text().contains("restart"),
        "{}",
        refused.text()
    );
    assert_eq!(proxy.get("/", &[]).await.text(), "one");
}

#[tokio::test]
async fn listeners_come_and_go_while_streams_of_both_stay() {
    let (echo, _closes) = websocket::echo().await;
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("bound")
    };
    let proxy = reply("one", &echo).start().await;
    let admin = proxy.admin();
    let mut socket = websocket::open(proxy.address, &[]).await;
    socket.echo("first").await;
    let mut two = reply("one", &echo);
    two.frame.push_str(&format!(
        "[[listener]]\nname = \"more\"\nlisten = \"{free}\"\n"
    ));
    let put = admin.put("/v1/config", two.text()).await;
    assert_eq!(put.status, 200, "{}", put.text());
    let mut second = websocket::open(free, &[]).await;
    second.echo("second").await;
    let put = admin.put("/v1/config", reply("one", &echo).text()).await;
    assert_eq!(put.status, 200, "{}", put.text());
    eventually("the listener is gone", async || {
        tokio::net::TcpStream::connect(free)
            .await
            .is_err()
            .then_some(())
    })
    .await;
    socket.echo("first stays").await;
    second.echo("second stays").await;
    assert_eq!(proxy.get("/", &[]).await.text(), "one");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("bound").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let setup = |of: &str| {
        let mut setup = Setup::new("[[route]]\nreply = { status = 200 }\n");
        let (before, after) = setup.frame.split_once(of).expect("there");
        setup.frame = format!("{before}{of}{}", after.replacen("127.0.0.1:0", &address, 1));
        setup.text()
    };
    for of in ["[admin]", "[[listener]]"] {
        std::fs::write(dir.path().join("t.toml"), setup(of)).expect("written");
        let ended = run(dir.path(), &["serve", "t.toml"]).await;
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains(&address), "{of}: {}", ended.stderr);
        assert!(ended.stderr.contains("in use"), "{of}: {}", ended.stderr);
        let change = format!("`listen` of {of} in t.toml");
        assert!(ended.stderr.contains(&change), "{of}: {}", ended.stderr);
        assert!(!dir.path().join("data").exists(), "{of}");
    }
}

#[tokio::test]
async fn check_names_every_problem_and_ends_with_3() {
    let dir = tempfile::tempdir().expect("a directory");
    let check = async |text: String| {
        std::fs::write(dir.path().join("t.toml"), text).expect("written");
        run(dir.path(), &["check", "t.toml"]).await
    };
    let good = Setup::new("[[route]]\nreply = { status = 200 }\n").text();
    let ended = check(good.clone()).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let ended = check(
        good.replace("listen =", "lissten =")
            .replace("status = 200", "status = 20000"),
    )
    .await;
    assert_eq!(ended.code, 3);
    for expected in ["lissten", "did you mean `listen`", "20000", "t.toml:"] {
        assert!(
            ended.stderr.contains(expected),
            "{expected}: {}",
            ended.stderr
        );
    }
    let ended = check("version = 1\n[[listener]\n".into()).await;
    assert_eq!(ended.code, 3);
    assert!(ended.stderr.contains("t.toml:2"), "{}", ended.stderr);
    let ended = run(dir.path(), &["check", "none.toml"]).await;
    assert_eq!(ended.code, 3);
    assert!(ended.stderr.contains("none.toml"), "{}", ended.stderr);
}

#[tokio::test]
async fn routes_match_in_order_by_host_path_header_method_and_upgrade() {
    let route = |matcher: &str, body: &str| {
        format!(
            "[[route]]\nmatch = {{ {matcher} }}\nreply = {{ status = 200, body = \"{body}\" }}\n"
        )
    };
    let config = [
        route("host = [\"app.test\", \"*.wild.test\"]", "host"),
        route("path = [\"/exact\", \"/prefix/*\", \"re:^/v[0-9]+/\"]", "path"),
        route("header = { x-a = \"1\", x-b = \"re:^[0-9]+$\", x-c = \"!\" }", "header"),
        route("method = [\"DELETE\"]", "method"),
        "[[route]]\nreply = { status = 404, json = { error = \"none\", id = \"${header.x-id}\" } }\n".into(),
    ]
    .concat();
    let proxy = TestProxy::start(&config).await;
    let text = async |path: &str, fields: &[(&str, &str)]| proxy.get(path, fields).await.text();
    assert_eq!(text("/", &[("host", "app.test:81")]).await, "host");
    assert_eq!(text("/", &[("host", "APP.test")]).await, "host");
    assert_eq!(text("/", &[("host", "a.b.wild.test")]).await, "host");
    for path in ["/exact", "/exact?q", "/prefix/x", "/v12/x"] {
        assert_eq!(text(path, &[]).await, "path", "{path}");
    }
    assert_eq!(text("/", &[("x-a", "1"), ("x-b", "22")]).await, "header");
    let none = r#"{"error":"none","id":"a\"b"}"#;
    for fields in [
        [("x-a", "1"), ("x-b", "no"), ("x-id", "a\"b")],
        [("x-a", "1"), ("x-c", "there"), ("x-id", "a\"b")],
        [("x-a", "11"), ("x-b", "22"), ("x-id", "a\"b")],
    ] {
        let answer = text("/exactly", &fields).await;
        let json: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(
            json,
            serde_json::from_str::<serde_json::Value>(none).expect("JSON")
        );
    }
    let delete = crate::harness::Request::new("DELETE", "/");
    assert_eq!(proxy.send(delete).await.text(), "method");
}

#[tokio::test]
async fn a_bucket_that_moves_to_another_backend_says_how_many_keys_are_left_behind() {
    let on = |backend: &str| Setup::new(format!("[buckets.b]\nbackend = \"{backend}\"\n"));
    let proxy = on("memory").start().await;
    let admin = proxy.admin();
    assert_eq!(
        admin.put("/v1/kv/b/k", "127.0.0.1".to_owned()).await.status,
        201
    );
    let put = admin.put("/v1/config", on("embedded").text()).await;
    assert_eq!(put.status, 200, "{}", put.text());
    proxy.says("bucket is on another backend now").await;
    assert!(proxy.stderr().contains("\"keys\":1"), "{}", proxy.stderr());
    assert_eq!(admin.get("/v1/kv/b/k").await.status, 404);
}

#[tokio::test]
async fn sigterm_ends_a_proxy_whose_reload_waits_for_an_engine() {
    let engine = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let engine = engine.expect("a port");
    let address = engine.local_addr().expect("it is bound");
    let store = format!(
        "[store.redis]\nserver = \"{address}\"\ntimeout = \"60s\"\nconnect_timeout = \"60s\"\n"
    );
    let mut proxy = Setup::new(store.clone()).start().await;
    let buckets = format!("{store}[buckets.shared]\nbackend = \"redis\"\n");
    std::fs::write(proxy.file("throwbar.toml"), Setup::new(buckets).text()).expect("written");
    proxy.signal(Signal::HUP);
    // It never answers.
    let _waiting = soon("the reload", engine.accept()).await.expect("a proxy");
    proxy.signal(Signal::TERM);
    assert!(proxy.ended().await.success());
}
