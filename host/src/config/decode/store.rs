//! `[store]`: the engines that proxies share.

use super::table::{Table, Walk, path_buf};
use crate::config::diagnostic::Finding;
use crate::store::SharedSettings;
use crate::store::shared::settings::{
    ClientCertificate, Credentials, EtcdSettings, RedisServers, RedisSettings, TlsFiles,
};
use std::path::PathBuf;

pub(super) fn store(mut table: Table<'_>, walk: &mut Walk<'_>) -> SharedSettings {
    let settings = SharedSettings {
        etcd: table.table("etcd", walk).and_then(|it| etcd(it, walk)),
        redis: table.table("redis", walk).and_then(|it| redis(it, walk)),
    };
    table.finish(walk);
    settings
}

fn etcd(mut table: Table<'_>, walk: &mut Walk<'_>) -> Option<EtcdSettings> {
    let (path, span) = (table.path.clone(), table.span.clone());
    let mut settings = EtcdSettings::new(texts(&mut table, "endpoints", walk));
    if !table.has("endpoints") {
        table.missing("endpoints", "endpoints = [\"127.0.0.1:2379\"]", walk);
    }
    text(&mut table, "prefix", &mut settings.prefix, walk);
    settings.tls = tls(&mut table, walk);
    settings.credentials = credentials(&mut table, ["user", "password"], walk);
    table.duration("connect_timeout", &mut settings.connect_timeout, walk);
    table.duration("timeout", &mut settings.timeout, walk);
    table.duration("heartbeat", &mut settings.heartbeat, walk);
    let (writes, bytes) = (
        &mut settings.transaction_writes_max,
        &mut settings.transaction_bytes_max,
    );
    table.integer("transaction_writes_max", writes, walk);
    table.size("transaction_bytes_max", bytes, walk);
    let is_whole = table.has("endpoints");
    table.finish(walk);
    if is_whole && let Err(message) = settings.check() {
        walk.report(span, Finding::new(&path, message, "in this table"));
    }
    is_whole.then_some(settings)
}

fn redis(mut table: Table<'_>, walk: &mut Walk<'_>) -> Option<RedisSettings> {
    let (path, span) = (table.path.clone(), table.span.clone());
    let server = table.text("server", walk).map(|text| text.value);
    let sentinels = texts(&mut table, "sentinels", walk);
    let master = table.text("master", walk).map(|text| text.value);
    let cluster = texts(&mut table, "cluster", walk);
    let servers = match (server, sentinels.is_empty(), master, cluster.is_empty()) {
        (Some(server), true, None, true) => Some(RedisServers::Single(server)),
        (None, false, Some(master), true) => Some(RedisServers::Sentinel { sentinels, master }),
        (None, true, None, false) => Some(RedisServers::Cluster(cluster)),
        _ => {
            let message = "where Redis is, is not clear: expected `server`, or `sentinels` and `master`, or `cluster`";
            walk.report(
                span.clone(),
                Finding::new(&path, message, "in this table")
                    .help("write `server = \"127.0.0.1:6379\"`".to_owned()),
            );
            None
        }
    };
    let is_whole = servers.is_some();
    let mut settings =
        RedisSettings::new(servers.unwrap_or_else(|| RedisServers::Single(String::new())));
    text(&mut table, "prefix", &mut settings.prefix, walk);
    table.integer("database", &mut settings.database, walk);
    settings.tls = tls(&mut table, walk);
    settings.credentials = credentials(&mut table, ["user", "password"], walk);
    settings.sentinel_credentials =
        credentials(&mut table, ["sentinel_user", "sentinel_password"], walk);
    table.duration("connect_timeout", &mut settings.connect_timeout, walk);
    table.duration("timeout", &mut settings.timeout, walk);
    table.duration("heartbeat", &mut settings.heartbeat, walk);
    table.integer("log_entries", &mut settings.log_entries, walk);
    table.integer("replicas", &mut settings.replicas, walk);
    table.duration("replicas_timeout", &mut settings.replicas_timeout, walk);
    table.finish(walk);
    if is_whole && let Err(message) = settings.check() {
        walk.report(span, Finding::new(&path, message, "in this table"));
    }
    is_whole.then_some(settings)
}

fn tls(table: &mut Table<'_>, walk: &mut Walk<'_>) -> Option<TlsFiles> {
    let mut table = table.table("tls", walk)?;
    let mut file = |table: &mut Table<'_>, key: &'static str| -> Option<PathBuf> {
        let text = table.text(key, walk)?;
        let sources = walk.sources;
        text.read(walk, "a path", |text| path_buf(text, sources))
    };
    let ca = file(&mut table, "ca");
    let (chain, key) = (file(&mut table, "certificate"), file(&mut table, "key"));
    let certificate = match (chain, key) {
        (Some(chain), Some(key)) => Some(ClientCertificate { chain, key }),
        (None, None) => None,
        (Some(_), None) => {
            table.missing("key", "key = \"proxy.key\"", walk);
            None
        }
        (None, Some(_)) => {
            table.missing("certificate", "certificate = \"proxy.pem\"", walk);
            None
        }
    };
    table.finish(walk);
    Some(TlsFiles { ca, certificate })
}

fn credentials(
    table: &mut Table<'_>,
    [user, password]: [&'static str; 2],
    walk: &mut Walk<'_>,
) -> Option<Credentials> {
    let name = table.text(user, walk).map(|text| text.value);
    let secret = table.text(password, walk).map(|text| text.value);
    if name.is_some() && secret.is_none() {
        let example = format!("{password} = \"${{file:store.password}}\"");
        table.missing(password, &example, walk);
    }
    Some(Credentials {
        user: name,
        password: secret?,
    })
}

fn text(table: &mut Table<'_>, key: &'static str, slot: &mut String, walk: &mut Walk<'_>) {
    if let Some(text) = table.text(key, walk) {
        *slot = text.value;
    }
}

fn texts(table: &mut Table<'_>, key: &'static str, walk: &mut Walk<'_>) -> Vec<String> {
    let items = table.take(key).and_then(|field| field.items(walk));
    let items = items.unwrap_or_default();
    items
        .iter()
        .filter_map(|item| Some(item.text(walk)?.value))
        .collect()
}
