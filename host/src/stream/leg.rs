//! One socket of a stream, and what is on its way to and from it.

use super::frame::Cursor;
use rustix::event::epoll::EventFlags;
use socket2::Socket;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;

/// A socket, and what is on its way to and from it.
pub(super) struct Leg {
    pub(super) socket: Socket,
    /// What the epoll set watches; `None` when the socket is not in it.
    pub(super) watched: Option<EventFlags>,
    /// Frames read from it.
    pub(super) cursor: Cursor,
    /// Bytes read from it and relayed.
    pub(super) bytes: u64,
    /// Bytes for it that it did not take yet.
    pub(super) leftover: Option<Box<Leftover>>,
    /// It will send nothing more.
    pub(super) ended: bool,
    /// We will send it nothing more.
    pub(super) shut: bool,
    /// Data of the other side no longer goes here: our close frame was its last.
    pub(super) cut: bool,
}

pub(super) struct Leftover {
    bytes: Box<[u8]>,
    written: usize,
}

impl Leg {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            watched: None,
            cursor: Cursor::default(),
            bytes: 0,
            leftover: None,
            ended: false,
            shut: false,
            cut: false,
        }
    }

    /// Sends what the socket takes now and keeps the rest.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(leftover) = &mut self.leftover {
            let unsent = &leftover.bytes[leftover.written..];
            leftover.bytes = [unsent, bytes].concat().into();
            leftover.written = 0;
            return Ok(());
        }
        let written = write_some(&self.socket, bytes)?;
        if written < bytes.len() {
            self.leftover = Some(Box::new(Leftover {
                bytes: bytes[written..].into(),
                written: 0,
            }));
        }
        Ok(())
    }

    /// Sends of the leftover what the socket takes now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(leftover) = &mut self.leftover else {
            return Ok(());
        };
        leftover.written += write_some(&self.socket, &leftover.bytes[leftover.written..])?;
        if leftover.written == leftover.bytes.len() {
            self.leftover = None;
        }
        Ok(())
    }

    pub(super) fn shut(&mut self) -> io::Result<()> {
        if !self.shut {
            self.shut = true;
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Bytes kept because the socket does not take them.
    pub(super) fn leftover_bytes(&self) -> usize {
        self.leftover
            .as_ref()
            .map_or(0, |leftover| leftover.bytes.len() - leftover.written)
    }
}

/// Writes what the socket takes now.
fn write_some(mut socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            written => return written,
        }
    }
}
