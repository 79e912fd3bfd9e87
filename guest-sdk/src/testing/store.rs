//! The fake host's buckets, and what a call has written so far.

use super::call::split_port;
use crate::kv::{Entry, Error};
use crate::view::Change;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

/// Buckets with one revision counter, and a time of their own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    revision: u64,
    now: Duration,
    buckets: BTreeMap<String, Bucket>,
    /// By bucket and key.
    tags: BTreeMap<(String, String), BTreeMap<String, String>>,
}

#[derive(Debug, Clone)]
struct Bucket {
    kind: Kind,
    writable: bool,
    entries: BTreeMap<String, Held>,
}

/// What a bucket's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Addresses,
    Bytes,
}

#[derive(Debug, Clone)]
struct Held {
    entry: Entry,
    /// When it ends.
    ends: Option<Duration>,
}

impl Store {
    pub(super) fn add<'e>(
        &mut self,
        name: &str,
        kind: Kind,
        writable: bool,
        entries: impl IntoIterator<Item = (&'e str, &'e str)>,
    ) {
        self.revision += 1;
        let entries = entries.into_iter().map(|(key, value)| {
            let value = value.as_bytes().to_vec();
            let revision = self.revision;
            let entry = Entry { value, revision };
            (key.to_owned(), Held { entry, ends: None })
        });
        let entries = entries.collect();
        let bucket = Bucket {
            kind,
            writable,
            entries,
        };
        self.buckets.insert(name.to_owned(), bucket);
    }

    pub(super) fn tag<'t>(
        &mut self,
        bucket: &str,
        key: &str,
        tags: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) {
        let tags = tags.into_iter();
        let tags = tags.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let entry = (bucket.to_owned(), key.to_owned());
        self.tags.insert(entry, tags.collect());
    }

    /// Writes or deletes an entry, whoever may.
    #[track_caller]
    pub(super) fn set(&mut self, bucket: &str, key: &str, value: Option<&str>) {
        self.revision += 1;
        let revision = self.revision;
        let Some(bucket) = self.buckets.get_mut(bucket) else {
            panic!("no bucket {bucket:?} was given to the host");
        };
        let Some(value) = value else {
            bucket.entries.remove(key);
            return;
        };
        let value = value.as_bytes().to_vec();
        let entry = Entry { value, revision };
        bucket
            .entries
            .insert(key.to_owned(), Held { entry, ends: None });
    }

    pub(super) fn has(&self, bucket: &str) -> bool {
        self.buckets.contains_key(bucket)
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>, Error> {
        let bucket = self.buckets.get(bucket).ok_or(Error::NoSuchBucket)?;
        Ok(bucket.entries.get(key).map(|held| held.entry.clone()))
    }

    /// What a bucket holds that it did not, and what it held that it does no more.
    pub(super) fn changed_since(&self, before: &Self, bucket: &str) -> Vec<Change> {
        let entries = |store: &Self| {
            let bucket = store.buckets.get(bucket);
            bucket.map_or_else(BTreeMap::new, |bucket| bucket.entries.clone())
        };
        let (before, now) = (entries(before), entries(self));
        let value = |held: &Held| held.entry.value.clone();
        let set = now.iter().filter(|(key, held)| {
            let before = before.get(*key);
            before.is_none_or(|before| before.entry.value != held.entry.value)
        });
        let set = set.map(|(key, held)| (key, Some(value(held))));
        let gone = before.keys().filter(|key| !now.contains_key(*key));
        let changes = set.chain(gone.map(|key| (key, None)));
        let changes = changes.map(|(key, value)| Change {
            key: key.clone(),
            value,
        });
        changes.collect()
    }

    /// Lets time go by: what ends meanwhile is gone.
    pub(super) fn advance(&mut self, time: Duration) {
        self.now += time;
        let mut ended = false;
        for bucket in self.buckets.values_mut() {
            let there = bucket.entries.len();
            let lasts = |held: &Held| held.ends.is_none_or(|ends| ends > self.now);
            bucket.entries.retain(|_, held| lasts(held));
            ended |= bucket.entries.len() < there;
        }
        self.revision += u64::from(ended);
    }
}

