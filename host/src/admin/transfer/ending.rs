//! When what was written ends, as its backend has it: etcd counts in whole seconds, and grants no less than some.

use crate::admin::kv::expires_json;
use crate::store::{Action, BucketId, Committed, Store, WriteBatch};
use serde_json::Value;

/// Keys that a batch gives a time to live.
#[derive(Debug)]
pub(in crate::admin) struct Ending(Vec<(BucketId, Box<str>)>);

impl Ending {
    /// Those of a batch. What is read in again has ends of its own, which its writer knows.
    pub(in crate::admin) fn of(batch: &WriteBatch) -> Self {
        let ends = |action: &Action| {
            matches!(
                action,
                Action::Put { ttl: Some(_), .. }
                    | Action::Touch { ttl: Some(_) }
                    | Action::Increment { ttl: Some(_), .. }
            )
        };
        let writes = batch.writes.iter().filter(|write| ends(&write.action));
        Self(
            writes
                .map(|write| (write.bucket, write.key.clone()))
                .collect(),
        )
    }

    /// Puts into the answer when the first of them ends. One that was written once more since is not of this batch.
    pub(in crate::admin) fn tell(&self, store: &Store, committed: &Committed, answer: &mut Value) {
        if self.0.is_empty() || answer["dry_run"] == true {
            return;
        }
        let snapshot = store.snapshot();
        let entries = self.0.iter().filter_map(|(bucket, key)| {
            let entry = snapshot.bucket(*bucket)?.get(key)?;
            (entry.revision <= committed.revision).then_some(entry)
        });
        if let Some(first) = entries.filter_map(|entry| entry.deadline).min() {
            answer["expires_at"] = expires_json(first);
        }
    }
}
