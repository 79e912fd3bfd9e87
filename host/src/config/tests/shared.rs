//! Where the engines are that proxies share, and how they are reached.

use super::*;
use crate::store::shared::settings::{
    ClientCertificate, Credentials, EtcdSettings, RedisServers, RedisSettings, TlsFiles,
};

fn tls() -> Option<TlsFiles> {
    Some(TlsFiles {
        ca: Some("/tls/ca.pem".into()),
        certificate: Some(ClientCertificate {
            chain: "/tls/proxy.pem".into(),
            key: "/tls/proxy.key".into(),
        }),
    })
}

const TLS: &str =
    "{ ca = \"/tls/ca.pem\", certificate = \"/tls/proxy.pem\", key = \"/tls/proxy.key\" }";

fn login(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials {
        user: Some(user.to_owned()),
        password: password.to_owned(),
    })
}

#[test]
fn etcd_is_reached_as_it_is_written() {
    let text = format!(
        "{LISTENER}[store.etcd]\nendpoints = [\"https://a:2379\", \"https://b:2379\"]\nprefix = \"edge\"\n\
         user = \"proxy\"\npassword = \"secret of etcd\"\ntls = {TLS}\n\
         connect_timeout = \"2s\"\ntimeout = \"4s\"\nheartbeat = \"3s\"\n"
    );
    let endpoints = vec!["https://a:2379".to_owned(), "https://b:2379".to_owned()];
    let expected = EtcdSettings {
        prefix: "edge".to_owned(),
        credentials: login("proxy", "secret of etcd"),
        tls: tls(),
        connect_timeout: Duration::from_secs(2),
        timeout: Duration::from_secs(4),
        heartbeat: Duration::from_secs(3),
        ..EtcdSettings::new(endpoints)
    };
    assert_eq!(good(&text).store.etcd, Some(expected));
}

#[test]
fn redis_is_reached_as_it_is_written() {
    let names = || vec!["a:1".to_owned(), "b:1".to_owned()];
    let (master, sentinels) = ("edge".to_owned(), names());
    for (text, servers) in [
        ("server = \"a:1\"", RedisServers::Single("a:1".to_owned())),
        (
            "sentinels = [\"a:1\", \"b:1\"]\nmaster = \"edge\"",
            RedisServers::Sentinel { sentinels, master },
        ),
        (
            "cluster = [\"a:1\", \"b:1\"]",
            RedisServers::Cluster(names()),
        ),
    ] {
        let text = format!(
            "{LISTENER}[store.redis]\n{text}\nuser = \"proxy\"\npassword = \"secret of redis\"\n\
             sentinel_user = \"watcher\"\nsentinel_password = \"secret of sentinel\"\ntls = {TLS}\n\
             log_entries = 5000\nreplicas = 2\nreplicas_timeout = \"700ms\"\n"
        );
        let expected = RedisSettings {
            credentials: login("proxy", "secret of redis"),
            sentinel_credentials: login("watcher", "secret of sentinel"),
            tls: tls(),
            log_entries: 5000,
            replicas: 2,
            replicas_timeout: Duration::from_millis(700),
            ..RedisSettings::new(servers)
        };
        let settings = good(&text).store.redis.expect("it is written");
        assert_eq!(settings, expected);
        // What is not shown is compared, too.
        assert_eq!(
            settings.credentials.expect("a login").password,
            "secret of redis"
        );
    }
}

#[test]
fn a_place_that_is_written_and_cannot_be_read_is_not_said_to_be_missing() {
    let users =
        "[buckets.notes]\nbackend = \"redis\"\nvalues = \"bytes\"\n[fleet]\nbackend = \"redis\"\n";
    let text = format!("{LISTENER}[store.redis]\nendpoints = [\"127.0.0.1:6379\"]\n{users}");
    let found = problems(&text);
    assert!(
        found.iter().all(|it| it.contains(" store.redis")),
        "{found:?}"
    );
    let missing = problems(&format!("{LISTENER}{users}"));
    let missing = missing
        .iter()
        .filter(|it| it.contains("does not say where that is"));
    assert_eq!(missing.count(), 2);
}
