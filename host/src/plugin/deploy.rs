//! Deploying: the plugin's walk from uploaded bytes to the active generation.
//!
//! Size → digest → unchanged? → validate and compile → trial instance with `init` → keep the artifact → warm every worker
//! → migrate the data → record the pointer durably → publish (one atomic store) → retire the old generation. A step that
//! fails leaves everything as it was.

use super::accord::{Accord, Origin};
use super::artifact::{self, Artifacts};
use super::canary::Canary;
use super::compile::Compiler;
use super::epoch::EpochClock;
use super::migration::OnData;
use super::record::Record;
use super::slot::Turn;
use super::{CompileIn, Crew, Generation, PluginSlot};
use crate::store::{Store, WriteBatch};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::RwLock;

pub use super::order::{Order, Role, Wanted};
pub use super::report::*;

/// Every plugin of the config, and the walk that changes what is active.
pub struct Plugins {
    pub(super) shared: Arc<Shared>,
}

/// What the steps of a walk use, on whatever thread they run.
pub(super) struct Shared {
    /// Read by deploys, written by a change of the config: neither sees the other half done.
    pub(super) changes: RwLock<()>,
    pub(super) artifacts: Artifacts,
    pub(super) compiler: Compiler,
    pub(super) clock: Arc<EpochClock>,
    pub(super) store: Store,
    pub(super) workers: usize,
    pub(super) component_bytes_max: usize,
    pub(super) crew: Mutex<Option<Arc<dyn Crew>>>,
    pub(super) slots: arc_swap::ArcSwap<BTreeMap<String, Arc<PluginSlot>>>,
    pub(super) next_generation: AtomicU64,
    pub(super) started: Instant,
    /// Where a fleet agrees, if this is a node of one.
    pub(super) accord: OnceLock<Arc<dyn Accord>>,
}

/// How to build [`Plugins`].
pub struct PluginsOptions<'a> {
    /// The data directory.
    pub data: &'a Path,
    /// The store plugins read and write.
    pub store: Store,
    /// Data-plane threads: for per-worker counters and the instance pool.
    pub workers: usize,
    /// Largest component, in bytes.
    pub component_bytes_max: usize,
    /// Where components are compiled.
    pub compile_in: CompileIn,
}

impl Plugins {
    /// Makes the engine and its epoch ticker; loads nothing yet.
    ///
    /// # Errors
    /// If the engine cannot be made on this machine, or the directories not created.
    pub fn new(options: PluginsOptions<'_>) -> anyhow::Result<Arc<Plugins>> {
        let artifacts = Artifacts::open(options.data)?;
        let compiler = Compiler::start(options.data, options.workers, &options.compile_in)?;
        let clock = Arc::new(EpochClock::start(compiler.engine())?);
        let plugins = Plugins {
            shared: Arc::new(Shared {
                changes: RwLock::default(),
                artifacts,
                compiler,
                clock,
                store: options.store,
                workers: options.workers.max(1),
                component_bytes_max: options.component_bytes_max,
                crew: Mutex::new(None),
                slots: Default::default(),
                next_generation: AtomicU64::new(1),
                started: Instant::now(),
                accord: OnceLock::new(),
            }),
        };
        plugins.shared.prune_compiled();
        Ok(Arc::new(plugins))
    }

    /// Gives the threads that run plugins; before the first deploy.
    pub fn set_crew(&self, crew: Arc<dyn Crew>) {
        *self
            .shared
            .crew
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(crew);
    }

    /// Upload → active. See [`Plugins::bring`].
    ///
    /// # Errors
    /// See [`DeployError`]; the active version is unchanged then.
    pub async fn deploy(
        &self,
        name: &str,
        component: Bytes,
        by: &str,
        dry_run: bool,
    ) -> Result<Deployed, DeployError> {
        let order = Order {
            by,
            dry_run,
            force: false,
        };
        self.bring(name, Wanted::Component(component), Role::Active, order)
            .await
    }

    /// Activates the version that was active before, as a new generation.
    ///
    /// # Errors
    /// See [`DeployError`].
    pub async fn rollback(
        &self,
        name: &str,
        by: &str,
        dry_run: bool,
    ) -> Result<Deployed, DeployError> {
        let order = Order {
            by,
            dry_run,
            force: false,
        };
        self.bring(name, Wanted::Previous, Role::Active, order)
            .await
    }

