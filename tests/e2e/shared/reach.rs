//! The ways there, as an operator writes them: TLS with certificates of both sides, and a login.

use super::*;
use crate::harness::TestProxy;
use crate::harness::certificates::Root;
use crate::harness::servers::guarded::PASSWORD;
use std::path::Path;
use tempfile::TempDir;

/// Everything is logged.
const SERVE: [&str; 4] = ["serve", "throwbar.toml", "--log-level", "trace"];

/// Where a proxy of a guarded server runs: its config, and the files that this names.
fn folder(engine: Engine, server: &Server) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory can be made");
    server.equip(dir.path());
    let text = Setup::new(config(engine, server)).text();
    write(dir.path(), "throwbar.toml", &text);
    dir
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).expect("written");
}

async fn a_put_is_routed_by_another(engine: Engine) {
    let Some(server) = Server::start_guarded(engine).await else {
        return;
    };
    let one = TestProxy::start_in(folder(engine, &server), &SERVE).await;
    let other = TestProxy::start_in(folder(engine, &server), &SERVE).await;
    let (put, routes) = (one.admin(), other.admin());
    let upstream = TestUpstream::saying("reached").await;
    put.set("upstreams", "id1", "127.0.0.1").await;
    has(&routes, "/v1/kv/upstreams/id1", Some("127.0.0.1")).await;
    let fields = [("x-id", "id1"), ("x-port", &upstream.port())];
    let answer = other.get("/", &fields).await;
    assert_eq!((answer.status, &*answer.text()), (200, "reached"));
    // The login may do whatever a proxy does.
    let brief = put.put("/v1/kv/notes/brief?ttl=2s", "x").await;
    assert_eq!(brief.status, 201, "{}", brief.text());
    has(&routes, "/v1/kv/notes/brief", Some("x")).await;
    has(&routes, "/v1/kv/notes/brief", None).await;
    let gone = routes.delete("/v1/kv/upstreams/id1").await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    has(&put, "/v1/kv/upstreams/id1", None).await;
}

#[tokio::test]
async fn a_put_over_tls_with_a_login_is_routed_by_another_proxy_on_etcd() {
    a_put_is_routed_by_another(Engine::Etcd).await;
}

#[tokio::test]
async fn a_put_over_tls_with_a_login_is_routed_by_another_proxy_on_redis() {
    a_put_is_routed_by_another(Engine::Redis).await;
}

/// Panics if a secret is in any file of a folder but the one that it is for.
fn is_in_no_other_file(secret: &str, dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            is_in_no_other_file(secret, &path);
        } else if !path.ends_with("store.password") {
            let bytes = std::fs::read(&path).expect("it can be read");
            let mut parts = bytes.windows(secret.len());
            let found = parts.any(|part| part == secret.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}

async fn a_password_is_shown_nowhere(engine: Engine) {
    let Some(mut server) = Server::start_guarded(engine).await else {
        return;
    };
    let mut proxy = TestProxy::start_in(folder(engine, &server), &SERVE).await;
    let admin = proxy.admin();
    admin.set("upstreams", "id1", "127.0.0.1").await;
    let text = admin.get("/v1/config").await.text();
    let written = "password = \"${file:store.password}\"";
    assert!(text.contains(written), "{text}");
    // One that a new config brings is not told, either.
    let another = text.replace("${file:store.password}", "changed-in-the-config");
    let checked = admin.post("/v1/config/check", another).await.text();
    assert!(checked.contains("store: needs a restart"), "{checked}");
    // Nor of a server that is away.
    server.kill().await;
    until_lost(&admin, engine, true).await;
    let log = proxy.stderr();
    assert!(log.contains("\"level\":\"TRACE\""), "{log}");
    let mut shown = vec![checked, proxy.stdout(), log];
    for path in [
        "/v1/config",
        "/v1/status",
        "/v1/fleet",
        "/v1/plugins",
        "/v1/plugins/router",
        "/v1/kv",
        "/metrics",
    ] {
        let answer = admin.get(path).await;
        shown.push(format!("{path}: {}", answer.text()));
    }
    for line in shown.iter().flat_map(|shown| shown.lines()) {
        for secret in [PASSWORD, "changed-in-the-config"] {
            assert!(!line.contains(secret), "{line}");
        }
    }
    // Its files come and go while it runs.
    proxy.kill().await;
    is_in_no_other_file(PASSWORD, proxy.dir());
}

#[tokio::test]
async fn a_password_of_etcd_is_shown_nowhere() {
    a_password_is_shown_nowhere(Engine::Etcd).await;
}

#[tokio::test]
async fn a_password_of_redis_is_shown_nowhere() {
    a_password_is_shown_nowhere(Engine::Redis).await;
}

async fn who_does_not_come_in_is_told_which_setting_to_see(engine: Engine) {
    let Some(server) = Server::start_guarded(engine).await else {
        return;
    };
    let (name, address) = (engine.name(), server.address());
    let refused = async |dir: &TempDir, told: &str| {
        let ended = run_with(command(), dir.path(), &SERVE).await;
        ended.refused(1, &format!("{name} {address}: "));
        ended.refused(1, told);
        for secret in [PASSWORD, "not-the-password"] {
            assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
            assert!(!ended.stdout.contains(secret), "{}", ended.stdout);
            is_in_no_other_file(secret, dir.path());
        }
    };
    let dir = folder(engine, &server);
    write(dir.path(), "store.password", "not-the-password\n");
    refused(
        &dir,
        &format!("see `user` and `password` of [store.{name}]"),
    )
    .await;
    // Not the server's root, and none of those of the system.
    let dir = folder(engine, &server);
    write(dir.path(), "ca.pem", &Root::new().pem());
    let of_ca = format!("see `tls.ca` of [store.{name}]");
    refused(&dir, &of_ca).await;
    let login = match engine {
        // The certificate may be one.
        Engine::Etcd => "`user` of [store.etcd], or without it the name in `tls.certificate`",
        Engine::Redis => "the server wants a login: set `password` in [store.redis]",
    };
    let of_certificate = format!("`tls.certificate` and `tls.key` of [store.{name}]");
    let of_tls = format!("the server there speaks TLS: set `tls` in [store.{name}]");
    for (setting, told) in [
        ("ca = \"ca.pem\", ", &*of_ca),
        // Whether its reason is read before the connection is gone depends on who is faster.
        (
            ", certificate = \"proxy.pem\", key = \"proxy.key\"",
            &of_certificate,
        ),
        (
            "user = \"proxy\"\npassword = \"${file:store.password}\"\n",
            login,
        ),
        (
            "tls = { ca = \"ca.pem\", certificate = \"proxy.pem\", key = \"proxy.key\" }\n",
            &of_tls,
        ),
    ] {
        let dir = folder(engine, &server);
        let text = Setup::new(config(engine, &server)).text();
        assert!(text.contains(setting), "{text}");
        write(dir.path(), "throwbar.toml", &text.replace(setting, ""));
        refused(&dir, told).await;
    }
}

#[tokio::test]
async fn who_does_not_come_in_to_etcd_is_told_which_setting_to_see() {
    who_does_not_come_in_is_told_which_setting_to_see(Engine::Etcd).await;
}

#[tokio::test]
async fn who_does_not_come_in_to_redis_is_told_which_setting_to_see() {
    who_does_not_come_in_is_told_which_setting_to_see(Engine::Redis).await;
}
