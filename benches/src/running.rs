//! The binary itself, running: a proxy with the by-header router, and two echo servers behind it.

use crate::wire::{read_answer, status};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use throwbar_host::plugin::builtin;

/// The unit of times in /proc, the same on every Linux machine (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Hosts of the echo servers, both at one port. None is that of the proxy's own listener: it would be refused.
pub const ECHO_HOSTS: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

/// Tables of a config for the by-header router, whose routes may follow. Its deadline is one that a busy machine keeps: with
/// the default of 5 ms, calls that the kernel sets aside for so long are cut, and what is counted is the machine.
pub const BY_HEADER: &str = r#"
[buckets.upstreams]
[plugins.by-header]
source = "builtin:by-header"
buckets = { upstreams = "read" }
settings = { header = "x-id", port-header = "x-port" }
limits = { deadline = "1s" }
"#;

/// A proxy and its echo servers. All end with it.
pub struct Running {
    proxy: Child,
    echo: Vec<Child>,
    directory: tempfile::TempDir,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Lines of a head that lead to the first echo server, by the entry `echo`.
    pub fields: String,
    /// The admin API, without a token.
    pub admin: SocketAddr,
}

/// Where everything is.
struct Places {
    address: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.echo.iter_mut().chain([&mut self.proxy]) {
            // Ended already, if this fails.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    /// Starts all, with these options of the proxy beside its addresses.
    ///
    /// # Errors
    /// One does not start.
    pub fn start(binary: &Path, options: &[&str]) -> Result<Self> {
        Self::start_as(binary, |places, _| {
            let Places { address, admin } = places;
            let own = format!(
                "serve --listen {address} --map echo={} --admin {admin} --admin-auth none --access-log access.log",
                ECHO_HOSTS[0]
            );
            let all = own.split(' ').chain(options.iter().copied());
            Ok(all.map(str::to_owned).collect())
        })
    }

    /// Starts all, with two workers and these tables of a config beside those of the listener, the admin API and the log.
    ///
    /// # Errors
    /// One does not start.
    fn start_with(binary: &Path, tables: &str) -> Result<Self> {
        Self::start_as(binary, |places, directory| {
            let Places { address, admin } = places;
            let text = format!(
                "workers = 2\n[admin]\nlisten = \"{admin}\"\nauth = \"none\"\n[[listener]]\nlisten = \"{address}\"\n\
                 [log]\naccess = \"access.log\"\n{tables}"
            );
            std::fs::write(directory.join("throwbar.toml"), text)?;
            Ok(vec!["serve".to_owned(), "throwbar.toml".to_owned()])
        })
    }

    fn start_as(
        binary: &Path,
        arguments: impl FnOnce(&Places, &Path) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let binary = std::path::absolute(binary)?;
        let directory = tempfile::tempdir()?;
        let [address, admin] = [free_address("127.0.0.1")?, free_address("127.0.0.1")?];
        let port = free_address(ECHO_HOSTS[0])?.port();
        let spawn = |arguments: &[String]| {
            Command::new(&binary)
                .args(arguments)
                .current_dir(directory.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("start {}", binary.display()))
        };
        let echo_addresses = ECHO_HOSTS.map(|host| format!("{host}:{port}"));
        let echo = echo_addresses
            .iter()
            .map(|at| spawn(&["echo".to_owned(), "--listen".to_owned(), at.clone()]));
        let echo = echo.collect::<Result<_>>()?;
        let places = Places { address, admin };
        let proxy = spawn(&arguments(&places, directory.path())?)?;
        let running = Self {
            proxy,
            echo,
            fields: format!("X-ID: echo\r\nX-Port: {}\r\n", port),
            directory,
            address,
            admin,
        };
        for address in [address.to_string(), admin.to_string()]
            .into_iter()
            .chain(echo_addresses)
        {
            let deadline = Instant::now() + START_TIMEOUT;
            while TcpStream::connect(&*address).is_err() {
                ensure!(Instant::now() < deadline, "nobody listens at {address}");
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(running)
    }

    /// Starts all with [`BY_HEADER`] and these tables, its entry `echo` set.
    ///
    /// # Errors
    /// One does not start.
    pub fn start_by_header(binary: &Path, tables: &str) -> Result<Self> {
        let running = Self::start_with(binary, &format!("{BY_HEADER}{tables}"))?;
        running.ask("PUT", "/v1/kv/upstreams/echo", ECHO_HOSTS[0].as_bytes())?;
        Ok(running)
    }

    /// Deploys a component.
    ///
    /// # Errors
    /// It is refused.
    pub fn push(&self, component: &[u8]) -> Result<()> {
        self.upload("", component)
    }

    /// Has a component compiled and tried, and changes nothing.
    ///
    /// # Errors
    /// It is refused.
    pub fn check(&self, component: &[u8]) -> Result<()> {
        self.upload("?dry_run=true", component)
    }

    fn upload(&self, query: &str, component: &[u8]) -> Result<()> {
        let path = format!("/v1/plugins/by-header{query}");
        self.ask("PUT", &path, component).map(drop)
    }

    /// Asks the admin API; the body of its answer.
    ///
    /// # Errors
    /// It refuses.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let mut socket = TcpStream::connect(self.admin)?;
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            self.admin,
            body.len()
        )?;
        socket.write_all(body)?;
        let (head, answer) = read_answer(&mut socket)?;
        ensure!(
            matches!(status(&head)?, 200..=204),
            "{method} {path}: {head}\n{}",
            String::from_utf8_lossy(&answer)
        );
        Ok(answer)
    }

    /// Nanoseconds on a core so far, by thread name, of the threads whose name begins so together.
    ///
    /// # Errors
    /// The proxy has ended, or the kernel does not count.
    pub fn cpu_ns(&self, thread: &str) -> Result<u64> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.proxy.id()))? {
            let task = task?.path();
            // A thread may end meanwhile.
            let Ok(name) = std::fs::read_to_string(task.join("comm")) else {
                continue;
            };
            if name.starts_with(thread) {
                let counted = std::fs::read_to_string(task.join("schedstat"))?;
                let first = counted.split_whitespace().next();
                sum += first.context("no schedstat")?.parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    /// Nanoseconds that the proxy has been on a core, threads that have ended included; in steps of 10 ms.
    ///
    /// # Errors
    /// It has ended.
    pub fn process_cpu_ns(&self) -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.proxy.id()))?;
        // The name before may hold anything; user and system time are the 12th and 13th after it (proc_pid_stat(5)).
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = times.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        Ok(ticks * (1_000_000_000 / TICKS_PER_SECOND))
    }

    /// Resident memory of the proxy, in KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn rss_kib(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("no VmRSS")?.parse()?)
    }

    /// The access log, once all that was written is in the file: ends the proxy.
    ///
    /// # Errors
    /// It did not end well.
    pub fn access_log(mut self) -> Result<BufReader<File>> {
        let pid = rustix::process::Pid::from_child(&self.proxy);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        ensure!(self.proxy.wait()?.success(), "the proxy failed");
        // It can be read to its end, though its directory goes.
        let log = File::open(self.directory.path().join("access.log"))?;
        Ok(BufReader::new(log))
    }
}

fn free_address(host: &str) -> Result<SocketAddr> {
    Ok(TcpListener::bind((host, 0))?.local_addr()?)
}

/// The by-header router as another version: the same code, and a section of its own that no engine reads.
///
/// # Errors
/// It is not built in.
pub fn version(number: u32) -> Result<Vec<u8>> {
    let mut component = builtin::component("by-header")
        .context("it is built in")?
        .to_vec();
    // Section 0 (custom): its length, the length of its name, the name, anything.
    component.extend_from_slice(&[0, 6, 1, b'v']);
    component.extend_from_slice(&number.to_le_bytes());
    Ok(component)
}
