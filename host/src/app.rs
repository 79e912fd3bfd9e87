//! Composition root: builds leaves first, starts, stops in reverse; applies new configs.

use crate::admin;
use crate::config::Config;
use crate::config::diagnostic::Problem;
use crate::listener;
use crate::metrics::{Counters, RouteCounters, WorkerCounters};
use crate::plugin::{Crew, Plugins, PluginsOptions};
use crate::proxy::access_log;
use crate::proxy::site::Site;
use crate::store::{BucketId, Expect, Store, Write, WriteBatch};
use crate::worker::{Shared, Threads, Workers};
use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};

/// What to start.
pub struct Start {
    /// The checked config.
    pub config: Config,
    /// Its text, if it has one.
    pub text: Option<String>,
    /// The file it came from: read again on SIGHUP.
    pub file: Option<PathBuf>,
    /// Entries written before the first request.
    pub seed: Vec<Seed>,
}

/// An entry written at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The bucket's name.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// What the admin API may ask of the running process; clones share it.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    running: ArcSwap<Running>,
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

/// Why a config was not applied; the running one is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Problems of the text, each with its place.
    #[error("{} problem(s) in the config", .0.len())]
    Invalid(Vec<Problem>),
    /// It would change what only a restart can: workers, data directory, admin address, access log.
    #[error("{0}: needs a restart")]
    NeedsRestart(String),
    /// It is right in itself but cannot be put to work: a port in use, a plugin that does not load.
    #[error("{0}")]
    Failed(String),
}

/// The running process: stopped by [`App::stop`] or a signal.
pub struct App {
    control: Control,
    handle: Handle,
    control_thread: JoinHandle<()>,
    threads: Threads,
    log_thread: Option<JoinHandle<()>>,
    admin_address: admin::Address,
    token_path: Option<PathBuf>,
    /// Ends the admin API, then the control thread.
    stop_admin: watch::Sender<bool>,
    stop_control: watch::Sender<bool>,
}

/// Builds everything and starts it.
///
/// # Errors
/// What could not be built, by name; whatever was started is stopped.
pub fn start(start: Start) -> anyhow::Result<App> {
    let Start {
        config,
        text,
        file,
        seed,
    } = start;
    make_data_directory(&config.data)?;
    let store = Store::open(&config.buckets, &config.data)?;
    let plugins = Plugins::new(PluginsOptions {
        data: &config.data,
        store: store.clone(),
        workers: config.workers,
        component_bytes_max: config.admin.component_bytes_max,
    })?;
    let (handle, control_thread, stop_control) = control_thread()?;
    let _entered = handle.enter();
    handle.block_on(sow(&store, seed))?;
    let admin_listener = admin::bind(&config.admin)?;
    let token = match config.admin.auth {
        admin::Auth::Token => Some(admin::Token::load_or_create(&config.data)?),
        admin::Auth::None => None,
    };
    let admin_address = admin_listener.address().clone();
    let own_admin = match &admin_address {
        admin::Address::Tcp(address) => Some(*address),
        admin::Address::Unix(_) => None,
    };
    let mut listeners = Vec::new();
    for listener in &config.listeners {
        listeners.push((listener.clone(), bind(listener, config.workers)?));
    }
    handle
        .block_on(plugins.apply(&config.plugins))
        .map_err(|(name, error)| anyhow::Error::new(error).context(format!("plugin {name:?}")))?;
    let bound = addresses(&listeners);
    let site = Site::new(
        &config,
        own(&bound, own_admin),
        |name| plugins.slot(name),
        None,
    )
    .map_err(|e| anyhow!(e))?;
    let running = Running::new(config.clone(), text, bound, &site);
    let counters = Arc::new(Counters {
        workers: (0..config.workers)
            .map(|_| WorkerCounters::default())
            .collect(),
    });
    let (batches, log_thread) = access_log::start(&config.log.access)?.unzip();
    let site = Arc::new(ArcSwap::from_pointee(site));
    let shared = Shared {
        site: site.clone(),
        counters: counters.clone(),
        store: store.clone(),
        batches,
    };
    let (workers, threads) = Workers::start(config.workers, &shared).context("start workers")?;
    drop(shared);
    plugins.set_crew(Arc::new(workers.clone()));
    for plugin in &config.plugins {
        let active = plugins
            .slot(&plugin.name)
            .and_then(|slot| slot.active().clone());
        if let Some(generation) = active {
            handle
                .block_on(workers.warm(generation))
                .map_err(|e| anyhow!("plugin {:?}: {e}", plugin.name))?;
        }
    }
    let inner = Inner {
        running: ArcSwap::from_pointee(running),
        site,
        store: store.clone(),
        plugins: plugins.clone(),
        workers: workers.clone(),
        file,
        admin: own_admin,
        applying: Mutex::new(()),
        draining: AtomicBool::new(false),
        started: Instant::now(),
    };
    let control = Control {
        inner: Arc::new(inner),
    };
    let (stop_admin, stopping) = watch::channel(false);
    let token_path = token
        .as_ref()
        .map(|_| config.data.join(admin::token::FILE_NAME));
    let state = admin::State {
        store,
        plugins,
        workers: workers.clone(),
        control: control.clone(),
        counters,
        token,
        config: config.admin,
        own: Arc::default(),
    };
    handle.spawn(async move {
        if let Err(error) = admin::serve(state, admin_listener, stopped(stopping)).await {
            tracing::error!(%error, "admin API ended");
        }
    });
    handle.block_on(async {
        for (listener, sockets) in listeners {
            workers.listen(&listener, sockets).await;
        }
    });
    let handle = handle.clone();
    Ok(App {
        control,
        handle,
        control_thread,
        threads,
        log_thread,
        admin_address,
        token_path,
        stop_admin,
        stop_control,
    })
}

