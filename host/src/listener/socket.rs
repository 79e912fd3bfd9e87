//! A client's socket as the HTTP parsers see it: checked framing, deadlines, bytes read ahead.

use super::framing::{Framing, Place, Violation};
use crate::deadline::{Ticks, Watched};
use crate::metrics::Counters;
use crate::upstream::scratch;
use bytes::Bytes;
use hyper::rt::ReadBufCursor;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Writes up to this size are gathered into one buffer.
const GATHERED_BYTES_MAX: usize = 8 << 10;

/// What the requests of a connection and its socket share. One thread uses it; it is atomic because an upgraded socket
/// passes through a type that must be `Send`.
pub struct ConnectionState {
    watched: Watched,
    timeouts: Timeouts,
    /// Requests being handled: until their response has been taken or dropped.
    in_flight: AtomicU32,
    /// Whether something of the current response was written.
    responding: AtomicBool,
    /// Whether the client has yet to take what was written.
    blocked: AtomicBool,
    counters: Arc<Counters>,
    worker: usize,
}

/// Timeouts of a client's connection.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Accept to first byte.
    pub first_byte: Ticks,
    /// First byte of a head to its end.
    pub head: Ticks,
    /// Between requests.
    pub idle: Ticks,
    /// Between two reads of a body.
    pub body: Ticks,
    /// While the client takes nothing.
    pub write: Ticks,
}

impl ConnectionState {
    /// For a socket just accepted.
    pub fn new(
        watched: Watched,
        timeouts: Timeouts,
        counters: Arc<Counters>,
        worker: usize,
    ) -> Arc<Self> {
        watched.read_within(timeouts.first_byte);
        let (in_flight, responding, blocked) = (
            AtomicU32::new(0),
            AtomicBool::new(false),
            AtomicBool::new(false),
        );
        Arc::new(Self {
            watched,
            timeouts,
            in_flight,
            responding,
            blocked,
            counters,
            worker,
        })
    }

    /// The first bytes are there, and do not yet say which protocol they are of.
    pub fn begins_head(&self) {
        self.watched.read_within(self.timeouts.head);
    }

    /// A request begins; it ends when the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        let before = self.in_flight.load(Relaxed);
        self.in_flight.store(before + 1, Relaxed);
        self.responding.store(false, Relaxed);
        self.watched.read_any_time();
        InFlight(self.clone())
    }

    /// Whether the socket was shut down for being late.
    pub fn expired(&self) -> bool {
        self.watched.expired()
    }

    fn idle(&self) -> bool {
        self.in_flight.load(Relaxed) == 0
    }
}

/// A request being handled.
pub struct InFlight(Arc<ConnectionState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let left = self.0.in_flight.load(Relaxed) - 1;
        self.0.in_flight.store(left, Relaxed);
        if left == 0 {
            self.0.watched.read_within(self.0.timeouts.idle);
        }
    }
}

/// Requests still being handled may hold the state longer than the socket lives: its deadlines must not.
struct Released(Arc<ConnectionState>);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.watched.release();
    }
}

impl std::ops::Deref for Released {
    type Target = ConnectionState;
    fn deref(&self) -> &ConnectionState {
        &self.0
    }
}

/// A client's socket.
pub struct DownstreamSocket {
    // Declared before the socket, so that it is dropped before it.
    state: Released,
    tcp: TcpStream,
    read_ahead: Bytes,
    /// None for HTTP/2, whose library does its own.
    framing: Option<Framing>,
}

impl DownstreamSocket {
    /// `read_ahead` was received before, while the protocol was found out.
    pub fn new(
        tcp: TcpStream,
        state: Arc<ConnectionState>,
        read_ahead: Bytes,
        framing: Option<Framing>,
    ) -> Self {
        Self {
            state: Released(state),
            tcp,
            read_ahead,
            framing,
        }
    }

    /// The socket of an upgraded connection.
    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    /// Before a read: HTTP goes on after a refused upgrade.
    fn resume(&mut self) -> io::Result<()> {
        match &mut self.framing {
            Some(framing) if framing.place() == Place::Raw && self.state.idle() => {
                let outcome = framing.not_upgraded();
                outcome.map_err(|violation| self.refuse(violation, Place::Between))
            }
            _ => Ok(()),
        }
    }

