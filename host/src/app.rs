//! Composition root: builds leaves first, starts, stops in reverse; applies new configs.

use crate::config::Config;
use std::sync::Arc;

/// What the admin API may ask of the running process.
#[derive(Clone)]
pub struct Control {
    _private: Arc<()>,
}

/// The config that runs.
pub struct Running {
    /// Its text as given, if it came from a file or the admin API.
    pub text: Option<Arc<str>>,
    /// SHA-256 of the text (or of the flags), in hex: the ETag.
    pub digest: Arc<str>,
    /// The checked config.
    pub config: Config,
    /// Routes by name with their counters per worker, in order.
    pub routes: Vec<(Arc<str>, Arc<[crate::metrics::RouteCounters]>)>,
    /// Addresses bound, by listener name.
    pub bound: Vec<(String, std::net::SocketAddr)>,
}

/// What applying a config did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Applied {
    /// It is active for the next request.
    Changed,
    /// It is the running one.
    Unchanged,
    /// A dry run: it could be applied.
    Checked,
}

/// Why a config was not applied; the running one is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Problems of the text, each with its place.
    #[error("{} problem(s) in the config", .0.len())]
    Invalid(Vec<crate::config::diagnostic::Problem>),
    /// It would change what only a restart can: workers, data directory, admin address.
    #[error("{0}: needs a restart")]
    NeedsRestart(String),
    /// It is right in itself but cannot be put to work: a port in use, a plugin that does not load.
    #[error("{0}")]
    Failed(String),
}

impl Control {
    /// The config that runs.
    pub fn running(&self) -> Arc<Running> {
        unimplemented!()
    }

    /// Applies a config given as TOML text, all or nothing, closing nothing.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn apply(&self, _text: &str, _dry_run: bool) -> Result<Applied, ApplyError> {
        unimplemented!()
    }

    /// Whether listeners are bound, plugins loaded, and no drain has begun; otherwise why not.
    pub fn ready(&self) -> Result<(), String> {
        unimplemented!()
    }

    /// Seconds since start.
    pub fn uptime_s(&self) -> u64 {
        unimplemented!()
    }
}
