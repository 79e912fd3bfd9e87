//! A fleet: proxies on one etcd or Redis have the same versions of their plugins, whatever happens to one of them.

use crate::harness::client::KeptAlive;
use crate::harness::proxy::PATIENT;
use crate::harness::servers::{Engine, Server};
use crate::harness::{Request, Setup, TestProxy, TestUpstream, eventually, fixture, sha256};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The same on both engines.
macro_rules! on_both {
    ($($test:ident,)*) => {
        on_both! { etcd Etcd: $($test,)* }
        on_both! { redis Redis: $($test,)* }
    };
    ($module:ident $engine:ident: $($test:ident,)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() {
                    if let Some(backend) = super::on(super::Engine::$engine).await {
                        super::$test(backend).await;
                    }
                }
            )*
        }
    };
}

mod configs;
mod example;
mod forget;
mod moment;
mod together;

const NAMES: [&str; 3] = ["one", "two", "three"];
const REQUEST_EVERY: Duration = Duration::from_millis(5);
const CANARY: &str = "/v1/plugins/router/canary";

/// The plugin with what it needs, and the route.
const PLUGIN: &str = r#"
[plugins.router]
buckets = { upstreams = "read" }
settings = { header = "x-id", port-header = "x-port" }
[[route]]
name = "by-id"
plugin = "router"
"#;

/// Where the nodes agree.
struct Backend {
    engine: Engine,
    server: Server,
}

/// A node's tables beside the plugin.
fn tables(backend: &Backend, name: &str) -> String {
    let (engine, server) = (backend.engine.name(), backend.server.config());
    format!(
        "{server}\n[fleet]\nbackend = \"{engine}\"\nnode = \"{name}\"\nheartbeat = \"1s\"\n\
         [buckets.upstreams]\nbackend = \"{engine}\"\n"
    )
}

async fn node(backend: &Backend, name: &str) -> TestProxy {
    let tables = tables(backend, name);
    Setup::new(format!("{tables}{PLUGIN}{PATIENT}"))
        .start()
        .await
}

async fn nodes(backend: &Backend) -> Vec<TestProxy> {
    let mut nodes = Vec::new();
    for name in NAMES {
        nodes.push(node(backend, name).await);
    }
    nodes
}

/// Waits until a node has this version.
async fn has(proxy: &TestProxy, version: &str) {
    eventually(&format!("version {version}"), async || {
        (proxy.admin().plugin("router").await["active"] == version).then_some(())
    })
    .await;
}

async fn all_have(proxies: &[TestProxy], version: &str) {
    for proxy in proxies {
        has(proxy, version).await;
    }
}

/// What a node says of itself and the plugin.
async fn told(proxy: &TestProxy) -> Value {
    let status = proxy.admin().get("/v1/status").await.json();
    status["fleet"]["plugins"]["router"].clone()
}

/// Waits until every node is told of, by name, as in this state.
async fn fleet_is(proxy: &TestProxy, expected: &[(&str, &str)]) {
    eventually(&format!("{expected:?}"), async || {
        let fleet = proxy.admin().get("/v1/fleet").await.json();
        let nodes = fleet["nodes"].as_array().expect("nodes");
        let nodes: Vec<(&str, &str)> = nodes
            .iter()
            .filter_map(|node| Some((node["node"].as_str()?, node["state"].as_str()?)))
            .collect();
        (nodes == expected).then_some(())
    })
    .await;
}

/// Sends requests until told to stop. Any that is not answered as it should be ends the test.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<usize>>,
}

impl Load {
    fn start(addresses: impl IntoIterator<Item = SocketAddr>, port: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |address| {
            let (stop, port) = (Arc::clone(&stop), port.to_owned());
            tokio::spawn(async move {
                let mut client = KeptAlive::connect(address).await.expect("connected");
                let mut pace = tokio::time::interval(REQUEST_EVERY);
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) {
                    pace.tick().await;
                    let request = Request::get("/").field("x-id", "id1");
                    let response = client.send(request.field("x-port", &port)).await;
                    let response = response.expect("no failed request");
                    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
                    count += 1;
                }
                count
            })
        };
        let clients = addresses.into_iter().map(client).collect();
        Self { stop, clients }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            assert!(client.await.expect("no failed request") > 0);
        }
    }
}

/// A map entry, and a version that routes by it, on every node.
async fn first_version(proxies: &[TestProxy]) -> TestUpstream {
    let upstream = TestUpstream::saying("ok").await;
    proxies[0]
        .admin()
        .set("upstreams", "id1", "127.0.0.1")
        .await;
    let version = proxies[0]
        .admin()
        .push_ok("router", fixture("version-a"))
        .await;
    all_have(proxies, &version).await;
    upstream
}