    /// Brings a version into a role. See the module's walk.
    ///
    /// If the future is dropped before the record is written, nothing changes; after, the version has its role.
    ///
    /// # Errors
    /// See [`DeployError`]; nothing is changed then, but for [`DeployError::Late`]: the version is active a little later.
    pub async fn bring(
        &self,
        name: &str,
        wanted: Wanted,
        role: Role,
        order: Order<'_>,
    ) -> Result<Deployed, DeployError> {
        self.walk(name, wanted, role, order, Origin::Here, None)
            .await
    }

    /// Activates a version and writes to the store, both or neither: no request is decided by the version on the state
    /// before, nor by the one before on the state after. If the version is active already, the writes are made by themselves.
    ///
    /// # Errors
    /// As for a deploy, and [`DeployError::Writes`] if the store does not take the writes; nothing is changed then, unless it
    /// says that they are written and not seen yet.
    pub async fn activate_with(
        &self,
        name: &str,
        wanted: Wanted,
        order: Order<'_>,
        writes: WriteBatch,
    ) -> Result<Deployed, DeployError> {
        self.shared.check_beside(&writes)?;
        // Told at once and by its own name, not after the compiler's work and as a race.
        let check = WriteBatch {
            dry_run: true,
            ..writes.clone()
        };
        let checked = self.shared.store.commit(check).await;
        checked.map_err(DeployError::Writes)?;
        let with = Some(writes);
        self.walk(name, wanted, Role::Active, order, Origin::Here, with)
            .await
    }

    pub(super) async fn walk(
        &self,
        name: &str,
        wanted: Wanted,
        role: Role,
        order: Order<'_>,
        origin: Origin,
        mut beside: Option<WriteBatch>,
    ) -> Result<Deployed, DeployError> {
        let _unchanged_config = self.shared.changes.read().await;
        let turn = self.turn(name)?;
        let (shared, slot) = (&self.shared, turn.slot());
        let proposal = match role {
            Role::Active | Role::Canary(_) => shared.propose(name, origin)?,
            // Each node compares for itself.
            Role::Shadow(_) => None,
        };
        let is_proposed = proposal.is_some();
        let is_back = matches!(wanted, Wanted::Previous) || origin.is_back();
        let (digest, component): (Arc<str>, _) = match wanted {
            Wanted::Component(component) => {
                if component.len() > shared.component_bytes_max {
                    return Err(DeployError::TooLarge(shared.component_bytes_max));
                }
                let bytes = component.clone();
                let digest = blocking(move || Ok(artifact::digest(&bytes).into())).await?;
                (digest, Some(component))
            }
            Wanted::Version(version) => (slot.find_version(&version)?.into(), None),
            Wanted::Previous => {
                let previous = slot.rollback_target();
                let digest =
                    previous.ok_or_else(|| DeployError::NothingToRollBack(name.to_owned()))?;
                (digest.into(), None)
            }
        };
        if let Some(mut unchanged) = slot.unchanged(&digest, &role) {
            if order.dry_run {
                return Ok(unchanged);
            }
            match (proposal, &mut beside) {
                (Some(proposal), Some(batch)) => {
                    proposal.beside(slot, &digest, order, batch).await?;
                }
                (Some(proposal), None) => {
                    proposal.role(slot, &digest, &role, order, is_back).await?;
                }
                (None, _) => {}
            }
            if let Some(batch) = beside {
                let committed = shared.store.commit(batch).await;
                unchanged.revision = Some(committed.map_err(DeployError::beside)?.revision);
            }
            return Ok(unchanged);
        }
        slot.check_role(&digest, &role, order.force)?;
        // The way back is open always.
        let may_refuse = role == Role::Active && !is_back;
        if may_refuse {
            slot.check_draining(&digest)?;
        }
        let began = Instant::now();
        let loading = async {
            let loaded = match &component {
                Some(component) => shared.load_new(&digest, component).await?,
                None => shared.load_kept(name, &digest).await?,
            };
            let (compiled, began, code) = (began.elapsed(), Instant::now(), loaded.code.clone());
            let generation = shared.prepare(slot.config(), code, &shared.store).await?;
            Ok((loaded, generation, compiled, began))
        };
        let (loaded, generation, compiled, began) = match &proposal {
            // It takes a while, in which others would wait for this turn.
            Some(proposal) => proposal.unless_overtaken(slot, loading).await?,
            None => loading.await?,
        };
        if proposal.is_some() && beside.is_none() && !order.force && !is_back {
            // What it migrates and that it decides is one step, too, on every node.
            let is_active = role == Role::Active;
            beside = (is_active && shared.migrates_beside(&generation)).then(WriteBatch::default);
        }
        let mut deployed = slot.deployed(&loaded, compiled, began.elapsed());
        shared
            .rehearse(
                &turn,
                &generation,
                &role,
                order,
                beside.as_ref(),
                &mut deployed,
            )
            .await?;
        if order.dry_run {
            return Ok(deployed);
        }
        if let Some(component) = component {
            let (keeper, plugin) = (Arc::clone(shared), name.to_owned());
            let digest = Arc::clone(&digest);
            let keep = move || keeper.artifacts.keep(&plugin, &digest, &component);
            blocking(move || keep().map_err(io_error)).await?;
        }
        if may_refuse {
            // While it compiled, streams were opened.
            slot.check_draining(&digest)?;
        }
        let mut is_agreed = proposal.is_some();
        if let Some(proposal) = proposal {
            if role == Role::Active {
                // What fails on the data fails before others hear of it.
                let order = Order {
                    dry_run: true,
                    ..order
                };
                let mut told = deployed.clone();
                let beside = beside.as_ref();
                shared
                    .rehearse(&turn, &generation, &role, order, beside, &mut told)
                    .await?;
            }
            match &mut beside {
                Some(batch) => {
                    // Both are one transaction, which is still to come.
                    is_agreed = false;
                    proposal.beside(slot, &digest, order, batch).await?;
                }
                None => proposal.role(slot, &digest, &role, order, is_back).await?,
            }
        }
        deployed.generation = Some(generation.id().0);
        let done = shared.take_role(
            turn,
            generation,
            role,
            order,
            (origin, beside),
            &mut deployed,
        );
        match done.await {
            Ok(()) => Ok(deployed),
            Err(error) if is_agreed || (is_proposed && error.is_written()) => {
                Err(DeployError::Agreed(Box::new(error)))
            }
            Err(error) => Err(shared.instead_of(name, error).await),
        }
    }

