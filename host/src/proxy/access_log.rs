//! One line per request, written last, whatever happened.
//!
//! Workers gather lines and hand them over in batches, at least every [`TICK`](super::TICK); one thread writes them. When
//! it falls behind, batches are dropped and counted: a slow reader of the log never stalls traffic.

use crate::log_file::LogFile;
use crate::metrics::Counters;
use crate::upstream::address::Address;
use jiff::Timestamp;
use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Where access lines go.
    pub access: Sink,
    /// What the process says on standard error, as `tracing` filters it; `info` by default.
    pub level: Option<String>,
    /// A file that each change through the admin API, or attempt at one, adds a line to.
    pub audit: Option<PathBuf>,
}

/// Where access lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sink {
    /// Nowhere.
    Off,
    /// Standard output.
    #[default]
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// Batches that may wait for the writer.
const BATCHES_MAX: usize = 64;
/// A batch is handed over when it is this large, in bytes.
const BATCH_BYTES: usize = 64 << 10;

/// Where workers send their batches.
pub type Batches = SyncSender<Vec<u8>>;

/// Opens the sink and starts its writer, which ends when every sender is gone. None if access lines go nowhere.
///
/// # Errors
/// If the file cannot be opened: the message names it.
pub fn start(sink: &Sink) -> io::Result<Option<(Batches, std::thread::JoinHandle<()>)>> {
    let out: Box<dyn Write + Send> = match sink {
        Sink::Off => return Ok(None),
        Sink::Stdout => Box::new(io::stdout()),
        Sink::File(path) => {
            let named = |e: io::Error| {
                io::Error::new(
                    e.kind(),
                    format!("log.access: cannot open {}: {e}", path.display()),
                )
            };
            Box::new(LogFile::open(path, 0o666).map_err(named)?)
        }
    };
    let (sender, receiver) = sync_channel(BATCHES_MAX);
    let thread = std::thread::Builder::new()
        .name("access-log".into())
        .spawn(move || write(&receiver, out))?;
    Ok(Some((sender, thread)))
}

fn write(batches: &Receiver<Vec<u8>>, mut out: Box<dyn Write + Send>) {
    let mut failed = false;
    for batch in batches {
        match out.write_all(&batch).and_then(|()| out.flush()) {
            Ok(()) => failed = false,
            // Once per outage: a full disk must not fill the other log too.
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::error!(%error, "access log cannot be written")
            }
            Err(_) => {}
        }
    }
}

/// One worker's lines.
pub struct AccessLog {
    batch: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    batches: Option<Batches>,
    counters: Arc<Counters>,
    worker: usize,
    clock: Clock,
}

/// Wall time from the monotonic clock, so that a request reads one clock; formatted once a second.
struct Clock {
    started: Instant,
    started_at: Timestamp,
    second: Cell<i64>,
    text: RefCell<String>,
}

impl Clock {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            started_at: Timestamp::now(),
            second: Cell::new(i64::MIN),
            text: RefCell::default(),
        }
    }

    /// Appends RFC 3339 with milliseconds.
    fn write(&self, at: Instant, out: &mut Vec<u8>) {
        let now = self.started_at.as_millisecond()
            + at.saturating_duration_since(self.started).as_millis() as i64;
        let second = now.div_euclid(1000);
        if self.second.replace(second) != second {
            let time = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
            *self.text.borrow_mut() = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        out.extend_from_slice(self.text.borrow().as_bytes());
        let millis = now.rem_euclid(1000) as u16;
        out.extend_from_slice(&[
            b'.',
            digit(millis / 100),
            digit(millis / 10 % 10),
            digit(millis % 10),
            b'Z',
        ]);
    }
}

fn digit(value: u16) -> u8 {
    b'0' + value as u8
}

impl AccessLog {
    /// Lines of one worker; `batches` from [`start`].
    pub fn new(batches: Option<Batches>, counters: Arc<Counters>, worker: usize) -> Self {
        Self {
            batch: RefCell::default(),
            lines: Cell::new(0),
            batches,
            counters,
            worker,
            clock: Clock::new(),
        }
    }

