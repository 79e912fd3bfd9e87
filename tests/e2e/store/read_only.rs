//! A disk that turns read-only beneath a running proxy, as Linux does to one that fails (`errors=remount-ro`).
//!
//! Nobody may do that to a mount on which a file is open for writing; only a failing disk does. So what is first written to
//! the open file is refused by a tracer, as the kernel would refuse it. The proxy closes its file then, and from there on the
//! mount is read-only in earnest.

use super::faults::{export, export_of_a_copy, may_mount};
use crate::harness::proxy::{command_under, run_with};
use crate::harness::servers::missing;
use crate::harness::websocket::{self, Socket};
use crate::harness::{Request, Setup, TestProxy, TestUpstream, eventually, soon};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::Stdio;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Routing by a map on disk; the deadline is one that a traced process keeps.
const ROUTED: &str = r#"
[buckets.notes]
[plugins.router]
source = "builtin:by-header"
buckets = { notes = "read" }
settings = { bucket = "notes", port-header = "" }
limits = { deadline = "2s" }
[[route]]
name = "by-id"
plugin = "router"
"#;

/// What starts a proxy whose data directory is a mount of its own.
const UNDER: [&str; 6] = [
    "unshare",
    "-rm",
    "sh",
    "-c",
    "mount --bind data data || exit 77; exec \"$@\"",
    "sh",
];

/// A command among the namespaces of a proxy, where it may do what the proxy's user may.
fn beside(proxy: &TestProxy, namespaces: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--preserve-credentials", "-t", &proxy.pid().to_string()])
        .args(namespaces)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Mounts a proxy's data directory anew, `ro` or `rw`.
async fn remount(proxy: &TestProxy, how: &str) {
    let options = format!("remount,bind,{how}");
    // It is busy while the proxy tries whether its file can be written again.
    eventually(&format!("the data directory is {how}"), async || {
        let mut mount = beside(proxy, &["-U", "-m", "mount", "-o", &options]);
        let mounted = soon("a mount", mount.arg(proxy.file("data")).status()).await;
        mounted.expect("nsenter runs").success().then_some(())
    })
    .await;
}

/// Lets these system calls on a proxy's data file and its journal say that it is on a read-only disk, until the tracer ends.
/// None if nothing can be traced here; says that aloud.
async fn refusing(proxy: &TestProxy, calls: &str) -> Option<Child> {
    let mut strace = beside(proxy, &["-U", "strace", "-f", "-qq", "-o", "/dev/null"]);
    strace
        .arg("-P")
        .arg(proxy.file("data/store.redb"))
        .arg("-P")
        .arg(proxy.file("data/store.journal"))
        .args(["-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:error=EROFS")])
        .args(["-p", &proxy.pid().to_string()]);
    let mut tracer = strace.spawn().expect("nsenter runs");
    eventually("all its threads are traced, or cannot be", async || {
        if let Some(ended) = tracer.try_wait().expect("it can be waited for") {
            missing(&format!(
                "strace is not installed, or may not trace ({ended})"
            ));
            return Some(false);
        }
        are_traced(proxy.pid()).then_some(true)
    })
    .await
    .then_some(tracer)
}

/// Whether each thread of a process has a tracer.
fn are_traced(pid: u32) -> bool {
    let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
    threads.all(|thread| {
        let status =
            thread.and_then(|thread| std::fs::read_to_string(thread.path().join("status")));
        status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    })
}

/// Lets the traced process go on alone.
async fn detach(mut tracer: Child) {
    let pid = tracer.id().expect("it runs") as i32;
    let pid = Pid::from_raw(pid).expect("a process id");
    kill_process(pid, Signal::TERM).expect("it is ours");
    soon("the end of the tracer", tracer.wait())
        .await
        .expect("it can be waited for");
}

/// A proxy that routes by a map on disk, on a mount of its own, with a WebSocket open.
struct Running {
    proxy: TestProxy,
    socket: Socket,
    acknowledged: BTreeMap<String, String>,
    /// Where `here` is, and where it is to be.
    upstreams: [TestUpstream; 2],
    _echo: TestUpstream,
}

