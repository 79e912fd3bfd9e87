//! Nodes of one process, over one store and one depot in memory: a backend that is never away.

mod agreeing;
mod moments;
mod names;

use super::*;
use crate::plugin::tests::guest::replies;
use crate::plugin::tests::plugins;
use crate::plugin::{
    Access, DeployError, Fraction, Order, Outcome, PluginConfig, Role, Share, Source, Wanted,
    digest,
};
use crate::store::shared::artifacts::{DepotError, Pending};
use crate::store::tests::engine::Shelf;
use crate::store::tests::nodes::node_on_its_own;
use crate::store::{BucketConfig, ValueKind, Write, WriteBatch};
use bytes::Bytes;
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const ORDER: Order<'_> = Order {
    by: "ada",
    dry_run: false,
    force: false,
};

/// Components in memory, which can be away.
#[derive(Default)]
struct MemoryDepot {
    places: Mutex<BTreeMap<String, Bytes>>,
    is_away: AtomicBool,
}

impl MemoryDepot {
    fn do_it<T>(&self, it: impl FnOnce(&mut BTreeMap<String, Bytes>) -> T) -> Pending<'_, T>
    where
        T: Send + 'static,
    {
        let done = match self.is_away.load(SeqCst) {
            true => Err(DepotError("away".to_owned())),
            false => Ok(it(&mut locked(&self.places))),
        };
        Box::pin(async { done })
    }
}

impl Depot for MemoryDepot {
    fn put<'a>(&'a self, place: &'a str, bytes: Bytes) -> Pending<'a, ()> {
        self.do_it(|places| drop(places.insert(place.to_owned(), bytes)))
    }

    fn get<'a>(&'a self, place: &'a str, _: u64) -> Pending<'a, Bytes> {
        self.do_it(|places| places.get(place).cloned().unwrap_or_default())
    }

    fn remove<'a>(&'a self, place: &'a str, _: u64) -> Pending<'a, ()> {
        self.do_it(|places| drop(places.remove(place)))
    }
}

/// What the nodes share.
struct Backend {
    kind: BackendKind,
    store: Store,
    depot: Arc<MemoryDepot>,
    _dir: TempDir,
}

struct Node {
    plugins: Arc<Plugins>,
    fleet: Arc<Fleet>,
    /// Of its config.
    config: Arc<Mutex<Arc<str>>>,
    dir: TempDir,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Backend {
    fn new() -> Self {
        let open = |buckets: &[BucketConfig], dir: &Path| {
            (Store::open(buckets, dir).expect("a store"), ())
        };
        Self::on(BackendKind::Memory, open).0
    }

    /// One whose engine can be made to tell nothing of what it does.
    fn on_a_shelf() -> (Self, Shelf) {
        Self::on(BackendKind::Etcd, |buckets, dir| {
            node_on_its_own(buckets, dir, Duration::from_secs(1))
        })
    }

    fn on<T>(
        kind: BackendKind,
        open: impl FnOnce(&[BucketConfig], &Path) -> (Store, T),
    ) -> (Self, T) {
        let dir = tempfile::tempdir().expect("a directory");
        let buckets = [
            BucketConfig::new("map", kind, ValueKind::Endpoint),
            BucketConfig::of_fleet(kind),
        ];
        let (store, more) = open(&buckets, dir.path());
        let backend = Self {
            kind,
            store,
            depot: Arc::default(),
            _dir: dir,
        };
        (backend, more)
    }

    /// A node that does not follow yet.
    async fn still(&self, name: &str, dir: TempDir, plugin: PluginConfig) -> Node {
        let plugins = plugins(dir.path(), &self.store);
        plugins.apply(&[plugin]).await.expect("applied");
        let config = Arc::new(Mutex::new(Arc::<str>::from("c0")));
        let digest = Arc::clone(&config);
        let fleet = Fleet::new(Parts {
            config: Config {
                node: Some(name.to_owned()),
                heartbeat: Duration::from_millis(100),
                ..Config::new(self.kind)
            },
            store: self.store.clone(),
            plugins: Arc::clone(&plugins),
            depot: Arc::clone(&self.depot) as Arc<dyn Depot>,
            admin: "127.0.0.1:2019".to_owned(),
            facts: Box::new(move || Facts {
                config: Arc::clone(&locked(&digest)),
                ready: true,
            }),
        });
        Node {
            plugins,
            fleet: fleet.expect("a node"),
            config,
            dir,
            tasks: Vec::new(),
        }
    }

    async fn node(&self, name: &str) -> Node {
        self.node_with(name, plugin()).await
    }

    async fn node_with(&self, name: &str, plugin: PluginConfig) -> Node {
        let dir = tempfile::tempdir().expect("a directory");
        let mut node = self.still(name, dir, plugin).await;
        node.follow();
        node
    }

    fn artifacts(&self) -> usize {
        locked(&self.depot.places).len()
    }
}

impl Node {
    fn follow(&mut self) {
        self.tasks = vec![
            tokio::spawn(Arc::clone(&self.fleet).follow()),
            tokio::spawn(Arc::clone(&self.fleet).tell()),
        ];
    }