    /// Appends one line that begins with time and kind.
    pub fn line(&self, kind: &str, at: Instant, fields: impl FnOnce(&mut Fields<'_>)) {
        if self.batches.is_none() {
            return;
        }
        let mut batch = self.batch.borrow_mut();
        batch.extend_from_slice(b"{\"time\":\"");
        self.clock.write(at, &mut batch);
        batch.extend_from_slice(b"\",\"kind\":\"");
        batch.extend_from_slice(kind.as_bytes());
        batch.push(b'"');
        fields(&mut Fields(&mut batch));
        batch.extend_from_slice(b"}\n");
        self.lines.set(self.lines.get() + 1);
        if batch.len() >= BATCH_BYTES {
            drop(batch);
            self.flush();
        }
    }

    /// Hands the batch over, or drops it if the writer is behind.
    pub fn flush(&self) {
        let Some(batches) = &self.batches else { return };
        let mut batch = self.batch.borrow_mut();
        let lines = self.lines.take();
        if lines == 0 {
            return;
        }
        let capacity = batch.len().min(BATCH_BYTES) + 1024;
        let full = std::mem::replace(&mut *batch, Vec::with_capacity(capacity));
        if batches.try_send(full).is_err() {
            self.counters.workers[self.worker]
                .log_lines_dropped
                .fetch_add(lines, Relaxed);
        }
    }
}

/// Fields that many lines have in common, written once.
pub struct Prepared(Box<[u8]>);

impl Prepared {
    /// Writes them.
    pub fn new(fields: impl FnOnce(&mut Fields<'_>)) -> Self {
        let mut written = Vec::new();
        fields(&mut Fields(&mut written));
        Self(written.into())
    }
}

/// Appends fields to a line.
pub struct Fields<'a>(&'a mut Vec<u8>);

// Inlined, so that names and quotes become a few moves of constants: a line has some twenty of them.
impl Fields<'_> {
    #[inline(always)]
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// What was written before the request came.
    #[inline(always)]
    pub fn prepared(&mut self, fields: &Prepared) {
        self.0.extend_from_slice(&fields.0);
    }

    /// A number.
    #[inline(always)]
    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.0
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// A text, escaped.
    #[inline(always)]
    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push(b'"');
        escape(self.0, value);
        self.0.push(b'"');
    }

    /// A text that needs no escaping.
    #[inline(always)]
    pub fn plain(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    /// A text that needs no escaping, and a number right after it.
    #[inline(always)]
    pub fn numbered(&mut self, name: &str, value: &str, number: u64) {
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0
            .extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.0.push(b'"');
    }

    /// An endpoint's address.
    pub fn endpoint(&mut self, name: &str, value: &Address) {
        match value {
            Address::Tcp(address) => self.address(name, *address),
            Address::Unix(_) => self.text(name, &value.to_string()),
        }
    }

    /// An address with its port.
    pub fn address(&mut self, name: &str, value: SocketAddr) {
        self.name(name);
        self.0.push(b'"');
        match value.ip() {
            IpAddr::V4(ip) => {
                let mut number = itoa::Buffer::new();
                for (index, octet) in ip.octets().into_iter().enumerate() {
                    self.0.extend_from_slice(number.format(octet).as_bytes());
                    self.0.push(if index == 3 { b':' } else { b'.' });
                }
                self.0
                    .extend_from_slice(number.format(value.port()).as_bytes());
            }
            IpAddr::V6(_) => write!(self.0, "{value}").expect("writing to memory"),
        }
        self.0.push(b'"');
    }
}

/// JSON's escapes, and those of terminals: control characters never reach the log raw.
fn escape(out: &mut Vec<u8>, text: &str) {
    let plain = |b: u8| (0x20..0x7f).contains(&b) & (b != b'"') & (b != b'\\');
    // Without a way out, so that the compiler tests many bytes at once.
    if text.bytes().fold(true, |all, byte| all & plain(byte)) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            c if c.is_control() => write!(out, "\\u{:04x}", c as u32).expect("writing to memory"),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::WorkerCounters;

    fn counters() -> Arc<Counters> {
        Arc::new(Counters {
            workers: Box::new([WorkerCounters::default()]),
        })
    }

    #[test]
    fn a_line_is_json_whatever_is_in_it() {
        let (sender, receiver) = sync_channel(1);
        let log = AccessLog::new(Some(sender), counters(), 0);
        log.line("request", Instant::now(), |line| {
            line.number("n", 7);
            line.text("path", "/\"\\\n\u{1b}é\u{7f}");
            line.address("v4", "127.0.0.1:80".parse().expect("an address"));
            line.address("v6", "[::1]:80".parse().expect("an address"));
        });
        log.flush();
        let line = String::from_utf8(receiver.recv().expect("a batch")).expect("text");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["path"], "/\"\\\n\u{1b}é\u{7f}");
        assert_eq!(
            (&value["n"], &value["v4"], &value["v6"]),
            (&7.into(), &"127.0.0.1:80".into(), &"[::1]:80".into())
        );
        assert!(
            !line.trim_end().bytes().any(|b| b < 0x20 || b == 0x7f),
            "{line:?}"
        );
        value["time"]
            .as_str()
            .expect("a time")
            .parse::<Timestamp>()
            .expect("RFC 3339");
    }

    #[test]
    fn a_writer_that_is_behind_costs_lines_and_nothing_else() {
        let (sender, receiver) = sync_channel(1);
        let counters = counters();
        let log = AccessLog::new(Some(sender), counters.clone(), 0);
        for _ in 0..3 {
            log.line("request", Instant::now(), |_| {});
            log.line("request", Instant::now(), |_| {});
            log.flush();
        }
        assert_eq!(receiver.try_iter().count(), 1);
        assert_eq!(counters.workers[0].log_lines_dropped.load(Relaxed), 4);
    }
}
