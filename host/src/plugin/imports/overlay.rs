//! What the running call has written: seen by its own reads, and one batch when it returns.

use super::listing::keys_from;
use super::unapplied::Planned;
use crate::store::{Action, BucketId, Expect, Value, ValueError, ValueKind, Write, WriteBatch};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

/// Writes of the running call, as its reads see them: one for each key.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    writes: BTreeMap<BucketId, BTreeMap<Box<str>, OwnWrite>>,
    pub(super) count: usize,
    pub(super) bytes: usize,
    /// Counts writes of all calls, so that each has a number of its own.
    stamp: u64,
}

/// What became of one key.
#[derive(Debug)]
struct OwnWrite {
    /// The value that the call sees; none if it deleted it.
    seen: Option<Value>,
    base: Base,
    /// Added to whatever the value is when the batch is applied.
    added: Option<(i64, Option<Duration>)>,
    /// Renewed for so long, or until it is deleted.
    touched: Option<Option<Duration>>,
    /// What the entry had to be before the call wrote it first.
    expect: Expect,
    stamp: u64,
}

/// What the key's value is made from.
#[derive(Debug)]
enum Base {
    /// What the store has when the batch is applied.
    Stored,
    /// What the call put, for so long.
    Put(Option<Duration>),
    Deleted,
}

/// Why a write makes no sense.
#[derive(Debug)]
pub(super) enum Unfit {
    /// There is nothing to renew.
    Absent,
    Value(ValueError),
}

impl Overlay {
    /// The call's own write of a key, if there is one: its value, or none if it deletes.
    #[inline]
    pub(super) fn get(&self, bucket: BucketId, key: &str) -> Option<Option<&Value>> {
        if self.count == 0 {
            return None;
        }
        Some(self.writes.get(&bucket)?.get(key)?.seen.as_ref())
    }

    /// The number of the last write of a key; none if this call has not written it.
    pub(super) fn stamp(&self, bucket: BucketId, key: &str) -> Option<u64> {
        Some(self.writes.get(&bucket)?.get(key)?.stamp)
    }

    /// Adds a write to a bucket of this kind, whose entry is `stored` in the store.
    pub(super) fn write(
        &mut self,
        (bucket, kind): (BucketId, ValueKind),
        key: &str,
        stored: Option<&Value>,
        action: Action,
        expect: Expect,
    ) -> Result<(), Unfit> {
        let known = self.writes.get(&bucket).and_then(|keys| keys.get(key));
        let seen = known.map_or(stored, |own| own.seen.as_ref());
        let seen = match &action {
            Action::Put { value, .. } => Some(Value::parse(kind, value).map_err(Unfit::Value)?),
            Action::Delete => None,
            Action::Touch { .. } => Some(seen.ok_or(Unfit::Absent)?.clone()),
            Action::Increment { by, .. } => {
                let (_, sum) = Value::increment(kind, seen, *by).map_err(Unfit::Value)?;
                Some(sum)
            }
        };
        let added = match (&action, known.and_then(|own| own.added)) {
            (Action::Increment { by, ttl }, None) => Some((*by, *ttl)),
            (Action::Increment { by, .. }, Some((before, ttl))) => {
                let sum = before.checked_add(*by).ok_or_else(|| {
                    let reason = format!("the sum of {before} and {by} is beyond 64 bits");
                    Unfit::Value(ValueError(reason))
                })?;
                Some((sum, ttl))
            }
            _ => None,
        };
        self.stamp += 1;
        let keys = self.writes.entry(bucket).or_default();
        if !keys.contains_key(key) {
            self.count += 1;
        }
        let own = keys.entry(key.into()).or_insert_with(|| OwnWrite {
            seen: None,
            base: Base::Stored,
            added: None,
            touched: None,
            expect,
            stamp: 0,
        });
        own.stamp = self.stamp;
        own.seen = seen;
        match action {
            Action::Put { ttl, .. } => {
                (own.base, own.added, own.touched) = (Base::Put(ttl), None, None)
            }
            Action::Delete => (own.base, own.added, own.touched) = (Base::Deleted, None, None),
            Action::Touch { ttl } => match own.base {
                Base::Put(_) => own.base = Base::Put(ttl),
                Base::Stored | Base::Deleted => own.touched = Some(ttl),
            },
            Action::Increment { ttl, .. } => match own.base {
                // What the call put is in `seen`, and stands as long as it was to.
                Base::Put(_) => {}
                Base::Deleted => own.base = Base::Put(ttl),
                Base::Stored => own.added = added,
            },
        }
        Ok(())
    }

    /// Keys of a bucket that the call has written, in byte order, and whether each is there.
    pub(super) fn keys(
        &self,
        bucket: BucketId,
        start: Bound<&str>,
    ) -> impl Iterator<Item = (&str, bool)> {
        let keys = keys_from(self.writes.get(&bucket), start);
        keys.map(|(key, own)| (key, own.seen.is_some()))
    }

    /// Whether there is no write.
    #[inline]
    pub(in crate::plugin) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every key written, in the order of buckets and keys, with the value that the call sees.
    pub(in crate::plugin) fn planned(&self) -> Vec<Planned> {
        let buckets = self.writes.iter();
        let all = buckets.flat_map(|(bucket, writes)| {
            let each = writes.iter();
            each.map(|(key, own)| (*bucket, key.clone(), own.seen.clone()))
        });
        all.collect()
    }

