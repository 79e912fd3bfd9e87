//! Plugins from upload to decision, with real guests.

use super::*;
use crate::store::{BackendKind, BucketConfig, Store, ValueKind, Write, WriteBatch};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use std::path::Path;

mod accord;
mod ahead;
mod calls;
mod deploys;
pub(crate) mod guest;
mod late;
pub(crate) mod migrations;
mod rollouts;
mod sessions;
mod watching;

/// Plugins over a store in memory, in a directory of their own.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    plugins: Arc<Plugins>,
}

impl Bench {
    /// One plugin `p` that may write `map` (endpoints: `id1` is 127.0.0.2) and read `notes` (bytes), without a version.
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut PluginConfig)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let buckets = [
            BucketConfig::new("map", BackendKind::Memory, ValueKind::Endpoint),
            BucketConfig::new("notes", BackendKind::Memory, ValueKind::Bytes),
        ];
        let store = Store::open(&buckets, dir.path()).expect("a store");
        Self::over(store, dir, change).await
    }

    /// The same over a store that has both buckets.
    async fn over(
        store: Store,
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut PluginConfig),
    ) -> Self {
        let plugins = plugins(dir.path(), &store);
        let mut config = config();
        change(&mut config);
        plugins.apply(&[config]).await.expect("nothing to load");
        let bench = Self {
            dir,
            store,
            plugins,
        };
        bench.put("map", "id1", "127.0.0.2").await;
        bench
    }

    async fn put(&self, bucket: &str, key: &str, value: &str) {
        let bucket = self.store.snapshot().bucket_id(bucket).expect("a bucket");
        let write = Write::put(bucket, key, value.as_bytes());
        let batch = WriteBatch {
            writes: vec![write],
            ..Default::default()
        };
        self.store.commit(batch).await.expect("a commit");
    }

    async fn deploy(&self, component: Vec<u8>) -> Result<Deployed, DeployError> {
        self.plugins
            .deploy("p", Bytes::from(component), "test", false)
            .await
    }

    /// Deploys a guest and makes an instance.
    async fn instance(&self, guest: &guest::Guest<'_>) -> Instance {
        self.deploy(guest.build()).await.expect("a version");
        Instance::new(&self.active()).expect("an instance")
    }

    fn active(&self) -> Arc<Generation> {
        active(&self.plugins).expect("an active generation")
    }

    fn route(&self, instance: &mut Instance) -> Result<Routed, RouteError> {
        let mut lent = Some(head());
        let routed = instance.route(&mut lent, &self.store.snapshot());
        let back = lent.expect("the head comes back");
        assert_eq!(back.headers["x-id"], "id1");
        routed
    }

    /// The status that the active version replies with.
    fn status(&self) -> u16 {
        status(&self.plugins)
    }
}

/// Plugins that compile on a thread.
pub(crate) fn plugins(data: &Path, store: &Store) -> Arc<Plugins> {
    let options = PluginsOptions {
        data,
        store: store.clone(),
        workers: 1,
        component_bytes_max: 1 << 20,
        compile_in: CompileIn::Thread,
    };
    Plugins::new(options).expect("an engine")
}

fn active(plugins: &Plugins) -> Option<Arc<Generation>> {
    plugins.slot("p").expect("a slot").active().clone()
}

fn status(plugins: &Plugins) -> u16 {
    let active = active(plugins).expect("active");
    let mut instance = Instance::new(&active).expect("an instance");
    let snapshot = active.sandbox.store.snapshot();
    match instance
        .route(&mut Some(head()), &snapshot)
        .expect("a decision")
        .decision
    {
        Decision::Reply(reply) => reply.status.as_u16(),
        other => panic!("not a reply: {other:?}"),
    }
}

fn config() -> PluginConfig {
    PluginConfig {
        name: "p".into(),
        source: Source::Pushed,
        grants: BTreeMap::from([
            ("map".to_owned(), Access::Write),
            ("notes".to_owned(), Access::Read),
        ]),
        settings: BTreeMap::from([("greeting".to_owned(), "hello".to_owned())]),
        limits: PluginLimits::default(),
        sessions: Default::default(),
        versions: Default::default(),
    }
}

fn head() -> RequestHead {
    let mut headers = HeaderMap::new();
    headers.insert("x-id", HeaderValue::from_static("id1"));
    headers.insert("x-port", HeaderValue::from_static("8080"));
    RequestHead {
        method: Method::GET,
        uri: "/a?b".parse().expect("a uri"),
        authority: "example.com".parse().expect("an authority"),
        headers,
        client: "192.0.2.1".parse().expect("an address"),
        scheme: "http",
        websocket: false,
    }
}
