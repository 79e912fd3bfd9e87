//! What belongs to a version goes with it: writes, migrated data, and what the guard found.

use super::{Backend, PLUGIN, all_have, first_version, fleet_is, has, node, on, tables};
use crate::harness::client::KeptAlive;
use crate::harness::clock::can_be_set;
use crate::harness::proxy::PATIENT;
use crate::harness::servers::Engine;
use crate::harness::{Admin, Request, Setup, TestProxy, eventually, fixture, sha256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

async fn writes_and_a_version_are_agreed_on_in_one_transaction(backend: Backend) {
    let proxies = [node(&backend, "one").await, node(&backend, "two").await];
    let _upstream = first_version(&proxies).await;
    let [one, two] = proxies.each_ref().map(TestProxy::admin);
    let component = STANDARD.encode(fixture("version-b"));
    let with = |id: &str, if_revision: u64| {
        let write = json!({ "key": id, "value": "127.0.0.1", "if_revision": if_revision });
        json!({
            "writes": { "upstreams": { "writes": [write] } },
            "activate": { "plugin": "router", "component": { "base64": component } },
        })
    };
    // What it requires does not hold: nobody hears of the version.
    let refused = one
        .post("/v1/batch", with("id2", 1_000_000).to_string())
        .await;
    assert!(matches!(refused.status, 409 | 412), "{}", refused.text());
    let agreed = || async { two.get("/v1/fleet").await.json()["plugins"]["router"].clone() };
    let before = sha256(&fixture("version-a"));
    assert_eq!(agreed().await["active"], before.as_str());
    let done = one.post("/v1/batch", with("id2", 0).to_string()).await;
    assert_eq!(done.status, 200, "{}", done.text());
    all_have(&proxies, &sha256(&fixture("version-b"))).await;
    let written = two.get("/v1/kv/upstreams/id2").await;
    let revision = written.header("etag").trim_matches('"').to_owned();
    assert_eq!(agreed().await["revision"].to_string(), revision);
    assert_eq!(done.json()["revision"].to_string(), revision);
}

/// Keeps notes that all nodes share.
pub(super) async fn with_notes(backend: &Backend, name: &str) -> TestProxy {
    setup_with_notes(backend, name).start().await
}

fn setup_with_notes(backend: &Backend, name: &str) -> Setup {
    let engine = backend.engine.name();
    let rest = format!(
        "{}[buckets.notes]\nbackend = \"{engine}\"\nvalues = \"bytes\"\n\
         [plugins.notes]\nbuckets = {{ notes = \"write\" }}\nlimits = {{ deadline = \"5s\" }}\n\
         [[route]]\nname = \"notes\"\nplugin = \"notes\"\n",
        tables(backend, name)
    );
    Setup::new(rest)
}

async fn data_that_all_nodes_share_are_migrated_once(backend: Backend) {
    migrated_once([
        with_notes(&backend, "one").await,
        with_notes(&backend, "two").await,
        with_notes(&backend, "three").await,
    ])
    .await;
}

/// Of two activations on different nodes no clock says which came first.
async fn data_are_migrated_once_though_the_clocks_of_nodes_differ(backend: Backend) {
    if !can_be_set() {
        return;
    }
    let node = async |name: &str, hours: i64| {
        let text = setup_with_notes(&backend, name).text();
        TestProxy::start_with_clock(&text, hours * 3600).await
    };
    migrated_once([
        node("one", 0).await,
        node("two", 7).await,
        node("three", -70).await,
    ])
    .await;
}

async fn migrated_once(proxies: [TestProxy; 3]) {
    let [one, two, _] = proxies.each_ref().map(TestProxy::admin);
    let all_have = async |guest: &str| {
        let version = sha256(&fixture(guest));
        for proxy in &proxies {
            eventually(guest, async || {
                (proxy.admin().plugin("notes").await["active"] == *version).then_some(())
            })
            .await;
        }
    };
    one.push_ok("notes", fixture("notes-1")).await;
    all_have("notes-1").await;
    for note in 0..20 {
        one.set("notes", &format!("id{note}"), &format!("v1:text{note}"))
            .await;
    }
    let mut runs = Vec::new();
    for (admin, guest, before) in [(&two, "notes-2", "notes-1"), (&one, "notes-3", "notes-2")] {
        let pushed = admin.push("notes", fixture(guest)).await;
        assert_eq!(pushed.status, 200, "{}", pushed.text());
        assert!(
            pushed.json()["migrated"]["written"].as_u64() >= Some(20),
            "{}",
            pushed.text()
        );
        all_have(guest).await;
        let number = guest.trim_start_matches("notes-");
        runs.push(format!("{number}<{} ", &sha256(&fixture(before))[..12]));
        for proxy in &proxies {
            // Each node has them when it was told of the version's last write.
            eventually("a note in its form", async || {
                let answer = proxy.get("/", &[("x-id", "id7")]).await;
                (answer.status == 200 && answer.text() == "text7").then_some(())
            })
            .await;
        }
    }
    assert_eq!(one.get("/v1/kv/notes/runs").await.text(), runs.concat());
}

async fn what_the_guard_of_one_node_takes_back_all_take_back(backend: Backend) {
    let guard = "\n[plugins.router.guard]\nwindow = \"30s\"\nmin_calls = 20\nerror_rate = 0.01\n";
    let mut proxies = Vec::new();
    for name in ["one", "two"] {
        let tables = tables(&backend, name);
        let setup = Setup::new(format!("{tables}{PLUGIN}{PATIENT}{guard}"));
        proxies.push(setup.start().await);
    }
    let _upstream = first_version(&proxies).await;
    let (one, two) = (&proxies[0], &proxies[1]);
    let version = one.admin().push_ok("router", fixture("trap")).await;
    has(two, &version).await;
    let mut client = KeptAlive::connect(one.address).await.expect("connected");
    for _ in 0..40 {
        let request = Request::get("/").field("x-id", "id1").field("x-trap", "1");
        client.send(request).await.expect("a response");
    }
    all_have(&proxies, &sha256(&fixture("version-a"))).await;
    for proxy in &proxies {
        let failing = async |admin: Admin| {
            let plugin = admin.plugin("router").await;
            let failing = plugin["failing"].as_array().expect("a list").clone();
            failing
                .iter()
                .any(|one| one["version"] == version)
                .then_some(())
        };
        eventually("it is remembered", async || failing(proxy.admin()).await).await;
    }
    let fleet = two.admin().get("/v1/fleet").await.json();
    assert_eq!(fleet["plugins"]["router"]["by"], "guard");
    fleet_is(two, &[("one", "ok"), ("two", "ok")]).await;
    let again = two.admin().push("router", fixture("trap")).await;
    assert_eq!(again.status, 409, "{}", again.text());
}

on_both! {
    writes_and_a_version_are_agreed_on_in_one_transaction,
    data_that_all_nodes_share_are_migrated_once,
    data_are_migrated_once_though_the_clocks_of_nodes_differ,
    what_the_guard_of_one_node_takes_back_all_take_back,
}
