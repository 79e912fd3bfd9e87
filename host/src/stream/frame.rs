//! WebSocket framing, as little of it as relaying needs: where frames end, and how a close frame is written.

use std::io;

/// Longest payload of a control frame.
pub(crate) const CONTROL_BYTES_MAX: usize = 125;

/// Opcodes of RFC 6455.
pub(crate) mod opcode {
    /// A fragment of the message before.
    pub(crate) const CONTINUATION: u8 = 0;
    /// A message of text.
    pub(crate) const TEXT: u8 = 1;
    /// A message of bytes.
    pub(crate) const BINARY: u8 = 2;
    /// The connection is to be closed.
    pub(crate) const CLOSE: u8 = 8;
    /// To be answered with a pong.
    pub(crate) const PING: u8 = 9;
    /// Answers a ping.
    pub(crate) const PONG: u8 = 10;
}

/// Where one direction of a stream stands in its frames. It reads headers only and keeps no payload.
///
/// Bytes that are no frames do no harm: the cursor then finds ends where there are none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cursor {
    /// Payload (and mask) bytes to come; while the length is read, what is known of it.
    remaining: u64,
    state: State,
    masked: bool,
    close: bool,
    close_seen: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Boundary,
    Second,
    /// Bytes of the extended length to come.
    Length(u8),
    Payload,
}

impl Cursor {
    /// Whether the last byte seen ended a frame (or none was seen).
    pub(crate) fn at_boundary(&self) -> bool {
        self.state == State::Boundary
    }

    /// Whether a whole close frame has passed.
    pub(crate) fn close_seen(&self) -> bool {
        self.close_seen
    }

    /// Takes note of these bytes.
    pub(crate) fn advance(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() {
            chunk = &chunk[self.step(chunk)..];
        }
    }

    /// Takes note of bytes up to the end of the current frame, or of all if it does not end here; says how many.
    pub(crate) fn advance_to_boundary(&mut self, chunk: &[u8]) -> usize {
        let mut taken = 0;
        while !self.at_boundary() && taken < chunk.len() {
            taken += self.step(&chunk[taken..]);
        }
        taken
    }

    /// One header byte, or as much payload as there is; `chunk` is not empty.
    fn step(&mut self, chunk: &[u8]) -> usize {
        let byte = chunk[0];
        match self.state {
            State::Payload => {
                let taken = self
                    .remaining
                    .min(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                self.remaining -= taken;
                if self.remaining == 0 {
                    self.frame_ended();
                }
                // At most the chunk's length.
                return taken as usize;
            }
            State::Boundary => {
                self.close = byte & 0x0f == opcode::CLOSE;
                self.state = State::Second;
            }
            State::Second => {
                self.masked = byte & 0x80 != 0;
                self.remaining = 0;
                match byte & 0x7f {
                    126 => self.state = State::Length(2),
                    127 => self.state = State::Length(8),
                    length => {
                        self.remaining = u64::from(length);
                        self.header_ended();
                    }
                }
            }
            State::Length(left) => {
                self.remaining = self.remaining << 8 | u64::from(byte);
                if left > 1 {
                    self.state = State::Length(left - 1);
                } else {
                    self.header_ended();
                }
            }
        }
        1
    }

    fn header_ended(&mut self) {
        if self.masked {
            self.remaining = self.remaining.saturating_add(4);
        }
        if self.remaining == 0 {
            self.frame_ended();
        } else {
            self.state = State::Payload;
        }
    }

    fn frame_ended(&mut self) {
        self.close_seen |= self.close;
        self.state = State::Boundary;
    }
}

/// A close frame, masked with `mask` as clients must; a reason too long for it is cut at a character's start.
pub(crate) fn close_frame(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    control_frame(opcode::CLOSE, payload, mask)
}

/// A control frame, masked with `mask` as clients must; its payload has at most [`CONTROL_BYTES_MAX`].
pub(crate) fn control_frame(opcode: u8, mut payload: Vec<u8>, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(6 + payload.len());
    frame.push(0x80 | opcode);
    // At most `CONTROL_BYTES_MAX`.
    let length = payload.len() as u8;
    match mask {
        None => frame.push(length),
        Some(mask) => {
            frame.push(0x80 | length);
            frame.extend_from_slice(&mask);
            apply_mask(&mut payload, mask, 0);
        }
    }
    frame.extend_from_slice(&payload);
    frame
}

/// Masks or unmasks bytes that stand at `offset` in their payload.
pub(crate) fn apply_mask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let key: [u8; 8] = std::array::from_fn(|at| mask[(offset + at) % 4]);
    let wide = u64::from_ne_bytes(key);
    let (chunks, rest) = bytes.as_chunks_mut();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// A mask that nobody can foresee (RFC 6455, 5.3).
///
/// # Errors
/// The system has no random bytes.
pub(crate) fn random_mask() -> io::Result<[u8; 4]> {
    Ok(getrandom::u32().map_err(io::Error::other)?.to_ne_bytes())
}

/// Appends a frame, its first byte given whole.
///
/// # Errors
/// The system has no random mask.
pub(crate) fn write_frame(
    out: &mut Vec<u8>,
    first: u8,
    payload: &[u8],
    masked: bool,
) -> io::Result<()> {
    let second = out.len() + 1;
    write_header(out, first, payload.len() as u64);
    if !masked {
        out.extend_from_slice(payload);
        return Ok(());
    }
    let mask = random_mask()?;
    out[second] |= 0x80;
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask, 0);
    Ok(())
}

