//! The framing of HTTP/1 requests, checked on the raw bytes before the parser sees them.
//!
//! The parser behind is lenient where proxies disagree: it merges equal `Content-Length` fields and lets
//! `Transfer-Encoding` win over them, both silently. Whoever reads such a message otherwise can be made to see another
//! request in it (RFC 9112, 11.2). So every byte goes through [`Framing::feed`] first, which knows where each message
//! begins and ends, and refuses what is not plainly framed.

/// Bounds of a head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// The whole head, in bytes.
    pub bytes_max: usize,
    /// Its fields.
    pub fields_max: usize,
    /// The request target, in bytes.
    pub target_bytes_max: usize,
}

/// Total bytes of chunk extensions in a body (they are dropped), and of a trailer section.
const CHUNK_EXTENSION_BYTES_MAX: usize = 16 << 10;
const TRAILER_BYTES_MAX: usize = 16 << 10;
const TRAILER_FIELDS_MAX: usize = 64;

/// Why a message is refused, with the status that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// 400, 414, 431, 501 or 505.
    pub status: u16,
    /// What was wrong.
    pub reason: &'static str,
}

const fn violation(status: u16, reason: &'static str) -> Violation {
    Violation { status, reason }
}

/// What a connection is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Between two messages.
    Between,
    /// In a head.
    Head,
    /// In a body.
    Body,
    /// No HTTP any more.
    Raw,
}

/// The checker of one connection.
pub struct Framing {
    limits: HeadLimits,
    state: State,
    /// A line cut by the end of a read.
    partial: Vec<u8>,
    head: Head,
    /// Bytes of lines counted against the bound of the current section.
    section_bytes: usize,
    section_fields: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    RequestLine,
    Field,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    /// After a request to upgrade: what follows is no HTTP, unless the upgrade is not granted.
    Raw {
        untouched: bool,
    },
}

#[derive(Default)]
struct Head {
    http10: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    blank_lines: u8,
}

