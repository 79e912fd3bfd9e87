//! How long a put takes until it is acknowledged, and until all of three proxies that share a bucket have it.
//!
//! `shared-writes target/release/throwbar [PUTS-PER-SECOND]`
//!
//! Three members of etcd, and one Redis that syncs every write, are started on loopback, and three proxies on each in turn.
//! Puts of 1,000 keys go to the three proxies at that rate for ten seconds, over 48 connections; each proxy is watched, and an
//! event with a put's value is when that proxy has it. `etcd` and `redis-server` have to be installed.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use throwbar_benches::running::Running;
use throwbar_benches::wire::{read_message, status};

const PROXIES: usize = 3;
const SECONDS: usize = 10;
const RATE: usize = 1_000;
const CONNECTIONS: usize = 48;
const KEYS: usize = 1_000;
/// For servers to start, and for the last put to be seen.
const TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: shared-writes PATH-OF-THROWBAR [PUTS-PER-SECOND]";
    let binary = arguments.next().context(usage)?;
    let rate = match arguments.next() {
        Some(rate) => rate
            .to_str()
            .and_then(|rate| rate.parse().ok())
            .context(usage)?,
        None => RATE,
    };
    println!("| engine | puts/s | acknowledged p50 | p99 | seen by all p50 | p99 | most |");
    println!("|---|---|---|---|---|---|---|");
    for engine in ["etcd", "redis"] {
        let directory = tempfile::tempdir()?;
        let servers = Servers::start(engine, directory.path())?;
        measure(engine, Path::new(&binary), &servers.tables, rate)?;
    }
    Ok(())
}

