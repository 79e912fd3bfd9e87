//! Migration: what a version does with the data of its plugin before it is activated.
//!
//! The guest runs once, in an instance of its own on a blocking thread, against one state of the store. What it wrote goes
//! out as one batch, together with a *mark*: which version the data are for now. The batch is refused if a bucket that the
//! guest used has changed since, and then everything begins again with the newest state; the last time, other writes are
//! held back for it.
//!
//! Two things become true in the moment in which the batch is published: requests that see its revision are decided by
//! the new version ([`Stage`]), and a call of a version before it that ended later can write nothing any more (its batch
//! requires that no mark was set after the state it read). What is active is recorded only after that; should the process be killed in between, the
//! mark says at the next start what was to be active ([`Mark::unfinished`]).

use super::deploy::{Order, Role, Shared, blocking, millis};
use super::epoch::EpochClock;
use super::generation::Sandbox;
use super::imports::{HostState, WriteBounds};
use super::instance::{self, RouteError};
use super::record::Record;
use super::report::{DeployError, Deployed};
use super::slot::{Stage, Turn};
use super::{Generation, PluginSlot, compile};
use crate::store::{Action, Late, Revision, Snapshot, Store, WriteBatch};
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use wasmtime::component::TypedFunc;

mod attempt;
mod limits;
mod mark;

pub(super) use attempt::migrate;
pub use limits::MigrationLimits;
pub(super) use mark::{Mark, changed_at, data_mark};

/// Most bytes of keys and values that a migration writes.
const BYTES_MAX: usize = 64 << 20;
/// Longest reason of a guest that is passed on.
const REASON_BYTES_MAX: usize = 1024;

/// What a migration did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct Migrated {
    /// The version that the data were of.
    pub from: Option<String>,
    /// Keys created or changed.
    pub written: u64,
    /// Keys deleted.
    pub deleted: u64,
    /// How often the guest ran until nobody came between.
    pub attempts: u32,
    /// Milliseconds from the first run to the commit.
    pub ms: f64,
}

impl Migrated {
    /// Whether the data are other ones after it.
    pub(super) fn changes(&self) -> bool {
        self.written + self.deleted > 0
    }
}

/// A migration to be made.
pub(super) struct Migration {
    generation: Arc<Generation>,
    /// The version that the data are of, if the guest is to run.
    runs_from: Option<Option<String>>,
    limits: MigrationLimits,
    /// What is written beside, whatever the guest does.
    beside: WriteBatch,
}

/// How an activation treats the data.
#[derive(Debug, Default)]
pub(super) struct OnData {
    /// A migration that fails leaves the data as they are and stops nothing.
    pub(super) at_any_rate: bool,
    /// It was activated on another node first, which has done what is to be done with data that all nodes share.
    pub(super) follows: bool,
    /// What is written in the moment in which the version takes over.
    pub(super) beside: Option<WriteBatch>,
}

/// What a guest wants written.
struct Wish {
    batch: WriteBatch,
    written: u64,
    deleted: u64,
}

/// A migration to be made now, for an activation that is recorded next.
pub(super) struct Taking<'a> {
    pub(super) migration: &'a Migration,
    pub(super) slot: &'a Arc<PluginSlot>,
    pub(super) record: &'a mut Record,
}

/// A migration that was made. Until it is dropped, requests that see it are decided by its version, published or not.
pub(super) struct Made {
    pub(super) migrated: Option<Migrated>,
    /// The first revision that the version decides on.
    pub(super) revision: Revision,
    _stage: Stage,
}

impl Migration {
    /// The migration of a version that is to take over from what is recorded; none if it has none to make, and nothing is to
    /// be written beside.
    pub(super) fn needed(
        generation: &Arc<Generation>,
        before: Option<&Record>,
        limits: MigrationLimits,
        snapshot: &Snapshot,
        beside: Option<WriteBatch>,
    ) -> Option<Self> {
        let label = generation.label();
        let mark = Mark::of(snapshot, &label.plugin);
        let from = match mark.filter(|mark| mark.is_unfinished(before)) {
            Some(mark) => Some(mark.to.digest),
            None => before.map(|record| record.active.digest.clone()),
        };
        let runs = generation.sandbox.code.migrate_export.is_some()
            && from.as_deref() != Some(&*label.digest);
        (runs || beside.is_some()).then(|| Self {
            generation: Arc::clone(generation),
            runs_from: runs.then_some(from),
            limits,
            beside: beside.unwrap_or_default(),
        })
    }

