//! One sandbox: memory bound, deadline, a decision at a time.

use super::compile::ROUTING;
use super::epoch::EpochClock;
use super::generation::{GenerationLabel, Sandbox};
use super::imports::{HostState, request, wit};
use super::session::Functions;
use super::subscription::Plan;
use super::watcher::{self, Watcher};
use super::{Decision, Generation, GenerationId, RequestHead, decision, migration};
use crate::store::{Snapshot, WriteBatch, bucket::VALUE_BYTES_MAX};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use wasmtime::Store;
use wasmtime::component::TypedFunc;

/// One sandbox of a generation, used by one thread.
pub struct Instance {
    store: Store<HostState>,
    route: RouteFunc,
    id: GenerationId,
    /// What the generation is made of; itself it lives as long as it is of use to somebody else.
    sandbox: Arc<Sandbox>,
    plan: Arc<Plan>,
    generation: Weak<Generation>,
    /// What it has been told, if it keeps a view of its own.
    watcher: Option<Box<Watcher>>,
    /// Scratch for the fields passed by value.
    fields: String,
    /// Of the deadline.
    ticks: u64,
    calls: u64,
    poisoned: bool,
}

/// What a call gave.
#[derive(Debug)]
pub struct Routed {
    /// The checked decision.
    pub decision: Decision,
    /// What it wrote; to be committed before the decision is acted on.
    pub writes: Option<WriteBatch>,
}

/// Why a call gave no decision. Except for `Decision`, the instance must be dropped: see [`Instance::is_poisoned`].
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The guest trapped.
    #[error("trap: {0}")]
    Trap(String),
    /// It was cut at its deadline.
    #[error("deadline of {0:?} exceeded")]
    Deadline(std::time::Duration),
    /// It was cut while it was told what has changed.
    #[error("watcher: deadline of {0:?} exceeded")]
    WatchDeadline(std::time::Duration),
    /// What it returned cannot be acted on. It is no source: it is in the text, which is shown alone, too.
    #[error("bad decision: {0}")]
    Decision(super::DecisionError),
    /// It could not be instantiated.
    #[error("instantiate: {0}")]
    Instantiate(String),
    /// As many instances as the process may have are there.
    #[error("instantiate: {0}")]
    NoRoom(String),
}

impl From<super::DecisionError> for RouteError {
    fn from(error: super::DecisionError) -> Self {
        Self::Decision(error)
    }
}

