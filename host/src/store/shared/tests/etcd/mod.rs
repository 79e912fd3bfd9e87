//! etcd: the suite, and what only etcd has: members, leases, logins, other programs.

use super::certificates::Certificates;
use super::follower::{Follower, state};
use super::server::{Process, free_port, program, ready};
use super::suite::conformance;
use super::*;
use crate::store::shared::etcd::Etcd;
use crate::store::shared::settings::{Credentials, EtcdSettings, TlsFiles};
use etcd_client::{Client, ConnectOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::task::JoinSet;

mod leases;
mod members;
mod reach;

/// Leases that end together: it gives up a thousand a second. So many are asked for at once.
const LEASES: usize = 8_000;
const AT_ONCE: usize = 100;

conformance!(EtcdServer);

#[test]
fn the_store_conforms() {
    through_store::the_store_conforms::<EtcdServer>();
}

#[test]
fn thousands_are_absent_soon_after_their_end() {
    through_store::thousands_are_absent_soon_after_their_end::<EtcdServer>();
}

#[test]
fn ten_thousand_of_one_batch_are_absent_within_a_second_of_their_end() {
    let more = ["--max-txn-ops=12000", "--max-request-bytes=4000000"];
    let server = through_store::runtime().block_on(EtcdServer::alone(&more, false));
    let Some(server) = server else { return };
    let settings = EtcdSettings {
        transaction_writes_max: 12_000,
        transaction_bytes_max: 3_000_000,
        timeout: Duration::from_secs(30),
        ..server.settings(&server.address(), "ten-thousand")
    };
    let engine = Etcd::new(settings).expect("the settings are right");
    through_store::a_batch_is_absent_within_a_second_of_its_end(engine, 10_000);
}

#[test]
fn an_end_is_seen_and_told_on_every_node_within_a_second() {
    ends::an_end_is_seen_and_told_on_every_node_within_a_second::<EtcdServer>();
}

#[test]
fn an_end_is_seen_on_every_node_within_a_second_before_the_server_removes_it() {
    ends::an_end_is_seen_on_every_node_within_a_second_before_the_server_removes_it::<EtcdServer>();
}

#[test]
fn histories_of_three_proxies_are_linearizable_also_beside_kills() {
    through_store::histories_are_linearizable::<EtcdServer>(3);
}

/// One member, alone or of several.
struct EtcdServer {
    program: PathBuf,
    folder: TempDir,
    client: u16,
    arguments: Vec<String>,
    process: Process,
    files: Option<TlsFiles>,
}

impl EtcdServer {
    fn started(program: PathBuf, folder: TempDir, client: u16, arguments: Vec<String>) -> Self {
        let process = Process::start(&program, &arguments);
        Self {
            program,
            folder,
            client,
            arguments,
            process,
            files: None,
        }
    }

    async fn alone(more: &[&str], tls: bool) -> Option<Self> {
        let program = program("etcd")?;
        loop {
            let folder = TempDir::new().expect("a folder can be made");
            let (client, peer) = (free_port(), free_port());
            let mut arguments = arguments("alone", &folder, client, peer, tls);
            arguments.push(format!("--initial-cluster=alone=http://127.0.0.1:{peer}"));
            arguments.extend(more.iter().map(|argument| argument.to_string()));
            let files = tls.then(|| {
                let made = Certificates::make(folder.path());
                arguments.extend([
                    format!("--cert-file={}", made.chain.display()),
                    format!("--key-file={}", made.key.display()),
                    format!("--trusted-ca-file={}", made.ca.display()),
                    "--client-cert-auth".to_owned(),
                ]);
                made.files()
            });
            let mut server = Self::started(program.clone(), folder, client, arguments);
            server.files = files;
            // If somebody else got a port meanwhile, there are others.
            if server.is_ready().await {
                return Some(server);
            }
        }
    }

    async fn is_ready(&mut self) -> bool {
        let settings = self.settings(&self.address(), "ready");
        ready(&mut self.process, async || {
            let engine = Etcd::new(settings.clone()).expect("the settings are right");
            // One that wants a login is ready, too.
            !matches!(engine.load(&[]).await, Err(EngineError::Unavailable(_)))
        })
        .await
    }

    fn settings(&self, address: &str, prefix: &str) -> EtcdSettings {
        EtcdSettings {
            prefix: prefix.into(),
            tls: self.files.clone(),
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(3),
            heartbeat: Duration::from_millis(200),
            ..EtcdSettings::new(vec![address.into()])
        }
    }

    /// What another program would use.
    async fn client(&self, options: Option<ConnectOptions>) -> Client {
        let client = Client::connect([self.address()], options).await;
        client.expect("it is ready")
    }
}

fn arguments(name: &str, folder: &TempDir, client: u16, peer: u16, tls: bool) -> Vec<String> {
    let scheme = if tls { "https" } else { "http" };
    vec![
        format!("--name={name}"),
        format!("--data-dir={}", folder.path().join("data").display()),
        format!("--listen-client-urls={scheme}://127.0.0.1:{client}"),
        format!("--advertise-client-urls={scheme}://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
    ]
}

impl Server for EtcdServer {
    type Engine = Etcd;

    async fn start() -> Option<Self> {
        Self::alone(&[], false).await
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    fn engine(&self, address: &str, prefix: &str) -> Etcd {
        Etcd::new(self.settings(address, prefix)).expect("the settings are right")
    }

    fn engine_by_default(&self, prefix: &str) -> Etcd {
        let settings = EtcdSettings {
            prefix: prefix.into(),
            ..EtcdSettings::new(vec![self.address()])
        };
        Etcd::new(settings).expect("the settings are right")
    }

    fn engine_removing_late(&self, prefix: &str) -> Etcd {
        self.engine_by_default(prefix)
    }

    async fn has_much_to_remove(&self, after: Duration) {
        let client = self.client(None).await;
        let seconds = after.as_secs().cast_signed();
        let mut granting = JoinSet::new();
        for _ in 0..AT_ONCE {
            let mut client = client.clone();
            granting.spawn(async move {
                for _ in 0..LEASES / AT_ONCE {
                    let granted = client.lease_grant(seconds, None).await;
                    granted.expect("it grants");
                }
            });
        }
        granting.join_all().await;
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

    async fn forget_log(&self, _prefix: &str) {
        let mut client = self.client(None).await;
        let newest = client.get("any", None).await.expect("it answers");
        let newest = newest.header().expect("answers have one").revision();
        client
            .compact(newest, None)
            .await
            .expect("it can be compacted");
    }
}

#[test]
fn other_programs_read_and_write_values_as_they_are() {
    with_server(async |server: EtcdServer| {
        let engine = server.engine(&server.address(), "shared");
        let mut follower = Follower::start(&engine).await;
        let mut client = server.client(None).await;
        write(&engine, vec![set(ONE, "ours", "a")]).await;
        let found = client
            .get("shared/one/ours", None)
            .await
            .expect("it answers");
        assert_eq!(found.kvs()[0].value(), b"a");
        let options = LeaseGrantOptions::new();
        let lease = client
            .lease_grant(60, Some(options))
            .await
            .expect("it grants")
            .id();
        let both = Txn::new().and_then(vec![
            TxnOp::put(
                "shared/one/theirs",
                "b",
                Some(PutOptions::new().with_lease(lease)),
            ),
            TxnOp::put("shared/two/theirs", "c", None),
            TxnOp::put("shared/unknown", "no entry", None),
            TxnOp::put("shared/one/\u{7}", "no key", None),
            TxnOp::put("shared/other/theirs", "not followed", None),
        ]);
        let at = client.txn(both).await.expect("it is applied");
        let at = at.header().expect("answers have one").revision();
        let at = Revision(at.unsigned_abs());
        follower.reaches(at).await;
        let (revision, changes) = follower.told.last().expect("it was told");
        assert_eq!((*revision, changes.len()), (at.0, 2));
        let loaded = load(&engine).await;
        assert_eq!(state(&loaded), follower.state);
        assert!(
            loaded
                .entries
                .iter()
                .all(|entry| entry.expires_at_ms.is_none())
        );
        // What is of no bucket that is followed still tells how far the log has come.
        let at = client
            .put("shared/other/theirs", "", None)
            .await
            .expect("it is applied");
        let at = at.header().expect("answers have one").revision();
        let told = follower.told.len();
        follower.reaches(Revision(at.unsigned_abs())).await;
        assert_eq!(follower.told.len(), told);
        client.lease_revoke(lease).await.expect("it is there");
        while follower.value(ONE, "theirs").is_some() {
            assert!(follower.next().await, "a gap instead of an end");
        }
    });
}

#[test]
fn a_time_shorter_than_the_server_grants_is_told_as_it_is_granted() {
    with_server(async |server: EtcdServer| {
        let engine = server.engine(&server.address(), "short");
        let mut follower = Follower::start(&engine).await;
        let short = Duration::from_millis(1);
        let begun = SystemTime::now();
        write(
            &engine,
            vec![set_for(ONE, "a", "v", short), set_for(ONE, "b", "v", short)],
        )
        .await;
        let loaded = load(&engine).await;
        let begun = begun
            .duration_since(UNIX_EPOCH)
            .expect("it is later")
            .as_millis();
        for entry in &loaded.entries {
            let told = u128::from(entry.expires_at_ms.expect("it ends"));
            assert!(
                (begun + 1500..begun + 10_000).contains(&told),
                "{begun} {told}"
            );
        }
        assert_eq!(loaded.entries.len(), 2);
        follower.is_current().await;
        while !follower.state.is_empty() {
            assert!(follower.next().await, "a gap instead of an end");
        }
    });
}

#[test]
fn servers_that_can_be_asked_are_not_written_to() {
    with_server(async |server: EtcdServer| {
        let engine = server.engine(&server.address(), "asked").asking();
        let mut follower = Follower::start(&engine).await;
        follower.is_current().await;
        let before = load(&engine).await.revision;
        follower.is_current().await;
        follower.is_current().await;
        assert_eq!(load(&engine).await.revision, before);
        // Somebody else's writes move the revision, too.
        let mut client = server.client(None).await;
        let at = client
            .put("elsewhere", "", None)
            .await
            .expect("it is applied");
        let at = at.header().expect("answers have one").revision();
        follower.reaches(Revision(at.unsigned_abs())).await;
        assert!(follower.told.is_empty());
    });
}

#[test]
fn a_range_larger_than_an_answer_may_be_is_loaded_in_pages_of_one_revision() {
    with_server(async |server: EtcdServer| {
        let engine = server.engine(&server.address(), "pages");
        let value = "v".repeat(4096);
        for piece in 0..30 {
            let writes = (0..100).map(|key| set(ONE, &format!("{piece}.{key}"), &value));
            write(&engine, writes.collect()).await;
        }
        let loaded = load(&engine).await;
        assert_eq!(state(&loaded).len(), 3000);
    });
}

#[test]
fn a_limit_that_the_server_has_is_named_when_it_is_lower_than_ours() {
    with_server(async |server: EtcdServer| {
        let mut settings = server.settings(&server.address(), "limits");
        settings.transaction_writes_max = 10_000;
        settings.transaction_bytes_max = 100 << 20;
        let engine = Etcd::new(settings).expect("the settings are right");
        let many = (0..200)
            .map(|key| set(ONE, &key.to_string(), "v"))
            .collect();
        let large = vec![set(ONE, "large", vec![b'x'; 4 << 20])];
        for writes in [many, large] {
            let error = commit(&engine, vec![], writes).await;
            assert!(
                matches!(&error, Err(EngineError::TooLarge(reason)) if reason.contains("127.0.0.1")),
                "{error:?}"
            );
        }
        write(&engine, vec![set(ONE, "small", "v")]).await;
    });
}
