//! The store: buckets of key and value. All reads of one call see one revision.
//!
//! Writes need the `write` grant. Later reads of the same call see them; they are applied all or none when the call
//! returns, and the request goes on once the store has acknowledged them. After a panic none is applied.
//!
//! A [`Session`](crate::Session) may write in every call. What `open` writes is applied before the stream is; what the
//! other calls write is handed to the store in order, and nobody waits: later calls of the instance read it, at revision 0
//! until it is applied. If the store refuses it, it is counted and logged, and later calls no longer read it.
//!
//! ```no_run
//! use throwbar::kv;
//!
//! # fn route() -> Result<(), kv::Error> {
//! if let Some(entry) = kv::get("upstreams", "id1")? {
//!     kv::compare_and_set("upstreams", "id1", Some(entry.revision), Some(b"127.0.0.3"))?;
//! }
//! # Ok(())
//! # }
//! ```

use crate::door;
use std::fmt;
use std::time::Duration;

/// A value of a bucket, with the revision of the store that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bytes.
    pub value: Vec<u8>,
    /// The store's revision at that write; 0 for a write of this very call, or of an earlier one of a session that is not
    /// applied yet.
    pub revision: u64,
}

/// Why the store refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// No bucket of that name is granted to this plugin.
    NoSuchBucket,
    /// The bucket is granted for reading only; or nothing may be written in this call; or the data were migrated for
    /// another version after this one was activated.
    AccessDenied,
    /// The value is not what the bucket holds; says what was expected.
    InvalidValue(String),
    /// A limit of the bucket or of the call; says which.
    Quota(String),
    /// Compare-and-set: the entry is at this revision, or absent. Also of [`touch`], if there is none.
    Conflict(Option<u64>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoSuchBucket => f.write_str("no bucket of that name is granted"),
            Error::AccessDenied => f.write_str("the bucket is granted for reading only"),
            Error::InvalidValue(expected) => write!(f, "invalid value: {expected}"),
            Error::Quota(limit) => write!(f, "over quota: {limit}"),
            Error::Conflict(Some(revision)) => write!(f, "the entry is at revision {revision}"),
            Error::Conflict(None) => f.write_str("the entry is absent"),
        }
    }
}

impl std::error::Error for Error {}

/// So that `?` does in a migration.
impl From<Error> for String {
    fn from(error: Error) -> Self {
        error.to_string()
    }
}

/// Reads an entry.
///
/// # Errors
/// [`Error::NoSuchBucket`].
pub fn get(bucket: &str, key: &str) -> Result<Option<Entry>, Error> {
    door::kv_get(bucket, key)
}

/// Writes an entry, whether or not it was there.
///
/// # Errors
/// Any but [`Error::Conflict`].
pub fn put(bucket: &str, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
    door::kv_put(bucket, key, value.as_ref())
}

/// Writes an entry that ends after `ttl`, unless it is written or renewed before: for what has to say again and again that
/// it is there.
///
/// # Errors
/// Any but [`Error::Conflict`].
pub fn put_for(
    bucket: &str,
    key: &str,
    value: impl AsRef<[u8]>,
    ttl: Duration,
) -> Result<(), Error> {
    door::kv_put_for(bucket, key, value.as_ref(), ttl)
}

/// Renews an entry: it ends `ttl` from now, or without one stays until it is deleted. Its value and its revision stay.
///
/// # Errors
/// [`Error::Conflict`] with none if there is none; else any but that.
pub fn touch(bucket: &str, key: &str, ttl: Option<Duration>) -> Result<(), Error> {
    door::kv_touch(bucket, key, ttl)
}

/// Adds to the decimal number under a key of a bucket of bytes, and returns the sum as this call sees it. What others add at
/// the same time is not in it, and nothing that anybody adds is lost. A key that is not there is 0, and ends after `ttl`
/// once this has made it; one that is there keeps its end.
///
/// # Errors
/// [`Error::InvalidValue`] if the value is no number, or the sum is beyond 64 bits; else any but [`Error::Conflict`].
pub fn increment(bucket: &str, key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, Error> {
    door::kv_increment(bucket, key, by, ttl)
}

/// Whether there is an entry.
///
/// # Errors
/// [`Error::NoSuchBucket`].
pub fn exists(bucket: &str, key: &str) -> Result<bool, Error> {
    door::kv_exists(bucket, key)
}

/// Deletes an entry; fine if it was not there.
///
/// # Errors
/// Any but [`Error::InvalidValue`] and [`Error::Conflict`].
pub fn delete(bucket: &str, key: &str) -> Result<(), Error> {
    door::kv_delete(bucket, key)
}

/// Writes an entry only if it is at revision `expected` (none: absent), now and when the call's writes are applied. No
/// value deletes.
///
/// # Errors
/// Any.
pub fn compare_and_set(
    bucket: &str,
    key: &str,
    expected: Option<u64>,
    value: Option<&[u8]>,
) -> Result<(), Error> {
    door::kv_compare_and_set(bucket, key, expected, value)
}

/// Keys that begin with `prefix` and come after `after`, in byte order; at most `limit`, at most 1,000.
///
/// # Errors
/// [`Error::NoSuchBucket`].
pub fn keys(
    bucket: &str,
    prefix: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<String>, Error> {
    door::kv_keys(bucket, prefix, after, limit)
}

/// Calls `visit` with every entry whose key begins with `prefix`, in byte order: for a
/// [migration](macro@crate::router#migration), above all. What `visit` writes after the key it is at, it may meet later.
///
/// ```
/// use throwbar::prelude::*;
/// use throwbar::testing::Host;
///
/// #[throwbar::router(migrate = migrate)]
/// fn route(req: &Request) -> Decision {
///     match req.lookup("upstreams", "x-id") {
///         Some(entry) => entry.into(),
///         None => Decision::Pass,
///     }
/// }
///
/// /// Names are in lower case from now on.
/// fn migrate(_from: Option<&str>) -> Result<(), String> {
///     kv::each("upstreams", "", |key, entry| {
///         let lower = key.to_lowercase();
///         if lower != key {
///             kv::put("upstreams", &lower, &entry.value)?;
///             kv::delete("upstreams", key)?;
///         }
///         Ok(())
///     })
/// }
///
/// # fn main() {
/// let host = Host::new().writable_bucket("upstreams", [("Anna", "127.0.0.2")]);
/// host.migrate(migrate, None).unwrap();
/// assert_eq!(host.value("upstreams", "anna").as_deref(), Some("127.0.0.2"));
/// assert_eq!(host.value("upstreams", "Anna"), None);
/// # }
/// ```
///
/// # Errors
/// [`Error::NoSuchBucket`], or the first of `visit`.
pub fn each<E: From<Error>>(
    bucket: &str,
    prefix: &str,
    mut visit: impl FnMut(&str, Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut after: Option<String> = None;
    loop {
        let page = keys(bucket, prefix, after.as_deref(), PAGE)?;
        for key in &page {
            // It may have been deleted since the page was made.
            if let Some(entry) = get(bucket, key)? {
                visit(key, entry)?;
            }
        }
        match page.into_iter().last() {
            Some(last) => after = Some(last),
            None => return Ok(()),
        }
    }
}

/// Keys that are asked for at a time.
const PAGE: u32 = 1_000;
