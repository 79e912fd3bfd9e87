//! What a batch would change: key by key, with the values before and after.

use crate::admin::kv::value_json;
use crate::store::{Action, Bucket, Value, ValueKind, WriteBatch};
use serde_json::{Value as Json, json};
use std::borrow::Cow;
use std::collections::HashMap;

/// Changes that are told one by one.
const CHANGES_MAX: usize = 10_000;

/// The changes of a batch to one bucket, in the order of its keys, and how many there are beyond those told. What makes no
/// sense, which the batch is refused for, is no change.
pub(super) fn diff(bucket: &Bucket, batch: &WriteBatch) -> (Vec<Json>, u64) {
    let mut wanted: HashMap<&str, Option<Cow<'_, Value>>> = HashMap::new();
    for write in &batch.writes {
        let key = &*write.key;
        let seen = match wanted.remove(key) {
            Some(written) => written,
            None if !batch.replace.is_empty() => None,
            None => bucket.get(key).map(|entry| Cow::Borrowed(&entry.value)),
        };
        let after = after(bucket.config().values, seen, &write.action);
        wanted.insert(key, after);
    }
    let mut keys: Vec<&str> = wanted.keys().copied().collect();
    if !batch.replace.is_empty() {
        let gone = bucket.sorted().map(|(key, _)| key);
        keys.extend(gone.filter(|key| !wanted.contains_key(key)));
    }
    keys.sort_unstable();
    let (mut changes, mut more) = (Vec::new(), 0);
    for key in keys {
        let before = bucket.get(key).map(|entry| &entry.value);
        let after = wanted.get(key).and_then(Option::as_deref);
        if before == after {
            continue;
        }
        if changes.len() == CHANGES_MAX {
            more += 1;
            continue;
        }
        changes.push(json!({
            "key": key,
            "before": before.map(value_json),
            "after": after.map(value_json),
        }));
    }
    (changes, more)
}

/// The value after a write.
fn after<'v>(
    kind: ValueKind,
    seen: Option<Cow<'v, Value>>,
    action: &Action,
) -> Option<Cow<'v, Value>> {
    match action {
        Action::Put { value, .. } => Value::parse(kind, value).ok().map(Cow::Owned),
        Action::Delete => None,
        Action::Touch { .. } => seen,
        Action::Increment { by, .. } => {
            let sum = Value::increment(kind, seen.as_deref(), *by);
            sum.map_or(seen, |(_, sum)| Some(Cow::Owned(sum)))
        }
    }
}