impl Running {
    /// None if nothing can be mounted here; says that aloud.
    async fn start() -> Option<Self> {
        let dir = directory();
        let tried = command_under(&UNDER.map(str::to_owned));
        if !may_mount(&run_with(tried, dir.path(), &["--version"]).await) {
            return None;
        }
        let upstreams = [
            TestUpstream::saying("old").await,
            TestUpstream::saying("new").await,
        ];
        let (echo, _) = websocket::echo().await;
        let proxy = TestProxy::start_under(dir, &UNDER, &["serve", "throwbar.toml"]).await;
        let mut acknowledged = BTreeMap::new();
        for (id, at) in [("here", &upstreams[0]), ("socket", &echo)] {
            let at = at.address.to_string();
            proxy.admin().set("notes", id, &at).await;
            acknowledged.insert(id.to_owned(), at);
        }
        let socket = websocket::open(proxy.address, &[("x-id", "socket")]).await;
        Some(Self {
            proxy,
            socket,
            acknowledged,
            upstreams,
            _echo: echo,
        })
    }

    /// Every kind of write is refused with the reason, and all else is as it was.
    async fn refuses_writes_and_goes_on(&mut self) {
        let [_, new] = &self.upstreams;
        let new = new.address.to_string();
        let both = json!({ "set": { "here": new, "more": new } });
        for write in [
            Request::post("/v1/kv/notes/batch", both.to_string()),
            Request::new("PUT", "/v1/kv/notes/here").body(new),
            Request::new("DELETE", "/v1/kv/notes/socket"),
        ] {
            let answer = self.proxy.admin().send(write).await;
            assert_eq!(answer.status, 503, "{}", answer.text());
            let refused = answer.json();
            assert_eq!(refused["code"], "store-unavailable");
            let detail = refused["detail"].as_str().expect("a reason");
            assert!(
                detail.contains("data/store.") && detail.contains("Read-only file system"),
                "{detail}"
            );
            assert_eq!(self.routed("here").await, (200, "old".to_owned()));
        }
        assert_eq!(self.routed("more").await.0, 404);
        assert_eq!(export(&self.proxy).await, self.acknowledged);
        self.socket.echo("still here").await;
    }

    async fn routed(&self, id: &str) -> (u16, String) {
        let answer = self.proxy.get("/", &[("x-id", id)]).await;
        (answer.status, answer.text())
    }

    /// What a kill -9 now would leave.
    async fn on_disk(&self) -> BTreeMap<String, String> {
        export_of_a_copy(&self.proxy, &self.proxy.file("data/store.redb")).await
    }
}

fn directory() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("data")).expect("made");
    std::fs::write(dir.path().join("throwbar.toml"), Setup::new(ROUTED).text()).expect("written");
    dir
}

/// Of a disk that turns read-only when the files are next used by one of these system calls.
async fn turns_read_only(calls: &str) {
    let Some(mut running) = Running::start().await else {
        return;
    };
    let Some(tracer) = refusing(&running.proxy, calls).await else {
        return;
    };
    running.refuses_writes_and_goes_on().await;
    remount(&running.proxy, "ro").await;
    detach(tracer).await;
    running.refuses_writes_and_goes_on().await;
    running.proxy.says("store cannot write").await;
    // A write that was refused is not left there, if the disk takes any.
    assert_eq!(running.on_disk().await, running.acknowledged);

    remount(&running.proxy, "rw").await;
    // Also if nobody writes.
    eventually("nothing of what was refused is on disk", async || {
        (running.on_disk().await == running.acknowledged).then_some(())
    })
    .await;
    let new = running.upstreams[1].address.to_string();
    for id in ["here", "after"] {
        running.proxy.admin().set("notes", id, &new).await;
        running.acknowledged.insert(id.to_owned(), new.clone());
        assert_eq!(running.routed(id).await, (200, "new".to_owned()));
    }
    running.socket.echo("to the end").await;
    running.proxy.kill().await;
    running.proxy.start_again().await;
    assert_eq!(export(&running.proxy).await, running.acknowledged);
    assert_eq!(running.routed("here").await, (200, "new".to_owned()));
}

#[tokio::test]
async fn a_disk_that_turns_read_only_refuses_writes_beside_routing_and_takes_them_again() {
    let calls = "write,pwrite64,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync";
    turns_read_only(calls).await;
}

/// The bytes of the write were taken, and only the sync was refused.
#[tokio::test]
async fn a_disk_that_turns_read_only_beneath_a_sync_gives_back_nothing_of_the_refused_write() {
    turns_read_only("fsync,fdatasync").await;
}
