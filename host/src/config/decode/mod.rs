//! TOML into a [`Config`], every problem at once.
//!
//! The text becomes a tree with spans, and each section reads its table: what it finds wrong is recorded with its
//! place and the default stands in, so that one wrong value hides no other. Checks that need more than one value are
//! those of [`super::validate`].

use super::diagnostic::{Finding, Problem, did_you_mean, shorten};
use super::{Config, validate};
use crate::admin;
use crate::listener;
use crate::store::{BackendKind, BucketConfig, LookupKind, LookupKinds, OnChange, ValueKind};
use crate::upstream::{self, Policy, guard, tls};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

pub(crate) mod address;
mod fleet;
mod limits;
pub(crate) mod log;
mod misplaced;
mod plugins;
mod routes;
mod store;
mod syntax;
mod table;
mod text;
pub(crate) mod units;
mod word;

use table::{Field, Table, Walk};
pub use text::Sources;

/// Largest text of a config.
pub const TEXT_BYTES_MAX: usize = 4 << 20;

/// Reads a config.
///
/// # Errors
/// Every problem of the text, in its order.
pub fn decode(text: &str, sources: &Sources<'_>) -> Result<Config, Vec<Problem>> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!(
            "the config has {} bytes, expected at most {TEXT_BYTES_MAX}",
            text.len()
        );
        return Err(vec![Problem::at(
            text,
            0..0,
            Finding::new("", message, "too large"),
        )]);
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(syntax::problems(text, &errors));
    }
    let mut walk = Walk {
        text,
        sources,
        problems: Vec::new(),
        places: BTreeMap::new(),
        substituted: Vec::new(),
    };
    let root = Table::new(String::new(), 0..0, root.get_ref(), &mut walk);
    let config = config(root, &mut walk);
    let unread: Vec<String> = walk
        .problems
        .iter()
        .map(|problem| problem.path.clone())
        .collect();
    for mut finding in validate::check(&config) {
        // A value that could not be read says nothing about another.
        let is_unread = |path: &String| unread.iter().any(|unread| related(unread, path));
        if !is_unread(&finding.path) && !finding.other.as_ref().is_some_and(is_unread) {
            let span = place(&walk.places, &finding.path);
            walk.mask(&mut finding.message);
            walk.report(span, finding);
        }
    }
    if walk.problems.is_empty() {
        return Ok(config);
    }
    walk.problems.sort_by_key(|problem| problem.span.start);
    Err(walk.problems)
}

/// Whether one path is the other, or beneath it.
fn related(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    long.strip_prefix(short)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        && !short.is_empty()
}

/// Where a path is, or the nearest thing around it that is written.
fn place(places: &BTreeMap<String, Range<usize>>, path: &str) -> Range<usize> {
    let mut path = path;
    loop {
        if let Some(span) = places.get(path) {
            return span.clone();
        }
        match path.rfind(['.', '[']) {
            Some(cut) => path = &path[..cut],
            None => return 0..0,
        }
    }
}

fn config(mut root: Table<'_>, walk: &mut Walk<'_>) -> Config {
    let mut config = Config::default();
    version(&mut root, walk);
    root.integer("workers", &mut config.workers, walk);
    config.data = walk.sources.directory.join(config.data);
    root.path_buf("data", &mut config.data, walk);
    if let Some(table) = root.table("admin", walk) {
        config.admin = admin(table, walk);
    }
    let listeners = tables(&mut root, "listener", walk);
    config.listeners = listeners
        .into_iter()
        .enumerate()
        .map(|(i, table)| listener(i, table, walk))
        .collect();
    if let Some(table) = root.table("store", walk) {
        (config.sync, config.store) = store::store(table, walk);
    }
    config.buckets = named(&mut root, "buckets", walk, bucket);
    config.upstreams = named(&mut root, "upstreams", walk, upstream);
    config.plugins = named(&mut root, "plugins", walk, plugins::plugin);
    let routes = tables(&mut root, "route", walk);
    config.routes = routes
        .into_iter()
        .enumerate()
        .map(|(i, table)| routes::route(i, table, walk))
        .collect();
    if let Some(table) = root.table("upstream_tls", walk) {
        config.upstream_tls = upstream_tls(table, walk);
    }
    if let Some(table) = root.table("guard", walk) {
        config.guard = guard(table, walk);
    }
    if let Some(table) = root.table("fleet", walk) {
        config.fleet = fleet::fleet(table, walk);
    }
    if let Some(table) = root.table("limits", walk) {
        limits::limits(table, &mut config.limits, walk);
    }
    if let Some(table) = root.table("streams", walk) {
        limits::streams(table, &mut config.streams, walk);
    }
    if let Some(table) = root.table("log", walk) {
        config.log = log::log(table, walk);
    }
    if let Some(mut compat) = root.table("compat", walk) {
        if let Some(caddy) = compat.table("caddy", walk) {
            config.caddy_ids = caddy_ids(caddy, walk);
        }
        compat.finish(walk);
    }
    root.finish(walk);
    config
}

