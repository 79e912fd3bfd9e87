//! Compiling components, off every thread that serves, with a cache on disk.
//!
//! One thread takes one component at a time, and starts a process for it that checks and compiles it under bounds of time
//! and memory ([`process`], [`confined`]). The code is kept under `compiled/<digest>-<engine>.cwasm`; such a file is machine
//! code that is trusted as it is, so it is read only from a directory of our own that nobody else can write.

use super::imports::{self, HostState};
use super::report::DeployError;
use super::{engine, validate, watcher};
use bytes::Bytes;
use process::Processes;
pub use process::{CompileBounds, CompileIn};
use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use wasmtime::Engine;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

pub(crate) mod confined;
mod process;

/// How long a request waits for its component, and how long one component may take.
pub const COMPILE_TIMEOUT: Duration = Duration::from_secs(120);
/// Components that may wait for the compile thread.
const QUEUE: usize = 8;
/// Versions that are not kept whose compiled code is.
const UNKEPT_MAX: usize = 16;
/// The interface that a plugin exports.
pub(super) const ROUTING: &str = "throwbar:plugin/routing@0.1.0";
/// The interface that a plugin with stream hooks exports beside.
pub(super) const STREAMS: &str = "throwbar:plugin/streams@0.1.0";
/// The interface that a plugin with a migration exports beside.
pub(super) const MIGRATION: &str = "throwbar:plugin/migration@0.1.0";
/// Functions of [`STREAMS`].
pub(super) const SESSION_FUNCTIONS: [&str; 4] = [
    "[static]session.open",
    "[method]session.on-message",
    "[method]session.on-tick",
    "[method]session.on-close",
];

/// A component compiled and linked, ready to be instantiated.
pub(crate) struct Code {
    pub(super) pre: InstancePre<HostState>,
    /// `init` and `route`.
    pub(super) exports: [ComponentExportIndex; 2],
    /// [`SESSION_FUNCTIONS`], of a plugin with stream hooks.
    pub(super) session_exports: Option<[ComponentExportIndex; 4]>,
    /// `migrate` of [`MIGRATION`], of a plugin that exports it.
    pub(super) migrate_export: Option<ComponentExportIndex>,
    /// How a plugin that keeps a view of its own is told of changes.
    pub(super) watcher_exports: Option<watcher::Exports>,
    /// SHA-256 of the component, in hex.
    pub(super) digest: Arc<str>,
    /// Bytes of the component.
    pub(super) bytes: u64,
    /// Imports worth telling of.
    pub(super) imports: Vec<String>,
}

/// The engine, its compile thread and the cache.
pub(crate) struct Compiler {
    shared: Arc<Shared>,
    session_instances: Arc<engine::SessionInstances>,
    jobs: Mutex<Option<SyncSender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    engine: Engine,
    instances_per_worker: usize,
    linker: Linker<HostState>,
    /// None: compiled on the thread itself.
    processes: Option<Processes>,
    /// `compiled/` of the data directory.
    dir: PathBuf,
    /// What the engine's settings and version are, in hex.
    compatibility: String,
    /// Code that somebody has, by digest: one copy serves every plugin that has the same version.
    loaded: Mutex<HashMap<Arc<str>, Weak<Code>>>,
}

struct Job {
    digest: Arc<str>,
    component: Bytes,
    reply: oneshot::Sender<Result<Loaded, DeployError>>,
}

/// Code, and whether it came from the cache.
pub(super) struct Loaded {
    pub(super) code: Arc<Code>,
    pub(super) cached: bool,
}

