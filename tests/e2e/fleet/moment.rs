//! Writes and a version, agreed on in one step: both or neither, and on no node one without the other.

use super::together::with_notes;
use super::{Backend, PLUGIN, first_version, fleet_status, has, node, on, tables, told};
use crate::harness::client::KeptAlive;
use crate::harness::proxy::PATIENT;
use crate::harness::servers::Engine;
use crate::harness::{Request, Setup, TestProxy, eventually, fixture, not_tested, sha256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const NOTES: usize = 20;
const ROUNDS: usize = 8;

/// Every note in the form of a version.
fn notes_of(version: u32) -> Value {
    let note = |note| (format!("id{note}"), json!(format!("v{version}:text{note}")));
    Value::Object((0..NOTES).map(note).collect())
}

fn component(guest: &str) -> Value {
    json!({ "base64": STANDARD.encode(fixture(guest)) })
}

/// Reads notes until told to stop: each is answered by a version that knows its form.
async fn read(address: SocketAddr, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut client = KeptAlive::connect(address).await.expect("connected");
    let mut versions = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let note = versions.len() % NOTES;
        let request = Request::get("/").field("x-id", &format!("id{note}"));
        let response = client.send(request).await.expect("a response");
        let (status, text) = (response.status, response.text());
        assert_eq!((status, text), (200, format!("text{note}")));
        versions.push(response.header("x-version").to_owned());
    }
    versions
}

async fn no_request_on_any_node_sees_one_without_the_other(backend: Backend) {
    let proxies = [
        with_notes(&backend, "one").await,
        with_notes(&backend, "two").await,
        with_notes(&backend, "three").await,
    ];
    let admins = proxies.each_ref().map(TestProxy::admin);
    let all_have = async |guest: &str| {
        let version = sha256(&fixture(guest));
        for admin in &admins {
            eventually(guest, async || {
                (admin.plugin("notes").await["active"] == *version).then_some(())
            })
            .await;
        }
    };
    let body = |guest: &str, writes: Value| {
        let activate = json!({ "plugin": "notes", "component": component(guest) });
        json!({ "writes": { "notes": { "set": writes } }, "activate": activate }).to_string()
    };
    // The first of all has its writes, too.
    let done = admins[0]
        .post("/v1/batch", body("notes-1", notes_of(1)))
        .await;
    assert_eq!(done.status, 201, "{}", done.text());
    all_have("notes-1").await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = proxies
        .iter()
        .map(|proxy| tokio::spawn(read(proxy.address, Arc::clone(&stop))))
        .collect();
    for round in 0..ROUNDS {
        let admin = &admins[round % 3];
        // One brings its data with it, the other makes them of what is there.
        let guest = ["notes-2", "notes-1"][round % 2];
        let done = match guest {
            "notes-1" => admin.post("/v1/batch", body(guest, notes_of(1))).await,
            _ => admin.push("notes", fixture(guest)).await,
        };
        assert_eq!(done.status, 200, "round {round}: {}", done.text());
        assert!(done.json()["revision"].is_u64(), "{}", done.text());
        all_have(guest).await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let seen = reader.await.expect("no note without its version");
        assert!(seen.contains(&"1".to_owned()) && seen.contains(&"2".to_owned()));
    }
}

async fn writes_elsewhere_are_refused_and_nothing_is_done(backend: Backend) {
    let tables = tables(&backend, "one");
    let own = "[buckets.own]\nbackend = \"memory\"\n";
    let proxy = Setup::new(format!("{tables}{own}{PLUGIN}{PATIENT}"));
    let proxy = proxy.start().await;
    let _upstream = first_version(std::slice::from_ref(&proxy)).await;
    let admin = proxy.admin();
    let before = admin.get("/v1/fleet").await.json()["plugins"].clone();
    let body = json!({
        "writes": { "upstreams": { "set": { "id2": "127.0.0.2" } }, "own": { "set": { "id2": "127.0.0.2" } } },
        "activate": { "plugin": "router", "component": component("version-b") },
    });
    for body in [
        body.clone(),
        json!({ "writes": { "own": body["writes"]["own"] }, "activate": body["activate"] }),
    ] {
        let refused = admin.post("/v1/batch", body.to_string()).await;
        assert_eq!(refused.status, 422, "{}", refused.text());
        assert_eq!(refused.json()["code"], "several-backends");
        let text = refused.text();
        assert!(text.contains("own") && text.contains("memory"), "{text}");
    }
    for bucket in ["own", "upstreams"] {
        let path = format!("/v1/kv/{bucket}/id2");
        assert_eq!(admin.get(&path).await.status, 404);
    }
    assert_eq!(admin.get("/v1/fleet").await.json()["plugins"], before);
    assert_eq!(
        admin.plugin("router").await["active"],
        sha256(&fixture("version-a"))
    );
}

