//! Data that a version brings into its form before it is activated: all of them, once, in the moment in which it takes over.

use crate::harness::client::KeptAlive;
use crate::harness::websocket;
use crate::harness::{Admin, Request, TestProxy, fixture, fixture_path, sha256};
use serde_json::Value;
mod batch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Keeps notes on disk; without a version.
async fn proxy(migration: &str) -> TestProxy {
    let config = format!(
        "[buckets.notes]\nvalues = \"bytes\"\n\
         [plugins.notes]\nbuckets = {{ notes = \"write\" }}\nlimits = {{ deadline = \"2s\" }}\n\
         [plugins.notes.migration]\n{migration}\n\
         [[route]]\nname = \"notes\"\nplugin = \"notes\"\n"
    );
    TestProxy::start(&config).await
}

/// With `notes-1` active, and as many notes.
async fn with_notes(migration: &str, notes: usize) -> TestProxy {
    let proxy = proxy(migration).await;
    let admin = proxy.admin();
    admin.push_ok("notes", fixture("notes-1")).await;
    let lines: String = (0..notes)
        .map(|note| format!("id{note} v1:text{note}\n"))
        .collect();
    let import = Request::post("/v1/kv/notes/import", lines).field("content-type", "text/plain");
    let imported = admin.send(import).await;
    assert_eq!(imported.status, 200, "{}", imported.text());
    proxy
}

async fn order(admin: &Admin, order: &str) {
    admin.set("notes", "order", order).await;
}

/// What the version says of a note, and which version it is.
async fn read(proxy: &TestProxy, id: &str) -> (u16, String, String) {
    let response = proxy.get("/", &[("x-id", id)]).await;
    let text = response.text();
    let version = response.headers.get("x-version");
    let version = version.and_then(|version| version.to_str().ok());
    (
        response.status,
        text,
        version.unwrap_or_default().to_owned(),
    )
}

/// The words that migrations left.
async fn runs(admin: &Admin) -> String {
    let entry = admin.get("/v1/kv/notes/runs").await;
    match entry.status {
        200 => entry.text(),
        _ => String::new(),
    }
}

async fn push(admin: &Admin, guest: &str, query: &str) -> (u16, Value) {
    let path = format!("/v1/plugins/notes{query}");
    let response = admin.put(&path, fixture(guest)).await;
    (response.status, response.json())
}

/// Reads and writes notes until told to stop: each is answered by a version that knows it.
async fn work(address: std::net::SocketAddr, number: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut client = KeptAlive::connect(address).await.expect("connected");
    let mut versions = Vec::new();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut request = Request::get("/").field("x-id", &format!("id{}", (round + number) % 40));
        if round % 10 == number % 10 {
            request = request.field("x-put", &format!("text of {number}, {round}"));
        }
        let response = client.send(request).await.expect("a response");
        assert_eq!(response.status, 200, "{}", response.text());
        versions.push(response.header("x-version").to_owned());
    }
    versions
}

#[tokio::test]
async fn no_request_meets_data_of_another_version() {
    let proxy = with_notes("hold = \"30s\"", 2_000).await;
    let admin = proxy.admin();
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4)
        .map(|number| tokio::spawn(work(proxy.address, number, stop.clone())))
        .collect();
    for round in 0..12 {
        let guest = ["notes-2", "notes-3"][round % 2];
        let (status, told) = push(&admin, guest, "").await;
        assert_eq!(status, 200, "{told}");
        assert_eq!(told["migrated"]["written"], 2_001, "{told}");
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    for worker in workers {
        seen.extend(worker.await.expect("no request failed"));
    }
    assert!(seen.contains(&"2".to_owned()) && seen.contains(&"3".to_owned()));
    let words = runs(&admin).await;
    assert_eq!(words.split_whitespace().count(), 12, "each once: {words}");
    // What is refused anew is no failure of the plugin.
    assert_eq!(
        admin
            .metric("throwbar_plugin_calls_total{plugin=\"notes\",outcome=\"refused_write\"}")
            .await,
        0.0
    );
}

