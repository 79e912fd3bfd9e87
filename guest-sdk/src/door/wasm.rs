//! Calls of the real host.

use crate::bindings::throwbar::plugin::{kv, stream_options};
use crate::bindings::wasi::config::store as config;
use crate::bindings::wasi::logging::logging;
use crate::decision::millis;
use crate::kv::{Entry, Error};
use crate::log::Level;
use crate::stream_options::OnChange;
use std::time::Duration;

pub(crate) use crate::bindings::throwbar::plugin::entry_tags::{
    all as entry_tags, get as entry_tag,
};
pub(crate) use crate::bindings::throwbar::plugin::lookup::{entry, entry_at};
pub(crate) use crate::bindings::throwbar::plugin::request::{get, header_all, header_names, slot};

pub(crate) fn kv_get(bucket: &str, key: &str) -> Result<Option<Entry>, Error> {
    let entry = kv::get(bucket, key)?;
    Ok(entry.map(|kv::Entry { value, revision }| Entry { value, revision }))
}

pub(crate) fn kv_put(bucket: &str, key: &str, value: &[u8]) -> Result<(), Error> {
    Ok(kv::put(bucket, key, value)?)
}

pub(crate) fn kv_put_for(
    bucket: &str,
    key: &str,
    value: &[u8],
    ttl: Duration,
) -> Result<(), Error> {
    Ok(kv::put_for(bucket, key, value, whole_millis(ttl))?)
}

pub(crate) fn kv_touch(bucket: &str, key: &str, ttl: Option<Duration>) -> Result<(), Error> {
    Ok(kv::touch(bucket, key, ttl.map(whole_millis))?)
}

pub(crate) fn kv_increment(
    bucket: &str,
    key: &str,
    by: i64,
    ttl: Option<Duration>,
) -> Result<i64, Error> {
    Ok(kv::increment(bucket, key, by, ttl.map(whole_millis))?)
}

pub(crate) fn kv_exists(bucket: &str, key: &str) -> Result<bool, Error> {
    Ok(kv::exists(bucket, key)?)
}

/// Not below a millisecond for what is some time: the host refuses a life of none.
fn whole_millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

pub(crate) fn kv_delete(bucket: &str, key: &str) -> Result<(), Error> {
    Ok(kv::delete(bucket, key)?)
}

pub(crate) fn kv_compare_and_set(
    bucket: &str,
    key: &str,
    expected: Option<u64>,
    value: Option<&[u8]>,
) -> Result<(), Error> {
    Ok(kv::compare_and_set(bucket, key, expected, value)?)
}

pub(crate) fn kv_keys(
    bucket: &str,
    prefix: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<String>, Error> {
    Ok(kv::keys(bucket, prefix, after, limit)?)
}

impl From<kv::Error> for Error {
    fn from(error: kv::Error) -> Self {
        match error {
            kv::Error::NoSuchBucket => Error::NoSuchBucket,
            kv::Error::AccessDenied => Error::AccessDenied,
            kv::Error::InvalidValue(expected) => Error::InvalidValue(expected),
            kv::Error::Quota(limit) => Error::Quota(limit),
            kv::Error::Conflict(revision) => Error::Conflict(revision),
        }
    }
}

pub(crate) fn on_change(policy: OnChange) {
    use stream_options::{ChangePolicy, Spread};
    stream_options::on_change(match policy {
        OnChange::Keep => ChangePolicy::Keep,
        OnChange::Drain { after, over } => ChangePolicy::Drain(Spread {
            after_ms: millis(after),
            over_ms: millis(over),
        }),
        OnChange::Close => ChangePolicy::Close,
    });
}

pub(crate) fn config_get(name: &str) -> Option<String> {
    config::get(name).expect("the host has its config in memory")
}

pub(crate) fn config_all() -> Vec<(String, String)> {
    config::get_all().expect("the host has its config in memory")
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Trace => logging::Level::Trace,
        Level::Debug => logging::Level::Debug,
        Level::Info => logging::Level::Info,
        Level::Warn => logging::Level::Warn,
        Level::Error => logging::Level::Error,
    };
    logging::log(level, "", message);
}

pub(crate) fn save(state: &[u8]) {
    crate::hook_bindings::throwbar::plugin::session_state::save(state);
}