fn version(root: &mut Table<'_>, walk: &mut Walk<'_>) {
    let Some(field) = root.take("version") else {
        return;
    };
    if let Some(version) = field.integer::<i64>(walk)
        && version != 1
    {
        let message = format!("`version` is {version}, expected 1");
        walk.report(
            field.span.clone(),
            Finding::new(&field.path, message, "expected 1"),
        );
    }
}

/// The tables of an array of tables.
fn tables<'t>(root: &mut Table<'t>, key: &'static str, walk: &mut Walk<'_>) -> Vec<Table<'t>> {
    let Some(field) = root.take(key) else {
        return Vec::new();
    };
    if matches!(field.value(), DeValue::Table(_)) {
        let finding = Finding::new(
            &field.path,
            format!("`{key}` is a table, expected an array of tables"),
            "one table",
        )
        .help(format!("write `[[{key}]]`"));
        walk.report(field.span.clone(), finding);
        return Vec::new();
    }
    let items = field.items(walk).unwrap_or_default();
    items.iter().filter_map(|item| item.table(walk)).collect()
}

/// The tables of a table whose keys are names.
fn named<T>(
    root: &mut Table<'_>,
    key: &'static str,
    walk: &mut Walk<'_>,
    read: impl Fn(&str, Table<'_>, &mut Walk<'_>) -> T,
) -> Vec<T> {
    let fields = root.table(key, walk).map(Table::fields).unwrap_or_default();
    let mut read = |field: &Field<'_>| match field.is_misplaced(walk) {
        true => None,
        false => Some(read(field.key, field.table(walk)?, walk)),
    };
    fields.iter().filter_map(&mut read).collect()
}

fn admin(mut table: Table<'_>, walk: &mut Walk<'_>) -> admin::Config {
    let mut config = admin::Config::default();
    if let Some(text) = table.text("listen", walk) {
        let sources = walk.sources;
        let read = text.read(walk, "an address of the admin API", |text| {
            match text.strip_prefix("unix:") {
                Some(path) => table::path_buf(path, sources).map(admin::Address::Unix),
                None => address::listen(text).map(admin::Address::Tcp),
            }
        });
        if let Some(listen) = read {
            config.listen = listen;
        }
    }
    let auth = [("token", admin::Auth::Token), ("none", admin::Auth::None)];
    if let Some(auth) = table.choice("auth", &auth, walk) {
        config.auth = auth;
    }
    table.size("component_bytes_max", &mut config.component_bytes_max, walk);
    table.duration("compile_cpu", &mut config.compile.cpu, walk);
    table.size("compile_memory", &mut config.compile.memory_bytes, walk);
    table.size("body_bytes_max", &mut config.body_bytes_max, walk);
    let tokens = named(&mut table, "tokens", walk, token);
    config.tokens = tokens.into_iter().flatten().map(Arc::new).collect();
    table.finish(walk);
    config
}