    async fn push(&self, status: u16) -> Result<crate::plugin::Deployed, DeployError> {
        self.bring(Wanted::Component(component(status)), Role::Active)
            .await
    }

    async fn bring(
        &self,
        wanted: Wanted,
        role: Role,
    ) -> Result<crate::plugin::Deployed, DeployError> {
        in_turn(async || {
            let bringing = self.plugins.bring("p", wanted.clone(), role.clone(), ORDER);
            bringing.await
        })
        .await
    }

    fn active(&self) -> Option<String> {
        self.plugins.present("p").expect("the plugin").active
    }

    fn canary(&self) -> Option<(String, Share)> {
        self.plugins.present("p").expect("the plugin").canary
    }

    async fn has(&self, status: u16) {
        let wanted = version(status);
        let what = format!("{} has {status}", self.fleet.node());
        until(&what, || self.active() == Some(wanted.clone())).await;
    }

    /// What it says of itself.
    fn told(&self) -> Value {
        self.fleet.status()["plugins"]["p"].clone()
    }
}

/// Makes a change when it is its turn: a node may still be at what it has just shown to have.
async fn in_turn<T>(change: impl AsyncFn() -> Result<T, DeployError>) -> Result<T, DeployError> {
    let began = Instant::now();
    loop {
        match change().await {
            Err(DeployError::Busy(_)) if began.elapsed() < PATIENCE => {
                tokio::task::yield_now().await;
            }
            done => return done,
        }
    }
}

fn plugin() -> PluginConfig {
    let mut plugin = PluginConfig::new("p", Source::Pushed);
    plugin.grants.insert("map".to_owned(), Access::Read);
    plugin
}

/// One that cannot be instantiated on this store.
fn plugin_without_its_bucket() -> PluginConfig {
    let mut plugin = plugin();
    plugin.grants.insert("absent".to_owned(), Access::Read);
    plugin
}

fn component(status: u16) -> Bytes {
    replies(status).into()
}

fn version(status: u16) -> String {
    digest(&component(status))
}

fn share(percent: f64) -> Share {
    Share {
        fraction: Fraction::percent(percent).expect("a percentage"),
        field: "header:x-id".parse().expect("a field"),
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

async fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_push_on_one_node_swaps_every_node() {
    let backend = Backend::new();
    let nodes = [backend.node("a").await, backend.node("b").await];
    for (from, status) in [(0, 201), (1, 202), (0, 203)] {
        let pushed = nodes[from].push(status).await.expect("a version");
        assert_eq!(pushed.digest, version(status));
        for node in &nodes {
            node.has(status).await;
        }
    }
    let back = nodes[1].bring(Wanted::Previous, Role::Active).await;
    assert_eq!(back.expect("a way back").digest, version(202));
    nodes[0].has(202).await;
    let versions = nodes[1].plugins.get("p").expect("the plugin").versions;
    let by: Vec<&str> = versions.iter().map(|version| &*version.by).collect();
    assert_eq!(by[..2], ["ada", "ada@a"]);
}

#[tokio::test]
async fn of_two_pushes_at_once_one_wins_and_the_other_is_told_of_it() {
    let backend = Backend::new();
    let (one, other) = (backend.node("a").await, backend.node("b").await);
    one.push(200).await.expect("a version");
    other.has(200).await;
    let (first, second) = tokio::join!(one.push(201), other.push(202));
    let (won, lost) = match (first, second) {
        (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
        both => panic!("{both:?}"),
    };
    let DeployError::Disagreed(reason) = lost else {
        panic!("{lost:?}");
    };
    let expected = format!("version {} was agreed on, by ada", &won.digest[..12]);
    assert!(reason.contains(&expected), "{reason}");
    let winner = Some(won.digest);
    until("both have the winner's", || {
        one.active() == winner && other.active() == winner
    })
    .await;
}

#[tokio::test]
async fn a_node_that_cannot_load_a_version_stays_and_says_so_while_others_go_on() {
    let backend = Backend::new();
    let (one, other) = (backend.node("a").await, backend.node("b").await);
    one.push(201).await.expect("a version");
    other.has(201).await;
    let refusing = plugin_without_its_bucket();
    let third = backend.node_with("c", refusing).await;
    until("it failed", || third.told()["state"] == "failed").await;
    let reason = third.told()["reason"].to_string();
    assert!(
        reason.contains("absent") && reason.contains("activate"),
        "{reason}"
    );
    assert_eq!(third.active(), None);
    other.push(202).await.expect("a version");
    one.has(202).await;
    let wanted = version(202);
    until("it is about the new one", || {
        let told = third.told();
        told["state"] == "failed" && told["wanted"] == *wanted
    })
    .await;
    let document = one.fleet.document();
    let states = document["nodes"].as_array().expect("nodes").iter();
    let states: Vec<_> = states
        .map(|node| node["node"].as_str().expect("a name"))
        .collect();
    assert_eq!(states, ["a", "b", "c"]);
    // Its config is corrected: what it refused it takes.
    third.plugins.apply(&[plugin()]).await.expect("applied");
    *locked(&third.config) = "c1".into();
    third.has(202).await;
    until("it says so", || third.told()["state"] == "ok").await;
}

#[tokio::test]
async fn a_share_reaches_every_node_and_so_does_its_end() {
    let backend = Backend::new();
    let nodes = [backend.node("a").await, backend.node("b").await];
    let [one, other] = &nodes;
    one.push(201).await.expect("a version");
    other.has(201).await;
    let canary = Wanted::Component(component(202));
    let begun = one.bring(canary, Role::Canary(share(5.0))).await;
    assert_eq!(begun.expect("a canary").outcome, Outcome::Canary);
    let both_have = async |canary: Option<(u16, f64)>| {
        let canary = canary.map(|(status, percent)| (version(status), share(percent)));
        for node in &nodes {
            until(&format!("{canary:?}"), || node.canary() == canary).await;
        }
    };
    both_have(Some((202, 5.0))).await;
    in_turn(async || other.plugins.set_share("p", share(25.0), ORDER).await)
        .await
        .expect("more");
    both_have(Some((202, 25.0))).await;
    in_turn(async || one.plugins.abort("p", ORDER).await)
        .await
        .expect("aborted");
    both_have(None).await;
    let again = Wanted::Version(version(202));
    other
        .bring(again, Role::Canary(share(50.0)))
        .await
        .expect("a canary");
    both_have(Some((202, 50.0))).await;
    in_turn(async || one.plugins.promote("p", ORDER).await)
        .await
        .expect("promoted");
    other.has(202).await;
    both_have(None).await;
}

#[tokio::test]
async fn a_node_that_starts_has_what_was_agreed_on_before_it_serves() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    one.push(201).await.expect("a version");
    let dir = tempfile::tempdir().expect("a directory");
    let mut other = backend.still("b", dir, plugin()).await;
    assert_eq!(other.active(), None);
    other.fleet.settle().await;
    assert_eq!(other.active(), Some(version(201)));
    // It is gone while another version is agreed on, and back with what it had on its disk.
    other.plugins.close();
    let dir = std::mem::replace(&mut other.dir, tempfile::tempdir().expect("a directory"));
    drop(other);
    one.push(202).await.expect("a version");
    let other = backend.still("b", dir, plugin()).await;
    assert_eq!(other.active(), Some(version(201)));
    other.fleet.settle().await;
    assert_eq!(other.active(), Some(version(202)));
}

#[tokio::test]
async fn while_the_depot_is_away_nothing_is_agreed_on_and_what_was_is_fetched_later() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    one.push(201).await.expect("a version");
    backend.depot.is_away.store(true, SeqCst);
    let refused = one.push(202).await;
    assert!(
        matches!(&refused, Err(DeployError::Fleet(reason)) if reason == "away"),
        "{refused:?}"
    );
    assert_eq!(one.active(), Some(version(201)));
    let other = backend.node("b").await;
    until("it failed to fetch", || {
        other.told()["reason"]
            .to_string()
            .contains("cannot be fetched: away")
    })
    .await;
    assert!(other.fleet.row().fetch_errors > 0);
    backend.depot.is_away.store(false, SeqCst);
    other.has(201).await;
    one.push(202).await.expect("a version");
    other.has(202).await;
}

#[tokio::test]
async fn a_component_that_is_not_what_was_agreed_on_is_not_taken() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    one.push(201).await.expect("a version");
    for bytes in locked(&backend.depot.places).values_mut() {
        *bytes = component(202);
    }
    let other = backend.node("b").await;
    until("it failed", || other.told()["state"] == "failed").await;
    let (reason, found) = (other.told()["reason"].to_string(), version(202));
    assert!(reason.contains(&format!("with digest {found}")), "{reason}");
    assert_eq!(other.active(), None);
}

#[tokio::test]
async fn as_many_components_stay_as_versions_are_kept_and_a_way_back_brings_its_own() {
    let backend = Backend::new();
    let mut few = plugin();
    few.versions.keep = 2;
    let one = backend.node_with("a", few.clone()).await;
    for status in 201..206 {
        one.push(status).await.expect("a version");
    }
    until("two are left", || backend.artifacts() == 2).await;
    let rolled = one.bring(Wanted::Previous, Role::Active).await;
    assert_eq!(rolled.expect("a way back").digest, version(204));
    one.push(206).await.expect("a version");
    one.push(207).await.expect("a version");
    until("two are left", || backend.artifacts() == 2).await;
    // What only this node still has is there for all once it is agreed on.
    one.bring(Wanted::Version(version(206)), Role::Active)
        .await
        .expect("kept");
    let other = backend.node_with("b", few).await;
    other.has(206).await;
}

#[tokio::test]
async fn what_nobody_can_read_is_said_and_replaced_by_the_next_change() {
    let backend = Backend::new();
    let one = backend.node("a").await;
    one.push(201).await.expect("a version");
    let bucket = one.fleet.bucket_id().expect("a bucket");
    let broken = crate::store::Write::put(bucket, "plugin/p", *b"{}");
    one.fleet.commit(vec![broken]).await.expect("written");
    until("it is said", || {
        one.told()["reason"].to_string().contains("unreadable")
    })
    .await;
    assert_eq!(one.active(), Some(version(201)));
    one.push(202).await.expect("a version");
    until("it is right again", || one.told()["state"] == "ok").await;
}
