//! Calls of the fake host: the one whose [`Plugin`](crate::testing::Plugin) is running on this thread.

use crate::kv::{Entry, Error};
use crate::log::Level;
use crate::setup::Field;
use crate::stream_options::OnChange;
use crate::testing::current;
use std::time::Duration;

pub(crate) fn entry(bucket: u32, key: &str, port: Option<u16>) -> Option<u32> {
    current(|call| call.entry(bucket, key, port))
}

pub(crate) fn entry_at(bucket: u32, key: u32, port: Option<u32>) -> Option<u32> {
    current(|call| call.entry_at(bucket, key, port))
}

pub(crate) fn entry_tag(entry: u32, name: &str) -> Option<String> {
    current(|call| call.tags(entry).get(name).cloned())
}

pub(crate) fn entry_tags(entry: u32) -> Vec<(String, String)> {
    current(|call| call.tags(entry).clone().into_iter().collect())
}

pub(crate) fn get(field: &Field) -> Option<String> {
    current(|call| call.ask()?.field(field))
}

pub(crate) fn slot(index: u32) -> Option<String> {
    current(|call| call.slot(index))
}

pub(crate) fn header_all(name: &str) -> Vec<Vec<u8>> {
    current(|call| call.ask().map(|ask| ask.header_all(name))).unwrap_or_default()
}

pub(crate) fn header_names() -> Vec<String> {
    current(|call| call.ask().map(|ask| ask.header_names())).unwrap_or_default()
}

pub(crate) fn kv_get(bucket: &str, key: &str) -> Result<Option<Entry>, Error> {
    current(|call| call.store.get(bucket, key))
}

pub(crate) fn kv_put(bucket: &str, key: &str, value: &[u8]) -> Result<(), Error> {
    current(|call| call.store.put(bucket, key, value, None))
}

pub(crate) fn kv_put_for(
    bucket: &str,
    key: &str,
    value: &[u8],
    ttl: Duration,
) -> Result<(), Error> {
    current(|call| call.store.put(bucket, key, value, Some(ttl)))
}

pub(crate) fn kv_touch(bucket: &str, key: &str, ttl: Option<Duration>) -> Result<(), Error> {
    current(|call| call.store.touch(bucket, key, ttl))
}

pub(crate) fn kv_increment(
    bucket: &str,
    key: &str,
    by: i64,
    ttl: Option<Duration>,
) -> Result<i64, Error> {
    current(|call| call.store.increment(bucket, key, by, ttl))
}

pub(crate) fn kv_exists(bucket: &str, key: &str) -> Result<bool, Error> {
    current(|call| Ok(call.store.get(bucket, key)?.is_some()))
}

pub(crate) fn kv_delete(bucket: &str, key: &str) -> Result<(), Error> {
    current(|call| call.store.delete(bucket, key))
}

pub(crate) fn kv_compare_and_set(
    bucket: &str,
    key: &str,
    expected: Option<u64>,
    value: Option<&[u8]>,
) -> Result<(), Error> {
    current(|call| {
        let known = call.store.get(bucket, key)?.map(|entry| entry.revision);
        match known == expected {
            true => match value {
                Some(value) => call.store.put(bucket, key, value, None),
                None => call.store.delete(bucket, key),
            },
            false => Err(Error::Conflict(known)),
        }
    })
}

pub(crate) fn kv_keys(
    bucket: &str,
    prefix: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<String>, Error> {
    current(|call| call.store.keys(bucket, prefix, after, limit))
}

pub(crate) fn on_change(policy: OnChange) {
    current(|call| call.on_change = Some(policy));
}

pub(crate) fn config_get(name: &str) -> Option<String> {
    current(|call| call.settings.get(name).cloned())
}

pub(crate) fn config_all() -> Vec<(String, String)> {
    current(|call| call.settings.clone().into_iter().collect())
}

pub(crate) fn log(level: Level, message: &str) {
    current(|call| call.log.push((level, message.to_owned())));
}

pub(crate) fn save(state: &[u8]) {
    current(|call| call.saved = Some(state.to_vec()));
}