/// None if there is no token to be known by.
fn token(name: &str, mut table: Table<'_>, walk: &mut Walk<'_>) -> Option<admin::LimitedToken> {
    let token = match table.take("token").map(|field| field.text(walk)) {
        // What is wrong with it is told.
        Some(None) => None,
        None => {
            table.missing("token", "token = \"${file:agents.token}\"", walk);
            None
        }
        Some(Some(text)) => {
            let secret = admin::Token::given(&text.value);
            secret
                // Not even as it is written: it may be written out.
                .map_err(|message| {
                    walk.report(
                        text.span.clone(),
                        Finding::new(&text.path, message, "no token"),
                    );
                })
                .ok()
        }
    };
    let buckets = plugins::grants(&mut table, walk);
    let prefix = table.text("prefix", walk).map(|text| text.value);
    table.finish(walk);
    Some(admin::LimitedToken {
        name: name.to_owned(),
        token: token?,
        buckets,
        prefix: prefix.unwrap_or_default(),
    })
}

fn listener(index: usize, mut table: Table<'_>, walk: &mut Walk<'_>) -> listener::Config {
    let name = table.text("name", walk).map(|text| text.value);
    let mut config = listener::Config {
        name: name.unwrap_or_else(|| format!("listener-{}", index + 1)),
        address: ([127, 0, 0, 1], 0).into(),
        http1: true,
        h2c: true,
    };
    match table.take("listen") {
        None => table.missing("listen", "listen = \"127.0.0.1:8080\"", walk),
        Some(field) => {
            if let Some(text) = field.text(walk)
                && let Some(address) = text.read(walk, "an address to listen on", address::listen)
            {
                config.address = address;
            }
        }
    }
    if let Some(items) = table.take("protocols").and_then(|field| field.items(walk)) {
        (config.http1, config.h2c) = (false, false);
        for item in &items {
            let words = [("h1", true), ("h2c", false)];
            match item
                .text(walk)
                .and_then(|text| text.choice("protocol", &words, walk))
            {
                Some(true) => config.http1 = true,
                Some(false) => config.h2c = true,
                None => {}
            }
        }
    }
    table.finish(walk);
    config
}

fn bucket(name: &str, mut table: Table<'_>, walk: &mut Walk<'_>) -> BucketConfig {
    let mut config = BucketConfig::new(name, BackendKind::Embedded, ValueKind::Endpoint);
    let backends = [
        ("embedded", BackendKind::Embedded),
        ("memory", BackendKind::Memory),
        ("etcd", BackendKind::Etcd),
        ("redis", BackendKind::Redis),
    ];
    if let Some(backend) = table.choice("backend", &backends, walk) {
        config.backend = backend;
    }
    let kinds = [
        ("endpoint", ValueKind::Endpoint),
        ("bytes", ValueKind::Bytes),
    ];
    if let Some(values) = table.choice("values", &kinds, walk) {
        config.values = values;
    }
    table.integer("keys_max", &mut config.keys_max, walk);
    table.size("bytes_max", &mut config.bytes_max, walk);
    table.integer("history", &mut config.history, walk);
    table.size("history_bytes_max", &mut config.history_bytes_max, walk);
    if let Some(items) = table.take("lookup").and_then(|field| field.items(walk)) {
        let words = LookupKind::ALL.map(|kind| (kind.word(), kind));
        let kind = |item: &Field<'_>, walk: &mut Walk<'_>| {
            item.text(walk)?.choice("kind of look-up", &words, walk)
        };
        let kinds: Vec<_> = items.iter().filter_map(|item| kind(item, walk)).collect();
        config.lookup = LookupKinds::of(&kinds);
    }
    table.integer("regexes_max", &mut config.regexes_max, walk);
    if let Some(on_change) = table.take("on_change")
        && let Some(on_change) = on_change_of(&on_change, walk)
    {
        config.on_change = on_change;
    }
    table.finish(walk);
    config
}