/// A store as one call sees it: what it wrote is at revision 0.
#[derive(Debug)]
pub(crate) struct Draft {
    store: Store,
    wrote: bool,
}

impl Draft {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            wrote: false,
        }
    }

    /// The store after the call: everything it wrote is at one new revision.
    pub(super) fn commit(mut self) -> Store {
        if self.wrote {
            self.store.revision += 1;
            let buckets = self.store.buckets.values_mut();
            for held in buckets.flat_map(|bucket| bucket.entries.values_mut()) {
                if held.entry.revision == 0 {
                    held.entry.revision = self.store.revision;
                }
            }
        }
        self.store
    }

    pub(crate) fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>, Error> {
        self.store.get(bucket, key)
    }

    /// The tags of an entry.
    pub(super) fn tags(&self, bucket: &str, key: &str) -> BTreeMap<String, String> {
        let entry = (bucket.to_owned(), key.to_owned());
        self.store.tags.get(&entry).cloned().unwrap_or_default()
    }

    pub(crate) fn put(
        &mut self,
        bucket: &str,
        key: &str,
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<(), Error> {
        let ends = self.ends(ttl)?;
        let bucket = self.writable(bucket)?;
        if bucket.kind == Kind::Addresses {
            check_address(value)?;
        }
        let value = value.to_vec();
        let entry = Entry { value, revision: 0 };
        bucket.entries.insert(key.to_owned(), Held { entry, ends });
        self.wrote = true;
        Ok(())
    }

    pub(crate) fn delete(&mut self, bucket: &str, key: &str) -> Result<(), Error> {
        self.writable(bucket)?.entries.remove(key);
        self.wrote = true;
        Ok(())
    }

    pub(crate) fn touch(
        &mut self,
        bucket: &str,
        key: &str,
        ttl: Option<Duration>,
    ) -> Result<(), Error> {
        let ends = self.ends(ttl)?;
        let held = self.writable(bucket)?.entries.get_mut(key);
        held.ok_or(Error::Conflict(None))?.ends = ends;
        Ok(())
    }

    pub(crate) fn increment(
        &mut self,
        bucket: &str,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
    ) -> Result<i64, Error> {
        let ends = self.ends(ttl)?;
        let bucket = self.writable(bucket)?;
        if bucket.kind == Kind::Addresses {
            let reason = "the bucket holds addresses, expected one of bytes to count in";
            return Err(Error::InvalidValue(reason.into()));
        }
        let held = bucket.entries.get(key);
        let number = match held {
            Some(held) => parse_number(&held.entry.value)
                .ok_or_else(|| Error::InvalidValue("expected a decimal number".into()))?,
            None => 0,
        };
        let sum = number.checked_add(by).ok_or_else(|| {
            Error::InvalidValue(format!("the sum of {number} and {by} is beyond 64 bits"))
        })?;
        let ends = held.map_or(ends, |held| held.ends);
        let value = sum.to_string().into_bytes();
        let entry = Entry { value, revision: 0 };
        bucket.entries.insert(key.to_owned(), Held { entry, ends });
        self.wrote = true;
        Ok(sum)
    }

    fn writable(&mut self, bucket: &str) -> Result<&mut Bucket, Error> {
        let bucket = self.store.buckets.get_mut(bucket);
        let bucket = bucket.ok_or(Error::NoSuchBucket)?;
        match bucket.writable {
            true => Ok(bucket),
            false => Err(Error::AccessDenied),
        }
    }

    fn ends(&self, ttl: Option<Duration>) -> Result<Option<Duration>, Error> {
        match ttl {
            Some(Duration::ZERO) => Err(Error::InvalidValue(
                "ttl of 0ns: expected 1ms to 3650d".into(),
            )),
            ttl => Ok(ttl.map(|ttl| self.store.now + ttl)),
        }
    }

    pub(crate) fn keys(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, Error> {
        let bucket = self.store.buckets.get(bucket).ok_or(Error::NoSuchBucket)?;
        let keys = bucket.entries.keys();
        let keys = keys.filter(|key| key.starts_with(prefix) && Some(key.as_str()) > after);
        Ok(keys.take(limit.min(1_000) as usize).cloned().collect())
    }
}

/// A number as one is written: no sign but a minus, no space, no leading zero.
fn parse_number(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// An IP address or a host name, with or without a port, or a Unix socket: what a bucket of addresses holds. What is in a
/// typed record only the real host checks.
fn check_address(value: &[u8]) -> Result<(), Error> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    if text.starts_with("unix:/") || text.trim_start().starts_with('{') {
        return Ok(());
    }
    let (host, port) = split_port(text);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let is_host = bare.parse::<Ipv6Addr>().is_ok() || (!host.is_empty() && host.bytes().all(name));
    match is_host && (port.is_some() || host.len() == text.len()) {
        true => Ok(()),
        false => Err(Error::InvalidValue(
            "expected an IP address or a host name, with or without a port".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft {
        let mut store = Store::default();
        store.add("read", Kind::Addresses, false, [("a", "10.0.0.1")]);
        let entries = [("a", "10.0.0.1"), ("b", "10.0.0.2:80")];
        store.add("write", Kind::Addresses, true, entries);
        store.add("notes", Kind::Bytes, true, [("n", "40"), ("text", "x")]);
        Draft::new(store)
    }

    #[test]
    fn a_call_reads_its_own_writes_at_revision_0_and_they_share_the_next_one() {
        let mut draft = draft();
        draft.put("write", "c", b"name:81", None).unwrap();
        draft.delete("write", "a").unwrap();
        assert_eq!(draft.get("write", "c").unwrap().unwrap().revision, 0);
        assert_eq!(draft.get("write", "a").unwrap(), None);
        assert_eq!(draft.keys("write", "", Some("a"), 9).unwrap(), ["b", "c"]);
        let store = draft.commit();
        assert_eq!(store.get("write", "c").unwrap().unwrap().revision, 4);
        assert_eq!(store.get("write", "b").unwrap().unwrap().revision, 2);
    }

    #[test]
    fn entries_end_when_time_goes_by_unless_they_are_renewed() {
        let second = Duration::from_secs(1);
        let mut draft = draft();
        for key in ["brief", "renewed"] {
            draft.put("write", key, b"10.0.0.1", Some(second)).unwrap();
        }
        draft.touch("write", "renewed", Some(second * 3)).unwrap();
        let absent = draft.touch("write", "none", None);
        assert_eq!(absent, Err(Error::Conflict(None)));
        let mut store = draft.commit();
        store.advance(second);
        assert_eq!(store.get("write", "brief").unwrap(), None);
        assert!(store.get("write", "renewed").unwrap().is_some());
        store.advance(second * 2);
        assert_eq!(store.get("write", "renewed").unwrap(), None);
    }

    #[test]
    fn numbers_are_counted_in_buckets_of_bytes() {
        let mut draft = draft();
        assert_eq!(draft.increment("notes", "n", 2, None), Ok(42));
        assert_eq!(draft.increment("notes", "new", -1, None), Ok(-1));
        for (bucket, key, by) in [
            ("notes", "text", 1),
            ("notes", "n", i64::MAX),
            ("write", "n", 1),
        ] {
            let refused = draft.increment(bucket, key, by, None);
            assert!(
                matches!(refused, Err(Error::InvalidValue(_))),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn grants_hold() {
        let mut draft = draft();
        let denied = draft.delete("read", "a");
        assert_eq!(denied, Err(Error::AccessDenied));
        let unknown = draft.delete("other", "a");
        assert_eq!(unknown, Err(Error::NoSuchBucket));
    }

    #[test]
    fn a_bucket_of_addresses_takes_addresses_only() {
        for good in ["10.0.0.1", "10.0.0.1:80", "::1", "[::1]:80", "a.b:1", "a"] {
            assert_eq!(check_address(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in [
            "", ":80", "a:0", "a:65536", "a b", "a\r\nb", "a:b", "http://a", "é",
        ] {
            assert!(check_address(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
