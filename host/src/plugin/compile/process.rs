//! Compiling in a process of its own, as seen by the one that starts it: what the process gets, how long it may take, and
//! what its end means.
//!
//! The process is this program under a hidden command, see [`super::confined`]. Its standard input, output and error are
//! files: the component, the code, what it says of a component that it refuses. So nobody has to feed it, and no pipe can
//! fill up.

use super::super::imports::logging::printable;
use super::super::report::DeployError;
use super::COMPILE_TIMEOUT;
use super::confined::{COMMAND, End};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most that is read of what the process says.
const SAID_BYTES_MAX: usize = 2048;
/// How the standard library begins to say that there is no memory, before it aborts.
const NO_MEMORY: &str = "memory allocation of ";

/// Where components are compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompileIn {
    /// On a thread of this process, without bounds: for tests, benches and profilers, whose guests are known.
    Thread,
    /// In a process of its own for each.
    Process {
        /// A program that has the command: [`CompileIn::this_program`].
        program: PathBuf,
        /// What each may take.
        bounds: CompileBounds,
    },
}

impl CompileIn {
    /// In a process that runs this program: the one that is running, whatever became of its file.
    pub fn this_program(bounds: CompileBounds) -> Self {
        Self::Process {
            program: "/proc/self/exe".into(),
            bounds,
        }
    }
}

/// What compiling one component may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileBounds {
    /// Time on a core; counted in whole seconds, begun ones full.
    pub cpu: Duration,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

impl Default for CompileBounds {
    fn default() -> Self {
        Self {
            cpu: Duration::from_secs(10),
            memory_bytes: 512 << 20,
        }
    }
}

impl CompileBounds {
    pub(super) fn cpu_seconds(&self) -> u64 {
        self.cpu.as_secs() + u64::from(self.cpu.subsec_nanos() > 0)
    }
}

/// Starts a process for each component.
pub(super) struct Processes {
    program: PathBuf,
    bounds: CompileBounds,
    /// What the code has to fit.
    compatibility: String,
    state: Mutex<State>,
}

enum State {
    Idle,
    Running(OwnedFd),
    Stopped,
}

impl Processes {
    pub(super) fn new(program: &Path, bounds: CompileBounds, compatibility: &str) -> Self {
        Self {
            program: program.to_owned(),
            bounds,
            compatibility: compatibility.to_owned(),
            state: Mutex::new(State::Idle),
        }
    }

