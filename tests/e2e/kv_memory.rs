//! Memory of keys that are gone is given back to the system.

use super::kv_bulk::{keys, peak_kib};
use crate::harness::{Request, TestProxy, eventually};
use std::fmt::Write;

const KEYS: u64 = 400_000;
/// What they take at least, while they are set, in KiB.
const TAKEN_KIB: u64 = 150 << 10;
/// What may stay: the last changes, which watches may ask for, some of them alone in their pages.
const LEFT_KIB: u64 = 130 << 10;

/// A proxy with a bucket in memory, and its resident memory.
async fn empty() -> (TestProxy, u64) {
    let notes = "\n[buckets.notes]\nbackend = \"memory\"\nvalues = \"bytes\"\n\
                 [[route]]\nreply = { status = 200 }\n";
    let proxy = TestProxy::start(notes).await;
    let before = proxy.rss_kib();
    (proxy, before)
}

/// Sets all keys, with these fields beside them.
async fn set(proxy: &TestProxy, more: &str) {
    let mut body = String::from("{\"set\":{");
    for key in 0..KEYS {
        let comma = if key == 0 { "" } else { "," };
        write!(body, "{comma}\"key-{key:06}\":\"value-{key:020}\"").expect("memory");
    }
    write!(body, "}}{more}}}").expect("memory");
    let request = Request::post("/v1/kv/notes/batch", body);
    let done = proxy.admin().send_and_wait(request).await;
    assert_eq!(done.status, 200, "{}", done.text());
}

/// Waits until resident memory is near to what it was.
async fn is_given_back(proxy: &TestProxy, before: u64) {
    let taken = peak_kib(proxy) - before;
    assert!(taken > TAKEN_KIB, "{before} + {taken} KiB");
    let what = format!("{before} KiB, {taken} KiB more, and {LEFT_KIB} KiB more at most");
    eventually(&what, async || {
        (proxy.rss_kib() < before + LEFT_KIB).then_some(())
    })
    .await;
}

#[tokio::test]
async fn memory_of_keys_that_were_deleted_is_given_back() {
    let (proxy, before) = empty().await;
    set(&proxy, "").await;
    assert_eq!(keys(&proxy).await, KEYS);
    let request = Request::post("/v1/kv/notes/batch?replace=true", "{}");
    let done = proxy.admin().send_and_wait(request).await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(keys(&proxy).await, 0);
    is_given_back(&proxy, before).await;
}

#[tokio::test]
async fn memory_of_keys_that_ended_is_given_back() {
    let (proxy, before) = empty().await;
    set(&proxy, ",\"ttl\":\"1s\"").await;
    eventually("all keys are gone", async || {
        (keys(&proxy).await == 0).then_some(())
    })
    .await;
    is_given_back(&proxy, before).await;
}
