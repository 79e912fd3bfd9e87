//! Writes and an activation in one step: no request sees one without the other.

use super::{read, with_notes, work};
use crate::harness::{Admin, TestProxy, fixture, fixture_path, sha256};
use base64::Engine;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const NOTES: usize = 40;

/// Every note in the form of a version.
fn notes_of(version: u32) -> Value {
    let notes =
        (0..NOTES).map(|note| (format!("id{note}"), json!(format!("v{version}:text{note}"))));
    Value::Object(notes.collect())
}

async fn batch(admin: &Admin, body: &Value) -> (u16, Value) {
    let response = admin.post("/v1/batch", body.to_string()).await;
    (response.status, response.json())
}

fn component(guest: &str) -> Value {
    json!({ "base64": base64::engine::general_purpose::STANDARD.encode(fixture(guest)) })
}

async fn active(proxy: &TestProxy) -> String {
    let plugin = proxy.admin().plugin("notes").await;
    plugin["active"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn no_request_sees_the_writes_without_the_version_or_the_version_without_the_writes() {
    let proxy = with_notes("hold = \"30s\"", NOTES).await;
    let admin = proxy.admin();
    // Beside the notes, so that both versions are kept.
    let (status, told) = batch(
        &admin,
        &json!({ "activate": { "plugin": "notes", "component": component("notes-2") } }),
    )
    .await;
    assert_eq!(status, 200, "{told}");
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4)
        .map(|number| tokio::spawn(work(proxy.address, number, stop.clone())))
        .collect();
    for round in 0..10 {
        // The first has no migration: its data are brought with it. The second brings them itself.
        let (guest, writes) = match round % 2 {
            0 => ("notes-1", notes_of(1)),
            _ => ("notes-2", json!({})),
        };
        let body = json!({
            "writes": { "notes": { "set": writes } },
            "activate": { "plugin": "notes", "version": sha256(&fixture(guest)) }
        });
        let (status, told) = batch(&admin, &body).await;
        assert_eq!(
            (status, &told["outcome"]),
            (200, &"swapped".into()),
            "{told}"
        );
        assert!(told["revision"].is_u64(), "{told}");
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    for worker in workers {
        seen.extend(worker.await.expect("no request failed"));
    }
    assert!(seen.contains(&"1".to_owned()) && seen.contains(&"2".to_owned()));
}

#[tokio::test]
async fn what_is_refused_changes_neither_data_nor_version() {
    let proxy = with_notes("", 1).await;
    let admin = proxy.admin();
    let before = active(&proxy).await;
    let second = json!({ "plugin": "notes", "component": component("notes-2") });
    let trap = json!({ "plugin": "notes", "component": component("trap-init") });
    let set = |value: &str| json!({ "notes": { "set": { "id0": value } } });
    for (what, body, status) in [
        (
            "a conflict",
            json!({ "writes": { "notes": { "writes": [{ "key": "id0", "value": "x", "if_revision": 99 }] } }, "activate": second }),
            412,
        ),
        (
            "no such bucket",
            json!({ "writes": { "nots": { "delete": ["id0"] } }, "activate": second }),
            404,
        ),
        (
            "a version that traps",
            json!({ "writes": set("x"), "activate": trap }),
            422,
        ),
        (
            "no such version",
            json!({ "writes": set("x"), "activate": { "plugin": "notes", "version": "0000" } }),
            404,
        ),
        (
            "no such plugin",
            json!({ "writes": set("x"), "activate": { "plugin": "nots", "version": "0000" } }),
            404,
        ),
        (
            "neither version nor component",
            json!({ "writes": set("x"), "activate": { "plugin": "notes" } }),
            422,
        ),
        ("nothing", json!({}), 422),
        ("a mistake", json!({ "write": {} }), 422),
    ] {
        let (found, told) = batch(&admin, &body).await;
        assert_eq!(found, status, "{what}: {told}");
    }
    let dry = json!({ "writes": set("v2:x"), "activate": second });
    let response = admin.post("/v1/batch?dry_run=true", dry.to_string()).await;
    assert_eq!(
        (response.status, &response.json()["outcome"]),
        (200, &"checked".into())
    );
    assert_eq!(active(&proxy).await, before);
    assert_eq!(read(&proxy, "id0").await, (200, "text0".into(), "1".into()));
}

#[tokio::test]
async fn writes_to_several_buckets_are_one_revision_and_the_active_version_may_stay() {
    let proxy = with_notes("", 1).await;
    let admin = proxy.admin();
    let version = active(&proxy).await;
    let body = json!({
        "writes": { "notes": { "set": { "id0": "v1:new" }, "writes": [{ "key": "count", "increment": 2 }] } },
        "activate": { "plugin": "notes", "version": version }
    });
    let (status, told) = batch(&admin, &body).await;
    assert_eq!(
        (status, &told["outcome"]),
        (200, &"unchanged".into()),
        "{told}"
    );
    assert_eq!(read(&proxy, "id0").await.1, "new");
    let (status, told) = batch(
        &admin,
        &json!({ "writes": { "notes": { "delete": ["id0", "count"] } } }),
    )
    .await;
    assert_eq!((status, &told["deleted"]), (200, &2.into()), "{told}");
}

#[tokio::test]
async fn push_takes_the_writes_that_belong_to_a_version_from_a_file() {
    let proxy = with_notes("", NOTES).await;
    std::fs::write(
        proxy.file("writes.json"),
        json!({ "notes": { "set": { "more": "v2:x" } } }).to_string(),
    )
    .expect("written");
    let push = async |with: &str| {
        let file = fixture_path("notes-2").display().to_string();
        let arguments = ["plugin", "push", "notes", &file, "--with", with];
        proxy.run(&arguments).await
    };
    let missing = push("none.json").await;
    assert!(
        missing.code == 3 && missing.stderr.contains("none.json"),
        "{}",
        missing.stderr
    );
    let pushed = push("writes.json").await;
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    assert!(
        pushed.stdout.contains("changed together, at revision "),
        "{}",
        pushed.stdout
    );
    assert_eq!(read(&proxy, "more").await, (200, "x".into(), "2".into()));
    assert_eq!(read(&proxy, "id1").await, (200, "text1".into(), "2".into()));
}

#[tokio::test]
async fn a_kept_version_is_activated_with_the_writes_of_a_file() {
    let proxy = with_notes("", NOTES).await;
    let throwbar = async |arguments: &[&str]| proxy.run(&[&["plugin"], arguments].concat()).await;
    let second = fixture_path("notes-2").display().to_string();
    throwbar(&["push", "notes", &second]).await.ok();
    let newer = active(&proxy).await;
    let writes = json!({ "notes": { "set": notes_of(1) } });
    std::fs::write(proxy.file("writes.json"), writes.to_string()).expect("written");
    let first = sha256(&fixture("notes-1"));
    let activate = ["activate", "notes", &first[..12], "--with", "writes.json"];
    // Alone, and with the writes.
    for tried in [&activate[..3], &activate] {
        let tried = [tried, &["--dry-run", "--force"]].concat();
        let tried = throwbar(&tried).await.ok();
        assert!(tried.contains("nothing changed"), "{tried}");
        assert_eq!(active(&proxy).await, newer);
        assert_eq!(read(&proxy, "id1").await, (200, "text1".into(), "2".into()));
    }
    let done = throwbar(&activate).await.ok();
    assert!(done.contains("changed together, at revision "), "{done}");
    assert_eq!(active(&proxy).await, first);
    assert_eq!(read(&proxy, "id1").await, (200, "text1".into(), "1".into()));
    let nowhere = r#"{"nobody": {"set": {"k": "v"}}}"#;
    std::fs::write(proxy.file("writes.json"), nowhere).expect("written");
    throwbar(&activate).await.refused(3, "nobody");
}