    /// The right to change a plugin.
    pub(super) fn turn(&self, name: &str) -> Result<Turn, DeployError> {
        let slot = self
            .slot(name)
            .ok_or_else(|| DeployError::NoSuchPlugin(name.to_owned()))?;
        slot.take_turn()
            .ok_or_else(|| DeployError::Busy(name.to_owned()))
    }

    /// Stops the shadows, the epoch ticker and the compile thread.
    pub fn close(&self) {
        for slot in self.shared.slots.load().values() {
            slot.set_shadow(None);
        }
        self.shared.compiler.stop();
        self.shared.clock.stop();
    }
}

impl Shared {
    /// Gives a generation that was tried its role.
    async fn take_role(
        self: &Arc<Self>,
        turn: Turn,
        generation: Arc<Generation>,
        role: Role,
        order: Order<'_>,
        (origin, beside): (Origin, Option<WriteBatch>),
        deployed: &mut Deployed,
    ) -> Result<(), DeployError> {
        match role {
            Role::Active => {
                let record = turn.slot().next_record(&generation, order.by, true);
                let on_data = OnData {
                    at_any_rate: order.force,
                    follows: origin.follows(),
                    beside,
                };
                self.swap(turn, generation, record, on_data, deployed)
                    .await?;
            }
            Role::Canary(share) => {
                let canary = Canary::new(generation, share);
                self.begin_canary(turn, canary, order.by).await?;
                deployed.outcome = Outcome::Canary;
            }
            Role::Shadow(sample) => {
                self.begin_shadow(turn, generation, sample, order.by)
                    .await?;
                deployed.outcome = Outcome::Shadow;
            }
        }
        Ok(())
    }

    /// Makes a record durable.
    pub(super) fn write(&self, slot: &PluginSlot, record: &Record) -> Result<(), DeployError> {
        let written = self.artifacts.write_record(slot.name(), record);
        written.map_err(io_error)
    }

    /// Removes versions that are not to be kept.
    pub(super) fn prune(&self, slot: &PluginSlot) {
        if let Err(error) = slot.prune(&self.artifacts) {
            tracing::warn!(plugin = %slot.name(), %error, "old versions are not removed");
        }
    }
}

/// Runs what reads files, hashes or calls guests away from the threads of async code.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeployError> + Send + 'static,
) -> Result<T, DeployError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(DeployError::Io(format!("deploy step failed: {error}"))),
    }
}

pub(super) fn io_error(error: std::io::Error) -> DeployError {
    DeployError::Io(error.to_string())
}

pub(super) fn millis(span: Duration) -> f64 {
    span.as_nanos() as f64 / 1e6
}
