//! What a shadow costs: time on a core for each request, without one and with one that is asked about every request.
//!
//! `shadow-cost target/release/throwbar [--seconds 10] [--rounds 7]`
//!
//! 10,000 requests a second at a steady pace, by the by-header router; the shadow is another version of it. Rounds without
//! and with follow each other in turns. The threads that serve are counted apart from the shadow's own, which is of the
//! lowest priority and may fall behind: what it drops costs less, so that is told, too.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;
use throwbar_benches::load::beside_load;
use throwbar_benches::running::{Running, version};

const SHADOW: &str = "/v1/plugins/by-header/shadow";

/// What a round gave.
struct Round {
    /// Nanoseconds for each request of the threads that serve.
    serving: f64,
    /// The same of the whole process.
    all: f64,
}

fn main() -> Result<()> {
    let usage = "usage: shadow-cost PATH-OF-THROWBAR [--seconds N] [--rounds N]";
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().context(usage)?;
    let mut numbers = BTreeMap::from([("--seconds", 10_u64), ("--rounds", 7)]);
    while let Some(name) = arguments.next() {
        let number = arguments.next().context(usage)?.parse().context(usage)?;
        *numbers.get_mut(name.as_str()).context(usage)? = number;
    }
    let (seconds, rounds) = (numbers["--seconds"], numbers["--rounds"].max(1));
    let running =
        Running::start_by_header(Path::new(&binary), "[[route]]\nplugin = \"by-header\"\n")?;
    running.push(&version(0)?)?;
    let (shadow, path) = (version(1)?, format!("{SHADOW}?sample=1"));
    println!(
        "| round | serving, without | with | ratio | whole process, without | with | compared | dropped |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let (mut serving, mut whole) = (Vec::new(), Vec::new());
    // The first of both is not counted: connections, instances and caches are made in it.
    for round in 0..=rounds {
        let without = measure(&running, seconds)?;
        running.ask("PUT", &path, &shadow)?;
        let with = measure(&running, seconds)?;
        let report: serde_json::Value = serde_json::from_slice(&running.ask("GET", SHADOW, b"")?)?;
        running.ask("DELETE", SHADOW, b"")?;
        ensure!(
            report["differing"] == 0,
            "both versions decide alike: {report}"
        );
        if round == 0 {
            continue;
        }
        let ratio = with.serving / without.serving;
        serving.push(ratio);
        whole.push(with.all / without.all);
        println!(
            "| {round} | {:.0} ns | {:.0} ns | {ratio:.3} | {:.0} ns | {:.0} ns | {} | {} |",
            without.serving,
            with.serving,
            without.all,
            with.all,
            report["compared"],
            report["dropped"]
        );
    }
    println!();
    println!("| CPU of a request, with against without | median | least | most |");
    println!("|---|---|---|---|");
    for (name, mut ratios) in [("threads that serve", serving), ("whole process", whole)] {
        ratios.sort_by(f64::total_cmp);
        println!(
            "| {name} | {:.3} | {:.3} | {:.3} |",
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
    Ok(())
}

/// Sends requests for so long.
fn measure(running: &Running, seconds: u64) -> Result<Round> {
    let counted = || Ok::<_, anyhow::Error>((running.cpu_ns("worker")?, running.process_cpu_ns()?));
    let before = counted()?;
    let (after, latencies) = beside_load(running, || {
        thread::sleep(Duration::from_secs(seconds));
        counted()
    })?;
    let requests = latencies.len() as f64;
    Ok(Round {
        serving: (after.0 - before.0) as f64 / requests,
        all: (after.1 - before.1) as f64 / requests,
    })
}