    /// Bytes of keys and values.
    pub(in crate::plugin) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The writes as one batch, leaving none.
    pub(in crate::plugin) fn take_batch(&mut self) -> Option<WriteBatch> {
        (!self.is_empty()).then(|| self.take_all())
    }

    /// The writes as one batch, if only an empty one, leaving none.
    pub(in crate::plugin) fn take_all(&mut self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (bucket, writes) in std::mem::take(&mut self.writes) {
            for (key, own) in writes {
                own.into_writes(bucket, &key, &mut batch.writes);
            }
        }
        self.clear();
        batch
    }

    /// Forgets all writes.
    pub(in crate::plugin) fn clear(&mut self) {
        if self.count > 0 {
            *self = Self {
                stamp: self.stamp,
                ..Self::default()
            };
        }
    }
}

impl OwnWrite {
    fn into_writes(self, bucket: BucketId, key: &str, writes: &mut Vec<Write>) {
        let base = match (self.base, self.seen) {
            (Base::Put(ttl), Some(value)) => Some(Action::Put {
                value: value.into_bytes(),
                ttl,
            }),
            (Base::Put(_) | Base::Deleted, _) => Some(Action::Delete),
            (Base::Stored, _) => None,
        };
        let added = self.added.map(|(by, ttl)| Action::Increment { by, ttl });
        let touched = self.touched.map(|ttl| Action::Touch { ttl });
        let actions = [base, added, touched].into_iter().flatten();
        let new = actions.map(|action| Write::new(bucket, key, action).expecting(self.expect));
        writes.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET: BucketId = BucketId(2);
    const SECOND: Option<Duration> = Some(Duration::from_secs(1));
    const MINUTE: Option<Duration> = Some(Duration::from_secs(60));

    fn put(value: &str, ttl: Option<Duration>) -> Action {
        Action::Put {
            value: value.as_bytes().into(),
            ttl,
        }
    }

    fn add(by: i64) -> Action {
        Action::Increment { by, ttl: SECOND }
    }

    fn touch(ttl: Option<Duration>) -> Action {
        Action::Touch { ttl }
    }

    /// What the call sees in the end, and what its batch does.
    fn after(
        stored: Option<&str>,
        actions: impl IntoIterator<Item = Action>,
    ) -> (Option<String>, Vec<Action>) {
        let stored = stored.map(|value| Value::Bytes(value.as_bytes().into()));
        let mut overlay = Overlay::default();
        for action in actions {
            let bucket = (BUCKET, ValueKind::Bytes);
            let written = overlay.write(bucket, "k", stored.as_ref(), action, Expect::Any);
            written.expect("it makes sense");
        }
        let seen = overlay.get(BUCKET, "k").expect("written");
        let seen = seen.map(|value| value.text().expect("text").into_owned());
        let batch = overlay.take_batch().expect("a batch");
        assert!(overlay.take_batch().is_none(), "taken");
        let actions = batch.writes.into_iter().map(|write| write.action);
        (seen, actions.collect())
    }

    #[test]
    fn writes_of_a_key_become_what_they_come_to() {
        let seen = |value: &str| Some(value.to_owned());
        let both = [put("1", None), put("2", SECOND)];
        assert_eq!(after(None, both), (seen("2"), vec![put("2", SECOND)]));
        let gone = [put("1", None), Action::Delete];
        assert_eq!(after(Some("0"), gone), (None, vec![Action::Delete]));
        let renewed = [put("1", SECOND), touch(MINUTE)];
        assert_eq!(after(None, renewed), (seen("1"), vec![put("1", MINUTE)]));
        let counted = [put("5", MINUTE), add(2)];
        assert_eq!(after(None, counted), (seen("7"), vec![put("7", MINUTE)]));
        let anew = [Action::Delete, add(2)];
        assert_eq!(after(Some("5"), anew), (seen("2"), vec![put("2", SECOND)]));
    }

    #[test]
    fn what_is_added_to_a_stored_value_stays_an_addition() {
        let seen = |value: &str| Some(value.to_owned());
        assert_eq!(
            after(Some("5"), [add(2), add(3)]),
            (seen("10"), vec![add(5)])
        );
        let (value, actions) = after(Some("5"), [touch(MINUTE), add(-6), touch(None)]);
        assert_eq!((value, actions), (seen("-1"), vec![add(-6), touch(None)]));
        let again = [add(1), put("0", None), add(1)];
        assert_eq!(after(Some("5"), again), (seen("1"), vec![put("1", None)]));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_leaves_no_write() {
        let mut overlay = Overlay::default();
        let mut write = |kind, stored: Option<&Value>, action| {
            overlay.write((BUCKET, kind), "k", stored, action, Expect::Any)
        };
        let text = Value::Bytes(b"x"[..].into());
        let absent = write(ValueKind::Bytes, None, touch(None));
        assert!(matches!(absent, Err(Unfit::Absent)));
        let text = write(ValueKind::Bytes, Some(&text), add(1));
        assert!(matches!(text, Err(Unfit::Value(_))));
        let address = write(ValueKind::Endpoint, None, add(1));
        assert!(matches!(address, Err(Unfit::Value(_))));
        assert!(overlay.take_batch().is_none());
    }
}
