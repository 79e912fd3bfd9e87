//! A WebSocket of a test, as the session of a plugin under test sees it.

use super::ask::Ask;
use super::call::{Call, run};
use super::view::Watching;
use super::{Host, Plugin};
use crate::bindings::throwbar::plugin::types::Subscription;
use crate::session::{self, Direction, Ending, Impulse, Kind, Message, Opening, Session, Verdict};
use crate::{Reply, Router, Target};
use std::time::Duration;

/// An open WebSocket of a plugin under test.
///
/// ```
/// use throwbar::prelude::*;
/// use throwbar::testing::{Host, get};
///
/// #[throwbar::router(streams = Counting)]
/// fn route(_: &Request) -> Target {
///     Target::upstream("chat")
/// }
///
/// struct Counting(u32);
///
/// impl Session for Counting {
///     fn open(_: &Request, _: Option<&[u8]>) -> Result<Opening<Self>, Reply> {
///         Ok(Opening::new(Counting(0)))
///     }
///
///     fn on_message(&mut self, message: Message) -> Verdict {
///         self.0 += 1;
///         match message.text() {
///             Some("count") => Verdict::send_back(self.0.to_string()),
///             _ => Verdict::Pass,
///         }
///     }
/// }
///
/// # fn main() {
/// let plugin = Host::new().start::<route>().unwrap();
/// let mut stream = plugin.open::<Counting>(get("/chat").websocket()).unwrap();
/// assert_eq!(stream.text_up("hello"), Verdict::Pass);
/// assert_eq!(stream.text_up("count"), Verdict::send_back("2"));
/// # }
/// ```
pub struct Stream<S> {
    session: S,
    target: Option<Target>,
    tick: Option<Duration>,
    saved: Option<Vec<u8>>,
    fields: Option<String>,
    slots: Vec<Option<String>>,
    subscription: Subscription,
    host: Host,
    view: Option<Watching>,
}

/// What a session is opened with.
struct Kept {
    fields: Option<String>,
    slots: Vec<Option<String>>,
    saved: Option<Vec<u8>>,
}

impl<R: Router> Plugin<R> {
    /// Opens a WebSocket; what the router says of the request is not asked.
    ///
    /// # Errors
    /// The reply with which the session refused it.
    ///
    /// # Panics
    /// If the session does.
    #[track_caller]
    pub fn open<S: Session>(&self, ask: Ask) -> Result<Stream<S>, Reply> {
        let subscription = self.running.subscription().clone();
        let fields = ask.packed(&subscription.fields);
        let slots = subscription.slots.iter().map(|slot| ask.field(slot));
        let kept = Kept {
            fields,
            slots: slots.collect(),
            saved: None,
        };
        // Sessions have instances of their own.
        let view = self.view.as_ref().map(Watching::another);
        Stream::open(&self.host, Some(ask), kept, subscription, view)
    }
}

impl<S: Session> Stream<S> {
    #[track_caller]
    fn open(
        host: &Host,
        ask: Option<Ask>,
        kept: Kept,
        subscription: Subscription,
        view: Option<Watching>,
    ) -> Result<Self, Reply> {
        let Kept {
            fields,
            slots,
            saved,
        } = kept;
        let mut call = host.call(ask);
        call.subscribe(&subscription);
        call.kept_slots.clone_from(&slots);
        let open = || session::open(fields.clone(), saved.as_deref(), &subscription);
        let (opened, call) = match &view {
            Some(view) => view.around(host, || run(call, open)),
            None => run(call, open),
        };
        host.state.borrow_mut().log.extend(call.log.clone());
        let opened: Opening<S> = opened.unwrap_or_else(|panic| panic!("open panicked: {panic}"))?;
        host.state.borrow_mut().store = call.store.commit();
        Ok(Self {
            session: opened.session,
            target: opened.target,
            tick: opened.tick,
            saved: call.saved.or(saved),
            fields,
            slots,
            subscription,
            host: host.clone(),
            view,
        })
    }

    /// The target that the session named in place of the router's.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// The interval of ticks that the session asked for.
    pub fn tick_interval(&self) -> Option<Duration> {
        self.tick
    }

    /// What the session saved last.
    pub fn saved(&self) -> Option<&[u8]> {
        self.saved.as_deref()
    }

    /// The session itself.
    pub fn session(&self) -> &S {
        &self.session
    }

    /// Has it judge a message.
    ///
    /// # Panics
    /// If the session does; so with the others.
    #[track_caller]
    pub fn message(&mut self, message: Message) -> Verdict {
        self.run(|session| session.on_message(message))
    }

    /// Has it judge a text of the client.
    #[track_caller]
    pub fn text_up(&mut self, text: &str) -> Verdict {
        self.message(Message {
            direction: Direction::Up,
            kind: Kind::Text,
            bytes: text.as_bytes().to_vec(),
        })
    }

    /// Has it judge a text of the endpoint.
    #[track_caller]
    pub fn text_down(&mut self, text: &str) -> Verdict {
        self.message(Message {
            direction: Direction::Down,
            kind: Kind::Text,
            bytes: text.as_bytes().to_vec(),
        })
    }

    /// Lets its interval go by.
    #[track_caller]
    pub fn tick(&mut self) -> Impulse {
        self.run(S::on_tick)
    }

    /// Ends the stream; what is left of the session is returned.
    #[track_caller]
    pub fn close(mut self, ending: Ending) -> S {
        self.run(|session| session.on_close(ending));
        self.session
    }

    /// Loses the session with its instance, and opens the one that takes its place, as the real host does when the config
    /// says `rebuild`.
    ///
    /// # Errors
    /// The reply with which the new session refused the stream.
    #[track_caller]
    pub fn rebuild(self) -> Result<Self, Reply> {
        let kept = Kept {
            fields: self.fields,
            slots: self.slots,
            saved: Some(self.saved.unwrap_or_default()),
        };
        let view = self.view.as_ref().map(Watching::another);
        Self::open(&self.host, None, kept, self.subscription, view)
    }

    #[track_caller]
    fn run<T>(&mut self, event: impl FnOnce(&mut S) -> T) -> T {
        let mut call: Call = self.host.call(None);
        call.subscribe(&self.subscription);
        let session = &mut self.session;
        let event = || run(call, || event(session));
        let (result, call) = match &self.view {
            Some(view) => view.around(&self.host, event),
            None => event(),
        };
        self.host.state.borrow_mut().log.extend(call.log);
        if call.saved.is_some() {
            self.saved = call.saved;
        }
        let result = result.unwrap_or_else(|panic| panic!("the session panicked: {panic}"));
        // The real host waits for nobody here, but has later calls read it all the same.
        self.host.state.borrow_mut().store = call.store.commit();
        result
    }
}
