//! The data file of a running proxy: copied, made smaller, checked, restored.

use super::faults::{NOTES, export};
use crate::harness::proxy::Ended;
use crate::harness::{Request, Setup, TestProxy};
use rustix::process::Signal;
use serde_json::{Value, json};

async fn kv(proxy: &TestProxy, arguments: &[&str]) -> Ended {
    let arguments = [&["kv", "--data", "data"], arguments].concat();
    proxy.run(&arguments).await
}

async fn fill(proxy: &TestProxy, keys: std::ops::Range<u32>, value: &str) {
    let set: serde_json::Map<String, Value> = keys
        .map(|key| (format!("key-{key}"), json!(value)))
        .collect();
    let body = json!({ "set": set }).to_string();
    let answer = proxy.admin().post("/v1/kv/notes/batch", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_made_beside_writes_and_restored_by_moving_it_in_place() {
    let mut proxy = TestProxy::start(NOTES).await;
    fill(&proxy, 0..1_000, "old").await;
    let writing = tokio::spawn({
        let admin = proxy.admin();
        async move {
            for number in 0.. {
                let put = Request::new("PUT", "/v1/kv/notes/counter").body(number.to_string());
                if admin.send(put).await.status >= 300 {
                    break;
                }
            }
        }
    });
    let made = kv(&proxy, &["backup", "copy.redb"]).await;
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(made.stderr.contains("copy.redb: 1,00"), "{}", made.stderr);
    writing.abort();
    let again = kv(&proxy, &["backup", "copy.redb"]).await;
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(
        again.stderr.contains("it is there already"),
        "{}",
        again.stderr
    );
    fill(&proxy, 0..500, "new").await;
    proxy.admin().delete("/v1/kv/notes/key-700").await;
    let forced = kv(&proxy, &["backup", "newer.redb", "--force"]).await;
    assert_eq!(forced.code, 0, "{}", forced.stderr);
    let newer = export(&proxy).await;

    for (file, expected) in [("newer.redb", "new"), ("copy.redb", "old")] {
        let checked = kv(&proxy, &["check", file]).await;
        assert_eq!(checked.code, 0, "{}", checked.stderr);
        assert!(checked.stdout.contains("sound, "), "{}", checked.stdout);
        proxy.signal(Signal::TERM);
        proxy.ended().await;
        std::fs::rename(proxy.file(file), proxy.file("data/store.redb")).expect("moved");
        proxy.start_again().await;
        let found = export(&proxy).await;
        assert_eq!(found["key-0"], expected, "{file}");
        assert_eq!(found.contains_key("key-700"), expected == "old");
        if expected == "new" {
            assert_eq!(found, newer);
        }
    }
}

#[tokio::test]
async fn a_compacted_file_is_smaller_and_the_proxy_goes_on() {
    let proxy = TestProxy::start(NOTES).await;
    fill(&proxy, 0..5_000, &"x".repeat(500)).await;
    let replaced = r#"{"set":{"k":"1"},"replace":true}"#;
    let emptied = proxy.admin().post("/v1/kv/notes/batch", replaced).await;
    assert_eq!(emptied.status, 200, "{}", emptied.text());
    let done = kv(&proxy, &["compact", "--json"]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    let sizes: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let bytes = |name: &str| sizes[name].as_u64().expect("a number");
    assert!(bytes("bytes_after") < bytes("bytes_before") / 2, "{sizes}");
    let size = std::fs::metadata(proxy.file("data/store.redb"))
        .expect("a file")
        .len();
    assert_eq!(bytes("bytes_after"), size);
    let tried = proxy
        .admin()
        .post("/v1/store/compact?dry_run=true", "")
        .await;
    assert_eq!(tried.status, 400, "{}", tried.text());
    assert!(tried.text().contains("dry_run"), "{}", tried.text());
    proxy.admin().set("notes", "k", "2").await;
    assert_eq!(export(&proxy).await["k"], "2");
}

#[tokio::test]
async fn a_file_in_use_or_damaged_or_not_there_is_named_by_a_check() {
    let mut proxy = TestProxy::start(NOTES).await;
    fill(&proxy, 0..100, "value").await;
    let busy = kv(&proxy, &["check", "data/store.redb"]).await;
    assert_eq!(busy.code, 1);
    assert!(
        busy.stderr.contains("in use by another process"),
        "{}",
        busy.stderr
    );
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    let whole = std::fs::read(proxy.file("data/store.redb")).expect("the data file");
    let sound = kv(&proxy, &["check", "data/store.redb", "--json"]).await;
    assert_eq!(sound.code, 0, "{}", sound.stderr);
    let sound: Value = serde_json::from_str(&sound.stdout).expect("JSON");
    assert_eq!(sound, json!({ "revision": 1, "buckets": 1, "keys": 100 }));
    let mut bad = whole.clone();
    for at in 0..bad.len() - 6 {
        if &bad[at..at + 6] == b"key-42" {
            bad[at + 5] = b'X';
        }
    }
    std::fs::write(proxy.file("bad.redb"), bad).expect("written");
    std::fs::write(proxy.file("cut.redb"), &whole[..5_000]).expect("written");
    std::fs::write(proxy.file("text.redb"), "no data file").expect("written");
    for (file, expected) in [
        ("bad.redb", "do not add up"),
        ("cut.redb", "is not whole"),
        ("text.redb", "does not begin as a data file does"),
        ("none.redb", "No such file"),
    ] {
        let ended = kv(&proxy, &["check", file]).await;
        assert_eq!(ended.code, 1, "{file}: {}", ended.stderr);
        assert!(ended.stderr.contains(file), "{file}: {}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{file}: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn without_a_data_file_a_backup_says_so_and_a_limited_token_gets_none() {
    let memory = NOTES.replace("values =", "backend = \"memory\"\nvalues =");
    let mut setup = Setup::new(memory);
    setup.frame = setup.frame.replace(
        "[admin]\n",
        "[admin]\ntokens = { agents = { token = \"0123456789abcdef0123456789abcdef\", buckets = { notes = \"write\" } } }\n",
    );
    let proxy = setup.start().await;
    for path in ["/v1/store/backup", "/v1/store/compact"] {
        let refused = proxy.admin().post(path, "").await;
        assert_eq!(refused.status, 409, "{}", refused.text());
        assert_eq!(refused.json()["code"], "no-data-file");
        let limited = Request::post(path, "")
            .field("authorization", "Bearer 0123456789abcdef0123456789abcdef");
        assert_eq!(limited.send(proxy.admin_address).await.status, 403);
    }
    let ended = kv(&proxy, &["backup", "copy.redb"]).await;
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("there is no data file"),
        "{}",
        ended.stderr
    );
    assert!(!proxy.file("copy.redb").exists());
}
