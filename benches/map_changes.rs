//! How long a map change takes to be acknowledged, and to be seen by requests on open connections.
//!
//! `map-changes target/release/throwbar`
//!
//! One entry of 10,000 is set to the one and the other endpoint in turn, through the admin API on one connection; right after
//! each, a request for it goes out on another, and has to be answered by the new endpoint. Then one goes out on each of eight
//! at once, which are spread over all workers, and the new endpoint has to answer all of them.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};
use throwbar_benches::running::{ECHO_HOSTS, Running};
use throwbar_benches::wire::{read_message, status};

const ENTRIES: usize = 10_000;
const CHANGES: usize = 1_000;
/// Connections that ask at once.
const CLIENTS: usize = 8;

fn main() -> Result<()> {
    let binary = std::env::args_os()
        .nth(1)
        .context("usage: map-changes PATH-OF-THROWBAR")?;
    println!(
        "| store | acknowledged p50 | p99 | answered by the new endpoint p50 | p99 | {CLIENTS} at once p50 | p99 |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, options) in [("memory", &[][..]), ("disk", &["--data", "data"])] {
        print!("| {name} |");
        for spans in measure(Path::new(&binary), options)? {
            let [half, most] = [0.5, 0.99].map(|share| quantile(&spans, share));
            print!(" {half:.0?} | {most:.0?} |");
        }
        println!();
    }
    Ok(())
}

/// Spans from the change sent to its acknowledgement, to the answer on one connection, and to the last one of several.
fn measure(binary: &Path, options: &[&str]) -> Result<[Vec<Duration>; 3]> {
    let running = Running::start(binary, options)?;
    let mut admin = TcpStream::connect(running.admin)?;
    admin.set_nodelay(true)?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = TcpStream::connect(running.address)?;
        client.set_nodelay(true)?;
        clients.push(client);
    }
    let mut lines = String::new();
    for entry in 0..ENTRIES {
        lines.push_str(&format!("id{entry} 10.0.0.1\n"));
    }
    change(&mut admin, "POST", "/import", &lines)?;
    let mut spans = [Vec::new(), Vec::new(), Vec::new()];
    for turn in 0..2 * CHANGES {
        let host = ECHO_HOSTS[(turn + 1) % 2];
        let (asking, answered) = match turn % 4 {
            0 | 1 => (&mut clients[..1], 1),
            _ => (&mut clients[..], 2),
        };
        let sent = Instant::now();
        change(&mut admin, "PUT", "/echo", host)?;
        let acknowledged = sent.elapsed();
        let fields = &running.fields;
        for client in asking.iter_mut() {
            write!(client, "GET / HTTP/1.1\r\nHost: bench.test\r\n{fields}\r\n")?;
        }
        let expected = format!("x-echo-server: {host}:");
        for client in asking {
            let (answer, _) = read_message(client)?;
            ensure!(answer.contains(&expected), "after {host} was set: {answer}");
        }
        spans[0].push(acknowledged);
        spans[answered].push(sent.elapsed());
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
