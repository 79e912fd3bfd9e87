//! Sentinels: who is asked for the master, across a failover and with logins of both.

use super::*;

/// The one sentinel of a master, which it calls so.
struct Sentinel {
    process: Process,
    port: u16,
    _folder: TempDir,
}

const MASTER: &str = "fleet";

impl Sentinel {
    /// With more lines of its config.
    fn of(master: &RedisServer, more: &str) -> Self {
        let port = free_port();
        let folder = TempDir::new().expect("a folder can be made");
        let file = folder.path().join("sentinel.conf");
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds {MASTER} 500\nsentinel failover-timeout {MASTER} 2000\n{more}",
            folder.path().display(),
            master.port,
        );
        std::fs::write(&file, config).expect("the folder can be written");
        let arguments = [file.display().to_string(), "--sentinel".to_owned()];
        Self {
            process: Process::start(&master.program, &arguments),
            port,
            _folder: folder,
        }
    }

    /// Of an engine that asks it for a master.
    fn settings(&self, master: &str) -> RedisSettings {
        let mut settings = settings(RedisServers::Sentinel {
            // The first is not there.
            sentinels: vec![
                format!("127.0.0.1:{}", free_port()),
                format!("127.0.0.1:{}", self.port),
            ],
            master: master.into(),
        });
        settings.connect_timeout = Duration::from_secs(3);
        settings
    }

    async fn is_ready(&mut self, engine: &Redis) {
        let answers = async || engine.load(&[]).await.is_ok();
        assert!(
            ready(&mut self.process, answers).await,
            "the sentinel ended"
        );
    }

    /// Waits until it has heard of a replica: it promotes no other.
    async fn knows_a_replica(&self) {
        let client = Client::open(format!("redis://127.0.0.1:{}", self.port)).expect("an address");
        let connection = client.get_multiplexed_async_connection().await;
        let mut connection = connection.expect("it is ready");
        let knows = async {
            loop {
                let mut question = cmd("SENTINEL");
                question.arg("REPLICAS").arg(MASTER);
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
    }
}

#[test]
fn sentinels_name_the_master_before_and_after_a_failover() {
    with_server(async |mut master: RedisServer| {
        let Some(replica) = master.replica().await else {
            return;
        };
        let mut sentinel = Sentinel::of(&master, "");
        let engine = engine(sentinel.settings(MASTER));
        sentinel.is_ready(&engine).await;
        let nobody = self::engine(sentinel.settings("nobody"));
        let error = nobody.load(&[]).await;
        assert!(
            matches!(&error, Err(EngineError::Unavailable(reason)) if reason.contains("nobody")),
            "{error:?}"
        );
        sentinel.knows_a_replica().await;
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

/// The rights that the reference config names, of a login at the master and of one at the sentinels.
#[test]
fn a_login_at_the_sentinels_and_one_at_the_master_need_only_their_rights() {
    with_server(async |master: RedisServer| {
        let rules = |rules: &[&str]| {
            let mut user = cmd("ACL");
            user.arg("SETUSER").arg("proxy").arg("resetkeys");
            for rule in rules {
                user.arg(rule);
            }
            user
        };
        let rights = [
            "on",
            ">of-master",
            "~{logins}:*",
            "+@all",
            "-@dangerous",
            "+role",
        ];
        let _: () = master.command(&mut rules(&rights)).await;
        let mut sentinel = Sentinel::of(
            &master,
            "user default off\nuser proxy on >of-sentinel -@all +sentinel|get-master-addr-by-name\n",
        );
        let login = |password: &str| {
            Some(Credentials {
                user: Some("proxy".into()),
                password: password.into(),
            })
        };
        let found_by_it = sentinel.settings(MASTER);
        let with = |at_sentinel: Option<Credentials>, at_master: Option<Credentials>| {
            let settings = RedisSettings {
                prefix: "logins".into(),
                credentials: at_master,
                sentinel_credentials: at_sentinel,
                ..found_by_it.clone()
            };
            engine(settings)
        };
        let engine = with(login("of-sentinel"), login("of-master"));
        let others = [
            (None, login("of-master"), "`sentinel_password`"),
            (
                login("of-master"),
                login("of-master"),
                "`sentinel_password`",
            ),
            (login("of-sentinel"), login("of-sentinel"), "`password`"),
        ];
        let others =
            others.map(|(at_sentinel, at_master, told)| (with(at_sentinel, at_master), told));
        sentinel.is_ready(&engine).await;
        let newest = write(&engine, vec![set(ONE, "a", "v")]).await;
        let mut follower = Follower::start(&engine).await;
        let newer = write(&engine, vec![delete(ONE, "a")]).await;
        assert!(newer > newest);
        follower.reaches(newer).await;
        assert_eq!(follower.value(ONE, "a"), None);
        for (other, told) in others {
            let error = other.load(&buckets()).await;
            assert!(
                matches!(&error, Err(EngineError::Refused(reason)) if reason.contains(told)),
                "{told} {error:?}"
            );
        }
        // A master is asked whether it is one.
        let _: () = master.command(&mut rules(&["-role"])).await;
        let error = with(login("of-sentinel"), login("of-master"))
            .load(&buckets())
            .await;
        let told = error.expect_err("it may not be asked").to_string();
        assert!(told.contains("NOPERM"), "{told}");
    });
}
