//! What does a session cost its stream: how much memory while it is idle, how long for each message?
//!
//! `cargo run --release -p throwbar-benches --bin session-streams` prints a row for streams without and one for streams
//! with a session of the built-in chat-filter. The memory is that of this process, beside the kernel's for sockets. The
//! time is that of small messages that come many at once, from the client's socket to the endpoint's: what the rows differ
//! by is a frame taken apart and unmasked, the call, and what the guest does.

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use throwbar_benches::chats::{Chats, Relayed};

/// Streams whose memory is measured, if there are descriptors for so many.
const STREAMS: u64 = 5_000;
/// Messages whose time is measured.
const MESSAGES: usize = 1_000_000;
/// A masked text frame of 32 bytes.
const FRAME_BYTES: usize = 6 + 32;

fn main() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let streams = limit
        .current
        .map_or(STREAMS, |most| STREAMS.min((most - 100) / 4));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    let chats = Chats::start()?;
    runtime.block_on(async {
        println!("| session | bytes of an idle stream | ns of a message |");
        println!("|---|---|---|");
        for hooked in [false, true] {
            let bytes = memory(&chats, hooked, streams)?;
            let nanos = time(&chats, hooked).await?;
            let name = if hooked { "with" } else { "without" };
            println!("| {name} | {bytes} | {nanos} |");
        }
        Ok(())
    })
}

fn memory(chats: &Chats, hooked: bool, streams: u64) -> Result<u64> {
    let relayed = Relayed::new(chats)?;
    // The first pays for the instance.
    let open = || relayed.open(hooked.then(|| chats.open()).transpose()?);
    let mut ends = Vec::with_capacity(streams as usize + 1);
    ends.push(open()?);
    let before = resident()?;
    for _ in 0..streams {
        ends.push(open()?);
    }
    Ok(resident()?.saturating_sub(before) / streams)
}

fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1);
    let pages: u64 = pages.context("statm has a second number")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}

async fn time(chats: &Chats, hooked: bool) -> Result<u128> {
    let relayed = Relayed::new(chats)?;
    let mut ends = relayed.open(hooked.then(|| chats.open()).transpose()?)?;
    let relay = tokio::task::spawn_local(relayed.streams.clone().run());
    let mut frame = vec![0x81, 0x80 | 32, 1, 2, 3, 4];
    frame.extend((0..32).map(|at| b'x' ^ [1, 2, 3, 4][at % 4]));
    let batch = frame.repeat(1_000);
    let began = Instant::now();
    let writer = std::thread::spawn(move || {
        for _ in 0..MESSAGES / 1_000 {
            ends.client.write_all(&batch)?;
        }
        // Kept until all is read.
        std::io::Result::Ok(ends.client)
    });
    let reader = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut left = MESSAGES * FRAME_BYTES;
        while left > 0 {
            left -= ends.endpoint.read(&mut buffer)?;
        }
        std::io::Result::Ok(began.elapsed())
    });
    let elapsed: Duration = reader.await??;
    relay.abort();
    writer.join().ok().context("the writer panicked")??;
    Ok(elapsed.as_nanos() / MESSAGES as u128)
}
