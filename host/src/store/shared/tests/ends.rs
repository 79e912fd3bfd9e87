//! The ends of entries, as the nodes of a fleet and those who watch them learn of them, on an engine's real server.

use super::through_store::{KIND, runtime, store_on};
use super::*;
use crate::store::log::Ending;
use crate::store::{
    Action, Bucket, BucketConfig, BucketId, Store, ValueKind, Watch, Write, WriteBatch,
};
use std::collections::BTreeMap;
use std::time::SystemTime;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const BUCKET: BucketId = BucketId(0);
const NODES: usize = 2;
/// Entries of a round, and how far apart they are written: servers look for what is over twice a second, and these end
/// at all times between two looks.
const ENTRIES: usize = 5;
const APART: Duration = Duration::from_millis(110);
/// The shortest that etcd grants.
const TTL: Duration = Duration::from_secs(2);
const LATE_MAX: Duration = Duration::from_secs(1);
/// What is told of an end may be rounded up by a quarter of a second.
const EARLY_MAX: Duration = Duration::from_millis(300);
/// A machine that is busy with other things is late by itself, so one round in time is enough: what is late at some
/// time between two looks of a server is so in every round.
const ROUNDS: usize = 3;

/// What of an end is waited for on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// The entry is absent, and counted no more.
    Absent,
    /// Beside that, who watches has been told, and nothing of it is kept.
    Freed,
}

/// An entry that ends is absent, counted no more, told of and freed; as long as few end at once.
pub(super) fn an_end_is_seen_and_told_on_every_node_within_a_second<S: Server>() {
    let runtime = runtime();
    let Some(server) = runtime.block_on(S::start()) else {
        return;
    };
    let engine = || server.engine_by_default("ends");
    are_in_time(&runtime, engine, Until::Freed, async || {});
}

/// Nodes do not wait for a server that has much to remove, or does so seldom: they ask it what is over. What is told comes
/// from the server, and may be later.
pub(super) fn an_end_is_seen_on_every_node_within_a_second_before_the_server_removes_it<
    S: Server,
>() {
    let runtime = runtime();
    let Some(server) = runtime.block_on(S::start()) else {
        return;
    };
    let engine = || server.engine_removing_late("ends");
    let begin = async || server.has_much_to_remove(TTL).await;
    are_in_time(&runtime, engine, Until::Absent, begin);
}

/// The end of each entry is measured from what its node tells of it.
fn are_in_time<E: Engine>(
    runtime: &Runtime,
    engine: impl Fn() -> E,
    until: Until,
    begin_round: impl AsyncFn(),
) {
    let dirs: Vec<_> = (0..NODES)
        .map(|_| TempDir::new().expect("a directory"))
        .collect();
    let bucket = BucketConfig::new("e", KIND, ValueKind::Bytes);
    let nodes = dirs.iter();
    let nodes = nodes.map(|dir| store_on(engine(), dir.path(), std::slice::from_ref(&bucket)));
    let nodes: Vec<_> = nodes.collect();
    let mut late = Vec::new();
    for round in 0..ROUNDS {
        runtime.block_on(begin_round());
        let longest = runtime.block_on(latest_of_round(&nodes, round, until));
        if longest < LATE_MAX {
            return;
        }
        late.push(longest);
    }
    panic!("{until:?} not within {LATE_MAX:?} in any round, but after {late:?}");
}

/// Writes entries by the first node, and waits until all nodes have seen their ends: how long after these that was.
async fn latest_of_round(nodes: &[Store], round: usize, until: Until) -> Duration {
    let stays = format!("{round}.stays");
    put(&nodes[0], &stays, None).await;
    let mut watching = JoinSet::new();
    for node in nodes {
        until_there(node, &stays).await;
        watching.spawn(timeout(SOON, Ends::of(node).latest(until)));
    }
    let mut pace = tokio::time::interval(APART);
    for entry in 0..ENTRIES {
        pace.tick().await;
        put(&nodes[0], &format!("{round}.{entry}"), Some(TTL)).await;
    }
    let late = watching.join_all().await.into_iter();
    let late = late.map(|late| late.expect("all end in time"));
    late.max().expect("there are nodes")
}

