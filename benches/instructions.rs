//! How many instructions is one decision? Run under callgrind, which counts inside [`Door::decide`] only:
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*Door*decide*' <this program> by-slots 10000
//! ```
//!
//! The total that callgrind prints, divided by the number of decisions, is the figure.

use anyhow::{Context, Result};
use std::hint::black_box;
use throwbar_benches::doors::Door;

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let mut args = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let name = args.next().unwrap_or_else(|| "by-slots".into());
    let count: u64 = match args.next() {
        Some(count) => count
            .parse()
            .with_context(|| format!("{count:?} is not a number"))?,
        None => 10_000,
    };
    let mut door = Door::open(&name)?;
    for _ in 0..count {
        black_box(door.decide());
    }
    println!("{name}: {count} decisions");
    Ok(())
}
