//! `[plugins.NAME]`.

use super::limits;
use super::table::{Field, Table, Walk, path_buf};
use crate::plugin::{
    Access, DrainingFull, Fraction, Guard, MigrationLimits, OnTrap, PluginConfig, SessionConfig,
    Source, VersionPolicy,
};
use std::collections::BTreeMap;
use std::time::Duration;
use toml::de::DeValue;

pub(super) fn plugin(name: &str, mut table: Table<'_>, walk: &mut Walk<'_>) -> PluginConfig {
    let mut config = PluginConfig::new(name, Source::Pushed);
    if let Some(text) = table.text("source", walk) {
        let sources = walk.sources;
        let source = text.read(walk, "a source", |text| match text.split_once(':') {
            Some(("builtin", name)) => Ok(Source::Builtin(name.to_owned())),
            Some((scheme, rest)) if rest.starts_with("//") => Err(format!(
                "expected a path or \"builtin:NAME\", {scheme} is not fetched from"
            )),
            _ => path_buf(text, sources).map(Source::File),
        });
        config.source = source.unwrap_or(Source::Pushed);
    }
    config.grants = grants(&mut table, walk);
    for field in table
        .table("settings", walk)
        .map(Table::fields)
        .unwrap_or_default()
    {
        if let Some(value) = setting(&field, walk) {
            config.settings.insert(field.key.to_owned(), value);
        }
    }
    if let Some(table) = table.table("limits", walk) {
        config.limits = limits::plugin_limits(table, walk);
    }
    if let Some(table) = table.table("sessions", walk) {
        config.sessions = sessions(table, walk);
    }
    config.versions = versions(&mut table, walk);
    table.finish(walk);
    config
}

/// `buckets`: which may be read, which written.
pub(super) fn grants(table: &mut Table<'_>, walk: &mut Walk<'_>) -> BTreeMap<String, Access> {
    let fields = table.table("buckets", walk).map(Table::fields);
    let words = [("read", Access::Read), ("write", Access::Write)];
    let mut granted = BTreeMap::new();
    for field in fields.unwrap_or_default() {
        let access = field
            .text(walk)
            .and_then(|text| text.choice("access", &words, walk));
        granted.extend(access.map(|access| (field.key.to_owned(), access)));
    }
    granted
}

fn sessions(mut table: Table<'_>, walk: &mut Walk<'_>) -> SessionConfig {
    let mut config = SessionConfig::default();
    let words = [
        ("close", OnTrap::Close),
        ("rebuild", OnTrap::Rebuild),
        ("pass", OnTrap::Pass),
    ];
    if let Some(on_trap) = table.choice("on_trap", &words, walk) {
        config.on_trap = on_trap;
    }
    table.integer("rebuilds_per_minute", &mut config.rebuilds_per_minute, walk);
    table.integer("per_instance_max", &mut config.per_instance_max, walk);
    table.boolean("isolated", &mut config.isolated, walk);
    table.integer("isolated_max", &mut config.isolated_max, walk);
    table.finish(walk);
    config
}

/// Keys of the plugin's own table, and its guard.
fn versions(table: &mut Table<'_>, walk: &mut Walk<'_>) -> VersionPolicy {
    let mut policy = VersionPolicy::default();
    table.integer("keep", &mut policy.keep, walk);
    let mut draining_max = 0;
    table.integer("max_draining", &mut draining_max, walk);
    policy.draining_max = (draining_max > 0).then_some(draining_max);
    let words = [("refuse", false), ("drain-oldest", true)];
    let drain_oldest = table.choice("on_max_draining", &words, walk);
    let mut over = DRAIN_OVER;
    table.duration("drain_over", &mut over, walk);
    if drain_oldest == Some(true) {
        policy.draining_full = DrainingFull::DrainOldest(over);
    }
    policy.guard = table.table("guard", walk).map(|table| guard(table, walk));
    if let Some(table) = table.table("migration", walk) {
        policy.migration = migration(table, walk);
    }
    policy
}

fn migration(mut table: Table<'_>, walk: &mut Walk<'_>) -> MigrationLimits {
    let mut limits = MigrationLimits::default();
    table.duration("deadline", &mut limits.deadline, walk);
    table.integer("writes", &mut limits.writes_max, walk);
    table.duration("hold", &mut limits.hold, walk);
    table.finish(walk);
    limits
}

/// Over how long the streams of the oldest version are closed.
const DRAIN_OVER: Duration = Duration::from_secs(30);

fn guard(mut table: Table<'_>, walk: &mut Walk<'_>) -> Guard {
    let mut guard = Guard::default();
    table.duration("window", &mut guard.window, walk);
    table.integer("min_calls", &mut guard.calls_min, walk);
    let mut error_rate = guard.error_rate.unwrap_or(Fraction::ALL);
    table.fraction("error_rate", &mut error_rate, walk);
    guard.error_rate = (error_rate != Fraction::ALL).then_some(error_rate);
    let mut traps = 0;
    table.integer("traps", &mut traps, walk);
    guard.traps = (traps > 0).then_some(traps);
    let mut p99 = Duration::ZERO;
    table.duration("p99", &mut p99, walk);
    guard.p99 = (p99 > Duration::ZERO).then_some(p99);
    table.duration("probation", &mut guard.probation, walk);
    table.finish(walk);
    guard
}

/// Settings are text to the plugin, however they are written.
fn setting(field: &Field<'_>, walk: &mut Walk<'_>) -> Option<String> {
    match field.value() {
        DeValue::String(_) => field.text(walk).map(|text| text.value),
        DeValue::Integer(_) => field.integer::<i64>(walk).map(|number| number.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        _ => {
            field.wrong_type("a string, a number or true or false", walk);
            None
        }
    }
}
