//! Versions: listed, kept, activated, forgotten, and drained when there are too many.

use crate::harness::proxy::{BY_HEADER, PATIENT, run_with};
use crate::harness::websocket::{self, Socket};
use crate::harness::{Setup, TestProxy, TestUpstream, eventually, fixture, sha256};
use serde_json::Value;
use std::fmt::Write as _;

/// Guests that route by header, so that each can accept a WebSocket.
const ROUTERS: [&str; 4] = ["version-a", "version-b", "trap", "spin"];

fn with(keys: &str) -> String {
    BY_HEADER.replace("[plugins.router]", &format!("[plugins.router]\n{keys}"))
}

/// A proxy with an echo behind `id1`.
async fn proxy(keys: &str) -> (TestProxy, TestUpstream) {
    let (upstream, _) = websocket::echo().await;
    let proxy = TestProxy::start(&format!("{}{PATIENT}", with(keys))).await;
    proxy.admin().set("upstreams", "id1", "127.0.0.1").await;
    (proxy, upstream)
}

async fn open(proxy: &TestProxy, upstream: &TestUpstream) -> Socket {
    let fields = [("x-id", "id1"), ("x-port", &*upstream.port())];
    websocket::open(proxy.address, &fields).await
}

async fn version(proxy: &TestProxy, guest: &str) -> Option<Value> {
    let plugin = proxy.admin().plugin("router").await;
    let digest = sha256(&fixture(guest));
    let versions = plugin["versions"].as_array().expect("a list");
    versions
        .iter()
        .find(|one| one["digest"] == digest.as_str())
        .cloned()
}

fn path(guest: &str) -> String {
    format!(
        "/v1/plugins/router/versions/{}",
        &sha256(&fixture(guest))[..12]
    )
}

#[tokio::test]
async fn a_version_tells_its_calls_errors_times_memory_and_streams() {
    let (proxy, upstream) = proxy("").await;
    let admin = proxy.admin();
    admin.push_ok("router", fixture("trap")).await;
    let _socket = open(&proxy, &upstream).await;
    for _ in 0..2 {
        proxy.get("/", &[("x-trap", "1")]).await;
    }
    for _ in 0..9 {
        proxy.get("/", &[("x-id", "none")]).await;
    }
    let told = version(&proxy, "trap").await.expect("listed");
    assert_eq!(told["state"], "active");
    assert_eq!(
        (&told["calls"], &told["errors"]),
        (&10.into(), &2.into()),
        "{told}"
    );
    assert_eq!(told["errors_by_kind"]["trap"], 2);
    assert_eq!(told["streams"], 1);
    let [p50, p99, memory] =
        ["decision_p50_ns", "decision_p99_ns", "memory_bytes"].map(|name| told[name].as_u64());
    assert!(p50 > Some(0) && p99 >= p50, "{told}");
    assert!(memory >= Some(64 << 10), "at least a page: {told}");
    let labels = "{plugin=\"router\",version=\"";
    assert_eq!(
        admin
            .metric(&format!("throwbar_plugin_version_state{labels}"))
            .await,
        2.0
    );
    assert!(
        admin
            .metric(&format!("throwbar_plugin_version_memory_bytes{labels}"))
            .await
            > 0.0
    );
}

