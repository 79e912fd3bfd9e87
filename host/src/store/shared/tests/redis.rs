//! Redis: the suite, and what only Redis has: replicas that were promoted, sentinels, a cluster, permissions.

use super::certificates::Certificates;
use super::follower::{Follower, state};
use super::relay::Relay;
use super::server::{Process, free_port, program, ready};
use super::suite::conformance;
use super::*;
use crate::store::shared::redis::Redis;
use crate::store::shared::settings::{Credentials, RedisServers, RedisSettings};
use ::redis::{Client, Cmd, FromRedisValue, cmd};
use std::path::PathBuf;
use tempfile::TempDir;

conformance!(RedisServer);

struct RedisServer {
    program: PathBuf,
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    process: Process,
    settings: RedisSettings,
}

impl RedisServer {
    async fn with(more: &[&str], tls: bool) -> Option<Self> {
        let program = program("redis-server")?;
        loop {
            let folder = TempDir::new().expect("a folder can be made");
            let port = free_port();
            let mut arguments = words("--bind 127.0.0.1 --appendonly yes --daemonize no --dir");
            arguments.push(folder.path().display().to_string());
            // No snapshots: the log of commands is the data.
            arguments.extend(["--save".to_owned(), String::new()]);
            arguments.extend(more.iter().flat_map(|more| words(more)));
            let mut settings = settings(RedisServers::Single(format!("127.0.0.1:{port}")));
            if tls {
                let made = Certificates::make(folder.path());
                arguments.extend(words(&format!("--port 0 --tls-port {port}")));
                for (name, file) in [
                    ("--tls-cert-file", &made.chain),
                    ("--tls-key-file", &made.key),
                    ("--tls-ca-cert-file", &made.ca),
                ] {
                    arguments.extend([name.to_owned(), file.display().to_string()]);
                }
                settings.tls = Some(made.files());
            } else {
                arguments.extend(words(&format!("--port {port}")));
            }
            let process = Process::start(&program, &arguments);
            let mut server = Self {
                program: program.clone(),
                folder,
                port,
                arguments,
                process,
                settings,
            };
            // If somebody else got the port meanwhile, there are others.
            if server.is_ready().await {
                return Some(server);
            }
        }
    }

    async fn is_ready(&mut self) -> bool {
        let settings = self.settings.clone();
        ready(&mut self.process, async || {
            let engine = Redis::new(settings.clone()).expect("the settings are right");
            match engine.load(&[]).await {
                // A cluster without slots is ready, too.
                Err(EngineError::Unavailable(reason)) => reason.contains("CLUSTERDOWN"),
                _ => true,
            }
        })
        .await
    }

    /// Does a command, as another program would.
    async fn command<T: FromRedisValue>(&self, command: &mut Cmd) -> T {
        let client = Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("an address");
        let connection = client.get_multiplexed_async_connection().await;
        let mut connection = connection.expect("it is ready");
        command
            .query_async(&mut connection)
            .await
            .expect("it does it")
    }

    /// A replica of this one, which has everything.
    async fn replica(&self) -> Option<Self> {
        let replica = Self::with(&[&format!("--replicaof 127.0.0.1 {}", self.port)], false).await?;
        self.has_replicas(1).await;
        Some(replica)
    }

