//! `kv`: the store, read at the call's snapshot under the call's own writes, which are one batch.

use super::HostState;
use super::bindings::throwbar::plugin::kv::{Entry, Error, Host};
use super::unapplied::Planned;
use crate::plugin::Access;
use crate::plugin::generation::Grant;
use crate::plugin::migration;
use crate::store::{
    BucketId, Expect, Revision, Value, ValueKind, Write, WriteBatch,
    bucket::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Most keys of one page.
pub(super) const KEYS_MAX: usize = 1_000;
/// Most bytes of keys and values that one call writes.
pub(super) const WRITES_BYTES_MAX: usize = 8 << 20;

/// Writes of the running call, as its reads see them: one for each key.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    writes: BTreeMap<BucketId, BTreeMap<Box<str>, OwnWrite>>,
    count: usize,
    bytes: usize,
}

#[derive(Debug)]
struct OwnWrite {
    /// None deletes.
    value: Option<Value>,
    /// What the entry had to be before the call wrote it first.
    expect: Expect,
}

impl Overlay {
    /// The call's own write of a key, if there is one: its value, or none if it deletes.
    #[inline]
    pub(super) fn get(&self, bucket: BucketId, key: &str) -> Option<Option<&Value>> {
        if self.count == 0 {
            return None;
        }
        Some(self.writes.get(&bucket)?.get(key)?.value.as_ref())
    }

    /// The writes as one batch, leaving none.
    pub(in crate::plugin) fn take_batch(&mut self) -> Option<WriteBatch> {
        if self.count == 0 {
            return None;
        }
        Some(self.take_all())
    }

    /// Whether there is no write.
    #[inline]
    pub(in crate::plugin) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every write, in the order of buckets and keys, as planned.
    pub(in crate::plugin) fn planned(&self) -> Vec<Planned> {
        let buckets = self.writes.iter();
        let all = buckets.flat_map(|(bucket, writes)| {
            let each = writes.iter();
            each.map(|(key, own)| (*bucket, key.clone(), own.value.clone()))
        });
        all.collect()
    }

    /// Bytes of keys and values.
    pub(in crate::plugin) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The writes as one batch, if only an empty one, leaving none.
    pub(in crate::plugin) fn take_all(&mut self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (bucket, writes) in std::mem::take(self).writes {
            batch
                .writes
                .extend(writes.into_iter().map(|(key, own)| Write {
                    bucket,
                    key,
                    value: own.value.map(|value| value_bytes(&value).into()),
                    expect: own.expect,
                }));
        }
        batch
    }

    /// Forgets all writes.
    pub(in crate::plugin) fn clear(&mut self) {
        if self.count > 0 {
            *self = Self::default();
        }
    }
}

/// Why a write or read of the store is refused: what both interfaces' errors are made from.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::plugin) enum Refusal {
    /// Not granted.
    NoSuchBucket,
    /// Granted for reading only, or no call that could commit is running.
    AccessDenied,
    /// Key or value is not what the bucket holds.
    InvalidValue(String),
    /// A limit of the call.
    Quota(String),
    /// The entry is at this revision.
    Conflict(Option<u64>),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSuchBucket => Self::NoSuchBucket,
            Refusal::AccessDenied => Self::AccessDenied,
            Refusal::InvalidValue(reason) => Self::InvalidValue(reason),
            Refusal::Quota(limit) => Self::Quota(limit),
            Refusal::Conflict(revision) => Self::Conflict(revision),
        }
    }
}

impl HostState {
    /// What the config grants of a bucket.
    pub(super) fn grant(&mut self, bucket: &str) -> Result<Grant, Refusal> {
        let grant = self.sandbox.grants.get(bucket).copied();
        let grant = grant.ok_or(Refusal::NoSuchBucket)?;
        self.note_used(grant.bucket);
        Ok(grant)
    }