#[tokio::test]
async fn as_many_versions_stay_on_disk_as_the_config_says_and_one_can_be_activated() {
    let (proxy, _upstream) = proxy("keep = 2").await;
    let admin = proxy.admin();
    for guest in ["version-a", "version-b", "count"] {
        admin.push_ok("router", fixture(guest)).await;
    }
    assert!(version(&proxy, "version-a").await.is_none());
    assert_eq!(
        version(&proxy, "version-b").await.expect("kept")["state"],
        "kept"
    );
    let wanted = |guest: &str| format!("{{\"version\": \"{}\"}}", &sha256(&fixture(guest))[..8]);
    let gone = admin
        .post("/v1/plugins/router/activate", wanted("version-a"))
        .await;
    assert_eq!(gone.status, 404, "{}", gone.text());
    let back = admin
        .post("/v1/plugins/router/activate", wanted("version-b"))
        .await;
    assert_eq!(back.status, 200, "{}", back.text());
    assert_eq!(
        version(&proxy, "version-b").await.expect("active")["state"],
        "active"
    );
    let same = admin
        .post("/v1/plugins/router/activate", wanted("version-b"))
        .await;
    assert_eq!(same.json()["outcome"], "unchanged");

    // How many are kept is nothing that an instance sees: no new generation.
    let generation = admin.plugin("router").await["generation"].clone();
    let config = std::fs::read_to_string(proxy.file("throwbar.toml")).expect("read");
    let applied = admin
        .put("/v1/config", config.replace("keep = 2", "keep = 1"))
        .await;
    assert!(applied.status < 300, "{}", applied.text());
    assert_eq!(admin.plugin("router").await["generation"], generation);
}

#[tokio::test]
async fn a_version_in_use_is_not_forgotten() {
    let (proxy, upstream) = proxy("").await;
    let admin = proxy.admin();
    admin.push_ok("router", fixture("version-a")).await;
    let mut socket = open(&proxy, &upstream).await;
    for guest in ["version-b", "count"] {
        admin.push_ok("router", fixture(guest)).await;
    }
    for (guest, why) in [
        ("count", "is active"),
        ("version-b", "is what a rollback activates"),
        ("version-a", "has 1 open stream"),
    ] {
        let refused = admin.delete(&path(guest)).await;
        assert_eq!(refused.status, 409, "{guest}");
        assert!(refused.text().contains(why), "{}", refused.text());
    }
    assert_eq!(
        admin
            .delete("/v1/plugins/router/versions/ffff")
            .await
            .status,
        404
    );
    let forced = admin
        .delete(&format!("{}?force=true", path("version-a")))
        .await;
    assert_eq!(forced.status, 200, "{}", forced.text());
    socket.echo("the stream stays").await;
    socket.close().await;
    eventually("the version is gone", async || {
        version(&proxy, "version-a").await.is_none().then_some(())
    })
    .await;
    let active = admin.delete(&format!("{}?force=true", path("count"))).await;
    assert_eq!(active.status, 409, "not even by force");
}

#[tokio::test]
async fn one_version_too_many_with_open_streams_is_refused_and_says_which() {
    let (proxy, upstream) = proxy("max_draining = 1").await;
    let admin = proxy.admin();
    let mut sockets = Vec::new();
    for guest in &ROUTERS[..2] {
        admin.push_ok("router", fixture(guest)).await;
        sockets.push(open(&proxy, &upstream).await);
    }
    let refused = admin.push("router", fixture("trap")).await;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (409, &"draining".into())
    );
    let text = refused.text();
    for guest in &ROUTERS[..2] {
        let told = format!("{} with 1 stream", &sha256(&fixture(guest))[..12]);
        assert!(text.contains(&told), "{text}");
    }
    // The way back is open always.
    assert_eq!(
        admin.post("/v1/plugins/router/rollback", "").await.status,
        200
    );
    for socket in &mut sockets {
        socket.echo("untouched").await;
    }
    sockets.pop().expect("two of them").close().await;
    admin.streams_are(1).await;
    admin.push_ok("router", fixture("trap")).await;
}

#[tokio::test]
async fn the_oldest_version_is_drained_with_1012_when_the_config_says_so() {
    let keys = "max_draining = 1\non_max_draining = \"drain-oldest\"\ndrain_over = \"1s\"";
    let (proxy, upstream) = proxy(keys).await;
    let admin = proxy.admin();
    let mut sockets = Vec::new();
    for guest in ROUTERS {
        admin.push_ok("router", fixture(guest)).await;
        for _ in 0..3 {
            sockets.push(open(&proxy, &upstream).await);
        }
    }
    let (drained, kept) = sockets.split_at_mut(6);
    for socket in drained {
        assert_eq!(socket.close_code().await, Some(1012));
    }
    for socket in kept {
        socket.echo("untouched").await;
    }
    admin.streams_are(6).await;
}

