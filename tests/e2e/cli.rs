//! The command line: the shortest way to traffic, and its exit codes.

use crate::harness::proxy::{command, run};
use crate::harness::{TestProxy, TestUpstream, fixture, fixture_path, sha256, websocket};
use rustix::process::Signal;
use std::path::Path;

mod refusals;
mod top;

async fn serve(arguments: &[&str]) -> TestProxy {
    let dir = tempfile::tempdir().expect("a directory");
    let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    all.extend_from_slice(arguments);
    TestProxy::start_in(dir, &all).await
}

async fn ok(proxy: &TestProxy, arguments: &[&str]) -> String {
    proxy.run(arguments).await.ok()
}

#[tokio::test]
async fn serve_routes_by_flags_alone() {
    let upstream = TestUpstream::saying("ok").await;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("map.txt"), "# ids\nid2 127.0.0.1\n").expect("written");
    let arguments = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--map",
        "id1=127.0.0.1",
        "--map-file",
        "map.txt",
        "--by-header",
        "X-Agent",
        "--port-header",
        "X-To",
        "--workers",
        "1",
        "--data",
        "kept",
        "--access-log",
        "off",
    ];
    let proxy = TestProxy::start_in(dir, &arguments).await;
    for id in ["id1", "id2"] {
        assert_eq!(
            proxy
                .get("/", &[("x-agent", id), ("x-to", &upstream.port())])
                .await
                .text(),
            "ok"
        );
    }
    assert_eq!(
        proxy
            .get("/", &[("x-agent", "id3"), ("x-to", &upstream.port())])
            .await
            .status,
        404
    );
    assert_eq!(upstream.received()[0].header("x-agent"), None);
    assert!(proxy.file("kept/admin.token").exists());
    assert_eq!(proxy.stdout(), "");
}

#[tokio::test]
async fn serve_writes_the_access_log_to_standard_output() {
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    proxy.get("/x", &[]).await;
    crate::harness::eventually("an access line", async || {
        proxy.stdout().contains("\"path\":\"/x\"").then_some(())
    })
    .await;
}

#[tokio::test]
async fn ctrl_c_ends_it_in_good_order() {
    let mut proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    proxy.signal(Signal::INT);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_start_tells_how_many_keys_there_are() {
    let mut proxy = serve(&["--map", "id1=127.0.0.1", "--data", "data"]).await;
    proxy.says("1 key in bucket \"upstreams\"\n").await;
    ok(&proxy, &["kv", "set", "upstreams", "id2=127.0.0.2"]).await;
    proxy.kill().await;
    proxy.start_again().await;
    proxy.says("2 keys in bucket \"upstreams\"\n").await;
}

#[tokio::test]
async fn kv_commands_do_what_they_say() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = serve(&["--map", "id1=127.0.0.9"]).await;
    ok(
        &proxy,
        &["kv", "set", "upstreams", "id1=127.0.0.1", "id2=127.0.0.2"],
    )
    .await;
    assert_eq!(
        ok(&proxy, &["kv", "get", "upstreams", "id1"]).await.trim(),
        "127.0.0.1"
    );
    assert_eq!(
        proxy
            .get("/", &[("x-id", "id1"), ("x-port", &upstream.port())])
            .await
            .text(),
        "ok"
    );
    let listed: serde_json::Value =
        serde_json::from_str(&ok(&proxy, &["kv", "ls", "upstreams", "--json"]).await)
            .expect("JSON");
    assert!(listed.to_string().contains("127.0.0.2"), "{listed}");
    assert!(
        ok(&proxy, &["kv", "ls", "upstreams", "--prefix", "id"])
            .await
            .contains("id2")
    );
    ok(&proxy, &["kv", "del", "upstreams", "id2"]).await;
    assert_eq!(proxy.run(&["kv", "get", "upstreams", "id2"]).await.code, 1);
    let refused = proxy
        .run(&["kv", "set", "upstreams", "id3=no address!"])
        .await;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(refused.stderr.contains("id3"), "{}", refused.stderr);
    std::fs::write(proxy.file("in.txt"), "a 10.0.0.1\nb 10.0.0.2:80\n").expect("written");
    ok(&proxy, &["kv", "import", "upstreams", "in.txt"]).await;
    let exported = ok(&proxy, &["kv", "export", "upstreams"]).await;
    assert_eq!(exported, "a 10.0.0.1\nb 10.0.0.2:80\nid1 127.0.0.1\n");
    std::fs::write(proxy.file("in.json"), r#"{"c": "10.0.0.3"}"#).expect("written");
    ok(
        &proxy,
        &["kv", "import", "upstreams", "in.json", "--replace"],
    )
    .await;
    assert_eq!(
        ok(&proxy, &["kv", "export", "upstreams"]).await,
        "c 10.0.0.3\n"
    );
    std::fs::write(proxy.file("empty.txt"), "# nothing\n\n").expect("written");
    let replace = ["kv", "import", "upstreams", "empty.txt", "--replace"];
    let refused = proxy.run(&replace).await;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("empty.txt") && refused.stderr.contains("--allow-empty"),
        "{}",
        refused.stderr
    );
    std::fs::write(proxy.file("number.json"), r#"{"c": 3}"#).expect("written");
    let refused = proxy
        .run(&["kv", "import", "upstreams", "number.json"])
        .await;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    std::fs::write(proxy.file("bad.txt"), "d 10.0.0.4\ne\n").expect("written");
    let refused = proxy.run(&["kv", "import", "upstreams", "bad.txt"]).await;
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains('2'), "{}", refused.stderr);
    assert_eq!(
        ok(&proxy, &["kv", "export", "upstreams"]).await,
        "c 10.0.0.3\n"
    );
    ok(&proxy, &[&replace[..], &["--allow-empty"]].concat()).await;
    assert_eq!(ok(&proxy, &["kv", "export", "upstreams"]).await, "");
    let nowhere = proxy.run(&["kv", "export", "upstreams", "nowhere/x"]).await;
    assert_eq!(nowhere.code, 1);
    assert!(
        nowhere.stderr.contains("no directory nowhere"),
        "{}",
        nowhere.stderr
    );
}

