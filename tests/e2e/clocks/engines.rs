//! Clocks of the servers jump while several proxies write.

use super::{HOUR, agree, ends, has, put_brief, put_for, revision, shared};
use crate::harness::events::Events;
use crate::harness::servers::{Engine, Server};
use crate::harness::{Admin, Request, TestProxy, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinSet;

/// Puts, counts and compares-and-sets by each of some proxies, until they are told to stop.
struct Writers {
    tasks: JoinSet<Told>,
    rounds: Vec<Arc<AtomicU64>>,
    stop: Arc<AtomicBool>,
}

/// What a writer was told.
#[derive(Default)]
struct Told {
    /// Keys that are written.
    put: Vec<String>,
    /// What was counted up.
    counted: u64,
    /// What was counted or set, or not: it was not told.
    unsure: u64,
    /// What it set where another value was required, by revision.
    set: BTreeMap<u64, String>,
}

impl Writers {
    fn start(admins: &[Admin]) -> Self {
        let mut writers = Self {
            tasks: JoinSet::new(),
            rounds: Vec::new(),
            stop: Arc::default(),
        };
        for (number, admin) in admins.iter().enumerate() {
            let (rounds, stop) = (Arc::<AtomicU64>::default(), Arc::clone(&writers.stop));
            writers.rounds.push(Arc::clone(&rounds));
            let admin = admin.clone();
            writers.tasks.spawn(async move {
                let mut told = Told::default();
                while !stop.load(Ordering::SeqCst) {
                    let round = rounds.load(Ordering::SeqCst);
                    told.write(&admin, &format!("{number}-{round}")).await;
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
                told
            });
        }
        writers
    }

    /// Waits until each has written some more.
    async fn go_on(&self) {
        for rounds in &self.rounds {
            let enough = rounds.load(Ordering::SeqCst) + 5;
            let look = async || (rounds.load(Ordering::SeqCst) >= enough).then_some(());
            eventually("writers go on", look).await;
        }
    }

    async fn stop(self) -> Vec<Told> {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.join_all().await
    }
}

impl Told {
    async fn write(&mut self, admin: &Admin, name: &str) {
        let put = admin.put(&format!("/v1/kv/notes/put-{name}"), "v").await;
        match put.status {
            201 => self.put.push(format!("put-{name}")),
            status => assert_eq!(status, 503, "{}", put.text()),
        }
        let by_one = json!({ "increment": 1 });
        let counted = admin.patch("/v1/kv/notes/sum", by_one).await;
        match counted.status {
            200 | 201 => self.counted += 1,
            status => {
                assert_eq!(status, 503, "{}", counted.text());
                self.unsure += 1;
            }
        }
        let found = admin.get("/v1/kv/notes/turn").await;
        let set = Request::new("PUT", "/v1/kv/notes/turn").body(name.to_owned());
        let set = match found.status {
            200 => set.field("if-match", found.header("etag")),
            _ => set.field("if-none-match", "*"),
        };
        let set = admin.send(set).await;
        match set.status {
            200 | 201 => {
                self.set.insert(revision(&set), name.to_owned());
            }
            412 => {}
            status => {
                assert_eq!(status, 503, "{}", set.text());
                self.unsure += 1;
            }
        }
    }
}

/// Everything that was told is there, for all, and all were told of it in one order.
async fn nothing_is_lost(admins: &[Admin], told: Vec<Told>, watches: Vec<Events>) {
    let left = agree(admins).await;
    let left: BTreeMap<String, String> = left
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let text = |name: &str| line[name].as_str().expect("text").to_owned();
            (text("key"), text("value"))
        })
        .collect();
    for key in told.iter().flat_map(|told| &told.put) {
        assert!(left.contains_key(key), "{key} was acknowledged");
    }
    let counted: u64 = told.iter().map(|told| told.counted).sum();
    let unsure: u64 = told.iter().map(|told| told.unsure).sum();
    let sum: u64 = left["sum"].parse().expect("a number");
    assert!((counted..=counted + unsure).contains(&sum), "{sum}");
    let wins: usize = told.iter().map(|told| told.set.len()).sum();
    let set: BTreeMap<u64, String> = told.into_iter().flat_map(|told| told.set).collect();
    assert_eq!(set.len(), wins, "of two who required the same one won");
    let (last, turn) = set.last_key_value().expect("somebody won");
    let found = revision(&admins[0].get("/v1/kv/notes/turn").await);
    if found == *last {
        assert_eq!(left["turn"], *turn);
    } else {
        // Somebody's answer was lost.
        assert!(found > *last && unsure > 0, "{found}, told of {last}");
    }
    // The last change that all are told of.
    admins[0].set("notes", "last", "v").await;
    let mut seen: Vec<Vec<(u64, Vec<String>)>> = Vec::new();
    for mut watch in watches {
        let mut told = Vec::new();
        loop {
            let event = watch.next().await.expect("it goes on");
            assert_eq!(event.name, "change", "{}", event.data);
            let revision = event.data["revision"].as_u64().expect("a revision");
            let changes = event.data["changes"].as_array().expect("a list");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let keys: Vec<_> = changes
                .iter()
                .map(|change| format!("{} {}", text(&change["key"]), text(&change["value"])))
                .collect();
            let is_last = keys.iter().any(|key| key.starts_with("last "));
            told.push((revision, keys));
            if is_last {
                break;
            }
        }
        assert!(told.is_sorted_by(|one, next| one.0 < next.0));
        seen.push(told);
    }
    assert!(seen.iter().all(|told| *told == seen[0]));
}

