//! What does a view of a plugin's own cost: to be told everything, to be told one change, and to be looked at?
//!
//! `cargo run --release -p throwbar-benches --bin view-changes` gives the built-in prefix-rules a bucket of 100,000 rules.

use anyhow::{Context, Result};
use http::{HeaderMap, Method};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use throwbar_host::plugin::{Access, Instance, PluginConfig, PluginLimits, RequestHead, Source};
use throwbar_host::store::{BackendKind, BucketConfig, Store, ValueKind, Write, WriteBatch};

/// Rules.
const RULES: u64 = 100_000;
/// Rounds; the median counts.
const ROUNDS: u64 = 2_001;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let data = tempfile::tempdir()?;
    let bucket = BucketConfig::new("rules", BackendKind::Memory, ValueKind::Bytes);
    let store = Store::open(&[bucket], data.path())?;
    let rules = store.snapshot().bucket_id("rules").context("configured")?;
    let rule = |number: u64, target: u64| {
        let value = format!("up{target}");
        Write::put(rules, format!("/r{number}"), value.into_bytes())
    };
    let commit = |writes: Vec<Write>| {
        let batch = WriteBatch {
            writes,
            ..WriteBatch::default()
        };
        runtime.block_on(store.commit(batch))
    };
    commit((0..RULES).map(|number| rule(number, number)).collect())?;
    let plugins = throwbar_benches::plugins(data.path(), &store)?;
    let mut config = PluginConfig::new("bench", Source::Builtin("prefix-rules".into()));
    config.grants = BTreeMap::from([("rules".into(), Access::Read)]);
    config.limits = PluginLimits {
        memory_bytes_max: 64 << 20,
        watch_deadline: Duration::from_secs(60),
        ..PluginLimits::default()
    };
    runtime
        .block_on(plugins.apply(&[config]))
        .map_err(|(_, error)| error)?;
    let slot = plugins.slot("bench").context("applied")?;
    let generation = slot.active().clone().context("it has a source")?;
    let mut instance = Instance::new(&generation)?;
    let snapshot = store.snapshot();
    let (began, mut pages, mut longest) = (Instant::now(), 0, Duration::ZERO);
    let mut page = Instant::now();
    while !instance.tell_page(&snapshot)? {
        pages += 1;
        longest = longest.max(page.elapsed());
        page = Instant::now();
    }
    println!(
        "{:>8.1} ms to tell {RULES} rules, in {} pages of at most {:.2} ms",
        millis(began.elapsed()),
        pages + 1,
        millis(longest)
    );
    let mut head = Some(head());
    let mut decide = |instance: &mut Instance| {
        let snapshot = store.snapshot();
        let began = Instant::now();
        let routed = instance.route(&mut head, &snapshot);
        routed.map(|_| began.elapsed().as_nanos() as u64)
    };
    let mut still = Vec::new();
    for _ in 0..ROUNDS {
        still.push(decide(&mut instance)?);
    }
    let mut changed = Vec::new();
    for round in 0..ROUNDS {
        commit(vec![rule(round % RULES, round + 1)])?;
        changed.push(decide(&mut instance)?);
    }
    println!(
        "{:>8} ns a decision by the view; {} when one rule has changed since the last",
        median(still),
        median(changed)
    );
    Ok(())
}

fn head() -> RequestHead {
    RequestHead {
        method: Method::GET,
        uri: http::Uri::from_static("/r77/room?v=3"),
        authority: http::uri::Authority::from_static("play.example.com"),
        headers: HeaderMap::new(),
        client: std::net::Ipv4Addr::LOCALHOST.into(),
        scheme: "http",
        websocket: false,
    }
}

fn median(mut nanos: Vec<u64>) -> u64 {
    nanos.sort_unstable();
    nanos[nanos.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
