//! Sessions: what a plugin with stream hooks keeps for each of its streams.
//!
//! They live in instances of their own, apart from those that route, so that neither ends with the other. A worker has
//! one for all its streams of a generation, or one for each stream of an isolated plugin. It goes with its last session
//! when its generation is no longer active: a stream keeps the code and the state of the version that accepted it.
//!
//! A trap or a deadline loses the instance with all its sessions. Whoever has one finds out by [`Session::is_lost`], and
//! either opens another by [`Session::rebuild`] or drops it.

use super::compile::{SESSION_FUNCTIONS, STREAMS};
use super::decision::{self, DecisionError};
use super::engine::SessionInstance;
use super::epoch::EpochClock;
use super::generation::{CallStats, GenerationLabel, Sandbox};
use super::imports::{HostState, request, wit, wit_streams};
use super::instance::{self, RouteError};
use super::subscription::Plan;
use super::verdict::{self, Direction, Impulse, Kind, Verdict};
use super::{Generation, GenerationId, OnTrap, Reply, RequestHead, RouteTarget};
use crate::metrics;
use crate::store::{Reader, WriteBatch};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use wasmtime::Store;
use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, TypedFunc};

/// Over which failures are counted.
const FAILURES_WINDOW: Duration = Duration::from_secs(60);

/// One worker's sessions, and the instances they live in.
pub struct Sessions {
    worker: usize,
    homes: RefCell<Vec<Rc<Home>>>,
    reader: RefCell<Reader>,
    /// Instances lost and bad verdicts of a generation, since when.
    failures: RefCell<HashMap<GenerationId, (Instant, u32)>>,
    /// Whether an instance was lost since somebody asked.
    lost: Cell<bool>,
}

/// What a plugin keeps for one stream; dropped with it.
pub struct Session {
    sessions: Rc<Sessions>,
    home: Rc<Home>,
    resource: ResourceAny,
    /// What another session would be opened with, if the config says so.
    kept: Option<Box<Kept>>,
}

/// What another session is opened with.
struct Kept {
    fields: Option<Box<str>>,
    saved: Box<[u8]>,
}

/// What became of a request to open a stream.
pub enum Opened {
    /// It is taken.
    Taken {
        /// Its session.
        session: Session,
        /// Where it goes in place of what the router decided, with its key.
        target: Option<(RouteTarget, Option<Box<str>>)>,
        /// Between two ticks.
        tick: Option<Duration>,
        /// To be committed before the stream is opened.
        writes: Option<WriteBatch>,
    },
    /// It is refused.
    Refused {
        /// What the client gets.
        reply: Reply,
        /// To be committed before the reply.
        writes: Option<WriteBatch>,
    },
}

/// The end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The code of the first close frame.
    pub code: Option<u16>,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes from the endpoint.
    pub bytes_down: u64,
    /// How long it was open.
    pub duration: Duration,
}

/// Why a session could not be opened, or gave no verdict.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The guest trapped; its instance is lost.
    #[error("trap: {0}")]
    Trap(String),
    /// It was cut at its deadline; its instance is lost.
    #[error("deadline of {0:?} exceeded")]
    Deadline(Duration),
    /// What it returned cannot be acted on.
    #[error("bad verdict: {0}")]
    Verdict(String),
    /// An instance could not be made.
    #[error("instantiate: {0}")]
    Instantiate(String),
    /// The plugin is isolated, and has as many instances as it may.
    #[error(
        "{0} streams have an instance of their own on this worker, as many as sessions.isolated_max allows"
    )]
    IsolatedFull(usize),
    /// All instances together are as many as the engine has room for.
    #[error("{0} instances hold sessions, as many as this machine has room for")]
    Full(usize),
    /// Its instance was lost before.
    #[error("the instance was lost to another session")]
    Lost,
    /// It failed too often to be opened again.
    #[error(
        "failed more than {0} times in a minute, as often as sessions.rebuilds_per_minute allows"
    )]
    TooManyFailures(u32),
    /// The session that was to take the place of a lost one refused the stream.
    #[error("the new session refused the stream with status {0}")]
    Refused(u16),
}

