//! The data file of a running proxy: copied, made smaller, checked, restored.

use super::faults::{NOTES, export};
use crate::harness::proxy::{Ended, command};
use crate::harness::{Request, Setup, TestProxy, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

#[tokio::test]
async fn a_backup_names_what_it_does_not_have_and_is_what_is_checked_of_a_file_in_use() {
    let cache = "[buckets.cache]\nbackend = \"memory\"\nvalues = \"bytes\"\n";
    let proxy = TestProxy::start(&format!("{cache}{NOTES}")).await;
    let made = kv(&proxy, &["backup", "copy.redb"]).await;
    made.refused(
        0,
        "copy.redb: not in it, for they are in their own backends: cache (memory)",
    );
    let used = kv(&proxy, &["check", "data/store.redb"]).await;
    used.refused(
        1,
        "in use by another process; of a running proxy, check a backup: throwbar kv backup FILE",
    );
    assert!(!used.stderr.contains("data directory"), "{}", used.stderr);
}

#[tokio::test]
async fn no_command_replaces_a_data_file_that_a_proxy_uses_under_any_name() {
    let mut proxy = TestProxy::start(NOTES).await;
    fill(&proxy, 0..10, "value").await;
    std::fs::hard_link(proxy.file("data/store.redb"), proxy.file("hard")).expect("linked");
    std::os::unix::fs::symlink("data/store.redb", proxy.file("soft")).expect("linked");
    for file in ["data/store.redb", "hard", "soft"] {
        for command in [
            &["backup", file, "--force"][..],
            &["export", "notes", file, "--force"],
        ] {
            let refused = kv(&proxy, command).await;
            assert_eq!(refused.code, 1, "{command:?}: {}", refused.stderr);
            let expected =
                format!("error: {file}: it is a data file in use by a proxy, not replaced");
            assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
        }
    }
    let copied = kv(&proxy, &["backup", "copy.redb"]).await;
    assert_eq!(copied.code, 0, "{}", copied.stderr);
    let refused = kv(&proxy, &["export", "notes", "copy.redb", "--force"]).await;
    assert!(
        refused.stderr.contains("it is a data file"),
        "{}",
        refused.stderr
    );
    let again = kv(&proxy, &["backup", "copy.redb", "--force"]).await;
    assert_eq!(again.code, 0, "{}", again.stderr);
    fill(&proxy, 10..20, "value").await;
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    proxy.start_again().await;
    assert_eq!(export(&proxy).await.len(), 20);
}

#[tokio::test]
async fn a_command_that_a_signal_ends_leaves_no_file() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    let _answering = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = socket.read(&mut head).await;
            let begun = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\na 1\n";
            let _ = socket.write_all(begun.as_bytes()).await;
            open.push(socket);
        }
    });
    for (arguments, signal, code) in [
        (&["export", "notes", "out"][..], Signal::INT, 130),
        (&["backup", "out"], Signal::TERM, 143),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let child = command()
            .current_dir(dir.path())
            .env("THROWBAR_ADMIN", &address)
            .arg("kv")
            .args(arguments)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the command under test runs");
        let begun = dir.path().join(".out.throwbar-tmp");
        eventually("it writes", async || begun.exists().then_some(())).await;
        let pid = i32::try_from(child.id().expect("it runs")).expect("a process id");
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("signalled");
        let ended = child.wait_with_output();
        let ended = crate::harness::soon("its end", ended)
            .await
            .expect("it ended");
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("error: out: not written"), "{said}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0);
    }
}
