//! When what was written ends, as its backend has it: etcd counts in whole seconds, and grants no less than some.

use super::offload;
use crate::admin::kv::expires_json;
use crate::admin::problem::Problem;
use crate::store::{Action, BucketId, Committed, Store, WriteBatch};
use serde_json::Value;

/// So many keys are looked at where they are; more, on another thread: this one answers probes, too.
const KEYS_AT_ONCE: usize = 1_000;

/// Keys that a batch gives a time to live.
#[derive(Debug)]
pub(in crate::admin) struct Ending(Vec<(BucketId, Box<str>)>);

impl Ending {
    /// Those of a batch, which is given back. What is read in again has ends of its own, which its writer knows.
    pub(in crate::admin) async fn of(batch: WriteBatch) -> Result<(Self, WriteBatch), Problem> {
        let ends = |action: &Action| {
            matches!(
                action,
                Action::Put { ttl: Some(_), .. }
                    | Action::Touch { ttl: Some(_) }
                    | Action::Increment { ttl: Some(_), .. }
            )
        };
        let count = batch.writes.len();
        let find = move || {
            let writes = batch.writes.iter().filter(|write| ends(&write.action));
            let found = writes.map(|write| (write.bucket, write.key.clone()));
            (Self(found.collect()), batch)
        };
        match count {
            ..=KEYS_AT_ONCE => Ok(find()),
            _ => offload(find).await,
        }
    }

    /// Puts into the answer when the first of them ends. One that was written once more since is not of this batch.
    pub(in crate::admin) async fn tell(
        self,
        store: &Store,
        committed: &Committed,
        answer: &mut Value,
    ) {
        let count = self.0.len();
        if count == 0 || answer["dry_run"] == true {
            return;
        }
        let (snapshot, revision) = (store.snapshot(), committed.revision);
        let first = move || {
            let entries = self.0.iter().filter_map(|(bucket, key)| {
                let entry = snapshot.bucket(*bucket)?.get(key)?;
                (entry.revision <= revision).then_some(entry)
            });
            entries.filter_map(|entry| entry.deadline).min()
        };
        let first = match count {
            ..=KEYS_AT_ONCE => first(),
            // What was written is so whether or not this can be told.
            _ => offload(first).await.ok().flatten(),
        };
        if let Some(first) = first {
            answer["expires_at"] = expires_json(first);
        }
    }
}