    /// Notes that a migration looks at a bucket.
    pub(super) fn note_used(&mut self, bucket: BucketId) {
        if let Some(survey) = &mut self.survey {
            survey.note(bucket);
        }
    }

    /// Whether the data were migrated after this version was activated: it does not know their form any more.
    fn is_left_behind(&self) -> bool {
        let since = self.sandbox.data_since.load(Ordering::Acquire);
        migration::changed_at(&self.snapshot, &self.sandbox.data_mark)
            .is_some_and(|revision| revision.0 > since)
    }

    /// What the instance wrote under a key that the state does not show, if anything: its value, or none if it deletes.
    #[inline]
    pub(super) fn own(&self, bucket: BucketId, key: &str) -> Option<Option<&Value>> {
        match self.overlay.get(bucket, key) {
            None if !self.unapplied.is_empty() => self.unapplied.get(bucket, key),
            own => own,
        }
    }

    /// The value under a key and its revision, 0 for a write of its own that the state does not show.
    pub(super) fn read(&self, bucket: BucketId, key: &str) -> Option<(Vec<u8>, u64)> {
        match self.own(bucket, key) {
            Some(own) => own.map(|value| (value_bytes(value), 0)),
            None => {
                let entry = self.snapshot.bucket(bucket)?.get(key)?;
                Some((value_bytes(&entry.value), entry.revision.0))
            }
        }
    }

    /// The revision of the entry under a key, as the call sees it.
    fn revision(&self, bucket: BucketId, key: &str) -> Option<u64> {
        match self.own(bucket, key) {
            Some(own) => own.map(|_| 0),
            None => Some(self.snapshot.bucket(bucket)?.get(key)?.revision.0),
        }
    }

    /// Adds a write to the call's batch.
    pub(in crate::plugin) fn write(
        &mut self,
        grant: Grant,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<(), Refusal> {
        let bounds = self.writes.ok_or(Refusal::AccessDenied)?;
        if grant.access != Access::Write || self.is_left_behind() {
            return Err(Refusal::AccessDenied);
        }
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let reason = format!("key of {} bytes, expected 1 to {KEY_BYTES_MAX}", key.len());
            return Err(Refusal::Quota(reason));
        }
        let size = key.len() + value.map_or(0, <[u8]>::len);
        if value.is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            return Err(Refusal::Quota(format!(
                "value over {VALUE_BYTES_MAX} bytes"
            )));
        }
        let value = match value {
            Some(bytes) => Some(parse_value(grant.values, bytes)?),
            None => None,
        };
        let overlay = &mut self.overlay;
        if overlay.bytes + size > bounds.bytes {
            return Err(Refusal::Quota(format!(
                "writes of one call over {} bytes",
                bounds.bytes
            )));
        }
        let own = overlay
            .writes
            .get_mut(&grant.bucket)
            .and_then(|writes| writes.get_mut(key));
        match own {
            // What was expected of the entry in the store stands; what this call wrote is replaced.
            Some(own) => own.value = value,
            None => {
                if overlay.count >= bounds.count {
                    return Err(Refusal::Quota(format!(
                        "more than {} writes in one call",
                        bounds.count
                    )));
                }
                let writes = overlay.writes.entry(grant.bucket).or_default();
                writes.insert(key.into(), OwnWrite { value, expect });
                overlay.count += 1;
            }
        }
        overlay.bytes += size;
        Ok(())
    }

    /// Writes only if the entry is at revision `expected`, none meaning absent.
    fn write_if(
        &mut self,
        grant: Grant,
        key: &str,
        expected: Option<u64>,
        value: Option<&[u8]>,
    ) -> Result<(), Refusal> {
        let found = self.revision(grant.bucket, key);
        // What an earlier call wrote has no revision yet that could be expected.
        let is_earlier = || self.overlay.get(grant.bucket, key).is_none();
        if found != expected || (found == Some(0) && is_earlier()) {
            return Err(Refusal::Conflict(found));
        }
        let expect = expected.map_or(Expect::Absent, |revision| Expect::At(Revision(revision)));
        self.write(grant, key, value, expect)
    }

    /// At most `limit` keys with `prefix`, after `after`, in byte order.
    pub(in crate::plugin) fn list(
        &mut self,
        bucket: BucketId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<String> {
        let limit = limit.min(KEYS_MAX);
        if let Some(survey) = &mut self.survey {
            let own = self.overlay.writes.get(&bucket);
            let stays = |own: &OwnWrite| own.value.is_some();
            let place = (prefix, after);
            return survey.page(&self.snapshot, bucket, own, place, limit, stays);
        }
        let earlier = self.unapplied.keys(bucket);
        let own = self.overlay.writes.get(&bucket).into_iter().flatten();
        // What this call wrote goes before what earlier ones did.
        let own: BTreeMap<&str, bool> = earlier
            .chain(own.map(|(key, own)| (&**key, own.value.is_some())))
            .collect();
        // Each own write hides at most one stored key, so a page longer by so many holds enough.
        let page_len = limit + own.len();
        let mut keys = match self.snapshot.bucket(bucket) {
            Some(bucket) => bucket.page(prefix, after, page_len).entries,
            None => Vec::new(),
        };
        if own.is_empty() {
            return keys.into_iter().map(|(key, _)| key.into()).collect();
        }
        keys.retain(|(key, _)| !own.contains_key(&**key));
        let mut keys: Vec<String> = keys.into_iter().map(|(key, _)| key.into()).collect();
        let written = own.iter().filter(|(_, stays)| **stays);
        let written = written
            .map(|(key, _)| *key)
            .filter(|key| key.starts_with(prefix) && after.is_none_or(|after| *key > after));
        keys.extend(written.map(String::from));
        keys.sort_unstable();
        keys.truncate(limit);
        keys
    }
}

