//! Both bodies: back-pressure, size bounds, byte counts.

use super::record::Record;
use crate::upstream::balance::Picked;
use crate::upstream::body::{BodyError, UpstreamBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A request's body on its way to an endpoint.
pub struct RequestBody {
    inner: Incoming,
    received: u64,
    bytes_max: u64,
    stall: Option<Stall>,
}

/// HTTP/2 shares one socket among many bodies, so each has a timer of its own; HTTP/1 bodies have the socket's deadline.
struct Stall {
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
}

/// Why a request's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// It is larger than `limits.body_bytes_max`.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// Nothing came for too long.
    #[error("nothing came for {0:?}")]
    Timeout(Duration),
    /// The client broke off, or sent what is no body.
    #[error("client broke off")]
    Client(#[source] hyper::Error),
}

impl RequestBody {
    /// `bytes_max` of 0 is no bound; `stall` is for HTTP/2.
    pub fn new(inner: Incoming, bytes_max: u64, stall: Option<Duration>) -> Self {
        let stall = stall.map(|timeout| Stall {
            timeout,
            timer: Box::pin(tokio::time::sleep(timeout)),
        });
        Self {
            inner,
            received: 0,
            bytes_max,
            stall,
        }
    }

    /// Bytes so far.
    pub fn received(&self) -> u64 {
        self.received
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let Some(stall) = &mut this.stall else {
                    return Poll::Pending;
                };
                ready!(stall.timer.as_mut().poll(cx));
                return Poll::Ready(Some(Err(RequestBodyError::Timeout(stall.timeout))));
            }
        };
        if let Some(stall) = &mut this.stall {
            stall.timer.as_mut().reset(Instant::now() + stall.timeout);
        }
        let frame = match frame {
            None => return Poll::Ready(None),
            Some(frame) => frame.map_err(RequestBodyError::Client)?,
        };
        if let Some(data) = frame.data_ref() {
            this.received += data.len() as u64;
            if this.bytes_max != 0 && this.received > this.bytes_max {
                return Poll::Ready(Some(Err(RequestBodyError::TooLarge(this.bytes_max))));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response's body on its way to the client; the request is over when it is dropped.
pub struct ResponseBody {
    content: Content,
    record: Box<Record>,
    // Counted as in use until the response is over.
    _picked: Option<Picked>,
}

enum Content {
    Full(Bytes),
    Upstream(UpstreamBody),
}

impl ResponseBody {
    /// A body of our own.
    pub fn full(bytes: Bytes, record: Box<Record>) -> Self {
        Self {
            content: Content::Full(bytes),
            record,
            _picked: None,
        }
    }

    /// An endpoint's body.
    pub fn upstream(body: UpstreamBody, record: Box<Record>, picked: Option<Picked>) -> Self {
        Self {
            content: Content::Upstream(body),
            record,
            _picked: picked,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.content {
            Content::Full(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Content::Full(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Content::Upstream(body) => ready!(body.poll_next(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                this.record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64)
            }
            Some(Err(error)) => this.record.error = Some(error.to_string()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_empty(),
            Content::Upstream(body) => body.is_complete(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Upstream(body) if body.is_complete() => SizeHint::with_exact(0),
            Content::Upstream(body) => body
                .left()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if !self.is_end_stream() && self.record.error.is_none() {
            self.record.error = Some("client went away in the middle of the response".into());
        }
    }
}
