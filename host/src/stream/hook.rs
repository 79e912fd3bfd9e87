//! A stream with a session: its messages are shown to the plugin, whose verdicts are carried out.
//!
//! What goes out is whole frames only, so that a close frame of ours fits in at any time. When an end takes less than
//! the verdicts make for it, what is left of the bytes read waits in [`Hooked`]; nothing more is read then.

use super::frame::write_frame;
use super::message::{Assembler, Part, opcode_of};
use super::table::timeout_ticks;
use super::token::Side;
use super::{CloseReason, SessionInfo};
use crate::plugin::session::Ending;
use crate::plugin::verdict::{Close, Direction, Impulse, Kind, Verdict};
use crate::plugin::{OnTrap, Session};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bytes made for the ends after which they are sent, before more messages are judged.
pub(super) const OUT_BYTES: usize = 64 << 10;
/// After this time other streams get their turn.
const TURN: Duration = Duration::from_millis(2);
/// Capacity of a shared buffer that is kept.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// The first bit of a frame that is the last of its message.
const FIN: u8 = 0x80;

/// Code with which a stream is closed whose session failed.
const FAILED: u16 = 1011;

/// Buffers that all streams with sessions of a worker share.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    plain: RefCell<Vec<u8>>,
    pub(super) out: RefCell<Out>,
}

/// What is to be sent, by side.
#[derive(Debug, Default)]
pub(super) struct Out([Vec<u8>; 2]);

impl Out {
    fn to(&mut self, side: Side) -> &mut Vec<u8> {
        &mut self.0[side as usize]
    }

    /// What is to be sent to a side.
    pub(super) fn bytes(&self, side: Side) -> &[u8] {
        &self.0[side as usize]
    }

    /// Whether it is time to send it.
    fn is_full(&self) -> bool {
        self.0.iter().any(|bytes| bytes.len() >= OUT_BYTES)
    }

    /// Forgets it; a buffer that grew is not kept.
    pub(super) fn clear(&mut self) {
        for bytes in &mut self.0 {
            bytes.clear();
            bytes.shrink_to(KEPT_BYTES_MAX);
        }
    }
}

/// How a session did, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok,
    Rebuilt,
    Failed,
    Unhooked,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Rebuilt => "rebuilt",
            Self::Failed => "failed",
            Self::Unhooked => "unhooked",
        }
    }
}

/// What a stream with a session has beside what every stream has.
pub(super) struct Hooked {
    /// None once the stream goes on without it.
    session: Option<Session>,
    buffers: Rc<Buffers>,
    sides: [Incoming; 2],
    message_bytes_max: usize,
    /// In ticks of the table; 0 for none.
    interval: u32,
    /// When the next tick is due.
    due: u32,
    /// The code of the first close frame.
    code: Option<u16>,
    outcome: Outcome,
    isolated: bool,
    counted: Counted,
}

/// What a session was called for.
#[derive(Debug, Default)]
struct Counted {
    /// Messages, by the side they came from.
    messages: [u64; 2],
    ticks: u64,
    /// How often it failed or was lost with its instance.
    failures: u32,
    rebuilds: u32,
}

/// What comes from one side.
struct Incoming {
    assembler: Assembler,
    /// Bytes read from it that no message was made of yet.
    backlog: Vec<u8>,
    /// Its close frame was sent on.
    closed: bool,
}

/// What the bytes of a side led to.
pub(super) enum Step {
    /// Go on.
    On,
    /// The stream is to be closed.
    Close(Close, CloseReason),
}

impl Hooked {
    /// A stream's session, with the interval of its ticks; `tick` is now.
    pub(super) fn new(
        session: Session,
        buffers: Rc<Buffers>,
        message_bytes_max: usize,
        interval: u32,
        tick: u32,
    ) -> Self {
        let incoming = |masked| Incoming {
            assembler: Assembler::new(masked),
            backlog: Vec::new(),
            closed: false,
        };
        Self {
            isolated: session.is_isolated(),
            session: Some(session),
            buffers,
            sides: [incoming(true), incoming(false)],
            message_bytes_max,
            interval,
            due: tick.saturating_add(interval),
            code: None,
            outcome: Outcome::Ok,
            counted: Counted::default(),
        }
    }

