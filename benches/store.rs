//! What a read costs at 10, 10,000 and 1,000,000 keys, what a durable put costs with 1 and 64 writers, and how long a
//! million keys take to load.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use throwbar_host::store::{
    BackendKind, BucketConfig, BucketId, Store, ValueKind, Write, WriteBatch,
};
use tokio::runtime::{Builder, Runtime};

const KEYS: [u64; 3] = [10, 10_000, 1_000_000];
/// Made and gone with the bench.
struct Dir(std::path::PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("throwbar-bench-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory takes files");
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn key(number: u64) -> String {
    format!("agent-{number:08}")
}

fn write(bucket: BucketId, number: u64, tag: u64) -> Write {
    let octets = (number as u32).to_be_bytes();
    let value = format!(
        "127.{}.{}.{}:{}",
        octets[1],
        octets[2],
        octets[3],
        1 + tag % 60_000
    );
    Write::put(bucket, key(number), value.into_bytes())
}

fn open(dir: &Path, backend: BackendKind) -> (Store, BucketId) {
    let config = BucketConfig::new("routes", backend, ValueKind::Endpoint);
    let store = Store::open(&[config], dir).expect("the directory is new or holds a store");
    let bucket = store
        .snapshot()
        .bucket_id("routes")
        .expect("just configured");
    (store, bucket)
}

fn fill(runtime: &Runtime, store: &Store, bucket: BucketId, keys: u64) {
    let batch = WriteBatch {
        writes: (0..keys).map(|number| write(bucket, number, 0)).collect(),
        ..WriteBatch::default()
    };
    runtime
        .block_on(store.commit(batch))
        .expect("the values are addresses");
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .build()
        .expect("a runtime needs no resources")
}

/// A different number each time, the same in every run.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn reads(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("store/read");
    for keys in KEYS {
        let dir = Dir::new("read");
        let (store, bucket) = open(&dir.0, BackendKind::Memory);
        fill(&runtime, &store, bucket, keys);
        let mut reader = store.reader();
        let hot = key(keys / 2);
        group.bench_function(BenchmarkId::new("hot", keys), |bencher| {
            bencher.iter(|| {
                let snapshot = reader.load();
                let bucket = snapshot.bucket(bucket).expect("configured");
                bucket
                    .get(std::hint::black_box(&hot))
                    .expect("filled")
                    .revision
            });
        });
        let mut state = 88_172_645_463_325_252;
        let mut text = String::with_capacity(32);
        group.bench_function(BenchmarkId::new("random, key made", keys), |bencher| {
            bencher.iter(|| {
                text.clear();
                write!(text, "agent-{:08}", xorshift(&mut state) % keys)
                    .expect("a string takes text");
                let snapshot = reader.load();
                let bucket = snapshot.bucket(bucket).expect("configured");
                bucket.get(&text).expect("filled").revision
            });
        });
        group.bench_function(BenchmarkId::new("key made only", keys), |bencher| {
            bencher.iter(|| {
                text.clear();
                write!(text, "agent-{:08}", xorshift(&mut state) % keys)
                    .expect("a string takes text");
                std::hint::black_box(&text).len()
            });
        });
    }
    group.finish();
}

fn puts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store/put");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(5));
    let runtime = runtime();
    for backend in [BackendKind::Memory, BackendKind::Embedded] {
        let dir = Dir::new("put");
        let (store, bucket) = open(&dir.0, backend);
        fill(&runtime, &store, bucket, 100_000);
        let mut state = 88_172_645_463_325_252;
        for writers in [1_u64, 64] {
            group.throughput(Throughput::Elements(writers));
            let id = BenchmarkId::new(
                format!("{backend:?}").to_lowercase(),
                format!("{writers} writers"),
            );
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    runtime.block_on(async {
                        let mut tasks = tokio::task::JoinSet::new();
                        for _ in 0..writers {
                            let number = xorshift(&mut state) % 100_000;
                            let store = store.clone();
                            let batch = WriteBatch {
                                writes: vec![write(bucket, number, xorshift(&mut state))],
                                ..WriteBatch::default()
                            };
                            tasks.spawn(async move { store.commit(batch).await });
                        }
                        for result in tasks.join_all().await {
                            result.expect("the disk takes writes");
                        }
                    });
                });
            });
        }
    }
    group.finish();
}

fn bulk(criterion: &mut Criterion) {
    const MILLION: u64 = 1_000_000;
    let runtime = runtime();
    let mut group = criterion.benchmark_group("store/million");
    group.sample_size(10);
    for backend in [BackendKind::Memory, BackendKind::Embedded] {
        let name = format!("batch, {}", format!("{backend:?}").to_lowercase());
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        let dir = Dir::new("million");
                        let (store, bucket) = open(&dir.0, backend);
                        let start = Instant::now();
                        fill(&runtime, &store, bucket, MILLION);
                        start.elapsed()
                    })
                    .sum()
            });
        });
    }
    let dir = Dir::new("load");
    {
        let (store, bucket) = open(&dir.0, BackendKind::Embedded);
        fill(&runtime, &store, bucket, MILLION);
    }
    group.bench_function("load", |bencher| {
        bencher.iter_batched(
            || (),
            |()| open(&dir.0, BackendKind::Embedded),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// A page of a listing, from anywhere among the keys, and a key that comes and goes: those in order are changed by it.
fn listings(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("store/listing");
    for keys in KEYS {
        let dir = Dir::new("listing");
        let (store, bucket) = open(&dir.0, BackendKind::Memory);
        fill(&runtime, &store, bucket, keys);
        let snapshot = store.snapshot();
        let mut state = 88_172_645_463_325_252;
        group.bench_function(BenchmarkId::new("page of 100", keys), |bencher| {
            let bucket = snapshot.bucket(bucket).expect("configured");
            bencher.iter(|| {
                let after = key(xorshift(&mut state) % keys);
                bucket.page("agent-", Some(&after), 100).entries.len()
            });
        });
        group.throughput(Throughput::Elements(2));
        group.bench_function(BenchmarkId::new("key put and deleted", keys), |bencher| {
            bencher.iter(|| {
                let new = format!("{}!", key(xorshift(&mut state) % keys));
                let put = Write::put(bucket, new.as_str(), *b"127.0.0.1");
                for write in [put, Write::delete(bucket, new.as_str())] {
                    let batch = WriteBatch {
                        writes: vec![write],
                        ..WriteBatch::default()
                    };
                    runtime
                        .block_on(store.commit(batch))
                        .expect("it is in memory");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, reads, puts, bulk, listings);
criterion_main!(benches);
