//! The fake host's buckets, and what a call has written so far.

use super::call::split_port;
use crate::kv::{Entry, Error};
use std::collections::BTreeMap;
use std::net::Ipv6Addr;

/// Buckets, with one revision counter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    revision: u64,
    buckets: BTreeMap<String, Bucket>,
}

#[derive(Debug, Clone)]
struct Bucket {
    writable: bool,
    /// Whether its values are addresses.
    addresses: bool,
    entries: BTreeMap<String, Entry>,
}

impl Store {
    pub(super) fn add<'e>(
        &mut self,
        name: &str,
        (writable, addresses): (bool, bool),
        entries: impl IntoIterator<Item = (&'e str, &'e str)>,
    ) {
        self.revision += 1;
        let entries = entries.into_iter().map(|(key, value)| {
            let value = value.as_bytes().to_vec();
            let revision = self.revision;
            (key.to_owned(), Entry { value, revision })
        });
        let entries = entries.collect();
        let bucket = Bucket {
            writable,
            addresses,
            entries,
        };
        self.buckets.insert(name.to_owned(), bucket);
    }

    pub(super) fn has(&self, bucket: &str) -> bool {
        self.buckets.contains_key(bucket)
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>, Error> {
        let bucket = self.buckets.get(bucket).ok_or(Error::NoSuchBucket)?;
        Ok(bucket.entries.get(key).cloned())
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
            for entry in buckets.flat_map(|bucket| bucket.entries.values_mut()) {
                if entry.revision == 0 {
                    entry.revision = self.store.revision;
                }
            }
        }
        self.store
    }

    pub(crate) fn get(&self, bucket: &str, key: &str) -> Result<Option<Entry>, Error> {
        self.store.get(bucket, key)
    }

    pub(crate) fn write(
        &mut self,
        bucket: &str,
        key: &str,
        value: Option<&[u8]>,
    ) -> Result<(), Error> {
        let bucket = self.store.buckets.get_mut(bucket);
        let bucket = bucket.ok_or(Error::NoSuchBucket)?;
        if !bucket.writable {
            return Err(Error::AccessDenied);
        }
        match value {
            Some(value) => {
                if bucket.addresses {
                    check_address(value)?;
                }
                let value = value.to_vec();
                let entry = Entry { value, revision: 0 };
                bucket.entries.insert(key.to_owned(), entry);
            }
            None => {
                bucket.entries.remove(key);
            }
        }
        self.wrote = true;
        Ok(())
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

/// An IP address or a host name, with or without a port: what a bucket of addresses holds.
fn check_address(value: &[u8]) -> Result<(), Error> {
    let text = std::str::from_utf8(value).unwrap_or_default();
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
        store.add("read", (false, true), [("a", "10.0.0.1")]);
        store.add(
            "write",
            (true, true),
            [("a", "10.0.0.1"), ("b", "10.0.0.2:80")],
        );
        Draft::new(store)
    }

    #[test]
    fn a_call_reads_its_own_writes_at_revision_0_and_they_share_the_next_one() {
        let mut draft = draft();
        draft.write("write", "c", Some(b"name:81")).unwrap();
        draft.write("write", "a", None).unwrap();
        assert_eq!(draft.get("write", "c").unwrap().unwrap().revision, 0);
        assert_eq!(draft.get("write", "a").unwrap(), None);
        assert_eq!(draft.keys("write", "", Some("a"), 9).unwrap(), ["b", "c"]);
        let store = draft.commit();
        assert_eq!(store.get("write", "c").unwrap().unwrap().revision, 3);
        assert_eq!(store.get("write", "b").unwrap().unwrap().revision, 2);
    }

    #[test]
    fn grants_hold() {
        let mut draft = draft();
        let denied = draft.write("read", "a", None);
        assert_eq!(denied, Err(Error::AccessDenied));
        let unknown = draft.write("other", "a", None);
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
