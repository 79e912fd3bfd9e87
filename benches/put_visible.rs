//! How long does a put take to be visible to every worker?
//!
//! `cargo run --release -p throwbar-benches --bin put-visible` puts one entry of 100,000 after the other, in memory and on disk.
//! Meanwhile a thread for each core looks at the store as a worker does, through a reader of its own, 100 µs after it has
//! looked last, and what the timer adds. A put is visible when the last of them has seen it. On disk it is told beside, in turns
//! with the puts, what the disk alone takes for as much: a sector behind the last in another file, and a sync.

use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use throwbar_host::store::{
    BackendKind, BucketConfig, BucketId, Reader, Revision, Store, ValueKind, Write, WriteBatch,
};
use tokio::runtime::{Builder, Runtime};

const KEYS: u64 = 100_000;
const PUTS: u64 = 5_000;
/// What a put writes to the journal before it syncs, counted with strace.
const SECTOR_BYTES: u64 = 512;
/// Of the file that is synced beside: as many as half of a journal has.
const SECTORS: u64 = 8_192;
/// So many puts are made in a row, and then as many bare syncs.
const BLOCK: u64 = 500;
/// Between two looks of a worker.
const LOOK: Duration = Duration::from_micros(100);
/// Between two puts: they are seen one by one.
const PAUSE: Duration = Duration::from_millis(1);

fn main() -> Result<()> {
    let workers = std::thread::available_parallelism()?.get();
    let runtime = Builder::new_current_thread().enable_time().build()?;
    println!("| store | acknowledged p50 | p99 | visible to all of {workers} workers p50 | p99 |");
    println!("|---|---|---|---|---|");
    for (name, backend) in [
        ("memory", BackendKind::Memory),
        ("disk", BackendKind::Embedded),
    ] {
        let dir = tempfile::tempdir()?;
        let mut spans = measure(&runtime, backend, dir.path(), workers)?;
        print!("| {name} |");
        print_quantiles(&mut spans.acknowledged);
        print_quantiles(&mut spans.visible);
        println!();
        if !spans.bare.is_empty() {
            print!("| a sector and a sync |");
            print_quantiles(&mut spans.bare);
            println!(" | |");
        }
    }
    Ok(())
}

fn print_quantiles(spans: &mut [Duration]) {
    spans.sort_unstable();
    let quantile = |share: f64| spans[((spans.len() - 1) as f64 * share) as usize];
    let [half, most] = [0.5, 0.99].map(|share| quantile(share).as_micros());
    print!(" {half} µs | {most} µs |");
}

/// How long each put took.
#[derive(Default)]
struct Spans {
    acknowledged: Vec<Duration>,
    /// Until the last worker has seen it.
    visible: Vec<Duration>,
    /// What the disk alone takes.
    bare: Vec<Duration>,
}

fn measure(runtime: &Runtime, backend: BackendKind, dir: &Path, workers: usize) -> Result<Spans> {
    let config = BucketConfig::new("routes", backend, ValueKind::Endpoint);
    let store = Store::open(&[config], dir)?;
    let bucket = store.snapshot().bucket_id("routes").context("configured")?;
    runtime.block_on(store.commit(batch(bucket, 0..KEYS, 0)))?;
    let is_over = Arc::new(AtomicBool::new(false));
    let (mut seen, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        let (sender, receiver) = channel();
        let (mut reader, is_over) = (store.reader(), Arc::clone(&is_over));
        let known = reader.load().revision();
        threads.push(std::thread::spawn(move || {
            look((reader, known), &sender, &is_over)
        }));
        seen.push(receiver);
    }
    let bare = match backend {
        BackendKind::Embedded => Some(Bare::create(dir)?),
        _ => None,
    };
    let mut spans = Spans::default();
    for turn in 1..=PUTS {
        std::thread::sleep(PAUSE);
        let number = turn.wrapping_mul(7_919) % KEYS;
        let put = batch(bucket, number..number + 1, turn);
        let began = Instant::now();
        let committed = runtime.block_on(store.commit(put))?;
        spans.acknowledged.push(began.elapsed());
        let mut last = began;
        for receiver in &seen {
            last = last.max(seen_at(receiver, committed.revision)?);
        }
        spans.visible.push(last - began);
        if let Some(bare) = &bare
            && turn % BLOCK == 0
        {
            for turn in turn - BLOCK..turn {
                std::thread::sleep(PAUSE);
                spans.bare.push(bare.sync(turn)?);
            }
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for thread in threads {
        let ended = thread.join();
        ended.map_err(|_| anyhow::anyhow!("a worker panicked"))?;
    }
    Ok(spans)
}

/// A file that is written as the store's is, and nothing else.
struct Bare(File);

impl Bare {
    fn create(dir: &Path) -> Result<Self> {
        let file = File::create_new(dir.join("bare"))?;
        for sector in 0..SECTORS {
            file.write_all_at(&[1; SECTOR_BYTES as usize], sector * SECTOR_BYTES)?;
        }
        file.sync_all()?;
        Ok(Self(file))
    }

    fn sync(&self, turn: u64) -> Result<Duration> {
        let bytes = [turn as u8; SECTOR_BYTES as usize];
        let began = Instant::now();
        self.0.write_all_at(&bytes, turn % SECTORS * SECTOR_BYTES)?;
        self.0.sync_data()?;
        Ok(began.elapsed())
    }
}

/// Tells of each revision when it was seen first.
fn look(
    (mut reader, mut known): (Reader, Revision),
    seen: &Sender<(Revision, Instant)>,
    is_over: &AtomicBool,
) {
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        let newest = reader.load().revision();
        // Whoever asked may be gone.
        if newest != known && seen.send((newest, Instant::now())).is_err() {
            return;
        }
        known = newest;
    }
}

fn seen_at(seen: &Receiver<(Revision, Instant)>, wanted: Revision) -> Result<Instant> {
    loop {
        let (revision, at) = seen.recv()?;
        if revision >= wanted {
            return Ok(at);
        }
    }
}

fn batch(bucket: BucketId, numbers: std::ops::Range<u64>, turn: u64) -> WriteBatch {
    let write = |number: u64| {
        let [_, a, b, c] = (number as u32).to_be_bytes();
        let port = 1_024 + turn % 60_000;
        let value = format!("127.{a}.{b}.{c}:{port}");
        Write::put(bucket, format!("agent-{number:08}"), value.into_bytes())
    };
    WriteBatch {
        writes: numbers.map(write).collect(),
        ..WriteBatch::default()
    }
}
