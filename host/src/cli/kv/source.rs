//! A file to import, or standard input, read while it is sent.

use crate::admin::BYTE_ORDER_MARK;
use crate::cli::output;
use crate::cli::progress::Sent;
use crate::cli::{Ended, Exit};
use anyhow::Context;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::io::{self, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Polling, Poll, ready};
use tokio::sync::mpsc;

/// The longest import that is applied whole, and the longest file that has to be read before it is sent.
pub(super) const WHOLE_BYTES_MAX: u64 = 256 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks read before the connection takes them.
const CHUNKS_AHEAD: usize = 4;

/// A file, as far as it was read to find out what it is.
pub(super) struct Source {
    /// How messages name it.
    pub(super) name: String,
    head: Vec<u8>,
    rest: Box<dyn Read + Send>,
    /// The length of all of it, if it is a file.
    length: Option<u64>,
}

impl Source {
    /// Opens a file, or standard input if it is `-`.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn open(file: &Path) -> anyhow::Result<Self> {
        if file == Path::new("-") {
            let source = Self {
                name: "standard input".to_owned(),
                head: Vec::new(),
                rest: Box::new(io::stdin()),
                length: None,
            };
            return source.without_mark();
        }
        let name = file.display().to_string();
        let unread =
            |error: io::Error| Ended::error(Exit::ConfigInvalid, format!("{name}: {error}"));
        let open = std::fs::File::open(file).map_err(unread)?;
        let kind = open.metadata().map_err(unread)?;
        if kind.is_dir() {
            return Err(unread(io::Error::other("is a directory, expected a file")));
        }
        let source = Self {
            name,
            head: Vec::new(),
            rest: Box::new(open),
            length: kind.is_file().then_some(kind.len()),
        };
        source.without_mark()
    }

    /// It without a mark of its byte order: it is no part of what the file says.
    fn without_mark(mut self) -> anyhow::Result<Self> {
        let mut beginning = (&mut self.rest).take(BYTE_ORDER_MARK.len() as u64);
        let read = beginning.read_to_end(&mut self.head);
        read.with_context(|| self.name.clone())?;
        if self.head == BYTE_ORDER_MARK {
            self.head.clear();
            self.length = self
                .length
                .map(|length| length.saturating_sub(BYTE_ORDER_MARK.len() as u64));
        }
        Ok(self)
    }

    /// What was made of a file.
    pub(super) fn made(name: String, content: Vec<u8>) -> Self {
        Self {
            name,
            length: Some(content.len() as u64),
            head: content,
            rest: Box::new(io::empty()),
        }
    }

    /// Its beginning: as much as is needed to answer a question, or all there is.
    ///
    /// # Errors
    /// If it cannot be read, or is too long for an answer.
    pub(super) fn peek(&mut self, is_enough: impl Fn(&[u8]) -> bool) -> anyhow::Result<&[u8]> {
        let mut step = CHUNK_BYTES as u64;
        while !is_enough(&self.head) {
            let read = (&mut self.rest).take(step).read_to_end(&mut self.head);
            if read.with_context(|| self.name.clone())? == 0 {
                break;
            }
            let read = self.head.len() as u64;
            anyhow::ensure!(
                read <= WHOLE_BYTES_MAX,
                "{}: has more than {} before its first entry, or around all of them",
                self.name,
                output::size(WHOLE_BYTES_MAX)
            );
            step = read;
        }
        Ok(&self.head)
    }

    /// All of it.
    ///
    /// # Errors
    /// As for [`Self::peek`].
    pub(super) fn whole(mut self) -> anyhow::Result<Vec<u8>> {
        self.peek(|_| false)?;
        Ok(self.head)
    }

    /// Refuses what is longer than an import that is applied whole can be, which is the `most` of what.
    ///
    /// # Errors
    /// With the most.
    pub(super) fn check_length(&self, most: &str) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.length.is_none_or(|length| length <= WHOLE_BYTES_MAX),
            "{}: is larger than {}, {most}",
            self.name,
            output::size(WHOLE_BYTES_MAX)
        );
        Ok(())
    }

    /// It as the body of a request, and what is known of how far that is.
    pub(super) fn sent(self) -> (Upload, Arc<Sent>) {
        let (chunks, body) = mpsc::channel(CHUNKS_AHEAD);
        let sent = Arc::new(Sent::of(self.length));
        // Nobody asks for what has nothing.
        if self.length == Some(0) {
            sent.end();
        }
        let failed = Failed::default();
        // A thread, not a task: it may wait for standard input when the process ends.
        std::thread::spawn(move || {
            let mut rest = io::Cursor::new(self.head).chain(self.rest);
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = rest.read(&mut chunk).map(|length| {
                    chunk.truncate(length);
                    Bytes::from(chunk)
                });
                let is_last = read.as_ref().map_or(true, Bytes::is_empty);
                // Nobody takes it any more, or there is no more.
                if chunks.blocking_send(read).is_err() || is_last {
                    return;
                }
            }
        });
        let upload = Upload {
            chunks: body,
            left: self.length,
            sent: Arc::clone(&sent),
            failed,
        };
        (upload, sent)
    }
}

