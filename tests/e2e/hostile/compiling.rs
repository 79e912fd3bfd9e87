//! What costs its compiler more than it looks: it is compiled in a process of its own, whose bounds end it.

use super::guest::beside;
use super::{CUT_SOON, bombs, grows_by_less_than, proxy_with, serves};
use crate::harness::{Request, TestProxy, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// More than the proxy itself waits for a component, and for one more before it.
const PATIENCE: Duration = Duration::from_secs(250);
const TIGHT: &str = "compile_cpu = \"1s\"\ncompile_memory = \"64MiB\"";

/// What a proxy's process for compiling is listed as.
struct Compiling(PathBuf);

impl Compiling {
    /// The one that runs, once there is one.
    async fn of(proxy: &TestProxy) -> Self {
        eventually("a process that compiles", async || {
            let entries = std::fs::read_dir("/proc").expect("a list of processes");
            let mut paths = entries.flatten().map(|entry| entry.path());
            let parent = format!("PPid:\t{}\n", proxy.pid());
            let is = |path: &PathBuf| {
                std::fs::read_to_string(path.join("status"))
                    .is_ok_and(|status| status.contains(&parent))
            };
            paths.find(is).map(Self)
        })
        .await
    }

    fn pid(&self) -> Pid {
        let name = self.0.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.parse().ok()).expect("a number");
        Pid::from_raw(number).expect("a process id")
    }

    /// One of its files, or nothing if it has ended.
    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }

    async fn is_gone(&self) {
        eventually("the end of the process that compiled", async || {
            // One that nobody has waited for yet has no memory any more.
            let status = self.file("status");
            (!status.contains("VmRSS")).then_some(())
        })
        .await;
    }
}

/// Seconds of work for the compiler.
fn large() -> Vec<u8> {
    beside(&bombs::functions())
}

fn push(proxy: &TestProxy, component: Vec<u8>) -> JoinHandle<(u16, String)> {
    push_to(proxy, "/v1/plugins/hostile", component)
}

fn push_to(proxy: &TestProxy, path: &str, component: Vec<u8>) -> JoinHandle<(u16, String)> {
    let (admin, request) = (proxy.admin(), Request::new("PUT", path).body(component));
    tokio::spawn(async move {
        // What has the lowest priority waits for all other tests.
        let answer = tokio::time::timeout(PATIENCE, admin.send_and_wait(request)).await;
        let response = answer.expect("an answer within its patience");
        (response.status, response.text())
    })
}