    /// Checks and compiles a component; its code is in the file then.
    pub(super) fn compile(&self, component: &[u8], code: &File) -> Result<(), DeployError> {
        let said = in_memory(&[]).map_err(|error| no_compiler("keep what it says", &error))?;
        let mut child = self
            .start(component, code, &said)
            .map_err(|error| no_compiler(&format!("start {}", self.program.display()), &error))?;
        let waited = self.wait(&mut child);
        let stopped = {
            let mut state = self.state();
            let stopped = matches!(*state, State::Stopped);
            if !stopped {
                *state = State::Idle;
            }
            stopped
        };
        let status = match waited {
            Ok(status) => status,
            Err(error) => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(no_compiler("wait for its process", &error));
            }
        };
        match status {
            _ if stopped => Err(DeployError::NoCompiler("shutting down".into())),
            None => Err(DeployError::Compile(format!(
                "not done within {COMPILE_TIMEOUT:?}"
            ))),
            Some(status) => judge(status, &read_said(&said), &self.bounds),
        }
    }

    fn start(&self, component: &[u8], code: &File, said: &File) -> io::Result<Child> {
        let bounds = &self.bounds;
        Command::new(&self.program)
            .arg0("throwbar")
            .arg(COMMAND)
            .arg(format!("--parent={}", std::process::id()))
            .arg(format!("--engine={}", self.compatibility))
            .arg(format!("--cpu-seconds={}", bounds.cpu_seconds()))
            .arg(format!("--memory-bytes={}", bounds.memory_bytes))
            .env_clear()
            // Ctrl-C on a terminal is for the proxy, which ends this one itself.
            .process_group(0)
            .stdin(in_memory(component)?)
            .stdout(code.try_clone()?)
            .stderr(said.try_clone()?)
            .spawn()
    }

    /// Waits for its end; none if it had to be ended because it took too long.
    fn wait(&self, child: &mut Child) -> io::Result<Option<ExitStatus>> {
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        {
            let mut state = self.state();
            if matches!(*state, State::Stopped) {
                child.kill()?;
            } else {
                *state = State::Running(process.try_clone()?);
            }
        }
        let deadline = Instant::now() + COMPILE_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => {
                    child.kill()?;
                    child.wait()?;
                    return Ok(None);
                }
                Ok(_) => return child.wait().map(Some),
            }
        }
    }

    /// Ends the process that runs, and lets no other run for long.
    pub(super) fn stop(&self) {
        let before = std::mem::replace(&mut *self.state(), State::Stopped);
        if let State::Running(process) = before {
            // It may have ended by itself.
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_compiler(what: &str, error: &io::Error) -> DeployError {
    DeployError::NoCompiler(format!("{what}: {error}"))
}

/// A file without a name, in memory, that holds these bytes and is read from its beginning.
fn in_memory(content: &[u8]) -> io::Result<File> {
    let create = |flags| memfd_create("throwbar-compile", MemfdFlags::CLOEXEC | flags);
    // Some systems allow no others; old ones know none of these.
    let created = create(MemfdFlags::NOEXEC_SEAL).or_else(|_| create(MemfdFlags::empty()));
    let mut file = File::from(created?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// The beginning of what a process said, as one line for people.
fn read_said(said: &File) -> String {
    let mut bytes = [0; SAID_BYTES_MAX];
    // What cannot be read was not said.
    let length = said.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..length]);
    printable(text.trim(), SAID_BYTES_MAX).into_owned()
}

/// What the end of a process means.
fn judge(status: ExitStatus, said: &str, bounds: &CompileBounds) -> Result<(), DeployError> {
    let no_memory = || {
        let mebibytes = bounds.memory_bytes >> 20;
        DeployError::Compile(format!("needs more than {mebibytes} MiB of memory"))
    };
    let said = said.to_owned();
    let Some(code) = status.code() else {
        let signal = status.signal().unwrap_or(0);
        return Err(match Signal::from_named_raw(signal) {
            Some(Signal::XCPU) => {
                DeployError::Compile(format!("not done within {}s of CPU", bounds.cpu_seconds()))
            }
            Some(Signal::ABORT) if said.contains(NO_MEMORY) => no_memory(),
            Some(Signal::XFSZ) => no_memory(),
            Some(Signal::KILL) => DeployError::NoCompiler(
                "its process was killed; the machine may be out of memory".into(),
            ),
            _ => DeployError::Compile(format!(
                "the compiler was ended by signal {signal} on this component: {said}"
            )),
        });
    };
    Err(match End::of_code(code) {
        Some(End::Compiled) => return Ok(()),
        Some(End::NotAComponent) => DeployError::NotAComponent(said),
        Some(End::World) => DeployError::World(said),
        Some(End::NoMemory) => no_memory(),
        Some(End::Trouble) => DeployError::NoCompiler(said),
        None => DeployError::Compile(format!(
            "the compiler failed with exit code {code} on this component: {said}"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: CompileBounds = CompileBounds {
        cpu: Duration::from_millis(1_500),
        memory_bytes: 64 << 20,
    };

    fn ended(wait_status: i32, said: &str) -> String {
        let judged = judge(ExitStatus::from_raw(wait_status), said, &BOUNDS);
        judged.expect_err("not compiled").to_string()
    }

    fn exited(end: End, said: &str) -> String {
        ended((end as i32) << 8, said)
    }

    #[test]
    fn an_end_over_a_bound_names_the_bound() {
        let memory = "compile: needs more than 64 MiB of memory";
        let aborted = "memory allocation of 123 bytes failed";
        assert_eq!(ended(Signal::ABORT.as_raw(), aborted), memory);
        assert_eq!(exited(End::NoMemory, ""), memory);
        assert_eq!(
            ended(Signal::XCPU.as_raw(), ""),
            "compile: not done within 2s of CPU"
        );
    }

    #[test]
    fn what_a_component_is_refused_for_comes_from_the_process() {
        assert!(judge(ExitStatus::from_raw(0), "", &BOUNDS).is_ok());
        assert_eq!(exited(End::NotAComponent, "text"), "not a component: text");
        assert_eq!(exited(End::World, "imports a:b/c"), "imports a:b/c");
    }

    #[test]
    fn a_compiler_that_breaks_is_told_with_its_last_words() {
        assert_eq!(
            ended(Signal::SEGV.as_raw(), "oh"),
            "compile: the compiler was ended by signal 11 on this component: oh"
        );
        let panicked = ended(101 << 8, "panicked at x");
        assert!(panicked.contains("exit code 101"), "{panicked}");
        assert!(panicked.ends_with("panicked at x"), "{panicked}");
    }

    #[test]
    fn a_program_that_cannot_be_started_is_named() {
        let processes = Processes::new(Path::new("/nowhere/throwbar"), BOUNDS, "aa");
        let code = tempfile::tempfile().expect("a file");
        let error = processes
            .compile(b"", &code)
            .expect_err("nothing to start")
            .to_string();
        assert!(
            error.starts_with("compile: start /nowhere/throwbar: "),
            "{error}"
        );
    }

    #[test]
    fn last_words_are_cut_and_their_control_characters_escaped() {
        let mut words = b"\x1b[2J ".to_vec();
        words.resize(10_000, b'x');
        let said = read_said(&in_memory(&words).expect("a file"));
        assert!(said.starts_with("\\u{1b}[2J x"), "{said}");
        assert!(said.len() < 2 * SAID_BYTES_MAX);
    }
}
