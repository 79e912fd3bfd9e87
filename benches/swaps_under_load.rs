//! What swaps cost traffic: memory over a thousand of them with streams open, and requests while one follows another.
//!
//! `swaps-under-load target/release/throwbar [--streams 9000] [--swaps 1000] [--seconds 60]`
//!
//! First: streams opened across all swaps, against as many opened after one swap; resident memory of the proxy with all
//! open, and after they closed. Then: requests at a steady pace for so long, a swap every 100 ms; every answer has to be
//! 200, and decided by a version that was active at some moment between the request's beginning and its end. Ten minutes,
//! `--seconds 600`, write an access log of some 2 GB to the directory for temporary files.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use throwbar_benches::load::{beside_load, quantile};
use throwbar_benches::running::{Running, version};
use throwbar_benches::wire::open_websocket;

const SWAP_EVERY: Duration = Duration::from_millis(100);
/// Deployed in turn, so that after the first turn what is measured is the swap and not the compiler.
const VERSIONS: usize = 16;
/// How long closed streams may take to be gone.
const SETTLE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let usage = "usage: swaps-under-load PATH-OF-THROWBAR [--streams N] [--swaps N] [--seconds N]";
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().context(usage)?;
    let mut numbers = BTreeMap::from([("--streams", 9_000), ("--swaps", 1_000), ("--seconds", 60)]);
    while let Some(name) = arguments.next() {
        let number = arguments.next().context(usage)?.parse().context(usage)?;
        *numbers.get_mut(name.as_str()).context(usage)? = number;
    }
    let binary = Path::new(&binary);
    memory(binary, numbers["--streams"], numbers["--swaps"])?;
    println!();
    traffic(binary, numbers["--seconds"])
}

fn memory(binary: &Path, streams: usize, swaps: usize) -> Result<()> {
    println!("| swaps | streams | RSS before | all open | closed |");
    println!("|---|---|---|---|---|");
    for swaps in [1, swaps.max(1)] {
        let running = Running::start(binary, &["--data", "data"])?;
        running.push(&version(0)?)?;
        let before = running.rss_kib()?;
        let mut open = Vec::with_capacity(streams);
        for swap in 1..=swaps {
            running.push(&version((swap % VERSIONS) as u32)?)?;
            while open.len() < streams * swap / swaps {
                open.push(open_websocket(running.address, &running.fields)?);
            }
        }
        let all_open = running.rss_kib()?;
        drop(open);
        thread::sleep(SETTLE);
        let closed = running.rss_kib()?;
        println!("| {swaps} | {streams} | {before} KiB | {all_open} KiB | {closed} KiB |");
    }
    Ok(())
}

/// Microseconds since a moment, from beginning to end.
type Span = (u64, u64);

fn traffic(binary: &Path, seconds: usize) -> Result<()> {
    let route = "[[route]]\nplugin = \"by-header\"\n";
    let running = Running::start_by_header(binary, route)?;
    let versions = (0..VERSIONS).map(|number| version(number as u32));
    let versions: Vec<_> = versions.collect::<Result<_>>()?;
    let mut pushes = Vec::new();
    for component in &versions {
        pushes.push(push(&running, component)?);
    }
    let before = running.rss_kib()?;
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let (swaps, latencies) = beside_load(&running, || swap_until(&running, &versions, end))?;
    let after = running.rss_kib()?;
    let swapped = swaps.len();
    pushes.extend(swaps);
    let (checked, versions) = check(running.access_log()?, &pushes)?;
    println!(
        "| seconds | swaps | requests | not 200 | by a version not active | versions seen | p50 | p99 | RSS before | after |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    println!(
        "| {seconds} | {} | {} | 0 | 0 of {checked} | {versions} | {} µs | {} µs | {before} KiB | {after} KiB |",
        swapped,
        latencies.len(),
        quantile(&latencies, 0.5),
        quantile(&latencies, 0.99)
    );
    Ok(())
}

/// Swaps at a pace: each push.
fn swap_until(
    running: &Running,
    versions: &[Vec<u8>],
    end: Instant,
) -> Result<Vec<(String, Span)>> {
    let mut pushes = Vec::new();
    let mut next = Instant::now();
    for component in versions.iter().cycle() {
        if Instant::now() >= end {
            break;
        }
        pushes.push(push(running, component)?);
        next += SWAP_EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(pushes)
}

/// Pushes a version; its digest, with when it was sent and when it was acknowledged.
fn push(running: &Running, component: &[u8]) -> Result<(String, Span)> {
    let sent = unix_us();
    running.push(component)?;
    Ok((digest(component), (sent, unix_us())))
}

/// Holds each line of the access log against the pushes; how many lines, and how many versions they name.
fn check(log: impl BufRead, pushes: &[(String, Span)]) -> Result<(usize, usize)> {
    // What was pushed before it was acknowledged may have been active; it was for sure until the next one was sent.
    let mut live: BTreeMap<&str, Vec<Span>> = BTreeMap::new();
    for (index, (digest, (sent, _))) in pushes.iter().enumerate() {
        let until = pushes
            .get(index + 1)
            .map_or(u64::MAX, |(_, (_, done))| *done);
        live.entry(&digest[..12]).or_default().push((*sent, until));
    }
    let (mut checked, mut seen) = (0, BTreeMap::new());
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(&line?)?;
        if value["kind"] != "request" {
            continue;
        }
        let version = value["version"].as_str().context("a version")?;
        let Some(live) = live.get(version) else {
            // The built-in one, before the first push.
            continue;
        };
        let time: jiff::Timestamp = value["time"].as_str().context("a time")?.parse()?;
        let duration = value["duration_us"].as_u64().context("a duration")?;
        let ended = time.as_microsecond() as u64;
        // The log's time is cut to milliseconds.
        let (began, ended) = (ended.saturating_sub(duration + 1_000), ended + 1_000);
        ensure!(
            live.iter()
                .any(|(from, until)| *from <= ended && began <= *until),
            "version {version} was live {live:?}, not from {began} to {ended}"
        );
        checked += 1;
        *seen.entry(version.to_owned()).or_insert(0) += 1;
    }
    Ok((checked, seen.len()))
}

fn digest(component: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(component);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unix_us() -> u64 {
    jiff::Timestamp::now().as_microsecond() as u64
}
