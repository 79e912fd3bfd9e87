//! How long is one message of a stream with a session, from its bytes in the host to its verdict?

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use throwbar_benches::chats::Chats;
use throwbar_host::plugin::verdict::{Direction, Kind};

fn session_message(criterion: &mut Criterion) {
    let chats = Chats::start().expect("a plugin");
    let mut session = chats.open().expect("a session");
    let mut group = criterion.benchmark_group("session_message");
    for size in [0, 32, 1 << 10, 64 << 10] {
        let message = vec![b'x'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                let verdict = session.message(Direction::Up, Kind::Text, black_box(&message));
                verdict.expect("a verdict")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, session_message);
criterion_main!(benches);
