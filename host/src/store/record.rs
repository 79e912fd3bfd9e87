//! A key with its entry, as small as both allow: a table has them in place.

use std::sync::Arc;

use super::Entry;
use super::bucket::KEY_BYTES_MAX;

/// A key with its entry. A clone copies it, and shares what is long.
#[derive(Clone)]
pub(super) struct Record {
    key: Key,
    pub(super) entry: Entry,
}

/// Keys up to this lie in the record. A UUID as text is 36 bytes.
const SHORT_BYTES_MAX: usize = 38;

#[derive(Clone)]
enum Key {
    Short {
        len: u8,
        bytes: [u8; SHORT_BYTES_MAX],
    },
    Long(Arc<str>),
}

const _: () = assert!(size_of::<Record>() == 80);

impl Record {
    /// Makes one. `key` is as long as one may be: what brings keys in has to check that.
    pub(super) fn new(key: &str, entry: Entry) -> Self {
        debug_assert!(key.len() <= KEY_BYTES_MAX);
        let key = match u8::try_from(key.len()) {
            Ok(len) if key.len() <= SHORT_BYTES_MAX => {
                let mut bytes = [0; SHORT_BYTES_MAX];
                bytes[..key.len()].copy_from_slice(key.as_bytes());
                Key::Short { len, bytes }
            }
            _ => Key::Long(key.into()),
        };
        Self { key, entry }
    }

    #[inline]
    pub(super) fn key_bytes(&self) -> &[u8] {
        match &self.key {
            Key::Short { len, bytes } => &bytes[..usize::from(*len)],
            Key::Long(key) => key.as_bytes(),
        }
    }

    pub(super) fn key(&self) -> &str {
        match &self.key {
            Key::Short { .. } => {
                std::str::from_utf8(self.key_bytes()).expect("copied whole from a str")
            }
            Key::Long(key) => key,
        }
    }

    /// What the record counts against a bucket's limit: key and value.
    pub(super) fn bytes(&self) -> u64 {
        (self.key_bytes().len() + self.entry.value.len()) as u64
    }

    /// 1 if it has a deadline.
    pub(super) fn ending(&self) -> u64 {
        u64::from(self.entry.deadline.is_some())
    }
}