impl Compiler {
    /// Makes the engine and starts the compile thread.
    ///
    /// # Errors
    /// If the engine does not fit this machine, or the cache directory is not ours alone.
    pub(super) fn start(
        data: &Path,
        workers: usize,
        compile_in: &CompileIn,
    ) -> anyhow::Result<Self> {
        let (engine, room) = engine::new(workers)?;
        let linker = imports::linker(&engine).map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let compatibility = engine::compatibility(&engine);
        let processes = match compile_in {
            CompileIn::Thread => None,
            CompileIn::Process { program, bounds } => {
                Some(Processes::new(program, *bounds, &compatibility))
            }
        };
        let dir = data.join("compiled");
        make_private(&dir)?;
        let shared = Arc::new(Shared {
            engine,
            instances_per_worker: room.per_worker,
            linker,
            processes,
            dir,
            compatibility,
            loaded: Mutex::default(),
        });
        let (jobs, queue) = sync_channel(QUEUE);
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("compile".into())
            .spawn(move || compile_all(&for_thread, &queue))?;
        Ok(Self {
            shared,
            session_instances: Arc::new(room.sessions),
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Instances that a worker may have at the same time, of all plugins.
    pub(super) fn instances_per_worker(&self) -> usize {
        self.shared.instances_per_worker
    }

    /// The engine.
    pub(super) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// The room that the engine's pool has for instances with sessions.
    pub(super) fn session_instances(&self) -> &Arc<engine::SessionInstances> {
        &self.session_instances
    }

    /// Code that is loaded already, whoever has it.
    pub(super) fn in_memory(&self, digest: &str) -> Option<Loaded> {
        self.shared.in_memory(digest)
    }

    /// Validates, compiles or takes from the cache, and links. If the future is dropped, the work is done all the same and
    /// kept in the cache.
    ///
    /// # Errors
    /// What is wrong with the component, or that the thread is too busy.
    pub(super) async fn load(
        &self,
        digest: Arc<str>,
        component: Bytes,
    ) -> Result<Loaded, DeployError> {
        if let Some(loaded) = self.in_memory(&digest) {
            return Ok(loaded);
        }
        let (reply, loaded) = oneshot::channel();
        let job = Job {
            digest,
            component,
            reply,
        };
        let sent = match &*lock(&self.jobs) {
            Some(jobs) => jobs.try_send(job),
            None => Err(TrySendError::Disconnected(job)),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(DeployError::NoCompiler(format!(
                    "{QUEUE} components are waiting already"
                )));
            }
            Err(TrySendError::Disconnected(_)) => {
                return Err(DeployError::NoCompiler("shutting down".into()));
            }
        }
        match tokio::time::timeout(COMPILE_TIMEOUT, loaded).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(_)) => Err(DeployError::NoCompiler("shutting down".into())),
            Err(_) => Err(DeployError::NoCompiler(format!(
                "not done within {COMPILE_TIMEOUT:?}"
            ))),
        }
    }