async fn put(node: &Store, key: &str, ttl: Option<Duration>) {
    let value = b"value"[..].into();
    let batch = WriteBatch {
        writes: vec![Write::new(BUCKET, key, Action::Put { value, ttl })],
        ..WriteBatch::default()
    };
    node.commit(batch).await.expect("it is written");
}

async fn until_there(node: &Store, key: &str) {
    let mut changes = node.changes();
    let is_there = || {
        let state = node.snapshot();
        state.bucket(BUCKET).is_some_and(|it| it.get(key).is_some())
    };
    let there = async {
        while !is_there() {
            changes.changed().await.expect("the store is open");
        }
    };
    timeout(SOON, there).await.expect("it arrives in time");
}

/// What one node sees of entries that end.
struct Ends {
    node: Store,
    watch: Watch,
    /// Keys and bytes that were counted before.
    counted: (u64, u64),
    entries: BTreeMap<String, End>,
}

/// One of them: when it ends, and when it was seen and told that it has.
struct End {
    at: SystemTime,
    absent: Option<SystemTime>,
    told: Option<SystemTime>,
}

impl Ends {
    fn of(node: &Store) -> Self {
        let state = node.snapshot();
        Self {
            node: node.clone(),
            watch: node.watch(BUCKET, None).expect("there is the bucket"),
            counted: counted(state.bucket(BUCKET).expect("there is the bucket")),
            entries: BTreeMap::new(),
        }
    }

    /// Looks at every state and hears all that is told, until there is no more to come: how late the latest was.
    async fn latest(mut self, until: Until) -> Duration {
        let mut changes = self.node.changes();
        loop {
            tokio::select! {
                changed = changes.changed() => changed.expect("the store is open"),
                group = self.watch.next() => {
                    let now = SystemTime::now();
                    for (key, entry) in group.expect("the watch goes on").changes() {
                        match (entry, self.entries.get_mut(key)) {
                            (Ok(entry), _) => {
                                let at = entry.deadline.expect("all of them end").time();
                                let end = End { at, absent: None, told: None };
                                self.entries.insert(key.to_owned(), end);
                            }
                            (Err(how), Some(end)) => {
                                assert_eq!(how, Ending::Expired, "{key}");
                                assert_eq!(end.told, None, "{key} is told twice");
                                end.told = Some(now);
                            }
                            // It ended in a round before.
                            (Err(_), None) => {}
                        }
                    }
                }
            }
            if let Some(late) = self.look(until) {
                return late;
            }
        }
    }

    /// Notes what is absent by now. Returns how late the latest was, once all have ended as is waited for.
    fn look(&mut self, until: Until) -> Option<Duration> {
        let (now, state) = (SystemTime::now(), self.node.snapshot());
        let bucket = state.bucket(BUCKET).expect("there is the bucket");
        for (key, end) in &mut self.entries {
            if end.absent.is_none() && bucket.get(key).is_none() {
                assert!(now + EARLY_MAX > end.at, "{key} is absent before its end");
                end.absent = Some(now);
            }
        }
        let is_kept = until == Until::Freed && bucket.held().count() as u64 != bucket.len();
        if self.entries.len() < ENTRIES || counted(bucket) != self.counted || is_kept {
            return None;
        }
        let late = self.entries.values().map(|end| {
            let seen = match until {
                Until::Absent => end.absent?,
                Until::Freed => end.absent?.max(end.told?),
            };
            Some(seen.duration_since(end.at).unwrap_or_default())
        });
        let late: Vec<_> = late.collect::<Option<_>>()?;
        let last = self.entries.values().map(|end| end.at).max()?;
        let whole = now.duration_since(last).unwrap_or_default();
        late.into_iter().chain([whole]).max()
    }
}

fn counted(bucket: &Bucket) -> (u64, u64) {
    (bucket.len(), bucket.bytes())
}