impl Host for HostState {
    fn get(
        &mut self,
        bucket: String,
        key: String,
    ) -> wasmtime::Result<Result<Option<Entry>, Error>> {
        let grant = self.grant(&bucket);
        let entry = grant.map(|grant| self.read(grant.bucket, &key));
        Ok(entry
            .map(|entry| entry.map(|(value, revision)| Entry { value, revision }))
            .map_err(Error::from))
    }

    fn put(
        &mut self,
        bucket: String,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let grant = self.grant(&bucket);
        let put = grant.and_then(|grant| self.write(grant, &key, Some(&value), Expect::Any));
        Ok(put.map_err(Error::from))
    }

    fn delete(&mut self, bucket: String, key: String) -> wasmtime::Result<Result<(), Error>> {
        let grant = self.grant(&bucket);
        let delete = grant.and_then(|grant| self.write(grant, &key, None, Expect::Any));
        Ok(delete.map_err(Error::from))
    }

    fn compare_and_set(
        &mut self,
        bucket: String,
        key: String,
        expected: Option<u64>,
        value: Option<Vec<u8>>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let grant = self.grant(&bucket);
        let set = grant.and_then(|grant| self.write_if(grant, &key, expected, value.as_deref()));
        Ok(set.map_err(Error::from))
    }

    fn keys(
        &mut self,
        bucket: String,
        prefix: String,
        after: Option<String>,
        limit: u32,
    ) -> wasmtime::Result<Result<Vec<String>, Error>> {
        let grant = self.grant(&bucket);
        let keys =
            grant.map(|grant| self.list(grant.bucket, &prefix, after.as_deref(), limit as usize));
        Ok(keys.map_err(Error::from))
    }
}

/// A value as guests see it.
fn value_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Bytes(bytes) => bytes.to_vec(),
        Value::Target(target) => target.to_string().into_bytes(),
    }
}

fn parse_value(kind: ValueKind, bytes: &[u8]) -> Result<Value, Refusal> {
    Value::parse(kind, bytes).map_err(|error| Refusal::InvalidValue(error.to_string()))
}
