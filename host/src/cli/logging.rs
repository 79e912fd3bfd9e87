//! The process's own log, on standard error: written by a thread of its own, so that traffic never waits for its reader.

use super::output::Style;
use super::{Ended, Exit};
use std::io::IsTerminal;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that may wait for the log's reader.
const LINES_MAX: usize = 8_192;

/// The log at work; what is left of it is written when this is dropped.
pub(super) struct Log {
    /// Counts the lines dropped because their reader was behind.
    pub(super) dropped: ErrorCounter,
    _writer: WorkerGuard,
}

/// Starts the log: for people on a terminal, as JSON elsewhere. What is logged is said by the option, else by
/// `$THROWBAR_LOG`, else by the config.
///
/// # Errors
/// If that is no filter; names where it came from.
pub(super) fn start(option: Option<String>, config: Option<&str>) -> anyhow::Result<Log> {
    let (filter, place) = match (option, std::env::var("THROWBAR_LOG"), config) {
        (Some(filter), _, _) => (filter, "--log-level"),
        (None, Ok(filter), _) if !filter.is_empty() => (filter, "THROWBAR_LOG"),
        (None, _, Some(filter)) => (filter.to_owned(), "log.level"),
        (None, _, None) => ("info".to_owned(), "the default"),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        Ended::error(
            Exit::Usage,
            format!("{place}: {filter:?}: {error}; write a level such as info, or target=level"),
        )
    })?;
    let terminal = std::io::stderr().is_terminal();
    let (lines, writer) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .thread_name("log")
        .finish(std::io::stderr());
    let log = Log {
        dropped: lines.error_counter(),
        _writer: writer,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .with_ansi(Style::stderr().is_on());
    let started = if terminal {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))?;
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_named_with_where_it_came_from() {
        for filter in ["foo=bar=baz", "foo=loud"] {
            let error = start(Some(filter.to_owned()), None).err().expect("refused");
            let text = error.to_string();
            assert!(text.starts_with("--log-level: "), "{text}");
            assert!(text.contains(filter) && text.contains("info"), "{text}");
            assert_eq!(text.matches("expected").count(), 1, "{text}");
            assert_eq!(super::super::exit_of(&error), Exit::Usage);
        }
    }
}
