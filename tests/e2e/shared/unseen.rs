//! What is written and not seen in time: the server takes writes, and its log comes through late.
//!
//! With Redis only: there the log has a connection of its own, which can be held back by itself.

use super::*;
use crate::harness::relay::Relay;
use crate::harness::{TestProxy, fixture, fixture_path, sha256};

/// A proxy on a Redis whose log can be held back, with these tables beside; none, with a loud line, if there is none.
async fn proxy(tables: &str) -> Option<(TestProxy, Relay, Server)> {
    let server = Server::start(Engine::Redis).await?;
    // Whoever reads the log says so.
    let relay = Relay::start_that_holds(server.address(), Some("XREAD")).await;
    let config = server.config().replace("3s", "1s");
    let config = config.replace(&server.address(), relay.address());
    let setup = Setup::new(format!("{config}{tables}")).workers(1);
    Some((setup.start().await, relay, server))
}

#[tokio::test]
async fn what_a_request_or_an_opening_has_written_is_no_refusal_though_it_is_not_seen() {
    let source = fixture_path("sessions-a");
    let (upstream, _closes) = websocket::echo().await;
    let tables = format!(
        "[buckets.upstreams]\nbackend = \"redis\"\n[upstreams.echo]\nendpoints = [\"{}\"]\n\
         [plugins.agents]\nsource = \"builtin:self-register\"\nbuckets = {{ upstreams = \"write\" }}\n\
         settings = {{ secret = \"a-secret-of-some-length\" }}\nlimits = {{ deadline = \"2s\" }}\n\
         [plugins.chat]\nsource = \"{}\"\nbuckets = {{ upstreams = \"write\" }}\nlimits = {{ deadline = \"2s\" }}\n\
         [[route]]\nmatch = {{ path = \"/_throwbar/*\" }}\nplugin = \"agents\"\n[[route]]\nplugin = \"chat\"\n",
        upstream.address,
        source.display()
    );
    let Some((proxy, relay, _server)) = proxy(&tables).await else {
        return;
    };
    let admin = proxy.admin();
    relay.hold(true);
    let announced = Request::new("PUT", "/_throwbar/agents/agent-7")
        .field("authorization", "Bearer a-secret-of-some-length")
        .field("x-address", "127.0.0.1");
    let announced = proxy.send(announced).await;
    assert_eq!(announced.status, 201, "{}", announced.text());
    let mut socket = websocket::open(proxy.address, &[("x-announce", "id1")]).await;
    socket.echo("opened").await;
    for key in ["agent-7", "id1"] {
        let path = format!("/v1/kv/upstreams/{key}");
        assert_eq!(admin.get(&path).await.status, 404, "it was to be held back");
    }
    for plugin in ["agents", "chat"] {
        // The guard counts these.
        let calls = &admin.plugin(plugin).await["versions"][0];
        let refused = &calls["errors_by_kind"]["refused_write"];
        assert_eq!(
            (&calls["calls"], refused),
            (&json!(1), &json!(0)),
            "{calls}"
        );
    }
    relay.hold(false);
    for key in ["agent-7", "id1"] {
        has(
            &admin,
            &format!("/v1/kv/upstreams/{key}"),
            Some("127.0.0.1"),
        )
        .await;
    }
    socket.echo("still").await;
}

const NOTES: &str = r#"
[buckets.notes]
backend = "redis"
values = "bytes"
[plugins.notes]
buckets = { notes = "write" }
limits = { deadline = "5s" }
[[route]]
plugin = "notes"
"#;

/// A proxy with a note in the form of the first version, and a second one pushed whose data do not come through.
async fn with_late_version() -> Option<(TestProxy, Relay, Server)> {
    let (proxy, relay, server) = proxy(NOTES).await?;
    let admin = proxy.admin();
    admin.push_ok("notes", fixture("notes-1")).await;
    admin.set("notes", "id1", "v1:text1").await;
    relay.hold(true);
    let pushed = admin.push("notes", fixture("notes-2")).await;
    assert_eq!(pushed.status, 503, "{}", pushed.text());
    let (code, detail) = (pushed.json()["code"].clone(), pushed.text());
    assert_eq!(code, "unseen", "{detail}");
    assert!(detail.contains("the version takes over"), "{detail}");
    Some((proxy, relay, server))
}

async fn is_active(proxy: &TestProxy, guest: &str) {
    eventually("it is active", async || {
        let active = proxy.admin().plugin("notes").await["active"].clone();
        (active == *sha256(&fixture(guest))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_version_whose_data_come_late_is_told_so_and_takes_over_once_they_are_there() {
    let Some((proxy, relay, _server)) = with_late_version().await else {
        return;
    };
    let again = proxy.admin().push("notes", fixture("notes-3")).await;
    let code = again.json()["code"].clone();
    assert_eq!((again.status, code), (409, json!("busy")));
    let reads = async || proxy.get("/", &[("x-id", "id1")]).await;
    // Who decides knows the data that are seen.
    let answer = reads().await;
    let (version, text) = (answer.header("x-version"), answer.text());
    assert_eq!((version, &*text), ("1", "text1"));
    relay.hold(false);
    eventually("it takes over", async || {
        let answer = reads().await;
        assert_eq!((answer.status, &*answer.text()), (200, "text1"));
        (answer.header("x-version") == "2").then_some(())
    })
    .await;
    is_active(&proxy, "notes-2").await;
}

#[tokio::test]
async fn a_proxy_that_ends_before_the_data_come_has_the_version_when_it_starts_again() {
    let Some((mut proxy, relay, _server)) = with_late_version().await else {
        return;
    };
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.ended().await.success());
    relay.hold(false);
    proxy.start_again().await;
    is_active(&proxy, "notes-2").await;
    let answer = proxy.get("/", &[("x-id", "id1")]).await;
    assert_eq!((answer.status, &*answer.text()), (200, "text1"));
}