    /// Waits until so many have everything that was written up to now.
    async fn has_replicas(&self, count: u32) {
        let client = Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("an address");
        let connection = client.get_multiplexed_async_connection().await;
        let mut connection = connection.expect("it is ready");
        let mut wait = ::redis::pipe();
        // It waits for what was written on the same connection.
        wait.cmd("INCR").arg("waits").ignore();
        wait.cmd("WAIT").arg(count).arg(100);
        let wanted = async {
            loop {
                let (have,): (u32,) = wait.query_async(&mut connection).await.expect("it does it");
                if have >= count {
                    return;
                }
            }
        };
        timeout(SOON, wanted).await.expect("replicas come up");
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn settings(servers: RedisServers) -> RedisSettings {
    RedisSettings {
        connect_timeout: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        heartbeat: Duration::from_millis(200),
        ..RedisSettings::new(servers)
    }
}

fn engine(settings: RedisSettings) -> Redis {
    Redis::new(settings).expect("the settings are right")
}

impl Server for RedisServer {
    type Engine = Redis;

    async fn start() -> Option<Self> {
        Self::with(&[], false).await
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn engine(&self, address: &str, prefix: &str) -> Redis {
        engine(RedisSettings {
            servers: RedisServers::Single(address.into()),
            prefix: prefix.into(),
            ..self.settings.clone()
        })
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    async fn start_again(&mut self) {
        self.process = Process::start(&self.program, &self.arguments);
        assert!(
            self.is_ready().await,
            "it does not start on its data in {:?}",
            self.folder
        );
    }

    async fn forget_log(&self, prefix: &str) {
        let log = format!("{{{prefix}}}:log");
        let _: u64 = self
            .command(cmd("XTRIM").arg(log).arg("MAXLEN").arg(1))
            .await;
    }
}

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

#[test]
fn sentinels_name_the_master_before_and_after_a_failover() {
    with_server(async |mut master: RedisServer| {
        let Some(replica) = master.replica().await else {
            return;
        };
        let sentinel = free_port();
        let folder = TempDir::new().expect("a folder can be made");
        let file = folder.path().join("sentinel.conf");
        let config = format!(
            "port {sentinel}\nbind 127.0.0.1\ndir {}\nsentinel monitor fleet 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds fleet 500\nsentinel failover-timeout fleet 2000\n",
            folder.path().display(),
            master.port,
        );
        std::fs::write(&file, config).expect("the folder can be written");
        let arguments = [file.display().to_string(), "--sentinel".to_owned()];
        let mut process = Process::start(&master.program, &arguments);
        let by_name = |name: &str| {
            let mut settings = settings(RedisServers::Sentinel {
                // The first is not there.
                sentinels: vec![
                    format!("127.0.0.1:{}", free_port()),
                    format!("127.0.0.1:{sentinel}"),
                ],
                master: name.into(),
            });
            settings.connect_timeout = Duration::from_secs(3);
            engine(settings)
        };
        let engine = by_name("fleet");
        let found = ready(&mut process, async || engine.load(&[]).await.is_ok()).await;
        assert!(found, "the sentinel ended");
        let error = by_name("nobody").load(&[]).await;
        assert!(
            matches!(&error, Err(EngineError::Unavailable(reason)) if reason.contains("nobody")),
            "{error:?}"
        );
        // It promotes only a replica that it has heard of.
        let knows = async {
            let client = Client::open(format!("redis://127.0.0.1:{sentinel}")).expect("an address");
            let mut connection = client
                .get_multiplexed_async_connection()
                .await
                .expect("it is ready");
            loop {
                let mut question = cmd("SENTINEL");
                question.arg("REPLICAS").arg("fleet");
                let replicas: Vec<::redis::Value> = question
                    .query_async(&mut connection)
                    .await
                    .expect("it answers");
                if !replicas.is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, knows)
            .await
            .expect("it asks the master for its replicas");
        let mut follower = Follower::start(&engine).await;
        let before = write(&engine, vec![set(ONE, "before", "v")]).await;
        follower.reaches(before).await;
        master.has_replicas(1).await;
        master.kill();
        let after = write_when_back(&engine, vec![set(ONE, "after", "v")]).await;
        follower.reaches(after).await;
        assert_eq!(follower.told.len(), 2);
        let direct = RedisSettings {
            servers: RedisServers::Single(replica.address()),
            ..settings(RedisServers::Single(String::new()))
        };
        assert_eq!(state(&load(&self::engine(direct)).await), follower.state);
    });
}

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
        for (prefix, password) in [("acl", "wrong"), ("other", "secret")] {
            let error = commit(&with(prefix, password), vec![], vec![set(ONE, "a", "v")]).await;
            assert!(
                matches!(error, Err(EngineError::Refused(_))),
                "{prefix} {password} {error:?}"
            );
        }
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
        // How the end of a handshake is seen depends on who is faster.
        for settings in [without, plain] {
            let reason = error(settings).await;
            assert!(
                matches!(
                    reason,
                    Some(EngineError::Refused(_) | EngineError::Unavailable(_))
                ),
                "{reason:?}"
            );
        }
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
