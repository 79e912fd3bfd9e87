//! Disks that are full or refuse to be written, and syncing later: with a real process on a real file.

use crate::harness::proxy::{Ended, command_under, run_with};
use crate::harness::{Admin, Request, Setup, TestProxy, TestUpstream, eventually};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// A bucket of bytes on disk, and nothing that takes long to start.
pub(super) const NOTES: &str = "
[buckets.notes]
values = \"bytes\"
[[route]]
name = \"all\"
reply = { status = 204 }
";

/// All keys of the bucket with their values.
pub(super) async fn export(proxy: &TestProxy) -> BTreeMap<String, String> {
    let lines = proxy.admin().get("/v1/kv/notes?format=ndjson").await.text();
    let entry = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = |name: &str| entry[name].as_str().expect("text").to_owned();
        (text("key"), text("value"))
    };
    lines.lines().map(entry).collect()
}

/// Copies a data file, which nobody writes to, and its journal to a data directory.
pub(super) fn copy_files(file: &Path, to: &Path) {
    std::fs::create_dir(to).expect("made");
    std::fs::copy(file, to.join("store.redb")).expect("copied");
    let journal = file.with_file_name("store.journal");
    if journal.exists() {
        std::fs::copy(journal, to.join("store.journal")).expect("copied");
    }
}

/// What another proxy finds in this one's data file, as it is at one moment: what a kill -9 then would leave.
pub(super) async fn export_of_a_copy(proxy: &TestProxy, file: &Path) -> BTreeMap<String, String> {
    let copy = tempfile::tempdir().expect("a directory");
    // It may write by itself at any time.
    proxy.signal(Signal::STOP);
    eventually("all its threads are stopped", async || {
        are_stopped(proxy.pid()).then_some(())
    })
    .await;
    copy_files(file, &copy.path().join("data"));
    proxy.signal(Signal::CONT);
    let text = Setup::new(NOTES).text();
    std::fs::write(copy.path().join("throwbar.toml"), text).expect("written");
    let other = TestProxy::start_in(copy, &["serve", "throwbar.toml"]).await;
    export(&other).await
}

/// Whether no thread of a process runs.
fn are_stopped(pid: u32) -> bool {
    let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
    threads.all(|thread| {
        let stat = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("stat")));
        // The state is the first word behind the name.
        stat.is_ok_and(|stat| {
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        })
    })
}

/// Writes values of `size` bytes to new keys until one is refused because the data file cannot grow: that says `reason`.
async fn until_refused(
    admin: &Admin,
    size: usize,
    reason: &str,
    acknowledged: &mut BTreeMap<String, String>,
) {
    let value = "x".repeat(size);
    let refused = loop {
        let key = format!("key-{}", acknowledged.len());
        let answer = admin
            .put(&format!("/v1/kv/notes/{key}"), value.clone())
            .await;
        if answer.status != 201 {
            break answer;
        }
        acknowledged.insert(key, value.clone());
        assert!(acknowledged.len() < 1_000, "the limit is no limit");
    };
    assert_eq!(refused.status, 503, "{}", refused.text());
    let refused = refused.json();
    let detail = refused["detail"].as_str().expect("a reason");
    let is_named = ["store.redb", "store.journal"].map(|file| detail.contains(file));
    assert!(
        is_named.contains(&true) && detail.contains(reason),
        "{detail}"
    );
    assert!(!acknowledged.is_empty());
}

/// A directory with a config of that bucket and a route to an upstream.
fn routed(upstream: &TestUpstream) -> TempDir {
    let tables = format!(
        "[buckets.notes]\nvalues = \"bytes\"\n[[route]]\nname = \"all\"\nto = \"{}\"\n",
        upstream.address
    );
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("throwbar.toml"), Setup::new(tables).text()).expect("written");
    dir
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_what_was_acknowledged_and_takes_writes_again() {
    let upstream = TestUpstream::saying("hello").await;
    let dir = routed(&upstream);
    // A write beyond the limit is an error then, and does not end the process.
    let under = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let mut proxy = TestProxy::start_under(dir, &under, &["serve", "throwbar.toml"]).await;
    let pid = Pid::from_raw(proxy.pid() as i32).expect("a process id");
    let size = std::fs::metadata(proxy.file("data/store.redb"))
        .expect("a file")
        .len();
    let limit = |current| Rlimit {
        current,
        maximum: None,
    };
    prlimit(Some(pid), Resource::Fsize, limit(Some(size + (256 << 10)))).expect("it is ours");
    let admin = proxy.admin();
    let mut acknowledged = BTreeMap::new();
    until_refused(&admin, 50_000, "File too large", &mut acknowledged).await;
    // Reads and routing go on.
    assert_eq!(export(&proxy).await, acknowledged);
    assert_eq!(proxy.get("/", &[]).await.status, 200);

    prlimit(Some(pid), Resource::Fsize, limit(None)).expect("it is ours");
    admin.set("notes", "after", "1").await;
    acknowledged.insert("after".to_owned(), "1".to_owned());
    proxy.kill().await;
    proxy.start_again().await;
    assert_eq!(export(&proxy).await, acknowledged);
}

