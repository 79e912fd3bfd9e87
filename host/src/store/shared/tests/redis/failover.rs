//! Replicas: promoted with and without the newest writes; waited for.

use super::*;

/// A follower behind a relay, the master it follows, and a replica that lacks the master's newest write.
async fn with_lost_tail(promoted_writes: usize) {
    let Some(mut master) = RedisServer::start().await else {
        return;
    };
    let Some(replica) = master.replica().await else {
        return;
    };
    let relay = Relay::start(master.address()).await;
    let behind = master.engine(&relay.address(), "tail");
    write(&behind, vec![set(ONE, "both", "v")]).await;
    let mut follower = Follower::start(&behind).await;
    follower.is_current().await;
    master.has_replicas(1).await;
    // Promoted while its master is still there and takes one more write.
    let _: () = replica.command(cmd("REPLICAOF").arg("NO").arg("ONE")).await;
    let lost = write(&behind, vec![set(ONE, "lost", "v")]).await;
    follower.reaches(lost).await;
    assert_eq!(follower.value(ONE, "lost"), Some(&b"v"[..]));
    let promoted = replica.engine(&replica.address(), "tail");
    let mut newest = Revision(0);
    for number in 0..promoted_writes {
        newest = write(&promoted, vec![set(ONE, &format!("{number}"), "v")]).await;
    }
    assert_eq!(newest.0 > lost.0, promoted_writes > 1);
    relay.turn_to(replica.address());
    master.kill();
    follower.has_gap().await;
    let mut follower = Follower::start(&behind).await;
    assert_eq!(follower.value(ONE, "lost"), None);
    assert_eq!(follower.value(ONE, "both"), Some(&b"v"[..]));
    assert_eq!(follower.state.len(), 1 + promoted_writes);
    let newest = write(&behind, vec![set(ONE, "lost", "again")]).await;
    follower.reaches(newest).await;
    assert_eq!(follower.value(ONE, "lost"), Some(&b"again"[..]));
}

#[test]
fn a_promoted_replica_that_is_behind_is_a_gap() {
    run(with_lost_tail(0));
}

#[test]
fn a_promoted_replica_at_the_same_revision_is_a_gap_if_it_has_another_write() {
    run(with_lost_tail(1));
}

#[test]
fn a_promoted_replica_that_is_ahead_is_a_gap_if_it_lacks_a_write() {
    run(with_lost_tail(3));
}

#[test]
fn a_promoted_replica_that_has_everything_is_no_gap() {
    run(async {
        let Some(mut master) = RedisServer::start().await else {
            return;
        };
        let Some(replica) = master.replica().await else {
            return;
        };
        let relay = Relay::start(master.address()).await;
        let behind = master.engine(&relay.address(), "whole");
        let mut follower = Follower::start(&behind).await;
        let written = write(&behind, vec![set(ONE, "before", "v")]).await;
        follower.reaches(written).await;
        master.has_replicas(1).await;
        let _: () = replica.command(cmd("REPLICAOF").arg("NO").arg("ONE")).await;
        relay.turn_to(replica.address());
        master.kill();
        let newest = write_when_back(&behind, vec![set(ONE, "after", "v")]).await;
        follower.reaches(newest).await;
        assert_eq!(follower.told.len(), 2);
        assert_eq!(state(&load(&behind).await), follower.state);
    });
}

#[test]
fn a_write_that_replicas_do_not_have_in_time_is_not_acknowledged() {
    with_server(async |server: RedisServer| {
        let engine = engine(RedisSettings {
            replicas: 1,
            replicas_timeout: Duration::from_millis(200),
            ..server.settings.clone()
        });
        let error = commit(&engine, vec![], vec![set(ONE, "a", "v")]).await;
        assert!(
            matches!(&error, Err(EngineError::Unknown(reason)) if reason.contains("0 of 1 replicas")),
            "{error:?}"
        );
        let Some(_replica) = server.replica().await else {
            return;
        };
        write_when_back(&engine, vec![set(ONE, "a", "w")]).await;
    });
}

#[test]
fn writers_wait_together_for_a_replica_that_is_not_there() {
    with_server(async |server: RedisServer| {
        let engine = engine(RedisSettings {
            replicas: 1,
            replicas_timeout: Duration::from_secs(1),
            ..server.settings.clone()
        });
        let began = std::time::Instant::now();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..12 {
            let engine = engine.clone();
            writers.spawn(async move {
                let put = set(ONE, &format!("{writer}"), "v");
                commit(&engine, vec![], vec![put]).await
            });
        }
        for error in writers.join_all().await {
            assert!(matches!(error, Err(EngineError::Unknown(_))), "{error:?}");
        }
        // One after the other it would be twelve seconds.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(6), "{took:?}");
        assert_eq!(load(&engine).await.entries.len(), 12);
    });
}

#[test]
fn a_replica_is_not_taken_for_its_master() {
    with_server(async |server: RedisServer| {
        let Some(replica) = server.replica().await else {
            return;
        };
        let engine = replica.engine(&replica.address(), "replica");
        let error = commit(&engine, vec![], vec![set(ONE, "a", "v")]).await;
        assert!(
            matches!(&error, Err(EngineError::Unavailable(reason)) if reason.contains("READONLY")),
            "{error:?}"
        );
        // What it has may be old.
        let mut follower = Follower::start(&engine).await;
        follower.is_lost().await;
        assert_eq!(follower.current, 0);
        assert!(follower.lost[0].contains("READONLY"), "{:?}", follower.lost);
    });
}
