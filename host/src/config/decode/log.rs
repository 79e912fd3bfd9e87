//! `[log]`: where access lines and changes go, and what the process says of itself.

use super::table::{self, Table, Walk};
use crate::config::diagnostic::{Finding, did_you_mean, one_of};
use crate::proxy::access_log;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Reads the table.
pub(super) fn log(mut table: Table<'_>, walk: &mut Walk<'_>) -> access_log::Config {
    let mut config = access_log::Config::default();
    if let Some(text) = table.text("access", walk) {
        let sources = walk.sources;
        let sink = text.read(walk, "\"stdout\", \"off\" or a path", |text| match text {
            "stdout" => Ok(access_log::Sink::Stdout),
            "off" => Ok(access_log::Sink::Off),
            path => table::path_buf(path, sources).map(access_log::Sink::File),
        });
        config.access = sink.unwrap_or_default();
    }
    if let Some(text) = table.text("audit", walk) {
        let sources = walk.sources;
        config.audit = text.read(walk, "a file", |text| table::path_buf(text, sources));
    }
    if let Some(text) = table.text("level", walk) {
        match filter(&text.value) {
            Ok(_) => config.level = Some(text.value),
            Err(bad) => {
                let label = "no log level".to_owned();
                let finding = Finding::new(&text.path, bad.message, label).help(bad.help);
                walk.report(text.span, finding);
            }
        }
    }
    table.finish(walk);
    config
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadFilter {
    /// What is wrong, and what was expected.
    pub(crate) message: String,
    /// A word that may be meant.
    pub(crate) help: Option<String>,
}

/// Reads a filter. A word alone has to be a level: `tracing` would take another one for a target that nothing has, and say
/// nothing at all.
///
/// # Errors
/// What is unknown, and what was expected.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, BadFilter> {
    // Fields of spans may have commas and equals signs of their own.
    if !text.contains(['[', '{']) {
        for part in text.split(',').map(str::trim) {
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
            if level.is_empty() || level.parse::<LevelFilter>().is_err() {
                return Err(BadFilter {
                    message: format!(
                        "unknown level {:?}: expected {}, or target=level",
                        super::shorten(level),
                        LEVELS.join(", ")
                    ),
                    help: did_you_mean(level, LEVELS),
                });
            }
        }
    }
    EnvFilter::builder().parse(text).map_err(|error| BadFilter {
        message: format!(
            "{:?} is no filter ({error}): expected {} or target=level",
            super::shorten(text),
            one_of(LEVELS)
        ),
        help: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_wherever_it_stands() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,throwbar_host::plugin=debug",
            "throwbar_host=trace, warn",
            "[request]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for (bad, word) in [
            ("loud", "loud"),
            ("info,loud", "loud"),
            ("throwbar_host=loud", "loud"),
            ("", ""),
            ("info,", ""),
            ("a=b=c", "c"),
        ] {
            let message = filter(bad).expect_err("refused").message;
            let expected = format!(
                "unknown level {word:?}: expected off, error, warn, info, debug, trace, or target=level"
            );
            assert_eq!(message, expected, "{bad}");
        }
        let help = filter("inof").expect_err("refused").help;
        assert!(help.is_some_and(|help| help.contains("info")));
    }
}
