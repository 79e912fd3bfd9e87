//! What may be asked of the running process: its config, another config, whether it is ready.

use crate::admin::LimitedToken;
use crate::config::Config;
use crate::config::diagnostic::Problem;
use crate::listener;
use crate::metrics::RouteCounters;
use crate::plugin::{DeployError, PluginInfo, Plugins};
use crate::proxy::site::Site;
use crate::store::{BucketConfig, OpenError, Store};
use crate::worker::Workers;
use anyhow::Context;
use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::{Mutex, watch};

/// What the admin API may ask of the running process; clones share it.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    running: ArcSwap<Running>,
    /// Those of its config, told anew with each.
    tokens: watch::Sender<Vec<Arc<LimitedToken>>>,
    site: Arc<ArcSwap<Site>>,
    store: Store,
    plugins: Arc<Plugins>,
    workers: Workers,
    file: Option<PathBuf>,
    admin: Option<SocketAddr>,
    /// One config is applied at a time.
    applying: Mutex<()>,
    draining: AtomicBool,
    started: Instant,
}

/// What a [`Control`] is made of.
pub struct Parts {
    /// The config that runs.
    pub running: Running,
    /// What the workers serve.
    pub site: Arc<ArcSwap<Site>>,
    /// The store.
    pub store: Store,
    /// The plugins.
    pub plugins: Arc<Plugins>,
    /// The workers.
    pub workers: Workers,
    /// The file the config came from.
    pub file: Option<PathBuf>,
    /// The admin API's address, if it is a TCP one.
    pub admin: Option<SocketAddr>,
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
    pub routes: Vec<(Arc<str>, Arc<[RouteCounters]>)>,
    /// Addresses bound, by listener name.
    pub bound: Vec<(String, SocketAddr)>,
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

impl Applied {
    /// As logs and the admin API say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Checked => "checked",
        }
    }
}

/// Why a config was not applied; the running one is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Problems of the text, each with its place.
    #[error("{} problem(s) in the config", .0.len())]
    Invalid(Vec<Problem>),
    /// It would change what only a restart can: workers, data directory, how it is synced, admin address, access log.
    #[error("{0}: needs a restart")]
    NeedsRestart(String),
    /// It is right in itself but cannot be put to work: a port in use, a plugin that does not load.
    #[error("{0}")]
    Failed(String),
}