impl From<RouteError> for SessionError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Trap(reason) => Self::Trap(reason),
            RouteError::Deadline(deadline) => Self::Deadline(deadline),
            RouteError::Decision(error) => Self::Verdict(error.0),
            RouteError::Instantiate(reason) => Self::Instantiate(reason),
        }
    }
}

impl From<DecisionError> for SessionError {
    fn from(error: DecisionError) -> Self {
        Self::Verdict(error.0)
    }
}

/// Functions of `throwbar:plugin/streams`, their arguments borrowed.
pub(super) struct Functions {
    open: OpenFunc,
    on_message: MessageFunc,
    on_tick: TypedFunc<(ResourceAny,), (wit_streams::Impulse,)>,
    on_close: TypedFunc<(ResourceAny, wit_streams::Ending), ()>,
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
    pub(super) fn of(
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
struct Home {
    sandbox: Arc<Sandbox>,
    plan: Arc<Plan>,
    /// None once it is lost.
    running: RefCell<Option<Running>>,
    /// Its sessions.
    live: Cell<usize>,
    isolated: bool,
    _place: SessionInstance,
}

struct Running {
    store: Store<HostState>,
    functions: Functions,
}

impl Home {
    fn start(
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
        Ok(Self {
            sandbox: Arc::clone(sandbox),
            plan: Arc::clone(plan),
            running: RefCell::new(Some(Running {
                store: started.store,
                functions,
            })),
            live: Cell::new(0),
            isolated: sandbox.config.sessions.isolated,
            _place: place,
        })
    }

    fn id(&self) -> GenerationId {
        self.sandbox.label.id
    }

    fn is_lost(&self) -> bool {
        self.running.borrow().is_none()
    }

    /// Whether it may take another session.
    fn has_room(&self) -> bool {
        !self.isolated
            && !self.is_lost()
            && self.live.get() < self.sandbox.config.sessions.per_instance_max
    }

    /// Whether nobody will need it any more.
    fn is_over(&self) -> bool {
        self.live.get() == 0
            && (self.isolated || self.is_lost() || self.sandbox.retired.load(Ordering::Relaxed))
    }
}

impl Sessions {
    /// No sessions yet, on the worker of this number; `reader` is how they see the store.
    pub fn new(worker: usize, reader: Reader) -> Rc<Self> {
        Rc::new(Self {
            worker,
            homes: RefCell::default(),
            reader: RefCell::new(reader),
            failures: RefCell::default(),
            lost: Cell::new(false),
        })
    }

    /// Opens a session for a request that is to become a stream. `head` has to be there; it is lent to the guest and
    /// back in its place whatever happens.
    ///
    /// # Errors
    /// [`SessionError`]: there is no session then.
    pub fn open(
        self: &Rc<Self>,
        generation: &Generation,
        head: &mut Option<RequestHead>,
    ) -> Result<Opened, SessionError> {
        let plan = &generation.plan;
        let home = self.home(&generation.sandbox, plan)?;
        let fields = (!plan.fields.is_empty()).then(|| {
            let mut fields = String::new();
            let head = head.as_ref().expect("the caller's part");
            request::pack(head, &plan.fields, &mut fields);
            fields
        });
        let taken = self.call_open(&home, fields.as_deref(), None, head);
        match taken.inspect_err(|_| self.tidy(&home))? {
            Taken::Session {
                resource,
                target,
                tick,
                writes,
                saved,
            } => {
                let rebuilt = home.sandbox.config.sessions.on_trap == OnTrap::Rebuild;
                let kept = rebuilt.then(|| {
                    Box::new(Kept {
                        fields: fields.map(String::into_boxed_str),
                        saved: saved.unwrap_or_default(),
                    })
                });
                Ok(Opened::Taken {
                    session: Session::new(self, home, resource, kept),
                    target,
                    tick,
                    writes,
                })
            }
            Taken::Refused { reply, writes } => {
                self.tidy(&home);
                Ok(Opened::Refused { reply, writes })
            }
        }
    }

    /// Whether an instance was lost since this was asked last: its sessions say so.
    pub fn take_lost(&self) -> bool {
        self.lost.take()
    }

    /// To be called now and then: lets go of what is not needed any more.
    pub fn sweep(&self) {
        // A reader that is idle would keep an old snapshot alive.
        self.reader.borrow_mut().load();
        self.homes.borrow_mut().retain(|home| !home.is_over());
        self.failures
            .borrow_mut()
            .retain(|_, (since, _)| since.elapsed() < FAILURES_WINDOW);
    }

    /// An instance with room for a session.
    fn home(&self, sandbox: &Arc<Sandbox>, plan: &Arc<Plan>) -> Result<Rc<Home>, SessionError> {
        let id = sandbox.label.id;
        let config = &sandbox.config.sessions;
        let mut homes = self.homes.borrow_mut();
        if let Some(home) = homes.iter().find(|home| home.id() == id && home.has_room()) {
            return Ok(Rc::clone(home));
        }
        if config.isolated {
            let plugin = &sandbox.label.plugin;
            let own = homes
                .iter()
                .filter(|home| home.isolated && home.sandbox.label.plugin == *plugin);
            if own.count() >= config.isolated_max {
                return Err(SessionError::IsolatedFull(config.isolated_max));
            }
        }
        let home = Rc::new(Home::start(sandbox, plan, self.worker)?);
        homes.push(Rc::clone(&home));
        Ok(home)
    }

    /// Forgets an instance that nobody needs any more.
    fn tidy(&self, home: &Rc<Home>) {
        if home.is_over() {
            self.homes
                .borrow_mut()
                .retain(|known| !Rc::ptr_eq(known, home));
        }
    }

    /// One call into an instance, under the plugin's deadline. If it does not return, the instance is lost.
    fn call<T>(
        &self,
        home: &Home,
        head: &mut Option<RequestHead>,
        call: impl FnOnce(&mut Store<HostState>, &Functions) -> wasmtime::Result<T>,
    ) -> Result<T, SessionError> {
        let mut slot = home.running.borrow_mut();
        let Some(running) = &mut *slot else {
            return Err(SessionError::Lost);
        };
        let deadline = home.sandbox.config.limits.deadline;
        let Running { store, functions } = running;
        store
            .data_mut()
            .begin(head, self.reader.borrow_mut().load());
        home.sandbox.clock.arm(store, EpochClock::ticks(deadline));
        let called = catch_unwind(AssertUnwindSafe(|| call(store, functions)));
        std::mem::swap(&mut store.data_mut().head, head);
        let error = match called {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => SessionError::from(instance::cause(&error, deadline)),
            Err(panic) => {
                SessionError::Trap(format!("host function: {}", instance::text_of(&*panic)))
            }
        };
        let stats = self.stats(home);
        match error {
            SessionError::Deadline(_) => metrics::add(&stats.session_deadlines, 1),
            _ => metrics::add(&stats.session_traps, 1),
        }
        *slot = None;
        self.lost.set(true);
        self.note_failure(home.id());
        Err(error)
    }

    /// Calls `open`, and checks what it returned.
    fn call_open(
        &self,
        home: &Rc<Home>,
        fields: Option<&str>,
        saved: Option<&[u8]>,
        head: &mut Option<RequestHead>,
    ) -> Result<Taken, SessionError> {
        metrics::add(&self.stats(home).session_events, 1);
        let (opened, writes, saved) = self.call(home, head, |store, functions| {
            let open: TypedFunc<(Option<&str>, Option<&[u8]>), _> = functions.open;
            let (opened,) = open.call(&mut *store, (fields, saved))?;
            let state = store.data_mut();
            // Its handles are of this call.
            let opened = match opened {
                Ok(opening) => {
                    let checked = check_opening(&opening, state);
                    Ok((opening.session, checked))
                }
                Err(reply) => Err(check_refusal(reply, state)),
            };
            Ok((opened, state.overlay.take_batch(), state.saved.take()))
        })?;
        let bad = |error| self.bad_verdict(home, error);
        match opened {
            Ok((resource, Ok((target, tick)))) => Ok(Taken::Session {
                resource,
                target,
                tick,
                writes,
                saved,
            }),
            Ok((resource, Err(error))) => {
                self.drop_resource(home, resource);
                Err(bad(error))
            }
            Err(reply) => Ok(Taken::Refused {
                reply: reply.map_err(bad)?,
                writes,
            }),
        }
    }

    /// Runs the guest's destructor of a session.
    fn drop_resource(&self, home: &Home, resource: ResourceAny) {
        let dropped = self.call(home, &mut None, |store, _| resource.resource_drop(store));
        match dropped {
            Ok(()) | Err(SessionError::Lost) => {}
            Err(error) => tell(&home.sandbox.label, &error, "session was not dropped"),
        }
    }

    /// Counts a verdict that cannot be acted on.
    fn bad_verdict(&self, home: &Home, error: impl Into<SessionError>) -> SessionError {
        metrics::add(&self.stats(home).bad_verdicts, 1);
        self.note_failure(home.id());
        error.into()
    }

    fn note_failure(&self, id: GenerationId) {
        let mut failures = self.failures.borrow_mut();
        let (since, count) = failures.entry(id).or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= FAILURES_WINDOW {
            (*since, *count) = (Instant::now(), 0);
        }
        *count = count.saturating_add(1);
    }

    fn check_failures(&self, home: &Home) -> Result<(), SessionError> {
        let max = home.sandbox.config.sessions.rebuilds_per_minute;
        match self.failures.borrow().get(&home.id()) {
            Some((since, count)) if *count > max && since.elapsed() < FAILURES_WINDOW => {
                Err(SessionError::TooManyFailures(max))
            }
            _ => Ok(()),
        }
    }

    fn stats<'a>(&self, home: &'a Home) -> &'a CallStats {
        &home.sandbox.stats[self.worker % home.sandbox.stats.len()]
    }
}

