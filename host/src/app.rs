//! Composition root: builds leaves first, starts, stops in reverse.

use crate::admin;
use crate::audit::Losses;
use crate::config::Config;
pub use crate::control::{Applied, ApplyError, Control, Running};
use crate::control::{Parts, addresses, bind, own};
use crate::drains::{DrainingCrew, Drains};
use crate::fleet::Fleet;
use crate::memory;
use crate::metrics::{Counters, WorkerCounters};
use crate::plugin::{CompileIn, DeployError, PluginConfig, Plugins, PluginsOptions, Source};
use crate::proxy::access_log;
use crate::proxy::site::Site;
use crate::store::{BucketId, Store, Write, WriteBatch};
use crate::worker::{Shared, Threads, Workers};
use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle as Task;
use tracing_appender::non_blocking::ErrorCounter;

mod fleet;
mod signals;

pub use signals::{Hangup, Signals};

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
    /// Counts the lines of the process's own log that were dropped, if it has one.
    pub log_dropped: Option<ErrorCounter>,
    /// Lines of the audit log that could not be written.
    pub audit_losses: Losses,
    /// Plugins are compiled on a thread of this process, without bounds: for profilers, which cannot follow into another one.
    pub compile_on_thread: bool,
}

impl Start {
    /// With a config that has no text.
    pub fn new(config: Config, seed: Vec<Seed>) -> Self {
        Self {
            config,
            text: None,
            file: None,
            seed,
            log_dropped: None,
            audit_losses: Losses::default(),
            compile_on_thread: false,
        }
    }
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

/// The running process: stopped by [`App::stop`] or a signal.
pub struct App {
    control: Control,
    fleet: Option<Arc<Fleet>>,
    handle: Handle,
    control_thread: JoinHandle<()>,
    threads: Threads,
    log_thread: Option<JoinHandle<()>>,
    admin: Task<()>,
    admin_address: admin::Address,
    token_path: Option<PathBuf>,
    /// Ends the admin API, then the control thread.
    stop_admin: watch::Sender<bool>,
    stop_control: watch::Sender<bool>,
}

/// Builds everything and starts it. Components are compiled by processes of this very program, so it has to be one whose
/// `main` is [`crate::cli::main`].
///
/// # Errors
/// What could not be built, by name; whatever was started is stopped.
pub fn start(start: Start) -> anyhow::Result<App> {
    let Start {
        config,
        text,
        file,
        seed,
        log_dropped,
        audit_losses,
        compile_on_thread,
    } = start;
    raise_descriptor_limit();
    memory::keep_little();
    // Ports come before anything is written: a start that fails for one that is taken leaves nothing behind.
    let bind_admin = || {
        admin::bind(&config.admin)
            .map_err(|error| taken(error.into(), "--admin", file.as_deref(), "[admin]"))
    };
    let admin_port = match &config.admin.listen {
        admin::Address::Tcp(_) => Some(bind_admin()?),
        admin::Address::Unix(_) => None,
    };
    let mut listeners = Vec::new();
    for listener in &config.listeners {
        let sockets = bind(listener, config.workers)
            .map_err(|error| taken(error, "--listen", file.as_deref(), "[[listener]]"))?;
        listeners.push((listener.clone(), sockets));
    }
    make_data_directory(&config.data)?;
    // A Unix socket may be in the data directory.
    let admin_listener = match admin_port {
        Some(listener) => listener,
        None => bind_admin()?,
    };
    let store = Store::open_with(
        &config.store_buckets(),
        &config.data,
        config.sync,
        config.store.clone(),
    )?;
    let plugins = Plugins::new(PluginsOptions {
        data: &config.data,
        store: store.clone(),
        workers: config.workers,
        component_bytes_max: config.admin.component_bytes_max,
        compile_in: match compile_on_thread {
            true => CompileIn::Thread,
            false => CompileIn::this_program(config.admin.compile),
        },
    })?;
    let (handle, control_thread, stop_control) = control_thread()?;
    let _entered = handle.enter();
    handle.block_on(sow(&store, seed))?;
    let admin_address = admin_listener.address().clone();
    let own_admin = match &admin_address {
        admin::Address::Tcp(address) => Some(*address),
        admin::Address::Unix(_) => None,
    };
    handle
        .block_on(plugins.apply(&config.plugins))
        .map_err(|(name, error)| not_loaded(&config.plugins, &name, error))?;
    let token = match config.admin.auth {
        admin::Auth::Token => Some(admin::Token::load_or_create(&config.data)?),
        admin::Auth::None => None,
    };
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
    let drains = Arc::new(Drains::default());
    let crew = DrainingCrew::new(workers.clone(), drains.clone());
    plugins.set_crew(Arc::new(crew));
    for plugin in &config.plugins {
        let slot = plugins.slot(&plugin.name);
        for generation in slot.map(|slot| slot.serving()).unwrap_or_default() {
            handle
                .block_on(workers.warm(generation))
                .map_err(|e| not_loaded(&config.plugins, &plugin.name, DeployError::Warm(e)))?;
        }
    }
    handle.spawn(plugins.clone().keep_guard());
    let control = Control::new(Parts {
        running,
        site,
        store: store.clone(),
        plugins: plugins.clone(),
        workers: workers.clone(),
        file,
        admin: own_admin,
    });
    // Before anything is served: from the first request on it has what the others have.
    let fleet = fleet::join(
        &config,
        &store,
        &plugins,
        &control,
        admin_address.to_string(),
        &handle,
    )?;
    let watching = crate::changes::watch(store.clone(), workers.clone(), counters.clone());
    handle.spawn(watching);
    let (stop_admin, stopping) = watch::channel(false);
    let token_path = token
        .as_ref()
        .map(|_| config.data.join(admin::token::FILE_NAME));
    let state = admin::State {
        store,
        plugins,
        workers: workers.clone(),
        control: control.clone(),
        drains,
        fleet: fleet.clone(),
        counters,
        log_dropped,
        audit_losses,
        token,
        config: config.admin,
        own: Arc::default(),
    };
    let admin = handle.spawn(async move {
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
        fleet,
        handle,
        control_thread,
        threads,
        log_thread,
        admin,
        admin_address,
        token_path,
        stop_admin,
        stop_control,
    })
}

/// The error of a bind, with what can be done if the address is taken.
fn taken(error: anyhow::Error, option: &str, file: Option<&Path>, table: &str) -> anyhow::Error {
    let in_use = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::AddrInUse);
    if !in_use {
        return error;
    }
    let change = match file {
        Some(file) => format!("`listen` of {table} in {}", file.display()),
        None => option.to_owned(),
    };
    anyhow!(
        "{error:#}\n  another throwbar may be running, or another program: end it, or change {change}"
    )
}

