//! What is on disk: acknowledged writes survive a crash, damage is told and never read as something else.

use crate::harness::proxy::{BY_HEADER, run};
use crate::harness::{Setup, TestProxy};
use rustix::process::Signal;

#[tokio::test]
async fn a_memory_bucket_is_empty_after_a_restart_and_an_embedded_one_is_not() {
    let config =
        format!("{BY_HEADER}\n[buckets.brief]\nbackend = \"memory\"\nvalues = \"bytes\"\n");
    let mut proxy = TestProxy::start(&config).await;
    proxy.admin().set("upstreams", "k", "127.0.0.2").await;
    proxy.admin().set("brief", "k", "anything at all").await;
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(
        proxy.admin().get("/v1/kv/upstreams/k").await.text(),
        "127.0.0.2"
    );
    assert_eq!(proxy.admin().get("/v1/kv/brief/k").await.status, 404);
}

#[tokio::test]
async fn a_data_file_that_is_none_is_named_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("t.toml"), Setup::new(BY_HEADER).text()).expect("written");
    std::fs::create_dir(dir.path().join("data")).expect("made");
    let file = dir.path().join("data/store.redb");
    for garbage in [
        b"this is not a data file".to_vec(),
        vec![0; 100_000],
        Vec::new(),
    ] {
        std::fs::write(&file, &garbage).expect("written");
        let ended = run(dir.path(), &["serve", "t.toml"]).await;
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("store.redb"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert_eq!(std::fs::read(&file).expect("still there"), garbage);
    }
}

#[tokio::test]
async fn a_damaged_data_file_is_refused_or_read_but_never_wrong() {
    let mut proxy = TestProxy::start(BY_HEADER).await;
    for n in 0..50 {
        proxy
            .admin()
            .set("upstreams", &format!("key-{n}"), &format!("10.0.0.{n}"))
            .await;
    }
    proxy.signal(Signal::TERM);
    assert!(proxy.ended().await.success());
    let file = proxy.file("data/store.redb");
    let good = std::fs::read(&file).expect("the data file");
    let mut bad = good.clone();
    let mut damaged = 0;
    // Old pages may hold the key, too: damage it wherever it is.
    for at in 0..good.len() - 5 {
        if &good[at..at + 5] == b"key-7" {
            bad[at + 4] = b'X';
            damaged += 1;
        }
    }
    assert!(damaged > 0, "the key is in the file");
    std::fs::write(&file, &bad).expect("written");
    let config = proxy.dir().to_owned();
    let mut command = crate::harness::proxy::command();
    command
        .current_dir(&config)
        .args(["serve", "throwbar.toml"])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null());
    let mut child = command.spawn().expect("it runs");
    let mut stderr = child.stderr.take().expect("piped");
    let mut said = String::new();
    use tokio::io::AsyncReadExt;
    let mut chunk = [0; 4096];
    loop {
        match crate::harness::soon("the verdict", stderr.read(&mut chunk)).await {
            Ok(0) | Err(_) => break,
            Ok(n) => said.push_str(&String::from_utf8_lossy(&chunk[..n])),
        }
        if said.contains("Ctrl-C finishes") {
            break;
        }
    }
    assert!(
        said.contains("corrupt") && said.contains("store.redb"),
        "{said}"
    );
}

#[tokio::test]
async fn a_data_directory_has_one_user() {
    let proxy = TestProxy::start(BY_HEADER).await;
    let ended = run(proxy.dir(), &["serve", "throwbar.toml"]).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("in use"), "{}", ended.stderr);
}

/// A value of the past that is not what was written is told by name: by a check, by a backup, and by who asks for it. It is
/// never given back, and what is there now goes on.
#[tokio::test]
async fn a_damaged_past_is_told_and_never_given_back() {
    let config = format!("{BY_HEADER}\n[buckets.notes]\nvalues = \"bytes\"\nhistory = 5\n");
    let mut proxy = TestProxy::start(&config).await;
    for value in ["the first of all", "the second of all", "the third of all"] {
        proxy.admin().set("notes", "k", value).await;
    }
    proxy.signal(Signal::TERM);
    assert!(proxy.ended().await.success());
    let file = proxy.file("data/store.redb");
    let mut bytes = std::fs::read(&file).expect("the data file");
    let first = b"the first of all";
    let places = 0..bytes.len() - first.len();
    let found: Vec<_> = places
        .filter(|at| bytes[*at..].starts_with(first))
        .collect();
    assert!(!found.is_empty(), "it is kept");
    for at in found {
        bytes[at] = b'T';
    }
    std::fs::write(&file, &bytes).expect("written");
    let told = "bucket \"notes\": what is kept of key \"k\" at revision 1 is not what was written";
    let check = run(proxy.dir(), &["kv", "check", "data/store.redb"]).await;
    check.refused(1, told);
    proxy.start_again().await;
    let admin = proxy.admin();
    assert_eq!(admin.get("/v1/kv/notes/k").await.text(), "the third of all");
    for arguments in [
        &["history", "notes", "k"][..],
        &["undo", "notes", "k", "--to", "1"],
        &["backup", "copy.redb"],
    ] {
        proxy.kv(arguments).await.refused(1, told);
    }
    assert!(!proxy.file("copy.redb").exists());
    assert_eq!(admin.get("/v1/kv/notes/k").await.text(), "the third of all");
    admin.set("notes", "k", "and another").await;
}