#[tokio::test]
async fn the_first_version_and_every_other_one_migrates_once_and_a_restart_does_not() {
    let mut proxy = proxy("").await;
    let admin = proxy.admin();
    let (status, told) = push(&admin, "notes-2", "").await;
    assert_eq!(
        (status, &told["migrated"]["from"]),
        (201, &Value::Null),
        "{told}"
    );
    let second = sha256(&fixture("notes-2"));
    admin.set("notes", "id1", "v2:text").await;
    admin.set("notes", "id2", "v2:gone").await;
    let (_, told) = push(&admin, "notes-3", "").await;
    assert_eq!(told["migrated"]["from"], second.as_str());
    // Of the notes one, and the word of the run.
    assert_eq!(
        (&told["migrated"]["written"], &told["migrated"]["deleted"]),
        (&2.into(), &1.into())
    );
    assert_eq!(read(&proxy, "id1").await, (200, "text".into(), "3".into()));
    assert_eq!(read(&proxy, "id2").await.0, 404);
    let third = sha256(&fixture("notes-3"));
    let expected = format!("2<none 3<{} ", &second[..12]);
    assert_eq!(runs(&admin).await, expected);
    let (_, told) = push(&admin, "notes-3", "").await;
    assert_eq!(told["outcome"], "unchanged");
    proxy.kill().await;
    proxy.start_again().await;
    let admin = proxy.admin();
    assert_eq!(
        (runs(&admin).await, read(&proxy, "id1").await.0),
        (expected.clone(), 200)
    );
    // Back again: it is another version, too.
    let back = admin.post("/v1/plugins/notes/rollback", "").await;
    assert_eq!(
        back.json()["migrated"]["from"],
        third.as_str(),
        "{}",
        back.text()
    );
    assert_eq!(read(&proxy, "id1").await, (200, "text".into(), "2".into()));
    proxy.says("data are migrated").await;
}

#[tokio::test]
async fn a_migration_that_fails_changes_nothing_and_says_why() {
    let proxy = with_notes("deadline = \"300ms\"\nwrites = 60", 50).await;
    let admin = proxy.admin();
    for (word, status, code, reason) in [
        ("refuse this", 422, "migrate", "asked to refuse this"),
        ("trap", 422, "migrate", "trap: "),
        ("spin", 422, "migrate", "deadline of 300ms exceeded"),
        ("many 60", 422, "migrate", "more than 60 writes in one call"),
    ] {
        order(&admin, word).await;
        let before = admin.get("/v1/kv/notes").await.json();
        for query in ["", "?dry_run=true"] {
            let (got, problem) = push(&admin, "notes-2", query).await;
            assert_eq!(
                (got, &problem["code"]),
                (status, &code.into()),
                "{word}: {problem}"
            );
            let detail = problem["detail"].as_str().unwrap_or_default();
            assert!(detail.contains(reason), "{word}: {detail}");
        }
        assert_eq!(admin.get("/v1/kv/notes").await.json(), before, "{word}");
        assert_eq!(read(&proxy, "id1").await, (200, "text1".into(), "1".into()));
    }
    let component = fixture_path("notes-2");
    let arguments = [
        "plugin",
        "push",
        "notes",
        component.to_str().expect("a path"),
    ];
    let ended = proxy.run(&arguments).await;
    assert_ne!(ended.code, 0);
    assert!(
        ended.stderr.contains("more than 60 writes"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("nothing changed"), "{}", ended.stderr);
    // By force it is active on data that it does not know.
    let (status, told) = push(&admin, "notes-2", "?force=true").await;
    assert_eq!(status, 200, "{told}");
    assert!(
        told["not_migrated"]
            .as_str()
            .unwrap_or_default()
            .contains("60 writes"),
        "{told}"
    );
    assert_eq!(read(&proxy, "id1").await.0, 500);
}

#[tokio::test]
async fn who_writes_all_the_time_is_not_overwritten() {
    let proxy = with_notes("hold = \"0s\"\ndeadline = \"60s\"", 10).await;
    let admin = proxy.admin();
    // Long enough for somebody to write meanwhile, each time.
    order(&admin, "slow 600").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, stopped) = (proxy.admin(), stop.clone());
    let writing = tokio::spawn(async move {
        let mut number = 0;
        while !stopped.load(Ordering::Relaxed) {
            number += 1;
            writer.set("notes", "busy", &format!("v1:{number}")).await;
        }
        number
    });
    let (status, problem) = push(&admin, "notes-2", "").await;
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.expect("every write was taken");
    assert_eq!(
        (status, &problem["code"]),
        (409, &"migrate-race".into()),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("bucket \"notes\": changed at revision"),
        "{detail}"
    );
    assert_eq!(read(&proxy, "busy").await.1, written.to_string());
    assert_eq!(runs(&admin).await, "");
    let (status, told) = push(&admin, "notes-2", "").await;
    assert_eq!(
        (status, &told["migrated"]["attempts"]),
        (200, &1.into()),
        "{told}"
    );
    assert_eq!(read(&proxy, "busy").await.1, written.to_string());
}

