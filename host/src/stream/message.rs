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
mod tests {
    use super::super::frame::samples::{client_frame, server_frame};
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 70_000;
    const FIN: u8 = 0x80;

    /// What a part is, without what it was lent from.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Whole {
        Message(Kind, Vec<u8>, bool),
        Control(Vec<u8>),
        Close(Option<u16>),
    }

    fn own(part: &Part<'_>) -> Whole {
        match part {
            Part::Message { kind, payload, raw } => {
                Whole::Message(*kind, payload.to_vec(), raw.is_some())
            }
            Part::Control { raw } => Whole::Control(raw.to_vec()),
            Part::Close { code, .. } => Whole::Close(*code),
        }
    }

    /// Feeds pieces; what came out, and the violation that ended it.
    fn feed(masked: bool, pieces: &[&[u8]]) -> (Vec<Whole>, Option<Violation>, Assembler) {
        let (mut assembler, mut plain, mut parts) =
            (Assembler::new(masked), Vec::new(), Vec::new());
        for piece in pieces {
            let mut input = *piece;
            loop {
                match assembler.next(&mut input, MAX, &mut plain) {
                    Ok(Some(part)) => parts.push(own(&part)),
                    Ok(None) => break,
                    Err(violation) => return (parts, Some(violation), assembler),
                }
            }
            assert!(input.is_empty(), "all of it is taken");
        }
        (parts, None, assembler)
    }

    fn text(text: &str, one_frame: bool) -> Whole {
        Whole::Message(Kind::Text, text.as_bytes().to_vec(), one_frame)
    }

    /// Messages of each length class, in one frame and in fragments with a ping between, and a close frame.
    fn conversation() -> (Vec<u8>, Vec<Whole>) {
        let large = vec![b'l'; 65_536];
        let ping = client_frame(FIN | opcode::PING, b"ping");
        let bytes = [
            client_frame(FIN | opcode::TEXT, b""),
            client_frame(FIN | opcode::TEXT, "grüße".as_bytes()),
            client_frame(FIN | opcode::BINARY, &[0xff; 126]),
            client_frame(opcode::TEXT, "zwei g".as_bytes()),
            ping.clone(),
            // Cut within a character.
            client_frame(opcode::CONTINUATION, &"rü".as_bytes()[..2]),
            client_frame(opcode::CONTINUATION, b""),
            client_frame(FIN | opcode::CONTINUATION, &"ü".as_bytes()[1..]),
            client_frame(FIN | opcode::BINARY, &large),
            client_frame(FIN | opcode::CLOSE, b"\x0f\xa1done"),
            client_frame(FIN | opcode::TEXT, b"too late"),
        ]
        .concat();
        let parts = vec![
            text("", true),
            text("grüße", true),
            Whole::Message(Kind::Binary, vec![0xff; 126], true),
            Whole::Control(ping),
            text("zwei grü", false),
            Whole::Message(Kind::Binary, large, true),
            Whole::Close(Some(4001)),
        ];
        (bytes, parts)
    }

    #[test]
    fn messages_come_out_whole_and_in_order() {
        let (bytes, parts) = conversation();
        let (found, violation, _) = feed(true, &[&bytes]);
        assert_eq!((found, violation), (parts, None));
    }

    #[test]
    fn messages_cut_anywhere_come_out_the_same() {
        let (bytes, parts) = conversation();
        for cut in (0..400).chain(bytes.len() - 200..bytes.len()) {
            let (found, violation, _) = feed(true, &[&bytes[..cut], &bytes[cut..]]);
            assert_eq!((found, violation), (parts.clone(), None), "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(feed(true, &single).0, parts);
    }

    #[test]
    fn nothing_is_kept_between_messages() {
        let bytes = [
            server_frame(opcode::TEXT, b"a"),
            server_frame(FIN | opcode::CONTINUATION, b"b"),
            server_frame(FIN | opcode::BINARY, &[0; 5_000]),
        ]
        .concat();
        let pieces: Vec<&[u8]> = bytes.chunks(7).collect();
        let (found, _, mut assembler) = feed(false, &pieces);
        assert_eq!(found.len(), 2);
        assembler.release();
        assert_eq!(assembler.partial.capacity(), 0);
        assert!(assembler.fragments.is_none());
    }

    #[test]
    fn what_the_protocol_forbids_is_named() {
        let cases = [
            (client_frame(0xc1, b"x"), 1002, "reserved"),
            (client_frame(FIN | 3, b"x"), 1002, "opcode"),
            (client_frame(FIN | 11, b"x"), 1002, "opcode"),
            (server_frame(FIN | opcode::TEXT, b"x"), 1002, "not masked"),
            (client_frame(opcode::PING, b"x"), 1002, "control"),
            (
                client_frame(FIN | opcode::PING, &[b'x'; 126]),
                1002,
                "control",
            ),
            (client_frame(FIN, b"x"), 1002, "no message"),
            (
                [client_frame(opcode::TEXT, b"x"), client_frame(0x82, b"x")].concat(),
                1002,
                "within",
            ),
            (client_frame(FIN | opcode::TEXT, b"\xff"), 1007, "UTF-8"),
            (
                [client_frame(opcode::TEXT, b"\xc3"), client_frame(FIN, b"x")].concat(),
                1007,
                "UTF-8",
            ),
            (client_frame(FIN | opcode::CLOSE, b"x"), 1002, "half"),
            (
                client_frame(FIN | opcode::CLOSE, b"\x03\xed"),
                1002,
                "close code",
            ),
            (
                client_frame(FIN | opcode::CLOSE, b"\x03\xe8\xff"),
                1007,
                "UTF-8",
            ),
            (
                [
                    client_frame(opcode::BINARY, &vec![0; MAX]),
                    client_frame(FIN, b"x"),
                ]
                .concat(),
                1009,
                "large",
            ),
        ];
        for (bytes, code, reason) in cases {
            let violation = feed(true, &[&bytes]).1.expect(reason);
            assert_eq!(violation.code, code, "{violation:?}");
            assert!(violation.reason.contains(reason), "{violation:?}");
        }
        let masked = client_frame(FIN | opcode::TEXT, b"x");
        assert_eq!(feed(false, &[&masked]).1.expect("masked").code, 1002);
    }

    #[test]
    fn a_frame_that_is_too_large_is_refused_by_its_header_alone() {
        let header = [0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let mask = [1, 2, 3, 4];
        let (_, violation, assembler) = feed(true, &[&header, &mask]);
        assert_eq!(violation, Some(TOO_LARGE));
        assert!(assembler.partial.len() <= 14);
    }

    #[test]
    fn what_is_not_whole_is_given_up_so_that_the_rest_continues_it() {
        let bytes = [
            server_frame(opcode::TEXT, b"begun "),
            server_frame(FIN | opcode::CONTINUATION, b"and ended"),
        ]
        .concat();
        for cut in 1..bytes.len() {
            let (whole, _, mut assembler) = feed(false, &[&bytes[..cut]]);
            assert!(whole.is_empty());
            let mut out = Vec::new();
            assembler.give_up(&mut out).expect("no mask is needed");
            out.extend_from_slice(&bytes[cut..]);
            assert_eq!(feed(false, &[&out]).0, [text("begun and ended", false)]);
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in proptest::collection::vec(0_usize..66_500, 0..12)) {
            let (bytes, parts) = conversation();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts {
                pieces.push(&bytes[at..cut]);
                at = cut;
            }
            pieces.push(&bytes[at..]);
            prop_assert_eq!(feed(true, &pieces).0, parts);
        }

        #[test]
        fn garbage_does_no_harm(garbage in proptest::collection::vec(any::<u8>(), 0..300), masked in any::<bool>()) {
            let single: Vec<&[u8]> = garbage.chunks(3).collect();
            let pieces = feed(masked, &single);
            let whole = feed(masked, &[&garbage]);
            prop_assert_eq!((pieces.0, pieces.1), (whole.0, whole.1));
        }
    }
}
