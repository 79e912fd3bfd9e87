//! One stream: two sockets, what is between them, and what is known of it.
//!
//! An entry owns both sockets; dropping it closes them, which takes them out of the epoll set, and gives back all that
//! was counted for it. It never allocates while idle.

use super::frame;
use super::hook::Hooked;
use super::leg::Leg;
use super::table::ticks;
use super::token::{Side, Token};
use super::{CloseReason, StreamFacts, StreamId};
use crate::plugin::generation::GenerationLabel;
use crate::upstream::address::Address;
use rustix::event::epoll::{self, EventData, EventFlags};
use socket2::Socket;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

mod closing;
mod follow;
mod hooked;
mod keepalive;
mod origin;

use closing::Closing;
pub(super) use follow::Followed;
pub(super) use keepalive::Keepalive;
use origin::{Addresses, LabelLease};

/// Reads of one socket before others get their turn.
const READS_PER_TURN: usize = 4;

/// What says that a socket failed or is shut both ways.
const FAILED: EventFlags = EventFlags::ERR.union(EventFlags::HUP);

/// When a stream ends by itself, in ticks; 0 is never.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timeouts {
    pub(super) idle: u32,
    pub(super) age: u32,
}

/// A stream.
pub(super) struct Entry {
    id: StreamId,
    legs: [Leg; 2],
    closing: Option<Box<Closing>>,
    keepalive: Option<Box<Keepalive>>,
    followed: Option<Box<Followed>>,
    /// Of a stream whose messages a plugin sees.
    hooked: Option<Box<Hooked>>,
    label: LabelLease,
    route: Arc<str>,
    key: Option<Box<str>>,
    addresses: Addresses,
    upstream: Option<Arc<str>>,
    on_close: Option<Box<dyn FnOnce()>>,
    /// Microseconds since the table's start.
    opened_us: u64,
    started_ms: u64,
    active_tick: u32,
    timeouts: Timeouts,
    /// The side that said first that it is done.
    first: Option<Side>,
}

/// What makes an entry, beside its two sockets.
pub(super) struct Label {
    pub(super) id: StreamId,
    pub(super) route: Arc<str>,
    pub(super) label: Option<Arc<GenerationLabel>>,
    pub(super) key: Option<Box<str>>,
    pub(super) client: SocketAddr,
    pub(super) endpoint: Address,
    pub(super) upstream: Option<Arc<str>>,
    pub(super) opened: Duration,
    pub(super) started_ms: u64,
    pub(super) tick: u32,
    pub(super) timeouts: Timeouts,
    pub(super) keepalive: Option<Box<Keepalive>>,
    pub(super) followed: Option<Box<Followed>>,
    pub(super) hooked: Option<Box<Hooked>>,
}

/// What is to be done with a stream at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Its closing handshake takes too long.
    Handshake,
    /// Nothing moved for too long.
    Idle,
    /// It is too old.
    Age,
    /// The entry it follows has changed.
    Change,
    /// It gets a ping.
    Ping,
}

/// What an event made of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Everything there was is relayed.
    Idle,
    /// There is more to read.
    More,
    /// It is over.
    Ended(CloseReason),
}

impl Entry {
    /// A stream that nothing moves yet; what was read ahead of it is for [`Entry::start`].
    pub(super) fn new(downstream: Socket, upstream: Socket, label: Label) -> Self {
        Self {
            id: label.id,
            legs: [Leg::new(downstream), Leg::new(upstream)],
            closing: None,
            keepalive: label.keepalive,
            followed: label.followed,
            hooked: label.hooked,
            label: LabelLease::new(label.label),
            route: label.route,
            key: label.key,
            addresses: Addresses::new(label.client, label.endpoint),
            upstream: label.upstream,
            on_close: None,
            opened_us: u64::try_from(label.opened.as_micros()).unwrap_or(u64::MAX),
            started_ms: label.started_ms,
            active_tick: label.tick,
            timeouts: label.timeouts,
            first: None,
        }
    }

    pub(super) fn id(&self) -> StreamId {
        self.id
    }

    pub(super) fn opened(&self) -> Duration {
        Duration::from_micros(self.opened_us)
    }