#[tokio::test]
async fn a_dry_run_tells_how_many_keys_would_change() {
    let proxy = with_notes("", 5).await;
    let admin = proxy.admin();
    admin.set("notes", "id9", "v1:gone").await;
    let before = admin.get("/v1/kv/notes").await.json();
    let (status, told) = push(&admin, "notes-2", "?dry_run=true").await;
    assert_eq!(
        (status, &told["outcome"]),
        (200, &"checked".into()),
        "{told}"
    );
    assert_eq!(
        (&told["migrated"]["written"], &told["migrated"]["deleted"]),
        (&6.into(), &1.into())
    );
    assert_eq!(admin.get("/v1/kv/notes").await.json(), before);
    assert_eq!(read(&proxy, "id1").await.2, "1");
}

#[tokio::test]
async fn a_canary_decides_on_unmigrated_data_by_force_only_and_its_promotion_migrates() {
    let proxy = with_notes("", 5).await;
    let admin = proxy.admin();
    let canary = "?canary=100&by=header:x-id";
    let (status, problem) = push(&admin, "notes-2", canary).await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &"conflict".into()),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("would first write 6 keys and delete 0"),
        "{detail}"
    );
    let shadow = admin
        .put("/v1/plugins/notes/shadow", fixture("notes-2"))
        .await;
    assert_eq!(shadow.status, 409, "{}", shadow.text());
    let (status, _) = push(&admin, "notes-2", &format!("{canary}&force=true")).await;
    assert_eq!(status, 200);
    assert_eq!(read(&proxy, "id1").await.0, 500);
    let promoted = admin.post("/v1/plugins/notes/canary/promote", "").await;
    assert_eq!(
        promoted.json()["migrated"]["written"],
        6,
        "{}",
        promoted.text()
    );
    assert_eq!(read(&proxy, "id1").await, (200, "text1".into(), "2".into()));
}

#[tokio::test]
async fn kill_9_at_any_moment_leaves_a_version_with_its_own_data() {
    let mut proxy = with_notes("", 3_000).await;
    let known = ["notes-1", "notes-2", "notes-3"].map(|guest| sha256(&fixture(guest)));
    for round in 0..8 {
        let admin = proxy.admin();
        let guest = ["notes-2", "notes-3"][round % 2];
        let pushing = tokio::spawn(async move {
            let request = Request::new("PUT", "/v1/plugins/notes").body(fixture(guest));
            // The last one may be killed before it answers.
            let _ =
                tokio::time::timeout(std::time::Duration::from_secs(5), admin.send(request)).await;
        });
        // At another moment of the push each time.
        tokio::time::sleep(std::time::Duration::from_millis(round as u64 * 15)).await;
        proxy.kill().await;
        pushing.abort();
        proxy.start_again().await;
        let admin = proxy.admin();
        let active = admin.plugin("notes").await["active"].clone();
        let version = known.iter().position(|digest| active == digest.as_str());
        let version = version.expect("one that was pushed") + 1;
        let (status, text, told) = read(&proxy, "id2999").await;
        assert_eq!(
            (status, &*text, told),
            (200, "text2999", version.to_string()),
            "round {round}"
        );
        // Never twice for one activation: each comes from another version.
        let words = runs(&admin).await;
        let last = words.split_whitespace().last().unwrap_or("1<");
        assert!(
            last.starts_with(&format!("{version}<")),
            "round {round}: {words}"
        );
        let mine = &known[version - 1][..12];
        assert!(!last.ends_with(mine), "round {round}: {words}");
    }
}

#[tokio::test]
async fn sessions_of_a_version_before_read_and_write_no_more_once_data_are_migrated() {
    let (upstream, _closes) = websocket::echo().await;
    let proxy = TestProxy::start(&format!(
        "[buckets.notes]\nvalues = \"bytes\"\n[buckets.upstreams]\n\
         [upstreams.echo]\nendpoints = [\"{}\"]\n\
         [plugins.notes]\nbuckets = {{ notes = \"write\", upstreams = \"write\" }}\nlimits = {{ deadline = \"2s\" }}\n\
         [[route]]\nname = \"notes\"\nplugin = \"notes\"\n",
        upstream.address
    ))
    .await;
    let admin = proxy.admin();
    admin.push_ok("notes", fixture("sessions-a")).await;
    let mut socket = websocket::open(proxy.address, &[]).await;
    crate::sessions::ask(&mut socket, "write", "Ok(())").await;
    // Without a migration nobody is left behind.
    admin.push_ok("notes", fixture("notes-1")).await;
    crate::sessions::ask(&mut socket, "write", "Ok(())").await;
    let (_, told) = push(&admin, "notes-2", "").await;
    assert_eq!(told["migrated"]["written"], 1, "{told}");
    crate::sessions::ask(&mut socket, "write", "Err(AccessDenied)").await;
    crate::sessions::ask(&mut socket, "read written", "127.0.0.1:1").await;
}