/// Appends the header of an unmasked frame, its first byte given whole.
pub(crate) fn write_header(out: &mut Vec<u8>, first: u8, length: u64) {
    out.push(first);
    if let Ok(short) = u8::try_from(length)
        && short < 126
    {
        out.push(short);
    } else if let Ok(medium) = u16::try_from(length) {
        out.push(126);
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&length.to_be_bytes());
    }
}

/// Frames as each end sends them.
#[cfg(test)]
pub(crate) mod samples {
    use super::{apply_mask, write_header};

    /// A masked frame as a client sends it.
    pub(crate) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [7, 1, 200, 33];
        let mut frame = Vec::new();
        write_header(&mut frame, first, payload.len() as u64);
        frame[1] |= 0x80;
        frame.extend_from_slice(&mask);
        let start = frame.len();
        frame.extend_from_slice(payload);
        apply_mask(&mut frame[start..], mask, 0);
        frame
    }

    /// An unmasked frame as a server sends it.
    pub(crate) fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_header(&mut frame, first, payload.len() as u64);
        frame.extend_from_slice(payload);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{client_frame, server_frame};
    use super::*;

    /// Frames of every length class, masked and not, and where each ends.
    fn frames() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for length in [0, 1, 125, 126, 300, 65_536] {
            for frame in [
                client_frame(0x82, &vec![b'x'; length]),
                server_frame(0x01, &vec![b'y'; length]),
            ] {
                bytes.extend_from_slice(&frame);
                ends.push(bytes.len());
            }
        }
        (bytes, ends)
    }

    #[test]
    fn cursor_knows_every_boundary_byte_by_byte() {
        let (bytes, ends) = frames();
        let mut cursor = Cursor::default();
        let mut found = Vec::new();
        for (at, byte) in bytes.iter().enumerate() {
            cursor.advance(&[*byte]);
            if cursor.at_boundary() {
                found.push(at + 1);
            }
        }
        assert_eq!(found, ends);
        assert!(!cursor.close_seen());
    }

    #[test]
    fn cursor_cut_at_any_byte_finds_the_next_boundary() {
        let (bytes, ends) = frames();
        let near_ends = ends.iter().flat_map(|end| end.saturating_sub(20)..end + 20);
        for cut in (0..2_000)
            .chain(near_ends)
            .filter(|cut| *cut <= bytes.len())
        {
            let mut cursor = Cursor::default();
            cursor.advance(&bytes[..cut]);
            let next = if cut == 0 {
                0
            } else {
                ends.iter()
                    .copied()
                    .find(|end| *end >= cut)
                    .expect("an end")
            };
            assert_eq!(cursor.at_boundary(), next == cut, "cut at {cut}");
            assert_eq!(
                cut + cursor.advance_to_boundary(&bytes[cut..]),
                next,
                "cut at {cut}"
            );
            assert!(cursor.at_boundary());
        }
    }

    #[test]
    fn masks_of_any_offset_and_length_are_those_of_the_rfc() {
        let mask = [1, 2, 4, 8];
        for (offset, length) in [(0, 0), (0, 7), (1, 8), (2, 9), (3, 31), (5, 64)] {
            let mut bytes = vec![0; length];
            apply_mask(&mut bytes, mask, offset);
            let expected: Vec<u8> = (0..length).map(|at| mask[(offset + at) % 4]).collect();
            assert_eq!(bytes, expected, "{length} bytes at {offset}");
        }
    }

    #[test]
    fn cursor_survives_the_largest_length() {
        let mut cursor = Cursor::default();
        let mut header = vec![0x82, 0xff];
        header.extend_from_slice(&[0xff; 8]);
        cursor.advance(&header);
        cursor.advance(&[0; 1000]);
        assert!(!cursor.at_boundary());
    }

    #[test]
    fn close_frame_is_seen_when_whole() {
        for mask in [None, Some([9, 8, 7, 6])] {
            let frame = close_frame(1001, "bye", mask);
            let mut cursor = Cursor::default();
            cursor.advance(&frame[..frame.len() - 1]);
            assert!(!cursor.close_seen());
            cursor.advance(&frame[frame.len() - 1..]);
            assert!(cursor.close_seen() && cursor.at_boundary());
        }
    }

    #[test]
    fn close_frame_holds_code_and_a_reason_cut_at_a_character() {
        assert_eq!(close_frame(1001, "", None), [0x88, 2, 0x03, 0xe9]);
        let long = close_frame(1000, &"é".repeat(100), None);
        assert_eq!(long.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&long[4..]).is_ok());
        let masked = close_frame(1001, "", Some([1, 2, 3, 4]));
        assert_eq!(masked, [0x88, 0x82, 1, 2, 3, 4, 0x03 ^ 1, 0xe9 ^ 2]);
    }
}
