//! Progress of what takes over a second, on a terminal only: an upload with its bytes, things done of many, or a wait.

use super::output;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::convert::Infallible;
use std::future::Future;
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// What takes less is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);
const REDRAW: Duration = Duration::from_millis(100);
const COUNTED: &str = "{spinner} {bar:30} {pos}/{len}  {elapsed}";
const ROWS: &str = "{spinner} {bar:30} {bytes}/{total_bytes}  {msg}  {elapsed}";
const ROWS_OF_UNKNOWN: &str = "{spinner} {bytes}  {msg}  {elapsed}";
const CHUNK_BYTES: usize = 64 << 10;

/// A request body sent in chunks that counts what was sent.
pub(crate) struct Upload {
    rest: Bytes,
    sent: Arc<AtomicU64>,
}

impl Upload {
    /// A body of these bytes.
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        Self {
            rest: bytes.into(),
            sent: Arc::default(),
        }
    }

    /// How many bytes were handed to the connection so far.
    pub(crate) fn sent(&self) -> Arc<AtomicU64> {
        self.sent.clone()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(CHUNK_BYTES);
        let chunk = self.rest.split_to(length);
        self.sent.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Waits for `work`, showing how far the upload is and then `after`, once it has taken over a second.
pub(crate) async fn watch<F: Future>(
    total: u64,
    sent: Arc<AtomicU64>,
    after: &'static str,
    work: F,
) -> F::Output {
    let mut work = std::pin::pin!(work);
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    if let Ok(output) = tokio::time::timeout(PATIENCE, &mut work).await {
        return output;
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style(
        "{spinner} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}",
    ));
    let mut redraw = tokio::time::interval(REDRAW);
    let mut uploading = true;
    let output = loop {
        tokio::select! {
            output = &mut work => break output,
            _ = redraw.tick() => {
                let position = sent.load(Ordering::Relaxed);
                if uploading && position >= total {
                    uploading = false;
                    bar.set_style(style("{spinner} {msg}  {elapsed}"));
                    bar.set_message(after);
                }
                bar.set_position(position);
                bar.tick();
            }
        }
    };
    bar.finish_and_clear();
    output
}

/// How far rows are that are sent from a file.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Bytes of all, if that is known.
    total: Option<u64>,
    bytes: AtomicU64,
    rows: AtomicU64,
    applied: AtomicU64,
    is_whole: AtomicBool,
}

impl Sent {
    /// Nothing of so much is sent.
    pub(crate) fn of(total: Option<u64>) -> Self {
        Self {
            total,
            ..Self::default()
        }
    }

    /// This was handed to the connection.
    pub(crate) fn add(&self, chunk: &[u8]) {
        let rows = memchr::memchr_iter(b'\n', chunk).count();
        self.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Nothing follows what was handed to the connection.
    pub(crate) fn end(&self) {
        self.is_whole.store(true, Ordering::Relaxed);
    }

    /// Whether nothing follows: before that, what is applied whole is not applied.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Relaxed)
    }

    /// So many rows are written.
    pub(crate) fn applied(&self, rows: u64) {
        self.applied.store(rows, Ordering::Relaxed);
    }

    /// Rows that are known to be written.
    pub(crate) fn written(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    fn told(&self, after: &str) -> String {
        let sent = format!("{} rows sent", output::count(self.rows()));
        match self.applied.load(Ordering::Relaxed) {
            0 if self.total == Some(self.bytes()) => format!("{sent}, {after}"),
            0 => sent,
            rows => format!("{sent}, {} written", output::count(rows)),
        }
    }
}

/// Waits for `work`, showing how far the rows are and then `after`, once it has taken over a second.
pub(crate) async fn watch_rows<F: Future>(sent: &Sent, after: &str, work: F) -> F::Output {
    let mut work = std::pin::pin!(work);
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    if let Ok(output) = tokio::time::timeout(PATIENCE, &mut work).await {
        return output;
    }
    let bar = ProgressBar::with_draw_target(sent.total, ProgressDrawTarget::stderr());
    bar.set_style(style(match sent.total {
        Some(_) => ROWS,
        None => ROWS_OF_UNKNOWN,
    }));
    let mut redraw = tokio::time::interval(REDRAW);
    let output = loop {
        tokio::select! {
            output = &mut work => break output,
            _ = redraw.tick() => {
                bar.set_position(sent.bytes());
                bar.set_message(sent.told(after));
                bar.tick();
            }
        }
    };
    bar.finish_and_clear();
    output
}

/// Things done of many; hidden where there is no terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// None of `total` is done.
    pub(crate) fn new(total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        bar.set_style(style(COUNTED));
        Self(bar)
    }

    /// So many are done.
    pub(crate) fn at(&self, done: u64) {
        self.0.set_position(done);
        self.0.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant that parses")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn an_upload_sends_every_byte_in_chunks_and_counts_them() {
        let data: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|i| i as u8).collect();
        let mut upload = Upload::new(data.clone());
        let sent = upload.sent();
        assert_eq!(upload.size_hint().exact(), Some(data.len() as u64));
        let first = upload.frame().await.expect("a frame").expect("infallible");
        assert_eq!(first.data_ref().map(Bytes::len), Some(CHUNK_BYTES));
        assert_eq!(sent.load(Ordering::Relaxed), CHUNK_BYTES as u64);
        let rest = upload.collect().await.expect("infallible").to_bytes();
        assert_eq!(&data[CHUNK_BYTES..], &rest[..]);
        assert_eq!(sent.load(Ordering::Relaxed), data.len() as u64);
    }

    #[test]
    fn the_templates_parse() {
        style("{spinner} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}");
        style("{spinner} {msg}  {elapsed}");
        style(COUNTED);
        style(ROWS);
        style(ROWS_OF_UNKNOWN);
    }

    #[test]
    fn rows_are_told_as_sent_then_as_written() {
        let sent = Sent::of(Some(8));
        sent.add(b"a 1\n");
        assert_eq!(sent.told("writing"), "1 rows sent");
        sent.add(b"b 2\n");
        assert_eq!(sent.told("writing"), "2 rows sent, writing");
        sent.applied(1);
        assert_eq!(sent.told("writing"), "2 rows sent, 1 written");
    }

    #[tokio::test]
    async fn work_that_ends_at_once_gives_its_output() {
        assert_eq!(watch(0, Arc::default(), "", async { 7 }).await, 7);
    }
}
