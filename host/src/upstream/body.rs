//! The body of an endpoint's response: read from the socket as its reader asks for it.

use super::connection::{Connection, Pool, PoolLimits};
use super::scratch;
use crate::deadline::Ticks;
use crate::metrics::Counters;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunked(ChunkState),
    /// Until the endpoint closes the connection.
    UntilClose,
}

/// What comes next in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    /// A size line.
    Size,
    /// So much data.
    Data(u64),
    /// The line end after data.
    End,
    /// Trailers.
    Trailers,
}

/// A chunk's size line with its extensions, and a trailer section.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Reads straight into a buffer of the body's own from here on; less goes through the scratch buffer.
const DIRECT_READ_MIN: u64 = 32 << 10;

impl Coding {
    /// At the beginning of a chunked body.
    pub fn chunked() -> Self {
        Self::Chunked(ChunkState::Size)
    }
}

/// Where a connection goes when its exchange is complete.
#[derive(Clone)]
pub struct Home {
    /// The worker's pool.
    pub pool: Rc<Pool>,
    /// Its bounds.
    pub limits: PoolLimits,
    /// All counters.
    pub counters: Arc<Counters>,
    /// Which of them.
    pub worker: usize,
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The endpoint ended the connection.
    #[error("endpoint closed the connection in the middle of a body")]
    Closed,
    /// Nothing came for too long.
    #[error("endpoint sent nothing of a body for too long")]
    Timeout,
    /// Chunks that are none.
    #[error("endpoint sent a malformed chunk")]
    Malformed,
    /// The socket failed.
    #[error("endpoint's connection failed in the middle of a body")]
    Io(#[source] io::Error),
}

/// A body being read.
pub struct UpstreamBody {
    connection: Option<Connection>,
    coding: Coding,
    /// Received, not yet given on.
    buffer: Bytes,
    keep_alive: bool,
    idle: Ticks,
    home: Home,
}

impl UpstreamBody {
    /// `received` came with the head.
    pub fn new(
        connection: Connection,
        coding: Coding,
        keep_alive: bool,
        received: Bytes,
        idle: Ticks,
        home: Home,
    ) -> Self {
        let mut body = Self {
            connection: Some(connection),
            coding,
            buffer: received,
            keep_alive,
            idle,
            home,
        };
        if body.coding == Coding::Length(0) {
            body.finish();
        }
        body
    }

    /// Whether all of it was read.
    pub fn is_complete(&self) -> bool {
        self.connection.is_none() && self.buffer.is_empty()
    }

    /// How many bytes are left, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self.coding {
            Coding::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The exchange is complete. What came after it makes the connection useless.
    fn finish(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.keep_alive
            && self.buffer.is_empty()
        {
            self.home.pool.put(
                connection,
                self.home.limits,
                &self.home.counters.workers[self.home.worker],
            );
        }
        self.buffer = Bytes::new();
    }

    /// The next frame; none at the end.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.connection.is_none() {
            return Poll::Ready(None);
        }
        loop {
            match self.decode() {
                Ok(Decoded::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::More) => {}
                Err(error) => return self.fail(error),
            }
            let wanted = match self.coding {
                Coding::Length(left) | Coding::Chunked(ChunkState::Data(left)) => left,
                Coding::UntilClose => DIRECT_READ_MIN,
                Coding::Chunked(_) => 0,
            };
            let connection = self
                .connection
                .as_mut()
                .expect("taken only by finish, which ends the body");
            match receive(connection, wanted, &mut self.buffer, cx) {
                Poll::Pending => {
                    connection.watched.read_within_or_earlier(self.idle);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) if connection.expired() => return self.fail(BodyError::Timeout),
                Poll::Ready(Ok(0)) if self.coding == Coding::UntilClose => {
                    self.connection = None;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => return self.fail(BodyError::Closed),
                Poll::Ready(Ok(_)) => connection.watched.read_any_time(),
                Poll::Ready(Err(error)) => return self.fail(BodyError::Io(error)),
            }
        }
    }

    fn fail<T>(&mut self, error: BodyError) -> Poll<Option<Result<T, BodyError>>> {
        self.connection = None;
        Poll::Ready(Some(Err(error)))
    }

    fn decode(&mut self) -> Result<Decoded, BodyError> {
        loop {
            match self.coding {
                Coding::Length(left) => {
                    if self.buffer.is_empty() {
                        return Ok(Decoded::More);
                    }
                    let data = self.take(left);
                    let left = left - data.len() as u64;
                    self.coding = Coding::Length(left);
                    if left == 0 {
                        self.finish();
                    }
                    return Ok(Decoded::Frame(Frame::data(data)));
                }
                Coding::UntilClose if self.buffer.is_empty() => return Ok(Decoded::More),
                Coding::UntilClose => {
                    return Ok(Decoded::Frame(Frame::data(std::mem::take(
                        &mut self.buffer,
                    ))));
                }
                Coding::Chunked(state) => match self.decode_chunked(state)? {
                    Some(decoded) => return Ok(decoded),
                    None => continue,
                },
            }
        }
    }

