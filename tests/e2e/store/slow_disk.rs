//! A disk on which each sync takes long: with a real process, whose system calls a tracer holds up.

use super::faults::{NOTES, copy_files, export};
use crate::harness::servers::missing;
use crate::harness::{Setup, TestProxy, eventually};
use std::collections::BTreeMap;
use std::path::Path;
use tokio::task::JoinSet;

/// What a sync takes longer, in microseconds.
const DELAY: &str = "inject=fsync,fdatasync:delay_enter=300000";

/// What starts a process with slow syncs. The tracer is no parent of it, and ends with it.
fn tracer(log: &str) -> [&str; 12] {
    [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        log,
        "-e",
        "trace=fsync,fdatasync",
        "-e",
        DELAY,
        "--",
    ]
}

/// Whether that can be done here; says aloud if not.
fn can_trace() -> bool {
    let [strace, options @ ..] = tracer("/dev/null");
    let tried = std::process::Command::new(strace)
        .args(options)
        .arg("true")
        .status();
    let can = tried.as_ref().is_ok_and(|status| status.success());
    if !can {
        missing(&format!(
            "strace is not installed, or may not trace ({tried:?})"
        ));
    }
    can
}

/// How many syncs have begun.
fn syncs(log: &Path) -> usize {
    let log = std::fs::read_to_string(log).expect("the tracer's log");
    log.lines().filter(|line| line.contains("sync(")).count()
}

#[tokio::test]
async fn a_slow_disk_holds_up_writers_who_share_its_syncs_and_no_request() {
    if !can_trace() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("throwbar.toml"), Setup::new(NOTES).text()).expect("written");
    let log = dir.path().join("syncs");
    let under = tracer(log.to_str().expect("text"));
    let mut proxy = TestProxy::start_under(dir, &under, &["serve", "throwbar.toml"]).await;
    let admin = proxy.admin();
    let mut acknowledged = BTreeMap::new();
    eventually("many are answered while one write waits", async || {
        let key = format!("key-{}", acknowledged.len());
        let path = format!("/v1/kv/notes/{key}");
        let mut put = Box::pin(admin.put(&path, "1"));
        let mut answered = 0;
        let put = loop {
            let ask = async {
                let status = proxy.get("/", &[]).await.status;
                (status, admin.get("/v1/kv/notes/none").await.status)
            };
            tokio::select! {
                biased;
                put = &mut put => break put,
                statuses = ask => assert_eq!(statuses, (204, 404)),
            }
            answered += 1;
        };
        assert_eq!(put.status, 201, "{}", put.text());
        acknowledged.insert(key, "1".to_owned());
        (answered >= 10).then_some(())
    })
    .await;

    let before = syncs(&log);
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let (admin, key) = (proxy.admin(), format!("writer-{writer}"));
        acknowledged.insert(key.clone(), "1".to_owned());
        writers.spawn(async move { admin.put(&format!("/v1/kv/notes/{key}"), "1").await });
    }
    for put in writers.join_all().await {
        assert_eq!(put.status, 201, "{}", put.text());
    }
    let shared = syncs(&log) - before;
    assert!((1..16).contains(&shared), "{shared} syncs of 16 writers");

    proxy.kill().await;
    let copy = tempfile::tempdir().expect("a directory");
    copy_files(&proxy.file("data/store.redb"), &copy.path().join("data"));
    std::fs::write(copy.path().join("throwbar.toml"), Setup::new(NOTES).text()).expect("written");
    let other = TestProxy::start_in(copy, &["serve", "throwbar.toml"]).await;
    assert_eq!(export(&other).await, acknowledged);
}
