//! The process's own log, on standard error: written by a thread of its own, so that traffic never waits for its reader.

use super::output::Style;
use super::{Ended, Exit};
use crate::audit::{self, AuditFile, Losses};
use crate::config::decode::log::filter;
use crate::proxy::access_log::Config;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait for the log's reader.
const LINES_MAX: usize = 8_192;

/// The log at work; what is left of it is written when this is dropped.
pub(super) struct Log {
    /// Counts the lines dropped because their reader was behind.
    pub(super) dropped: ErrorCounter,
    /// Lines of the audit log that could not be written.
    pub(super) audit_losses: Losses,
    _writer: WorkerGuard,
}

/// Starts the log: for people on a terminal, as JSON elsewhere. What is logged is said by the option, else by
/// `$THROWBAR_LOG`, else by the config. Changes through the admin API go to a file of their own, too, if the config names one.
///
/// # Errors
/// If that is no filter, or the file cannot be opened; names where it came from.
pub(super) fn start(option: Option<String>, config: &Config) -> anyhow::Result<Log> {
    let level = config.level.as_deref();
    let (text, place) = match (option, std::env::var("THROWBAR_LOG"), level) {
        (Some(filter), _, _) => (filter, "--log-level"),
        (None, Ok(filter), _) if !filter.is_empty() => (filter, "THROWBAR_LOG"),
        (None, _, Some(filter)) => (filter.to_owned(), "log.level"),
        (None, _, None) => ("info".to_owned(), "the default"),
    };
    let filter = filter(&text).map_err(|bad| {
        let help = bad.help.map(|help| format!(" ({help})"));
        let text = format!("{place}: {}{}", bad.message, help.unwrap_or_default());
        Ended::error(Exit::Usage, text)
    })?;
    let terminal = std::io::stderr().is_terminal();
    let (lines, writer) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .thread_name("log")
        .finish(std::io::stderr());
    let log = Log {
        dropped: lines.error_counter(),
        audit_losses: Losses::default(),
        _writer: writer,
    };
    let audit = config.audit.as_deref();
    let audit = audit.map(|path| audit_file(path, log.audit_losses.clone()));
    let audit = audit.transpose()?;
    // Whatever the level is, and whoever reads standard error: a line is written before the change is answered.
    let audit = audit.map(|file| {
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_target(false)
            .with_level(false)
            .with_writer(Mutex::new(file))
            .with_filter(Targets::new().with_target(audit::TARGET, tracing::Level::INFO))
    });
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(lines)
        .with_ansi(Style::stderr().is_on());
    let stderr = if terminal {
        stderr.with_target(false).boxed()
    } else {
        stderr.json().flatten_event(true).boxed()
    };
    tracing_subscriber::registry()
        .with(audit)
        .with(stderr.with_filter(filter))
        .try_init()
        .map_err(|error| anyhow::anyhow!("start logging: {error}"))?;
    Ok(log)
}

fn audit_file(path: &Path, losses: Losses) -> anyhow::Result<AuditFile> {
    AuditFile::open(path, losses)
        .map_err(|error| anyhow::anyhow!("log.audit: cannot open {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_named_with_where_it_came_from() {
        for filter in ["loud", "foo=bar=baz", "foo=loud"] {
            let error = start(Some(filter.to_owned()), &Config::default())
                .err()
                .expect("refused");
            let text = error.to_string();
            assert!(text.starts_with("--log-level: "), "{text}");
            assert!(
                text.contains("unknown level") && text.contains("info"),
                "{text}"
            );
            assert_eq!(text.matches("expected").count(), 1, "{text}");
            assert_eq!(super::super::exit_of(&error), Exit::Usage);
        }
    }
}
