//! `[store]`: how backends keep what they hold.

use super::table::{Table, Walk};
use crate::store::SyncPolicy;
use crate::store::data_file::SYNC_INTERVAL_DEFAULT;

/// The two words of `sync`.
#[derive(Clone, Copy, PartialEq)]
enum Word {
    Always,
    Interval,
}

/// `[store.embedded]`
pub(super) fn embedded(mut table: Table<'_>, walk: &mut Walk<'_>) -> SyncPolicy {
    let words = [("always", Word::Always), ("interval", Word::Interval)];
    let word = table.choice("sync", &words, walk);
    let mut interval = SYNC_INTERVAL_DEFAULT;
    table.duration("sync_interval", &mut interval, walk);
    table.finish(walk);
    match word {
        Some(Word::Interval) => SyncPolicy::Interval(interval),
        Some(Word::Always) | None => SyncPolicy::Always,
    }
}