/// The drains of the process, newest first, once there are so many.
async fn drains_are(proxy: &TestProxy, count: usize) -> Vec<Value> {
    eventually("the drains to begin", async || {
        let listed = proxy.admin().get("/v1/streams/drain").await.json();
        let drains = listed["drains"].as_array().expect("a list").clone();
        (drains.len() == count).then_some(drains)
    })
    .await
}

/// What is told of drains that begin at once and have not closed a stream yet.
fn began(drain: &Value) -> (&str, &str, u64) {
    let text = |name: &str| drain[name].as_str().expect("a text");
    assert_eq!(text("reason"), "version drained: newer versions");
    assert_eq!(drain["selector"]["plugin"], "router");
    let version = drain["selector"]["version"].as_str().expect("a digest");
    let matched = drain["matched"].as_u64().expect("a count");
    assert_eq!(
        (text("cause"), &drain["closed"]),
        ("max-draining", &0.into())
    );
    (text("state"), version, matched)
}

#[tokio::test]
async fn a_version_too_many_is_drained_once_and_its_drain_can_be_cancelled() {
    let keys = "max_draining = 1\non_max_draining = \"drain-oldest\"\ndrain_over = \"24h\"";
    let (proxy, upstream) = proxy(keys).await;
    let admin = proxy.admin();
    let mut sockets = Vec::new();
    for guest in &ROUTERS[..3] {
        admin.push_ok("router", fixture(guest)).await;
        sockets.push(open(&proxy, &upstream).await);
    }
    let [oldest, second] = [ROUTERS[0], ROUTERS[1]].map(|guest| sha256(&fixture(guest)));
    assert_eq!(
        began(&drains_are(&proxy, 1).await[0]),
        ("running", &*oldest, 1)
    );
    // Both are too many now, and one of them is being drained already.
    admin.push_ok("router", fixture("spin")).await;
    let drains = drains_are(&proxy, 2).await;
    assert_eq!(began(&drains[0]), ("running", &*second, 1));
    assert_eq!(began(&drains[1]), ("running", &*oldest, 1));
    assert_eq!(admin.metric("throwbar_stream_drains_running").await, 2.0);

    let cancelled = admin.delete("/v1/streams/drain/1").await.json();
    assert_eq!(began(&cancelled), ("cancelled", &*oldest, 1));
    for socket in &mut sockets {
        socket.echo("not closed").await;
    }
    admin.push_ok("router", fixture("count")).await;
    let again = drains_are(&proxy, 3).await;
    assert_eq!(
        began(&again[0]),
        ("running", &*oldest, 1),
        "until the next swap"
    );
}

#[tokio::test]
async fn a_version_that_is_active_again_is_drained_no_more() {
    let keys = "max_draining = 1\non_max_draining = \"drain-oldest\"\ndrain_over = \"24h\"";
    let (proxy, upstream) = proxy(keys).await;
    let admin = proxy.admin();
    let mut sockets = Vec::new();
    for guest in &ROUTERS[..2] {
        admin.push_ok("router", fixture(guest)).await;
        sockets.push(open(&proxy, &upstream).await);
    }
    admin.push_ok("router", fixture("trap")).await;
    assert_eq!(began(&drains_are(&proxy, 1).await[0]).0, "running");
    admin.push_ok("router", fixture(ROUTERS[0])).await;
    eventually("the drain to end", async || {
        let drains = drains_are(&proxy, 1).await;
        (began(&drains[0]).0 == "cancelled").then_some(())
    })
    .await;
    for socket in &mut sockets {
        socket.echo("still there").await;
    }
}