    pub(super) fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// Bytes relayed from the client, and to it.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [self.legs[0].bytes, self.legs[1].bytes]
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    pub(super) fn facts(&self) -> StreamFacts<'_> {
        let (client, endpoint) = self.addresses.get();
        StreamFacts {
            id: self.id,
            route: &self.route,
            label: self.label.get(),
            key: self.key.as_deref(),
            client,
            endpoint,
            upstream: self.upstream.as_deref(),
        }
    }

    /// Sets what is to be called when the stream is over.
    pub(super) fn set_on_close(&mut self, on_close: Option<Box<dyn FnOnce()>>) {
        self.on_close = on_close;
    }

    /// Takes what is to be called when the stream is over.
    pub(super) fn take_on_close(&mut self) -> Option<Box<dyn FnOnce()>> {
        self.on_close.take()
    }

    /// The first tick at which something is to be done with this stream by itself.
    pub(super) fn due(&self) -> u32 {
        match &self.closing {
            Some(closing) => closing.deadline,
            None => {
                let ends = self.idle_due().min(self.age_due());
                ends.min(self.change_due()).min(self.ping_due())
            }
        }
    }

    /// What is to be done now.
    pub(super) fn overdue(&self, tick: u32) -> Option<Overdue> {
        let due = |due: u32, what| (due <= tick).then_some(what);
        match &self.closing {
            Some(closing) => due(closing.deadline, Overdue::Handshake),
            None => due(self.idle_due(), Overdue::Idle)
                .or_else(|| due(self.age_due(), Overdue::Age))
                .or_else(|| due(self.change_due(), Overdue::Change))
                .or_else(|| due(self.ping_due(), Overdue::Ping)),
        }
    }

    fn idle_due(&self) -> u32 {
        after(self.active_tick, self.timeouts.idle)
    }

    fn age_due(&self) -> u32 {
        after(ticks(self.opened()), self.timeouts.age)
    }

    fn change_due(&self) -> u32 {
        let followed = self.followed.as_ref();
        followed.map_or(u32::MAX, |followed| followed.due())
    }

    /// Relays what was read before the sockets came here.
    pub(super) fn start(&mut self, from_downstream: &[u8], from_upstream: &[u8]) -> Progress {
        let relayed = self
            .relay(Side::Downstream, from_downstream)
            .and_then(|()| self.relay(Side::Upstream, from_upstream));
        self.settle(relayed.map(|()| false))
    }

    /// Acts on an event of one socket.
    pub(super) fn handle(
        &mut self,
        side: Side,
        flags: EventFlags,
        scratch: &mut [u8],
        tick: u32,
    ) -> Progress {
        let (active_tick, bytes) = (self.active_tick, self.bytes());
        self.active_tick = tick;
        let moved = self.relay_event(side, flags, scratch);
        // A pong of ours is no activity. Only a leftover waits for OUT.
        if self.keepalive.is_some() && self.bytes() == bytes && !flags.contains(EventFlags::OUT) {
            self.active_tick = active_tick;
        }
        self.settle(moved)
    }

    fn relay_event(
        &mut self,
        side: Side,
        flags: EventFlags,
        scratch: &mut [u8],
    ) -> io::Result<bool> {
        let failed = flags.intersects(FAILED);
        let mut handled = false;
        if self.leg(side).leftover.is_some() && (failed || flags.contains(EventFlags::OUT)) {
            handled = true;
            self.leg_mut(side).flush()?;
            self.send_waiting_ping(side)?;
            self.shut_if_done(side)?;
            self.take_backlogs()?;
        }
        if self.wants_read(side) && (failed || flags.intersects(EventFlags::IN | EventFlags::RDHUP))
        {
            return self.pump(side, flags.intersects(FAILED | EventFlags::RDHUP), scratch);
        }
        // Shut both ways, a socket says HUP for ever; before that it means a reset.
        if failed && !handled && (flags.contains(EventFlags::ERR) || !self.leg(side).shut) {
            let error = self.leg(side).socket.take_error()?;
            return Err(error.unwrap_or_else(|| ErrorKind::ConnectionReset.into()));
        }
        Ok(false)
    }

    /// Reads from a side while there is something to read, the peer takes it, and it is this stream's turn; says
    /// whether there may be more. A short read has emptied the socket, unless its end is known to follow.
    fn pump(&mut self, side: Side, to_the_end: bool, scratch: &mut [u8]) -> io::Result<bool> {
        for _ in 0..READS_PER_TURN {
            if !self.wants_read(side) {
                return Ok(false);
            }
            match (&self.leg(side).socket).read(scratch) {
                Ok(0) => {
                    self.release_held(side)?;
                    self.leg_mut(side).ended = true;
                    self.first.get_or_insert(side);
                    self.shut_if_done(side.other())?;
                    return Ok(false);
                }
                Ok(read) => {
                    self.relay(side, &scratch[..read])?;
                    if read < scratch.len() && !to_the_end {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends bytes of a side to the other.
    fn relay(&mut self, from: Side, chunk: &[u8]) -> io::Result<()> {
        match self.keepalive {
            None => self.pass(from, chunk),
            Some(_) => self.relay_between_pings(from, chunk),
        }
    }

    /// Sends bytes of a side to the other, or shows them to the session; while we close, sends only to the end of the
    /// current frame.
    fn pass(&mut self, from: Side, chunk: &[u8]) -> io::Result<()> {
        if self.is_hooked() {
            return self.show(from, chunk);
        }
        let to = from.other();
        let cut = self.leg(to).cut;
        let closing = self.closing.is_some();
        let cursor = &mut self.leg_mut(from).cursor;
        let relayed = if closing && !cut {
            cursor.advance_to_boundary(chunk)
        } else {
            cursor.advance(chunk);
            if cut { 0 } else { chunk.len() }
        };
        if relayed > 0 {
            self.leg_mut(from).bytes += relayed as u64;
            self.leg_mut(to).send(&chunk[..relayed])?;
        }
        if closing && !cut && self.leg(from).cursor.at_boundary() {
            self.cut(to)?;
            self.leg_mut(from).cursor.advance(&chunk[relayed..]);
        }
        if self.leg(from).cursor.close_seen() {
            self.first.get_or_insert(from);
        }
        Ok(())
    }

    /// Passes on a half-close once all that came before it is sent.
    fn shut_if_done(&mut self, to: Side) -> io::Result<()> {
        let all_sent = self.leg(to).leftover.is_none() && !self.has_backlog(to.other());
        if self.closing.is_none() && self.leg(to.other()).ended && all_sent {
            self.leg_mut(to).shut()?;
        }
        Ok(())
    }

    fn settle(&self, moved: io::Result<bool>) -> Progress {
        match moved {
            Err(_) => Progress::Ended(self.why(CloseReason::Error)),
            Ok(_) if self.is_over() => Progress::Ended(self.why(CloseReason::Error)),
            Ok(true) => Progress::More,
            Ok(false) => Progress::Idle,
        }
    }

    fn is_over(&self) -> bool {
        let closing = self.closing.is_some();
        let over =
            |leg: &Leg| leg.leftover.is_none() && (leg.ended || closing && leg.cursor.close_seen());
        self.legs.iter().all(over) && !Side::BOTH.into_iter().any(|side| self.has_backlog(side))
    }

    /// Whether bytes of a side have somewhere to go: to a peer that keeps up, or nowhere at all.
    fn wants_read(&self, side: Side) -> bool {
        let peer = self.leg(side.other());
        let takes = peer.cut || peer.leftover.is_none();
        !self.leg(side).ended
            && takes
            && (!self.is_hooked() || self.can_judge(side) && !self.has_backlog(side))
    }

    /// Makes the epoll set watch what this stream waits for.
    ///
    /// A socket that waits for nothing stays in the set to tell of a reset, but not once it is shut both ways: then it
    /// would tell of that for ever.
    pub(super) fn watch(&mut self, epoll: BorrowedFd<'_>, index: u32) -> io::Result<()> {
        for side in Side::BOTH {
            let mut flags = EventFlags::empty();
            if self.wants_read(side) {
                flags |= EventFlags::IN | EventFlags::RDHUP;
            }
            if self.leg(side).leftover.is_some() {
                flags |= EventFlags::OUT;
            }
            let wanted = (!flags.is_empty() || !self.leg(side).shut).then_some(flags);
            let data = EventData::new_u64(Token::of(index, self.id, side).pack());
            let leg = self.leg_mut(side);
            match (leg.watched, wanted) {
                (watched, wanted) if watched == wanted => {}
                (None, Some(flags)) => epoll::add(epoll, &leg.socket, data, flags)?,
                (Some(_), Some(flags)) => epoll::modify(epoll, &leg.socket, data, flags)?,
                (_, None) => epoll::delete(epoll, &leg.socket)?,
            }
            leg.watched = wanted;
        }
        Ok(())
    }

    /// Bytes kept because a peer did not take them.
    #[cfg(test)]
    pub(super) fn leftover_bytes(&self) -> usize {
        self.legs.iter().map(Leg::leftover_bytes).sum()
    }

    fn leg(&self, side: Side) -> &Leg {
        &self.legs[side as usize]
    }

    fn leg_mut(&mut self, side: Side) -> &mut Leg {
        &mut self.legs[side as usize]
    }
}

/// The tick after a span that began at `from`; a span of 0 never ends. One more than the span: a tick already begun must
/// not shorten it.
fn after(from: u32, span: u32) -> u32 {
    match span {
        0 => u32::MAX,
        span => from.saturating_add(span).saturating_add(1),
    }
}

/// What frames of ours to a side are masked with: we are a client to the endpoint only.
fn mask_towards(side: Side) -> io::Result<Option<[u8; 4]>> {
    match side {
        Side::Downstream => Ok(None),
        Side::Upstream => frame::random_mask().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_a_quarter_of_a_kibibyte() {
        assert!(size_of::<Entry>() <= 256, "{} bytes", size_of::<Entry>());
    }
}
