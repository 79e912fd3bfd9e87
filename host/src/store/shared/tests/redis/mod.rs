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

mod failover;
mod log;
mod reach;
mod sentinels;

conformance!(RedisServer);

#[test]
fn the_store_conforms() {
    through_store::the_store_conforms::<RedisServer>();
}

#[test]
fn thousands_are_absent_soon_after_their_end() {
    through_store::thousands_are_absent_soon_after_their_end::<RedisServer>();
}

#[test]
fn an_end_is_seen_and_told_on_every_node_within_a_second() {
    ends::an_end_is_seen_and_told_on_every_node_within_a_second::<RedisServer>();
}

#[test]
fn an_end_is_seen_on_every_node_within_a_second_before_the_server_removes_it() {
    ends::an_end_is_seen_on_every_node_within_a_second_before_the_server_removes_it::<RedisServer>(
    );
}

#[test]
fn histories_of_three_proxies_are_linearizable() {
    // Killed, it may lose the last second unless it syncs each write; a failover loses more.
    through_store::histories_are_linearizable::<RedisServer>(0);
}

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
            // With `everysec` it may put off a write that it has acknowledged, as long as the disk is busy with a sync.
            let mut arguments = words(
                "--bind 127.0.0.1 --appendonly yes --appendfsync always --daemonize no --dir",
            );
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
        connect_timeout: Duration::from_secs(3),
        timeout: Duration::from_secs(3),
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

    fn engine_by_default(&self, prefix: &str) -> Redis {
        engine(RedisSettings {
            prefix: prefix.into(),
            ..RedisSettings::new(RedisServers::Single(self.address()))
        })
    }

    fn engine_removing_late(&self, prefix: &str) -> Redis {
        engine(RedisSettings {
            prefix: prefix.into(),
            // It removes nothing by itself.
            heartbeat: TEST,
            ..RedisSettings::new(RedisServers::Single(self.address()))
        })
    }

    async fn has_much_to_remove(&self, _after: Duration) {}

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
