//! Proxies that share a bucket: in etcd, and in Redis, both as real servers.

use crate::harness::client::Response;
use crate::harness::proxy::{command, run_with};
use crate::harness::servers::{Engine, Server};
use crate::harness::{Admin, Request, Setup, TestUpstream, eventually, websocket};
use serde_json::{Value, json};
use std::time::Instant;

mod crowd;
mod ends;
mod failover;
mod fleet;
mod gaps;
mod imports;
mod reach;
mod stale;
mod streams;
mod unseen;

use fleet::{Fleet, config, has, shared, until_lost};

/// How old a read says it may be, in seconds.
fn staleness(got: &Response) -> f64 {
    let seconds = got.header("throwbar-staleness").parse();
    seconds.expect("a read of what is shared says how old it may be")
}

/// Every way to read an entry that is there, or a bucket.
async fn says_how_old_reads_are(admin: &Admin, entry: &str, tag: &str) {
    let (bucket, _) = entry.split_once('/').expect("a bucket and a key");
    for (path, known, status) in [
        (entry, "\"0\"", 200),
        (entry, tag, 304),
        (&format!("{entry}?lookup"), "\"0\"", 200),
        (&format!("{entry}?history"), "\"0\"", 200),
        (bucket, "\"0\"", 200),
        (&format!("{bucket}?format=ndjson"), "\"0\"", 200),
    ] {
        let request = Request::get(&format!("/v1/kv/{path}")).field("if-none-match", known);
        let got = admin.send(request).await;
        assert_eq!(got.status, status, "{path}: {}", got.text());
        assert!(staleness(&got) < 30.0, "{path}");
    }
}

async fn one_put_is_routed_by_all(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 3).await else {
        return;
    };
    let upstream = TestUpstream::saying("reached").await;
    let admins = fleet.admins();
    let put = admins[1].put("/v1/kv/upstreams/id1", "127.0.0.1").await;
    assert_eq!(put.status, 201, "{}", put.text());
    let fields = [("x-id", "id1"), ("x-port", &upstream.port())];
    // Whoever took it routes by it at once.
    let answer = fleet.proxies[1].get("/", &fields).await;
    assert_eq!(answer.text(), "reached");
    for (proxy, admin) in fleet.proxies.iter().zip(&admins) {
        has(admin, "/v1/kv/upstreams/id1", Some("127.0.0.1")).await;
        let answer = proxy.get("/", &fields).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "reached"));
        // The same revision everywhere, so that it can be given to another.
        let got = admin.get("/v1/kv/upstreams/id1").await;
        assert_eq!(got.header("etag"), put.header("etag"));
        assert!(staleness(&got) < 30.0, "{}", staleness(&got));
        says_how_old_reads_are(admin, "upstreams/id1", got.header("etag")).await;
    }
    // An equal value is no change, whoever writes it.
    let again = admins[2].put("/v1/kv/upstreams/id1", "127.0.0.1").await;
    assert_eq!(again.header("etag"), put.header("etag"));
    let gone = admins[0].delete("/v1/kv/upstreams/id1").await;
    assert_eq!(gone.status, 204);
    for (proxy, admin) in fleet.proxies.iter().zip(&admins) {
        has(admin, "/v1/kv/upstreams/id1", None).await;
        assert_ne!(proxy.get("/", &fields).await.status, 200);
    }
    // A bucket of its own is nobody else's.
    admins[0].set("own", "k", "mine").await;
    assert_eq!(admins[1].get("/v1/kv/own/k").await.status, 404);
}

#[tokio::test]
async fn one_put_is_routed_by_all_proxies_on_etcd() {
    one_put_is_routed_by_all(Engine::Etcd).await;
}

#[tokio::test]
async fn one_put_is_routed_by_all_proxies_on_redis() {
    one_put_is_routed_by_all(Engine::Redis).await;
}