/// `route` of `throwbar:plugin/routing`, its argument borrowed.
type RouteFunc = TypedFunc<(Option<&'static str>,), (wit::Decision,)>;

impl Instance {
    /// Instantiates and runs `init`, under the limits of the generation.
    ///
    /// # Errors
    /// [`RouteError::Instantiate`], [`RouteError::Trap`] or [`RouteError::Deadline`].
    pub fn new(generation: &Arc<Generation>) -> Result<Self, RouteError> {
        Self::on_worker(generation, 0)
    }

    /// The same for the worker of this number, whose share of the log rate its lines count against.
    ///
    /// # Errors
    /// As [`Instance::new`].
    pub fn on_worker(generation: &Arc<Generation>, worker: usize) -> Result<Self, RouteError> {
        let mut started = start(&generation.sandbox, worker)?;
        // What it subscribes to was taken at the trial and holds for every instance.
        started.store.data_mut().plan = Arc::clone(&generation.plan);
        let watcher = Watcher::of(
            &generation.sandbox,
            &generation.plan,
            &started.instance,
            &mut started.store,
        )?;
        Ok(Self {
            watcher,
            store: started.store,
            route: started.route,
            fields: String::new(),
            ticks: EpochClock::ticks(generation.config().limits.deadline),
            calls: 0,
            poisoned: false,
            id: generation.id(),
            sandbox: Arc::clone(&generation.sandbox),
            plan: Arc::clone(&generation.plan),
            generation: Arc::downgrade(generation),
        })
    }

    /// The generation it belongs to.
    pub fn generation_id(&self) -> GenerationId {
        self.id
    }

    /// What it is an instance of.
    pub fn label(&self) -> &GenerationLabel {
        &self.sandbox.label
    }

    /// Whether its generation is gone: no slot has it as active or previous version, and no deploy is about to make it
    /// so. Nobody will ask for this instance again.
    pub fn is_orphaned(&self) -> bool {
        self.generation.strong_count() == 0
    }

    /// Decides one request, reading the store at `snapshot`. `head` has to be there; it is lent to the guest and back in
    /// its place whatever happens.
    ///
    /// # Errors
    /// [`RouteError`]; see [`Instance::is_poisoned`] for what becomes of the instance.
    pub fn route(
        &mut self,
        head: &mut Option<RequestHead>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Routed, RouteError> {
        self.calls += 1;
        if let Some(watcher) = &mut self.watcher {
            let told = watcher.catch_up(&mut self.store, &self.sandbox, snapshot);
            told.inspect_err(|_| self.poisoned = true)?;
        }
        let subscribed = &self.plan.fields;
        let fields = if subscribed.is_empty() {
            None
        } else {
            self.fields.clear();
            let head = head.as_ref().expect("the caller's part");
            request::pack(head, subscribed, &mut self.fields);
            Some(self.fields.as_str())
        };
        self.store.data_mut().begin(head, snapshot);
        self.sandbox.clock.arm(&mut self.store, self.ticks);
        let (route, store) = (self.route, &mut self.store);
        let called = catch_unwind(AssertUnwindSafe(|| route.call(store, (fields,))));

        let state = self.store.data_mut();
        let result = match called {
            Ok(Ok((decision,))) => match decision::check(decision, state) {
                Ok(decision) => Ok(Routed {
                    decision,
                    writes: state.take_writes(),
                }),
                Err(error) => Err(RouteError::Decision(error)),
            },
            Ok(Err(error)) => Err(cause(&error, self.sandbox.config.limits.deadline)),
            Err(panic) => Err(RouteError::Trap(format!(
                "host function: {}",
                text_of(&*panic)
            ))),
        };
        if let Err(error) = &result {
            state.overlay.clear();
            self.poisoned |= !matches!(error, RouteError::Decision(_));
        }
        // Imports only borrow it.
        std::mem::swap(&mut state.head, head);
        result
    }

    /// Tells it a page of what it has not of a state, if it keeps a view of its own. Whether that was the last one: what has
    /// changed since the first one is told before the next decision.
    ///
    /// # Errors
    /// As of [`Instance::route`]; the instance must be dropped.
    pub fn tell_page(&mut self, snapshot: &Arc<Snapshot>) -> Result<bool, RouteError> {
        match &mut self.watcher {
            Some(watcher) => watcher.step(&mut self.store, &self.sandbox, snapshot),
            None => Ok(true),
        }
    }

    /// Lets go of an older state: one that nobody asks would keep what is deleted since in memory.
    ///
    /// # Errors
    /// As [`Instance::tell_page`].
    pub fn refresh(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), RouteError> {
        self.tell_page(snapshot)?;
        self.store.data_mut().refresh(snapshot);
        Ok(())
    }

    /// Notes from now on whether the guest asks for parts of requests that it does not subscribe to.
    pub(super) fn watch_asked(&mut self) {
        self.store.data_mut().asked_beyond = Some(false);
    }

    /// Whether it did.
    pub(super) fn asked_beyond(&self) -> bool {
        self.store.data().asked_beyond == Some(true)
    }

    /// Whether it trapped, was cut, or has done its share of calls, and must be dropped.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned || self.calls >= self.sandbox.config.limits.calls_max
    }
}

/// An instance whose `init` returned, and what it subscribes to.
pub(super) struct Started {
    pub(super) store: Store<HostState>,
    pub(super) instance: wasmtime::component::Instance,
    route: RouteFunc,
    subscription: wit::Subscription,
}

/// Instantiates once, runs `init` and drops the sandbox: what the version subscribes to, checked.
///
/// # Errors
/// [`TrialError`]: whether the component's type or its behaviour is at fault.
pub(super) fn try_out(sandbox: &Arc<Sandbox>) -> Result<Plan, TrialError> {
    let mut started = start(sandbox, 0).map_err(|error| match error {
        StartError::World(reason) => TrialError::World(reason),
        other => TrialError::Init(RouteError::from(other).to_string()),
    })?;
    if sandbox.code.session_exports.is_some() {
        let Started {
            store, instance, ..
        } = &mut started;
        Functions::of(sandbox, instance, store).map_err(TrialError::World)?;
    }
    if sandbox.code.migrate_export.is_some() {
        let Started {
            store, instance, ..
        } = &mut started;
        migration::function(sandbox, instance, store).map_err(TrialError::World)?;
    }
    let watched = watcher::watched(sandbox, &started.instance, &mut started.store)?;
    let plan = Plan::check(started.subscription, &sandbox.grants).map_err(TrialError::Init)?;
    Ok(Plan { watched, ..plan })
}

/// Why a trial failed.
pub(super) enum TrialError {
    /// It does not export what a router does.
    World(String),
    /// It could not be instantiated, `init` failed, or what it returned is refused.
    Init(String),
}

/// Why an instance did not start.
pub(super) enum StartError {
    World(String),
    Route(RouteError),
}

impl From<StartError> for RouteError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::World(reason) => Self::Instantiate(reason),
            StartError::Route(error) => error,
        }
    }
}

