//! How many instructions is one decision, counted by callgrind inside [`Door::decide`]: repeatable on a noisy machine.
//!
//! `cargo run --release -p throwbar-benches --bin decision-instructions` prints a row for each door: it runs itself under
//! `valgrind --tool=callgrind` with the door's name and a number of decisions.

use anyhow::{Context, Result, ensure};
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use throwbar_benches::callgrind;
use throwbar_benches::doors::{Door, NAMES};

const DECISIONS: u64 = 10_000;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    if let Some(door) = args.next() {
        let count = args
            .next()
            .context("usage: decision-instructions DOOR COUNT")?;
        return decide(&door, count.parse().context("COUNT is not a number")?);
    }
    let program = std::env::current_exe()?;
    println!("| door | instructions of one decision |");
    println!("|---|---|");
    for door in NAMES {
        println!("| {door} | {} |", measure(&program, door)? / DECISIONS);
    }
    Ok(())
}

fn decide(name: &str, count: u64) -> Result<()> {
    let mut door = Door::open(name)?;
    for _ in 0..count {
        black_box(door.decide());
    }
    Ok(())
}

/// Instructions of so many decisions, those of making the door ready excluded.
fn measure(program: &Path, door: &str) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*Door*decide*"])
        .arg(callgrind::out_file(&out))
        .arg(program)
        .args([door, &DECISIONS.to_string()])
        .output()
        .context("start valgrind (package valgrind)")?;
    ensure!(
        output.status.success(),
        "{door}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    callgrind::total(&out)
}
