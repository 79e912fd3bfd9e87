//! What it costs that a component is compiled in a process of its own: the same upload, never compiled before, by that and on a
//! thread.
//!
//! `cargo build --release && cargo bench -p throwbar-benches --bench compile`

use criterion::{Criterion, criterion_group, criterion_main};
use std::path::PathBuf;
use throwbar_benches::deploys::Deploys;
use throwbar_benches::running::version;
use throwbar_host::plugin::{CompileBounds, CompileIn};

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(20);
    let process = CompileIn::Process {
        program: program().expect("a built program"),
        bounds: CompileBounds::default(),
    };
    let mut number = 0;
    for (name, place) in [("thread", CompileIn::Thread), ("process", process)] {
        let deploys = Deploys::open_with(place).expect("both versions are good");
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    number += 1;
                    version(number).expect("it is built in")
                },
                |component| deploys.check(component).expect("it would do"),
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// The program of the same profile: `target/release/throwbar` for `target/release/deps/compile-…`.
fn program() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let program = own.parent()?.parent()?.join("throwbar");
    program.is_file().then_some(program)
}

criterion_group!(benches, compile);
criterion_main!(benches);
