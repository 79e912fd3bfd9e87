//! The suites of the store itself, on an engine's real server.

use super::relay::Relay;
use super::*;
use crate::store::backend::Backends;
use crate::store::clock::Clock;
use crate::store::shared::link::Link;
use crate::store::tests::conformance::{Bed, conforms, steps};
use crate::store::tests::histories::{Nodes, is_explained};
use crate::store::{
    Action, BackendKind, BucketConfig, BucketId, CommitError, SharedSettings, Store, ValueKind,
    Write, WriteBatch,
};
use proptest::test_runner::{Config, TestRunner};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Which name its buckets have does not matter: the engine is given.
pub(super) const KIND: BackendKind = BackendKind::Etcd;
const CASES: u32 = 32;
/// Times to live that outlast any case.
const HOURS_MS: u64 = 10_000_000;
/// How late thousands may be gone: twice what is promised, for the server shares the machine with the tests beside this one.
const LATE_MAX: Duration = Duration::from_secs(2);
/// One round in time is enough, as for what ends one by one.
const ROUNDS: usize = 3;
/// Batches that are written at once.
const AT_ONCE: usize = 100;
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build();
    runtime.expect("a runtime can be made")
}

pub(super) fn store_on(engine: impl Engine, dir: &Path, buckets: &[BucketConfig]) -> Store {
    let links = Links::new(SharedSettings::default(), dir);
    links.add(KIND, move |wake| {
        let timeout = Duration::from_secs(10);
        Link::start(engine.clone(), "tested", timeout, wake).map_err(|error| error.to_string())
    });
    let backends = Backends::with_links(dir, Arc::new(links));
    Store::with_backends(buckets, backends, Clock::system()).expect("the server is there")
}