/// Why a plugin of the config does not load, with the file if the message has none: at start it is the source's.
fn not_loaded(plugins: &[PluginConfig], name: &str, error: DeployError) -> anyhow::Error {
    let source = plugins.iter().find(|plugin| plugin.name == name);
    let place = match (source.map(|plugin| &plugin.source), &error) {
        (_, DeployError::Io(_) | DeployError::Warm(_)) => format!("plugin {name:?}"),
        (Some(Source::File(file)), _) => format!("plugin {name:?}: {}", file.display()),
        _ => format!("plugin {name:?}"),
    };
    anyhow::Error::new(error).context(place)
}

/// A stream takes two descriptors; the soft limit is often 1,024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    ) {
        tracing::warn!(%error, "descriptor limit not raised");
    }
}

fn make_data_directory(data: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    anyhow::ensure!(
        data.is_dir() || !data.exists(),
        "data: {} is a file, expected a directory",
        data.display()
    );
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
        Ok(Write::put(
            bucket(&seed.bucket)?,
            seed.key,
            seed.value.into_bytes(),
        ))
    };
    let writes = seed.into_iter().map(write).collect::<anyhow::Result<_>>()?;
    store
        .commit(WriteBatch {
            writes,
            by: Some("throwbar serve".into()),
            ..WriteBatch::default()
        })
        .await?;
    Ok(())
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

    /// Drains for at most `grace`, then stops everything in reverse.
    pub fn stop(self, grace: Duration) {
        let Self {
            control,
            fleet,
            handle,
            control_thread,
            threads,
            log_thread,
            admin,
            stop_admin,
            stop_control,
            ..
        } = self;
        handle.block_on(control.drain(grace));
        threads.join();
        if let Some(fleet) = fleet {
            handle.block_on(fleet.leave());
        }
        stop_admin.send_replace(true);
        // What is being changed is changed, and audited, while there is a store.
        if handle.block_on(admin).is_err() {
            tracing::error!("admin API panicked");
        }
        control.close();
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
