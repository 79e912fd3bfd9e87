//! What a batch would change: key by key, with the values before and after.

use crate::admin::kv::value_json;
use crate::store::{Bucket, Value, Write, WriteBatch};
use serde_json::{Value as Json, json};
use std::collections::HashMap;

/// Changes that are told one by one.
const CHANGES_MAX: usize = 10_000;

/// The changes of a batch to one bucket, in the order of its keys, and how many there are beyond those told.
pub(super) fn diff(bucket: &Bucket, batch: &WriteBatch) -> (Vec<Json>, u64) {
    // The last write of a key counts.
    let wanted: HashMap<&str, Option<&[u8]>> = batch.writes.iter().map(wanted).collect();
    let mut keys: Vec<&str> = wanted.keys().copied().collect();
    let replaced = if batch.replace.is_empty() {
        Vec::new()
    } else {
        bucket.sorted()
    };
    let gone = replaced.iter().map(|(key, _)| *key);
    keys.extend(gone.filter(|key| !wanted.contains_key(key)));
    keys.sort_unstable();
    let (mut changes, mut more) = (Vec::new(), 0);
    for key in keys {
        let before = bucket.get(key).map(|entry| &entry.value);
        let after = wanted.get(key).copied().flatten();
        let after = after.and_then(|bytes| Value::parse(bucket.config().values, bytes).ok());
        if before == after.as_ref() {
            continue;
        }
        if changes.len() == CHANGES_MAX {
            more += 1;
            continue;
        }
        changes.push(json!({
            "key": key,
            "before": before.map(value_json),
            "after": after.as_ref().map(value_json),
        }));
    }
    (changes, more)
}

fn wanted(write: &Write) -> (&str, Option<&[u8]>) {
    (&write.key, write.value.as_deref())
}