async fn watches(admins: &[Admin]) -> Vec<Events> {
    let mut watches = Vec::new();
    for admin in admins {
        watches.push(Events::open(admin, "/v1/kv/notes?watch", None).await);
    }
    watches
}

async fn start(servers: &[Server], engine: Engine, count: usize) -> (Vec<TestProxy>, Vec<Admin>) {
    let text = shared(servers, engine);
    let mut proxies = Vec::new();
    for _ in 0..count {
        proxies.push(TestProxy::start_text(&text).await);
    }
    let admins = proxies.iter().map(TestProxy::admin).collect();
    (proxies, admins)
}

/// Which member leads.
async fn leader(servers: &[Server]) -> usize {
    eventually("there is a leader", async || {
        for (number, server) in servers.iter().enumerate() {
            if server.is_leader().await {
                return Some(number);
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn jumps_of_the_clocks_of_etcd_lose_nothing_and_move_the_end_of_no_entry() {
    let Some(mut servers) = Server::start_members_with_clocks().await else {
        return;
    };
    let (_proxies, admins) = start(&servers, Engine::Etcd, 3).await;
    put_for(&admins[0], "/v1/kv/notes/hour", "1h").await;
    for admin in &admins {
        has(admin, "/v1/kv/notes/hour", "1").await;
    }
    let watches = watches(&admins).await;
    let writers = Writers::start(&admins);
    // Of the leader, and of another: forwards, back to before it was started, and to the right time.
    for (away, hours) in [(0, 5), (0, -5), (1, 7), (1, -7), (0, 0), (1, 0)] {
        let member = (leader(&servers).await + away) % servers.len();
        writers.go_on().await;
        let before = put_brief(&admins[0], &admins, "/v1/kv/notes/before").await;
        servers[member].set_clock(hours * HOUR).await;
        let after = put_brief(&admins[1], &admins, "/v1/kv/notes/after").await;
        writers.go_on().await;
        ends(&admins, "/v1/kv/notes/before", before).await;
        ends(&admins, "/v1/kv/notes/after", after).await;
    }
    // The next leader's clock is another.
    let killed = leader(&servers).await;
    for (away, hours) in [(1, 7), (2, -7)] {
        let member = (killed + away) % servers.len();
        servers[member].set_clock(hours * HOUR).await;
    }
    let before = put_brief(&admins[0], &admins, "/v1/kv/notes/before").await;
    servers[killed].kill().await;
    // Whose member it was is refused until it has another.
    for admin in &admins {
        eventually("writes are taken again", async || {
            let put = admin.put("/v1/kv/notes/again", "v").await;
            matches!(put.status, 200 | 201).then_some(())
        })
        .await;
    }
    writers.go_on().await;
    let after = put_brief(&admins[1], &admins, "/v1/kv/notes/after").await;
    ends(&admins, "/v1/kv/notes/before", before).await;
    ends(&admins, "/v1/kv/notes/after", after).await;
    servers[killed].start_again().await;
    for admin in &admins {
        has(admin, "/v1/kv/notes/hour", "1").await;
    }
    nothing_is_lost(&admins, writers.stop().await, watches).await;
}

#[tokio::test]
async fn a_jump_of_the_clock_of_redis_moves_the_ends_of_entries_and_loses_nothing_else() {
    let Some(mut server) = Server::start_with_clock(Engine::Redis).await else {
        return;
    };
    let (_proxies, admins) = start(std::slice::from_ref(&server), Engine::Redis, 2).await;
    let watches = watches(&admins).await;
    let writers = Writers::start(&admins);
    writers.go_on().await;
    put_for(&admins[0], "/v1/kv/notes/hour", "1h").await;
    put_for(&admins[0], "/v1/kv/notes/day", "1d").await;
    // Three hours later by its clock, what lives an hour has ended, for all.
    server.set_clock(3 * HOUR).await;
    for admin in &admins {
        eventually("the end of what lived an hour", async || {
            (admin.get("/v1/kv/notes/hour").await.status == 404).then_some(())
        })
        .await;
        has(admin, "/v1/kv/notes/day", "1").await;
    }
    writers.go_on().await;
    // What was written before it went back lives that much longer; what is written since does not.
    put_for(&admins[0], "/v1/kv/notes/before", "4s").await;
    server.set_clock(-3 * HOUR).await;
    writers.go_on().await;
    let after = put_brief(&admins[1], &admins, "/v1/kv/notes/after").await;
    ends(&admins, "/v1/kv/notes/after", after).await;
    for admin in &admins {
        has(admin, "/v1/kv/notes/before", "1").await;
    }
    // Until it is right again, and later.
    server.set_clock(4 * HOUR).await;
    for admin in &admins {
        eventually("the end of what was written before", async || {
            (admin.get("/v1/kv/notes/before").await.status == 404).then_some(())
        })
        .await;
        has(admin, "/v1/kv/notes/day", "1").await;
    }
    writers.go_on().await;
    nothing_is_lost(&admins, writers.stop().await, watches).await;
}
