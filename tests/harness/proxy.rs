//! A proxy process of its own, with its config and data in a directory of its own.

use super::admin::Admin;
use super::client::{Request, Response};
use super::clock::Clock;
use super::raw::Raw;
use super::{PATIENCE, eventually, soon};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

/// How a proxy is set up; every part can be replaced.
pub struct Setup {
    /// Keys before the first table.
    pub top: String,
    /// The tables `[admin]`, `[[listener]]` and `[log]`.
    pub frame: String,
    /// All other tables.
    pub rest: String,
}

impl Setup {
    /// A proxy with these tables beside the usual listener, admin API and access log.
    pub fn new(rest: impl Into<String>) -> Self {
        Self {
            top: "workers = 2\n".into(),
            frame: "[admin]\nlisten = \"127.0.0.1:0\"\n\n[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\n\n\
                    [log]\naccess = \"access.log\"\n"
                .into(),
            rest: rest.into(),
        }
    }

    /// Data-plane threads.
    pub fn workers(mut self, workers: usize) -> Self {
        self.top = format!("workers = {workers}\n");
        self
    }

    /// The whole text.
    pub fn text(&self) -> String {
        format!(
            "version = 1\ndata = \"data\"\n{}\n{}\n{}\n",
            self.top, self.frame, self.rest
        )
    }

    /// Starts it.
    pub async fn start(self) -> TestProxy {
        TestProxy::start_text(&self.text()).await
    }
}

/// By-header routing, as the seed user has it.
pub const BY_HEADER: &str = r#"
[buckets.upstreams]
[plugins.router]
source = "builtin:by-header"
buckets = { upstreams = "read" }
settings = { header = "x-id", port-header = "x-port" }
[[route]]
name = "by-id"
plugin = "router"
[compat.caddy]
proxy-map = "upstreams"
"#;

/// A deadline that a busy machine keeps, for the router of [`BY_HEADER`].
pub const PATIENT: &str = "\n[plugins.router.limits]\ndeadline = \"2s\"\n";

/// A running proxy: killed by its own process id when dropped.
pub struct TestProxy {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where the admin API is.
    pub admin_address: SocketAddr,
    dir: TempDir,
    under: Vec<String>,
    arguments: Vec<String>,
    child: Child,
    output: Output,
    /// If it has one of its own, and how far ahead that is.
    clock: Option<(Clock, i64)>,
}

/// What a process said.
#[derive(Clone, Default)]
struct Output {
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
}

/// The command under test.
pub fn command() -> Command {
    command_under(&[])
}