/// Why the file could not be read to its end.
#[derive(Clone, Default)]
pub(super) struct Failed(Arc<Mutex<Option<String>>>);

impl Failed {
    /// The reason, if it could not.
    pub(super) fn reason(&self) -> Option<String> {
        let reason = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone()
    }
}

/// A file as the body of a request. One that breaks off ends the request without an end of its body, so nothing of what
/// is to be applied whole is applied.
pub(super) struct Upload {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    /// What has yet to come, if that is known.
    left: Option<u64>,
    sent: Arc<Sent>,
    failed: Failed,
}

impl Upload {
    /// Where a failure to read is told.
    pub(super) fn failed(&self) -> Failed {
        self.failed.clone()
    }

    fn fail(&self, error: io::Error) -> io::Error {
        let mut reason = self.failed.0.lock().unwrap_or_else(PoisonError::into_inner);
        *reason = Some(error.to_string());
        error
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Polling<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == Some(0) {
            self.sent.end();
            return Poll::Ready(None);
        }
        let chunk = match ready!(self.chunks.poll_recv(cx)) {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Poll::Ready(Some(Err(self.fail(error)))),
            None => Bytes::new(),
        };
        let chunk = match self.left {
            None => chunk,
            Some(left) => {
                if chunk.is_empty() {
                    let error = io::Error::other("it got shorter while it was read");
                    return Poll::Ready(Some(Err(self.fail(error))));
                }
                // What was added meanwhile is not of this import.
                let length = usize::try_from(left).map_or(chunk.len(), |it| it.min(chunk.len()));
                self.left = Some(left - length as u64);
                chunk.slice(..length)
            }
        };
        if chunk.is_empty() {
            self.sent.end();
            return Poll::Ready(None);
        }
        // Of a known length, nobody asks for more.
        if self.left == Some(0) {
            self.sent.end();
        }
        self.sent.add(&chunk);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Write;

    fn source(text: &[u8]) -> (tempfile::NamedTempFile, Source) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text).expect("written");
        let source = Source::open(file.path()).expect("opened");
        (file, source)
    }

    #[tokio::test]
    async fn what_was_looked_at_is_sent_with_the_rest() {
        let text = "key value\n".repeat(50_000);
        let (_file, mut source) = source(text.as_bytes());
        let head = source.peek(|head| head.contains(&b'\n')).expect("read");
        assert!(head.len() < text.len(), "{}", head.len());
        let (upload, sent) = source.sent();
        assert_eq!(upload.size_hint().exact(), Some(text.len() as u64));
        let body = upload.collect().await.expect("read").to_bytes();
        assert!(body == text.as_bytes());
        assert_eq!((sent.bytes(), sent.rows()), (text.len() as u64, 50_000));
        assert!(sent.is_whole());
    }

    #[tokio::test]
    async fn a_mark_of_the_byte_order_is_neither_looked_at_nor_sent() {
        for (text, expected) in [("\u{feff}a b", "a b"), ("\u{feff}", ""), ("a", "a")] {
            let (_file, mut source) = source(text.as_bytes());
            let head = source.peek(|head| !head.is_empty()).expect("read");
            assert!(expected.as_bytes().starts_with(head), "{text:?}");
            let (upload, _) = source.sent();
            assert_eq!(upload.size_hint().exact(), Some(expected.len() as u64));
            let body = upload.collect().await.expect("read").to_bytes();
            assert_eq!(body, expected.as_bytes(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_file_with_nothing_in_it_is_whole_before_anybody_asks() {
        let (_file, source) = source(b"");
        let (upload, sent) = source.sent();
        assert_eq!(upload.size_hint().exact(), Some(0));
        assert!(sent.is_whole());
        assert_eq!(upload.collect().await.expect("read").to_bytes().len(), 0);
    }

    #[tokio::test]
    async fn a_file_that_got_shorter_is_no_whole_body() {
        let (file, source) = source(&[b'x'; 1000]);
        file.as_file().set_len(500).expect("cut");
        let (upload, sent) = source.sent();
        let failed = upload.failed();
        assert!(upload.collect().await.is_err());
        assert!(!sent.is_whole());
        let reason = failed.reason().expect("a reason");
        assert!(reason.contains("shorter"), "{reason}");
    }
}
