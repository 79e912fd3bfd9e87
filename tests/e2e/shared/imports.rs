//! Imports of more rows than an engine takes in one transaction.

use super::fleet::{Fleet, config};
use crate::harness::servers::Engine;
use crate::harness::{Request, Setup, TestProxy};
use serde_json::{Value, json};

/// Lines with these keys, whose first `others` have another value.
fn lines(keys: std::ops::Range<usize>, others: usize) -> String {
    let first = keys.start;
    keys.map(|key| match key < first + others {
        true => format!("k{key:05} other\n"),
        false => format!("k{key:05} v\n"),
    })
    .collect()
}

fn write(proxy: &TestProxy, name: &str, text: String) {
    std::fs::write(proxy.file(name), text).expect("written");
}

/// What an import says to both of its outputs, if it ends well.
async fn import(proxy: &TestProxy, arguments: &[&str]) -> (String, String) {
    let done = proxy.kv(&[&["import", "notes"], arguments].concat()).await;
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
    (done.stdout, done.stderr)
}

/// What one that is only tried says to both, if it would be refused for its size.
async fn tried(proxy: &TestProxy, arguments: &[&str]) -> (String, String) {
    let done = proxy.kv(&[&["import", "notes"], arguments].concat()).await;
    assert_eq!(done.code, 1, "{arguments:?}: {}", done.stdout);
    (done.stdout, done.stderr)
}

async fn refused(proxy: &TestProxy, arguments: &[&str]) -> String {
    let ended = proxy.kv(&[&["import", "notes"], arguments].concat()).await;
    assert_eq!(ended.code, 1, "{arguments:?}: {}", ended.stdout);
    ended.stderr
}

#[tokio::test]
async fn a_dry_run_shows_more_than_a_transaction_of_etcd_takes() {
    let Some(mut fleet) = Fleet::start(Engine::Etcd, 1).await else {
        return;
    };
    let proxy = &fleet.proxies[0];
    write(proxy, "rows.txt", lines(0..1_000, 0));
    let note = "error: rows.txt: transaction of 1000 writes or conditions is too large, expected at most 128";
    let (shown, aside) = tried(proxy, &["rows.txt", "--diff"]).await;
    assert!(shown.contains("+ k00999 v\n"), "{shown}");
    let sum = "notes: would be 1,000 added; nothing changed\n";
    assert!(shown.ends_with(sum), "{shown}");
    assert!(aside.starts_with(note), "{aside}");
    assert!(aside.ends_with(": give --chunk 128\n"), "{aside}");
    let (told, _) = tried(proxy, &["rows.txt", "--dry-run", "--json"]).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(
        (&told["created"], &told["writes_max"]),
        (&json!(1_000), &json!(128))
    );
    // So many rows at a time are taken.
    for how in ["--dry-run", "--diff"] {
        let (told, aside) = import(proxy, &["rows.txt", "--chunk", "128", how]).await;
        assert!(told.ends_with(sum), "{told}");
        assert_eq!(aside, "");
    }
    let (_, aside) = tried(proxy, &["rows.txt", "--chunk", "129", "--diff"]).await;
    assert!(aside.ends_with(": give --chunk 128\n"), "{aside}");
    let (told, aside) = tried(proxy, &["rows.txt", "--replace", "--dry-run"]).await;
    assert_eq!(told, sum);
    assert!(
        aside.contains("give --chunk 128 in place of --replace"),
        "{aside}"
    );
    // It is refused for what is wrong with it.
    let admin = proxy.admin();
    let dry = |bucket: &str, rows: String| {
        let path = format!("/v1/kv/{bucket}/import?dry_run=true&diff=true");
        Request::post(&path, rows).field("content-type", "text/plain")
    };
    let full = admin.send(dry("few", lines(0..1_000, 0))).await;
    assert_eq!(full.status, 507);
    let bad = lines(0..1_000, 0) + "bad 127.0.0.1:99999\n";
    let bad = admin.send(dry("upstreams", bad)).await;
    assert_eq!(bad.status, 422);
    let unmet = dry("notes", lines(0..1_000, 0)).field("if-match", "*");
    let unmet = admin.send(unmet).await;
    assert_eq!(unmet.status, 412);
    fleet.server.kill().await;
    let away = admin.send(dry("notes", lines(0..1_000, 0))).await;
    assert_eq!(away.status, 503);
}