impl Framing {
    /// At the beginning of a connection.
    pub fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            state: State::RequestLine,
            partial: Vec::new(),
            head: Head::default(),
            section_bytes: 0,
            section_fields: 0,
        }
    }

    /// What the connection is in the middle of.
    pub fn place(&self) -> Place {
        match self.state {
            State::RequestLine if self.partial.is_empty() && self.head.blank_lines == 0 => {
                Place::Between
            }
            State::RequestLine | State::Field => Place::Head,
            State::Raw { .. } => Place::Raw,
            _ => Place::Body,
        }
    }

    /// Takes bytes as they were received.
    ///
    /// # Errors
    /// The first [`Violation`]; the connection has to be closed then.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            match self.state {
                State::Length(left) => {
                    let taken = left.min(bytes.len() as u64);
                    bytes = &bytes[taken as usize..];
                    if left == taken {
                        self.start()
                    } else {
                        self.state = State::Length(left - taken)
                    }
                }
                State::ChunkData(left) => {
                    let taken = left.min(bytes.len() as u64);
                    bytes = &bytes[taken as usize..];
                    self.state = if left == taken {
                        State::ChunkEnd
                    } else {
                        State::ChunkData(left - taken)
                    };
                }
                State::Raw { .. } => {
                    self.state = State::Raw { untouched: false };
                    return Ok(());
                }
                _ => bytes = self.take_line(bytes)?,
            }
        }
        Ok(())
    }

    /// Takes a line, or keeps what there is of it. Returns what is left.
    fn take_line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.count(bytes.len())?;
            self.partial.extend_from_slice(bytes);
            return Ok(&[]);
        };
        self.count(end + 1)?;
        let (line, rest) = bytes.split_at(end + 1);
        if self.partial.is_empty() {
            self.line(line)?;
        } else {
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(line);
            self.line(&whole)?;
        }
        Ok(rest)
    }

    fn count(&mut self, bytes: usize) -> Result<(), Violation> {
        self.section_bytes += bytes;
        let (max, refusal) = match self.state {
            State::RequestLine => {
                let max = self
                    .limits
                    .target_bytes_max
                    .saturating_add(64)
                    .min(self.limits.bytes_max);
                (max, violation(414, "request target is too long"))
            }
            State::Field => (
                self.limits.bytes_max,
                violation(431, "request head is too large"),
            ),
            State::Trailer => (
                TRAILER_BYTES_MAX,
                violation(431, "trailer section is too large"),
            ),
            _ => (
                CHUNK_EXTENSION_BYTES_MAX,
                violation(400, "chunk extensions are too large"),
            ),
        };
        if self.section_bytes > max {
            Err(refusal)
        } else {
            Ok(())
        }
    }

    /// `line` ends with LF.
    fn line(&mut self, line: &[u8]) -> Result<(), Violation> {
        let [line @ .., b'\r', b'\n'] = line else {
            return Err(violation(400, "line does not end with CR LF"));
        };
        match self.state {
            State::RequestLine => self.request_line(line),
            State::Field if line.is_empty() => self.end_of_head(),
            State::Field => self.field(line),
            State::ChunkSize => self.chunk_size(line),
            State::ChunkEnd if line.is_empty() => {
                self.section_bytes -= 2;
                self.state = State::ChunkSize;
                Ok(())
            }
            State::ChunkEnd => Err(violation(400, "chunk is longer than its size")),
            State::Trailer if line.is_empty() => {
                self.start();
                Ok(())
            }
            State::Trailer => {
                self.section_fields += 1;
                if self.section_fields > TRAILER_FIELDS_MAX || line[0] == b' ' || line[0] == b'\t' {
                    return Err(violation(431, "trailer section is too large or folded"));
                }
                Ok(())
            }
            State::Length(_) | State::ChunkData(_) | State::Raw { .. } => {
                unreachable!("no lines in these states")
            }
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Violation> {
        if line.is_empty() {
            // RFC 9112, 2.2: at least one empty line before a request line is to be ignored.
            self.head.blank_lines += 1;
            return if self.head.blank_lines > 1 {
                Err(violation(400, "empty lines before a request"))
            } else {
                Ok(())
            };
        }
        self.head = Head::default();
        let (version_at, version) = line
            .len()
            .checked_sub(8)
            .map_or((0, line), |at| (at, &line[at..]));
        match version {
            b"HTTP/1.1" => {}
            b"HTTP/1.0" => self.head.http10 = true,
            [b'H', b'T', b'T', b'P', b'/', ..] => {
                return Err(violation(505, "HTTP version is neither 1.0 nor 1.1"));
            }
            _ => return Err(violation(400, "request line has no HTTP version")),
        }
        let target = memchr::memchr(b' ', line)
            .map_or(0, |method_end| version_at.saturating_sub(method_end + 2));
        if target > self.limits.target_bytes_max {
            return Err(violation(414, "request target is too long"));
        }
        self.state = State::Field;
        self.section_fields = 0;
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Violation> {
        self.section_fields += 1;
        if self.section_fields > self.limits.fields_max {
            return Err(violation(431, "request head has too many fields"));
        }
        if line[0] == b' ' || line[0] == b'\t' {
            return Err(violation(400, "field is folded over several lines"));
        }
        // The three names by their lengths; a name with anything but a colon after it is refused by the parser.
        if line.len() > 14 && line[14] == b':' && line[..14].eq_ignore_ascii_case(b"content-length")
        {
            return self.content_length(line[15..].trim_ascii());
        }
        if line.len() > 17
            && line[17] == b':'
            && line[..17].eq_ignore_ascii_case(b"transfer-encoding")
        {
            return self.transfer_encoding(line[18..].trim_ascii());
        }
        if line.len() > 7 && line[7] == b':' && line[..7].eq_ignore_ascii_case(b"upgrade") {
            self.head.upgrade = true;
        }
        Ok(())
    }

    /// One field alone says how long a body is.
    fn no_length_yet(&self) -> Result<(), Violation> {
        if self.head.length.is_some() || self.head.chunked {
            return Err(violation(
                400,
                "more than one of Content-Length and Transfer-Encoding",
            ));
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Violation> {
        self.no_length_yet()?;
        if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
            return Err(violation(400, "Content-Length is not a number"));
        }
        self.head.length = Some(
            value
                .iter()
                .fold(0, |n, digit| n * 10 + u64::from(digit - b'0')),
        );
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Violation> {
        self.no_length_yet()?;
        if self.head.http10 {
            return Err(violation(400, "Transfer-Encoding in HTTP/1.0"));
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(violation(501, "Transfer-Encoding is not exactly chunked"));
        }
        self.head.chunked = true;
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), Violation> {
        self.section_bytes = 0;
        self.section_fields = 0;
        self.state = match (self.head.chunked, self.head.length) {
            (true, _) => State::ChunkSize,
            (false, Some(length)) if length > 0 => State::Length(length),
            _ if self.head.upgrade => State::Raw { untouched: true },
            _ => {
                self.start();
                return Ok(());
            }
        };
        Ok(())
    }

    /// The request to upgrade was answered otherwise: HTTP goes on.
    ///
    /// # Errors
    /// If the client sent something already, since nobody can say what it is.
    pub fn not_upgraded(&mut self) -> Result<(), Violation> {
        match self.state {
            State::Raw { untouched: false } => {
                Err(violation(400, "data after a request to upgrade"))
            }
            State::Raw { untouched: true } => {
                self.start();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<(), Violation> {
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits == 0 || digits > 16 || !matches!(line.get(digits), None | Some(b';')) {
            return Err(violation(400, "chunk size is not a hexadecimal number"));
        }
        // Only extensions count: a body may have any number of chunks.
        self.section_bytes -= digits + 2;
        let size = line[..digits].iter().try_fold(0u64, |n, &digit| {
            let digit = (digit as char).to_digit(16).expect("a hexadecimal digit");
            n.checked_mul(16)?.checked_add(u64::from(digit))
        });
        self.state = match size {
            Some(0) => {
                self.section_bytes = 0;
                State::Trailer
            }
            Some(size) if size <= u64::MAX >> 1 => State::ChunkData(size),
            _ => return Err(violation(400, "chunk size is too large")),
        };
        Ok(())
    }

    fn start(&mut self) {
        self.state = State::RequestLine;
        self.section_bytes = 0;
        self.section_fields = 0;
        self.head.blank_lines = 0;
    }
}

#[cfg(test)]
mod tests;
