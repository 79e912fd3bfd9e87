//! Sessions: what a plugin keeps for each WebSocket it forwards, and what becomes of the messages.

use crate::bindings::throwbar::plugin::types::Subscription;
use crate::door;
pub use crate::hook_bindings::exports::throwbar::plugin::streams::{
    Direction, Ending, Impulse, Kind, Verdict,
};
use crate::{Reply, Request, Target};
use std::time::Duration;

/// What a plugin keeps for one WebSocket.
///
/// [`#[throwbar::router(streams = …)]`](macro@crate::router) makes it a part of the plugin:
///
/// ```
/// use throwbar::prelude::*;
///
/// #[throwbar::router(streams = Polite)]
/// fn route(_: &Request) -> Decision {
///     Target::upstream("chat").into()
/// }
///
/// struct Polite {
///     warned: bool,
/// }
///
/// impl Session for Polite {
///     fn open(request: &Request, _saved: Option<&[u8]>) -> Result<Opening<Self>, Reply> {
///         match request.header("x-user") {
///             Some(_) => Ok(Opening::new(Polite { warned: false })),
///             None => Err(Reply::text(403, "who are you?\n")),
///         }
///     }
///
///     fn on_message(&mut self, message: Message) -> Verdict {
///         match message.text() {
///             Some(text) if text.contains("damn") && self.warned => Verdict::close(4000, "language"),
///             Some(text) if text.contains("damn") => {
///                 self.warned = true;
///                 Verdict::send_back("please mind your language")
///             }
///             _ => Verdict::Pass,
///         }
///     }
/// }
/// # fn main() {}
/// ```
///
/// It lives in an instance of the version that accepted the stream, and stays there when another version is activated.
/// Sessions of one instance may share what is in a `thread_local!`. A panic ends the whole instance: what becomes of its
/// sessions, the config says.
pub trait Session: Sized + 'static {
    /// Called when the router has decided to forward a request to become a WebSocket, before anything is dialled.
    ///
    /// `saved` is there when the session before was lost with its instance, and the config says that sessions are
    /// rebuilt: the last state it [saved](save), empty if it saved none. Of the request, only what was subscribed is
    /// left then.
    ///
    /// # Errors
    /// The reply that answers the request in place of the stream.
    fn open(request: &Request<'_>, saved: Option<&[u8]>) -> Result<Opening<Self>, Reply>;

    /// Called with each whole message, whatever fragments it came in.
    fn on_message(&mut self, message: Message) -> Verdict {
        let _ = message;
        Verdict::Pass
    }

    /// Called at the interval of [`Opening::tick`].
    fn on_tick(&mut self) -> Impulse {
        Impulse::Nothing
    }

    /// Called once when the stream is over.
    fn on_close(&mut self, ending: Ending) {
        let _ = ending;
    }
}

/// A stream that is taken.
#[derive(Debug)]
pub struct Opening<S> {
    /// What is kept for it.
    pub session: S,
    /// In place of the target that the router decided on.
    pub target: Option<Target>,
    /// Between two ticks.
    pub tick: Option<Duration>,
}

impl<S> Opening<S> {
    /// Takes the stream; it goes where the router said.
    pub fn new(session: S) -> Self {
        Self {
            session,
            target: None,
            tick: None,
        }
    }

    /// Takes it to this target instead.
    pub fn to(mut self, target: impl Into<Target>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Has [`Session::on_tick`] called at this interval; the host keeps it with a resolution of 100 ms.
    pub fn tick(mut self, interval: Duration) -> Self {
        self.tick = Some(interval);
        self
    }

    /// Whole milliseconds between two ticks, as the host takes them.
    #[doc(hidden)]
    pub fn tick_ms(&self) -> Option<u32> {
        self.tick.map(crate::decision::millis)
    }
}

/// A message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Which way it goes.
    pub direction: Direction,
    /// Text or binary.
    pub kind: Kind,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Message {
    /// The text of a text message.
    pub fn text(&self) -> Option<&str> {
        match self.kind {
            Kind::Text => std::str::from_utf8(&self.bytes).ok(),
            Kind::Binary => None,
        }
    }
}

impl Verdict {
    /// Sends this on in place of the message.
    pub fn replace(bytes: impl Into<Vec<u8>>) -> Self {
        Verdict::Replace(bytes.into())
    }

    /// Sends this back, and nothing on.
    pub fn send_back(bytes: impl Into<Vec<u8>>) -> Self {
        Verdict::SendBack(bytes.into())
    }

    /// Closes the stream towards both ends, with a code and a reason of at most 123 bytes.
    pub fn close(code: u16, reason: impl Into<String>) -> Self {
        Verdict::Close((code, reason.into()))
    }
}

impl Impulse {
    /// Sends a text to the endpoint.
    pub fn text_up(text: impl Into<String>) -> Self {
        Impulse::SendUp((Kind::Text, text.into().into_bytes()))
    }

    /// Sends a text to the client.
    pub fn text_down(text: impl Into<String>) -> Self {
        Impulse::SendDown((Kind::Text, text.into().into_bytes()))
    }

    /// Closes the stream towards both ends, with a code and a reason of at most 123 bytes.
    pub fn close(code: u16, reason: impl Into<String>) -> Self {
        Impulse::Close((code, reason.into()))
    }
}

/// Keeps at most 64 KiB for the session that takes this one's place if its instance is lost, instead of what was kept
/// before. To be called in the methods of a [`Session`].
pub fn save(state: &[u8]) {
    door::save(state);
}

/// Opens a session, given the subscribed fields as the host packs them.
///
/// # Errors
/// The reply that refuses the stream.
#[doc(hidden)]
pub fn open<S: Session>(
    fields: Option<String>,
    saved: Option<&[u8]>,
    subscription: &Subscription,
) -> Result<Opening<S>, Reply> {
    S::open(&Request::new(fields, subscription), saved)
}
