//! HTTP/1.1 and the WebSocket handshake over blocking sockets, as little of them as load needs.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Largest answer read.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// A head, and how many bytes of body came after it: all that its Content-Length says.
///
/// # Errors
/// The connection ended, or the message is larger than 64 KiB.
pub fn read_message(socket: &mut TcpStream) -> Result<(String, usize)> {
    let (head, body) = read_answer(socket)?;
    Ok((head, body.len()))
}

/// A head, and the body after it: all that its Content-Length says.
///
/// # Errors
/// The connection ended, or the message is larger than 64 KiB.
pub fn read_answer(socket: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut message = vec![0; 8 << 10];
    let mut read = 0;
    loop {
        if read == message.len() {
            ensure!(read < MESSAGE_BYTES_MAX, "a message of over {read} bytes");
            message.resize(read * 2, 0);
        }
        let count = socket.read(&mut message[read..])?;
        ensure!(count > 0, "connection ended");
        read += count;
        let Some(head) = message[..read]
            .windows(4)
            .position(|end| end == b"\r\n\r\n")
        else {
            continue;
        };
        let text = String::from_utf8_lossy(&message[..head]).into_owned();
        let body = &message[head + 4..read];
        if body.len() >= content_length(&text)? {
            return Ok((text, body.to_vec()));
        }
    }
}

fn content_length(head: &str) -> Result<usize> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length.map_or(Ok(0), |(_, length)| {
        length
            .trim()
            .parse()
            .with_context(|| format!("Content-Length {length:?}"))
    })
}

/// The status of an answer.
///
/// # Errors
/// No status line.
pub fn status(head: &str) -> Result<u16> {
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.with_context(|| format!("not an answer: {head:?}"))
}

/// Opens a WebSocket; `fields` are lines of the head, each with its end.
///
/// # Errors
/// It is not accepted.
pub fn open_websocket(address: SocketAddr, fields: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    write!(
        socket,
        "GET / HTTP/1.1\r\nHost: bench.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )?;
    let (head, _) = read_message(&mut socket)?;
    ensure!(status(&head)? == 101, "the WebSocket is refused: {head}");
    Ok(socket)
}