    /// Whether the plugin still sees the messages.
    pub(super) fn is_on(&self) -> bool {
        self.session.is_some()
    }

    /// Whether the stream goes on without its session.
    pub(super) fn is_unhooked(&self) -> bool {
        self.outcome == Outcome::Unhooked
    }

    /// Lets an interval go by.
    pub(super) fn skip(&mut self, tick: u32) {
        self.due = tick.saturating_add(self.interval);
    }

    /// Whether its session was lost with its instance.
    pub(super) fn is_lost(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_lost)
    }

    /// How the session did.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The same, for lists.
    pub(super) fn info(&self) -> SessionInfo {
        let Counted {
            messages: [messages_up, messages_down],
            ticks,
            failures,
            rebuilds,
        } = self.counted;
        SessionInfo {
            state: self.outcome.name(),
            isolated: self.isolated,
            messages_up,
            messages_down,
            ticks,
            failures,
            rebuilds,
        }
    }

    pub(super) fn buffers(&self) -> &Rc<Buffers> {
        &self.buffers
    }

    /// When its next tick is due; 0 for never.
    pub(super) fn due(&self) -> u32 {
        match self.is_on() && self.interval > 0 {
            true => self.due,
            false => 0,
        }
    }

    /// Whether bytes of a side wait.
    pub(super) fn has_backlog(&self, from: Side) -> bool {
        !self.sides[from as usize].backlog.is_empty()
    }

    /// Lets bytes wait behind those that do.
    pub(super) fn add_to_backlog(&mut self, from: Side, bytes: &[u8]) {
        self.sides[from as usize].backlog.extend_from_slice(bytes);
    }

    /// Takes the bytes that wait.
    pub(super) fn take_backlog(&mut self, from: Side) -> Vec<u8> {
        std::mem::take(&mut self.sides[from as usize].backlog)
    }

    /// Whether the close frame of a side was sent on.
    pub(super) fn has_closed(&self, from: Side) -> bool {
        self.sides[from as usize].closed
    }

    /// Notes the code of a close frame.
    pub(super) fn note_code(&mut self, code: u16) {
        self.code.get_or_insert(code);
    }

    /// Has the session judge what was read from a side. What is to be sent is in `out` then; what there was no time or
    /// room for waits.
    ///
    /// # Errors
    /// The system has no random mask.
    pub(super) fn take(
        &mut self,
        from: Side,
        input: &[u8],
        out: &mut Out,
        tick: u32,
    ) -> io::Result<Step> {
        let began = Instant::now();
        let buffers = Rc::clone(&self.buffers);
        let mut plain = buffers.plain.borrow_mut();
        let mut rest = input;
        let step = loop {
            let Some(session) = &mut self.session else {
                out.to(from.other()).extend_from_slice(rest);
                break Step::On;
            };
            let side = &mut self.sides[from as usize];
            let part = match side
                .assembler
                .next(&mut rest, self.message_bytes_max, &mut plain)
            {
                Ok(Some(part)) => part,
                Ok(None) => break Step::On,
                Err(violation) => {
                    let close = Close {
                        code: violation.code,
                        reason: violation.reason.into(),
                    };
                    break Step::Close(close, CloseReason::BadFrames);
                }
            };
            let failure = match part {
                Part::Control { raw } => {
                    out.to(from.other()).extend_from_slice(raw);
                    false
                }
                Part::Close { raw, code } => {
                    out.to(from.other()).extend_from_slice(raw);
                    side.closed = true;
                    self.code = self.code.or(code);
                    false
                }
                Part::Message { kind, payload, raw } => {
                    self.counted.messages[from as usize] += 1;
                    let verdict = session.message(direction(from), kind, payload);
                    let failed = verdict.is_err();
                    let verdict = match verdict {
                        Ok(verdict) => verdict,
                        Err(_) if session.on_trap() == OnTrap::Pass => Verdict::Pass,
                        Err(_) => Verdict::Drop,
                    };
                    match verdict {
                        Verdict::Pass => match raw {
                            Some(raw) => out.to(from.other()).extend_from_slice(raw),
                            None => send(out, from.other(), kind, payload)?,
                        },
                        Verdict::Replace(bytes) => send(out, from.other(), kind, &bytes)?,
                        Verdict::Drop => {}
                        Verdict::SendBack(bytes) => send(out, from, kind, &bytes)?,
                        Verdict::Close(close) => break Step::Close(close, CloseReason::Plugin),
                    }
                    failed
                }
            };
            if failure && let Step::Close(close, why) = self.fail(out, tick)? {
                break Step::Close(close, why);
            }
            if !rest.is_empty() && self.is_on() && (out.is_full() || began.elapsed() > TURN) {
                self.sides[from as usize].backlog = rest.to_vec();
                break Step::On;
            }
        };
        plain.shrink_to(KEPT_BYTES_MAX);
        Ok(step)
    }

    /// Tells the session that its interval has gone by. What is to be sent is in `out` then.
    ///
    /// # Errors
    /// The system has no random mask.
    pub(super) fn tick(&mut self, out: &mut Out, tick: u32) -> io::Result<Step> {
        self.due = tick.saturating_add(self.interval);
        let Some(session) = &mut self.session else {
            return Ok(Step::On);
        };
        self.counted.ticks += 1;
        match session.tick() {
            Ok(Impulse::Nothing) => Ok(Step::On),
            Ok(Impulse::Send(direction, kind, bytes)) => {
                let to = match direction {
                    Direction::Up => Side::Upstream,
                    Direction::Down => Side::Downstream,
                };
                send(out, to, kind, &bytes)?;
                Ok(Step::On)
            }
            Ok(Impulse::Close(close)) => Ok(Step::Close(close, CloseReason::Plugin)),
            Err(_) => self.fail(out, tick),
        }
    }

    /// Does what the config says of a session that failed, or was lost with its instance.
    ///
    /// # Errors
    /// The system has no random mask.
    pub(super) fn fail(&mut self, out: &mut Out, tick: u32) -> io::Result<Step> {
        let Some(session) = &mut self.session else {
            return Ok(Step::On);
        };
        self.counted.failures = self.counted.failures.saturating_add(1);
        match session.on_trap() {
            OnTrap::Close => {}
            OnTrap::Rebuild => {
                if let Ok(interval) = session.rebuild() {
                    self.outcome = Outcome::Rebuilt;
                    self.counted.rebuilds = self.counted.rebuilds.saturating_add(1);
                    self.interval = timeout_ticks(interval);
                    self.due = tick.saturating_add(self.interval);
                    return Ok(Step::On);
                }
            }
            OnTrap::Pass => {
                self.session = None;
                self.outcome = Outcome::Unhooked;
                for from in Side::BOTH {
                    let side = &mut self.sides[from as usize];
                    let out = out.to(from.other());
                    side.assembler.give_up(out)?;
                    out.append(&mut std::mem::take(&mut side.backlog));
                }
                return Ok(Step::On);
            }
        }
        self.outcome = Outcome::Failed;
        self.session = None;
        let close = Close {
            code: FAILED,
            reason: "session failed".into(),
        };
        Ok(Step::Close(close, CloseReason::SessionFailed))
    }

    /// Tells the session that its stream is over; `code` is that of our own close frame.
    pub(super) fn end(&mut self, code: Option<u16>, bytes: [u64; 2], duration: Duration) {
        let Some(session) = self.session.take() else {
            return;
        };
        let ending = Ending {
            code: self.code.or(code),
            bytes_up: bytes[0],
            bytes_down: bytes[1],
            duration,
        };
        if session.close(ending).is_err() {
            self.outcome = Outcome::Failed;
        }
    }
}

fn direction(from: Side) -> Direction {
    match from {
        Side::Downstream => Direction::Up,
        Side::Upstream => Direction::Down,
    }
}

/// Appends a message for a side, in one frame.
fn send(out: &mut Out, to: Side, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let masked = to == Side::Upstream;
    write_frame(out.to(to), FIN | opcode_of(kind), payload, masked)
}
