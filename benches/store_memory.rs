//! How much memory do keys take, does it come back when they are deleted, and what does their number cost a decision?
//!
//! `cargo run --release -p throwbar-benches --bin store-memory -- [KEYS]` puts so many keys (a million unless it says
//! another number) into one bucket in memory, reads them, and deletes them all; then a door of the plugin contract decides
//! on the ten keys of a map, on ten hot keys of so many, and on 256, in turns. Memory is what is resident of this process.

use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};
use throwbar_benches::doors::Door;
use throwbar_host::store::{
    BackendKind, BucketConfig, BucketId, Store, ValueKind, Write, WriteBatch,
};
use tokio::runtime::{Builder, Runtime};

/// Keys of a batch.
const BATCH: u64 = 100_000;
/// Reads that are timed together.
const READS: u32 = 2_000_000;
/// Hot keys.
const FEW: usize = 10;
const MANY: usize = 256;
/// Decisions of each door in a turn, and turns.
const DECISIONS: usize = 2_000;
const TURNS: usize = 100;
/// How long memory may take to come back on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let keys = match std::env::args().nth(1) {
        Some(keys) => keys.parse().context("KEYS is not a number")?,
        None => 1_000_000,
    };
    // As the proxy does.
    throwbar_host::memory::keep_little();
    let runtime = Builder::new_current_thread().enable_time().build()?;
    memory(&runtime, keys)?;
    decisions(keys)
}

fn memory(runtime: &Runtime, keys: u64) -> Result<()> {
    let config = BucketConfig::new("routes", BackendKind::Memory, ValueKind::Endpoint);
    let store = Store::open(&[config], Path::new(""))?;
    let bucket = store.snapshot().bucket_id("routes").context("configured")?;
    let mut reader = store.reader();
    // What the first batch leaves behind is no key's.
    write(runtime, &store, bucket, 0..1_000, false)?;
    write(runtime, &store, bucket, 0..1_000, true)?;
    settle(&mut reader);
    let before = resident()?;
    println!("{:>8.1} MiB resident with no keys", mib(before));
    write(runtime, &store, bucket, 0..keys, false)?;
    settle(&mut reader);
    let full = resident()?;
    let each = full.saturating_sub(before) as f64 / keys as f64;
    println!(
        "{:>8.1} MiB with {keys} keys: {each:.0} bytes each",
        mib(full)
    );
    let made = nanos(keys, |text| text.len() as u64);
    let snapshot = store.snapshot();
    let routes = snapshot.bucket(bucket).context("configured")?;
    let get = |text: &str| routes.get(text).map_or(0, |entry| entry.revision.0);
    let random = nanos(keys, get) - made;
    let hot = key(keys / 2);
    let began = Instant::now();
    for _ in 0..READS {
        black_box(get(black_box(&hot)));
    }
    let hot = began.elapsed().as_nanos() as f64 / f64::from(READS);
    println!(
        "{hot:>8.0} ns a read of a hot key, {random:.0} of one at random, where a single cache miss takes {:.0}",
        miss(full.saturating_sub(before))
    );
    drop(snapshot);
    write(runtime, &store, bucket, 0..keys, true)?;
    settle(&mut reader);
    let left = resident()?;
    println!("{:>8.1} MiB after they are deleted", mib(left));
    Ok(())
}

/// Lets the store free what nobody reads any more.
fn settle(reader: &mut throwbar_host::store::Reader) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        black_box(reader.load().revision());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn write(
    runtime: &Runtime,
    store: &Store,
    bucket: BucketId,
    numbers: std::ops::Range<u64>,
    delete: bool,
) -> Result<()> {
    let mut next = numbers.start;
    while next < numbers.end {
        let end = numbers.end.min(next + BATCH);
        let writes = (next..end).map(|number| match delete {
            true => Write::delete(bucket, key(number)),
            false => {
                let [_, a, b, c] = (number as u32).to_be_bytes();
                let value = format!("127.{a}.{b}.{c}:8080");
                Write::put(bucket, key(number), value.into_bytes())
            }
        });
        let batch = WriteBatch {
            writes: writes.collect(),
            ..WriteBatch::default()
        };
        runtime.block_on(store.commit(batch))?;
        next = end;
    }
    Ok(())
}

