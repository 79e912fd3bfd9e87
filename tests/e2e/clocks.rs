//! Clocks that jump by hours: of etcd, of Redis, of the proxy itself; and proxies whose clocks differ.
//!
//! Only the wall clock of one process jumps, see [`crate::harness::clock`].

use crate::harness::client::Response;
use crate::harness::clock::{Clock, can_be_set, machine_s};
use crate::harness::servers::{Engine, Server};
use crate::harness::{Admin, Request, Setup, TestProxy, eventually};
use serde_json::json;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

mod engines;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// How long an entry lives that a test sees end.
const BRIEF: Duration = Duration::from_secs(4);

/// A bucket `notes` that is shared in these servers.
fn shared(servers: &[Server], engine: Engine) -> String {
    let settings = Server::config_of(servers);
    let bucket = bucket("notes", engine.name());
    Setup::new(format!("{settings}{bucket}")).text()
}

fn bucket(name: &str, backend: &str) -> String {
    format!("[buckets.{name}]\nbackend = \"{backend}\"\nvalues = \"bytes\"\n")
}

/// Puts an entry that ends after [`BRIEF`], and waits until all others have seen it: who has it no longer saw it end. Since
/// when it lives is earlier than anybody thinks.
async fn put_brief(admin: &Admin, others: &[Admin], path: &str) -> Instant {
    let since = Instant::now();
    let put = put_for(admin, path, "4s").await;
    let (bucket, _key) = path.rsplit_once('/').expect("a bucket and a key");
    for other in others {
        eventually("all have seen it", async || {
            let page = other.get(&format!("{bucket}?limit=1")).await;
            (revision(&page) >= put).then_some(())
        })
        .await;
    }
    since
}

/// Puts a number that ends, and returns its revision.
async fn put_for(admin: &Admin, path: &str, ttl: &str) -> u64 {
    let put = admin.put(&format!("{path}?ttl={ttl}"), "1").await;
    assert_eq!(put.status, 201, "{path}: {}", put.text());
    revision(&put)
}

/// The revision in an answer's `ETag`.
fn revision(answer: &Response) -> u64 {
    let tag = answer.header("etag").trim_matches('"');
    tag.parse().unwrap_or_else(|error| panic!("{tag}: {error}"))
}

/// Counts one up. False if it has ended: it is not made anew.
async fn count(admin: &Admin, path: &str) -> bool {
    let by_one = json!({ "increment": 1 }).to_string();
    let request = Request::new("PATCH", path).field("if-match", "*");
    let counted = admin.send(request.body(by_one)).await;
    assert!(
        matches!(counted.status, 200 | 404 | 412),
        "{path}: {}",
        counted.text()
    );
    counted.status == 200
}

/// Waits until a proxy has this value.
async fn has(admin: &Admin, path: &str, value: &str) {
    eventually(&format!("{path} is {value}"), async || {
        (admin.get(path).await.text() == value).then_some(())
    })
    .await;
}

/// Waits until it has ended for all, for none of them before its time.
async fn ends(admins: &[Admin], path: &str, since: Instant) {
    for admin in admins {
        eventually(&format!("the end of {path}"), async || {
            (admin.get(path).await.status == 404).then_some(())
        })
        .await;
        let lived = since.elapsed();
        assert!(lived >= BRIEF, "{path} ended after {lived:?}");
    }
}

/// Waits until all have the same entries with the same revisions, and returns them.
async fn agree(admins: &[Admin]) -> String {
    eventually("all have the same", async || {
        let mut all = Vec::new();
        for admin in admins {
            let path = "/v1/kv/notes?format=ndjson&deadlines=false";
            all.push(admin.get(path).await.text());
        }
        let first = all.pop()?;
        all.iter().all(|other| *other == first).then_some(first)
    })
    .await
}

#[tokio::test]
async fn a_process_has_the_clock_that_it_was_given() {
    if !can_be_set() {
        return;
    }
    for shift in [0, DAY, -3 * HOUR] {
        let mut date = Command::new("date");
        date.arg("+%s").stdout(Stdio::piped());
        let before = machine_s() + shift;
        let (child, _clock) = Clock::spawn(&mut date, shift).expect("it can be started");
        let output = child.wait_with_output().await.expect("it ends");
        let told = String::from_utf8_lossy(&output.stdout);
        let told: i64 = told.trim().parse().expect("seconds");
        let after = machine_s() + shift;
        assert!((before..=after).contains(&told), "{told} with {shift}");
    }
}

