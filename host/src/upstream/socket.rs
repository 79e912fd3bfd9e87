//! A socket to an endpoint, of whichever kind.

use super::address::Address;
use super::tls::{self, Tls};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub(super) async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                Ok(Self::Tcp(tcp))
            }
            Address::Unix(path) => UnixStream::connect(&**path).await.map(Self::Unix),
        }
    }

    /// The same over TLS, to who is of this name.
    pub(super) async fn secure(self, tls: &Tls, name: &str) -> io::Result<Self> {
        let stream = match self {
            Self::Tcp(tcp) => tls.connect(tcp, name).await?,
            Self::Unix(_) | Self::Tls(_) => {
                let why = "TLS is for hosts, and not within TLS";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Whether the peer ended it or sent something: no system call unless the socket became readable. The waker is replaced
    /// by the next real read.
    pub(super) fn has_ended_or_said_something(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        let would_block = |read: io::Result<usize>| matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        match self {
            Self::Tcp(socket) => {
                socket.poll_read_ready(cx).is_ready() && !would_block(socket.try_read(&mut [0]))
            }
            Self::Unix(socket) => {
                socket.poll_read_ready(cx).is_ready() && !would_block(socket.try_read(&mut [0]))
            }
            // What is of TLS alone, such as tickets, is taken in by that.
            Self::Tls(stream) => Pin::new(stream)
                .poll_read(cx, &mut ReadBuf::new(&mut [0]))
                .is_ready(),
        }
    }

    /// The same outside of the runtime.
    pub(super) fn into_raw(self) -> io::Result<socket2::Socket> {
        match self {
            Self::Tcp(socket) => socket.into_std().map(socket2::Socket::from),
            Self::Unix(socket) => socket.into_std().map(socket2::Socket::from),
            Self::Tls(stream) => tls::bridge(stream),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
