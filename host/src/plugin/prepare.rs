//! Compiled code of a version, and a generation made of it: tried, and of no effect yet.

use super::compile::{Code, Loaded};
use super::deploy::{Shared, blocking, io_error};
use super::engine::MEMORY_RESERVATION;
use super::generation::{self, Sandbox};
use super::instance::{self, TrialError};
use super::report::DeployError;
use super::{Generation, GenerationId, PluginConfig, migration};
use crate::store::Store;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

impl Shared {
    /// Compiled code of an upload. It is kept though the version may be refused yet, and in its turn removed.
    pub(super) async fn load_new(
        self: &Arc<Self>,
        digest: &Arc<str>,
        component: &Bytes,
    ) -> Result<Loaded, DeployError> {
        let compiling = self.compiler.load(Arc::clone(digest), component.clone());
        let loaded = compiling.await?;
        if !loaded.cached {
            let shared = Arc::clone(self);
            blocking(move || {
                shared.prune_compiled();
                Ok(())
            })
            .await?;
        }
        Ok(loaded)
    }

    /// Removes compiled code that is of no use.
    pub(super) fn prune_compiled(&self) {
        match self.artifacts.all_digests() {
            Ok(kept) => self.compiler.prune(|digest| kept.contains(digest)),
            Err(error) => tracing::warn!(%error, "compiled code is not cleared"),
        }
    }

    /// Compiled code of a version on disk.
    pub(super) async fn load_kept(
        self: &Arc<Self>,
        plugin: &str,
        digest: &str,
    ) -> Result<Loaded, DeployError> {
        if let Some(loaded) = self.compiler.in_memory(digest) {
            return Ok(loaded);
        }
        let (reader, plugin, wanted) = (Arc::clone(self), plugin.to_owned(), digest.to_owned());
        let component =
            blocking(move || reader.artifacts.load(&plugin, &wanted).map_err(io_error)).await?;
        self.compiler.load(digest.into(), component).await
    }

    /// Makes a generation: takes the grants to buckets of `store`, runs a trial instance with `init`, checks its subscription.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        config: Arc<PluginConfig>,
        code: Arc<Code>,
        store: &Store,
    ) -> Result<Arc<Generation>, DeployError> {
        let limit = config.limits.memory_bytes_max;
        if limit > MEMORY_RESERVATION {
            return Err(DeployError::Init(format!(
                "memory limit of {limit} bytes, at most {MEMORY_RESERVATION} are possible"
            )));
        }
        let grants = generation::resolve_grants(&config.grants, &store.snapshot())
            .map_err(DeployError::Init)?;
        let data_mark = migration::data_mark(&config.name);
        let data_since = migration::changed_at(&store.snapshot(), &data_mark);
        let data_since = data_since.map_or(0, |revision| revision.0);
        let id = GenerationId(self.next_generation.fetch_add(1, Ordering::Relaxed));
        let sandbox = Arc::new(Sandbox {
            label: Arc::new(generation::GenerationLabel {
                id,
                plugin: config.name.as_str().into(),
                digest: Arc::clone(&code.digest),
                writer: generation::writer(&config.name, &code.digest),
                since: SystemTime::now(),
                streams: AtomicU64::new(0),
                sessions: AtomicU64::new(0),
            }),
            config,
            code,
            grants,
            store: store.clone(),
            clock: Arc::clone(&self.clock),
            stats: (0..self.workers).map(|_| Default::default()).collect(),
            log_gates: (0..self.workers).map(|_| Default::default()).collect(),
            started: self.started,
            data_since: Arc::new(data_since.into()),
            data_mark,
            session_instances: Arc::clone(self.compiler.session_instances()),
            retired: AtomicBool::new(false),
            instances_per_worker: self.compiler.instances_per_worker(),
        });
        blocking(move || {
            let plan = instance::try_out(&sandbox).map_err(|error| match error {
                TrialError::World(reason) => DeployError::World(reason),
                TrialError::Init(reason) => DeployError::Init(reason),
            })?;
            let plan = Arc::new(plan);
            Ok(Arc::new(Generation { sandbox, plan }))
        })
        .await
    }
}
