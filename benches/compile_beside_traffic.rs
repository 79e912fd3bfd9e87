//! What a large upload does to requests: their latency while a component of 1.6 MB is compiled, against before and after.
//!
//! `compile-beside-traffic target/release/throwbar`
//!
//! Each round sends requests at a steady pace for a while, then until the component is compiled; it is another one each
//! time, and checked only, so that the same version decides all the time.

use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use throwbar_benches::load::{beside_load, quantile};
use throwbar_benches::running::Running;

const ROUNDS: u32 = 5;
const STEADY: Duration = Duration::from_secs(3);
/// Makes a component of 1.6 MB.
const FUNCTIONS: u32 = 2_000;
const STEPS: u32 = 72;

fn main() -> Result<()> {
    let binary = std::env::args_os()
        .nth(1)
        .context("usage: compile-beside-traffic PATH-OF-THROWBAR")?;
    let running = Running::start(Path::new(&binary), &[])?;
    println!("| component | compiled in | p50 steady | p50 while | p99 steady | p99 while |");
    println!("|---|---|---|---|---|---|");
    for round in 0..ROUNDS {
        let component = large_component(round)?;
        let ((), steady) = beside_load(&running, || {
            thread::sleep(STEADY);
            Ok(())
        })?;
        let (compiled, beside) = beside_load(&running, || {
            let began = Instant::now();
            running.check(&component)?;
            Ok(began.elapsed())
        })?;
        println!(
            "| {} KB | {compiled:.1?} | {} µs | {} µs | {} µs | {} µs |",
            component.len() / 1000,
            quantile(&steady, 0.5),
            quantile(&beside, 0.5),
            quantile(&steady, 0.99),
            quantile(&beside, 0.99),
        );
    }
    Ok(())
}

/// The least guest, with functions beside it that nobody calls and that all have to be compiled.
fn large_component(round: u32) -> Result<Vec<u8>> {
    let mut functions = String::from("(core module $bulk");
    for function in 0..FUNCTIONS {
        write!(
            functions,
            "(func (export \"f{function}\") (param i32) (result i32) "
        )?;
        for step in 0..STEPS {
            let number = (round * FUNCTIONS + function).wrapping_mul(2_654_435_761) ^ step;
            write!(
                functions,
                "(local.set 0 (i32.xor (local.get 0) (i32.const {})))",
                number as i32
            )?;
        }
        functions.push_str("(local.get 0))");
    }
    functions.push_str(")(core instance (instantiate $bulk))");
    let least = include_str!("src/by_value.wat").trim_end();
    let inside = least
        .strip_suffix(')')
        .context("it ends with its component")?;
    Ok(wat::parse_str(format!("{inside}{functions})"))?)
}