#[tokio::test]
async fn plugin_commands_push_list_and_roll_back() {
    let upstream = TestUpstream::saying("ok").await;
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    let version = async || {
        let fields = [("x-id", "id1"), ("x-port", &*upstream.port())];
        proxy.get("/", &fields).await.header("x-version").to_owned()
    };
    let file = fixture_path("version-a").display().to_string();
    ok(&proxy, &["plugin", "push", "by-header", &file]).await;
    assert_eq!(version().await, "a");
    let again = ok(&proxy, &["plugin", "push", "by-header", &file]).await;
    assert!(again.to_lowercase().contains("unchanged"), "{again}");
    let digest = sha256(&fixture("version-a"));
    let listed = ok(&proxy, &["plugin", "ls", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let since = json["plugins"][0]["versions"][0]["since"].as_str();
    assert!(
        since.is_some_and(|since| since.starts_with("20") && since.ends_with('Z')),
        "{listed}"
    );
    assert!(listed.contains(&digest), "{listed}");
    assert!(ok(&proxy, &["plugin", "ls"]).await.contains(&digest[..8]));
    let bad = fixture_path("trap-init").display().to_string();
    let refused = proxy.run(&["plugin", "push", "by-header", &bad]).await;
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("init"), "{}", refused.stderr);
    assert_eq!(version().await, "a");
    ok(&proxy, &["plugin", "rollback", "by-header"]).await;
    assert_eq!(version().await, "");
    assert!(
        ok(&proxy, &["plugin", "inspect", "by-header"])
            .await
            .contains("by-header")
    );
    assert!(!ok(&proxy, &["plugin", "inspect", &file]).await.is_empty());
    let other = proxy.run(&["plugin", "push", "other", &file]).await;
    assert_eq!(other.code, 1);
    assert!(
        other.stderr.contains("there are by-header"),
        "{}",
        other.stderr
    );
    let missing = proxy
        .run(&["plugin", "push", "by-header", "none.wasm"])
        .await;
    assert_ne!(missing.code, 0);
    assert!(missing.stderr.contains("none.wasm"), "{}", missing.stderr);
}

#[tokio::test]
async fn streams_commands_list_and_close() {
    let (echo, _closes) = websocket::echo().await;
    let proxy = serve(&["--map", "id1=127.0.0.1"]).await;
    let mut socket =
        websocket::open(proxy.address, &[("x-id", "id1"), ("x-port", &echo.port())]).await;
    socket.echo("hello").await;
    let listed = ok(&proxy, &["streams", "ls", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let stream = listed
        .as_array()
        .or_else(|| listed["streams"].as_array())
        .expect("a list")[0]
        .clone();
    assert_eq!(stream["key"], "id1");
    assert!(ok(&proxy, &["streams", "ls"]).await.contains("id1"));
    let id = stream["id"].to_string();
    let refused = proxy
        .run(&["streams", "close", &id, "--code", "1006"])
        .await;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("code 1006: expected 1000 to 1003"),
        "{}",
        refused.stderr
    );
    let none = ["streams", "ls", "--client", "10.0.0.0/8"];
    assert!(!ok(&proxy, &none).await.contains("id1"));
    let refused = proxy.run(&["streams", "drain", "--over", "0s"]).await;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    let expected = "give --key, --upstream, --route";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    let drain = ["streams", "drain", "--key", "id1", "--over", "24h"];
    let counted = ok(&proxy, &[&drain[..], &["--dry-run"]].concat()).await;
    assert!(counted.starts_with("1 stream would be closed"), "{counted}");
    let started = ok(&proxy, &drain).await;
    assert!(
        started.starts_with("drain 1: closes 1 stream over 24h"),
        "{started}"
    );
    let cancelled = ok(&proxy, &["streams", "cancel", "1"]).await;
    assert!(
        cancelled.starts_with("drain 1: cancelled, 0 closed"),
        "{cancelled}"
    );
    let mut other =
        websocket::open(proxy.address, &[("x-id", "id1"), ("x-port", &echo.port())]).await;
    other.echo("hello").await;
    let network = format!("{}/32", other.0.get_ref().local_addr().expect("bound").ip());
    let drain = [
        "streams",
        "drain",
        "--client",
        &network,
        "--over",
        "1s",
        "--older-than",
        "0s",
    ];
    socket.echo("still open").await;
    ok(&proxy, &["streams", "close", &id, "--code", "4000"]).await;
    assert_eq!(socket.close_code().await, Some(4000));
    let closing = tokio::spawn(async move { other.close_code().await });
    let drained = ok(&proxy, &[&drain[..], &["--wait"]].concat()).await;
    assert!(drained.starts_with("drain 2: done, 1 closed"), "{drained}");
    assert_eq!(closing.await.expect("closed"), Some(1012));
    let listed = ok(&proxy, &["streams", "drains"]).await;
    assert!(
        listed.contains("asked  key=id1") && listed.contains("cancelled"),
        "{listed}"
    );
    assert_eq!(proxy.run(&["streams", "close", "999999"]).await.code, 1);
}

#[tokio::test]
async fn help_has_examples_and_exit_codes() {
    let help = run(Path::new("."), &["--help"]).await;
    assert_eq!(help.code, 0);
    for expected in [
        "Examples:",
        "Exit codes:",
        "serve",
        "demo",
        "kv",
        "streams",
        "plugin",
        "echo",
    ] {
        assert!(help.stdout.contains(expected), "{expected}");
    }
    assert!(
        run(Path::new("."), &["--version"])
            .await
            .stdout
            .contains("0.1.0")
    );
}

#[tokio::test]
async fn a_hangup_while_the_proxy_starts_does_not_end_it() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let dir = tempfile::tempdir().expect("a directory");
    let map = dir.path().join("map.pipe");
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &map, fifo, mode, 0).expect("a pipe");
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut child = command()
        .current_dir(dir.path())
        .args(["serve", "--map-file", "map.pipe"])
        .args(free)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the command under test runs");
    let pid = i32::try_from(child.id().expect("it runs")).expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    // Opened when the proxy reads it, so it is in the middle of its start.
    let writing = tokio::task::spawn_blocking(move || {
        let pipe = std::fs::File::options().write(true).open(map);
        rustix::process::kill_process(pid, Signal::HUP).expect("signalled");
        std::io::Write::write_all(&mut pipe.expect("opened"), b"id1 127.0.0.1\n")
    });
    writing.await.expect("it ends").expect("written");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let serves = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.contains("1 key in bucket") {
                return true;
            }
        }
        false
    };
    assert!(crate::harness::soon("the start", serves).await);
    rustix::process::kill_process(pid, Signal::TERM).expect("signalled");
    let status = crate::harness::soon("its end", child.wait()).await;
    assert!(status.expect("it ended").success());
}