async fn of_two_who_require_the_same_one_wins(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let admins = fleet.admins();
    for round in 0..25 {
        let path = format!("/v1/kv/notes/k{round}");
        let put = async |admin: &Admin, field: &str, tag: &str, value: &str| {
            let request = Request::new("PUT", &path).field(field, tag);
            admin.send(request.body(value.to_owned())).await
        };
        let (one, other) = tokio::join!(
            put(&admins[0], "if-none-match", "*", "one"),
            put(&admins[1], "if-none-match", "*", "other")
        );
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 412], "{} {}", one.text(), other.text());
        let tag = match one.status {
            201 => one.header("etag").to_owned(),
            _ => other.header("etag").to_owned(),
        };
        // A tag that one proxy gave holds on the other at once, though that may not have seen the write yet.
        let (one, other) = tokio::join!(
            put(&admins[0], "if-match", &tag, "one more"),
            put(&admins[1], "if-match", &tag, "other more")
        );
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{} {}", one.text(), other.text());
        let (won, value) = match one.status {
            200 => (&one, "one more"),
            _ => (&other, "other more"),
        };
        for admin in &admins {
            has(admin, &path, Some(value)).await;
            assert_eq!(admin.get(&path).await.header("etag"), won.header("etag"));
        }
    }
    // Nor does it matter who is asked about a bucket as a whole, or how far behind he is.
    for round in 0..100 {
        let value = round.to_string();
        let tag = admins[round % 2]
            .put("/v1/kv/notes/turns", value.clone())
            .await;
        let path = match round % 4 < 2 {
            true => "/v1/kv/notes/turns",
            false => "/v1/kv/notes/batch",
        };
        let request = match round % 4 < 2 {
            true => Request::new("PUT", path).body(format!("{value} and on")),
            false => Request::post(path, json!({ "set": { "turns": value } }).to_string()),
        };
        let next = request.field("if-match", tag.header("etag"));
        let next = admins[(round + 1) % 2].send(next).await;
        assert_eq!(next.status, 200, "{round}: {}", next.text());
    }
    // Counting is done by whoever is first, and nobody's is lost.
    let count = async |admin: &Admin| {
        for _ in 0..20 {
            let counted = admin
                .patch("/v1/kv/notes/sum", json!({ "increment": 1 }))
                .await;
            assert!(counted.status < 300, "{}", counted.text());
        }
    };
    tokio::join!(count(&admins[0]), count(&admins[1]));
    for admin in &admins {
        has(admin, "/v1/kv/notes/sum", Some("40")).await;
    }
}

#[tokio::test]
async fn of_two_who_require_the_same_one_wins_on_etcd() {
    of_two_who_require_the_same_one_wins(Engine::Etcd).await;
}

#[tokio::test]
async fn of_two_who_require_the_same_one_wins_on_redis() {
    of_two_who_require_the_same_one_wins(Engine::Redis).await;
}

/// A tag is good on every proxy from the answer on that gave it.
async fn a_tag_of_another_proxy_is_no_news(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let [one, other] = &fleet.admins()[..] else {
        panic!("two");
    };
    let path = "/v1/kv/notes/k";
    let mut before = "\"1\"".to_owned();
    for round in 0..150 {
        let given = one.put(path, format!("one {round}")).await;
        let tag = given.header("etag").to_owned();
        let request = Request::new("PUT", path).body(format!("other {round}"));
        let tags = match round % 3 {
            0 => tag.clone(),
            1 => format!("{before}, {tag}"),
            _ => "*".to_owned(),
        };
        let taken = other.send(request.field("if-match", &tags)).await;
        assert_eq!(taken.status, 200, "{tags}: {}", taken.text());
        // It is gone, wherever that is asked for.
        let request = Request::new("DELETE", path);
        let late = one.send(request.field("if-match", &tag)).await;
        assert_eq!(late.status, 412, "{}", late.text());
        before = taken.header("etag").to_owned();
    }
}

#[tokio::test]
async fn a_tag_of_another_proxy_is_no_news_on_etcd() {
    a_tag_of_another_proxy_is_no_news(Engine::Etcd).await;
}

#[tokio::test]
async fn a_tag_of_another_proxy_is_no_news_on_redis() {
    a_tag_of_another_proxy_is_no_news(Engine::Redis).await;
}