#[tokio::test]
async fn each_bomb_is_compiled_or_ends_at_a_bound_that_is_named_and_requests_go_on() {
    let (proxy, upstream) = proxy_with(CUT_SOON, TIGHT).await;
    let proxy = Arc::new(proxy);
    let stop = Arc::new(AtomicBool::new(false));
    let (flowing, stopped) = (proxy.clone(), stop.clone());
    let flow = tokio::spawn(async move {
        let mut served = 0;
        while !stopped.load(Ordering::Relaxed) {
            serves(&flowing, &upstream).await;
            served += 1;
        }
        served
    });
    grows_by_less_than(&proxy, 128, async {
        for bomb in bombs::all() {
            let (status, told) = push(&proxy, bomb.component).await.expect("answered");
            let name = bomb.name;
            let named = [
                "needs more than 64 MiB",
                "not done within 1s of CPU",
                "limit",
            ];
            match status {
                200 | 201 => {}
                422 => assert!(
                    named.iter().any(|part| told.contains(part)),
                    "{name}: {told}"
                ),
                _ => panic!("{name}: {status} {told}"),
            }
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    assert!(flow.await.expect("no failed request") > 10);
}

#[tokio::test]
async fn a_component_that_needs_more_memory_than_it_may_is_refused_with_the_bound() {
    let (proxy, upstream) = proxy_with(CUT_SOON, "").await;
    grows_by_less_than(&proxy, 64, async {
        let bomb = beside(&bombs::instances());
        let (status, told) = push(&proxy, bomb).await.expect("answered");
        assert_eq!(status, 422, "{told}");
        assert!(told.contains("\"code\":\"compile\""), "{told}");
        assert!(
            told.contains("compile: needs more than 512 MiB of memory"),
            "{told}"
        );
    })
    .await;
    serves(&proxy, &upstream).await;
}

#[tokio::test]
async fn a_component_that_needs_more_time_than_it_may_is_refused_with_the_bound() {
    let (proxy, upstream) = proxy_with(CUT_SOON, "compile_cpu = \"1s\"").await;
    let (status, told) = push(&proxy, large()).await.expect("answered");
    assert_eq!(status, 422, "{told}");
    assert!(
        told.contains("compile: not done within 1s of CPU"),
        "{told}"
    );
    serves(&proxy, &upstream).await;
}

#[tokio::test]
async fn uploads_that_cost_much_wait_for_each_other_and_requests_for_none_of_them() {
    let (proxy, upstream) = proxy_with(CUT_SOON, TIGHT).await;
    let paths = ["router", "hostile"].map(|plugin| format!("/v1/plugins/{plugin}?dry_run=true"));
    let uploads = paths.map(|path| push_to(&proxy, &path, large()));
    let compiling = Compiling::of(&proxy).await;
    for _ in 0..20 {
        serves(&proxy, &upstream).await;
    }
    drop(compiling);
    for upload in uploads {
        let (status, told) = upload.await.expect("answered");
        assert_eq!(status, 422, "{told}");
    }
}

#[tokio::test]
async fn the_process_that_compiles_is_bounded_and_inherits_nothing() {
    let (proxy, _upstream) = proxy_with(CUT_SOON, "").await;
    let upload = push(&proxy, large());
    let compiling = Compiling::of(&proxy).await;
    // It takes its bounds itself, right after its start; the score comes last.
    eventually("the bounds are taken", async || {
        (compiling.file("oom_score_adj").trim() == "1000").then_some(())
    })
    .await;
    let limits = compiling.file("limits");
    for (name, soft, hard) in [
        ("Max cpu time", 10, 11),
        ("Max data size", 512 << 20, 512 << 20),
        ("Max file size", 512 << 20, 512 << 20),
        ("Max core file size", 0, 0),
        ("Max open files", 16, 16),
    ] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let mut words = line.expect("this limit").split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        assert_eq!((number(), number()), (Some(soft), Some(hard)), "{name}");
    }
    let stat = compiling.file("stat");
    let after_name = stat.rsplit(") ").next().expect("fields");
    assert_eq!(after_name.split(' ').nth(16), Some("19"), "nice: {stat}");
    assert_eq!(compiling.file("environ"), "");
    assert_eq!(compiling.file("comm"), "compile\n");
    let open = std::fs::read_dir(compiling.0.join("fd")).expect("its files");
    let mut open: Vec<_> = open.flatten().map(|file| file.file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    upload.abort();
}

#[tokio::test]
async fn a_process_that_compiles_ends_with_its_proxy() {
    for signal in [Signal::KILL, Signal::TERM] {
        let (mut proxy, _upstream) = proxy_with(CUT_SOON, "").await;
        let upload = push(&proxy, large());
        let compiling = Compiling::of(&proxy).await;
        upload.abort();
        proxy.signal(signal);
        proxy.ended().await;
        compiling.is_gone().await;
    }
}

#[tokio::test]
async fn a_process_that_is_killed_fails_its_upload_only() {
    let (proxy, upstream) = proxy_with(CUT_SOON, "").await;
    let upload = push(&proxy, large());
    let compiling = Compiling::of(&proxy).await;
    kill_process(compiling.pid(), Signal::KILL).expect("it is ours");
    let (status, told) = upload.await.expect("answered");
    assert_eq!(status, 503, "{told}");
    assert!(told.contains("\"code\":\"no-compiler\""), "{told}");
    assert!(told.contains("its process was killed"), "{told}");
    let (status, told) = push(&proxy, beside("")).await.expect("answered");
    assert_eq!(status, 201, "{told}");
    serves(&proxy, &upstream).await;
}