/// What `open` returned, checked.
enum Taken {
    Session {
        resource: ResourceAny,
        target: Option<(RouteTarget, Option<Box<str>>)>,
        tick: Option<Duration>,
        writes: Option<WriteBatch>,
        saved: Option<Box<[u8]>>,
    },
    Refused {
        reply: Reply,
        writes: Option<WriteBatch>,
    },
}

type Checked = (Option<(RouteTarget, Option<Box<str>>)>, Option<Duration>);

fn check_opening(
    opening: &wit_streams::Opening,
    state: &mut HostState,
) -> Result<Checked, DecisionError> {
    let target = match &opening.target {
        Some(target) => Some(decision::check_target(target.clone(), state)?),
        None => None,
    };
    let tick = decision::check_timeout("tick-ms", opening.tick_ms)?;
    Ok((target, tick))
}

fn check_refusal(reply: wit::Reply, state: &HostState) -> Result<Reply, DecisionError> {
    decision::check_size(decision::reply_size(&reply), &state.sandbox.config.limits)?;
    decision::check_reply(reply)
}

/// Tells of a failure of a session in the log.
fn tell(label: &GenerationLabel, error: &SessionError, what: &str) {
    let (plugin, version) = (&*label.plugin, label.version());
    tracing::warn!(plugin, version, %error, "{what}");
}