#[tokio::test]
async fn a_thousand_plugins_of_one_module_share_its_code() {
    let config = |plugins: usize| {
        let mut text = String::from("[buckets.upstreams]\nbackend = \"memory\"\n");
        for i in 0..plugins {
            write!(
                text,
                "[plugins.p{i}]\nsource = \"builtin:by-header\"\nbuckets = {{ upstreams = \"read\" }}\n\
                 settings = {{ header = \"x-id{i}\", port-header = \"x-port\" }}\n\
                 limits = {{ deadline = \"2s\" }}\n\
                 [[route]]\nname = \"r{i}\"\nplugin = \"p{i}\"\nmatch = {{ path = \"/{i}/*\" }}\n"
            )
            .expect("text");
        }
        text
    };
    let used = async |plugins: usize| {
        let proxy = Setup::new(config(plugins)).start().await;
        proxy.admin().set("upstreams", "id1", "127.0.0.1").await;
        let mut client = crate::harness::client::KeptAlive::connect(proxy.address)
            .await
            .expect("connected");
        for i in 0..plugins {
            // Each has settings of its own.
            for (header, status) in [(format!("x-id{i}"), 502), ("x-id".to_owned(), 404)] {
                let request = crate::harness::Request::get(&format!("/{i}/"))
                    .field(&header, "id1")
                    .field("x-port", "1");
                let response = client.send(request).await.expect("a response");
                assert_eq!(response.status, status, "plugin {i}, {header}");
            }
        }
        proxy.rss_kib()
    };
    let (few, many) = (used(10).await, used(1_000).await);
    let each = many.saturating_sub(few) / 990;
    println!("{each} KiB each: {few} KiB with 10, {many} KiB with 1000");
    assert!(
        each <= 64,
        "{each} KiB each: {few} KiB with 10, {many} KiB with 1000"
    );
}

#[tokio::test]
async fn the_commands_show_and_change_what_versions_are() {
    let (proxy, _upstream) = proxy("").await;
    std::fs::write(proxy.file("count.wasm"), fixture("count")).expect("written");
    std::fs::write(proxy.file("a.wasm"), fixture("version-a")).expect("written");
    let throwbar = async |arguments: &str| {
        let mut command = proxy.command();
        let token = std::fs::read_to_string(proxy.file("data/admin.token")).expect("a token");
        command.env("THROWBAR_TOKEN", token.trim());
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let ended = run_with(command, proxy.dir(), &arguments).await;
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        ended.stdout
    };
    throwbar("plugin push router a.wasm").await;
    let begun =
        throwbar("plugin canary router --file count.wasm --percent 5 --by header:x-id").await;
    assert!(begun.contains("5 % by header:x-id"), "{begun}");
    assert!(throwbar("plugin ls").await.contains("canary 5 %"));
    throwbar("plugin canary router --percent 100").await;
    assert_eq!(proxy.get("/", &[("x-id", "x")]).await.status, 200);
    let shown = throwbar("plugin show router").await;
    assert!(shown.contains("canary") && shown.contains("p99"), "{shown}");
    throwbar("plugin canary router abort").await;
    assert_eq!(proxy.get("/", &[("x-id", "x")]).await.status, 404);
    throwbar("plugin shadow router count.wasm").await;
    proxy.get("/", &[("x-id", "x")]).await;
    let differs = eventually("the shadow differs", async || {
        let shown = throwbar("plugin shadow router show").await;
        shown.contains("status").then_some(shown)
    })
    .await;
    assert!(differs.contains("1 of 1"), "{differs}");
    throwbar("plugin shadow router off").await;
    let count = sha256(&fixture("count"));
    throwbar(&format!("plugin activate router {}", &count[..12])).await;
    throwbar("plugin rollback router").await;
    throwbar(&format!("plugin forget router {} --force", &count[..12])).await;
    assert!(!throwbar("plugin ls").await.contains(&count[..12]));
}
