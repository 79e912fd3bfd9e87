//! Pings of our own to the ends of a stream, against boxes on the way that forget whatever is silent.
//!
//! A ping goes between two frames, never into one, and not behind bytes that its end does not take. Its payload is a mark
//! of this stream, by which the pong that answers it is told from all others: ours ends here, theirs pass. Until a pong is
//! known for one or the other, its first bytes are held back; they count as not yet read.

use super::{Entry, Progress, mask_towards};
use crate::stream::StreamId;
use crate::stream::frame::{self, Cursor, opcode};
use crate::stream::token::Side;
use std::io;

/// First byte of a pong: whole, without extensions.
const PONG: u8 = 0x80 | opcode::PONG;
/// Bytes of a ping's payload.
const MARK_BYTES: usize = 8;
/// A pong of ours at its longest: two bytes of header, the mask, the payload.
const HELD_BYTES_MAX: usize = 2 + 4 + MARK_BYTES;

/// The pings of one stream.
pub(in crate::stream) struct Keepalive {
    /// The payload of every ping, by chance nobody else's.
    mark: [u8; MARK_BYTES],
    ends: [End; 2],
    /// Pings sent and not yet counted.
    sent: u32,
}

/// What goes to one end and comes back.
#[derive(Default)]
struct End {
    /// Whether its pongs are to be looked at.
    pinged: bool,
    /// In ticks; 0 for no more pings.
    interval: u32,
    /// The tick of the next ping.
    next: u32,
    /// A ping waits for the end of a frame.
    waits: bool,
    /// The first bytes of what may be a pong of ours.
    held: [u8; HELD_BYTES_MAX],
    held_len: u8,
}

/// Whose pong it is that begins with the bytes held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pong {
    Unknown,
    Ours,
    Theirs,
}

impl Keepalive {
    /// Pings at these intervals to the client and to the endpoint, in ticks, 0 for none. The first comes after half an
    /// interval to a whole one, so that streams opened together do not get theirs together.
    ///
    /// # Errors
    /// The system gives no random number.
    pub(in crate::stream) fn new(
        intervals: [u32; 2],
        id: StreamId,
        tick: u32,
    ) -> io::Result<Option<Box<Self>>> {
        if intervals == [0, 0] {
            return Ok(None);
        }
        let mark = getrandom::u64().map_err(io::Error::other)?.to_ne_bytes();
        let ends = intervals.map(|interval| End {
            pinged: interval > 0,
            interval,
            next: tick + interval.div_ceil(2) + id.share(interval / 2),
            ..End::default()
        });
        Ok(Some(Box::new(Self {
            mark,
            ends,
            sent: 0,
        })))
    }

    fn due(&self) -> u32 {
        let pinging = self.ends.iter().filter(|end| end.interval > 0);
        pinging.map(|end| end.next).min().unwrap_or(u32::MAX)
    }

    /// Takes bytes that may begin a pong of ours, and says how many it took and whose it is.
    fn hold(&mut self, from: Side, chunk: &[u8]) -> (usize, Pong) {
        let end = &mut self.ends[from as usize];
        for (at, byte) in chunk.iter().enumerate() {
            end.held[usize::from(end.held_len)] = *byte;
            end.held_len += 1;
            let pong = whose(&end.held[..usize::from(end.held_len)], &self.mark);
            if pong != Pong::Unknown {
                return (at + 1, pong);
            }
        }
        (chunk.len(), Pong::Unknown)
    }

    /// The bytes held back, leaving none.
    fn take_held(&mut self, from: Side) -> ([u8; HELD_BYTES_MAX], usize) {
        let end = &mut self.ends[from as usize];
        (end.held, usize::from(std::mem::take(&mut end.held_len)))
    }
}

/// Whose pong begins so. It is told at its last byte at the latest.
fn whose(held: &[u8], mark: &[u8; MARK_BYTES]) -> Pong {
    if held.first().is_some_and(|first| *first != PONG) {
        return Pong::Theirs;
    }
    let Some(second) = held.get(1) else {
        return Pong::Unknown;
    };
    if usize::from(second & 0x7f) != MARK_BYTES {
        return Pong::Theirs;
    }
    let masked = second & 0x80 != 0;
    let Some(payload) = held.get(if masked { 6 } else { 2 }..) else {
        return Pong::Unknown;
    };
    let mask: [u8; 4] = match masked {
        true => held[2..6].try_into().expect("four bytes"),
        false => [0; 4],
    };
    let mut pairs = payload.iter().zip(mark).enumerate();
    if pairs.any(|(at, (byte, mark))| byte ^ mask[at % 4] != *mark) {
        return Pong::Theirs;
    }
    match payload.len() < MARK_BYTES {
        true => Pong::Unknown,
        false => Pong::Ours,
    }
}

/// How many bytes come before a frame that may be a pong.
fn before_pong(mut cursor: Cursor, chunk: &[u8]) -> usize {
    let mut at = 0;
    loop {
        at += cursor.advance_to_boundary(&chunk[at..]);
        match chunk.get(at) {
            None | Some(&PONG) => return at,
            Some(_) => cursor.advance(&chunk[at..=at]),
        }
        at += 1;
    }
}

impl Entry {
    pub(super) fn ping_due(&self) -> u32 {
        self.keepalive
            .as_ref()
            .map_or(u32::MAX, |keepalive| keepalive.due())
    }

    /// Sends the pings that are due, each at the end of the frame that is under way to its end.
    pub(in crate::stream) fn ping(&mut self, tick: u32) -> Progress {
        let Some(keepalive) = &mut self.keepalive else {
            return Progress::Idle;
        };
        for end in &mut keepalive.ends {
            if end.interval > 0 && end.next <= tick {
                end.waits = true;
                end.next = tick + end.interval;
            }
        }
        let sent = Side::BOTH
            .into_iter()
            .try_for_each(|side| self.send_waiting_ping(side));
        self.settle(sent.map(|()| false))
    }

