//! How long does it take to replace the version of a plugin that is compiled already: all of it, and the publish alone?
//!
//! `swap` is a whole deploy whose compiled code comes from the cache: check, trial instance with `init`, pointer made
//! durable, warm, publish. `rollback` is the same without the upload. `publish` is the part that requests could notice, as
//! the deploy itself reports it: from the warm instances to the one atomic store.

use criterion::{Criterion, criterion_group, criterion_main};
use std::cell::Cell;
use std::time::Duration;
use throwbar_benches::deploys::Deploys;

fn hot_swap(criterion: &mut Criterion) {
    let deploys = Deploys::open().expect("two versions of a plugin");
    let mut group = criterion.benchmark_group("hot_swap");
    group.sample_size(30);
    let turn = Cell::new(0);
    let swap = || {
        turn.set(turn.get() + 1);
        deploys.swap(turn.get()).expect("a deploy")
    };
    group.bench_function("swap", |bencher| bencher.iter(swap));
    group.bench_function("rollback", |bencher| {
        bencher.iter(|| deploys.rollback().expect("a rollback"))
    });
    group.bench_function("publish", |bencher| {
        bencher.iter_custom(|swaps| (0..swaps).map(|_| swap()).sum::<Duration>())
    });
    group.finish();
}

criterion_group!(benches, hot_swap);
criterion_main!(benches);