impl Session {
    fn new(
        sessions: &Rc<Sessions>,
        home: Rc<Home>,
        resource: ResourceAny,
        kept: Option<Box<Kept>>,
    ) -> Self {
        home.live.set(home.live.get() + 1);
        home.sandbox.label.sessions.fetch_add(1, Ordering::Relaxed);
        Self {
            sessions: Rc::clone(sessions),
            home,
            resource,
            kept,
        }
    }

    /// What the config says of a stream whose session is lost.
    pub fn on_trap(&self) -> OnTrap {
        self.home.sandbox.config.sessions.on_trap
    }

    /// Whether its instance is lost.
    pub fn is_lost(&self) -> bool {
        self.home.is_lost()
    }

    /// Has it judge a message; a text is UTF-8.
    ///
    /// # Errors
    /// [`SessionError`]: the session is of no use any more, whether or not its instance is lost. The log was told.
    pub fn message(
        &mut self,
        direction: Direction,
        kind: Kind,
        bytes: &[u8],
    ) -> Result<Verdict, SessionError> {
        let resource = self.resource;
        let (raw, saved) = self.call(|store, functions| {
            let on_message: TypedFunc<(_, _, _, &[u8]), _> = functions.on_message;
            let arguments = (resource, direction.into(), kind.into(), bytes);
            let (raw,) = on_message.call(&mut *store, arguments)?;
            Ok((raw, store.data_mut().saved.take()))
        })?;
        self.keep(saved);
        if matches!(raw, wit_streams::Verdict::Pass) {
            return Ok(Verdict::Pass);
        }
        let limits = &self.home.sandbox.config.limits;
        verdict::check(raw, kind, limits).map_err(|error| self.bad_verdict(error))
    }

