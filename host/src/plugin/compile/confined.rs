//! Compiling in a process of its own, as it goes on inside that process: it takes its bounds, reads the component, checks
//! it, and writes the code.
//!
//! Nothing here runs code of a guest. What a component may do is keep the checks and the compiler busy, and that ends at
//! the bounds. The first thing done is to take them, in safe code, so the process is this program as it was started and
//! no other.

use super::super::report::DeployError;
use super::super::{engine, validate};
use super::CompileBounds;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal,
    setpriority_process, setrlimit,
};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};
use wasmtime::Engine;

/// The hidden command that does this.
pub(crate) const COMMAND: &str = "compile-component";
/// Files that the process may have open.
const FILES_MAX: u64 = 16;
/// Its stack.
const STACK_BYTES: u64 = 8 << 20;

/// What such a process is told.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// The process that started it, and with which it ends.
    pub(crate) parent: i32,
    /// What the code has to fit: [`engine::compatibility`] of the engine that will run it.
    pub(crate) engine: String,
    /// What it may take.
    pub(crate) bounds: CompileBounds,
}

/// How such a process ends: its exit code. One that panics ends with 101, as any program of Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Compiled = 0,
    /// Not the component's fault.
    Trouble = 1,
    NotAComponent = 10,
    World = 11,
    NoMemory = 12,
}

impl End {
    pub(super) fn of_code(code: i32) -> Option<Self> {
        let all = [
            Self::Compiled,
            Self::Trouble,
            Self::NotAComponent,
            Self::World,
            Self::NoMemory,
        ];
        all.into_iter().find(|end| *end as i32 == code)
    }
}

/// Compiles standard input to standard output; what is wrong is said on standard error.
pub(crate) fn compile(order: &Order) -> End {
    let (end, said) = match try_compile(order) {
        Ok(()) => return End::Compiled,
        Err(Failure::Refused(DeployError::NotAComponent(reason))) => (End::NotAComponent, reason),
        Err(Failure::Refused(DeployError::World(reason))) => (End::World, reason),
        Err(Failure::Refused(other)) => (End::Trouble, other.to_string()),
        Err(Failure::NoMemory) => (End::NoMemory, String::new()),
        Err(Failure::Trouble(reason)) => (End::Trouble, reason),
    };
    // Whoever started it has the exit code.
    let _ = io::stderr().write_all(said.as_bytes());
    end
}

enum Failure {
    Refused(DeployError),
    NoMemory,
    Trouble(String),
}

fn try_compile(order: &Order) -> Result<(), Failure> {
    let failed = |what: &str, error: io::Error| Failure::Trouble(format!("{what}: {error}"));
    confine(order).map_err(|error| failed("take the bounds", error))?;
    let engine = engine::without_pool()
        .map_err(|error| Failure::Trouble(format!("make the engine: {error:#}")))?;
    let own = engine::compatibility(&engine);
    if own != order.engine {
        let wanted = &order.engine;
        return Err(Failure::Trouble(format!(
            "this program compiles for engine {own}, the one that asks expects {wanted}"
        )));
    }
    let mut component = Vec::new();
    io::stdin()
        .read_to_end(&mut component)
        .map_err(|error| failed("read the component", error))?;
    let code = check_and_compile(&engine, &component)?;
    // Not through the standard library's buffer, which looks for ends of lines.
    let mut output = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|error| failed("open the output", error))?;
    output
        .write_all(&code)
        .map_err(|error| failed("write the code", error))
}

fn check_and_compile(engine: &Engine, component: &[u8]) -> Result<Vec<u8>, Failure> {
    validate::check(component).map_err(Failure::Refused)?;
    let compiled = engine.precompile_component(component);
    compiled.map_err(|error| match error.is::<wasmtime::OutOfMemory>() {
        true => Failure::NoMemory,
        false => Failure::Refused(super::refusal(&error)),
    })
}

/// Takes the bounds, and gives way to everything else on the machine.
fn confine(order: &Order) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid().map(Pid::as_raw_pid) != Some(order.parent) {
        return Err(io::Error::other("who started it is gone"));
    }
    close_inherited()?;
    setpriority_process(None, 19)?;
    // What lists of processes show; without it that is the `exe` of `/proc/self/exe`.
    rustix::thread::set_name(c"compile")?;
    let cpu = order.bounds.cpu_seconds();
    let memory = order.bounds.memory_bytes;
    // The soft limit of the CPU ends it with a signal that says so, the hard one with the same as any kill.
    limit(Resource::Cpu, cpu, cpu + 1)?;
    limit(Resource::Data, memory, memory)?;
    limit(Resource::Stack, STACK_BYTES, STACK_BYTES)?;
    limit(Resource::Fsize, memory, memory)?;
    limit(Resource::Nofile, FILES_MAX, FILES_MAX)?;
    limit(Resource::Core, 0, 0)?;
    // If the machine runs out of memory, then this goes first. Where there is no such file, the bounds hold all the same.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// Closes every file but the first three: what the proxy was started with and is open in its children, too.
fn close_inherited() -> io::Result<()> {
    const OPEN: &str = "/proc/self/fd";
    let mut inherited = Vec::new();
    for file in std::fs::read_dir(OPEN)? {
        let number = file?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        inherited.extend(number.filter(|number: &RawFd| *number > 2));
    }
    for number in inherited {
        // All but the list itself, which is closed by now.
        if std::fs::symlink_metadata(format!("{OPEN}/{number}")).is_ok() {
            // SAFETY: nothing in this process owns it. There is one thread, and all it has opened is the list.
            unsafe { rustix::io::close(number) };
        }
    }
    Ok(())
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let now = getrlimit(resource);
    let lower = |now: Option<u64>, wanted: u64| Some(now.map_or(wanted, |now| now.min(wanted)));
    let limits = Rlimit {
        current: lower(now.current, soft),
        maximum: lower(now.maximum, hard),
    };
    Ok(setrlimit(resource, limits)?)
}