async fn without_the_engine_reads_go_on(engine: Engine) {
    let Some(mut fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let upstream = TestUpstream::saying("reached").await;
    let admins = fleet.admins();
    admins[0].set("upstreams", "kept", "127.0.0.1").await;
    admins[0].set("upstreams", "gone", "127.0.0.1").await;
    has(&admins[1], "/v1/kv/upstreams/gone", Some("127.0.0.1")).await;
    let port = upstream.port();
    let fields = [("x-id", "kept"), ("x-port", port.as_str())];
    fleet.server.kill().await;
    for (proxy, admin) in fleet.proxies.iter().zip(&admins) {
        until_lost(admin, engine, true).await;
        assert_eq!(proxy.get("/", &fields).await.text(), "reached");
        let refused = admin.put("/v1/kv/upstreams/new", "127.0.0.1").await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(
            refused
                .text()
                .contains(&format!("{} 127.0.0.1:", engine.name())),
            "{}",
            refused.text()
        );
        // What is not shared is written as ever.
        admin.set("own", "k", "v").await;
    }
    let lost = Instant::now();
    let up = format!("throwbar_shared_up{{backend=\"{}\"}}", engine.name());
    admins[0].metric_is(&up, |up| up == 0.0).await;
    let since = lost.elapsed().as_millis();
    let told = shared(&admins[0], engine).await["staleness_ms"].clone();
    assert!(
        told.as_u64().is_some_and(|told| u128::from(told) >= since),
        "{told} {since}"
    );

    // A restart begins with the copy: readiness, routing and the revision of the entry are as before.
    let tag = admins[1].get("/v1/kv/upstreams/kept").await;
    fleet.proxies[1].signal(rustix::process::Signal::TERM);
    fleet.proxies[1].ended().await;
    fleet.proxies[1].start_again().await;
    let admins = fleet.admins();
    let answer = fleet.proxies[1].get("/", &fields).await;
    assert_eq!(answer.text(), "reached");
    let got = admins[1].get("/v1/kv/upstreams/kept").await;
    assert_eq!(got.header("etag"), tag.header("etag"));
    // What is read is as old as it was before.
    for (admin, since) in admins.iter().zip([lost.elapsed(); 2]) {
        let got = admin.get("/v1/kv/upstreams/kept").await;
        assert!(staleness(&got) >= since.as_secs_f64() - 0.01, "{since:?}");
    }
    assert!(shared(&admins[1], engine).await["lost"].is_string());

    fleet.server.start_again().await;
    until_lost(&admins[0], engine, false).await;
    until_lost(&admins[1], engine, false).await;
    let gone = admins[0].delete("/v1/kv/upstreams/gone").await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    has(&admins[1], "/v1/kv/upstreams/gone", None).await;
    has(&admins[1], "/v1/kv/upstreams/kept", Some("127.0.0.1")).await;
    admins[1].set("upstreams", "new", "127.0.0.1").await;
    has(&admins[0], "/v1/kv/upstreams/new", Some("127.0.0.1")).await;

    // What is deleted while a proxy is down, and its copy has it, does not come back.
    fleet.proxies[1].kill().await;
    let gone = admins[0].delete("/v1/kv/upstreams/new").await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    fleet.proxies[1].start_again().await;
    let got = fleet.proxies[1].admin().get("/v1/kv/upstreams/new").await;
    assert_eq!(got.status, 404, "{}", got.text());
}

#[tokio::test]
async fn without_etcd_reads_go_on_and_writes_are_refused() {
    without_the_engine_reads_go_on(Engine::Etcd).await;
}

#[tokio::test]
async fn without_redis_reads_go_on_and_writes_are_refused() {
    without_the_engine_reads_go_on(Engine::Redis).await;
}

async fn reads_say_how_old_they_may_be_and_the_past_who_wrote(engine: Engine) {
    let Some(fleet) = Fleet::start(engine, 2).await else {
        return;
    };
    let admins = fleet.admins();
    for (admin, actor) in admins.iter().zip(["ann", "ben"]) {
        let put = Request::new("PUT", "/v1/kv/notes/k").field("x-throwbar-actor", actor);
        let put = admin.send(put.body(actor.to_owned())).await;
        assert!(put.status < 300, "{}", put.text());
        assert_eq!(put.header("throwbar-staleness"), "", "it is no read");
    }
    let both = eventually("both have both", async || {
        let mut told = Vec::new();
        for admin in &admins {
            let rows = admin.get("/v1/kv/notes/k?history").await.json()["history"].clone();
            let rows = rows.as_array().expect("a list").clone();
            told.push(rows.iter().map(|row| row["by"].clone()).collect());
        }
        (told[0] == told[1]).then_some(told.swap_remove(0))
    });
    let both: Vec<Value> = both.await;
    assert_eq!(both, ["ben", "ann"]);
    for (path, status) in [
        ("/v1/kv", 200),
        ("/v1/kv/notes", 200),
        ("/v1/kv/notes?format=ndjson", 200),
        ("/v1/kv/notes/k", 200),
        ("/v1/kv/notes/k?history", 200),
        ("/v1/kv/notes/k?lookup", 200),
        ("/v1/kv/notes/none", 404),
        ("/v1/kv/notes/none?lookup", 404),
    ] {
        let got = admins[0].get(path).await;
        assert_eq!(got.status, status, "{path}");
        let staleness = got.header("throwbar-staleness");
        let staleness: f64 = staleness.parse().expect(path);
        assert!(staleness < 30.0, "{path}: {staleness}");
    }
    for path in ["/v1/kv/own", "/v1/kv/own/k", "/v1/status"] {
        let got = admins[0].get(path).await;
        assert_eq!(got.header("throwbar-staleness"), "", "{path}");
    }
}

#[tokio::test]
async fn reads_from_etcd_say_how_old_they_may_be_and_the_past_who_wrote() {
    reads_say_how_old_they_may_be_and_the_past_who_wrote(Engine::Etcd).await;
}

#[tokio::test]
async fn reads_from_redis_say_how_old_they_may_be_and_the_past_who_wrote() {
    reads_say_how_old_they_may_be_and_the_past_who_wrote(Engine::Redis).await;
}

#[tokio::test]
async fn what_is_read_of_several_engines_is_as_old_as_the_oldest() {
    let engines = (
        Server::start(Engine::Etcd).await,
        Server::start(Engine::Redis).await,
    );
    let (Some(mut etcd), Some(redis)) = engines else {
        return;
    };
    let bucket = |name| format!("[buckets.{name}]\nbackend = \"{name}\"\nvalues = \"bytes\"\n");
    let buckets = ["etcd", "redis"].map(bucket).concat();
    let text = format!("{}{}{buckets}", etcd.config(), redis.config());
    let proxy = Setup::new(text).start().await;
    let admin = proxy.admin();
    let age = async |method: &str, path: &str| {
        let got = admin.send(Request::new(method, path)).await;
        staleness(&got)
    };
    etcd.kill().await;
    until_lost(&admin, Engine::Etcd, true).await;
    // The one that is there goes on to tell that nothing is newer.
    let lost = eventually("what is there is younger", async || {
        let lost = age("GET", "/v1/kv/etcd/k").await;
        (age("GET", "/v1/kv/redis/k").await < lost).then_some(lost)
    })
    .await;
    for (method, path) in [("GET", "/v1/kv"), ("HEAD", "/v1/kv/etcd/k")] {
        let told = age(method, path).await;
        assert!(told >= lost - 0.01, "{method} {path}: {told} {lost}");
    }
}

async fn what_cannot_be_is_refused_with_a_reason(engine: Engine) {
    let Some(mut fleet) = Fleet::start(engine, 1).await else {
        return;
    };
    let (admin, name) = (fleet.proxies[0].admin(), engine.name());
    let set = json!({ "set": { "k": "1" } });
    let both = json!({ "writes": { "notes": set, "own": set } });
    let refused = admin.post("/v1/batch", both.to_string()).await;
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(
        refused
            .text()
            .contains("expected a batch to write to one backend"),
        "{}",
        refused.text()
    );
    assert_eq!(admin.get("/v1/kv/notes/k").await.status, 404);
    // A batch beyond what the engine takes names the limit.
    let lines: String = (0..20_000).map(|n| format!("k{n} v\n")).collect();
    let import = Request::post("/v1/kv/notes/import", lines).field("content-type", "text/plain");
    let refused = admin.send(import).await;
    assert_eq!(refused.status, 413, "{}", refused.text());
    assert!(
        refused.text().contains("is too large, expected at most"),
        "{}",
        refused.text()
    );
    let set: serde_json::Map<String, Value> =
        (0..20_000).map(|n| (format!("k{n}"), "v".into())).collect();
    let set = json!({ "set": set }).to_string();
    let dry = "/v1/kv/notes/batch?dry_run=true";
    let refused = admin.post(dry, set).await;
    assert_eq!(refused.status, 413, "{}", refused.text());
    let few = admin.post(dry, r#"{"set":{"k":"v"}}"#).await;
    assert_eq!(few.status, 200, "{}", few.text());
    assert_eq!(admin.get("/v1/kv/notes/k").await.status, 404);
    fleet.server.kill().await;
    let refused = admin.post(dry, r#"{"set":{"k":"v"}}"#).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    // Without the server, and nothing kept of it, there is nothing to begin with.
    let dir = tempfile::tempdir().expect("a directory can be made");
    let text = Setup::new(config(engine, &fleet.server)).text();
    std::fs::write(dir.path().join("throwbar.toml"), &text).expect("written");
    let ended = run_with(command(), dir.path(), &["serve", "throwbar.toml"]).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains(&format!("{name} 127.0.0.1:"))
            && ended.stderr.contains("there is no copy of bucket"),
        "{}",
        ended.stderr
    );
    // A config that does not say where it is.
    let lost = text.replace(&fleet.server.config(), "");
    std::fs::write(dir.path().join("throwbar.toml"), lost).expect("written");
    let ended = run_with(command(), dir.path(), &["check", "throwbar.toml"]).await;
    assert_ne!(ended.code, 0);
    assert!(
        ended
            .stderr
            .contains(&format!("there is no [store.{name}]")),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn what_cannot_be_in_etcd_is_refused_with_a_reason() {
    what_cannot_be_is_refused_with_a_reason(Engine::Etcd).await;
}

#[tokio::test]
async fn what_cannot_be_in_redis_is_refused_with_a_reason() {
    what_cannot_be_is_refused_with_a_reason(Engine::Redis).await;
}