impl Control {
    /// Of a process that was just started.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            running,
            site,
            store,
            plugins,
            workers,
            file,
            admin,
        } = parts;
        let tokens = watch::Sender::new(running.config.admin.tokens.clone());
        let running = ArcSwap::from_pointee(running);
        let (applying, draining, started) =
            (Mutex::new(()), AtomicBool::new(false), Instant::now());
        let inner = Inner {
            running,
            tokens,
            site,
            store,
            plugins,
            workers,
            file,
            admin,
            applying,
            draining,
            started,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Stops what is new and finishes what is old, for at most `grace`; then ends the workers.
    pub(crate) async fn drain(&self, grace: std::time::Duration) {
        self.inner.draining.store(true, Relaxed);
        self.inner.workers.drain(grace).await;
        self.inner.workers.stop().await;
    }

    /// Ends what the workers used: after [`Control::drain`].
    pub(crate) fn close(&self) {
        self.inner.plugins.close();
        self.inner.store.close();
    }

    /// The config that runs.
    pub fn running(&self) -> Arc<Running> {
        self.inner.running.load_full()
    }

    /// The limited tokens of the config that runs, whichever that is.
    pub(crate) fn tokens(&self) -> watch::Receiver<Vec<Arc<LimitedToken>>> {
        self.inner.tokens.subscribe()
    }

    /// Applies a config given as TOML text, all or nothing, closing nothing.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn apply(&self, text: &str, dry_run: bool) -> Result<Applied, ApplyError> {
        let inner = &self.inner;
        let _one = inner.applying.lock().await;
        let running = self.running();
        if running.text.as_deref() == Some(text) {
            return Ok(Applied::Unchanged);
        }
        let config = Config::parse(text, inner.file.as_deref()).map_err(ApplyError::Invalid)?;
        if let Some(what) = needs_restart(&running.config, &config) {
            return Err(ApplyError::NeedsRestart(what.into()));
        }
        let failed = |error: anyhow::Error| ApplyError::Failed(format!("{error:#}"));
        let kept = |listener: &&listener::Config| running.config.listeners.contains(listener);
        let mut opened = Vec::new();
        for listener in config.listeners.iter().filter(|listener| !kept(listener)) {
            opened.push((
                listener.clone(),
                bind(listener, config.workers).map_err(failed)?,
            ));
        }
        let refused = |(name, error): (String, DeployError)| {
            failed(anyhow::Error::new(error).context(format!("plugin {name:?}")))
        };
        if dry_run {
            let store = self.store_to_try(&config).map_err(|e| failed(e.into()))?;
            let tried = inner.plugins.check(&config.plugins, &store).await;
            return tried.map(|()| Applied::Checked).map_err(refused);
        }
        inner
            .store
            .reconfigure(&config.store_buckets())
            .await
            .map_err(|e| failed(e.into()))?;
        if let Err(error) = inner.plugins.apply(&config.plugins).await {
            // No entry is lost by this: what a config leaves out is hidden, not dropped.
            let undone = inner
                .store
                .reconfigure(&running.config.store_buckets())
                .await;
            if let Err(error) = undone {
                tracing::error!(%error, "the buckets of the running config are not back");
            }
            return Err(refused(error));
        }
        let is_kept = |name: &str| {
            config
                .listeners
                .iter()
                .filter(kept)
                .any(|listener| listener.name == name)
        };
        let mut bound: Vec<_> = running
            .bound
            .iter()
            .filter(|(name, _)| is_kept(name))
            .cloned()
            .collect();
        bound.extend(addresses(&opened));
        let slot = |name: &str| inner.plugins.slot(name);
        let site = Site::new(
            &config,
            own(&bound, inner.admin),
            slot,
            Some(&inner.site.load()),
        )
        .map_err(ApplyError::Failed)?;
        let closed: Vec<String> = running
            .bound
            .iter()
            .filter(|(name, _)| !is_kept(name))
            .map(|(name, _)| name.clone())
            .collect();
        let next = Running::new(config, Some(text.into()), bound, &site);
        inner.site.store(Arc::new(site));
        let tokens = next.config.admin.tokens.clone();
        inner.running.store(Arc::new(next));
        inner.tokens.send_replace(tokens);
        for name in closed {
            inner.workers.unlisten(&name).await;
        }
        for (listener, sockets) in opened {
            inner.workers.listen(&listener, sockets).await;
        }
        Ok(Applied::Changed)
    }

    /// What the plugins of a config are tried on: the running store if it has all buckets, else empty ones.
    fn store_to_try(&self, config: &Config) -> Result<Store, OpenError> {
        let snapshot = self.inner.store.snapshot();
        let known = |bucket: &BucketConfig| snapshot.bucket_id(&bucket.name).is_some();
        match config.buckets.iter().all(known) {
            true => Ok(self.inner.store.clone()),
            false => Store::scratch(&config.buckets),
        }
    }

    /// Reads the config's file again and applies it.
    pub(crate) async fn reload(&self) {
        let Some(file) = &self.inner.file else {
            return tracing::warn!("SIGHUP: started without a config file, nothing to reload");
        };
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                return tracing::error!(%error, file = %file.display(), "SIGHUP: cannot read the config");
            }
        };
        match self.apply(&text, false).await {
            Ok(applied) => {
                tracing::info!(applied = applied.as_str(), file = %file.display(), "SIGHUP: config read")
            }
            Err(ApplyError::Invalid(problems)) => {
                let name = file.display().to_string();
                let shown = crate::config::diagnostic::render(&problems, &text, &name, false);
                tracing::error!("SIGHUP: config refused, the running one stays\n{shown}");
            }
            Err(error) => {
                tracing::error!(error = %error, "SIGHUP: config refused, the running one stays")
            }
        }
    }

    /// Whether listeners are bound, plugins loaded, and no drain has begun; otherwise why not.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn ready(&self) -> Result<(), String> {
        if self.inner.draining.load(Relaxed) {
            return Err("draining".into());
        }
        let waiting: Vec<String> = self
            .inner
            .plugins
            .list()
            .into_iter()
            .filter(|p| p.active.is_none())
            .map(|p| p.name)
            .collect();
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(format!("plugins without a version: {}", waiting.join(", ")))
        }
    }

    /// The plugins, by name.
    pub fn plugins(&self) -> Vec<PluginInfo> {
        self.inner.plugins.list()
    }

    /// How many keys a bucket has; none if there is no such bucket.
    pub fn keys(&self, bucket: &str) -> Option<u64> {
        let snapshot = self.inner.store.snapshot();
        let id = snapshot.bucket_id(bucket)?;
        Some(snapshot.bucket(id)?.len())
    }

    /// Seconds since start.
    pub fn uptime_s(&self) -> u64 {
        self.inner.started.elapsed().as_secs()
    }
}

