//! How long a map change takes to be acknowledged, and to be seen by a request on an open connection.
//!
//! `map-changes target/release/throwbar`
//!
//! One entry of 10,000 is set to the one and the other endpoint in turn, through the admin API on one connection; right after
//! each, a request for it goes out on another, and has to be answered by the new endpoint.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};
use throwbar_benches::running::{ECHO_HOSTS, Running};
use throwbar_benches::wire::{read_message, status};

const ENTRIES: usize = 10_000;
const CHANGES: usize = 1_000;

fn main() -> Result<()> {
    let binary = std::env::args_os()
        .nth(1)
        .context("usage: map-changes PATH-OF-THROWBAR")?;
    println!("| store | acknowledged p50 | p99 | answered by the new endpoint p50 | p99 |");
    println!("|---|---|---|---|---|");
    for (name, options) in [("memory", &[][..]), ("disk", &["--data", "data"])] {
        let [acknowledged, seen] = measure(Path::new(&binary), options)?;
        let [a50, a99, s50, s99] = [
            quantile(&acknowledged, 0.5),
            quantile(&acknowledged, 0.99),
            quantile(&seen, 0.5),
            quantile(&seen, 0.99),
        ];
        println!("| {name} | {a50:.0?} | {a99:.0?} | {s50:.0?} | {s99:.0?} |");
    }
    Ok(())
}

/// Spans from the change sent to its acknowledgement, and to the answer.
fn measure(binary: &Path, options: &[&str]) -> Result<[Vec<Duration>; 2]> {
    let running = Running::start(binary, options)?;
    let mut admin = TcpStream::connect(running.admin)?;
    let mut client = TcpStream::connect(running.address)?;
    admin.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let mut lines = String::new();
    for entry in 0..ENTRIES {
        lines.push_str(&format!("id{entry} 10.0.0.1\n"));
    }
    change(&mut admin, "POST", "/import", &lines)?;
    let mut spans = [Vec::new(), Vec::new()];
    for turn in 0..CHANGES {
        let host = ECHO_HOSTS[(turn + 1) % 2];
        let sent = Instant::now();
        change(&mut admin, "PUT", "/echo", host)?;
        spans[0].push(sent.elapsed());
        let fields = &running.fields;
        write!(client, "GET / HTTP/1.1\r\nHost: bench.test\r\n{fields}\r\n")?;
        let (answer, _) = read_message(&mut client)?;
        spans[1].push(sent.elapsed());
        let expected = format!("x-echo-server: {host}:");
        ensure!(answer.contains(&expected), "after {host} was set: {answer}");
    }
    for spans in &mut spans {
        spans.sort_unstable();
    }
    Ok(spans)
}

fn change(admin: &mut TcpStream, method: &str, path: &str, body: &str) -> Result<()> {
    write!(
        admin,
        "{method} /v1/kv/upstreams{path} HTTP/1.1\r\nHost: {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        admin.peer_addr()?,
        body.len()
    )?;
    let (answer, _) = read_message(admin)?;
    ensure!(status(&answer)? / 100 == 2, "{method} {path}: {answer}");
    Ok(())
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}