    /// Pings sent since the last time.
    pub(in crate::stream) fn take_pings(&mut self) -> u32 {
        let keepalive = self.keepalive.as_mut();
        keepalive.map_or(0, |keepalive| std::mem::take(&mut keepalive.sent))
    }

    /// Sends a ping that waits, if nothing is in its way now; an end that takes or sends nothing more gets none again.
    pub(super) fn send_waiting_ping(&mut self, to: Side) -> io::Result<()> {
        // With a session nothing but whole frames goes out.
        let whole_frames = self.is_hooked();
        let Some(keepalive) = &mut self.keepalive else {
            return Ok(());
        };
        let end = &mut keepalive.ends[to as usize];
        if !end.waits {
            return Ok(());
        }
        let closing = self.closing.is_some();
        let leg = &self.legs[to as usize];
        let into = &self.legs[to.other() as usize].cursor;
        if closing || leg.shut || leg.ended || leg.cursor.close_seen() || into.close_seen() {
            (end.waits, end.interval) = (false, 0);
            return Ok(());
        }
        if leg.leftover.is_some() || !(whole_frames || into.at_boundary()) {
            return Ok(());
        }
        end.waits = false;
        keepalive.sent += 1;
        let payload = keepalive.mark.to_vec();
        let ping = frame::control_frame(opcode::PING, payload, mask_towards(to)?);
        self.leg_mut(to).send(&ping)
    }

    /// Relays a side's bytes but for pongs of ours, and puts a ping that waits between two frames.
    pub(super) fn relay_between_pings(&mut self, from: Side, mut chunk: &[u8]) -> io::Result<()> {
        let to = from.other();
        let waits = |entry: &Self, side| {
            let keepalive = entry.keepalive.as_ref();
            keepalive.is_some_and(|keepalive| keepalive.ends[side as usize].waits)
        };
        if waits(self, to) {
            let cursor = self.leg(from).cursor.clone();
            let (rest_of_frame, rest) = chunk.split_at(cursor.clone().advance_to_boundary(chunk));
            self.pass(from, rest_of_frame)?;
            self.send_waiting_ping(to)?;
            chunk = rest;
        }
        while !chunk.is_empty() {
            let cursor = &self.legs[from as usize].cursor;
            let keepalive = self.keepalive.as_mut().expect("never taken away");
            let end = &keepalive.ends[from as usize];
            if end.held_len == 0 {
                let passing = match end.pinged {
                    true => before_pong(cursor.clone(), chunk),
                    false => chunk.len(),
                };
                if passing > 0 {
                    self.pass(from, &chunk[..passing])?;
                    chunk = &chunk[passing..];
                    continue;
                }
            }
            let (taken, pong) = keepalive.hold(from, chunk);
            chunk = &chunk[taken..];
            match pong {
                Pong::Unknown => {}
                Pong::Ours => drop(keepalive.take_held(from)),
                Pong::Theirs => self.release_held(from)?,
            }
        }
        Ok(())
    }

    /// Passes on what was held back of a side.
    pub(super) fn release_held(&mut self, from: Side) -> io::Result<()> {
        let Some(keepalive) = &mut self.keepalive else {
            return Ok(());
        };
        let (held, length) = keepalive.take_held(from);
        self.pass(from, &held[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::samples::{client_frame, server_frame};

    const MARK: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn a_pong_with_the_mark_is_ours_and_no_other() {
        for frame in [client_frame(PONG, &MARK), server_frame(PONG, &MARK)] {
            for known in 0..frame.len() {
                assert_eq!(whose(&frame[..known], &MARK), Pong::Unknown, "{known}");
            }
            assert_eq!(whose(&frame, &MARK), Pong::Ours);
        }
        let mut other = MARK;
        other[7] = 0;
        for frame in [
            client_frame(PONG, &other),
            server_frame(PONG, &other),
            server_frame(PONG, &[]),
            server_frame(PONG, &MARK[..7]),
            server_frame(PONG, &[1; 125]),
            server_frame(0x89, &MARK),
            server_frame(0x0a, &MARK),
        ] {
            let length = frame.len().min(HELD_BYTES_MAX);
            assert_eq!(whose(&frame[..length], &MARK), Pong::Theirs, "{frame:?}");
        }
    }

    #[test]
    fn bytes_before_a_pong_are_counted_from_any_cut() {
        let mut bytes = server_frame(0x82, &[PONG; 300]);
        bytes.extend(server_frame(0x81, b""));
        let pong = bytes.len();
        bytes.extend(server_frame(PONG, b"x"));
        for cut in 0..=pong {
            let mut cursor = Cursor::default();
            cursor.advance(&bytes[..cut]);
            assert_eq!(
                before_pong(cursor, &bytes[cut..]),
                pong - cut,
                "cut at {cut}"
            );
        }
        assert_eq!(before_pong(Cursor::default(), &bytes[..pong]), pong);
    }

    #[test]
    fn first_pings_are_spread_over_half_an_interval() {
        let first = |id: u64| {
            let keepalive = Keepalive::new([0, 100], StreamId(id << 8), 7).expect("random");
            keepalive.expect("pings").due()
        };
        let ticks: std::collections::BTreeSet<u32> = (1..200).map(first).collect();
        assert!(ticks.first() >= Some(&57) && ticks.last() <= Some(&107));
        assert!(ticks.len() > 30, "{ticks:?}");
        assert!(
            Keepalive::new([0, 0], StreamId(1), 7)
                .expect("random")
                .is_none()
        );
    }
}