/// Instantiates and runs `init`.
pub(super) fn start(sandbox: &Arc<Sandbox>, worker: usize) -> Result<Started, StartError> {
    // Instantiation runs host code only of ours and start functions of the guest; a panic is one failed start.
    catch_unwind(AssertUnwindSafe(|| start_uncaught(sandbox, worker))).unwrap_or_else(|panic| {
        let reason = format!("host function: {}", text_of(&*panic));
        Err(StartError::Route(RouteError::Trap(reason)))
    })
}

fn start_uncaught(sandbox: &Arc<Sandbox>, worker: usize) -> Result<Started, StartError> {
    let limits = &sandbox.config.limits;
    let fail = |error: wasmtime::Error| StartError::Route(cause(&error, limits.init_deadline));
    let state = HostState::new(Arc::clone(sandbox), worker);
    let mut store = Store::new(sandbox.code.pre.engine(), state);
    store.limiter(|state| &mut state.bound);
    // A put may carry a whole value; what a decision returns is checked again, with a message.
    store.set_hostcall_fuel(limits.returned_bytes_max.max(HOSTCALL_BYTES_MIN));
    sandbox
        .clock
        .arm(&mut store, EpochClock::ticks(limits.init_deadline));

    let instance = sandbox.code.pre.instantiate(&mut store).map_err(|error| {
        if error.is::<wasmtime::PoolConcurrencyLimitError>() {
            return StartError::Route(RouteError::NoRoom(format!("{error:#}")));
        }
        match cause(&error, limits.init_deadline) {
            RouteError::Trap(_) if !error.is::<wasmtime::Trap>() => {
                StartError::Route(RouteError::Instantiate(format!("{error:#}")))
            }
            other => StartError::Route(other),
        }
    })?;
    let world = |name: &str, error: wasmtime::Error| {
        StartError::World(format!("export {name} of {ROUTING}: {error:#}"))
    };
    let [init, route] = sandbox.code.exports;
    let init: TypedFunc<(), (Result<wit::Subscription, String>,)> = instance
        .get_typed_func(&mut store, init)
        .map_err(|error| world("init", error))?;
    let route: RouteFunc = instance
        .get_typed_func(&mut store, route)
        .map_err(|error| world("route", error))?;
    let (returned,) = init.call(&mut store, ()).map_err(fail)?;
    let subscription = returned.map_err(|reason| {
        let reason = format!("it refused to start: {reason}");
        StartError::Route(RouteError::Instantiate(reason))
    })?;
    Ok(Started {
        store,
        instance,
        route,
        subscription,
    })
}

/// Least that one host call may carry from the guest: a value and its key.
const HOSTCALL_BYTES_MIN: usize = VALUE_BYTES_MAX + (64 << 10);
/// Longest trap message that is kept.
const TRAP_BYTES_MAX: usize = 1024;

/// What an error of the engine means: the deadline, or a trap with its reason.
pub(super) fn cause(error: &wasmtime::Error, deadline: std::time::Duration) -> RouteError {
    if error.downcast_ref::<wasmtime::Trap>() == Some(&wasmtime::Trap::Interrupt) {
        return RouteError::Deadline(deadline);
    }
    let mut reason = error.root_cause().to_string();
    // Beside the cause, the innermost guest function is what helps; the rest is the engine's own path.
    let backtrace = error.downcast_ref::<wasmtime::WasmBacktrace>();
    let innermost = backtrace.and_then(|backtrace| backtrace.frames().first()?.func_name());
    if let Some(name) = innermost {
        reason = format!("{reason} in {name}");
    }
    reason.truncate(reason.floor_char_boundary(TRAP_BYTES_MAX));
    RouteError::Trap(reason)
}

/// The message of a panic.
pub(super) fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    match panic.downcast_ref::<String>() {
        Some(text) => text,
        None => panic.downcast_ref::<&str>().copied().unwrap_or("panicked"),
    }
}