async fn a_push_swaps_every_node_under_load(backend: Backend) {
    let proxies = nodes(&backend).await;
    let upstream = first_version(&proxies).await;
    let load = Load::start(proxies.iter().map(|proxy| proxy.address), &upstream.port());
    let [one, two, three] = &proxies[..] else {
        panic!("three nodes");
    };
    for (pushed_on, name) in [(two, "version-b"), (three, "version-a"), (one, "version-b")] {
        let version = pushed_on.admin().push_ok("router", fixture(name)).await;
        all_have(&proxies, &version).await;
    }
    let back = two.admin().post("/v1/plugins/router/rollback", "").await;
    assert_eq!(back.status, 200, "{}", back.text());
    let version = sha256(&fixture("version-a"));
    all_have(&proxies, &version).await;
    fleet_is(one, &[("one", "ok"), ("three", "ok"), ("two", "ok")]).await;
    load.end().await;
    let fetched = two.admin().metric("throwbar_fleet_fetches_total").await;
    assert!(fetched >= 1.0, "{fetched}");
    let errors = two.admin().metric("throwbar_fleet_step_errors_total").await;
    assert_eq!(errors, 0.0);
}

async fn a_share_of_a_canary_reaches_every_node(backend: Backend) {
    let proxies = nodes(&backend).await;
    let upstream = first_version(&proxies).await;
    let load = Load::start(proxies.iter().map(|proxy| proxy.address), &upstream.port());
    let path = "/v1/plugins/router?canary=5&by=header:x-id";
    let begun = proxies[0].admin().put(path, fixture("version-b")).await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let share_is = async |percent: Option<f64>| {
        for proxy in &proxies {
            eventually(&format!("a share of {percent:?}"), async || {
                let canary = proxy.admin().plugin("router").await["canary"].clone();
                (canary["percent"].as_f64() == percent).then_some(())
            })
            .await;
        }
    };
    share_is(Some(5.0)).await;
    let grown = proxies[1].admin().put(CANARY, "{\"percent\": 100}").await;
    assert_eq!(grown.status, 200, "{}", grown.text());
    share_is(Some(100.0)).await;
    for proxy in &proxies {
        let fields = [("x-id", "id1"), ("x-port", &*upstream.port())];
        assert_eq!(proxy.get("/", &fields).await.header("x-version"), "b");
    }
    let promoted = proxies[2]
        .admin()
        .post(&format!("{CANARY}/promote"), "")
        .await;
    assert_eq!(promoted.status, 200, "{}", promoted.text());
    share_is(None).await;
    all_have(&proxies, &sha256(&fixture("version-b"))).await;
    load.end().await;
}

async fn a_node_that_refuses_a_version_stays_and_says_so(backend: Backend) {
    let (one, two) = (node(&backend, "one").await, node(&backend, "two").await);
    // Its plugin may not use the bucket.
    let granted = "buckets = { upstreams = \"read\" }\n";
    let tables = tables(&backend, "three");
    let refusing = Setup::new(format!("{tables}{}{PATIENT}", PLUGIN.replace(granted, "")));
    let text = refusing.text();
    let three = refusing.start().await;
    let count = one.admin().push_ok("router", fixture("count")).await;
    for proxy in [&one, &two, &three] {
        has(proxy, &count).await;
    }
    let version = two.admin().push_ok("router", fixture("version-a")).await;
    has(&one, &version).await;
    fleet_is(&one, &[("one", "ok"), ("three", "failed"), ("two", "ok")]).await;
    assert_eq!(
        three.admin().plugin("router").await["active"],
        count.as_str()
    );
    assert_eq!(three.get("/", &[]).await.status, 200, "it counts");
    let reason = told(&three).await["reason"].to_string();
    assert!(reason.contains("upstreams"), "{reason}");
    assert_eq!(
        three.admin().metric("throwbar_fleet_plugin_failed").await,
        1.0
    );
    let shown = fleet_status(&one, &[]).await;
    assert_eq!(shown.code, 1, "{}", shown.stderr);
    assert!(
        shown.stderr.contains("of 3 nodes: 1 failed"),
        "{}",
        shown.stderr
    );
    let line = shown
        .stdout
        .lines()
        .find(|line| line.starts_with("three: "));
    let expected = format!("three: plugin router failed, has {}", &count[..12]);
    assert!(
        line.is_some_and(|line| line.starts_with(&expected)),
        "{}",
        shown.stdout
    );
    // Its config is corrected.
    let put = three.admin().put("/v1/config", with_grant(&text)).await;
    assert_eq!(put.status, 200, "{}", put.text());
    has(&three, &version).await;
    let shown = fleet_status(&one, &["--wait", "30s"]).await;
    assert_eq!(shown.code, 0, "{}{}", shown.stdout, shown.stderr);
}

fn with_grant(text: &str) -> String {
    text.replace(
        "[plugins.router]\n",
        "[plugins.router]\nbuckets = { upstreams = \"read\" }\n",
    )
}

/// `throwbar fleet status` of a node, with more arguments.
async fn fleet_status(proxy: &TestProxy, more: &[&str]) -> crate::harness::proxy::Ended {
    proxy.run(&[&["fleet", "status"], more].concat()).await
}

