//! One line per request, written last, whatever happened.

use std::path::PathBuf;

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Where access lines go.
    pub access: Sink,
    /// What the process says on standard error, as `tracing` filters it; `info` by default.
    pub level: Option<String>,
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
