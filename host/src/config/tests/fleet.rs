//! `[fleet]`, and what it needs beside it.

use super::*;
use crate::fleet;

const ETCD: &str = "[store.etcd]\nendpoints = [\"127.0.0.1:2379\"]\n";

#[test]
fn reference_example_has_a_fleet_at_its_defaults() {
    let config = good(include_str!("../../../../examples/reference/throwbar.toml"));
    let expected = fleet::Config {
        node: Some("edge-1".to_owned()),
        ..fleet::Config::new(BackendKind::Etcd)
    };
    assert_eq!(config.fleet, Some(expected));
}

#[test]
fn the_bucket_of_a_fleet_is_beside_those_that_have_names() {
    let none = good(LISTENER);
    assert!(none.store_buckets().is_empty());
    let text = format!("{LISTENER}{ETCD}[fleet]\nbackend = \"etcd\"\n[buckets.own]\n");
    let config = good(&text);
    let backends: Vec<_> = config.store_buckets().iter().map(|it| it.backend).collect();
    assert_eq!(backends, [BackendKind::Embedded, BackendKind::Etcd]);
    assert_eq!(config.buckets.len(), 1);
}

#[test]
fn a_fleet_that_cannot_be_is_refused_with_its_reason() {
    for (text, expected) in [
        (
            "[fleet]\n",
            "3:1 fleet: key `backend` is missing in fleet [write `backend = \"etcd\"`]",
        ),
        (
            "[fleet]\nbackend = \"memory\"\n",
            "4:11 fleet.backend: unknown backend \"memory\": expected `etcd` or `redis`",
        ),
        (
            "[fleet]\nbackend = \"redis\"\n",
            "4:11 fleet.backend: the fleet agrees in redis, and the config does not say where that is [write `[store.redis]` with `server = \"127.0.0.1:6379\"`]",
        ),
        (
            "store.etcd.endpoints = [\"a:1\"]\nfleet = { backend = \"etcd\", node = \"a b\" }\n",
            "4:36 fleet.node: \"a b\" cannot be the name of a node: expected at most 64 letters, digits, `-`, `_` and `.`, the first a letter or digit",
        ),
        (
            "store.etcd.endpoints = [\"a:1\"]\nfleet = { backend = \"etcd\", heartbeat = \"90s\" }\n",
            "4:41 fleet.heartbeat: `heartbeat` is 90s: expected 1s to 60s",
        ),
        (
            "store.etcd.endpoints = [\"a:1\"]\nfleet = { backend = \"etcd\", start_timeout = \"1h\" }\n",
            "4:45 fleet.start_timeout: `start_timeout` is 3600s: expected 0ns to 600s",
        ),
    ] {
        let text = match text.starts_with('[') {
            true => format!("{LISTENER}{text}"),
            false => format!("listener = [{{ listen = \"127.0.0.1:8080\" }}]\n\n{text}"),
        };
        assert_eq!(problems(&text), [expected], "{text}");
    }
}