#[tokio::test]
async fn what_does_not_fit_etcd_is_told_with_what_does() {
    let Some(fleet) = Fleet::start(Engine::Etcd, 1).await else {
        return;
    };
    // The setting counts, and not what is usual.
    let text = config(Engine::Etcd, &fleet.server);
    let table = "[store.etcd]\n";
    let text = text.replace(table, &format!("{table}transaction_writes_max = 64\n"));
    let proxy = &TestProxy::start_text(&Setup::new(text).text()).await;
    write(proxy, "rows.txt", lines(0..200, 0));
    let said = refused(proxy, &["rows.txt"]).await;
    assert!(said.contains("expected at most 64 "), "{said}");
    assert!(said.ends_with(": give --chunk 64 (413)\n"), "{said}");
    let said = refused(proxy, &["rows.txt", "--chunk", "100"]).await;
    assert!(said.contains(": give --chunk 64 (413)\n"), "{said}");
    assert!(said.contains("nothing was written"), "{said}");
    let said = refused(proxy, &["rows.txt", "--replace"]).await;
    let way = ": give --chunk 64 in place of --replace, then delete what the file does not have \
               with kv del, at most 63 keys at a time: --replace --diff shows it (413)\n";
    assert!(said.ends_with(way), "{said}");
    // All that is said helps.
    let (told, _) = import(proxy, &["rows.txt", "--chunk", "64"]).await;
    assert!(told.starts_with("notes: 200 added"), "{told}");
    write(proxy, "rows.txt", lines(63..200, 0));
    let (told, aside) = import(proxy, &["rows.txt", "--replace", "--diff"]).await;
    assert!(told.starts_with("- k00000 v\n"), "{told}");
    assert_eq!(aside, "");
    let keys: Vec<String> = (0..63).map(|key| format!("k{key:05}")).collect();
    let keys = keys.iter().map(String::as_str);
    let delete: Vec<&str> = ["del", "notes"].into_iter().chain(keys).collect();
    let told = proxy.kv(&delete).await.ok();
    assert!(told.starts_with("notes: 63 deleted"), "{told}");
    // Rows that are large are as many as have room.
    let large = "x".repeat(100 << 10);
    let rows = (0..40).map(|key| format!("large-{key} {large}\n"));
    write(proxy, "large.txt", rows.collect());
    let said = refused(proxy, &["large.txt"]).await;
    let (_, most) = said.rsplit_once("give --chunk ").expect("it is told");
    let most = most.trim_end_matches(" (413)\n");
    let (told, _) = import(proxy, &["large.txt", "--chunk", most]).await;
    assert!(told.starts_with("notes: 40 added"), "{told}");
}

/// Unchanged keys need no room in a transaction.
async fn few_of_many_are_changed(engine: Engine, rows: usize) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let (proxy, other) = (&fleet.proxies[0], &fleet.proxies[1]);
    let admin = proxy.admin();
    write(proxy, "rows.txt", lines(0..rows, 0));
    import(proxy, &["rows.txt", "--chunk", "100"]).await;
    for arguments in [
        &["rows.txt"][..],
        &["rows.txt", "--replace"],
        &["rows.txt", "--dry-run"],
        &["rows.txt", "--replace", "--diff"],
    ] {
        let (told, aside) = import(proxy, arguments).await;
        let as_before = with_comma(rows);
        assert!(told.contains(&format!("{as_before} as before")), "{told}");
        assert_eq!(aside, "");
    }
    // Two come, three go, five are changed: at one revision.
    write(proxy, "rows.txt", lines(3..rows + 2, 5));
    let (told, aside) = import(proxy, &["rows.txt", "--replace"]).await;
    assert!(
        told.starts_with("notes: 2 added, 5 changed, 3 deleted, "),
        "{told}"
    );
    assert_eq!(aside, "");
    let tag = |key: usize| {
        let admin = admin.clone();
        async move {
            let got = admin.get(&format!("/v1/kv/notes/k{key:05}")).await;
            got.header("etag").to_owned()
        }
    };
    assert_eq!(tag(3).await, tag(rows + 1).await);
    assert_ne!(tag(3).await, tag(rows - 1).await);
    // What another proxy has just changed is changed back, though it was no change as this one knew it.
    let last = format!("/v1/kv/notes/k{:05}", rows + 1);
    for round in 0..10 {
        let put = other.admin().put(&last, format!("{round}")).await;
        assert!(put.status < 300, "{}", put.text());
        let (told, _) = import(proxy, &["rows.txt"]).await;
        assert!(told.starts_with("notes: 1 changed, "), "{told}");
        assert_eq!(admin.get(&last).await.text(), "v");
    }
}

/// As the command writes numbers.
fn with_comma(rows: usize) -> String {
    format!("{},{:03}", rows / 1_000, rows % 1_000)
}

#[tokio::test]
async fn few_of_many_are_changed_on_etcd() {
    few_of_many_are_changed(Engine::Etcd, 1_000).await;
}

#[tokio::test]
async fn few_of_many_are_changed_on_redis() {
    few_of_many_are_changed(Engine::Redis, 20_001).await;
}

#[tokio::test]
async fn a_dry_run_shows_more_than_a_transaction_of_redis_takes() {
    let Some(fleet) = Fleet::start(Engine::Redis, 1).await else {
        return;
    };
    let proxy = &fleet.proxies[0];
    write(proxy, "rows.txt", lines(0..20_001, 0));
    let (told, aside) = tried(proxy, &["rows.txt", "--diff"]).await;
    assert!(
        told.ends_with("and 10,001 more\nnotes: would be 20,001 added; nothing changed\n"),
        "{told}"
    );
    assert!(aside.ends_with(": give --chunk 16384\n"), "{aside}");
    let said = refused(proxy, &["rows.txt"]).await;
    assert!(said.ends_with(": give --chunk 16384 (413)\n"), "{said}");
    let (told, _) = import(proxy, &["rows.txt", "--chunk", "16384"]).await;
    assert!(told.starts_with("notes: 20,001 added"), "{told}");
}
