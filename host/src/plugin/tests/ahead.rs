//! A version that is made ready ahead of the moment in which it takes over.

use super::guest::replies;
use super::*;
use crate::plugin::DrainingFull;
use std::sync::atomic::Ordering;

#[tokio::test]
async fn who_is_on_stage_decides_from_its_moment_on_and_not_before() {
    let bench = Bench::new().await;
    let next = bench.deploy(replies(202)).await.expect("a version");
    bench.deploy(replies(201)).await.expect("a version");
    let staged = bench.plugins.stage("p", &next.digest, None, false).await;
    let ahead = staged.expect("staged");
    let slot = bench.plugins.slot("p").expect("a slot");
    let notes = bench.plugins.on_stage("p", &next.digest);
    let notes = notes.expect("it is on stage");
    assert!(slot.staged(u64::MAX - 1).is_none(), "it has no moment yet");
    for note in &notes {
        note.store(10, Ordering::Release);
    }
    assert!(slot.staged(9).is_none());
    let decides = slot.staged(10).expect("it is its turn");
    assert_eq!(*decides.label().digest, *next.digest);
    drop(ahead);
    assert!(slot.staged(10).is_none(), "it has left");
}

#[tokio::test]
async fn what_would_leave_too_many_draining_is_not_put_on_stage() {
    let refuses = |config: &mut PluginConfig| {
        config.versions.draining_max = Some(0);
        config.versions.draining_full = DrainingFull::Refuse;
    };
    let bench = Bench::with(refuses).await;
    let next = bench.deploy(replies(202)).await.expect("a version");
    bench.deploy(replies(201)).await.expect("a version");
    let label = Arc::clone(bench.active().label());
    label.streams.fetch_add(1, Ordering::Relaxed);
    let stage = async || bench.plugins.stage("p", &next.digest, None, false).await;
    let refused = stage().await.err().expect("a stream is open");
    assert!(matches!(refused, DeployError::Draining(_)), "{refused}");
    label.streams.fetch_sub(1, Ordering::Relaxed);
    drop(stage().await.expect("none is"));
}