async fn a_node_that_cannot_load_the_version_says_so_and_has_the_writes(backend: Backend) {
    let (one, two) = (node(&backend, "one").await, node(&backend, "two").await);
    // Its plugin may not use the bucket.
    let granted = "buckets = { upstreams = \"read\" }\n";
    let tables = tables(&backend, "three");
    let refusing = Setup::new(format!("{tables}{}{PATIENT}", PLUGIN.replace(granted, "")));
    let three = refusing.start().await;
    let count = one.admin().push_ok("router", fixture("count")).await;
    for proxy in [&one, &two, &three] {
        has(proxy, &count).await;
    }
    let body = json!({
        "writes": { "upstreams": { "set": { "id2": "127.0.0.2" } } },
        "activate": { "plugin": "router", "component": component("version-a") },
    });
    let done = two.admin().post("/v1/batch", body.to_string()).await;
    assert_eq!(done.status, 200, "{}", done.text());
    has(&one, &sha256(&fixture("version-a"))).await;
    eventually("it says so", async || {
        let told = told(&three).await;
        let reason = told["reason"].to_string();
        (told["state"] == "failed" && reason.contains("upstreams")).then_some(())
    })
    .await;
    // What others see is not kept from its readers for long.
    let written = three.admin().get("/v1/kv/upstreams/id2").await;
    assert_eq!(written.text(), "127.0.0.2");
    assert_eq!(
        three.admin().plugin("router").await["active"],
        count.as_str()
    );
    assert_eq!(three.get("/", &[]).await.status, 200, "it counts");
}

async fn a_node_that_waits_for_a_version_tells_of_itself_and_what_came_of_other_changes(
    backend: Backend,
) {
    let counting = "[plugins.counting]\nlimits = { deadline = \"2s\" }\n";
    let rest = |name| format!("{}{counting}{PLUGIN}{PATIENT}", tables(&backend, name));
    let one = Setup::new(rest("one")).start().await;
    let mut small = Setup::new(rest("small"));
    // What it does not fetch it waits for: of these, the version of the router.
    let admin = "[admin]\ncomponent_bytes_max = \"64KiB\"\n";
    small.frame = small.frame.replace("[admin]\n", admin);
    let small = small.start().await;
    let (first, admin) = (fixture("count"), small.admin());
    // A section of its own, which no engine reads.
    let with = |byte: u8| [&first[..], &[0, 3, 1, b'v', byte]].concat();
    for component in [first.clone(), with(1)] {
        let version = one.admin().push_ok("counting", component).await;
        eventually("it has the version", async || {
            (admin.plugin("counting").await["active"] == *version).then_some(())
        })
        .await;
    }
    let body = json!({
        "writes": { "upstreams": { "set": { "id2": "127.0.0.2" } } },
        "activate": { "plugin": "router", "component": component("version-a") },
    });
    let done = one.admin().post("/v1/batch", body.to_string()).await;
    assert_eq!(done.status, 201, "{}", done.text());
    // All that is needed is at the backend: the fleet takes it. What is yet to be put there is not agreed on.
    let back = admin.post("/v1/plugins/counting/rollback", "").await;
    let push = admin.push("counting", with(2)).await;
    let both = json!({
        "writes": { "upstreams": { "set": { "id3": "127.0.0.3" } } },
        "activate": { "plugin": "counting", "version": sha256(&with(1)) },
    });
    let both = admin.post("/v1/batch", both.to_string()).await;
    let fleet = admin.get("/v1/status").await.json()["fleet"].clone();
    let others = one.admin().get("/v1/fleet").await.json();
    if admin.get("/v1/kv/upstreams/id2").await.status != 404 {
        return not_tested("this machine took longer than a node waits");
    }
    let later = "fleet-unavailable";
    for (answer, code) in [(back, "not-taken-here"), (push, later), (both, later)] {
        let said = (answer.status, answer.json()["code"].clone());
        assert_eq!(said, (503, json!(code)), "{}", answer.text());
    }
    assert!(fleet["not_told"].is_null(), "{fleet}");
    assert_eq!(fleet["name_taken"], false, "{fleet}");
    let nodes = others["nodes"].as_array().expect("nodes").iter();
    let nodes: Vec<_> = nodes.map(|node| node["node"].clone()).collect();
    assert_eq!(nodes, ["one", "small"]);
    assert_eq!(one.admin().get("/v1/kv/upstreams/id3").await.status, 404);
    eventually("the other has gone back", async || {
        let counting = one.admin().plugin("counting").await;
        (counting["active"] == *sha256(&first)).then_some(())
    })
    .await;
}