    /// What it would do; nothing is changed.
    ///
    /// # Errors
    /// As it would fail.
    pub(super) fn preview(&self, store: &Store) -> Result<Option<Migrated>, DeployError> {
        let began = Instant::now();
        let mut wish = self.wish(&store.snapshot(), self.limits.deadline)?;
        wish.batch.dry_run = true;
        // What others change meanwhile would let it run again.
        wish.batch.conditions.clear();
        let checked = Handle::current().block_on(store.commit(wish.batch));
        checked.map_err(attempt::refused)?;
        Ok(self.told(wish.written, wish.deleted, 1, began.elapsed()))
    }

    /// What the guest did, if it ran.
    fn told(&self, written: u64, deleted: u64, attempts: u32, took: Duration) -> Option<Migrated> {
        Some(Migrated {
            from: self.runs_from.clone()?,
            written,
            deleted,
            attempts,
            ms: millis(took),
        })
    }

    /// All that is to be written on a state of the store.
    fn wish(&self, snapshot: &Arc<Snapshot>, deadline: Duration) -> Result<Wish, DeployError> {
        let mut wish = match &self.runs_from {
            Some(from) => self.run(from.as_deref(), snapshot, deadline)?,
            None => Wish {
                batch: WriteBatch::default(),
                written: 0,
                deleted: 0,
            },
        };
        let WriteBatch {
            writes,
            replace,
            conditions,
            expect,
            dry_run: _,
            by,
            undo: _,
        } = self.beside.clone();
        // Of both together, it is the one who activates.
        wish.batch.by = by.or(wish.batch.by);
        wish.batch.writes.extend(writes);
        wish.batch.replace.extend(replace);
        wish.batch.conditions.extend(conditions);
        wish.batch.expect.extend(expect);
        Ok(wish)
    }

    /// Runs the guest on a state of the store.
    fn run(
        &self,
        from: Option<&str>,
        snapshot: &Arc<Snapshot>,
        deadline: Duration,
    ) -> Result<Wish, DeployError> {
        let sandbox = &self.generation.sandbox;
        let mut started = instance::start(sandbox, 0)
            .map_err(|error| DeployError::Migrate(RouteError::from(error).to_string()))?;
        let store = &mut started.store;
        let migrate = function(sandbox, &started.instance, store).map_err(DeployError::World)?;
        store.data_mut().begin_migration(
            snapshot,
            WriteBounds {
                count: self.limits.writes_max,
                bytes: BYTES_MAX,
            },
        );
        sandbox.clock.arm(store, EpochClock::ticks(deadline));
        let called = catch_unwind(AssertUnwindSafe(|| {
            let migrate: TypedFunc<(Option<&str>,), _> = migrate;
            migrate.call(&mut *store, (from,))
        }));
        let failed = |reason: String| Err(DeployError::Migrate(reason));
        match called {
            Ok(Ok((Ok(()),))) => Ok(wish(store.data_mut(), snapshot)),
            Ok(Ok((Err(mut reason),))) => {
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                failed(format!("it refused: {reason}"))
            }
            Ok(Err(error)) => failed(instance::cause(&error, deadline).to_string()),
            Err(panic) => failed(format!("host function: {}", instance::text_of(&*panic))),
        }
    }
}

/// What became of the data before a swap.
#[derive(Default)]
pub(super) struct Moved {
    /// The migration, if one was needed.
    pub(super) made: Option<Made>,
    /// Why it failed, if that was to stop nothing.
    pub(super) failed: Option<String>,
}

impl Shared {
    /// Migrates the data for a version that is about to be active.
    pub(super) fn migrate(
        &self,
        slot: &Arc<PluginSlot>,
        generation: &Arc<Generation>,
        record: &mut Record,
        on_data: OnData,
        tell_late: &Late<'_>,
    ) -> Result<Moved, DeployError> {
        let at_any_rate = on_data.at_any_rate && on_data.beside.is_none();
        if on_data.follows {
            // What the node that was asked has marked is done here by this very activation, whatever the clocks say.
            let mark = Mark::of(&self.store.snapshot(), slot.name());
            if let Some(mark) = mark.filter(|mark| mark.to.digest == record.active.digest) {
                record.migration = Some(mark.id);
            }
            if self.writes_shared(generation) {
                return Ok(Moved::default());
            }
        }
        let Some(migration) = self.needed(slot, generation, on_data.beside) else {
            return Ok(Moved::default());
        };
        let taking = Taking {
            migration: &migration,
            slot,
            record,
        };
        // A version that is to be active at any rate does not wait for its data, nor does a node that follows others.
        let waits = !at_any_rate && self.accord.get().is_none();
        let late = waits.then_some(tell_late);
        match migrate(&self.store, &mut [taking], late) {
            Ok(mut made) => Ok(Moved {
                made: made.pop(),
                failed: None,
            }),
            Err((_, error)) if at_any_rate => {
                let (plugin, version) = (slot.name(), generation.label().version());
                tracing::error!(%plugin, version, %error, "the version is activated on data as they are");
                Ok(Moved {
                    made: None,
                    failed: Some(error.to_string()),
                })
            }
            Err((_, error)) => Err(error),
        }
    }

