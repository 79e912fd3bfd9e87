//! `wasi:logging`: lines of a plugin into `tracing`, so many a second, the rest counted.

use super::HostState;
use super::bindings::wasi::logging::logging::{Host, Level};
use crate::plugin::generation::Sandbox;
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest message that is logged, in bytes; the rest of it is cut.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Longest context that is logged, in bytes.
const CONTEXT_BYTES_MAX: usize = 256;

/// Lets so many lines a second through: the second in the high half, lines in the low half.
#[derive(Debug, Default)]
pub(in crate::plugin) struct LogGate(AtomicU64);

impl LogGate {
    /// Whether another line may be logged in this second.
    fn pass(&self, second: u32, lines_max: u32) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                let (current, lines) = ((state >> 32) as u32, state as u32);
                let lines = if current == second { lines } else { 0 };
                (lines < lines_max).then(|| u64::from(second) << 32 | u64::from(lines + 1))
            })
            .is_ok()
    }
}

impl Host for HostState {
    fn log(&mut self, level: Level, context: String, message: String) -> wasmtime::Result<()> {
        log(&self.sandbox, self.worker, level, &context, &message);
        Ok(())
    }
}

/// Logs a line of a plugin, or counts it as dropped.
pub(super) fn log(sandbox: &Sandbox, worker: usize, level: Level, context: &str, message: &str) {
    let gates = &sandbox.log_gates;
    let gate = &gates[worker % gates.len()];
    // Wraps after 136 years of running.
    let second = sandbox.started.elapsed().as_secs() as u32;
    if !gate.pass(second, sandbox.config.limits.log_lines_per_second) {
        let stats = &sandbox.stats[worker % sandbox.stats.len()];
        stats.log_dropped.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let plugin = &*sandbox.label.plugin;
    let version = sandbox.label.version();
    let context = printable(context, CONTEXT_BYTES_MAX);
    let message = printable(message, MESSAGE_BYTES_MAX);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(target: "throwbar::guest", plugin, version, context = &*context, "{message}")
        };
    }
    match level {
        Level::Trace => line!(trace),
        Level::Debug => line!(debug),
        Level::Info => line!(info),
        Level::Warn => line!(warn),
        Level::Error | Level::Critical => line!(error),
    }
}

/// Text for a log: at most `bytes_max`, control characters escaped, so that a guest cannot write lines of its own.
pub(in crate::plugin) fn printable(text: &str, bytes_max: usize) -> Cow<'_, str> {
    let cut = &text[..text.floor_char_boundary(bytes_max)];
    if cut.chars().any(char::is_control) {
        let escaped = cut.chars().flat_map(|c| {
            let (escape, plain) = match c.is_control() {
                true => (Some(c.escape_default()), None),
                false => (None, Some(c)),
            };
            escape.into_iter().flatten().chain(plain)
        });
        return Cow::Owned(escaped.collect());
    }
    Cow::Borrowed(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_so_many_lines_of_each_second_through() {
        let gate = LogGate::default();
        let passed = |second| (0..5).filter(|_| gate.pass(second, 3)).count();
        assert_eq!(passed(0), 3);
        assert_eq!(passed(1), 3);
        assert_eq!(passed(1), 0);
        assert_eq!(passed(9), 3);
    }

    #[test]
    fn a_gate_of_zero_lines_is_shut() {
        assert!(!LogGate::default().pass(0, 0));
    }

    #[test]
    fn messages_are_cut_and_control_characters_escaped() {
        assert_eq!(printable("plain ü", 4096), "plain ü");
        assert_eq!(printable("a\r\nb\u{1b}[0m", 4096), "a\\r\\nb\\u{1b}[0m");
        assert_eq!(printable("üüü", 3), "ü");
    }
}