async fn who_waits_at_any_node_waits_for_what_was_agreed_on_at_another(backend: Backend) {
    let proxies = [node(&backend, "one").await, node(&backend, "two").await];
    let [one, two] = &proxies;
    let _upstream = first_version(&proxies).await;
    let before = sha256(&fixture("version-a"));
    for version in ["version-b", "version-a"] {
        let body = json!({
            "writes": { "upstreams": { "set": { "id2": format!("{version}.internal") } } },
            "activate": { "plugin": "router", "component": component(version) },
        });
        let done = one.admin().post("/v1/batch", body.to_string()).await;
        assert_eq!(done.status, 200, "{}", done.text());
        // Until it has loaded it, it shows nothing of it.
        let shown = fleet_status(two, &["--wait", "30s"]).await;
        assert_eq!(shown.code, 0, "{}{}", shown.stdout, shown.stderr);
        let version = sha256(&fixture(version));
        assert!(shown.stdout.contains(&version[..12]), "{}", shown.stdout);
        assert_eq!(two.admin().plugin("router").await["active"], version);
    }
    // A node that hears nothing is not believed.
    let mut server = backend.server;
    server.kill().await;
    let shown = fleet_status(two, &["--wait", "1s"]).await;
    assert_eq!(shown.code, 1, "{}{}", shown.stdout, shown.stderr);
    assert!(shown.stdout.contains(&before[..12]), "{}", shown.stdout);
}

async fn what_others_write_meanwhile_fails_both_or_neither(backend: Backend) {
    let (one, two) = (node(&backend, "one").await, node(&backend, "two").await);
    let proxies = [one, two];
    let _upstream = first_version(&proxies).await;
    let [one, two] = proxies.each_ref().map(TestProxy::admin);
    one.set("upstreams", "guard", "127.0.0.1").await;
    let guard = one.get("/v1/kv/upstreams/guard").await;
    let guard: u64 = guard.header("etag").trim_matches('"').parse().expect("one");
    let body = json!({
        "writes": { "upstreams": { "writes": [
            { "key": "guard", "value": "127.0.0.2", "if_revision": guard },
            { "key": "id2", "value": "127.0.0.2" },
        ] } },
        "activate": { "plugin": "router", "component": component("version-b") },
    });
    // The component is there before anything is agreed on: that is when another writes what is required.
    let meddle = async {
        eventually("the component", async || {
            let fleet = one.get("/v1/fleet").await.json();
            let artifacts = fleet["artifacts"].as_array().expect("a list").len();
            (artifacts == 2).then_some(())
        })
        .await;
        two.set("upstreams", "guard", "127.0.0.3").await;
    };
    let (done, ()) = tokio::join!(one.post("/v1/batch", body.to_string()), meddle);
    let written = two.get("/v1/kv/upstreams/id2").await.status;
    let expected = match done.status {
        200 => (200, "version-b"),
        412 => (404, "version-a"),
        other => panic!("{other}: {}", done.text()),
    };
    assert_eq!(written, expected.0, "{}", done.text());
    for proxy in &proxies {
        has(proxy, &sha256(&fixture(expected.1))).await;
    }
    let agreed = two.get("/v1/fleet").await.json()["plugins"]["router"]["active"].clone();
    assert_eq!(agreed, sha256(&fixture(expected.1)));
}

on_both! {
    no_request_on_any_node_sees_one_without_the_other,
    writes_elsewhere_are_refused_and_nothing_is_done,
    a_node_that_cannot_load_the_version_says_so_and_has_the_writes,
    a_node_that_waits_for_a_version_tells_of_itself_and_what_came_of_other_changes,
    who_waits_at_any_node_waits_for_what_was_agreed_on_at_another,
    what_others_write_meanwhile_fails_both_or_neither,
}