#[tokio::test]
async fn a_disk_without_room_refuses_writes_keeps_what_was_acknowledged_and_takes_writes_again() {
    let upstream = TestUpstream::saying("hello").await;
    let dir = routed(&upstream);
    std::fs::create_dir(dir.path().join("data")).expect("made");
    // A disk of its own, two thirds of it taken by something else.
    let script = "mount -t tmpfs -o size=6m tmpfs data && head -c 4m /dev/zero >data/ballast || exit 77; exec \"$@\"";
    let under = ["unshare", "-rm", "sh", "-c", script, "sh"];
    let tried = command_under(&under.map(str::to_owned));
    if !may_mount(&run_with(tried, dir.path(), &["--version"]).await) {
        return;
    }
    let proxy = TestProxy::start_under(dir, &under, &["serve", "throwbar.toml"]).await;
    // As the process sees it: the mount is its own.
    let seen = |name: &str| {
        let root = format!("/proc/{}/root{}", proxy.pid(), proxy.dir().display());
        Path::new(&root).join("data").join(name)
    };
    std::fs::copy(seen("admin.token"), proxy.file("data/admin.token")).expect("copied");
    assert!(
        !proxy.file("data/store.redb").exists(),
        "it is on its own disk"
    );
    let admin = proxy.admin();
    let mut acknowledged = BTreeMap::new();
    // A large write that does not fit, and then one that is small.
    for size in [50_000, 10] {
        until_refused(&admin, size, "No space left on device", &mut acknowledged).await;
        // Reads and routing go on, and a crash now loses nothing either.
        assert_eq!(export(&proxy).await, acknowledged);
        assert_eq!(proxy.get("/", &[]).await.status, 200);
        assert_eq!(
            export_of_a_copy(&proxy, &seen("store.redb")).await,
            acknowledged
        );
    }
    std::fs::remove_file(seen("ballast")).expect("removed");
    for key in ["after", "after-that"] {
        admin.set("notes", key, "1").await;
        acknowledged.insert(key.to_owned(), "1".to_owned());
    }
    assert_eq!(export(&proxy).await, acknowledged);
    assert_eq!(
        export_of_a_copy(&proxy, &seen("store.redb")).await,
        acknowledged
    );
}

/// Whether a command under `unshare` that ends with 77 if it cannot mount could do so; says aloud if not.
pub(super) fn may_mount(ended: &Ended) -> bool {
    let may = ended.code != 77 && !ended.stderr.contains("unshare");
    if !may {
        let why = format!("this user may not mount ({})", ended.stderr.trim());
        crate::harness::servers::missing(&why);
    }
    may
}

#[tokio::test]
async fn a_disk_that_may_only_be_read_is_told_at_the_start_and_left_as_it_is() {
    let mut proxy = TestProxy::start(NOTES).await;
    proxy.admin().set("notes", "k", "1").await;
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    let file = proxy.file("data/store.redb");
    let whole = std::fs::read(&file).expect("the data file");
    let script = "mount --bind data data && mount -o remount,bind,ro data || exit 77; exec \"$@\"";
    let under = ["unshare", "-rm", "sh", "-c", script, "sh"].map(str::to_owned);
    let ended = run_with(
        command_under(&under),
        proxy.dir(),
        &["serve", "throwbar.toml"],
    )
    .await;
    if !may_mount(&ended) {
        return;
    }
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("store.redb"), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("Read-only file system"),
        "{}",
        ended.stderr
    );
    assert_eq!(std::fs::read(&file).expect("the data file"), whole);
    proxy.start_again().await;
    assert_eq!(export(&proxy).await["k"], "1");
}

#[tokio::test]
async fn a_store_that_syncs_later_loses_the_newest_by_a_kill_and_nothing_by_a_regular_end() {
    let config = format!("[store.embedded]\nsync = \"interval\"\nsync_interval = \"60s\"\n{NOTES}");
    let mut proxy = TestProxy::start(&config).await;
    let put = async |proxy: &TestProxy, from: u32, to: u32| {
        let admin = proxy.admin();
        for number in from..to {
            admin.set("notes", &format!("{number:03}"), "1").await;
        }
    };
    put(&proxy, 0, 30).await;
    proxy.signal(Signal::TERM);
    proxy.ended().await;
    proxy.start_again().await;
    assert_eq!(export(&proxy).await.len(), 30);
    put(&proxy, 30, 60).await;
    proxy.kill().await;
    proxy.start_again().await;
    // As it was after one of the writes: here, after the last that was synced.
    assert_eq!(export(&proxy).await.len(), 30);
    let config = config.replace("60s", "5ms");
    std::fs::write(proxy.file("throwbar.toml"), Setup::new(config).text()).expect("written");
    proxy.kill().await;
    proxy.start_again().await;
    put(&proxy, 30, 40).await;
    // Some time after the last one it is on disk: the file says so.
    eventually("everything is synced", async || {
        let kept = export_of_a_copy(&proxy, &proxy.file("data/store.redb")).await;
        (kept.len() == 40).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_change_of_how_the_file_is_synced_needs_a_restart() {
    let proxy = TestProxy::start(NOTES).await;
    let config = format!("[store.embedded]\nsync = \"interval\"\n{NOTES}");
    let request = Request::new("PUT", "/v1/config").body(Setup::new(config).text());
    let answer = proxy.admin().send(request).await;
    assert!(
        answer.text().contains("store.embedded: needs a restart"),
        "{}",
        answer.text()
    );
}
