//! A response body that another task or thread makes while the client takes it.

use axum::body::Bytes;
use http_body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Chunks as they are handed over; it ends when nobody can hand over more.
pub(super) struct Handed(pub(super) mpsc::Receiver<Bytes>);

impl http_body::Body for Handed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

/// What makes the chunks of a [`Worked`] body.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The same, and the work that makes them: it goes on while the body is taken, and ends with it.
pub(super) struct Worked {
    /// None once it is done.
    work: Option<Work>,
    chunks: Handed,
}

impl Worked {
    /// Work, and what it hands over.
    pub(super) fn new(work: Work, chunks: mpsc::Receiver<Bytes>) -> Self {
        Self {
            work: Some(work),
            chunks: Handed(chunks),
        }
    }
}

impl http_body::Body for Worked {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(work) = &mut self.work
            && work.as_mut().poll(cx).is_ready()
        {
            self.work = None;
        }
        Pin::new(&mut self.chunks).poll_frame(cx)
    }
}