/// What of a config only a restart can change.
fn needs_restart(running: &Config, next: &Config) -> Option<&'static str> {
    // Limited tokens are told anew with each config.
    let without_tokens = |config: &Config| crate::admin::Config {
        tokens: Vec::new(),
        ..config.admin.clone()
    };
    let admin_changed = without_tokens(running) != without_tokens(next);
    [
        (running.workers != next.workers, "workers"),
        (running.data != next.data, "data"),
        (running.sync != next.sync, "store.embedded"),
        (admin_changed, "admin"),
        (running.log != next.log, "log"),
        (running.fleet != next.fleet, "fleet"),
        (running.store != next.store, "store"),
    ]
    .into_iter()
    .find_map(|(changed, what)| changed.then_some(what))
}

impl Running {
    pub(crate) fn new(
        config: Config,
        text: Option<String>,
        bound: Vec<(String, SocketAddr)>,
        site: &Site,
    ) -> Self {
        let digest = match &text {
            Some(text) => sha256(text.as_bytes()),
            None => sha256(format!("{config:?}").as_bytes()),
        };
        let routes = site
            .routes
            .iter()
            .map(|route| (route.name.clone(), route.counters.clone()))
            .collect();
        Self {
            text: text.map(Into::into),
            digest: digest.into(),
            config,
            routes,
            bound,
        }
    }
}

/// A socket for each worker.
pub(crate) fn bind(config: &listener::Config, workers: usize) -> anyhow::Result<Vec<TcpListener>> {
    let bind_all = || -> std::io::Result<Vec<TcpListener>> {
        listener::check_free(config.address)?;
        let first = listener::bind(config.address)?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        for _ in 1..workers {
            sockets.push(listener::bind(address)?);
        }
        Ok(sockets)
    };
    bind_all().with_context(|| {
        format!(
            "listener {:?}: cannot listen on {}",
            config.name, config.address
        )
    })
}

pub(crate) fn addresses(
    listeners: &[(listener::Config, Vec<TcpListener>)],
) -> Vec<(String, SocketAddr)> {
    let address =
        |sockets: &[TcpListener]| sockets.first().and_then(|socket| socket.local_addr().ok());
    listeners
        .iter()
        .filter_map(|(config, sockets)| Some((config.name.clone(), address(sockets)?)))
        .collect()
}

/// Where we listen ourselves: never to be dialled.
pub(crate) fn own(bound: &[(String, SocketAddr)], admin: Option<SocketAddr>) -> Vec<SocketAddr> {
    bound
        .iter()
        .map(|(_, address)| *address)
        .chain(admin)
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to memory");
            hex
        })
}
