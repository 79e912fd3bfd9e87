//! A worker's sessions: opened in an instance with room, and lost with it.

use super::home::{Functions, Home, Running};
use super::{Kept, Opened, Session, SessionError, tell};
use crate::metrics;
use crate::plugin::decision::Found;
use crate::plugin::decision::{self, DecisionError};
use crate::plugin::epoch::EpochClock;
use crate::plugin::generation::{CallStats, Sandbox};
use crate::plugin::imports::{HostState, request, wit, wit_streams};
use crate::plugin::instance;
use crate::plugin::subscription::Plan;
use crate::plugin::{Generation, GenerationId, OnTrap, Reply, RequestHead};
use crate::store::{Reader, WriteBatch};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::Store;
use wasmtime::component::{ResourceAny, TypedFunc};

/// Over which failures are counted.
const FAILURES_WINDOW: Duration = Duration::from_secs(60);

/// One worker's sessions, and the instances they live in.
pub struct Sessions {
    pub(super) worker: usize,
    homes: RefCell<Vec<Rc<Home>>>,
    reader: RefCell<Reader>,
    /// Instances lost and bad verdicts of a generation, since when.
    failures: RefCell<HashMap<GenerationId, (Instant, u32)>>,
    /// Whether an instance was lost since somebody asked.
    lost: Cell<bool>,
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
                        slots: kept_slots(plan, head),
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

    /// Instances with sessions, or kept for them.
    pub fn instances(&self) -> usize {
        self.homes.borrow().len()
    }

    /// To be called now and then: lets go of what is not needed any more.
    pub fn sweep(&self) {
        // A reader that is idle would keep an old snapshot alive, and so would an instance.
        let snapshot = Arc::clone(self.reader.borrow_mut().load());
        let homes = self.homes.borrow().clone();
        for home in homes {
            if let Err(error) = home.refresh(&snapshot) {
                tell(
                    &home.sandbox.label,
                    &error.into(),
                    "instance with sessions is lost",
                );
                *home.running.borrow_mut() = None;
                self.lose(&home);
            }
        }
        self.homes.borrow_mut().retain(|home| !home.is_over());
        self.failures
            .borrow_mut()
            .retain(|_, (since, _)| since.elapsed() < FAILURES_WINDOW);
    }

    /// An instance with room for a session.
    pub(super) fn home(
        &self,
        sandbox: &Arc<Sandbox>,
        plan: &Arc<Plan>,
    ) -> Result<Rc<Home>, SessionError> {
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
    pub(super) fn tidy(&self, home: &Rc<Home>) {
        if home.is_over() {
            self.homes
                .borrow_mut()
                .retain(|known| !Rc::ptr_eq(known, home));
        }
    }

    /// One call into an instance, under the plugin's deadline. If it does not return, the instance is lost.
    pub(super) fn call<T>(
        &self,
        home: &Home,
        head: &mut Option<RequestHead>,
        call: impl FnOnce(&mut Store<HostState>, &Functions) -> wasmtime::Result<T>,
    ) -> Result<T, SessionError> {
        let mut slot = home.running.borrow_mut();
        let Some(running) = &mut *slot else {
            return Err(SessionError::Lost);
        };
        home.calls.set(home.calls.get() + 1);
        let deadline = home.sandbox.config.limits.deadline;
        let Running {
            store,
            functions,
            watcher,
        } = running;
        let told = {
            let mut reader = self.reader.borrow_mut();
            let snapshot = reader.load();
            let told = match watcher {
                Some(watcher) => watcher.catch_up(store, &home.sandbox, snapshot),
                None => Ok(()),
            };
            let state = store.data_mut();
            state.unapplied.settle(snapshot.revision().0);
            state.begin(head, snapshot);
            told
        };
        home.sandbox.clock.arm(store, EpochClock::ticks(deadline));
        let called = told.map(|()| catch_unwind(AssertUnwindSafe(|| call(store, functions))));
        std::mem::swap(&mut store.data_mut().head, head);
        let error = match called {
            Ok(Ok(Ok(value))) => return Ok(value),
            Ok(Ok(Err(error))) => SessionError::from(instance::cause(&error, deadline)),
            Ok(Err(panic)) => {
                SessionError::Trap(format!("host function: {}", instance::text_of(&*panic)))
            }
            Err(error) => SessionError::from(error),
        };
        let stats = self.stats(home);
        match error {
            SessionError::Deadline(_) => metrics::add(&stats.session_deadlines, 1),
            _ => metrics::add(&stats.session_traps, 1),
        }
        *slot = None;
        self.lose(home);
        Err(error)
    }

    /// Notes that an instance is lost.
    fn lose(&self, home: &Home) {
        self.lost.set(true);
        self.note_failure(home.id());
    }

    /// Calls `open`, and checks what it returned. What it writes in place of a lost session is left to be
    /// [submitted](Self::submit).
    pub(super) fn call_open(
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
            let writes = saved.is_none().then(|| state.take_session_writes());
            Ok((opened, writes.flatten(), state.saved.take()))
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
    pub(super) fn drop_resource(&self, home: &Home, resource: ResourceAny) {
        let dropped = self.call(home, &mut None, |store, _| {
            // Nobody would answer for it.
            let state = store.data_mut();
            state.overlay.clear();
            state.writes = None;
            resource.resource_drop(store)
        });
        match dropped {
            Ok(()) | Err(SessionError::Lost) => {}
            Err(error) => tell(&home.sandbox.label, &error, "session was not dropped"),
        }
    }

    /// Counts a verdict that cannot be acted on.
    pub(super) fn bad_verdict(&self, home: &Home, error: impl Into<SessionError>) -> SessionError {
        metrics::add(&self.stats(home).bad_verdicts, 1);
        self.discard(home);
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

    pub(super) fn check_failures(&self, home: &Home) -> Result<(), SessionError> {
        let max = home.sandbox.config.sessions.rebuilds_per_minute;
        match self.failures.borrow().get(&home.id()) {
            Some((since, count)) if *count > max && since.elapsed() < FAILURES_WINDOW => {
                Err(SessionError::TooManyFailures(max))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn stats<'a>(&self, home: &'a Home) -> &'a CallStats {
        &home.sandbox.stats[self.worker % home.sandbox.stats.len()]
    }
}

/// What the slots of a subscription hold, for a session in the place of one that is lost.
fn kept_slots(plan: &Plan, head: &Option<RequestHead>) -> Box<[Option<Box<str>>]> {
    let head = head.as_ref().expect("the caller's part");
    let slots = plan.slots.iter();
    slots
        .map(|field| request::text(head, field).map(|text| text.into()))
        .collect()
}

/// What `open` returned, checked.
pub(super) enum Taken {
    Session {
        resource: ResourceAny,
        target: Option<Found>,
        tick: Option<Duration>,
        writes: Option<WriteBatch>,
        saved: Option<Box<[u8]>>,
    },
    Refused {
        reply: Reply,
        writes: Option<WriteBatch>,
    },
}

type Checked = (Option<Found>, Option<Duration>);

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
