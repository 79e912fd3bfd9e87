//! The log: deleted, short, or full.

use super::*;

#[test]
fn everything_deleted_under_a_follower_is_a_gap() {
    with_server(async |server: RedisServer| {
        let engine = server.engine(&server.address(), "flushed");
        let mut follower = Follower::start(&engine).await;
        let newest = write(&engine, vec![set(ONE, "a", "v")]).await;
        follower.reaches(newest).await;
        // The connection stays.
        let _: () = server.command(&mut cmd("FLUSHALL")).await;
        follower.has_gap().await;
        assert_eq!(load(&engine).await.entries, []);
    });
}

#[test]
fn what_is_over_is_removed_by_who_expects_it() {
    with_server(async |server: RedisServer| {
        let engine = server.engine(&server.address(), "over");
        let life = Duration::from_millis(100);
        let brief = set_for(ONE, "brief", "v", life);
        let written = write(&engine, vec![brief, set(ONE, "stays", "v")]).await;
        // Nobody follows, so nobody else removes it.
        let over = async {
            loop {
                let conditions = vec![at(ONE, "brief", Some(written)), at(ONE, "no", None)];
                match commit(&engine, conditions, vec![]).await {
                    Ok(Outcome::Applied(_)) => {}
                    Ok(Outcome::Conflict(revision)) => return revision,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let over = timeout(SOON, over).await.expect("it ends");
        assert_eq!(over.0, written.0 + 1, "its end is in the log");
        let loaded = load(&engine).await;
        assert_eq!((loaded.entries.len(), loaded.revision), (1, over));
        // Once it is known to be over, that is no conflict.
        let again = commit(
            &engine,
            vec![at(ONE, "brief", None)],
            vec![set(ONE, "brief", "w")],
        );
        assert_eq!(again.await, Ok(Outcome::Applied(Revision(over.0 + 1))));
    });
}

#[test]
fn a_deleted_log_is_a_gap() {
    with_server(async |server: RedisServer| {
        let relay = Relay::start(server.address()).await;
        let behind = server.engine(&relay.address(), "log");
        let direct = server.engine(&server.address(), "log");
        let mut follower = Follower::start(&behind).await;
        follower.is_current().await;
        relay.cut();
        follower.is_lost().await;
        write(&direct, vec![set(ONE, "a", "v")]).await;
        let deleted: u64 = server.command(cmd("DEL").arg("{log}:log")).await;
        assert_eq!(deleted, 1);
        relay.restore();
        follower.has_gap().await;
        let mut follower = Follower::start(&behind).await;
        assert_eq!(follower.value(ONE, "a"), Some(&b"v"[..]));
        let newest = write(&direct, vec![set(ONE, "a", "w")]).await;
        follower.reaches(newest).await;
    });
}

#[test]
fn a_server_that_takes_no_writes_is_still_followed() {
    with_server(async |server: RedisServer| {
        let engine = server.engine(&server.address(), "full");
        let mut follower = Follower::start(&engine).await;
        write(&engine, vec![set(ONE, "a", "v")]).await;
        let newest = write(
            &engine,
            vec![set_for(ONE, "b", "v", Duration::from_millis(500))],
        )
        .await;
        follower.reaches(newest).await;
        let limit = |setting: &'static str, value: &'static str| {
            let mut command = cmd("CONFIG");
            command.arg("SET").arg(setting).arg(value);
            command
        };
        let _: () = server
            .command(&mut limit("min-replicas-to-write", "1"))
            .await;
        let error = commit(&engine, vec![], vec![set(ONE, "c", "v")]).await;
        assert!(
            matches!(&error, Err(EngineError::Unavailable(reason)) if reason.contains("NOREPLICAS")),
            "{error:?}"
        );
        follower.is_current().await;
        follower.is_current().await;
        let _: () = server
            .command(&mut limit("min-replicas-to-write", "0"))
            .await;
        let _: () = server.command(&mut limit("maxmemory", "1")).await;
        let error = commit(&engine, vec![], vec![set(ONE, "c", "v")]).await;
        assert!(
            matches!(&error, Err(EngineError::Unavailable(reason)) if reason.contains("OOM")),
            "{error:?}"
        );
        // Removing makes room.
        while follower.value(ONE, "b").is_some() {
            assert!(follower.next().await, "a gap instead of an end");
        }
        assert_eq!(follower.lost, Vec::<String>::new());
        assert_eq!(state(&load(&engine).await), follower.state);
    });
}

#[test]
fn a_short_log_is_kept_short_and_a_small_absence_is_no_gap() {
    with_server(async |server: RedisServer| {
        let short = |address: String| {
            engine(RedisSettings {
                servers: RedisServers::Single(address),
                log_entries: 200,
                ..server.settings.clone()
            })
        };
        let relay = Relay::start(server.address()).await;
        let (behind, direct) = (short(relay.address()), short(server.address()));
        for round in 0..1000 {
            write(&direct, vec![set(ONE, "a", format!("{round}"))]).await;
        }
        let kept: u64 = server.command(cmd("XLEN").arg("{throwbar}:log")).await;
        assert!((200..400).contains(&kept), "{kept}");
        let mut follower = Follower::start(&behind).await;
        follower.is_current().await;
        relay.cut();
        follower.is_lost().await;
        let mut newest = Revision(0);
        for round in 0..150 {
            newest = write(&direct, vec![set(ONE, "a", format!("{round}"))]).await;
        }
        relay.restore();
        follower.reaches(newest).await;
        assert_eq!(follower.told.len(), 150);
    });
}

#[test]
fn many_that_end_at_once_are_removed_at_once() {
    const MANY: usize = 40_000;
    with_server(async |server: RedisServer| {
        let engine = server.engine(&server.address(), "many");
        let mut follower = Follower::start(&engine).await;
        let ttl = Duration::from_secs(3);
        let mut newest = Revision(0);
        for part in 0..4 {
            let keys = (0..MANY / 4).map(|key| format!("{part}.{key}"));
            let writes = keys.map(|key| set_for(ONE, &key, "v", ttl));
            newest = write(&engine, writes.collect()).await;
        }
        let begun = std::time::Instant::now();
        follower.reaches(newest).await;
        while !follower.state.is_empty() {
            assert!(follower.next().await, "a gap instead of an end");
        }
        // A thousand with each look would take eight seconds.
        let after = begun.elapsed();
        assert!(after < ttl + Duration::from_secs(4), "gone after {after:?}");
    });
}
