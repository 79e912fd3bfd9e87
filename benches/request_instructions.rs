//! How many instructions a proxied request costs, counted by callgrind: repeatable on a noisy machine.
//!
//! `cargo run --release -p throwbar-benches --bin request-instructions -- target/release/throwbar`
//!
//! The proxy runs twice under `valgrind --tool=callgrind`, with one worker, for few and for many requests; the
//! difference, divided, is what one more request costs, start and stop excluded. Rows: an address of the config (no
//! plugin), and the built-in by-header plugin with 10,000 entries, each with the access log going to a file.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use throwbar_benches::callgrind;
use throwbar_benches::wire::read_message;

const FEW: usize = 2_000;
const MANY: usize = 10_000;
const CONNECTIONS: usize = 8;
const ENTRIES: usize = 10_000;
const BODY_BYTES: usize = 1024;
const START_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let proxy = std::env::args_os()
        .nth(1)
        .context("usage: request-instructions PATH-OF-THROWBAR")?;
    let upstream = upstream()?;
    println!("| route | instructions per request |");
    println!("|---|---|");
    for (name, row) in [
        ("address of the config", Row::Address),
        ("by-header plugin", Row::Plugin),
    ] {
        let count = |requests| measure(Path::new(&proxy), row, upstream, requests);
        let each = (count(MANY)? - count(FEW)?) / (MANY - FEW) as u64;
        println!("| {name} | {each} |");
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Row {
    Address,
    Plugin,
}

/// Instructions of a whole run with so many requests.
fn measure(proxy: &Path, row: Row, upstream: u16, requests: usize) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let out = directory.path().join("callgrind.out");
    let mut child = start(
        proxy,
        &arguments(row, directory.path(), port, upstream)?,
        directory.path(),
        &out,
    )?;
    let ran = wait_for(port).and_then(|()| load(port, upstream, requests));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    ensure!(child.wait()?.success(), "the proxy failed");
    ran?;
    callgrind::total(&out)
}

/// What `throwbar` is called with.
fn arguments(row: Row, directory: &Path, port: u16, upstream: u16) -> Result<Vec<String>> {
    let text = |path: PathBuf| path.display().to_string();
    let log = text(directory.join("access.log"));
    let config = directory.join("throwbar.toml");
    match row {
        Row::Address => {
            let listener =
                format!("[[listener]]\nlisten = \"127.0.0.1:{port}\"\nprotocols = [\"h1\"]\n");
            let route = format!("[[route]]\nto = \"127.0.0.1:{upstream}\"\n");
            let rest =
                format!("[admin]\nlisten = \"unix:admin.sock\"\n[log]\naccess = \"{log}\"\n");
            std::fs::write(&config, format!("workers = 1\n{listener}{route}{rest}"))?;
            Ok(vec!["serve".into(), text(config)])
        }
        Row::Plugin => {
            let map = (0..ENTRIES).fold(String::new(), |mut lines, i| {
                writeln!(lines, "id{i} 127.0.0.1").expect("writing to memory");
                lines
            });
            std::fs::write(directory.join("map"), map)?;
            let listen = format!("127.0.0.1:{port}");
            let admin = format!("unix:{}", text(directory.join("admin.sock")));
            let map = text(directory.join("map"));
            let arguments = [
                "serve",
                "--workers",
                "1",
                "--listen",
                &listen,
                "--admin",
                &admin,
                "--map-file",
                &map,
                // Valgrind cannot start itself again as this program.
                "--compile-on-thread",
            ];
            let log = [
                "--access-log",
                &log,
                "--by-header",
                "X-ID",
                "--port-header",
                "X-Port",
            ];
            Ok(arguments.into_iter().chain(log).map(String::from).collect())
        }
    }
}

fn start(proxy: &Path, arguments: &[String], directory: &Path, out: &Path) -> Result<Child> {
    let command = Command::new("valgrind")
        // One thread at a time runs; none may wait for long, or a deadline cuts a client.
        .args(["--tool=callgrind", "--quiet", "--fair-sched=try"])
        .arg(callgrind::out_file(out))
        .arg(std::path::absolute(proxy)?)
        .args(arguments)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    command.context("start valgrind (package valgrind)")
}

fn wait_for(port: u16) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(
            Instant::now() < deadline,
            "the proxy did not start within {START_TIMEOUT:?}"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Sends the requests over a few connections, each id in turn.
fn load(port: u16, upstream: u16, requests: usize) -> Result<()> {
    let each = requests / CONNECTIONS;
    let client = |connection: usize| -> Result<()> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        for request in 0..each {
            let id = (connection * each + request) * 7 % ENTRIES;
            let head = "GET / HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n";
            write!(socket, "{head}X-ID: id{id}\r\nX-Port: {upstream}\r\n\r\n")?;
            let (head, body) = read_message(&mut socket)?;
            ensure!(
                head.starts_with("HTTP/1.1 200") && body == BODY_BYTES,
                "answer: {head}"
            );
        }
        Ok(())
    };
    let client = &client;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|connection| scope.spawn(move || client(connection)))
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().expect("a client does not panic"))
    })
}

/// Answers each request with 1 KiB.
fn upstream() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            // Ends with the proxy's connection.
            thread::spawn(move || answer(socket));
        }
    });
    Ok(port)
}

fn answer(mut socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let body = "x".repeat(BODY_BYTES);
    loop {
        read_message(&mut socket)?;
        write!(
            socket,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY_BYTES}\r\n\r\n{body}"
        )?;
    }
}
