//! Checks of `[plugins]`: what a plugin names exists, and its bounds are within ours.

use super::names::known;
use super::{between, span, timeout};
use crate::config::Config;
use crate::config::diagnostic::{Finding, did_you_mean, join, one_of, shorten};
use crate::plugin::{DrainingFull, MEMORY_RESERVATION, PluginConfig, Source, VersionPolicy};
use std::time::Duration;

/// Everything that is wrong with one plugin.
pub(super) fn plugin(config: &Config, plugin: &PluginConfig, found: &mut Vec<Finding>) {
    let path = join("plugins", &plugin.name);
    if let Source::Builtin(name) = &plugin.source
        && !crate::plugin::builtin::NAMES.contains(&name.as_str())
    {
        let builtins = crate::plugin::builtin::NAMES.map(|name| format!("builtin:{name}"));
        let known = || builtins.iter().map(String::as_str);
        let source = format!("builtin:{name}");
        let message = format!(
            "{:?} is not built in: expected {}",
            shorten(&source),
            one_of(known())
        );
        let finding = Finding::new(join(&path, "source"), message, "not built in");
        found.push(finding.help(did_you_mean(&source, known())));
    }
    for bucket in plugin.grants.keys() {
        let path = join(&join(&path, "buckets"), bucket);
        known(
            path,
            "bucket",
            bucket,
            config.buckets.iter().map(|bucket| bucket.name.as_str()),
            found,
        );
    }
    versions(&path, &plugin.versions, found);
    super::migration::check(&path, &plugin.versions.migration, found);
    let path = join(&path, "limits");
    let limits = &plugin.limits;
    timeout(
        join(&path, "deadline"),
        limits.deadline,
        Duration::from_secs(10),
        found,
    );
    timeout(
        join(&path, "init_deadline"),
        limits.init_deadline,
        Duration::from_secs(60),
        found,
    );
    timeout(
        join(&path, "watch_deadline"),
        limits.watch_deadline,
        Duration::from_secs(60),
        found,
    );
    between(
        join(&path, "memory"),
        &limits.memory_bytes_max,
        64 << 10..=MEMORY_RESERVATION,
        found,
    );
    between(
        join(&path, "returned"),
        &limits.returned_bytes_max,
        1..=1 << 30,
        found,
    );
    between(
        join(&path, "writes"),
        &limits.writes_max,
        0..=1_000_000,
        found,
    );
    between(join(&path, "calls"), &limits.calls_max, 1..=u64::MAX, found);
    sessions(plugin, found);
}

fn versions(path: &str, policy: &VersionPolicy, found: &mut Vec<Finding>) {
    between(join(path, "keep"), &policy.keep, 1..=100, found);
    if let DrainingFull::DrainOldest(over) = policy.draining_full
        && policy.draining_max.is_none()
    {
        let message = format!(
            "`on_max_draining` closes streams over {over:?}, but there is no `max_draining`"
        );
        found.push(Finding::new(
            join(path, "on_max_draining"),
            message,
            "never in force",
        ));
    }
    let Some(guard) = &policy.guard else { return };
    let path = join(path, "guard");
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    span(join(&path, "window"), guard.window, second..=hour, found);
    between(
        join(&path, "min_calls"),
        &guard.calls_min,
        1..=u64::MAX,
        found,
    );
    if let Some(p99) = guard.p99 {
        // What the histogram of decision times tells apart.
        let bounds = Duration::from_micros(1)..=Duration::from_millis(10);
        span(join(&path, "p99"), p99, bounds, found);
    }
    if guard.error_rate.is_none() && guard.traps.is_none() && guard.p99.is_none() {
        let message = "this guard has no limit: expected one of `error_rate`, `traps`, `p99`";
        found.push(Finding::new(path, message, "never in force"));
    }
}

fn sessions(plugin: &PluginConfig, found: &mut Vec<Finding>) {
    let path = join(&join("plugins", &plugin.name), "sessions");
    let sessions = &plugin.sessions;
    between(
        join(&path, "per_instance_max"),
        &sessions.per_instance_max,
        1..=100_000,
        found,
    );
    between(
        join(&path, "isolated_max"),
        &sessions.isolated_max,
        1..=100_000,
        found,
    );
    between(
        join(&path, "rebuilds_per_minute"),
        &sessions.rebuilds_per_minute,
        0..=1_000_000,
        found,
    );
}
