//! Tells workers of changed entries that their streams follow, off the data plane.
//!
//! A task of the control plane compares each new state of the store with the one before, but only buckets that some stream
//! follows; states share what they have in common, so that costs as much as was changed. Values that come and go between
//! two looks are no change.

use crate::metrics::Counters;
use crate::store::{BucketId, Snapshot, Store};
use crate::worker::Workers;
use std::sync::Arc;
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::time::Duration;

/// Between two looks: writes that come in a row are looked at together.
const PAUSE: Duration = Duration::from_millis(10);
/// Entries that a worker is told of at once, so that it serves others in between.
const ENTRIES_PER_COMMAND: usize = 1_000;

/// Watches until the store is closed.
pub(crate) async fn watch(store: Store, workers: Workers, counters: Arc<Counters>) {
    let mut changes = store.changes();
    let mut before = store.snapshot();
    while changes.changed().await.is_ok() {
        tokio::time::sleep(PAUSE).await;
        changes.mark_unchanged();
        let after = store.snapshot();
        // A stream that begins to follow now, and is not seen here, sees what was published itself.
        fence(SeqCst);
        let followed = followed(&counters);
        let all = followed.iter().fold(0, |all, bits| all | bits);
        if all != 0 {
            let (old, new) = (before, after.clone());
            let compared = tokio::task::spawn_blocking(move || changed(&old, &new, all)).await;
            tell(&workers, &followed, &compared.unwrap_or_default()).await;
        }
        before = after;
    }
}

/// By worker, which buckets its streams follow.
fn followed(counters: &Counters) -> Vec<u64> {
    let workers = counters.workers.iter();
    workers
        .map(|worker| worker.followed_buckets.load(SeqCst))
        .collect()
}

fn changed(before: &Snapshot, after: &Snapshot, buckets: u64) -> Vec<(BucketId, Box<str>)> {
    after.changed_since(before, |bucket| buckets & bucket.bit() != 0)
}

/// Tells each worker of what it may have to do with.
async fn tell(workers: &Workers, followed: &[u64], changed: &[(BucketId, Box<str>)]) {
    for keys in changed.chunks(ENTRIES_PER_COMMAND) {
        let bits = keys.iter().fold(0, |bits, (bucket, _)| bits | bucket.bit());
        let keys: Arc<[_]> = keys.into();
        for (worker, followed) in followed.iter().enumerate() {
            if followed & bits != 0 {
                workers.entries_changed(worker, keys.clone()).await;
            }
        }
    }
}