    fn decode_chunked(&mut self, state: ChunkState) -> Result<Option<Decoded>, BodyError> {
        match state {
            ChunkState::Size => {
                let Some(line) = self.line()? else {
                    return Ok(Some(Decoded::More));
                };
                let size = chunk_size(&line).ok_or(BodyError::Malformed)?;
                self.coding = Coding::Chunked(if size == 0 {
                    ChunkState::Trailers
                } else {
                    ChunkState::Data(size)
                });
                Ok(None)
            }
            ChunkState::Data(_) if self.buffer.is_empty() => Ok(Some(Decoded::More)),
            ChunkState::Data(left) => {
                let data = self.take(left);
                let left = left - data.len() as u64;
                self.coding = Coding::Chunked(if left == 0 {
                    ChunkState::End
                } else {
                    ChunkState::Data(left)
                });
                Ok(Some(Decoded::Frame(Frame::data(data))))
            }
            ChunkState::End => match self.line()? {
                None => Ok(Some(Decoded::More)),
                Some(line) if line.is_empty() => {
                    self.coding = Coding::Chunked(ChunkState::Size);
                    Ok(None)
                }
                Some(_) => Err(BodyError::Malformed),
            },
            ChunkState::Trailers => self.trailers().map(Some),
        }
    }

    fn take(&mut self, most: u64) -> Bytes {
        let count = most.min(self.buffer.len() as u64) as usize;
        self.buffer.split_to(count)
    }

    /// A line without its CR LF, if it is complete.
    fn line(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(end) = memchr::memchr(b'\n', &self.buffer) else {
            return if self.buffer.len() > LINE_BYTES_MAX {
                Err(BodyError::Malformed)
            } else {
                Ok(None)
            };
        };
        let line = self.buffer.split_to(end);
        self.buffer.advance(1);
        match line.strip_suffix(b"\r") {
            Some(text) if text.len() <= LINE_BYTES_MAX => Ok(Some(line.slice_ref(text))),
            _ => Err(BodyError::Malformed),
        }
    }

    fn trailers(&mut self) -> Result<Decoded, BodyError> {
        if self.buffer.starts_with(b"\r\n") {
            self.buffer.advance(2);
            self.finish();
            return Ok(Decoded::End);
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let section = self.buffer.clone();
        match httparse::parse_headers(&section, &mut fields) {
            Ok(httparse::Status::Complete((length, fields))) => {
                let mut trailers = HeaderMap::with_capacity(fields.len());
                for field in fields {
                    let name = HeaderName::from_bytes(field.name.as_bytes())
                        .map_err(|_| BodyError::Malformed)?;
                    let value =
                        HeaderValue::from_bytes(field.value).map_err(|_| BodyError::Malformed)?;
                    if may_be_trailer(&name) {
                        trailers.append(name, value);
                    }
                }
                self.buffer.advance(length);
                self.finish();
                Ok(if trailers.is_empty() {
                    Decoded::End
                } else {
                    Decoded::Frame(Frame::trailers(trailers))
                })
            }
            Ok(httparse::Status::Partial) if self.buffer.len() <= LINE_BYTES_MAX => {
                Ok(Decoded::More)
            }
            _ => Err(BodyError::Malformed),
        }
    }
}

enum Decoded {
    Frame(Frame<Bytes>),
    End,
    /// More bytes are needed.
    More,
}

/// Fields that frame, route or authorise have no business after a body (RFC 9110, 6.5.1).
pub fn may_be_trailer(name: &HeaderName) -> bool {
    use http::header as h;
    ![
        h::CONTENT_LENGTH,
        h::TRANSFER_ENCODING,
        h::CONNECTION,
        h::HOST,
        h::TRAILER,
        h::TE,
        h::UPGRADE,
        h::CONTENT_ENCODING,
        h::CONTENT_TYPE,
        h::CONTENT_RANGE,
        h::AUTHORIZATION,
        h::PROXY_AUTHORIZATION,
        h::COOKIE,
        h::SET_COOKIE,
        h::CACHE_CONTROL,
        h::EXPECT,
    ]
    .contains(name)
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    // Some servers pad the size with spaces.
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 16 || !(rest.is_empty() || rest[0] == b';') {
        return None;
    }
    let size = line[..digits].iter().fold(0u64, |n, &d| {
        n << 4 | u64::from((d as char).to_digit(16).unwrap_or(0))
    });
    (size <= u64::MAX >> 1).then_some(size)
}

/// Reads once, appending to `buffer`; `wanted` bytes are expected.
pub(super) fn receive(
    connection: &mut Connection,
    wanted: u64,
    buffer: &mut Bytes,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if wanted >= DIRECT_READ_MIN && buffer.is_empty() {
        let mut own = BytesMut::with_capacity(wanted.min(scratch::BYTES as u64) as usize);
        let mut filling = ReadBuf::uninit(own.spare_capacity_mut());
        ready!(Pin::new(&mut connection.socket).poll_read(cx, &mut filling))?;
        let count = filling.filled().len();
        // SAFETY: `filling` wrapped this spare capacity, and its first `count` bytes were filled.
        unsafe { own.set_len(count) };
        *buffer = own.freeze();
        return Poll::Ready(Ok(count));
    }
    scratch::with(|scratch| {
        let mut filling = ReadBuf::new(scratch);
        ready!(Pin::new(&mut connection.socket).poll_read(cx, &mut filling))?;
        let received = filling.filled();
        if buffer.is_empty() {
            *buffer = Bytes::copy_from_slice(received);
        } else {
            *buffer = [&buffer[..], received].concat().into();
        }
        Poll::Ready(Ok(received.len()))
    })
}
