//! Many clients at once, of several proxies that share a bucket.

use super::*;
use tokio::task::JoinSet;

/// Puts so many new keys at once, of all proxies in turn; how often each status was answered.
async fn put_at_once(admins: &[Admin], round: usize, count: usize) -> (usize, usize) {
    let mut puts = JoinSet::new();
    for writer in 0..count {
        let admin = admins[writer % admins.len()].clone();
        puts.spawn(async move {
            let path = format!("/v1/kv/few/{round}-{writer}");
            let put = admin.put(&path, "x").await;
            assert!(matches!(put.status, 201 | 507), "{}", put.text());
            put.status
        });
    }
    let statuses = puts.join_all().await;
    let created = statuses.iter().filter(|status| **status == 201).count();
    (created, statuses.len() - created)
}

async fn keys(admin: &Admin) -> Vec<String> {
    let page = admin.get("/v1/kv/few").await.json();
    let entries = page["entries"].as_array().expect("entries").iter();
    let keys = entries.map(|entry| entry["key"].as_str().expect("a key").to_owned());
    keys.collect()
}

async fn a_limit_holds_over_all_proxies(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let admins = fleet.admins();
    for key in 0..9 {
        admins[0].set("few", &format!("held-{key}"), "x").await;
    }
    for (round, admins_of_round) in [&admins[..1], &admins[..], &admins[..]].iter().enumerate() {
        has(&admins[1], "/v1/kv/few/held-8", Some("x")).await;
        let said = put_at_once(admins_of_round, round, 16).await;
        assert_eq!(said, (1, 15), "{engine:?}");
        let found = keys(&admins[0]).await;
        assert_eq!(found.len(), 10);
        let new = found.iter().filter(|key| !key.starts_with("held"));
        let delete = json!({ "delete": new.collect::<Vec<_>>() });
        let gone = admins[0].post("/v1/kv/few/batch", delete.to_string()).await;
        assert_eq!(gone.status, 200, "{}", gone.text());
        // There is room as soon as that is answered, whoever is asked.
        let put = admins[1].put("/v1/kv/few/again", "x").await;
        assert_eq!(put.status, 201, "{}", put.text());
        let gone = admins[1].delete("/v1/kv/few/again").await;
        assert_eq!(gone.status, 204, "{}", gone.text());
    }
}

#[tokio::test]
async fn a_limit_holds_over_all_proxies_on_etcd() {
    a_limit_holds_over_all_proxies(Engine::Etcd).await;
}

#[tokio::test]
async fn a_limit_holds_over_all_proxies_on_redis() {
    a_limit_holds_over_all_proxies(Engine::Redis).await;
}

async fn many_clients_count_and_none_is_refused(engine: Engine, clients: usize) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let admins = fleet.admins();
    let mut counting = JoinSet::new();
    for client in 0..clients {
        let admin = admins[client % 2].clone();
        counting.spawn(async move {
            for _ in 0..4 {
                let by = json!({ "increment": 1 });
                let counted = admin.patch("/v1/kv/notes/sum", by).await;
                assert!(counted.status < 300, "{}", counted.text());
            }
        });
    }
    counting.join_all().await;
    let sum = (4 * clients).to_string();
    for admin in &admins {
        has(admin, "/v1/kv/notes/sum", Some(&sum)).await;
    }
}

#[tokio::test]
async fn many_clients_count_on_etcd_and_none_is_refused() {
    many_clients_count_and_none_is_refused(Engine::Etcd, 24).await;
}

#[tokio::test]
async fn many_clients_count_on_redis_and_none_is_refused() {
    many_clients_count_and_none_is_refused(Engine::Redis, 100).await;
}

#[tokio::test]
async fn a_counter_that_ends_begins_anew_at_once_on_redis() {
    let Some(fleet) = Fleet::start(Engine::Redis, 1).await else {
        return;
    };
    let admin = &fleet.admins()[0];
    let mut lives = 0;
    while lives < 4 {
        let by = json!({ "increment": 1, "ttl": "300ms" });
        let counted = admin.patch("/v1/kv/notes/brief", by).await;
        assert!(counted.status < 300, "{}", counted.text());
        lives += u32::from(counted.json()["value"] == 1);
    }
}
