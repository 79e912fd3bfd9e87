//! What a guest that loops costs: how long after its deadline it is cut, and what requests of another route notice.
//!
//! `looping-guest target/release/throwbar [--seconds 10]`
//!
//! Two routes, two plugins, two workers. 10,000 requests a second go to route B at a steady pace; beside them, so many a
//! second to route A, of whose calls every one loops. The rows are in turns, the first without any. A call that loops has
//! its worker until it is cut, so what route B notices grows with how many there are.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use throwbar_benches::load::{beside_load, quantile};
use throwbar_benches::running::Running;
use throwbar_benches::wire::{read_message, status};

/// Of plugins, by default.
const DEADLINE: Duration = Duration::from_millis(5);
/// Looping calls a second, of each row.
const RATES: [u32; 4] = [0, 1, 10, 50];
const ROUNDS: usize = 3;
const TABLES: &str = r#"
[plugins.looping]
buckets = { upstreams = "read" }
[[route]]
match = { path = "/loop" }
plugin = "looping"
[[route]]
plugin = "by-header"
"#;

fn main() -> Result<()> {
    let usage = "usage: looping-guest PATH-OF-THROWBAR [--seconds N]";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (binary, seconds) = match &arguments[..] {
        [binary] => (binary, 10),
        [binary, flag, number] if flag == "--seconds" => (binary, number.parse().context(usage)?),
        _ => anyhow::bail!(usage),
    };
    let running = Running::start_by_header(Path::new(binary), TABLES)?;
    running.ask("PUT", "/v1/plugins/looping", &looping()?)?;
    println!("| looping calls a second | requests of B | p50 | p99 | p99 against without |");
    println!("|---|---|---|---|---|");
    let mut ratios = RATES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        let mut without = 0;
        for (row, rate) in RATES.iter().enumerate() {
            let work = || send_looping(&running, *rate, Duration::from_secs(seconds));
            let ((), latencies) = beside_load(&running, work)?;
            let (p50, p99) = (quantile(&latencies, 0.5), quantile(&latencies, 0.99));
            if *rate == 0 {
                without = p99;
            }
            let ratio = f64::from(p99) / f64::from(without.max(1));
            ratios[row].push(ratio);
            println!(
                "| {rate} | {} | {p50} µs | {p99} µs | {ratio:.2} |",
                latencies.len()
            );
        }
    }
    println!();
    println!("| looping calls a second | median of p99 against without | least | most |");
    println!("|---|---|---|---|");
    for (rate, mut ratios) in RATES.into_iter().zip(ratios).skip(1) {
        ratios.sort_by(f64::total_cmp);
        println!(
            "| {rate} | {:.2} | {:.2} | {:.2} |",
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
    println!();
    cuts(running.access_log()?)
}

/// Sends requests whose call loops, so many a second for so long.
fn send_looping(running: &Running, rate: u32, span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    if rate == 0 {
        thread::sleep(span);
        return Ok(());
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // A connection each for two, so that both workers get their part.
        let senders: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| sender(running, f64::from(rate) / 2.0, &stop)))
            .collect();
        thread::sleep(end.saturating_duration_since(Instant::now()));
        stop.store(true, Ordering::Relaxed);
        senders
            .into_iter()
            .try_for_each(|sender| sender.join().expect("it does not panic"))
    })
}

fn sender(running: &Running, rate: f64, stop: &AtomicBool) -> Result<()> {
    let pace = Duration::from_secs_f64(1.0 / rate);
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // Another connection each time, which may be another worker's.
        let mut socket = TcpStream::connect(running.address)?;
        socket.write_all(b"GET /loop HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n")?;
        let (head, _) = read_message(&mut socket)?;
        ensure!(status(&head)? == 503, "a looping call is answered: {head}");
        next += pace;
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            let left = next.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(20)));
        }
    }
    Ok(())
}

/// How long after its deadline each looping call was cut, as the access log has it.
fn cuts(log: impl BufRead) -> Result<()> {
    let mut late = Vec::new();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        if line["path"] == "/loop" {
            let nanos = line["decision_ns"].as_u64().context("a decision time")?;
            late.push((nanos / 1000).saturating_sub(DEADLINE.as_micros() as u64) as u32);
        }
    }
    late.sort_unstable();
    println!("| cut after its deadline | calls | median | p99 | most |");
    println!("|---|---|---|---|---|");
    println!(
        "| | {} | {} µs | {} µs | {} µs |",
        late.len(),
        quantile(&late, 0.5),
        quantile(&late, 0.99),
        quantile(&late, 1.0)
    );
    Ok(())
}

/// The least guest, made to loop.
fn looping() -> Result<Vec<u8>> {
    let least = include_str!("src/by_value.wat");
    let decides = "(i32.store (i32.const 264)";
    ensure!(least.contains(decides), "the least guest is another one");
    Ok(wat::parse_str(
        least.replace(decides, &format!("(loop (br 0)) {decides}")),
    )?)
}
