//! Bodies of a request that outlives its connection: what breaks off with that is not taken for all of it.

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

/// Dropped with the connection of a request, or with its answer.
#[derive(Debug, Default)]
pub(super) struct Connected {
    is_gone: Arc<AtomicBool>,
}

impl Connected {
    /// The body of a request.
    pub(super) fn body(&self, body: Body) -> Body {
        Body::new(Whole {
            body,
            is_gone: Arc::clone(&self.is_gone),
        })
    }

    /// The body of its answer, which may be made while that of the request is read.
    pub(super) fn until_answered(self, body: Body) -> Body {
        Body::new(Held {
            body,
            _connected: self,
        })
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.is_gone.store(true, Relaxed);
    }
}

/// A body that ends well only where it was sent to its end: with its connection, hyper drops one that is half here as if that
/// were all of it.
struct Whole {
    body: Body,
    is_gone: Arc<AtomicBool>,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(frame) => Some(frame.map_err(Into::into)),
            // All of a known length is all, whoever is gone.
            None if self.body.is_end_stream() || !self.is_gone.load(Relaxed) => None,
            None => Some(Err("it broke off".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, which is dropped with its connection.
struct Held {
    body: Body,
    _connected: Connected,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::handed::Handed;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn what_breaks_off_with_its_connection_is_not_whole() {
        let connected = Connected::default();
        let sent = || {
            let (sender, chunks) = mpsc::channel(1);
            sender.try_send(Bytes::from("half")).unwrap();
            connected.body(Body::new(Handed(chunks)))
        };
        let (whole, half) = (sent(), sent());
        let known = connected.body(Body::from("all"));
        assert_eq!(whole.collect().await.unwrap().to_bytes(), "half");
        drop(connected.until_answered(Body::empty()));
        let error = half.collect().await.unwrap_err().to_string();
        assert!(error.contains("broke off"), "{error}");
        assert_eq!(known.collect().await.unwrap().to_bytes(), "all");
    }
}