fn key(number: u64) -> String {
    format!("agent-{number:08}")
}

/// Nanoseconds of making a random key and doing something with it: the least of five rounds.
fn nanos(keys: u64, mut then: impl FnMut(&str) -> u64) -> f64 {
    let mut state = 88_172_645_463_325_252_u64;
    let mut text = String::with_capacity(32);
    let rounds = (0..5).map(|_| {
        let began = Instant::now();
        for _ in 0..READS / 5 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.clear();
            write!(text, "agent-{:08}", state % keys).expect("a string takes text");
            black_box(then(black_box(&text)));
        }
        began.elapsed().as_nanos() as f64 / f64::from(READS / 5)
    });
    rounds.fold(f64::INFINITY, f64::min)
}

/// Nanoseconds of one cache miss in so many bytes: the least of five rounds of reads, each of which says where the next is.
fn miss(bytes: u64) -> f64 {
    let places = (bytes as usize / size_of::<[u64; 8]>()).max(2);
    let mut next: Vec<[u64; 8]> = (0..places as u64).map(|at| [at; 8]).collect();
    // Sattolo's shuffle: one cycle through all of them.
    let mut state = 88_172_645_463_325_252_u64;
    for at in (1..places).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = (state % at as u64) as usize;
        let (one, two) = (next[at][0], next[other][0]);
        (next[at][0], next[other][0]) = (two, one);
    }
    let mut at = 0;
    let rounds = (0..5).map(|_| {
        let began = Instant::now();
        for _ in 0..READS / 5 {
            at = next[at as usize][0];
        }
        black_box(at);
        began.elapsed().as_nanos() as f64 / f64::from(READS / 5)
    });
    rounds.fold(f64::INFINITY, f64::min)
}

/// How long a decision takes on the hot keys of a map: of ten keys, then of so many with as few that are hot, which says what
/// the keys beside them cost, then with more that are hot, which says what hot keys cost each other.
fn decisions(keys: u64) -> Result<()> {
    let keys = usize::try_from(keys)?;
    let maps = [(FEW, FEW), (keys, FEW), (keys, MANY)];
    let mut doors = Vec::new();
    for (keys, hot) in maps {
        doors.push(Door::with_keys("by-slots", keys, hot)?);
    }
    let mut turns = Vec::new();
    for _ in 0..=TURNS {
        turns.push([0, 1, 2].map(|at| turn(&mut doors[at])));
    }
    // The first turn warms all.
    turns.remove(0);
    for (at, (keys, hot)) in maps.into_iter().enumerate() {
        let p50 = middle(turns.iter().map(|turn| turn[at].0));
        let p99 = middle(turns.iter().map(|turn| turn[at].1));
        let ratio = middle(turns.iter().map(|turn| turn[at].1 / turn[0].1));
        println!(
            "{p50:>8.0} ns a decision on {hot} hot keys of {keys}, p99 {p99:.0}, {ratio:.2} times that of ten keys in the same \
             turn (medians of {TURNS} turns)"
        );
    }
    Ok(())
}

/// The median and the 99th percentile of decisions one after the other, in nanoseconds.
fn turn(door: &mut Door) -> (f64, f64) {
    let mut times = [0; DECISIONS];
    for time in &mut times {
        let began = Instant::now();
        black_box(door.decide());
        *time = began.elapsed().as_nanos();
    }
    times.sort_unstable();
    let part = |percent| times[DECISIONS * percent / 100] as f64;
    (part(50), part(99))
}

fn middle(of: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = of.collect();
    all.sort_unstable_by(f64::total_cmp);
    all[all.len() / 2]
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).context("two numbers")?;
    Ok(pages.parse::<u64>()? * rustix::param::page_size() as u64)
}
