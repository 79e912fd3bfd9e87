//! Where data is in Redis: five kinds of keys, all in the slot of the prefix.
//!
//! `{prefix}:head` is a hash of the newest revision and its token; `{prefix}:log` a stream with an entry for each
//! transaction, its id `revision-0`; `{prefix}:changed` a hash of each bucket's last revision, deletions included,
//! and below `size:BUCKET` that of the last transaction that counts for its limits;
//! `{prefix}:entries:BUCKET` a hash of key → `revision:end:value`; `{prefix}:ends:BUCKET` a sorted set of the keys that
//! have an end, by it. Ends are milliseconds since 1970, 0 for none.

/// Makes keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) head: String,
    pub(super) log: String,
    pub(super) changed: String,
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            head: format!("{{{prefix}}}:head"),
            log: format!("{{{prefix}}}:log"),
            changed: format!("{{{prefix}}}:changed"),
            prefix: format!("{{{prefix}}}:"),
        }
    }

    pub(super) fn entries(&self, bucket: &str) -> String {
        format!("{}entries:{bucket}", self.prefix)
    }

    pub(super) fn ends(&self, bucket: &str) -> String {
        format!("{}ends:{bucket}", self.prefix)
    }
}
