//! Data that an activation writes, and that this process sees late.

use super::guest::replies;
use super::migrations::{MOVE, migrating, moved_in};
use super::*;
use crate::store::CommitError;
use crate::store::tests::engine::Shelf;
use crate::store::tests::nodes::{node_on_its_own, until_lost};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Plugins over buckets that proxies share.
async fn bench() -> (Bench, Shelf) {
    let dir = tempfile::tempdir().expect("a directory");
    let buckets = [
        BucketConfig::new("map", BackendKind::Etcd, ValueKind::Endpoint),
        BucketConfig::new("notes", BackendKind::Etcd, ValueKind::Bytes),
    ];
    let timeout = Duration::from_secs(1);
    let (store, shelf) = node_on_its_own(&buckets, dir.path(), timeout);
    (Bench::over(store, dir, |_| {}).await, shelf)
}

/// Pushes a version whose data are not seen in time.
async fn push_late(bench: &Bench, shelf: &Shelf) {
    shelf.be_silent(true);
    let late = bench.deploy(migrating(202, "", MOVE)).await;
    let is_late = matches!(late, Err(DeployError::Late(CommitError::Unseen { .. })));
    assert!(is_late, "{late:?}");
}

/// Waits until the version that was pushed is active.
async fn took_over(bench: &Bench) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while bench
        .plugins
        .slot("p")
        .expect("a slot")
        .active()
        .as_ref()
        .is_none_or(|active| active.sandbox.code.migrate_export.is_none())
    {
        assert!(
            std::time::Instant::now() < deadline,
            "it does not take over"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bench.status(), 202);
}

/// Looks at states of the store until told to stop: who decides on one that has the data is who wrote them.
fn look(store: &Store, slot: &PluginSlot, before: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let snapshot = store.snapshot();
        let staged = slot.staged(snapshot.revision().0);
        let decides = staged.or_else(|| slot.active().clone());
        let decides = decides.expect("a version");
        if decides.data_since() > snapshot.revision().0 {
            // It took over since: requests look again.
            continue;
        }
        let is_before = *decides.label().digest == *before;
        assert_eq!(moved_in(&snapshot).is_none(), is_before);
    }
}

#[tokio::test]
async fn a_version_whose_data_are_seen_late_is_told_so_and_takes_over_with_them() {
    let (bench, shelf) = bench().await;
    let first = bench.deploy(replies(201)).await.expect("a version");
    let stop = Arc::new(AtomicBool::new(false));
    let looking = {
        let (store, stop) = (bench.store.clone(), Arc::clone(&stop));
        let slot = bench.plugins.slot("p").expect("a slot");
        std::thread::spawn(move || look(&store, &slot, &first.digest, &stop))
    };
    push_late(&bench, &shelf).await;
    let next = bench.deploy(replies(203)).await;
    assert!(matches!(next, Err(DeployError::Busy(_))), "{next:?}");
    assert_eq!(bench.status(), 201);
    shelf.be_silent(false);
    took_over(&bench).await;
    let moved = moved_in(&bench.store.snapshot()).expect("the entry");
    assert_eq!(bench.active().data_since(), moved.0);
    stop.store(true, Ordering::Relaxed);
    looking.join().expect("who decided had the data");
}

#[tokio::test]
async fn a_config_that_comes_before_the_data_is_that_of_the_version() {
    let (bench, shelf) = bench().await;
    bench.deploy(replies(201)).await.expect("a version");
    push_late(&bench, &shelf).await;
    let mut changed = config();
    changed.settings.insert("more".into(), "1".into());
    bench.plugins.apply(&[changed]).await.expect("applied");
    assert_eq!(bench.status(), 201);
    shelf.be_silent(false);
    took_over(&bench).await;
    let active = bench.active();
    assert!(active.config().settings.contains_key("more"));
    let moved = moved_in(&bench.store.snapshot()).expect("the entry");
    assert_eq!(active.data_since(), moved.0);
}

#[tokio::test]
async fn a_plugin_that_leaves_the_config_before_its_data_come_stays_away() {
    let (bench, shelf) = bench().await;
    bench.deploy(replies(201)).await.expect("a version");
    push_late(&bench, &shelf).await;
    bench.plugins.apply(&[]).await.expect("applied");
    shelf.be_silent(false);
    bench.put("map", "id2", "127.0.0.2").await;
    assert!(moved_in(&bench.store.snapshot()).is_some());
    bench.plugins.apply(&[config()]).await.expect("applied");
    // What the mark says was to be active.
    assert_eq!(bench.status(), 202);
}

/// The master of a Redis dies with what it had not told its replica, and perhaps somebody writes there.
#[tokio::test]
async fn a_version_whose_data_a_failover_has_lost_does_not_take_over_and_can_be_pushed_again() {
    for is_written in [false, true] {
        let (bench, shelf) = bench().await;
        bench.deploy(replies(201)).await.expect("a version");
        let backup = shelf.backup();
        push_late(&bench, &shelf).await;
        shelf.lose_end(backup);
        if is_written {
            bench.put("map", "id2", "127.0.0.2").await;
        } else {
            // It tells again that this is all.
            shelf.be_away(true);
            until_lost(&bench.store, true);
            shelf.be_away(false);
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            match bench.deploy(migrating(202, "", MOVE)).await {
                Err(DeployError::Busy(_)) => {
                    assert_eq!(bench.status(), 201);
                    assert!(std::time::Instant::now() < deadline, "it waits for ever");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                pushed => break drop(pushed.expect("its data are written")),
            }
        }
        assert_eq!(bench.status(), 202);
        assert!(moved_in(&bench.store.snapshot()).is_some());
    }
}
