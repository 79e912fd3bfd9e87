//! Entries that end, on proxies that share a bucket.

use super::*;

async fn what_has_a_ttl_ends_for_all(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let admins = fleet.admins();
    let put = admins[0].put("/v1/kv/notes/brief?ttl=2s", "x").await;
    assert_eq!(put.status, 201, "{}", put.text());
    for admin in &admins {
        has(admin, "/v1/kv/notes/brief", Some("x")).await;
        let got = admin.get("/v1/kv/notes/brief").await;
        assert!(got.header("throwbar-expires-at").ends_with('Z'));
    }
    // Renewed by the other, it stays beyond its first end.
    let renewed = admins[1]
        .patch("/v1/kv/notes/brief", json!({ "ttl": "1d" }))
        .await;
    assert_eq!(renewed.status, 200, "{}", renewed.text());
    let put = admins[1].put("/v1/kv/notes/other?ttl=2s", "x").await;
    assert_eq!(put.status, 201, "{}", put.text());
    for admin in &admins {
        has(admin, "/v1/kv/notes/other", None).await;
        has(admin, "/v1/kv/notes/brief", Some("x")).await;
    }
}

#[tokio::test]
async fn what_has_a_ttl_ends_for_all_on_etcd() {
    what_has_a_ttl_ends_for_all(Engine::Etcd).await;
}

#[tokio::test]
async fn what_has_a_ttl_ends_for_all_on_redis() {
    what_has_a_ttl_ends_for_all(Engine::Redis).await;
}

async fn what_is_over_is_absent_without_the_engine(engine: Engine) {
    let Some(mut fleet) = Fleet::start(engine, 1).await else {
        return;
    };
    let admin = fleet.proxies[0].admin();
    let put = admin.put("/v1/kv/notes/brief?ttl=4s", "x").await;
    assert_eq!(put.status, 201, "{}", put.text());
    admin.set("notes", "stays", "x").await;
    fleet.server.kill().await;
    until_lost(&admin, engine, true).await;
    has(&admin, "/v1/kv/notes/brief", None).await;
    // A restart begins with a copy, in which it still is.
    fleet.proxies[0].signal(rustix::process::Signal::TERM);
    fleet.proxies[0].ended().await;
    fleet.proxies[0].start_again().await;
    let admin = fleet.proxies[0].admin();
    has(&admin, "/v1/kv/notes/brief", None).await;
    has(&admin, "/v1/kv/notes/stays", Some("x")).await;
    fleet.server.start_again().await;
    until_lost(&admin, engine, false).await;
    has(&admin, "/v1/kv/notes/brief", None).await;
    let made = Request::new("PUT", "/v1/kv/notes/brief").field("if-none-match", "*");
    let made = admin.send(made.body("new".to_owned())).await;
    assert_eq!(made.status, 201, "{}", made.text());
}

#[tokio::test]
async fn what_is_over_is_absent_without_etcd() {
    what_is_over_is_absent_without_the_engine(Engine::Etcd).await;
}

#[tokio::test]
async fn what_is_over_is_absent_without_redis() {
    what_is_over_is_absent_without_the_engine(Engine::Redis).await;
}
