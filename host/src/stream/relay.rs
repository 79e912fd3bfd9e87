//! The loop that moves the bytes of a worker's streams.
//!
//! All their sockets are in one epoll set, whose descriptor the worker's runtime watches. A turn takes one batch of
//! events, reads each ready socket into the worker's scratch buffer and writes to the peer at once. Events are level
//! triggered, so what a turn leaves is told of again; but the runtime is told only when something *new* happens in the
//! set. So the loop may wait only after a batch that was not full and of which every socket was read until it had no
//! more: until a short read, or until its end when the event told of one.

use super::Streams;
use super::entry::Progress;
use super::token::Token;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;

/// Events of one turn.
const EVENTS_PER_TURN: usize = 128;

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

impl Streams {
    /// Relays until it is dropped; streams then stay open, and stand still.
    ///
    /// # Errors
    /// The kernel refuses the epoll set itself.
    pub async fn run(self: Rc<Self>) -> io::Result<Infallible> {
        loop {
            tokio::select! {
                biased;
                ready = self.epoll.readable() => {
                    let mut ready = ready?;
                    if self.turn()? {
                        drop(ready);
                        tokio::task::yield_now().await;
                    } else {
                        ready.clear_ready();
                    }
                }
                // Nothing happens in the set when bytes wait that were read before.
                () = self.resumed.notified() => {
                    self.resume();
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Handles one batch of events; says whether there is more to do right away.
    fn turn(&self) -> io::Result<bool> {
        self.resume();
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS_PER_TURN];
        let (events, _) = match epoll::wait(self.epoll.get_ref(), &mut events, Some(&NOW)) {
            Err(Errno::INTR) => return Ok(true),
            waited => waited?,
        };
        let mut more = events.len() == EVENTS_PER_TURN;
        for event in events {
            more |= self.event(Token::unpack(event.data.u64()), event.flags) == Progress::More;
        }
        self.settle_lost();
        Ok(more)
    }

    /// Lets streams go on that have read more than they had time for.
    fn resume(&self) {
        let tick = self.tick.get();
        let waiting = std::mem::take(&mut *self.resumable.borrow_mut());
        for token in waiting {
            if !self.is_stale(token) {
                self.apply(token.index as usize, |entry| entry.resume(tick));
            }
        }
        self.settle_lost();
    }

    /// Whether the stream that a token is of is gone.
    fn is_stale(&self, token: Token) -> bool {
        let table = self.table.borrow();
        let entry = table.entries.get(token.index as usize);
        entry.is_none_or(|entry| Token::of(token.index, entry.id(), token.side) != token)
    }

    /// Handles one event, unless its stream is gone.
    pub(super) fn event(&self, token: Token, flags: EventFlags) -> Progress {
        let index = token.index as usize;
        if self.is_stale(token) {
            return Progress::Idle;
        }
        let tick = self.tick.get();
        let mut scratch = self.scratch.borrow_mut();
        self.apply(index, |entry| {
            entry.handle(token.side, flags, &mut scratch, tick)
        })
    }
}
