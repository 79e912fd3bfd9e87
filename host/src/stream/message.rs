//! Frames of a stream with a session, put together to messages; control frames are told apart.
//!
//! Bytes come in any pieces. What is whole is lent to the caller at once, out of the caller's own buffer where it can be;
//! only what is not whole yet is kept, so that an idle stream keeps nothing. What RFC 6455 does not allow ends the
//! stream, as does a message that is too large.

use super::frame::{CONTROL_BYTES_MAX, apply_mask, opcode, write_frame};
use crate::plugin::verdict::{Kind, is_close_code};

/// Puts one direction of a stream together.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// Whether frames have to be masked: a client's are.
    masked: bool,
    /// Bytes of a frame that is not whole yet, as they came.
    partial: Vec<u8>,
    /// The fragments so far of a message that is not whole yet, unmasked.
    fragments: Option<(Kind, Vec<u8>)>,
    /// What is lent to the caller, and is not needed when it comes back.
    partial_spent: bool,
    fragments_spent: bool,
    /// A close frame was the last of this side.
    closed: bool,
}

/// What is whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// A message; `raw` is the frame it came in, unless it came in several.
    Message {
        kind: Kind,
        payload: &'a [u8],
        raw: Option<&'a [u8]>,
    },
    /// A ping or a pong.
    Control { raw: &'a [u8] },
    /// A close frame.
    Close { raw: &'a [u8], code: Option<u16> },
}

/// What must not be, and with which code the stream is closed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) code: u16,
    pub(super) reason: &'static str,
}

const fn protocol(reason: &'static str) -> Violation {
    Violation { code: 1002, reason }
}

const NOT_UTF_8: Violation = Violation {
    code: 1007,
    reason: "text is not UTF-8",
};

const TOO_LARGE: Violation = Violation {
    code: 1009,
    reason: "message is too large",
};

/// A frame's header.
#[derive(Debug, Clone, Copy)]
struct Header {
    fin: bool,
    reserved: bool,
    opcode: u8,
    mask: Option<[u8; 4]>,
    /// Of the header.
    length: usize,
    payload: u64,
}

impl Header {
    /// The header that `bytes` begin with, if all of it is there.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = bytes else {
            return None;
        };
        let (payload, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            short => (u64::from(short), rest),
        };
        let (mask, rest) = match second & 0x80 {
            0 => (None, rest),
            _ => {
                let (mask, rest) = rest.split_first_chunk()?;
                (Some(*mask), rest)
            }
        };
        Some(Self {
            fin: first & 0x80 != 0,
            reserved: first & 0x70 != 0,
            opcode: first & 0x0f,
            mask,
            length: bytes.len() - rest.len(),
            payload,
        })
    }

    fn is_control(&self) -> bool {
        self.opcode >= opcode::CLOSE
    }

    fn kind(&self) -> Option<Kind> {
        match self.opcode {
            opcode::TEXT => Some(Kind::Text),
            opcode::BINARY => Some(Kind::Binary),
            _ => None,
        }
    }
}

/// A whole frame; `raw` is none if it is in [`Assembler::partial`].
struct Frame<'i> {
    header: Header,
    raw: Option<&'i [u8]>,
}

impl Assembler {
    /// For the frames of a client, which are masked, or of an endpoint.
    pub(super) fn new(masked: bool) -> Self {
        Self {
            masked,
            ..Self::default()
        }
    }