fn on_change_of(field: &Field<'_>, walk: &mut Walk<'_>) -> Option<OnChange> {
    match field.value() {
        DeValue::String(_) => {
            let text = field.text(walk)?;
            match text.value.as_str() {
                "keep" => return Some(OnChange::Keep),
                "close" => return Some(OnChange::Close),
                _ => {}
            }
            let expected =
                "expected `keep`, `close` or `{ drain = { after = \"0s\", over = \"5m\" } }`";
            let message = format!("unknown on_change {:?}: {expected}", shorten(&text.shown));
            let help = did_you_mean(&text.shown, ["keep", "close"]);
            let finding = Finding::new(&text.path, message, expected).help(help);
            walk.report(text.span, finding);
            None
        }
        DeValue::Table(_) => {
            let mut table = field.table(walk)?;
            let drain = table.take("drain");
            if drain.is_none() {
                table.missing(
                    "drain",
                    "{ drain = { after = \"0s\", over = \"5m\" } }",
                    walk,
                );
            }
            table.finish(walk);
            let mut drain = drain?.table(walk)?;
            let (mut after, mut over) = (Duration::ZERO, Duration::ZERO);
            drain.duration("after", &mut after, walk);
            drain.duration("over", &mut over, walk);
            drain.finish(walk);
            Some(OnChange::Drain { after, over })
        }
        _ => {
            field.wrong_type(
                "`\"keep\"`, `\"close\"` or `{ drain = { after = \"0s\", over = \"5m\" } }`",
                walk,
            );
            None
        }
    }
}

fn upstream(name: &str, mut table: Table<'_>, walk: &mut Walk<'_>) -> upstream::Config {
    let mut config = upstream::Config {
        name: name.to_owned(),
        endpoints: Vec::new(),
        policy: Policy::default(),
    };
    match table.take("endpoints") {
        None => table.missing("endpoints", "endpoints = [\"127.0.0.1:9000\"]", walk),
        Some(field) => {
            for item in field.items(walk).unwrap_or_default() {
                let text = item.text(walk);
                config
                    .endpoints
                    .extend(text.and_then(|text| text.read(walk, "an endpoint", address::dial)));
            }
        }
    }
    if let Some(policy) = table.choice("policy", &Policy::WORDS, walk) {
        config.policy = policy;
    }
    table.finish(walk);
    config
}

fn upstream_tls(mut table: Table<'_>, walk: &mut Walk<'_>) -> tls::Config {
    let mut config = tls::Config::default();
    if let Some(text) = table.text("ca", walk) {
        let sources = walk.sources;
        config.ca = text.read(walk, "a file of certificates", |text| {
            let file = table::path_buf(text, sources)?;
            tls::read(&file).map(|_| file)
        });
    }
    table.finish(walk);
    config
}

fn guard(mut table: Table<'_>, walk: &mut Walk<'_>) -> guard::Config {
    let mut config = guard::Config::default();
    if let Some(items) = table.take("allow").and_then(|field| field.items(walk)) {
        let mut read =
            |item: &Field<'_>| item.text(walk)?.read(walk, "a network", address::network);
        config.allow = items.iter().filter_map(&mut read).collect();
    }
    if let Some(items) = table.take("ports").and_then(|field| field.items(walk)) {
        let mut read = |item: &Field<'_>| match item.value() {
            DeValue::Integer(_) => item.integer::<u16>(walk).map(|port| port..=port),
            _ => item
                .text(walk)?
                .read(walk, "a range of ports", address::ports),
        };
        config.ports = items.iter().filter_map(&mut read).collect();
    }
    if let Some(items) = table.take("unix").and_then(|field| field.items(walk)) {
        let mut read = |item: &Field<'_>| item.text(walk)?.read(walk, "a path", address::absolute);
        config.unix = items.iter().filter_map(&mut read).collect();
    }
    table.finish(walk);
    config
}

fn caddy_ids(table: Table<'_>, walk: &mut Walk<'_>) -> BTreeMap<String, String> {
    let mut ids = BTreeMap::new();
    for field in table.fields() {
        if let Some(text) = field.text(walk) {
            ids.insert(field.key.to_owned(), text.value);
        }
    }
    ids
}
