//! Sessions: what a plugin with stream hooks keeps for each of its streams.
//!
//! They live in instances of their own, apart from those that route, so that neither ends with the other. A worker has
//! one for all its streams of a generation, or one for each stream of an isolated plugin. It goes with its last session
//! when its generation is no longer active: a stream keeps the code and the state of the version that accepted it.
//!
//! A trap or a deadline loses the instance with all its sessions. Whoever has one finds out by [`Session::is_lost`], and
//! either opens another by [`Session::rebuild`] or drops it.

use super::decision::DecisionError;
use super::decision::Found;
use super::generation::GenerationLabel;
use super::imports::{HostState, wit_streams};
use super::instance::RouteError;
use super::verdict::{self, Direction, Impulse, Kind, Verdict};
use super::{OnTrap, Reply};
use crate::metrics;
use crate::store::WriteBatch;
use home::Home;
use open::Taken;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use wasmtime::Store;
use wasmtime::component::{ResourceAny, TypedFunc};

mod home;
mod open;
mod write;

pub(super) use home::Functions;
pub use open::Sessions;

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
    slots: Box<[Option<Box<str>>]>,
    saved: Box<[u8]>,
}

/// What a call of a session left.
struct Raw<T> {
    returned: T,
    /// Whether it wrote to the store.
    wrote: bool,
    saved: Option<Box<[u8]>>,
}

/// What became of a request to open a stream.
pub enum Opened {
    /// It is taken.
    Taken {
        /// Its session.
        session: Session,
        /// Where it goes in place of what the router decided, with its key.
        target: Option<Found>,
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
            RouteError::Deadline(deadline) | RouteError::WatchDeadline(deadline) => {
                Self::Deadline(deadline)
            }
            RouteError::Decision(error) => Self::Verdict(error.0),
            RouteError::Instantiate(reason) | RouteError::NoRoom(reason) => {
                Self::Instantiate(reason)
            }
        }
    }
}

impl From<DecisionError> for SessionError {
    fn from(error: DecisionError) -> Self {
        Self::Verdict(error.0)
    }
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

    /// Whether its instance is its own.
    pub fn is_isolated(&self) -> bool {
        self.home.isolated
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
        let raw = self.call(|store, functions| {
            let on_message: TypedFunc<(_, _, _, &[u8]), _> = functions.on_message;
            let arguments = (resource, direction.into(), kind.into(), bytes);
            let (raw,) = on_message.call(store, arguments)?;
            Ok(raw)
        })?;
        self.keep(raw.saved);
        let verdict = match raw.returned {
            wit_streams::Verdict::Pass => Verdict::Pass,
            other => {
                let limits = &self.home.sandbox.config.limits;
                let checked = verdict::check(other, kind, limits);
                checked.map_err(|error| self.bad_verdict(error))?
            }
        };
        self.submit(raw.wrote);
        Ok(verdict)
    }

    /// Tells it that its interval has gone by.
    ///
    /// # Errors
    /// As [`Session::message`].
    pub fn tick(&mut self) -> Result<Impulse, SessionError> {
        let resource = self.resource;
        let raw = self.call(|store, functions| {
            let (raw,) = functions.on_tick.call(store, (resource,))?;
            Ok(raw)
        })?;
        self.keep(raw.saved);
        let limits = &self.home.sandbox.config.limits;
        let checked = verdict::check_impulse(raw.returned, limits);
        let impulse = checked.map_err(|error| self.bad_verdict(error))?;
        self.submit(raw.wrote);
        Ok(impulse)
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
        let raw =
            self.call(|store, functions| functions.on_close.call(store, (resource, ending)))?;
        self.submit(raw.wrote);
        Ok(())
    }

    /// Opens another session in place of this one, in an instance that is not lost; says the interval of its ticks.
    ///
    /// # Errors
    /// [`SessionError`]: there is none then.
    pub fn rebuild(&mut self) -> Result<Option<Duration>, SessionError> {
        self.sessions.check_failures(&self.home)?;
        let home = self.sessions.home(&self.home.sandbox, &self.home.plan)?;
        let (fields, slots, saved) = match &self.kept {
            Some(kept) => (kept.fields.as_deref(), &*kept.slots, &*kept.saved),
            None => (None, &[][..], &[][..]),
        };
        let sessions = Rc::clone(&self.sessions);
        home.keep_slots(slots.into());
        let taken = sessions.call_open(&home, fields, Some(saved), &mut None);
        home.keep_slots(Box::default());
        if taken.is_ok() {
            sessions.submit(&home);
        }
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
    ) -> Result<Raw<T>, SessionError> {
        metrics::add(&self.sessions.stats(&self.home).session_events, 1);
        let called = self
            .sessions
            .call(&self.home, &mut None, |store, functions| {
                let returned = call(store, functions)?;
                let state = store.data_mut();
                Ok(Raw {
                    returned,
                    wrote: !state.overlay.is_empty(),
                    saved: state.saved.take(),
                })
            });
        called.inspect_err(|error| tell(&self.home.sandbox.label, error, "session failed"))
    }

    /// Hands on what a call wrote, once it is known that what it returned can be acted on.
    fn submit(&self, wrote: bool) {
        if wrote {
            self.sessions.submit(&self.home);
        }
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