fn make_data_directory(data: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data);
    made.with_context(|| format!("data: cannot create directory {}", data.display()))
}

/// The control plane's thread: admin API, deploys, signals.
fn control_thread() -> anyhow::Result<(Handle, JoinHandle<()>, watch::Sender<bool>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make the control runtime")?;
    let handle = runtime.handle().clone();
    let (stop, stopping) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            runtime.block_on(stopped(stopping));
            runtime.shutdown_timeout(Duration::from_secs(1));
        })?;
    Ok((handle, thread, stop))
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone: stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Writes the entries given at start, as one batch.
async fn sow(store: &Store, seed: Vec<Seed>) -> anyhow::Result<()> {
    if seed.is_empty() {
        return Ok(());
    }
    let snapshot = store.snapshot();
    let bucket = |name: &str| -> anyhow::Result<BucketId> {
        snapshot
            .bucket_id(name)
            .ok_or_else(|| anyhow!("no bucket {name:?} in the config"))
    };
    let write = |seed: Seed| {
        Ok(Write {
            bucket: bucket(&seed.bucket)?,
            key: seed.key.into(),
            value: Some(seed.value.into_bytes().into()),
            expect: Expect::Any,
        })
    };
    let writes = seed.into_iter().map(write).collect::<anyhow::Result<_>>()?;
    store
        .commit(WriteBatch {
            writes,
            ..WriteBatch::default()
        })
        .await?;
    Ok(())
}

/// A socket for each worker.
fn bind(config: &listener::Config, workers: usize) -> anyhow::Result<Vec<TcpListener>> {
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

fn addresses(listeners: &[(listener::Config, Vec<TcpListener>)]) -> Vec<(String, SocketAddr)> {
    let address =
        |sockets: &[TcpListener]| sockets.first().and_then(|socket| socket.local_addr().ok());
    listeners
        .iter()
        .filter_map(|(config, sockets)| Some((config.name.clone(), address(sockets)?)))
        .collect()
}

/// Where we listen ourselves: never to be dialled.
fn own(bound: &[(String, SocketAddr)], admin: Option<SocketAddr>) -> Vec<SocketAddr> {
    bound
        .iter()
        .map(|(_, address)| *address)
        .chain(admin)
        .collect()
}

impl Running {
    fn new(
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

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to memory");
            hex
        })
}