    /// Tells it that its interval has gone by.
    ///
    /// # Errors
    /// As [`Session::message`].
    pub fn tick(&mut self) -> Result<Impulse, SessionError> {
        let resource = self.resource;
        let (raw, saved) = self.call(|store, functions| {
            let (raw,) = functions.on_tick.call(&mut *store, (resource,))?;
            Ok((raw, store.data_mut().saved.take()))
        })?;
        self.keep(saved);
        let limits = &self.home.sandbox.config.limits;
        verdict::check_impulse(raw, limits).map_err(|error| self.bad_verdict(error))
    }

    /// Tells it that its stream is over, and drops it.
    ///
    /// # Errors
    /// As [`Session::message`].
    pub fn close(mut self, ending: Ending) -> Result<(), SessionError> {
        let resource = self.resource;
        let millis = u64::try_from(ending.duration.as_millis()).unwrap_or(u64::MAX);
        let ending = wit_streams::Ending {
            code: ending.code,
            bytes_up: ending.bytes_up,
            bytes_down: ending.bytes_down,
            duration_ms: millis,
        };
        self.call(|store, functions| functions.on_close.call(store, (resource, ending)))
    }

    /// Opens another session in place of this one, in an instance that is not lost; says the interval of its ticks.
    ///
    /// # Errors
    /// [`SessionError`]: there is none then.
    pub fn rebuild(&mut self) -> Result<Option<Duration>, SessionError> {
        self.sessions.check_failures(&self.home)?;
        let home = self.sessions.home(&self.home.sandbox, &self.home.plan)?;
        let (fields, saved) = match &self.kept {
            Some(kept) => (kept.fields.as_deref(), &*kept.saved),
            None => (None, &[][..]),
        };
        let sessions = Rc::clone(&self.sessions);
        let taken = sessions.call_open(&home, fields, Some(saved), &mut None);
        match taken {
            Ok(Taken::Session {
                resource,
                tick,
                saved,
                ..
            }) => {
                let kept = self.kept.take();
                // The old one goes now.
                *self = Self::new(&sessions, home, resource, kept);
                self.keep(saved);
                Ok(tick)
            }
            Ok(Taken::Refused { reply, .. }) => {
                sessions.tidy(&home);
                Err(SessionError::Refused(reply.status.as_u16()))
            }
            Err(error) => {
                sessions.tidy(&home);
                tell(&home.sandbox.label, &error, "session was not opened again");
                Err(error)
            }
        }
    }

    /// Counts what it returned from `open` as a verdict that cannot be acted on.
    pub fn bad_opening(&self, error: DecisionError) -> SessionError {
        self.sessions.bad_verdict(&self.home, error)
    }

    fn call<T>(
        &mut self,
        call: impl FnOnce(&mut Store<HostState>, &Functions) -> wasmtime::Result<T>,
    ) -> Result<T, SessionError> {
        metrics::add(&self.sessions.stats(&self.home).session_events, 1);
        let called = self.sessions.call(&self.home, &mut None, call);
        called.inspect_err(|error| tell(&self.home.sandbox.label, error, "session failed"))
    }

    fn keep(&mut self, saved: Option<Box<[u8]>>) {
        if let (Some(saved), Some(kept)) = (saved, &mut self.kept) {
            kept.saved = saved;
        }
    }

    fn bad_verdict(&self, reason: String) -> SessionError {
        let error = SessionError::Verdict(reason);
        tell(&self.home.sandbox.label, &error, "session failed");
        self.sessions.bad_verdict(&self.home, error)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.drop_resource(&self.home, self.resource);
        self.home.live.set(self.home.live.get() - 1);
        self.home
            .sandbox
            .label
            .sessions
            .fetch_sub(1, Ordering::Relaxed);
        self.sessions.tidy(&self.home);
    }
}