/// Waits until a store can write again, by a write that changes nothing.
fn until_back(runtime: &Runtime, store: &Store) {
    let bucket = BucketId(0);
    let nothing = WriteBatch {
        writes: vec![Write::delete(bucket, "never")],
        ..WriteBatch::default()
    };
    let back = async {
        while let Err(
            CommitError::Unavailable(_) | CommitError::Unknown(_) | CommitError::Unseen { .. },
        ) = store.commit(nothing.clone()).await
        {
            // Another try is the only way to learn that it is back.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let back = async { timeout(SOON, back).await };
    runtime.block_on(back).expect("it is back in time");
}

/// One case: a prefix of its own, and a network that can be cut.
struct Place<'s, S> {
    server: &'s S,
    runtime: &'s Runtime,
    relay: Relay,
    prefix: String,
    dir: TempDir,
    store: Option<Store>,
    /// What times to live are longer by than the last ones.
    now: u64,
}

impl<S: Server> Bed for Place<'_, S> {
    fn open(&mut self, buckets: &[BucketConfig]) -> Store {
        let engine = self.server.engine(&self.relay.address(), &self.prefix);
        let store = store_on(engine, self.dir.path(), buckets);
        self.store.insert(store).clone()
    }
    fn kind(&self) -> BackendKind {
        KIND
    }
    fn lasts(&self) -> bool {
        true
    }
    fn kill(&mut self, store: Store) {
        drop((store, self.store.take()));
    }
    fn fail(&mut self, fails: bool) -> bool {
        match fails {
            true => self.runtime.block_on(self.relay.cut_whole()),
            false => {
                self.relay.restore();
                let store = self.store.as_ref().expect("it is open");
                until_back(self.runtime, store);
            }
        }
        true
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn advance(&mut self, millis: u64) {
        self.now += millis;
    }
    fn tick(&self) -> u64 {
        HOURS_MS
    }
    fn is_exact(&self) -> bool {
        false
    }
}

/// The suite of all backends. What has a time to live does not end in it: that is by the engine's clock, and in the suite of
/// engines.
pub(super) fn the_store_conforms<S: Server>() {
    let runtime = runtime();
    let Some(server) = runtime.block_on(S::start()) else {
        return;
    };
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let case = std::cell::Cell::new(0);
    let result = TestRunner::new(config).run(&steps(), |steps| {
        case.set(case.get() + 1);
        let place = Place {
            server: &server,
            runtime: &runtime,
            relay: runtime.block_on(Relay::start(server.address())),
            prefix: format!("case-{}", case.get()),
            dir: TempDir::new().expect("a directory can be made"),
            store: None,
            now: 0,
        };
        conforms(place, &steps)
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Three stores on one server, which may be killed.
struct Fleet<'s, S> {
    server: S,
    runtime: &'s Runtime,
    stores: Vec<Store>,
    _dirs: Vec<TempDir>,
}

impl<S: Server> Nodes for Fleet<'_, S> {
    fn store(&self, client: usize) -> Store {
        self.stores[client % self.stores.len()].clone()
    }
    fn reads_agree(&self) -> bool {
        false
    }
    fn crash(&mut self) {
        self.server.kill();
    }
    fn recover(&mut self) {
        self.runtime.block_on(self.server.start_again());
        for store in &self.stores {
            until_back(self.runtime, store);
        }
    }
}

/// Compare-and-set by three proxies at once, beside kills of the server.
pub(super) fn histories_are_linearizable<S: Server>(kills: usize) {
    let runtime = runtime();
    let Some(server) = runtime.block_on(S::start()) else {
        return;
    };
    let dirs: Vec<_> = (0..3)
        .map(|_| TempDir::new().expect("a directory"))
        .collect();
    let bucket = BucketConfig::new("e", KIND, ValueKind::Bytes);
    let stores = dirs.iter().map(|dir| {
        let engine = server.engine(&server.address(), "histories");
        store_on(engine, dir.path(), std::slice::from_ref(&bucket))
    });
    let mut fleet = Fleet {
        stores: stores.collect(),
        runtime: &runtime,
        server,
        _dirs: dirs,
    };
    is_explained(&mut fleet, kills);
}

/// Thousands of entries, each written by itself, that end at about the same time are absent within a second of it, and none
/// before: servers may need longer to remove them.
pub(super) fn thousands_are_absent_soon_after_their_end<S: Server>() {
    let runtime = runtime();
    let Some(server) = runtime.block_on(S::start()) else {
        return;
    };
    let (dir, engine) = (TempDir::new(), server.engine(&server.address(), "many"));
    let bucket = BucketConfig::new("e", KIND, ValueKind::Bytes);
    let dir = dir.expect("a directory");
    let store = store_on(engine, dir.path(), &[bucket]);
    let (_, late) = latest_of(&runtime, &store, (3_000, 1), Duration::from_secs(20));
    assert!(late < LATE_MAX, "after {late:?}");
}

/// So many entries of one batch end together, and are absent within a second of it, and none before.
pub(super) fn a_batch_is_absent_within_a_second_of_its_end(engine: impl Engine, count: usize) {
    let (runtime, dir) = (runtime(), TempDir::new().expect("a directory"));
    let bucket = BucketConfig::new("e", KIND, ValueKind::Bytes);
    let store = store_on(engine, dir.path(), &[bucket]);
    let mut late = Vec::new();
    for _ in 0..ROUNDS {
        let (latest, _) = latest_of(&runtime, &store, (1, count), Duration::from_secs(10));
        if latest < LATE_MAX / 2 {
            return;
        }
        late.push(latest);
    }
    panic!("not within a second in any round, but after {late:?}");
}

/// Writes so many batches of so many entries each, and waits until all of them are absent: how long after the first and the last
/// end that was, without what the machine was busy with other things meanwhile.
fn latest_of(
    runtime: &Runtime,
    store: &Store,
    (batches, batch): (usize, usize),
    ttl: Duration,
) -> (Duration, Duration) {
    let bucket = BucketId(0);
    let stays = WriteBatch {
        writes: vec![Write::put(bucket, "stays", b"v".to_vec())],
        ..WriteBatch::default()
    };
    runtime
        .block_on(store.commit(stays))
        .expect("it is written");
    let mut writing = JoinSet::new();
    for part in 0..batches {
        let write = |key| {
            let (value, ttl) = (b"v"[..].into(), Some(ttl));
            Write::new(bucket, format!("{part}.{key}"), Action::Put { value, ttl })
        };
        let batch = WriteBatch {
            writes: (0..batch).map(write).collect(),
            ..WriteBatch::default()
        };
        let store = store.clone();
        writing.spawn_on(async move { store.commit(batch).await }, runtime.handle());
        if writing.len() >= AT_ONCE || part + 1 == batches {
            let written = runtime.block_on(std::mem::take(&mut writing).join_all());
            written.into_iter().for_each(|written| {
                written.expect("it is written");
            });
        }
    }
    let snapshot = store.snapshot();
    let all = snapshot.bucket(bucket).expect("it is there").sorted();
    let ends: Vec<_> = all
        .filter_map(|(_, entry)| entry.deadline)
        .map(|deadline| deadline.time())
        .collect();
    assert_eq!(ends.len(), batch * batches);
    let (first, last) = (ends.iter().min(), ends.iter().max());
    let (first, last) = (*first.expect("some end"), *last.expect("some end"));
    // What the machine was busy with other things while it looked: no lateness of the store's.
    let (mut stalled, mut looked_at) = (Duration::ZERO, Instant::now());
    let late = loop {
        stalled += looked_at.elapsed().saturating_sub(2 * LOOK);
        looked_at = Instant::now();
        let left = store.snapshot().bucket(bucket).map_or(0, |it| it.len());
        let now = SystemTime::now();
        let late = [first, last].map(|end| now.duration_since(end).unwrap_or_default());
        if left <= 1 {
            break late.map(|late| late.saturating_sub(stalled));
        }
        // What is told of an end is rounded up by a quarter of a second.
        assert!(now + Duration::from_millis(300) > first || left as usize == ends.len() + 1);
        assert!(
            late[1] < SOON + stalled,
            "{left} are left {late:?} after their ends"
        );
        std::thread::sleep(LOOK);
    };
    let found = store.snapshot();
    let found = found.bucket(bucket).expect("it is there");
    assert!(found.get("stays").is_some());
    late.into()
}