#[tokio::test]
async fn a_jump_of_the_proxys_own_clock_moves_the_end_of_no_entry() {
    if !can_be_set() {
        return;
    }
    let mut servers = Vec::new();
    let mut buckets = vec!["memory", "embedded"];
    for engine in [Engine::Etcd, Engine::Redis] {
        if let Some(server) = Server::start(engine).await {
            servers.push(server);
            buckets.push(engine.name());
        }
    }
    let settings: String = servers.iter().map(Server::config).collect();
    let tables: String = buckets.iter().map(|name| bucket(name, name)).collect();
    let text = Setup::new(format!("{settings}{tables}")).text();
    let mut proxy = TestProxy::start_with_clock(&text, 0).await;
    let admin = proxy.admin();
    let path = |bucket: &str, key: &str| format!("/v1/kv/{bucket}/{key}");
    for bucket in &buckets {
        put_for(&admin, &path(bucket, "hour"), "1h").await;
    }
    for (round, shift) in [5 * HOUR, -5 * HOUR, 0].into_iter().enumerate() {
        let mut brief = Vec::new();
        for bucket in &buckets {
            let before = path(bucket, "before");
            brief.push((put_brief(&admin, &[], &before).await, before));
        }
        proxy.set_clock(shift);
        if shift > 0 {
            // What it tells there never goes back.
            eventually("the proxy's time is the one it was told", async || {
                let date = admin.get("/healthz").await.header("date").to_owned();
                let told = httpdate::parse_http_date(&date).ok()?;
                let told = told.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
                (told as i64 >= machine_s() + shift - 2).then_some(())
            })
            .await;
        }
        for bucket in &buckets {
            let after = path(bucket, "after");
            brief.push((put_brief(&admin, &[], &after).await, after.clone()));
            // Counting changes no end, whoever's clock that was told by.
            count(&admin, &after).await;
            assert!(count(&admin, &path(bucket, "hour")).await);
        }
        for (since, path) in brief {
            ends(std::slice::from_ref(&admin), &path, since).await;
        }
        for bucket in &buckets {
            let answer = admin.get(&path(bucket, "hour")).await;
            assert_eq!(answer.text(), (round + 2).to_string(), "{bucket}");
        }
    }
    // Nor does it make older what was read from an engine that is away.
    for server in &mut servers {
        server.kill().await;
    }
    proxy.set_clock(5 * HOUR);
    for bucket in buckets.iter().skip(2) {
        let answer = admin.get(&path(bucket, "hour")).await;
        let staleness: f64 = answer
            .header("throwbar-staleness")
            .parse()
            .expect("seconds");
        assert!(staleness < 600.0, "{staleness}");
    }
    for server in &mut servers {
        server.start_again().await;
    }
    // After a restart the new time counts for what is on this disk, and only for that.
    proxy.kill().await;
    proxy.start_again().await;
    let admin = proxy.admin();
    for bucket in &buckets {
        let path = path(bucket, "hour");
        match *bucket {
            "memory" => {}
            "embedded" => {
                let ended = async || (admin.get(&path).await.status == 404).then_some(());
                eventually("what the disk has ends by the new time", ended).await;
            }
            _ => has(&admin, &path, "4").await,
        }
    }
}

async fn proxies_whose_clocks_differ_agree(engine: Engine) {
    if !can_be_set() {
        return;
    }
    let Some(server) = Server::start(engine).await else {
        return;
    };
    let text = shared(std::slice::from_ref(&server), engine);
    let mut proxies = Vec::new();
    for shift in [7 * HOUR, -3 * DAY, 0] {
        proxies.push(TestProxy::start_with_clock(&text, shift).await);
    }
    let admins: Vec<Admin> = proxies.iter().map(TestProxy::admin).collect();
    let path = |name: &str, number: usize| format!("/v1/kv/notes/{name}-{number}");
    let mut brief = Vec::new();
    for (number, admin) in admins.iter().enumerate() {
        put_for(admin, &path("hour", number), "1h").await;
        for name in ["brief", "counted"] {
            let path = path(name, number);
            brief.push((put_brief(admin, &admins, &path).await, path));
        }
    }
    for (number, admin) in admins.iter().enumerate() {
        for other in (0..admins.len()).filter(|other| *other != number) {
            assert!(count(admin, &path("hour", other)).await);
            // Unless it is over already.
            count(admin, &path("counted", other)).await;
        }
    }
    for (since, path) in brief {
        ends(&admins, &path, since).await;
    }
    let left = agree(&admins).await;
    let left: Vec<serde_json::Value> = left
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let left: Vec<_> = left
        .iter()
        .map(|line| (line["key"].as_str(), line["value"].as_str()))
        .collect();
    let hour = ["hour-0", "hour-1", "hour-2"].map(|key| (Some(key), Some("3")));
    assert_eq!(left, hour);
    // Renewed by another it lives as long as that says.
    for (number, admin) in admins.iter().enumerate() {
        let path = path("hour", (number + 1) % admins.len());
        let since = Instant::now();
        let renewed = admin.patch(&path, json!({ "ttl": "4s" })).await;
        assert_eq!(renewed.status, 200, "{}", renewed.text());
        ends(&admins, &path, since).await;
    }
}

#[tokio::test]
async fn proxies_whose_clocks_differ_agree_on_etcd() {
    proxies_whose_clocks_differ_agree(Engine::Etcd).await;
}

#[tokio::test]
async fn proxies_whose_clocks_differ_agree_on_redis() {
    proxies_whose_clocks_differ_agree(Engine::Redis).await;
}
