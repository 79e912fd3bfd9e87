//! `[fleet]`: that this proxy is a node of one.

use super::table::{Table, Walk};
use crate::fleet::Config;
use crate::store::BackendKind;

/// None if it is not said where the fleet agrees.
pub(super) fn fleet(mut table: Table<'_>, walk: &mut Walk<'_>) -> Option<Config> {
    if !table.has("backend") {
        table.missing("backend", "backend = \"etcd\"", walk);
    }
    let backends = [("etcd", BackendKind::Etcd), ("redis", BackendKind::Redis)];
    let backend = table.choice("backend", &backends, walk);
    let mut config = Config::new(backend.unwrap_or(BackendKind::Etcd));
    config.node = table.text("node", walk).map(|text| text.value);
    table.duration("heartbeat", &mut config.heartbeat, walk);
    table.duration("start_timeout", &mut config.start_timeout, walk);
    table.finish(walk);
    backend.map(|_| config)
}
