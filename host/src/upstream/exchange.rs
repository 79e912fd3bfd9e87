//! One exchange with an endpoint: the request sent, the head of its response received.

use super::body::receive;
use super::connection::Connection;
use super::response::{self, ResponseHead};
use crate::deadline::Ticks;
use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body, Frame};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// A request ready to be sent.
pub struct Outgoing<'a> {
    /// The head, encoded, with its empty line.
    pub head: &'a [u8],
    /// Its method.
    pub method: &'a Method,
    /// Whether it asks for a WebSocket.
    pub websocket: bool,
    /// Taken for the fields of the response: any map that is no longer needed.
    pub map: &'a mut HeaderMap,
}

/// Bounds of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct ExchangeLimits {
    /// Request sent to response head.
    pub response: Ticks,
    /// While the endpoint takes nothing of the request.
    pub write: Ticks,
    /// Bytes of a response head.
    pub head_bytes_max: usize,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection ended before a byte of the response; on a reused one the endpoint may just have closed it.
    #[error("endpoint closed the connection before a response")]
    Closed(#[source] Option<io::Error>),
    /// The response did not come in time, or the request was not taken.
    #[error("endpoint did not respond in time")]
    Timeout,
    /// It is no HTTP response, or not one to this request.
    #[error("{0}")]
    BadResponse(&'static str),
    /// The client's body ended in an error: nothing is wrong with the endpoint.
    #[error("request body failed")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Informational responses taken before the final one.
const INFORMATIONAL_MAX: usize = 10;

/// The response's head, what came after it, and whether all of the request was sent.
pub struct Response {
    /// The head.
    pub head: ResponseHead,
    /// Bytes received after it.
    pub received: Bytes,
    /// Otherwise the connection must not be used again.
    pub sent_all: bool,
}

/// Sends a request and receives the head of its response, which may come before all of the request was sent.
///
/// # Errors
/// See [`ExchangeError`]; the connection has to be dropped then, and also if the future is dropped.
pub async fn exchange<B>(
    connection: &mut Connection,
    outgoing: Outgoing<'_>,
    body: Option<(Pin<&mut B>, bool)>,
    limits: ExchangeLimits,
) -> Result<Response, ExchangeError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut sending = Sending {
        out: outgoing.head,
        framing: Vec::new(),
        at: 0,
        data: Bytes::new(),
        body,
    };
    let mut received = Bytes::new();
    let mut informational = 0;
    let mut waiting = false;
    poll_fn(|cx| {
        if !waiting && sending.poll(connection, limits, cx)?.is_ready() {
            waiting = true;
            connection.watched.read_within(limits.response);
        }
        loop {
            if ready!(receive(connection, 0, &mut received, cx))
                .map_err(|e| closed(connection, &received, Some(e)))?
                == 0
            {
                return Poll::Ready(Err(closed(connection, &received, None)));
            }
            while !received.is_empty() {
                let Some((head, length)) =
                    response::parse(&received, outgoing.method, outgoing.map)
                        .map_err(ExchangeError::BadResponse)?
                else {
                    if received.len() > limits.head_bytes_max {
                        return Poll::Ready(Err(ExchangeError::BadResponse(
                            "response head is too large",
                        )));
                    }
                    break;
                };
                received.advance(length);
                // None is passed on: 100 is ours to send, and hyper's server offers no way to send 103.
                if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS
                {
                    informational += 1;
                    if informational > INFORMATIONAL_MAX {
                        return Poll::Ready(Err(ExchangeError::BadResponse(
                            "too many informational responses",
                        )));
                    }
                    continue;
                }
                if head.status == StatusCode::SWITCHING_PROTOCOLS
                    && !(outgoing.websocket && head.websocket)
                {
                    return Poll::Ready(Err(ExchangeError::BadResponse(
                        "response switches protocols unasked",
                    )));
                }
                connection.watched.read_any_time();
                connection.watched.write_any_time();
                return Poll::Ready(Ok(Response {
                    head,
                    received: std::mem::take(&mut received),
                    sent_all: waiting,
                }));
            }
        }
    })
    .await
}

fn closed(connection: &Connection, received: &Bytes, error: Option<io::Error>) -> ExchangeError {
    if connection.expired() {
        ExchangeError::Timeout
    } else if received.is_empty() {
        ExchangeError::Closed(error)
    } else {
        ExchangeError::BadResponse(
            "endpoint closed the connection in the middle of a response head",
        )
    }
}

/// A request on its way out.
struct Sending<'a, B> {
    /// The rest of the head.
    out: &'a [u8],
    /// Framing of the current chunk, and what of it was sent.
    framing: Vec<u8>,
    at: usize,
    /// The rest of the current piece of the body.
    data: Bytes,
    /// The body, and whether it goes out in chunks.
    body: Option<(Pin<&'a mut B>, bool)>,
}

impl<B> Sending<'_, B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Ready when all was sent.
    fn poll(
        &mut self,
        connection: &mut Connection,
        limits: ExchangeLimits,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, ExchangeError> {
        loop {
            if self.out.is_empty() && self.framing.len() == self.at && self.data.is_empty() {
                match self.next(cx)? {
                    Poll::Ready(true) => continue,
                    // TLS may have kept what it was given.
                    sent => match Pin::new(&mut connection.socket).poll_flush(cx) {
                        Poll::Ready(_) if sent.is_ready() => return Ok(Poll::Ready(())),
                        Poll::Ready(_) => return Ok(Poll::Pending),
                        Poll::Pending => {
                            connection.watched.write_within_or_earlier(limits.write);
                            return Ok(Poll::Pending);
                        }
                    },
                }
            }
            let wrote = if self.data.is_empty() && self.framing.len() == self.at {
                Pin::new(&mut connection.socket).poll_write(cx, self.out)
            } else {
                let parts = [self.out, &self.framing[self.at..], &self.data].map(io::IoSlice::new);
                Pin::new(&mut connection.socket).poll_write_vectored(cx, &parts)
            };
            match wrote {
                Poll::Pending => {
                    connection.watched.write_within_or_earlier(limits.write);
                    return Ok(Poll::Pending);
                }
                Poll::Ready(Ok(count)) => {
                    connection.watched.write_any_time();
                    self.sent(count);
                }
                // The endpoint may have answered before it stopped reading: let the read find out.
                Poll::Ready(Err(_)) => return Ok(Poll::Pending),
            }
        }
    }

    fn sent(&mut self, mut count: usize) {
        let head = count.min(self.out.len());
        self.out = &self.out[head..];
        count -= head;
        let framing = count.min(self.framing.len() - self.at);
        self.at += framing;
        count -= framing;
        self.data.advance(count);
    }

    /// Takes the next frame of the body; false at the end.
    fn next(&mut self, cx: &mut Context<'_>) -> Result<Poll<bool>, ExchangeError> {
        let Some((body, chunked)) = &mut self.body else {
            return Ok(Poll::Ready(false));
        };
        let frame = match body.as_mut().poll_frame(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(frame) => frame
                .transpose()
                .map_err(|e| ExchangeError::Client(e.into()))?,
        };
        // Chunks are separated by the line end after each one's data, which goes out with the next.
        let after_data = if std::mem::take(&mut self.framing).is_empty() {
            &b""[..]
        } else {
            b"\r\n"
        };
        self.at = 0;
        match frame.map(Frame::into_data) {
            Some(Ok(data)) if data.is_empty() => {
                self.framing = after_data.to_vec();
                self.at = self.framing.len();
            }
            Some(Ok(data)) => {
                if *chunked {
                    use std::io::Write;
                    self.framing.extend_from_slice(after_data);
                    write!(self.framing, "{:x}\r\n", data.len()).expect("writing to memory");
                }
                self.data = data;
            }
            Some(Err(trailers)) => {
                if *chunked {
                    let trailers = trailers.into_trailers().unwrap_or_default();
                    self.end(after_data, &trailers);
                }
                self.body = None;
            }
            None => {
                if *chunked {
                    self.end(after_data, &HeaderMap::new());
                }
                self.body = None;
            }
        }
        Ok(Poll::Ready(true))
    }

    fn end(&mut self, after_data: &[u8], trailers: &HeaderMap) {
        self.framing.extend_from_slice(after_data);
        self.framing.extend_from_slice(b"0\r\n");
        for (name, value) in trailers
            .iter()
            .filter(|(name, _)| super::body::may_be_trailer(name))
        {
            self.framing.extend_from_slice(name.as_str().as_bytes());
            self.framing.extend_from_slice(b": ");
            self.framing.extend_from_slice(value.as_bytes());
            self.framing.extend_from_slice(b"\r\n");
        }
        self.framing.extend_from_slice(b"\r\n");
    }
}