    /// After a read that gave `bytes`.
    fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(framing) = &mut self.framing else {
            if self.state.idle() {
                self.state.watched.read_within(self.state.timeouts.idle);
            }
            return Ok(());
        };
        let before = framing.place();
        let (outcome, after) = (framing.feed(bytes), framing.place());
        outcome.map_err(|violation| self.refuse(violation, before))?;
        match after {
            Place::Head if before != Place::Head => {
                self.state.watched.read_within(self.state.timeouts.head)
            }
            Place::Head => {}
            _ => self.state.watched.read_any_time(),
        }
        Ok(())
    }

    /// While there is nothing to read.
    fn waiting(&self) {
        match self.framing.as_ref().map(Framing::place) {
            Some(Place::Body) => self
                .state
                .watched
                .read_within_or_earlier(self.state.timeouts.body),
            Some(Place::Between) if self.state.idle() => {
                self.state
                    .watched
                    .read_within_or_earlier(self.state.timeouts.idle);
            }
            _ => {}
        }
    }

    /// Makes the connection fail; answers before, if the answer cannot be taken for another request's: between requests,
    /// or in the body of one that was not answered yet.
    fn refuse(&self, violation: Violation, before: Place) -> io::Error {
        self.state.counters.workers[self.state.worker]
            .requests_malformed
            .fetch_add(1, Relaxed);
        tracing::debug!(
            status = violation.status,
            reason = violation.reason,
            "malformed request"
        );
        let responding = self.state.responding.load(Relaxed);
        let answerable = if before == Place::Body {
            !responding
        } else {
            self.state.idle()
        };
        if answerable && !self.state.blocked.load(Relaxed) {
            let status = hyper::StatusCode::from_u16(violation.status)
                .unwrap_or(hyper::StatusCode::BAD_REQUEST);
            let answer = format!(
                "HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}\n",
                status.as_u16(),
                status.canonical_reason().unwrap_or("Bad Request"),
                violation.reason.len() + 1,
                violation.reason,
            );
            // The client may be gone; then there is nobody to tell.
            let _ = self.tcp.try_write(answer.as_bytes());
            let _ = rustix::net::shutdown(&self.tcp, rustix::net::Shutdown::Write);
        }
        io::Error::new(io::ErrorKind::InvalidData, violation.reason)
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Pending => {
                self.state
                    .watched
                    .write_within_or_earlier(self.state.timeouts.write);
                self.state.blocked.store(true, Relaxed);
            }
            Poll::Ready(_) => {
                self.state.watched.write_any_time();
                self.state.responding.store(true, Relaxed);
                self.state.blocked.store(false, Relaxed);
            }
        }
    }
}

impl hyper::rt::Read for DownstreamSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.resume()?;
        if !this.read_ahead.is_empty() {
            let taken = this
                .read_ahead
                .split_to(this.read_ahead.len().min(buf.remaining()));
            this.received(&taken)?;
            buf.put_slice(&taken);
            return Poll::Ready(Ok(()));
        }
        // SAFETY: the slice is handed to `ReadBuf::uninit`, which never makes initialised bytes uninitialised.
        let mut filling = ReadBuf::uninit(unsafe { buf.as_mut() });
        match Pin::new(&mut this.tcp).poll_read(cx, &mut filling) {
            Poll::Pending => {
                this.waiting();
                return Poll::Pending;
            }
            Poll::Ready(read) => read?,
        }
        let count = filling.filled().len();
        this.received(filling.filled())?;
        // SAFETY: `filling` wrapped the same buffer, and its first `count` bytes were filled.
        unsafe { buf.advance(count) };
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for DownstreamSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.tcp).poll_write(cx, buf);
        this.wrote(&outcome);
        outcome
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        // A head and a small body in one piece: copying is cheaper than what the kernel does for each vector.
        let outcome = if total <= GATHERED_BYTES_MAX {
            scratch::with(|scratch| {
                let mut end = 0;
                for buf in bufs {
                    scratch[end..end + buf.len()].copy_from_slice(buf);
                    end += buf.len();
                }
                Pin::new(&mut this.tcp).poll_write(cx, &scratch[..end])
            })
        } else {
            Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs)
        };
        this.wrote(&outcome);
        outcome
    }
}
