//! What writes cost traffic: requests at a steady pace, without and with many writers of the store on disk, while
//! WebSockets stay open.
//!
//! `writes-beside-traffic target/release/throwbar [--streams 9900] [--writers 64] [--puts 10500] [--requests 10000]
//! [--seconds 10] [--rounds 3]`
//!
//! Each writer puts one key after the other through the admin API, on a connection of its own, at its share of that pace,
//! and goes on once the put is acknowledged as durable. Writers are on other machines in earnest: here they yield the cores
//! to the proxy and to those whose latency is measured (nice 19). What the cores themselves take from the requests is told by
//! a third case: the same writers write to a proxy of their own, beside the one that is asked.
//!
//! A request is measured by its client, from the first byte sent to the last one received; its decision, the plugin's look
//! into the store that is written to, by the proxy (`decision_ns` of the access log).

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use throwbar_benches::load::{beside_load_of, quantile};
use throwbar_benches::running::Running;
use throwbar_benches::wire::{open_websocket, read_message, status};

/// Keys that are written in turns.
const KEYS: usize = 100_000;

fn main() -> Result<()> {
    let usage = "usage: writes-beside-traffic PATH-OF-THROWBAR [--streams N] [--writers N] [--puts N] [--requests N] \
                 [--seconds N] [--rounds N]";
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().context(usage)?;
    let mut numbers = BTreeMap::from([
        ("--streams", 9_900),
        ("--writers", 64),
        ("--puts", 10_500),
        ("--requests", 10_000),
        ("--seconds", 10),
        ("--rounds", 3),
    ]);
    while let Some(name) = arguments.next() {
        let number = arguments.next().context(usage)?.parse().context(usage)?;
        *numbers.get_mut(name.as_str()).context(usage)? = number;
    }
    let start = || {
        let tables = "[buckets.written]\n[[route]]\nplugin = \"by-header\"\n";
        Running::start_by_header(Path::new(&binary), tables)
    };
    let (running, other) = (start()?, start()?);
    let open = |_| open_websocket(running.address, &running.fields);
    let streams = (0..numbers["--streams"])
        .map(open)
        .collect::<Result<Vec<_>>>()?;
    let time = Duration::from_secs(numbers["--seconds"] as u64);
    let requests = numbers["--requests"] as u32;
    println!("| puts | puts/s | put p50 | p99 | requests/s | request p50 | p99 |");
    println!("|---|---|---|---|---|---|---|");
    let mut spans = Vec::new();
    for _ in 0..numbers["--rounds"] {
        let puts = numbers["--puts"];
        for (case, written_to, puts) in [
            ("none", &running, 0),
            ("elsewhere", &other, puts),
            ("with", &running, puts),
        ] {
            let (began, from) = (Instant::now(), now_ms());
            let work = || write_for(written_to, time, numbers["--writers"], puts);
            let (written, latencies) = beside_load_of(&running, requests, work)?;
            let took = began.elapsed().as_secs_f64();
            spans.push((case, from..now_ms()));
            println!(
                "| {case} | {:.0} | {} µs | {} µs | {:.0} | {} µs | {} µs |",
                written.len() as f64 / took,
                quantile(&written, 0.5),
                quantile(&written, 0.99),
                latencies.len() as f64 / took,
                quantile(&latencies, 0.5),
                quantile(&latencies, 0.99)
            );
        }
    }
    let listed = running.ask("GET", "/v1/status", b"")?;
    let listed: serde_json::Value = serde_json::from_slice(&listed)?;
    let open = &listed["streams"]["open"];
    println!("\n{} streams were opened, {open} are open\n", streams.len());
    show_decisions(running.access_log()?, &spans)
}

/// Milliseconds since 1970, as the access log tells them.
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// How long the decisions took of the requests that ended within each case's time.
fn show_decisions(log: impl BufRead, spans: &[(&str, Range<i64>)]) -> Result<()> {
    let mut taken = vec![Vec::new(); spans.len()];
    for line in log.lines() {
        let line: Line = serde_json::from_str(&line?)?;
        let Some(decision_ns) = line.decision_ns.filter(|_| line.kind == "request") else {
            continue;
        };
        let ended = line.time.parse::<jiff::Timestamp>()?.as_millisecond();
        let mut cases = spans.iter().zip(&mut taken);
        if let Some((_, taken)) = cases.find(|((_, span), _)| span.contains(&ended)) {
            taken.push(decision_ns);
        }
    }
    println!("| puts | decisions | p50 | p99 | p99.9 |");
    println!("|---|---|---|---|---|");
    for ((case, _), taken) in spans.iter().zip(&mut taken) {
        taken.sort_unstable();
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| quantile(taken, share));
        let count = taken.len();
        println!("| {case} | {count} | {p50} ns | {p99} ns | {p999} ns |");
    }
    Ok(())
}

/// What is read of a line of the access log.
#[derive(serde::Deserialize)]
struct Line {
    kind: String,
    time: String,
    decision_ns: Option<u32>,
}

/// Puts at a pace for a time, 0 for none; microseconds that each took, shortest first.
fn write_for(running: &Running, time: Duration, writers: usize, puts: usize) -> Result<Vec<u32>> {
    if puts == 0 {
        thread::sleep(time);
        return Ok(Vec::new());
    }
    let end = Instant::now() + time;
    let pace = Duration::from_secs_f64(writers as f64 / puts as f64);
    thread::scope(|scope| {
        let all: Vec<_> = (0..writers)
            .map(|number| scope.spawn(move || write(running, number, pace, end)))
            .collect();
        let mut took = Vec::new();
        for writer in all {
            took.extend(writer.join().expect("a writer does not panic")?);
        }
        took.sort_unstable();
        Ok(took)
    })
}

fn write(running: &Running, number: usize, pace: Duration, end: Instant) -> Result<Vec<u32>> {
    // Of this thread alone, on Linux.
    rustix::process::setpriority_process(None, 19)?;
    let mut socket = TcpStream::connect(running.admin)?;
    socket.set_nodelay(true)?;
    let (mut took, mut next) = (Vec::new(), Instant::now());
    for turn in 0.. {
        let sent = Instant::now();
        if sent >= end {
            break;
        }
        let key = (turn * 7_919 + number * 104_729) % KEYS;
        let value = format!("10.{}.{}.{}", turn >> 16 & 255, turn >> 8 & 255, turn & 255);
        let head = format!(
            "PUT /v1/kv/written/agent-{key} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{value}",
            running.admin,
            value.len()
        );
        socket.write_all(head.as_bytes())?;
        let (answer, _) = read_message(&mut socket)?;
        ensure!(matches!(status(&answer)?, 200 | 201), "{answer}");
        took.push(sent.elapsed().as_micros() as u32);
        next += pace;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(took)
}
