//! The part of an entry that ends it: the closing handshake of ours, towards both ends.

use super::{Entry, Progress, mask_towards};
use crate::stream::CloseReason;
use crate::stream::frame;
use crate::stream::token::Side;
use std::io;

/// A closing handshake of ours.
pub(super) struct Closing {
    pub(super) code: u16,
    pub(super) reason: Box<str>,
    pub(super) why: CloseReason,
    pub(super) deadline: u32,
}

impl Entry {
    /// Begins the closing handshake towards both ends; it ends at `deadline` at the latest.
    pub(in crate::stream) fn close(
        &mut self,
        code: u16,
        reason: &str,
        why: CloseReason,
        deadline: u32,
    ) -> Progress {
        if self.closing.is_none() {
            self.closing = Some(Box::new(Closing {
                code,
                reason: reason.into(),
                why,
                deadline,
            }));
        }
        let cut = Side::BOTH.into_iter().try_for_each(|to| {
            // With a session nothing but whole frames went out.
            let with_session = self.hooked.as_ref().is_some_and(|hooked| hooked.is_on());
            let at_boundary = with_session || self.leg(to.other()).cursor.at_boundary();
            if at_boundary { self.cut(to) } else { Ok(()) }
        });
        self.settle(cut.map(|()| false))
    }

    /// Ends the data for a side, at a frame's end, with a close frame, unless it had one or we shut it already.
    pub(super) fn cut(&mut self, to: Side) -> io::Result<()> {
        if self.leg(to).cut {
            return Ok(());
        }
        let has_one = match &self.hooked {
            // What was read need not have been sent on.
            Some(hooked) if !hooked.is_unhooked() => hooked.has_closed(to.other()),
            _ => self.leg(to.other()).cursor.close_seen(),
        };
        let leg = &mut self.legs[to as usize];
        leg.cut = true;
        if has_one || leg.shut {
            return Ok(());
        }
        let closing = self
            .closing
            .as_ref()
            .expect("data is cut only while closing");
        let mask = mask_towards(to)?;
        leg.send(&frame::close_frame(closing.code, &closing.reason, mask))
    }

    /// Why the stream ended: by us, by the side that was done first, or `otherwise`.
    pub(in crate::stream) fn why(&self, otherwise: CloseReason) -> CloseReason {
        match (&self.closing, self.first) {
            (Some(closing), _) => closing.why,
            (None, Some(Side::Downstream)) => CloseReason::ClientClosed,
            (None, Some(Side::Upstream)) => CloseReason::UpstreamClosed,
            (None, None) => otherwise,
        }
    }
}
