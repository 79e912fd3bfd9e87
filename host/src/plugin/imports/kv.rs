//! `kv`: the store, read at the call's snapshot under the call's own writes, which are one batch.

use super::HostState;
use super::bindings::throwbar::plugin::kv::{Entry, Error, Host};
use super::overlay::Unfit;
use crate::plugin::Access;
use crate::plugin::generation::Grant;
use crate::plugin::migration;
use crate::store::{
    Action, BucketId, Expect, Revision, Value,
    bucket::{KEY_BYTES_MAX, VALUE_BYTES_MAX},
    check_ttl,
};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most bytes of keys and values that one call writes.
pub(super) const WRITES_BYTES_MAX: usize = 8 << 20;

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
    pub(super) fn revision(&self, bucket: BucketId, key: &str) -> Option<u64> {
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
        action: Action,
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
        let (value_bytes, ttl) = match &action {
            Action::Put { value, ttl } => (value.len(), *ttl),
            Action::Touch { ttl } | Action::Increment { ttl, .. } => (0, *ttl),
            Action::Delete => (0, None),
        };
        if value_bytes > VALUE_BYTES_MAX {
            return Err(Refusal::Quota(format!(
                "value over {VALUE_BYTES_MAX} bytes"
            )));
        }
        if let Some(ttl) = ttl {
            check_ttl(ttl).map_err(Refusal::InvalidValue)?;
        }
        let bytes = self.overlay.bytes() + key.len() + value_bytes;
        if bytes > bounds.bytes {
            return Err(Refusal::Quota(format!(
                "writes of one call over {} bytes",
                bounds.bytes
            )));
        }
        let known = self.overlay.get(grant.bucket, key).is_some();
        if !known && self.overlay.count >= bounds.count {
            return Err(Refusal::Quota(format!(
                "more than {} writes in one call",
                bounds.count
            )));
        }
        let stored = match self.unapplied.get(grant.bucket, key) {
            Some(earlier) => earlier,
            None => {
                let bucket = self.snapshot.bucket(grant.bucket);
                let entry = bucket.and_then(|bucket| bucket.get(key));
                entry.map(|entry| &entry.value)
            }
        };
        let bucket = (grant.bucket, grant.values);
        let written = self.overlay.write(bucket, key, stored, action, expect);
        written.map_err(|unfit| match unfit {
            Unfit::Absent => Refusal::Conflict(None),
            Unfit::Value(error) => Refusal::InvalidValue(error.to_string()),
        })?;
        self.overlay.bytes = bytes;
        Ok(())
    }

    /// Puts a value, for so long if it is to end.
    pub(in crate::plugin) fn put_value(
        &mut self,
        grant: Grant,
        key: &str,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> Result<(), Refusal> {
        let value = value.into();
        self.write(grant, key, Action::Put { value, ttl }, Expect::Any)
    }

    /// Adds to a number, and returns what the call sees then.
    pub(super) fn add(
        &mut self,
        grant: Grant,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
    ) -> Result<i64, Refusal> {
        self.write(grant, key, Action::Increment { by, ttl }, Expect::Any)?;
        let sum = self.overlay.get(grant.bucket, key).flatten();
        let sum = sum.and_then(|value| value.text()?.parse().ok());
        Ok(sum.expect("a sum was written"))
    }

    /// Writes only if the entry is at revision `expected`, none meaning absent.
    pub(super) fn write_if(
        &mut self,
        grant: Grant,
        key: &str,
        expected: Option<u64>,
        value: Option<Vec<u8>>,
    ) -> Result<(), Refusal> {
        let found = self.revision(grant.bucket, key);
        // What an earlier call wrote has no revision yet that could be expected.
        let is_earlier = || self.overlay.get(grant.bucket, key).is_none();
        if found != expected || (found == Some(0) && is_earlier()) {
            return Err(Refusal::Conflict(found));
        }
        let expect = expected.map_or(Expect::Absent, |revision| Expect::At(Revision(revision)));
        let action = match value {
            Some(value) => Action::Put {
                value: value.into(),
                ttl: None,
            },
            None => Action::Delete,
        };
        self.write(grant, key, action, expect)
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
        let put = grant.and_then(|grant| self.put_value(grant, &key, value, None));
        Ok(put.map_err(Error::from))
    }

    fn put_for(
        &mut self,
        bucket: String,
        key: String,
        value: Vec<u8>,
        ttl_ms: u64,
    ) -> wasmtime::Result<Result<(), Error>> {
        let ttl = Some(Duration::from_millis(ttl_ms));
        let grant = self.grant(&bucket);
        let put = grant.and_then(|grant| self.put_value(grant, &key, value, ttl));
        Ok(put.map_err(Error::from))
    }

    fn touch(
        &mut self,
        bucket: String,
        key: String,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let ttl = ttl_ms.map(Duration::from_millis);
        let grant = self.grant(&bucket);
        let touch =
            grant.and_then(|grant| self.write(grant, &key, Action::Touch { ttl }, Expect::Any));
        Ok(touch.map_err(Error::from))
    }

    fn increment(
        &mut self,
        bucket: String,
        key: String,
        by: i64,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<i64, Error>> {
        let ttl = ttl_ms.map(Duration::from_millis);
        let grant = self.grant(&bucket);
        let sum = grant.and_then(|grant| self.add(grant, &key, by, ttl));
        Ok(sum.map_err(Error::from))
    }

    fn exists(&mut self, bucket: String, key: String) -> wasmtime::Result<Result<bool, Error>> {
        let grant = self.grant(&bucket);
        let exists = grant.map(|grant| self.revision(grant.bucket, &key).is_some());
        Ok(exists.map_err(Error::from))
    }

    fn delete(&mut self, bucket: String, key: String) -> wasmtime::Result<Result<(), Error>> {
        let grant = self.grant(&bucket);
        let delete = grant.and_then(|grant| self.write(grant, &key, Action::Delete, Expect::Any));
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
        let set = grant.and_then(|grant| self.write_if(grant, &key, expected, value));
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
    value.to_bytes().into_owned()
}
