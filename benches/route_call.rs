//! How long is one decision, through each door of the contract?

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use throwbar_benches::doors::{Door, NAMES};

fn route_call(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route_call");
    for name in NAMES {
        let mut door = Door::open(name).expect("a door");
        group.bench_function(name, |bencher| bencher.iter(|| black_box(door.decide())));
    }
    group.finish();
}

criterion_group!(benches, route_call);
criterion_main!(benches);