/// Servers of an engine, which end with this.
struct Servers {
    children: Vec<Child>,
    /// What a config says of them.
    tables: String,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Ended already, if this fails.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Servers {
    fn start(engine: &str, directory: &Path) -> Result<Self> {
        let mut servers = Self {
            children: Vec::new(),
            tables: String::new(),
        };
        match engine {
            "etcd" => servers.start_etcd(directory)?,
            _ => servers.start_redis(directory)?,
        }
        Ok(servers)
    }

    fn start_etcd(&mut self, directory: &Path) -> Result<()> {
        let places = (0..3).map(|member| Ok((member, free_port()?, free_port()?)));
        let places = places.collect::<Result<Vec<_>>>()?;
        let peers = places
            .iter()
            .map(|(member, _, peer)| format!("m{member}=http://127.0.0.1:{peer}"));
        let peers = peers.collect::<Vec<_>>().join(",");
        for (member, client, peer) in &places {
            let arguments = [
                format!("--name=m{member}"),
                format!("--data-dir={}/m{member}", directory.display()),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster={peers}"),
            ];
            self.children.push(spawn("etcd", &arguments)?);
        }
        for (_, client, _) in &places {
            until_well(
                *client,
                "GET /health HTTP/1.0\r\n\r\n",
                "\"health\":\"true\"",
            )?;
        }
        let endpoints = places
            .iter()
            .map(|(_, client, _)| format!("\"127.0.0.1:{client}\""));
        let endpoints = endpoints.collect::<Vec<_>>().join(", ");
        self.tables = format!("[store.etcd]\nendpoints = [{endpoints}]\n");
        Ok(())
    }

    fn start_redis(&mut self, directory: &Path) -> Result<()> {
        let port = free_port()?;
        let arguments = format!(
            "--bind 127.0.0.1 --port {port} --appendonly yes --appendfsync always --dir {}",
            directory.display()
        );
        let mut arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        arguments.extend(["--save".to_owned(), String::new()]);
        self.children.push(spawn("redis-server", &arguments)?);
        until_well(port, "PING\r\nQUIT\r\n", "+PONG")?;
        self.tables = format!("[store.redis]\nserver = \"127.0.0.1:{port}\"\n");
        Ok(())
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn spawn(program: &str, arguments: &[String]) -> Result<Child> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {program}"))
}

fn until_well(port: u16, ask: &str, expected: &str) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let is_well = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.write_all(ask.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer.contains(expected))
    };
    while !is_well().unwrap_or(false) {
        ensure!(
            Instant::now() < deadline,
            "the server at port {port} does not answer"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// When each put was sent, acknowledged, and seen by each proxy: nanoseconds since the beginning, 0 if not yet.
struct Times {
    began: Instant,
    sent: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
    seen: Vec<[AtomicU64; PROXIES]>,
}

impl Times {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn measure(engine: &str, binary: &Path, tables: &str, rate: usize) -> Result<()> {
    let tables = format!("{tables}[buckets.shared]\nbackend = \"{engine}\"\nvalues = \"bytes\"\n");
    let proxies = (0..PROXIES).map(|_| Running::start_by_header(binary, &tables));
    let proxies = proxies.collect::<Result<Vec<_>>>()?;
    let puts = rate * SECONDS;
    let times = Arc::new(Times {
        began: Instant::now(),
        sent: (0..puts).map(|_| AtomicU64::new(0)).collect(),
        acknowledged: (0..puts).map(|_| AtomicU64::new(0)).collect(),
        seen: (0..puts).map(|_| Default::default()).collect(),
    });
    for (number, proxy) in proxies.iter().enumerate() {
        let events = watch(proxy.admin)?;
        let times = Arc::clone(&times);
        thread::spawn(move || note(events, number, &times));
    }
    let addresses: Vec<SocketAddr> = proxies.iter().map(|proxy| proxy.admin).collect();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..CONNECTIONS)
            .map(|first| {
                let (times, address) = (&times, addresses[first % PROXIES]);
                scope.spawn(move || put_some(address, first, rate, times))
            })
            .collect();
        let mut ended = writers.into_iter().map(|writer| writer.join());
        ended.try_for_each(|ended| ended.map_err(|_| anyhow::anyhow!("a writer failed"))?)
    })?;
    let took = Duration::from_nanos(times.now());
    let deadline = Instant::now() + TIMEOUT;
    let is_seen = || {
        let mut all = times.seen.iter().flatten();
        all.all(|seen| seen.load(Relaxed) > 0)
    };
    while !is_seen() {
        ensure!(Instant::now() < deadline, "not every proxy has every put");
        thread::sleep(Duration::from_millis(20));
    }
    let mut acknowledged = Vec::new();
    let mut seen = Vec::new();
    for put in 0..puts {
        let sent = times.sent[put].load(Relaxed);
        acknowledged.push(times.acknowledged[put].load(Relaxed) - sent);
        let last = times.seen[put].iter().map(|seen| seen.load(Relaxed)).max();
        seen.push(last.unwrap_or(sent).saturating_sub(sent));
    }
    acknowledged.sort_unstable();
    seen.sort_unstable();
    let at = |spans: &[u64], share: f64| {
        let index = ((spans.len() - 1) as f64 * share) as usize;
        Duration::from_nanos(spans[index])
    };
    println!(
        "| {engine} | {:.0} | {:.1?} | {:.1?} | {:.1?} | {:.1?} | {:.1?} |",
        puts as f64 / took.as_secs_f64(),
        at(&acknowledged, 0.5),
        at(&acknowledged, 0.99),
        at(&seen, 0.5),
        at(&seen, 0.99),
        at(&seen, 1.0),
    );
    Ok(())
}

/// Every so manieth put, each at its time, or as soon as the one before is acknowledged.
fn put_some(admin: SocketAddr, first: usize, rate: usize, times: &Times) -> Result<()> {
    let mut socket = TcpStream::connect(admin)?;
    socket.set_nodelay(true)?;
    for put in (first..rate * SECONDS).step_by(CONNECTIONS) {
        let due = Duration::from_secs_f64(put as f64 / rate as f64);
        thread::sleep(due.saturating_sub(times.began.elapsed()));
        let value = put.to_string();
        let request = format!(
            "PUT /v1/kv/shared/k{} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: {}\r\n\r\n{value}",
            put % KEYS,
            value.len()
        );
        times.sent[put].store(times.now(), Relaxed);
        socket.write_all(request.as_bytes())?;
        let (head, _) = read_message(&mut socket)?;
        times.acknowledged[put].store(times.now(), Relaxed);
        ensure!(matches!(status(&head)?, 200 | 201), "{head}");
    }
    Ok(())
}

fn watch(admin: SocketAddr) -> Result<BufReader<TcpStream>> {
    let mut socket = TcpStream::connect(admin)?;
    write!(
        socket,
        "GET /v1/kv/shared?watch HTTP/1.0\r\nHost: {admin}\r\n\r\n"
    )?;
    let mut events = BufReader::new(socket);
    let mut line = String::new();
    while events.read_line(&mut line)? > 2 {
        ensure!(
            !line.starts_with("HTTP") || line.contains(" 200 "),
            "{line}"
        );
        line.clear();
    }
    Ok(events)
}

/// Notes what a watch tells, until it ends.
fn note(events: BufReader<TcpStream>, proxy: usize, times: &Times) {
    for line in events.lines().map_while(std::io::Result::ok) {
        let now = times.now();
        // One event has everything of one revision.
        for rest in line.split("\"value\":\"").skip(1) {
            let value = rest.split('"').next().and_then(|value| value.parse().ok());
            let seen = value.and_then(|put: usize| times.seen.get(put));
            if let Some(seen) = seen {
                // It may be the value of a key that was there before.
                let _ = seen[proxy].compare_exchange(0, now, Relaxed, Relaxed);
            }
        }
    }
}