    /// Takes what is whole next from the front of `input`; none once all of it is taken. `plain` is room for what has to
    /// be unmasked.
    ///
    /// # Errors
    /// [`Violation`]: nothing more can be made of this side.
    pub(super) fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
        bytes_max: usize,
        plain: &'a mut Vec<u8>,
    ) -> Result<Option<Part<'a>>, Violation> {
        self.release();
        let Frame { header, raw } = loop {
            if self.closed {
                *input = &[];
                return Ok(None);
            }
            let Some(frame) = self.frame(input, bytes_max)? else {
                return Ok(None);
            };
            if frame.header.fin {
                break frame;
            }
            self.take_fragment(&frame);
        };
        self.partial_spent = raw.is_none();
        if !header.is_control() && self.fragments.is_some() {
            self.take_fragment(&Frame { header, raw });
            self.fragments_spent = true;
            let (kind, payload) = self.fragments.as_ref().expect("one was there above");
            check_text(*kind, payload)?;
            return Ok(Some(Part::Message {
                kind: *kind,
                payload,
                raw: None,
            }));
        }
        let raw = raw.unwrap_or(&self.partial);
        let payload = match header.mask {
            None => &raw[header.length..],
            Some(mask) => {
                plain.clear();
                plain.extend_from_slice(&raw[header.length..]);
                apply_mask(plain, mask, 0);
                plain
            }
        };
        Ok(Some(match header.kind() {
            Some(kind) => {
                check_text(kind, payload)?;
                Part::Message {
                    kind,
                    payload,
                    raw: Some(raw),
                }
            }
            None if header.opcode == opcode::CLOSE => {
                self.closed = true;
                let code = close_code(payload)?;
                Part::Close { raw, code }
            }
            None => Part::Control { raw },
        }))
    }

    /// Appends what came of messages and frames that are not whole, so that what comes after continues it: for a stream
    /// that goes on without a session.
    ///
    /// # Errors
    /// The system has no random mask.
    pub(super) fn give_up(&mut self, out: &mut Vec<u8>) -> std::io::Result<()> {
        self.release();
        if let Some((kind, payload)) = self.fragments.take() {
            write_frame(out, opcode_of(kind), &payload, self.masked)?;
        }
        out.append(&mut std::mem::take(&mut self.partial));
        Ok(())
    }

    fn release(&mut self) {
        if std::mem::take(&mut self.partial_spent) {
            self.partial = Vec::new();
        }
        if std::mem::take(&mut self.fragments_spent) {
            self.fragments = None;
        }
    }

    /// Takes a frame from the front of `input`, or keeps what there is of it.
    fn frame<'i>(
        &mut self,
        input: &mut &'i [u8],
        bytes_max: usize,
    ) -> Result<Option<Frame<'i>>, Violation> {
        if self.partial.is_empty() {
            if let Some(header) = Header::parse(input) {
                let total = self.check(&header, bytes_max)?;
                if let Some((raw, rest)) = input.split_at_checked(total) {
                    *input = rest;
                    return Ok(Some(Frame {
                        header,
                        raw: Some(raw),
                    }));
                }
            }
            self.partial = std::mem::take(input).to_vec();
            return Ok(None);
        }
        let header = loop {
            if let Some(header) = Header::parse(&self.partial) {
                break header;
            }
            let Some((byte, rest)) = input.split_first() else {
                return Ok(None);
            };
            self.partial.push(*byte);
            *input = rest;
        };
        let total = self.check(&header, bytes_max)?;
        let missing = total - self.partial.len();
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(taken);
        *input = rest;
        let whole = taken.len() == missing;
        Ok(whole.then_some(Frame { header, raw: None }))
    }

    /// Checks a header as soon as it is there; says how long its frame is.
    fn check(&self, header: &Header, bytes_max: usize) -> Result<usize, Violation> {
        if header.reserved {
            return Err(protocol("reserved bits are set"));
        }
        if header.mask.is_some() != self.masked {
            return Err(protocol(match self.masked {
                true => "frame of a client is not masked",
                false => "frame of a server is masked",
            }));
        }
        let before = self.fragments.as_ref().map(|(_, payload)| payload.len());
        match header.opcode {
            opcode::CLOSE | opcode::PING | opcode::PONG => {
                if !header.fin || header.payload > CONTROL_BYTES_MAX as u64 {
                    return Err(protocol("control frame is in fragments or too large"));
                }
            }
            opcode::CONTINUATION if before.is_none() => {
                return Err(protocol("fragment of no message"));
            }
            opcode::TEXT | opcode::BINARY if before.is_some() => {
                return Err(protocol("message within another"));
            }
            opcode::CONTINUATION | opcode::TEXT | opcode::BINARY => {}
            _ => return Err(protocol("unknown opcode")),
        }
        let payload = usize::try_from(header.payload).map_err(|_| TOO_LARGE)?;
        let room = bytes_max.saturating_sub(before.unwrap_or(0));
        if payload > room && !header.is_control() {
            return Err(TOO_LARGE);
        }
        Ok(header.length + payload)
    }

    /// Appends a data frame to the message it is a part of.
    fn take_fragment(&mut self, frame: &Frame<'_>) {
        let Frame { header, raw } = frame;
        let kind = header.kind().unwrap_or(Kind::Binary);
        let (_, message) = self.fragments.get_or_insert_with(|| (kind, Vec::new()));
        let start = message.len();
        message.extend_from_slice(&raw.unwrap_or(&self.partial)[header.length..]);
        if let Some(mask) = header.mask {
            apply_mask(&mut message[start..], mask, 0);
        }
        if raw.is_none() {
            self.partial = Vec::new();
        }
    }
}

/// The opcode of a message.
pub(super) fn opcode_of(kind: Kind) -> u8 {
    match kind {
        Kind::Text => opcode::TEXT,
        Kind::Binary => opcode::BINARY,
    }
}

fn check_text(kind: Kind, payload: &[u8]) -> Result<(), Violation> {
    match kind {
        Kind::Text if std::str::from_utf8(payload).is_err() => Err(NOT_UTF_8),
        _ => Ok(()),
    }
}

/// What a close frame says.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(None),
            _ => Err(protocol("close frame with half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_close_code(code) {
        return Err(protocol("unknown close code"));
    }
    std::str::from_utf8(reason).map_err(|_| NOT_UTF_8)?;
    Ok(Some(code))
}

#[cfg(test)]
mod tests;
