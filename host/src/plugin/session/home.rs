//! An instance that sessions live in, and the functions of its component.

use super::SessionError;
use crate::plugin::GenerationId;
use crate::plugin::compile::{SESSION_FUNCTIONS, STREAMS};
use crate::plugin::engine::SessionInstance;
use crate::plugin::generation::Sandbox;
use crate::plugin::imports::{HostState, wit, wit_streams};
use crate::plugin::instance::{self, RouteError};
use crate::plugin::subscription::Plan;
use crate::plugin::watcher::Watcher;
use crate::store::Snapshot;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wasmtime::Store;
use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, TypedFunc};

/// Functions of `throwbar:plugin/streams`, their arguments borrowed.
pub(in crate::plugin) struct Functions {
    pub(super) open: OpenFunc,
    pub(super) on_message: MessageFunc,
    pub(super) on_tick: TypedFunc<(ResourceAny,), (wit_streams::Impulse,)>,
    pub(super) on_close: TypedFunc<(ResourceAny, wit_streams::Ending), ()>,
}

type OpenFunc = TypedFunc<
    (Option<&'static str>, Option<&'static [u8]>),
    (Result<wit_streams::Opening, wit::Reply>,),
>;
type MessageFunc = TypedFunc<
    (
        ResourceAny,
        wit_streams::Direction,
        wit_streams::Kind,
        &'static [u8],
    ),
    (wit_streams::Verdict,),
>;

impl Functions {
    /// Those of an instance whose component exports them.
    ///
    /// # Errors
    /// Names the one whose type is not that of the contract.
    pub(in crate::plugin) fn of(
        sandbox: &Sandbox,
        instance: &wasmtime::component::Instance,
        store: &mut Store<HostState>,
    ) -> Result<Self, String> {
        fn typed<P, R>(
            instance: &wasmtime::component::Instance,
            store: &mut Store<HostState>,
            (export, name): (&wasmtime::component::ComponentExportIndex, &str),
        ) -> Result<TypedFunc<P, R>, String>
        where
            P: ComponentNamedList + Lower,
            R: ComponentNamedList + Lift,
        {
            instance
                .get_typed_func(store, export)
                .map_err(|error| format!("export {name} of {STREAMS}: {error:#}"))
        }
        let exports = sandbox.code.session_exports.as_ref();
        let [open, on_message, on_tick, on_close] =
            exports.ok_or_else(|| format!("does not export {STREAMS}"))?;
        let names = SESSION_FUNCTIONS;
        Ok(Self {
            open: typed(instance, store, (open, names[0]))?,
            on_message: typed(instance, store, (on_message, names[1]))?,
            on_tick: typed(instance, store, (on_tick, names[2]))?,
            on_close: typed(instance, store, (on_close, names[3]))?,
        })
    }
}

/// An instance with sessions.
pub(super) struct Home {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) plan: Arc<Plan>,
    /// None once it is lost.
    pub(super) running: RefCell<Option<Running>>,
    /// Its sessions.
    pub(super) live: Cell<usize>,
    /// Calls so far.
    pub(super) calls: Cell<u64>,
    pub(super) isolated: bool,
    _place: SessionInstance,
}

pub(super) struct Running {
    pub(super) store: Store<HostState>,
    pub(super) functions: Functions,
    pub(super) watcher: Option<Box<Watcher>>,
}

impl Home {
    pub(super) fn start(
        sandbox: &Arc<Sandbox>,
        plan: &Arc<Plan>,
        worker: usize,
    ) -> Result<Self, SessionError> {
        let place = sandbox
            .session_instances
            .take()
            .map_err(SessionError::Full)?;
        let mut started = instance::start(sandbox, worker).map_err(RouteError::from)?;
        // What it subscribes to was taken at the trial and holds for every instance.
        started.store.data_mut().plan = Arc::clone(plan);
        started.store.data_mut().in_session = true;
        let functions = Functions::of(sandbox, &started.instance, &mut started.store)
            .map_err(SessionError::Instantiate)?;
        let watcher = Watcher::of(sandbox, plan, &started.instance, &mut started.store)?;
        Ok(Self {
            sandbox: Arc::clone(sandbox),
            plan: Arc::clone(plan),
            running: RefCell::new(Some(Running {
                store: started.store,
                functions,
                watcher,
            })),
            live: Cell::new(0),
            calls: Cell::new(0),
            isolated: sandbox.config.sessions.isolated,
            _place: place,
        })
    }

    pub(super) fn id(&self) -> GenerationId {
        self.sandbox.label.id
    }

    /// Gives the next call what the slots of a request that is gone held.
    pub(super) fn keep_slots(&self, slots: Box<[Option<Box<str>>]>) {
        if let Some(running) = &mut *self.running.borrow_mut() {
            running.store.data_mut().kept_slots = slots;
        }
    }

    /// Lets go of an older state, and tells the instance what has changed since.
    ///
    /// # Errors
    /// If it has to be dropped.
    pub(super) fn refresh(&self, snapshot: &Arc<Snapshot>) -> Result<(), RouteError> {
        // Its snapshot is a call's while one runs.
        if let Ok(mut running) = self.running.try_borrow_mut()
            && let Some(running) = &mut *running
        {
            let Running { store, watcher, .. } = running;
            if let Some(watcher) = watcher {
                watcher.step(store, &self.sandbox, snapshot)?;
            }
            store.data_mut().refresh(snapshot);
        }
        Ok(())
    }

    pub(super) fn is_lost(&self) -> bool {
        self.running.borrow().is_none()
    }

    /// Whether it may take another session.
    pub(super) fn has_room(&self) -> bool {
        !self.isolated
            && !self.is_lost()
            && !self.is_worn()
            && self.live.get() < self.sandbox.config.sessions.per_instance_max
    }

    /// Whether it has done its share of calls: memory that a guest leaks is given back with its instance only.
    fn is_worn(&self) -> bool {
        self.calls.get() >= self.sandbox.config.limits.calls_max
    }

    /// Whether nobody will need it any more.
    pub(super) fn is_over(&self) -> bool {
        self.live.get() == 0
            && (self.isolated
                || self.is_lost()
                || self.is_worn()
                || self.sandbox.retired.load(Ordering::Relaxed))
    }
}
