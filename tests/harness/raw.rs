//! A client of raw bytes, for what no library would send.

use super::{PATIENCE, soon};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection.
pub struct Raw {
    /// The socket.
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// One response off the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawResponse {
    /// Its status.
    pub status: u16,
    /// Its head, final empty line included.
    pub head: String,
    /// Its body, chunks joined.
    pub body: Vec<u8>,
    /// Its trailer section.
    pub trailers: String,
}

impl RawResponse {
    /// A field's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

/// The first value of a field in a head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

impl Raw {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address))
            .await
            .expect("connected");
        stream.set_nodelay(true).expect("a socket");
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Sends bytes. The proxy may have closed already: what it said is read all the same.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = soon("bytes taken", self.stream.write_all(bytes.as_ref())).await;
    }

    /// Sends bytes and reads the response.
    pub async fn ask(&mut self, bytes: impl AsRef<[u8]>) -> RawResponse {
        self.send(bytes).await;
        self.response().await
    }

    /// Reads one response; panics if the connection ends before it does.
    pub async fn response(&mut self) -> RawResponse {
        match self.try_response(false).await {
            Ok(response) => response,
            Err(so_far) => panic!(
                "connection ended in: {:?}",
                String::from_utf8_lossy(&so_far)
            ),
        }
    }

    /// Reads one response to a HEAD request.
    pub async fn response_without_body(&mut self) -> RawResponse {
        self.try_response(true).await.expect("a response")
    }

    /// Reads one response, or what there was before the connection ended.
    pub async fn try_response(&mut self, no_body: bool) -> Result<RawResponse, Vec<u8>> {
        let head = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break self.take(end + 4);
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&head).into_owned();
        let status: u16 = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        let mut response = RawResponse {
            status,
            head,
            body: Vec::new(),
            trailers: String::new(),
        };
        if no_body || status < 200 || status == 204 || status == 304 {
            return Ok(response);
        }
        let chunked = response
            .header("transfer-encoding")
            .is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        if chunked {
            loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk size");
                if size == 0 {
                    break;
                }
                let chunk = self.exactly(size + 2).await?;
                response.body.extend_from_slice(&chunk[..size]);
            }
            loop {
                let line = self.line().await?;
                if line == "\r\n" {
                    break;
                }
                response.trailers.push_str(&line);
            }
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().expect("a length");
            response.body = self.exactly(length).await?;
        } else {
            response.body = self.rest().await;
        }
        Ok(response)
    }

    /// Reads exactly so many bytes.
    pub async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, Vec<u8>> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.take(length))
    }

    /// Reads one line.
    pub async fn line(&mut self) -> Result<String, Vec<u8>> {
        loop {
            if let Some(end) = find(&self.buffer, b"\n") {
                let line = self.take(end + 1);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.more().await?;
        }
    }

    /// Everything until the connection ends, by close or reset.
    pub async fn rest(&mut self) -> Vec<u8> {
        loop {
            if let Err(rest) = self.more().await {
                return rest;
            }
        }
    }

    /// Whether the other side ends the connection without another byte.
    pub async fn is_closed(&mut self) -> bool {
        self.rest().await.is_empty()
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    async fn more(&mut self) -> Result<(), Vec<u8>> {
        let mut chunk = [0; 16 << 10];
        match tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk)).await {
            Err(_) => panic!(
                "nothing more within {PATIENCE:?} after {:?}",
                String::from_utf8_lossy(&self.buffer)
            ),
            Ok(Ok(0) | Err(_)) => Err(std::mem::take(&mut self.buffer)),
            Ok(Ok(length)) => {
                self.buffer.extend_from_slice(&chunk[..length]);
                Ok(())
            }
        }
    }
}

/// Where a text begins.
pub fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}