async fn of_two_pushes_at_once_one_wins(backend: Backend) {
    let (one, two) = (node(&backend, "one").await, node(&backend, "two").await);
    let first = one.admin().push_ok("router", fixture("count")).await;
    has(&two, &first).await;
    let (admins, versions) = ([one.admin(), two.admin()], ["version-a", "version-b"]);
    let (first, second) = tokio::join!(
        admins[0].push("router", fixture(versions[0])),
        admins[1].push("router", fixture(versions[1]))
    );
    let taken: Vec<usize> = [&first, &second]
        .iter()
        .enumerate()
        .filter_map(|(index, answer)| (answer.status == 200).then_some(index))
        .collect();
    for refused in [&first, &second]
        .iter()
        .filter(|answer| answer.status != 200)
    {
        assert_eq!(refused.status, 409, "{}", refused.text());
        let (code, text) = (refused.json()["code"].clone(), refused.text());
        match code.as_str() {
            Some("fleet-disagrees") => {
                assert!(text.contains("was agreed on, by admin"), "{text}");
            }
            // It was just taking what the other one had pushed.
            code => assert_eq!(code, Some("busy"), "{text}"),
        }
    }
    // Or both, one after the other, if compiling took one of them so much longer.
    let last = *taken.last().expect("one of them");
    let winner = match taken.len() {
        1 => sha256(&fixture(versions[last])),
        _ => {
            // Each knows at least of its own.
            let [one, two] = [admins[0].get("/v1/fleet"), admins[1].get("/v1/fleet")];
            let agreed =
                [one.await, two.await].map(|fleet| fleet.json()["plugins"]["router"].clone());
            let newest = agreed
                .iter()
                .max_by_key(|agreed| agreed["revision"].as_u64());
            let active = newest.and_then(|agreed| agreed["active"].as_str());
            active.expect("a version").to_owned()
        }
    };
    all_have(&[one, two], &winner).await;
}

async fn a_node_that_was_killed_vanishes_and_comes_back_to_what_was_agreed_on(backend: Backend) {
    let mut proxies = nodes(&backend).await;
    first_version(&proxies).await;
    fleet_is(
        &proxies[0],
        &[("one", "ok"), ("three", "ok"), ("two", "ok")],
    )
    .await;
    proxies[2].kill().await;
    let version = proxies[0]
        .admin()
        .push_ok("router", fixture("version-b"))
        .await;
    has(&proxies[1], &version).await;
    fleet_is(&proxies[0], &[("one", "ok"), ("two", "ok")]).await;
    proxies[2].start_again().await;
    // Not only soon: it had it before it served.
    assert_eq!(
        proxies[2].admin().plugin("router").await["active"],
        version.as_str()
    );
    fleet_is(
        &proxies[1],
        &[("one", "ok"), ("three", "ok"), ("two", "ok")],
    )
    .await;
}

async fn a_node_that_ends_takes_only_itself_out(backend: Backend) {
    let one = node(&backend, "one").await;
    let mut same = node(&backend, "one").await;
    fleet_is(&one, &[("one", "own")]).await;
    same.signal(rustix::process::Signal::TERM);
    same.ended().await;
    let status = fleet_status(&one, &["--wait", "10s"]).await;
    assert_eq!(status.code, 0, "{}{}", status.stdout, status.stderr);
    fleet_is(&one, &[("one", "own")]).await;
}

async fn without_the_backend_nothing_is_pushed_and_everything_is_served(mut backend: Backend) {
    let (one, two) = (node(&backend, "one").await, node(&backend, "two").await);
    let proxies = [one, two];
    let upstream = first_version(&proxies).await;
    let load = Load::start(proxies.iter().map(|proxy| proxy.address), &upstream.port());
    backend.server.kill().await;
    let refused = proxies[0]
        .admin()
        .push("router", fixture("version-b"))
        .await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    // Nobody knows how the other one is.
    let status = fleet_status(&proxies[0], &[]).await;
    assert_eq!(status.code, 1, "{}{}", status.stdout, status.stderr);
    let lost = "node \"one\" has lost the others";
    assert!(status.stderr.contains(lost), "{}", status.stderr);
    let fleet = proxies[0].admin().get("/v1/fleet").await.json();
    let states = fleet["nodes"].as_array().expect("nodes").iter();
    let other = states.filter(|node| node["node"] == "two");
    for node in other {
        assert_eq!(node["state"], "unknown", "{node}");
    }
    let before = sha256(&fixture("version-a"));
    all_have(&proxies, &before).await;
    backend.server.start_again().await;
    let version = sha256(&fixture("version-b"));
    eventually("a push that is taken", async || {
        let pushed = proxies[1]
            .admin()
            .push("router", fixture("version-b"))
            .await;
        (pushed.status == 200).then_some(())
    })
    .await;
    all_have(&proxies, &version).await;
    load.end().await;
}

async fn on(engine: Engine) -> Option<Backend> {
    let server = Server::start(engine).await?;
    Some(Backend { engine, server })
}

on_both! {
    a_push_swaps_every_node_under_load,
    a_share_of_a_canary_reaches_every_node,
    a_node_that_refuses_a_version_stays_and_says_so,
    of_two_pushes_at_once_one_wins,
    a_node_that_was_killed_vanishes_and_comes_back_to_what_was_agreed_on,
    a_node_that_ends_takes_only_itself_out,
    without_the_backend_nothing_is_pushed_and_everything_is_served,
}
