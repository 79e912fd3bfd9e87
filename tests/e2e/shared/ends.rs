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

/// Whatever the engine makes of a time to live, who wrote is told the end that it has.
async fn who_writes_with_a_ttl_is_told_its_end(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let admins = fleet.admins();
    let told = |answer: &Response| -> jiff::Timestamp {
        let answer = answer.json();
        let end = answer["expires_at"].as_str();
        let end = end.unwrap_or_else(|| panic!("no end: {answer}"));
        end.parse().expect("of RFC 3339")
    };
    // etcd grants whole seconds.
    let ttl = "5200ms";
    let least = match engine {
        Engine::Etcd => 6_000,
        Engine::Redis => 5_200,
    };
    let begun = jiff::Timestamp::now();
    let set = json!({ "set": { "batch": "x" }, "ttl": ttl });
    let put = format!("/v1/kv/notes/put?ttl={ttl}");
    let put = admins[0].put(&put, "x").await;
    let batch = admins[0].post("/v1/kv/notes/batch", set.to_string()).await;
    let both = json!({ "writes": { "notes": { "set": { "both": "x" }, "ttl": ttl } } });
    let both = admins[0].post("/v1/batch", both.to_string()).await;
    for (key, answer) in [("put", put), ("batch", batch), ("both", both)] {
        let end = told(&answer);
        let life = end.duration_since(begun).as_millis();
        let most = jiff::Timestamp::now().duration_since(begun).as_millis();
        assert!(
            (least - 250..least + most + 500).contains(&life),
            "{key}: {life} ms"
        );
        // The other proxy has been told the same.
        let path = format!("/v1/kv/notes/{key}");
        has(&admins[1], &path, Some("x")).await;
        let got = admins[1].get(&path).await;
        let there: jiff::Timestamp = got
            .header("throwbar-expires-at")
            .parse()
            .expect("of RFC 3339");
        assert_eq!(there, end, "{key}");
    }
    let dry = "/v1/kv/notes/batch?dry_run=true";
    let dry = admins[0].post(dry, set.to_string()).await.json();
    assert!(dry["expires_at"].is_null(), "{dry}");
    for key in ["put", "batch", "both"] {
        has(&admins[1], &format!("/v1/kv/notes/{key}"), None).await;
        let lived = jiff::Timestamp::now().duration_since(begun).as_millis();
        assert!(lived + 250 > least, "{key} is over after {lived} ms");
    }
}

#[tokio::test]
async fn who_writes_to_etcd_with_a_ttl_is_told_its_end() {
    who_writes_with_a_ttl_is_told_its_end(Engine::Etcd).await;
}

#[tokio::test]
async fn who_writes_to_redis_with_a_ttl_is_told_its_end() {
    who_writes_with_a_ttl_is_told_its_end(Engine::Redis).await;
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
    // etcd grants a lease its whole time once more when it starts: by its clock the entry may not be over yet.
    eventually("the key is free", async || {
        let made = Request::new("PUT", "/v1/kv/notes/brief").field("if-none-match", "*");
        let made = admin.send(made.body("new".to_owned())).await;
        assert!(matches!(made.status, 201 | 412), "{}", made.text());
        (made.status == 201).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_over_is_absent_without_etcd() {
    what_is_over_is_absent_without_the_engine(Engine::Etcd).await;
}

#[tokio::test]
async fn what_is_over_is_absent_without_redis() {
    what_is_over_is_absent_without_the_engine(Engine::Redis).await;
}
