//! Requests at a steady pace, whatever happens beside them.

use crate::running::Running;
use crate::wire::{read_message, status};
use anyhow::{Result, ensure};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CLIENTS: usize = 10;
/// Of all clients together, unless it is said.
const REQUESTS_PER_SECOND: u32 = 10_000;

/// Sends requests while `work` is done; what it returned, and the microseconds that each request took, shortest first.
///
/// # Errors
/// The work's, or an answer that is not 200.
pub fn beside_load<T>(
    running: &Running,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<u32>)> {
    beside_load_of(running, REQUESTS_PER_SECOND, work)
}

/// The same with so many requests a second.
///
/// # Errors
/// As for [`beside_load`].
pub fn beside_load_of<T>(
    running: &Running,
    requests_per_second: u32,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<u32>)> {
    let pace = Duration::from_secs(CLIENTS as u64) / requests_per_second.max(1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| client(running, pace, &stop)))
            .collect();
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.join().expect("a client does not panic")?);
        }
        latencies.sort_unstable();
        Ok((done?, latencies))
    })
}

/// A quantile of sorted latencies; 0 of none.
pub fn quantile(sorted: &[u32], share: f64) -> u32 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share) as usize)
        .copied()
        .unwrap_or(0)
}

/// Requests at a pace; microseconds each took.
fn client(running: &Running, pace: Duration, stop: &AtomicBool) -> Result<Vec<u32>> {
    let mut socket = TcpStream::connect(running.address)?;
    socket.set_nodelay(true)?;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: bench.test\r\n{}\r\n",
        running.fields
    );
    let mut next = Instant::now();
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        socket.write_all(head.as_bytes())?;
        let (answer, _) = read_message(&mut socket)?;
        ensure!(status(&answer)? == 200, "not 200: {answer}");
        latencies.push(sent.elapsed().as_micros() as u32);
        next += pace;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(latencies)
}