    fn needed(
        &self,
        slot: &PluginSlot,
        generation: &Arc<Generation>,
        beside: Option<WriteBatch>,
    ) -> Option<Migration> {
        let limits = slot.config().versions.migration.clone();
        let (record, snapshot) = (slot.record(), self.store.snapshot());
        Migration::needed(generation, record.as_ref(), limits, &snapshot, beside)
    }

    /// Tries the migration of a version without changing anything: for a dry run, and for one that is to be tried beside
    /// the active version, on data that it would have changed first.
    pub(super) async fn rehearse(
        self: &Arc<Self>,
        turn: &Turn,
        generation: &Arc<Generation>,
        role: &Role,
        order: Order<'_>,
        beside: Option<&WriteBatch>,
        deployed: &mut Deployed,
    ) -> Result<(), DeployError> {
        let is_tried = *role != Role::Active;
        if (is_tried && order.force) || !(is_tried || order.dry_run) {
            return Ok(());
        }
        let Some(migration) = self.needed(turn.slot(), generation, beside.cloned()) else {
            return Ok(());
        };
        let shared = Arc::clone(self);
        let preview = blocking(move || migration.preview(&shared.store)).await;
        let migrated = match preview {
            Err(error) if order.force && beside.is_none() => {
                deployed.not_migrated = Some(error.to_string());
                return Ok(());
            }
            preview => preview?,
        };
        let Some(migrated) = migrated else {
            return Ok(());
        };
        if is_tried && migrated.changes() {
            let Migrated {
                written, deleted, ..
            } = migrated;
            return Err(DeployError::Conflict(format!(
                "version {} of plugin {:?} would first write {written} keys and delete {deleted}, and beside the active \
                 version it cannot: push it, or force=true tries it on the data as they are",
                generation.label().version(),
                turn.slot().name(),
            )));
        }
        if order.dry_run {
            deployed.migrated = Some(migrated);
        }
        Ok(())
    }
}

type MigrateFunc = TypedFunc<(Option<&'static str>,), (Result<(), String>,)>;

/// `migrate` of an instance whose component exports it.
///
/// # Errors
/// If its type is not that of the contract.
pub(super) fn function(
    sandbox: &Sandbox,
    instance: &wasmtime::component::Instance,
    store: &mut wasmtime::Store<HostState>,
) -> Result<MigrateFunc, String> {
    let name = compile::MIGRATION;
    let export = sandbox.code.migrate_export.as_ref();
    let export = export.ok_or_else(|| format!("does not export {name}"))?;
    instance
        .get_typed_func(store, export)
        .map_err(|error| format!("export migrate of {name}: {error:#}"))
}

/// What a call that returned wants written, without what is so already.
fn wish(state: &mut HostState, snapshot: &Snapshot) -> Wish {
    let mut batch = state.overlay.take_all();
    let survey = state.survey.take().unwrap_or_default();
    batch.conditions = survey.conditions(snapshot);
    batch.by = Some(state.sandbox.label.writer.clone());
    let (mut written, mut deleted) = (0, 0);
    batch.writes.retain(|write| {
        let bucket = snapshot.bucket(write.bucket);
        let known = bucket.and_then(|bucket| bucket.get(&write.key));
        let known = known.map(|entry| entry.value.to_bytes());
        match (&write.action, known) {
            (Action::Delete, None) => return false,
            (Action::Put { value, ttl: None }, Some(known)) if **value == *known => return false,
            (Action::Delete, Some(_)) => deleted += 1,
            (Action::Put { .. } | Action::Touch { .. } | Action::Increment { .. }, _) => {
                written += 1
            }
        }
        true
    });
    Wish {
        batch,
        written,
        deleted,
    }
}
