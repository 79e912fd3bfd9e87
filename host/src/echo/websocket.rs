//! The server's side of an echoed WebSocket.

use crate::stream::frame::{apply_mask, close_frame, opcode, write_header};
use std::ops::ControlFlow;

/// Echoes what a WebSocket client sends: messages as they come, a ping as a pong, a close as a close.
///
/// Nothing of a message is kept: each chunk of it is unmasked and goes out at once.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    header: Vec<u8>,
    frame: Option<Frame>,
    /// Payload of a control frame, which is answered when whole.
    control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    first: u8,
    mask: [u8; 4],
    length: u64,
    seen: u64,
}

impl Frame {
    fn is_control(self) -> bool {
        self.first & 0x08 != 0
    }
}

impl Echo {
    /// Takes bytes of the client and appends the answer to `out`; breaks after a close frame was answered or sent.
    pub(crate) fn take(&mut self, mut chunk: &[u8], out: &mut Vec<u8>) -> ControlFlow<()> {
        loop {
            let Some(frame) = self.frame else {
                let Some((&byte, rest)) = chunk.split_first() else {
                    return ControlFlow::Continue(());
                };
                chunk = rest;
                self.header.push(byte);
                self.header_byte(out)?;
                continue;
            };
            let left = frame.length - frame.seen;
            let taken = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            let (payload, rest) = chunk.split_at(taken);
            chunk = rest;
            let to = if frame.is_control() {
                &mut self.control
            } else {
                &mut *out
            };
            let start = to.len();
            to.extend_from_slice(payload);
            apply_mask(&mut to[start..], frame.mask, (frame.seen % 4) as usize);
            let seen = frame.seen + taken as u64;
            if seen < frame.length {
                self.frame = Some(Frame { seen, ..frame });
                return ControlFlow::Continue(());
            }
            self.frame = None;
            if frame.is_control() {
                let payload = std::mem::take(&mut self.control);
                answer_control(frame.first, &payload, out)?;
            }
        }
    }

    fn header_byte(&mut self, out: &mut Vec<u8>) -> ControlFlow<()> {
        let [first, second, rest @ ..] = self.header.as_slice() else {
            return ControlFlow::Continue(());
        };
        let (first, second) = (*first, *second);
        let control_is_bad = first & 0x08 != 0 && (first & 0x80 == 0 || second & 0x7f > 125);
        if second & 0x80 == 0 || first & 0x70 != 0 || control_is_bad {
            out.extend_from_slice(&close_frame(1002, "not a valid client frame", None));
            return ControlFlow::Break(());
        }
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if rest.len() < extended + 4 {
            return ControlFlow::Continue(());
        }
        let length = match extended {
            0 => u64::from(second & 0x7f),
            _ => rest[..extended]
                .iter()
                .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let mut mask = [0; 4];
        mask.copy_from_slice(&rest[extended..]);
        self.header.clear();
        let frame = Frame {
            first,
            mask,
            length,
            seen: 0,
        };
        if !frame.is_control() {
            write_header(out, first, length);
        }
        self.frame = Some(frame);
        ControlFlow::Continue(())
    }
}

fn answer_control(first: u8, payload: &[u8], out: &mut Vec<u8>) -> ControlFlow<()> {
    match first & 0x0f {
        opcode::PING => {
            write_header(out, 0x80 | opcode::PONG, payload.len() as u64);
            out.extend_from_slice(payload);
        }
        opcode::CLOSE => {
            write_header(out, first, payload.len() as u64);
            out.extend_from_slice(payload);
            return ControlFlow::Break(());
        }
        _ => {}
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::samples::{client_frame, server_frame};

    #[test]
    fn echo_answers_the_same_however_the_bytes_are_cut() {
        let mut sent = client_frame(0x01, b"hel");
        sent.extend(client_frame(0x89, b"ping"));
        sent.extend(client_frame(0x80, b"lo"));
        sent.extend(client_frame(0x82, &[5; 70_000]));
        sent.extend(client_frame(0x8a, b"unasked pong"));
        sent.extend(client_frame(0x88, &[0x03, 0xe8]));
        let mut expected = server_frame(0x01, b"hel");
        expected.extend(server_frame(0x8a, b"ping"));
        expected.extend(server_frame(0x80, b"lo"));
        expected.extend(server_frame(0x82, &[5; 70_000]));
        expected.extend(server_frame(0x88, &[0x03, 0xe8]));
        for size in [1, 2, 3, 7, 1_000, sent.len()] {
            let (mut echo, mut out) = (Echo::default(), Vec::new());
            let mut end = ControlFlow::Continue(());
            for chunk in sent.chunks(size) {
                assert!(end.is_continue());
                end = echo.take(chunk, &mut out);
            }
            assert!(end.is_break());
            assert!(out == expected, "chunks of {size}");
        }
    }

    #[test]
    fn echo_refuses_unmasked_and_oversized_control_frames() {
        for bad in [
            server_frame(0x81, b"x"),
            client_frame(0xc1, b"x"),
            client_frame(0x09, b"x"),
            client_frame(0x89, &[0; 126]),
        ] {
            let mut out = Vec::new();
            assert!(Echo::default().take(&bad, &mut out).is_break());
            assert_eq!(out[..4], [0x88, out.len() as u8 - 2, 0x03, 0xea]);
        }
    }
}
