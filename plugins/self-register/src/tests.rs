use super::{SelfRegister, same};
use std::time::Duration;
use throwbar::log::Level;
use throwbar::testing::{Ask, Host, Plugin, get, request};
use throwbar::{Reply, Target};

const SECRET: &str = "a secret of some length";

fn host() -> Host {
    Host::new()
        .writable_bucket("upstreams", [("id1", "127.0.0.2")])
        .config("secret", SECRET)
}

fn start(host: &Host) -> Plugin<SelfRegister> {
    host.start().unwrap()
}

fn agent(method: &str, id: &str) -> Ask {
    request(method, &format!("/_throwbar/agents/{id}"))
        .header("authorization", &format!("Bearer {SECRET}"))
}

fn text(reply: &Reply) -> &str {
    std::str::from_utf8(&reply.body).unwrap()
}

#[test]
fn an_agent_announces_itself_and_is_routed_to() {
    let host = host();
    let plugin = start(&host);
    let reply = plugin.route(agent("PUT", "id7").header("x-address", "127.0.0.7:81"));
    let reply = reply.replied();
    assert_eq!(reply.status, 201);
    assert_eq!(text(&reply), r#"{"id": "id7", "address": "127.0.0.7:81"}"#);
    assert_eq!(host.value("upstreams", "id7").unwrap(), "127.0.0.7:81");

    let routed = plugin.route(get("/").header("x-id", "id7").header("x-port", "9"));
    assert_eq!(routed.forwarded().to, Target::address("127.0.0.7:9"));
}

#[test]
fn announcing_again_moves_the_agent() {
    let host = host();
    let moved = start(&host).route(agent("PUT", "id1").header("x-address", "127.0.0.9"));
    assert_eq!(moved.replied().status, 200);
    assert_eq!(host.value("upstreams", "id1").unwrap(), "127.0.0.9");
}

#[test]
fn an_agent_that_falls_silent_is_withdrawn() {
    let host = host().config("ttl-seconds", "30");
    let plugin = start(&host);
    let announce = || plugin.route(agent("PUT", "id7").header("x-address", "127.0.0.7"));
    assert_eq!(announce().replied().status, 201);
    host.advance(Duration::from_secs(29));
    assert_eq!(announce().replied().status, 200);
    host.advance(Duration::from_secs(29));
    assert_eq!(host.value("upstreams", "id7").unwrap(), "127.0.0.7");
    host.advance(Duration::from_secs(1));
    assert_eq!(host.value("upstreams", "id7"), None);
    assert_eq!(
        host.value("upstreams", "id1").unwrap(),
        "127.0.0.2",
        "nobody announced it"
    );

    for bad in ["", "0", "30s", "-1", "31536001"] {
        let host = self::host().config("ttl-seconds", bad);
        let refused = host.start::<SelfRegister>().err().unwrap();
        assert!(refused.contains("expected a number from 1"), "{refused}");
    }
}

#[test]
fn withdrawing_is_fine_more_than_once() {
    let host = host();
    let plugin = start(&host);
    for _ in 0..2 {
        let reply = plugin.route(agent("DELETE", "id1")).replied();
        assert_eq!((reply.status, text(&reply)), (204, ""));
    }
    assert_eq!(host.value("upstreams", "id1"), None);
}

#[test]
fn without_the_secret_nothing_is_written() {
    let host = host();
    let plugin = start(&host);
    let wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer a secret",
        "Basic a secret of some length",
    ];
    for authorization in wrong {
        let ask = request("PUT", "/_throwbar/agents/id7")
            .header("authorization", authorization)
            .header("x-address", "127.0.0.7");
        let reply = plugin.route(ask).replied();
        assert_eq!(reply.status, 401, "{authorization:?}");
        let challenge = ("www-authenticate".to_owned(), "Bearer".to_owned());
        assert!(reply.headers.contains(&challenge));
    }
    let nobody = plugin.route(request("DELETE", "/_throwbar/agents/id1"));
    assert_eq!(nobody.replied().status, 401);
    assert_eq!(host.value("upstreams", "id7"), None);
    assert!(host.value("upstreams", "id1").is_some());
}

#[test]
fn ids_and_addresses_that_are_none_are_named() {
    let host = host();
    let plugin = start(&host);
    for id in ["", "a/b", "a%20b", "é", &"a".repeat(257)] {
        let reply = plugin.route(agent("PUT", id).header("x-address", "127.0.0.7"));
        let reply = reply.replied();
        assert_eq!(reply.status, 422, "{id:?}");
        assert!(text(&reply).contains("expected an id"));
    }
    for address in ["", "a b", "127.0.0.7:0", "http://a"] {
        let reply = plugin.route(agent("PUT", "id7").header("x-address", address));
        let reply = reply.replied();
        assert_eq!(reply.status, 422, "{address:?}");
        assert!(text(&reply).contains("x-address"), "{}", text(&reply));
    }
    assert_eq!(host.value("upstreams", "id7"), None);
}

#[test]
fn other_methods_are_told_which_there_are() {
    let reply = start(&host()).route(agent("GET", "id1")).replied();
    assert_eq!(reply.status, 405);
    assert!(
        reply
            .headers
            .contains(&("allow".into(), "PUT, DELETE".into()))
    );
}

#[test]
fn a_bucket_for_reading_only_is_an_error_for_the_operator() {
    let host = Host::new()
        .bucket("upstreams", [("id1", "127.0.0.2")])
        .config("secret", SECRET);
    let plugin = start(&host);
    let reply = plugin.route(agent("PUT", "id7").header("x-address", "127.0.0.7"));
    assert_eq!(reply.replied().status, 503);
    assert!(matches!(&host.log()[..], [(Level::Error, line)] if line.contains("reading only")));
}

#[test]
fn a_missing_or_short_secret_is_refused() {
    let none = Host::new().writable_bucket("upstreams", []);
    let error = none.start::<SelfRegister>().err().unwrap();
    assert_eq!(error, "setting \"secret\" is missing");
    let short = host().config("secret", "short").start::<SelfRegister>();
    assert!(short.err().unwrap().contains("5 bytes"));
}

#[test]
fn secrets_are_the_same_only_when_they_are() {
    assert!(same(b"abc", b"abc"));
    assert!(!same(b"abd", b"abc"));
    assert!(!same(b"ab", b"abc"));
    assert!(!same(b"abcd", b"abc"));
    assert!(!same(b"", b"abc"));
}
