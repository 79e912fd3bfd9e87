//! The part of an entry that acts when a plugin sees its messages.

use super::{Closing, Entry, Progress};
use crate::stream::SessionInfo;
use crate::stream::hook::{Hooked, OUT_BYTES, Out, Step};
use crate::stream::table::CLOSE_TICKS;
use crate::stream::token::Side;
use std::io;
use std::rc::Rc;
use std::time::Duration;

impl Entry {
    /// Whether a plugin sees the messages.
    pub(super) fn is_hooked(&self) -> bool {
        self.closing.is_none() && self.hooked.as_ref().is_some_and(|hooked| hooked.is_on())
    }

    /// Shows the messages in what was read from a side to the session.
    pub(super) fn show(&mut self, from: Side, chunk: &[u8]) -> io::Result<()> {
        let leg = self.leg_mut(from);
        leg.bytes += chunk.len() as u64;
        leg.cursor.advance(chunk);
        if leg.cursor.close_seen() {
            self.first.get_or_insert(from);
        }
        if self.has_backlog(from) || !self.can_judge(from) {
            // Of one reading: pongs of ours have cut it in pieces.
            if let Some(hooked) = &mut self.hooked {
                hooked.add_to_backlog(from, chunk);
            }
            return Ok(());
        }
        self.judge(from, chunk)
    }

    fn judge(&mut self, from: Side, bytes: &[u8]) -> io::Result<()> {
        let tick = self.active_tick;
        self.act(tick, |hooked, out| hooked.take(from, bytes, out, tick))?;
        if self.leg(from).ended {
            self.shut_if_done(from.other())?;
        }
        Ok(())
    }

    /// Lets the session act, sends what came of it, and closes the stream if that is the outcome.
    fn act(
        &mut self,
        tick: u32,
        act: impl FnOnce(&mut Hooked, &mut Out) -> io::Result<Step>,
    ) -> io::Result<()> {
        let Some(hooked) = &mut self.hooked else {
            return Ok(());
        };
        let buffers = Rc::clone(hooked.buffers());
        let mut out = buffers.out.borrow_mut();
        let acted = act(hooked, &mut out);
        let sent = Side::BOTH.into_iter().try_for_each(|to| {
            let leg = self.leg_mut(to);
            match out.bytes(to) {
                [] => Ok(()),
                _ if leg.shut => Ok(()),
                bytes => leg.send(bytes),
            }
        });
        out.clear();
        drop(out);
        sent?;
        let Step::Close(close, why) = acted? else {
            return Ok(());
        };
        if let Some(hooked) = &mut self.hooked {
            hooked.note_code(close.code);
        }
        self.closing = Some(Box::new(Closing {
            code: close.code,
            reason: close.reason.into(),
            why,
            deadline: tick.saturating_add(CLOSE_TICKS),
        }));
        Side::BOTH.into_iter().try_for_each(|to| self.cut(to))
    }

    /// Goes on with bytes that waited until the ends took what came before.
    pub(super) fn take_backlogs(&mut self) -> io::Result<()> {
        for from in Side::BOTH {
            if self.is_hooked() && self.can_judge(from) {
                let waiting = match &mut self.hooked {
                    Some(hooked) if hooked.has_backlog(from) => hooked.take_backlog(from),
                    _ => continue,
                };
                self.judge(from, &waiting)?;
            }
        }
        Ok(())
    }

    /// Whether there is room for what the session makes of a side's messages.
    pub(super) fn can_judge(&self, from: Side) -> bool {
        self.leg(from.other()).leftover.is_none() && self.leg(from).leftover_bytes() < OUT_BYTES
    }

    pub(super) fn has_backlog(&self, from: Side) -> bool {
        let hooked = self.hooked.as_ref();
        hooked.is_some_and(|hooked| self.closing.is_none() && hooked.has_backlog(from))
    }

    /// Whether bytes that were read wait for nothing but their turn.
    pub(in crate::stream) fn is_resumable(&self) -> bool {
        self.is_hooked()
            && Side::BOTH
                .into_iter()
                .any(|from| self.has_backlog(from) && self.can_judge(from))
    }

    /// Goes on with what waited for its turn.
    pub(in crate::stream) fn resume(&mut self, tick: u32) -> Progress {
        self.active_tick = tick;
        let resumed = self.take_backlogs();
        self.settle(resumed.map(|()| false))
    }

    /// When the session's next tick is due; 0 for never.
    pub(in crate::stream) fn tick_due(&self) -> u32 {
        match &self.hooked {
            Some(hooked) if self.closing.is_none() => hooked.due(),
            _ => 0,
        }
    }

    /// Tells the session that its interval has gone by; not while an end is behind, it would only fall back further.
    pub(in crate::stream) fn session_tick(&mut self, tick: u32) -> Progress {
        let behind = self.legs.iter().any(|leg| leg.leftover.is_some());
        let ticked = self.act(tick, |hooked, out| match behind {
            true => {
                hooked.skip(tick);
                Ok(Step::On)
            }
            false => hooked.tick(out, tick),
        });
        self.settle(ticked.map(|()| false))
    }

    /// Whether its session was lost with its instance.
    pub(in crate::stream) fn has_lost_session(&self) -> bool {
        self.closing.is_none() && self.hooked.as_ref().is_some_and(|hooked| hooked.is_lost())
    }

    /// Does what the config says of such a stream.
    pub(in crate::stream) fn session_lost(&mut self, tick: u32) -> Progress {
        let failed = self.act(tick, |hooked, out| hooked.fail(out, tick));
        self.settle(failed.map(|()| false))
    }

    /// Its session, for lists.
    pub(in crate::stream) fn session_info(&self) -> Option<SessionInfo> {
        self.hooked.as_ref().map(|hooked| hooked.info())
    }

    /// Tells the session that the stream is over; says how it did.
    pub(in crate::stream) fn end_session(&mut self, duration: Duration) -> Option<&'static str> {
        let bytes = self.bytes();
        let code = self.closing.as_ref().map(|closing| closing.code);
        let hooked = self.hooked.as_mut()?;
        hooked.end(code, bytes, duration);
        Some(hooked.outcome().name())
    }
}
