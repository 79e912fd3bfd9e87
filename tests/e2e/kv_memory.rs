//! Memory of keys that are gone is given back to the system.

use super::kv_bulk::keys;
use crate::harness::{Request, TestProxy, eventually};
use std::fmt::Write;

/// As many as end in five whole transactions: after each of them memory is given back, and after less it may not be.
const KEYS: u64 = 5 * 65_536;
/// What they take at least while they are set, in KiB: their values alone are 62 MiB.
const TAKEN_KIB: u64 = 80 << 10;
/// So many looks in turn, over three seconds, find resident memory where it is: nothing is being given back.
const LOOKS: u32 = 300;
/// By less than this it has not moved, in KiB.
const STILL_KIB: u64 = 1 << 10;

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
        write!(body, "{comma}\"key-{key:06}\":\"{key:0200}\"").expect("memory");
    }
    write!(body, "}}{more}}}").expect("memory");
    let request = Request::post("/v1/kv/notes/batch", body);
    let done = proxy.admin().send_and_wait(request).await;
    assert_eq!(done.status, 200, "{}", done.text());
}

/// What the keys that are set take, in KiB: once all that setting them took beside is given back.
async fn taken(proxy: &TestProxy, before: u64) -> u64 {
    assert_eq!(keys(proxy).await, KEYS);
    let (mut at, mut looks) = (proxy.rss_kib(), 0);
    let full = eventually("resident memory stays where it is", async || {
        let now = proxy.rss_kib();
        looks += 1;
        if now.abs_diff(at) > STILL_KIB {
            (at, looks) = (now, 0);
        }
        (looks == LOOKS).then_some(now)
    })
    .await;
    let taken = full.saturating_sub(before);
    assert!(taken > TAKEN_KIB, "{before} + {taken} KiB");
    taken
}

/// Waits until at least three quarters of what the keys took are given back: of keys that are kept, nothing is.
async fn is_given_back(proxy: &TestProxy, before: u64, taken: u64) {
    let most = before + taken / 4;
    let what = format!("{before} KiB, {taken} KiB more, and {most} KiB at most");
    eventually(&what, async || (proxy.rss_kib() < most).then_some(())).await;
}

#[tokio::test]
async fn memory_of_keys_that_were_deleted_is_given_back() {
    let (proxy, before) = empty().await;
    set(&proxy, "").await;
    let taken = taken(&proxy, before).await;
    let request = Request::post("/v1/kv/notes/batch?replace=true", "{}");
    let done = proxy.admin().send_and_wait(request).await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!(keys(&proxy).await, 0);
    is_given_back(&proxy, before, taken).await;
}

#[tokio::test]
async fn memory_of_keys_that_ended_is_given_back() {
    let (proxy, before) = empty().await;
    set(&proxy, ",\"ttl\":\"1h\"").await;
    let taken = taken(&proxy, before).await;
    // Now they end soon: not while it was looked what they take.
    set(&proxy, ",\"ttl\":\"1s\"").await;
    eventually("all keys are gone", async || {
        (keys(&proxy).await == 0).then_some(())
    })
    .await;
    is_given_back(&proxy, before, taken).await;
}