    /// Removes compiled code of other engines, and of versions that are not kept, but for the newest [`UNKEPT_MAX`] of
    /// these: whoever tries a version may push it next.
    pub(super) fn prune(&self, keep: impl Fn(&str) -> bool) {
        let Ok(files) = std::fs::read_dir(&self.shared.dir) else {
            return;
        };
        let ours = format!("{}.cwasm", self.shared.compatibility);
        let mut unkept = Vec::new();
        for file in files.flatten() {
            let name = file.file_name();
            let Some((digest, rest)) = name.to_str().and_then(|name| name.split_once('-')) else {
                continue;
            };
            if rest != ours {
                // A file that stays costs space only.
                let _ = std::fs::remove_file(file.path());
            } else if !keep(digest) {
                let age = file.metadata().and_then(|metadata| metadata.modified());
                unkept.push((age.ok(), file.path()));
            }
        }
        unkept.sort_unstable_by(|a, b| b.cmp(a));
        for (_, path) in unkept.into_iter().skip(UNKEPT_MAX) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes the compiled code of one version.
    pub(super) fn forget(&self, digest: &str) {
        // A file that stays costs space only.
        let _ = std::fs::remove_file(self.shared.path(digest));
    }

    /// Ends the process that compiles, and stops the thread.
    pub(super) fn stop(&self) {
        drop(lock(&self.jobs).take());
        if let Some(processes) = &self.shared.processes {
            processes.stop();
        }
        if let Some(thread) = lock(&self.thread).take() {
            // A panic there was told to whoever waited.
            let _ = thread.join();
        }
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn compile_all(shared: &Shared, queue: &Receiver<Job>) {
    // Only this thread, on Linux. Without it, compiling costs the data plane milliseconds at p99.99.
    if let Err(error) = rustix::process::setpriority_process(None, 19) {
        tracing::debug!(%error, "compile thread keeps its priority");
    }
    while let Ok(job) = queue.recv() {
        let Job {
            digest,
            component,
            reply,
        } = job;
        if reply.is_closed() {
            continue;
        }
        let load = || shared.load(&digest, &component);
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
        let loaded = loaded.unwrap_or_else(|_| {
            Err(DeployError::Compile(
                "the compiler panicked on this component".into(),
            ))
        });
        // Nobody waits any more: it is in the cache.
        let _ = reply.send(loaded);
    }
}

impl Shared {
    /// Code that is loaded already.
    fn in_memory(&self, digest: &str) -> Option<Loaded> {
        let code = lock(&self.loaded).get(digest)?.upgrade()?;
        Some(Loaded { code, cached: true })
    }

    /// Where the code of a version is, if it is kept.
    fn path(&self, digest: &str) -> PathBuf {
        let name = format!("{digest}-{}.cwasm", self.compatibility);
        self.dir.join(name)
    }

    fn load(&self, digest: &Arc<str>, bytes: &[u8]) -> Result<Loaded, DeployError> {
        // It may have waited behind another job for the same.
        if let Some(loaded) = self.in_memory(digest) {
            return Ok(loaded);
        }
        let path = self.path(digest);
        let (component, cached) = match self.cached(&path) {
            Some(component) => (component, true),
            None => (self.compile(bytes, &path)?, false),
        };
        let export = |interface, name| export(&component, interface, name);
        let exports = [export(ROUTING, "init")?, export(ROUTING, "route")?];
        let session_exports = match component.get_export_index(None, STREAMS) {
            Some(_) => {
                let [open, on_message, on_tick, on_close] = SESSION_FUNCTIONS;
                Some([
                    export(STREAMS, open)?,
                    export(STREAMS, on_message)?,
                    export(STREAMS, on_tick)?,
                    export(STREAMS, on_close)?,
                ])
            }
            None => None,
        };
        let migrate_export = match component.get_export_index(None, MIGRATION) {
            Some(_) => Some(export(MIGRATION, "migrate")?),
            None => None,
        };
        let watcher_exports = watcher::Exports::of(&component)?;
        let pre = self
            .linker
            .instantiate_pre(&component)
            .map_err(|error| DeployError::World(format!("{error:#}")))?;
        let r#type = component.component_type();
        let imports = validate::telling(r#type.imports(&self.engine).map(|(name, _)| name));
        let code = Arc::new(Code {
            pre,
            exports,
            session_exports,
            migrate_export,
            watcher_exports,
            digest: Arc::clone(digest),
            bytes: bytes.len() as u64,
            imports,
        });
        let mut loaded = lock(&self.loaded);
        loaded.retain(|_, code| code.strong_count() > 0);
        loaded.insert(Arc::clone(digest), Arc::downgrade(&code));
        Ok(Loaded { code, cached })
    }

    /// Compiled code from the cache; none if there is none or it is not to be trusted.
    fn cached(&self, path: &Path) -> Option<Component> {
        let own = rustix::process::geteuid().as_raw();
        let metadata = std::fs::symlink_metadata(path).ok()?;
        if !metadata.is_file() || metadata.uid() != own || metadata.mode() & 0o022 != 0 {
            tracing::warn!(path = %path.display(), "compiled code belongs to someone else: compiling again");
            return None;
        }
        match self.read(path) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code is unusable: compiling again");
                None
            }
        }
    }

    /// Checks and compiles a component, and keeps its code at `path`.
    fn compile(&self, bytes: &[u8], path: &Path) -> Result<Component, DeployError> {
        let failed = |error: std::io::Error| {
            DeployError::Io(format!("compiled code {}: {error}", path.display()))
        };
        let mut file = tempfile::Builder::new()
            .suffix(".tmp")
            .tempfile_in(&self.dir)
            .map_err(failed)?;
        match &self.processes {
            Some(processes) => processes.compile(bytes, file.as_file())?,
            None => {
                validate::check(bytes)?;
                let code = self.engine.precompile_component(bytes);
                let code = code.map_err(|error| refusal(&error))?;
                file.write_all(&code).map_err(failed)?;
            }
        }
        file.as_file().sync_data().map_err(failed)?;
        // Before it has its name: what this engine has no room for is not kept.
        let component = self.read(file.path()).map_err(|error| refusal(&error))?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(component)
    }

    /// Reads code that one of our own processes wrote.
    fn read(&self, path: &Path) -> wasmtime::Result<Component> {
        // SAFETY: the file was written whole by `compile` under a name of its own, into a directory that only this user
        // can write to (checked at start), and is owned by this user (it was made by this process, or `cached` looked);
        // it is never changed in place.
        let mapped = unsafe { Component::deserialize_file(&self.engine, path) };
        mapped.or_else(|error| match std::fs::read(path) {
            // On a file system mounted `noexec` code can be read but not mapped.
            // SAFETY: as above.
            Ok(code) => unsafe { Component::deserialize(&self.engine, code) },
            Err(_) => Err(error),
        })
    }
}

/// A function of an interface that a component exports.
///
/// # Errors
/// If it does not.
pub(super) fn export(
    component: &Component,
    interface: &str,
    name: &str,
) -> Result<ComponentExportIndex, DeployError> {
    let instance = component.get_export_index(None, interface);
    let function = component.get_export_index(instance.as_ref(), name);
    function.ok_or_else(|| DeployError::World(format!("does not export {name} of {interface}")))
}

/// Why a component whose outer form is right cannot be compiled.
fn refusal(error: &wasmtime::Error) -> DeployError {
    let reason = format!("{error:#}");
    // The engine checks sizes against the pool before anything runs.
    match reason.contains("pooling allocator") {
        true => DeployError::World(format!("needs more than an instance may have: {reason}")),
        false => DeployError::NotAComponent(reason),
    }
}

/// Creates a directory that only this user can use, or checks that it is one; removes what a crash left half written.
fn make_private(dir: &Path) -> anyhow::Result<()> {
    use anyhow::{Context, ensure};
    let shown = dir.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create {shown}"))?;
    let metadata = std::fs::symlink_metadata(dir).with_context(|| format!("read {shown}"))?;
    ensure!(metadata.is_dir(), "{shown}: expected a directory");
    ensure!(
        metadata.uid() == rustix::process::geteuid().as_raw(),
        "{shown}: belongs to user {}, expected the user that runs this process",
        metadata.uid()
    );
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("set mode 0700 of {shown}"))?;
    super::artifact::remove_temporary(dir).with_context(|| format!("clean {shown}"))
}
