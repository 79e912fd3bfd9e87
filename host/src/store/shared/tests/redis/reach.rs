//! The ways there: a cluster, a login with few permissions, TLS.

use super::*;

#[test]
fn a_cluster_is_asked_who_has_the_slot() {
    run(async {
        let cluster = ["--cluster-enabled yes"];
        let Some(first) = RedisServer::with(&cluster, false).await else {
            return;
        };
        let Some(second) = RedisServer::with(&cluster, false).await else {
            return;
        };
        // All of it is with the second, and the first is asked.
        let _: () = second
            .command(cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(0).arg(16383))
            .await;
        let _: () = first
            .command(cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(second.port))
            .await;
        let engine = engine(settings(RedisServers::Cluster(vec![first.address()])));
        let newest = write_when_back(&engine, vec![set(ONE, "a", "v"), set(TWO, "a", "v")]).await;
        let mut follower = Follower::start(&engine).await;
        let keys: u64 = second.command(&mut cmd("DBSIZE")).await;
        assert_eq!(keys, 5, "head, log, changed and two hashes");
        let newer = write(
            &engine,
            vec![set_for(TWO, "b", "v", Duration::from_secs(60))],
        )
        .await;
        assert!(newer > newest);
        follower.reaches(newer).await;
        assert_eq!(follower.value(TWO, "b"), Some(&b"v"[..]));
    });
}

/// The commands that a proxy needs, on keys of its prefix.
const PERMISSIONS: &str = "~{acl}:* resetchannels -@all +eval +evalsha +script|load +time +hmget +hget +hset +hdel \
                           +hexists +hscan +xadd +xread +xrange +zadd +zrem +zrangebyscore +wait +ping";

#[test]
fn a_login_with_the_permissions_that_are_needed_is_enough() {
    with_server(async |server: RedisServer| {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("proxy").arg("on").arg(">secret");
        for rule in PERMISSIONS.split_whitespace() {
            user.arg(rule);
        }
        let _: () = server.command(&mut user).await;
        let with = |prefix: &str, password: &str| {
            engine(RedisSettings {
                prefix: prefix.into(),
                credentials: Some(Credentials {
                    user: Some("proxy".into()),
                    password: password.into(),
                }),
                ..server.settings.clone()
            })
        };
        let engine = with("acl", "secret");
        let mut follower = Follower::start(&engine).await;
        let ttl = Duration::from_millis(300);
        let newest = write(
            &engine,
            vec![set(ONE, "a", "v"), set_for(ONE, "b", "v", ttl)],
        )
        .await;
        follower.reaches(newest).await;
        while follower.value(ONE, "b").is_some() {
            assert!(follower.next().await, "a gap instead of an end");
        }
        write(&engine, vec![delete(ONE, "a")]).await;
        assert_eq!(load(&engine).await.entries, []);
        for (prefix, password, told) in [
            ("acl", "wrong", "see `user` and `password` of [store.redis]"),
            ("other", "secret", "NOPERM"),
        ] {
            let error = commit(&with(prefix, password), vec![], vec![set(ONE, "a", "v")]).await;
            assert!(
                matches!(&error, Err(EngineError::Refused(reason)) if reason.contains(told)),
                "{prefix} {password} {error:?}"
            );
        }
    });
}

#[test]
fn a_server_that_wants_a_login_says_which_settings_to_write() {
    run(async {
        let Some(server) = RedisServer::with(&["--requirepass secret"], false).await else {
            return;
        };
        let reason = async |servers| {
            let engine = engine(RedisSettings {
                servers,
                ..server.settings.clone()
            });
            match engine.load(&buckets()).await {
                Err(EngineError::Refused(reason)) => reason,
                other => panic!("not refused: {other:?}"),
            }
        };
        let address = server.address();
        assert_eq!(
            reason(RedisServers::Single(address.clone())).await,
            format!(
                "redis {address}: NOAUTH: the server wants a login: set `password` in [store.redis], and `user` \
                 if it is not the default one"
            )
        );
        let sentinels = RedisServers::Sentinel {
            sentinels: vec![address],
            master: "mymaster".into(),
        };
        let reason = reason(sentinels).await;
        assert!(reason.contains("set `sentinel_password` in"), "{reason}");
    });
}

#[test]
fn what_is_no_redis_is_told() {
    with_server(async |server: RedisServer| {
        let reason = async |settings: RedisSettings| {
            let error = engine(settings).load(&buckets()).await;
            error.expect_err("refused").to_string()
        };
        let http = HttpServer::start().await;
        let mut elsewhere = server.settings.clone();
        elsewhere.servers = RedisServers::Single(http.address.clone());
        let told = reason(elsewhere).await;
        let expected = "an HTTP server answers there, which does not speak Redis";
        assert!(told.contains(expected), "{told}");
        let mut with_tls = server.settings.clone();
        with_tls.tls = Some(Default::default());
        let told = reason(with_tls).await;
        let expected = "without TLS: leave out `tls` of [store.redis]";
        assert!(told.contains(expected), "{told}");
    });
}

#[test]
fn tls_is_checked_on_both_sides() {
    run(async {
        let Some(server) = RedisServer::with(&[], true).await else {
            return;
        };
        let engine = server.engine(&server.address(), "tls");
        let mut follower = Follower::start(&engine).await;
        let newest = write(&engine, vec![set(ONE, "a", "v")]).await;
        follower.reaches(newest).await;
        let mut without = server.settings.clone();
        without.tls.as_mut().expect("it has TLS").certificate = None;
        let mut unknown = server.settings.clone();
        unknown.tls.as_mut().expect("it has TLS").ca = None;
        let mut plain = server.settings.clone();
        plain.tls = None;
        let error = async |settings| {
            let engine = self::engine(settings);
            commit(&engine, vec![], vec![set(ONE, "a", "w")])
                .await
                .err()
        };
        let reason = error(unknown).await;
        assert!(
            matches!(&reason, Some(EngineError::Refused(reason)) if reason.contains("certificate")),
            "{reason:?}"
        );
        let reason = error(plain).await.map(|error| error.to_string());
        let told = "the server there speaks TLS: set `tls` in [store.redis]";
        assert!(
            reason.as_ref().is_some_and(|it| it.contains(told)),
            "{reason:?}"
        );
        // How the end of a handshake is seen depends on who is faster.
        let reason = error(without).await;
        assert!(
            matches!(
                reason,
                Some(EngineError::Refused(_) | EngineError::Unavailable(_))
            ),
            "{reason:?}"
        );
    });
}