impl Control {
    /// The config that runs.
    pub fn running(&self) -> Arc<Running> {
        self.inner.running.load_full()
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
        if dry_run {
            return Ok(Applied::Checked);
        }
        inner
            .store
            .reconfigure(&config.buckets)
            .await
            .map_err(|e| failed(e.into()))?;
        let loaded = inner.plugins.apply(&config.plugins).await;
        loaded.map_err(|(name, error)| {
            failed(anyhow::Error::new(error).context(format!("plugin {name:?}")))
        })?;
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
        inner.running.store(Arc::new(next));
        for name in closed {
            inner.workers.unlisten(&name).await;
        }
        for (listener, sockets) in opened {
            inner.workers.listen(&listener, sockets).await;
        }
        Ok(Applied::Changed)
    }

    /// Reads the config's file again and applies it.
    async fn reload(&self) {
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
            Ok(applied) => tracing::info!(?applied, file = %file.display(), "SIGHUP: config read"),
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

    /// Seconds since start.
    pub fn uptime_s(&self) -> u64 {
        self.inner.started.elapsed().as_secs()
    }
}

/// What of a config only a restart can change.
fn needs_restart(running: &Config, next: &Config) -> Option<&'static str> {
    [
        (running.workers != next.workers, "workers"),
        (running.data != next.data, "data"),
        (running.admin != next.admin, "admin"),
        (running.log != next.log, "log"),
    ]
    .into_iter()
    .find_map(|(changed, what)| changed.then_some(what))
}

impl App {
    /// What the admin API may ask.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Where the admin API listens.
    pub fn admin_address(&self) -> &admin::Address {
        &self.admin_address
    }

    /// Where clients reach us, by listener name.
    pub fn bound(&self) -> Vec<(String, SocketAddr)> {
        self.control.running().bound.clone()
    }

    /// The file with the admin token, if one is needed.
    pub fn token_path(&self) -> Option<&Path> {
        self.token_path.as_deref()
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second one forces. SIGHUP reads the config again.
    ///
    /// # Errors
    /// If signals cannot be watched.
    pub fn run_until_signal(self) -> anyhow::Result<()> {
        let control = self.control.clone();
        let grace = self.handle.clone().block_on(async {
            let (mut term, mut int, mut hup) = (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::hangup())?,
            );
            loop {
                tokio::select! {
                    _ = term.recv() => break,
                    _ = int.recv() => break,
                    _ = hup.recv() => control.reload().await,
                }
            }
            let grace = control.running().config.streams.shutdown_grace;
            tracing::info!(?grace, "draining; a second signal stops at once");
            self.handle.spawn(async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                tracing::warn!("stopped at once");
                std::process::exit(1);
            });
            anyhow::Ok(grace)
        })?;
        self.stop(grace);
        Ok(())
    }

    /// Drains for at most `grace`, then stops everything in reverse.
    pub fn stop(self, grace: Duration) {
        let Self {
            control,
            handle,
            control_thread,
            threads,
            log_thread,
            stop_admin,
            stop_control,
            ..
        } = self;
        let inner = &control.inner;
        inner.draining.store(true, Relaxed);
        handle.block_on(async {
            inner.workers.drain(grace).await;
            inner.workers.stop().await;
        });
        threads.join();
        stop_admin.send_replace(true);
        inner.plugins.close();
        inner.store.close();
        stop_control.send_replace(true);
        join(control_thread, "control");
        // Its lines have all been handed over: the workers are gone.
        if let Some(log_thread) = log_thread {
            join(log_thread, "access-log");
        }
    }
}

fn join(thread: JoinHandle<()>, name: &str) {
    if thread.join().is_err() {
        tracing::error!(name, "thread panicked");
    }
}
