//! Programs that tests start and end.

use super::SOON;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const REQUIRED: &str = "THROWBAR_REQUIRE_SERVERS";

/// Where a program is; none, with a loud line, if it is not installed and need not be.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os(REQUIRED).is_none(),
            "{name} is not installed, and {REQUIRED} is set"
        );
        // Not by a macro: what these print is shown of failed tests only.
        let line = format!("!!! {name} is not installed: nothing was tested with it\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    found
}

/// A port of the loopback that nobody had a moment ago, below those that Linux gives to clients: one of these, trying to
/// reach a server that is away, could be given the very port it waits for, and keep it.
pub(super) fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other processes of the same tests look for some, too.
    let begin = std::process::id().wrapping_mul(7_919);
    let ports = std::iter::repeat_with(|| {
        let at = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + at).expect("it is below the last port")
    });
    let mut ports = ports.take(COUNT as usize);
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a port is free")
}

/// A running program, ended when it is dropped.
pub(super) struct Process {
    child: Child,
}

impl Process {
    pub(super) fn start(program: &Path, arguments: &[String]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("an installed program can be started");
        Self { child }
    }

    /// As kill -9 does; returns when it is gone.
    pub(super) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until a server answers as it should. False if the program ended instead.
pub(super) async fn ready(process: &mut Process, answers: impl AsyncFn() -> bool) -> bool {
    let answered = async {
        loop {
            if !process.runs() {
                return false;
            }
            if answers().await {
                return true;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, answered)
        .await
        .expect("a server that was started answers")
}
