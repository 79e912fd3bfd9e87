//! `[plugins.NAME]`.

use super::limits;
use super::table::{Field, Table, Walk, path_buf};
use crate::plugin::{Access, OnTrap, PluginConfig, PluginLimits, SessionConfig, Source};
use toml::de::DeValue;

pub(super) fn plugin(name: &str, mut table: Table<'_>, walk: &mut Walk<'_>) -> PluginConfig {
    let mut config = PluginConfig {
        name: name.to_owned(),
        source: Source::Pushed,
        grants: Default::default(),
        settings: Default::default(),
        limits: PluginLimits::default(),
        sessions: Default::default(),
    };
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
    for field in table
        .table("buckets", walk)
        .map(Table::fields)
        .unwrap_or_default()
    {
        let words = [("read", Access::Read), ("write", Access::Write)];
        if let Some(access) = field
            .text(walk)
            .and_then(|text| text.choice("access", &words, walk))
        {
            config.grants.insert(field.key.to_owned(), access);
        }
    }
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
    table.finish(walk);
    config
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