/// The same, started by another command, which gets it as its last arguments.
pub fn command_under(under: &[String]) -> Command {
    let binary = env!("CARGO_BIN_EXE_throwbar-under-test").to_owned();
    let mut words = under.iter().chain([&binary]);
    let mut command = Command::new(words.next().expect("at least the binary"));
    command
        .args(words)
        .env_remove("THROWBAR_ADMIN")
        .env_remove("THROWBAR_TOKEN")
        .env_remove("THROWBAR_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What a command that has ended said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// What it printed, if it worked.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    /// Checks that it failed in this way and said this.
    #[track_caller]
    pub fn refused(&self, code: i32, said: &str) {
        assert_eq!(self.code, code, "{said:?}: {}", self.stderr);
        assert!(self.stderr.contains(said), "{said:?}: {}", self.stderr);
    }
}

/// Runs a command to its end in a directory.
pub async fn run(directory: &Path, arguments: &[&str]) -> Ended {
    run_with(command(), directory, arguments).await
}

/// Runs a prepared command to its end.
pub async fn run_with(mut command: Command, directory: &Path, arguments: &[&str]) -> Ended {
    command.current_dir(directory).args(arguments);
    let output = soon(&format!("the end of {arguments:?}"), command.output())
        .await
        .expect("the command under test runs");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl TestProxy {
    /// Starts one with these tables; see [`Setup::new`].
    pub async fn start(rest: &str) -> Self {
        Setup::new(rest).start().await
    }

    /// Starts one with a whole config.
    pub async fn start_text(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("throwbar.toml"), text).expect("written");
        Self::start_in(dir, &["serve", "throwbar.toml"]).await
    }

    /// Starts one with arguments, in a directory.
    pub async fn start_in(dir: TempDir, arguments: &[&str]) -> Self {
        Self::start_under(dir, &[], arguments).await
    }

    /// The same; its directory and its last words if it ends instead of serving.
    pub async fn try_start_in(dir: TempDir, arguments: &[&str]) -> Result<Self, (TempDir, String)> {
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        Self::spawned(dir, Vec::new(), arguments, None).await
    }

    /// The same as [`TestProxy::start_in`], started by another command.
    pub async fn start_under(dir: TempDir, under: &[&str], arguments: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let (under, arguments): (Vec<String>, Vec<String>) = (owned(under), owned(arguments));
        served(Self::spawned(dir, under, arguments, None).await)
    }

    /// Starts one with a whole config, and a clock so many seconds ahead; see [`Clock`].
    pub async fn start_with_clock(text: &str, seconds: i64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("throwbar.toml"), text).expect("written");
        let arguments = ["serve", "throwbar.toml"].map(str::to_owned).into();
        served(Self::spawned(dir, Vec::new(), arguments, Some(seconds)).await)
    }

    async fn spawned(
        dir: TempDir,
        under: Vec<String>,
        arguments: Vec<String>,
        seconds: Option<i64>,
    ) -> Result<Self, (TempDir, String)> {
        let started = spawn(dir.path(), &under, &arguments, seconds).await;
        let (child, clock, output, [address, admin_address]) = match started {
            Ok(started) => started,
            Err(said) => return Err((dir, said)),
        };
        Ok(Self {
            address,
            admin_address,
            dir,
            under,
            arguments,
            child,
            output,
            clock: clock.zip(seconds),
        })
    }

    /// Makes its clock jump: it is so many seconds ahead of the machine's, now and after a restart.
    pub fn set_clock(&mut self, seconds: i64) {
        let (clock, shift) = self.clock.as_mut().expect("it has a clock of its own");
        clock.set(seconds).expect("it runs");
        *shift = seconds;
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file of its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// What it said on standard error so far.
    pub fn stderr(&self) -> String {
        self.output.stderr.lock().expect("not poisoned").clone()
    }

    /// What it said on standard output so far.
    pub fn stdout(&self) -> String {
        self.output.stdout.lock().expect("not poisoned").clone()
    }

    /// The admin API, with the token.
    pub fn admin(&self) -> Admin {
        let data = ["data", "throwbar-data"]
            .map(|name| self.file(name).join("admin.token"))
            .into_iter()
            .find_map(|path| std::fs::read_to_string(path).ok());
        Admin::new(
            self.admin_address,
            data.map(|token| token.trim().to_owned()),
        )
    }

    /// A command that finds its admin API.
    pub fn command(&self) -> Command {
        let mut command = command();
        command.env("THROWBAR_ADMIN", self.admin_address.to_string());
        command
    }

    /// Runs a command of its clients to its end, in its directory: it finds the token there.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        run_with(self.command(), self.dir(), arguments).await
    }

    /// The same of `kv`.
    pub async fn kv(&self, arguments: &[&str]) -> Ended {
        self.run(&[&["kv"], arguments].concat()).await
    }

    /// A connection of raw bytes.
    pub async fn raw(&self) -> Raw {
        Raw::connect(self.address).await
    }

    /// Sends a request on a connection of its own.
    pub async fn send(&self, request: Request) -> Response {
        request.send(self.address).await
    }

    /// Gets a path with fields.
    pub async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        self.send(Request::get(path).fields(fields)).await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("the process is ours");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        soon("the end of the proxy", self.child.wait())
            .await
            .expect("it can be waited for")
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        self.ended().await;
    }

    /// Starts it again in the same directory, on other ports.
    pub async fn start_again(&mut self) {
        let seconds = self.clock.as_ref().map(|(_, seconds)| *seconds);
        let started = spawn(self.dir.path(), &self.under, &self.arguments, seconds).await;
        let (child, clock, output, [address, admin]) =
            started.unwrap_or_else(|said| panic!("{said}"));
        self.child = child;
        self.clock = clock.zip(seconds);
        self.output = output;
        self.address = address;
        self.admin_address = admin;
    }

    /// Resident memory, in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Lines of the access log so far.
    pub fn access_lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file("access.log")).unwrap_or_default();
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// The first access line that fits.
    pub async fn access_line(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("access line: {what}"), || {
            let found = self.access_lines().into_iter().find(|line| fits(line));
            async move { found }
        })
        .await
    }

    /// Waits until standard error holds a text.
    pub async fn says(&self, text: &str) {
        eventually(&format!("{text:?} on standard error"), || {
            let found = self.stderr().contains(text).then_some(());
            async move { found }
        })
        .await;
    }
}

fn served(started: Result<TestProxy, (TempDir, String)>) -> TestProxy {
    started.unwrap_or_else(|(_, said)| panic!("{said}"))
}

/// A process that serves; how it ended and what it said if it does not.
async fn spawn(
    directory: &Path,
    under: &[String],
    arguments: &[String],
    seconds: Option<i64>,
) -> Result<(Child, Option<Clock>, Output, [SocketAddr; 2]), String> {
    let mut command = command_under(under);
    command
        .current_dir(directory)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (mut child, clock) =
        Clock::spawn_if(&mut command, seconds).expect("the command under test runs");
    let output = Output::default();
    gather(child.stdout.take().expect("piped"), output.stdout.clone());
    gather(child.stderr.take().expect("piped"), output.stderr.clone());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = output.stderr.lock().expect("not poisoned").clone();
        if let Some((address, admin)) = addresses(&said) {
            return Ok((child, clock, output, [address, admin]));
        }
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            // Its last words may still be on their way.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let said = output.stderr.lock().expect("not poisoned").clone();
            return Err(format!("the proxy ended with {status}\n{said}"));
        }
        assert!(Instant::now() < deadline, "the proxy is not ready\n{said}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What it prints once it serves.
fn addresses(said: &str) -> Option<(SocketAddr, SocketAddr)> {
    said.contains("Ctrl-C finishes").then_some(())?;
    let after = |word: &str| {
        let line = said
            .lines()
            .find(|line| line.trim_start().starts_with(word))?;
        let address = line.split_whitespace().nth(1)?;
        address.trim_start_matches("http://").parse().ok()
    };
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    Some((after("listener")?, after("admin").unwrap_or(nowhere)))
}

fn gather(from: impl AsyncRead + Unpin + Send + 'static, to: Arc<Mutex<String>>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let mut to = to.lock().expect("not poisoned");
            to.push_str(&String::from_utf8_lossy(&line));
            to.push('\n');
        }
    });
}
