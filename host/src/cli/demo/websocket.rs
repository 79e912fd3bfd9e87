//! A small WebSocket client: upgrade, masked text frames out, text frames in.

use anyhow::{Context, bail, ensure};
use base64::Engine;
use bytes::{Buf, Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest text frame this client takes; its own are shorter still.
const PAYLOAD_BYTES_MAX: usize = 64 << 10;
const TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_KEY: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Opcodes of RFC 6455 that an echo may send.
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// An open WebSocket.
pub(super) struct WebSocket {
    io: TokioIo<Upgraded>,
    buffer: BytesMut,
}

/// A frame, unmasked.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    opcode: u8,
    payload: Bytes,
}

impl WebSocket {
    /// Opens one through the proxy with these header fields.
    ///
    /// # Errors
    /// If it cannot be reached, or answers with anything but a valid 101.
    pub(super) async fn open(proxy: SocketAddr, fields: &[(&str, String)]) -> anyhow::Result<Self> {
        tokio::time::timeout(TIMEOUT, Self::upgrade(proxy, fields))
            .await
            .context("no answer to the upgrade in time")?
    }

    async fn upgrade(proxy: SocketAddr, fields: &[(&str, String)]) -> anyhow::Result<Self> {
        let socket = tokio::net::TcpStream::connect(proxy).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection.with_upgrades());
        let key = base64::engine::general_purpose::STANDARD.encode(random::<16>()?);
        let mut request = Request::get("/demo")
            .header(header::HOST, proxy.to_string())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        for (name, value) in fields {
            request = request.header(*name, value);
        }
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        ensure!(
            response.status() == StatusCode::SWITCHING_PROTOCOLS,
            "the upgrade was answered with {}",
            response.status()
        );
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        ensure!(
            accept.is_some_and(|value| value.as_bytes() == accept_of(&key).as_bytes()),
            "the upgrade was answered with a wrong sec-websocket-accept"
        );
        Ok(Self {
            io: TokioIo::new(hyper::upgrade::on(response).await?),
            buffer: BytesMut::new(),
        })
    }

    /// Sends a text and waits until it comes back.
    ///
    /// # Errors
    /// If the stream was closed, is silent for too long, or something else comes back.
    pub(super) async fn echo(&mut self, text: &str) -> anyhow::Result<()> {
        let exchange = async {
            self.send(TEXT, text.as_bytes()).await?;
            loop {
                let frame = self.receive().await?;
                match frame.opcode {
                    TEXT if frame.payload == text.as_bytes() => return Ok(()),
                    PING => self.send(PONG, &frame.payload).await?,
                    PONG => {}
                    CLOSE => bail!(
                        "closed by the other side with {}",
                        close_code(&frame.payload)
                    ),
                    opcode => bail!(
                        "sent {text:?}, got a frame of type {opcode}: {:?}",
                        String::from_utf8_lossy(&frame.payload)
                    ),
                }
            }
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .context("silent for too long")?
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> anyhow::Result<()> {
        self.io
            .write_all(&encode(opcode, payload, random()?))
            .await?;
        self.io.flush().await?;
        Ok(())
    }

    async fn receive(&mut self) -> anyhow::Result<Frame> {
        loop {
            if let Some(frame) = decode(&mut self.buffer)? {
                return Ok(frame);
            }
            ensure!(
                self.io.read_buf(&mut self.buffer).await? > 0,
                "the connection ended without a close frame"
            );
        }
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("random numbers: {e}"))?;
    Ok(bytes)
}

fn accept_of(key: &str) -> String {
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update(ACCEPT_KEY)
        .finalize();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

fn close_code(payload: &[u8]) -> String {
    match payload {
        [high, low, ..] => format!("code {}", u16::from_be_bytes([*high, *low])),
        _ => "no code".to_owned(),
    }
}

/// A whole masked frame.
fn encode(opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(0x80 | opcode);
    match u16::try_from(payload.len()) {
        Ok(length @ 0..126) => frame.push(0x80 | length as u8),
        Ok(length) => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    frame
}

/// Takes a whole frame from the front of the buffer; none if it is not there yet.
fn decode(buffer: &mut BytesMut) -> anyhow::Result<Option<Frame>> {
    let [first, second, rest @ ..] = &buffer[..] else {
        return Ok(None);
    };
    ensure!(first & 0x80 != 0, "got a fragmented message");
    ensure!(second & 0x80 == 0, "got a masked frame from a server");
    let (head, length) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
        (126, _) => return Ok(None),
        (127, _) => bail!("got a frame of more than {PAYLOAD_BYTES_MAX} bytes"),
        (length, _) => (2, usize::from(length)),
    };
    let opcode = first & 0x0f;
    if buffer.len() < head + length {
        return Ok(None);
    }
    buffer.advance(head);
    Ok(Some(Frame {
        opcode,
        payload: buffer.split_to(length).freeze(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        assert_eq!(
            accept_of("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn a_frame_out_is_whole_masked_and_as_in_the_rfc() {
        let frame = encode(TEXT, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(
            frame,
            [
                0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58
            ]
        );
        assert_eq!(encode(TEXT, &[0; 126], [0; 4])[1..4], [0x80 | 126, 0, 126]);
        assert_eq!(encode(TEXT, &[0; 65_536], [0; 4])[1], 0x80 | 127);
    }

    #[test]
    fn frames_in_are_taken_whole_however_they_arrive() {
        let mut wire = vec![0x81, 5];
        wire.extend_from_slice(b"Hello");
        wire.extend_from_slice(&[0x81, 126, 0, 200]);
        wire.extend_from_slice(&[b'x'; 200]);
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in wire {
            buffer.extend_from_slice(&[byte]);
            frames.extend(decode(&mut buffer).expect("valid"));
        }
        assert_eq!(frames.len(), 2);
        assert_eq!(&frames[0].payload[..], b"Hello");
        assert_eq!(frames[1].payload.len(), 200);
        assert!(buffer.is_empty());
    }

    #[test]
    fn masked_fragmented_and_huge_frames_are_refused() {
        for wire in [&[0x81, 0x85][..], &[0x01, 5], &[0x81, 127]] {
            assert!(decode(&mut BytesMut::from(wire)).is_err(), "{wire:?}");
        }
    }
}
