//! Proxies on a server that they share.

use crate::harness::proxy::PATIENT;
use crate::harness::servers::{Engine, Server};
use crate::harness::{Admin, Setup, TestProxy, eventually};
use serde_json::Value;

/// A server and proxies on it.
pub(super) struct Fleet {
    pub(super) server: Server,
    pub(super) proxies: Vec<TestProxy>,
}

/// Routes by the shared bucket `upstreams`; `notes` and `few` are shared, too, `own` is not.
pub(super) fn config(engine: Engine, server: &Server) -> String {
    let name = engine.name();
    format!(
        "{}\n[buckets.upstreams]\nbackend = \"{name}\"\nhistory = 2\n\
         [buckets.notes]\nbackend = \"{name}\"\nvalues = \"bytes\"\nhistory = 5\n\
         [buckets.few]\nbackend = \"{name}\"\nvalues = \"bytes\"\nkeys_max = 10\n\
         [buckets.own]\nvalues = \"bytes\"\n\
         [plugins.router]\nsource = \"builtin:by-header\"\nbuckets = {{ upstreams = \"read\" }}\n\
         settings = {{ header = \"x-id\", port-header = \"x-port\" }}\n{PATIENT}\n\
         [[route]]\nname = \"by-id\"\nplugin = \"router\"\n",
        server.config()
    )
}

impl Fleet {
    pub(super) async fn start(engine: Engine, proxies: usize) -> Option<Self> {
        let server = Server::start(engine).await?;
        let text = Setup::new(config(engine, &server)).text();
        let mut fleet = Self {
            server,
            proxies: Vec::new(),
        };
        for _ in 0..proxies {
            fleet.proxies.push(TestProxy::start_text(&text).await);
        }
        Some(fleet)
    }

    pub(super) fn admins(&self) -> Vec<Admin> {
        self.proxies.iter().map(TestProxy::admin).collect()
    }
}

/// What the status says of what is shared.
pub(super) async fn shared(admin: &Admin, engine: Engine) -> Value {
    admin.get("/v1/status").await.json()["store"]["shared"][engine.name()].clone()
}

pub(super) async fn until_lost(admin: &Admin, engine: Engine, lost: bool) {
    eventually("it is known whether the engine is there", async || {
        (shared(admin, engine).await["lost"].is_string() == lost).then_some(())
    })
    .await;
}

/// Waits until a proxy has this value.
pub(super) async fn has(admin: &Admin, path: &str, value: Option<&str>) {
    eventually("the value is there", async || {
        let got = admin.get(path).await;
        let found = (got.status == 200).then(|| got.text());
        (found.as_deref() == value).then_some(())
    })
    .await;
}
