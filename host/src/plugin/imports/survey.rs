//! What a migration looks at: the buckets it uses, which must not change meanwhile.

use crate::store::{BucketId, Condition, Snapshot};
use std::collections::BTreeSet;

/// Kept while one migration runs.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    used: BTreeSet<BucketId>,
}

impl Survey {
    /// Notes that a bucket is used.
    pub(super) fn note(&mut self, bucket: BucketId) {
        self.used.insert(bucket);
    }

    /// That nothing changed since in what was used.
    pub(in crate::plugin) fn conditions(&self, snapshot: &Snapshot) -> Vec<Condition> {
        let used = self.used.iter();
        let revision = |id| {
            snapshot
                .bucket(id)
                .map_or(snapshot.revision(), |bucket| bucket.revision())
        };
        used.map(|id| Condition::Unchanged(*id, revision(*id)))
            .collect()
    }
}
