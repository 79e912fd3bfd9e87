//! Where entries are in etcd: `prefix/bucket/key`, the value as it is, so that any program can read and write them.
//!
//! Keys of the store are not empty, nor are names of buckets, so three kinds of keys are free: `prefix/bucket/` is written by
//! each transaction that deletes, because a deleted key leaves no revision that a later condition could be compared with, and by
//! each that is to tell who made it, with that as its value; `prefix/` is written to learn how far the log has come, where the
//! server cannot be asked; `prefix//lease` is given a lease to learn what else has it (`unused.rs`).

/// Makes and reads keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// With the slash at its end.
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: format!("{prefix}/"),
        }
    }

    /// What all keys begin with; a key, too: the one for learning how far the log has come.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What the keys of a bucket begin with; a key, too: the one that each transaction writes that deletes.
    pub(super) fn bucket(&self, bucket: &str) -> String {
        format!("{}{bucket}/", self.prefix)
    }

    pub(super) fn entry(&self, bucket: &str, key: &str) -> String {
        format!("{}{bucket}/{key}", self.prefix)
    }

    /// The key that is given a lease to learn what else has it.
    pub(super) fn mark_of_lease(&self, lease: i64) -> String {
        format!("{}/{lease:x}", self.prefix)
    }

    /// The bucket whose mark this key is; none for any other key.
    pub(super) fn marked<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let bucket = std::str::from_utf8(rest).ok()?.strip_suffix('/')?;
        (!bucket.is_empty() && !bucket.contains('/')).then_some(bucket)
    }

    /// Bucket and key of an entry; none for what is no entry of the store's.
    pub(super) fn parse<'k>(&self, key: &'k [u8]) -> Option<(&'k str, &'k str)> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let (bucket, key) = std::str::from_utf8(rest).ok()?.split_once('/')?;
        if bucket.is_empty() {
            return None;
        }
        crate::store::check_key(key).ok()?;
        Some((bucket, key))
    }
}

/// The first key behind all that begin with this text, which ends with a slash.
pub(super) fn end(beginning: &str) -> Vec<u8> {
    let mut end = beginning.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // The byte after the slash is a 0.
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let keys = Keys::new("a/b");
        assert_eq!(keys.entry("c", "d/e"), "a/b/c/d/e");
        assert_eq!(keys.parse(b"a/b/c/d/e"), Some(("c", "d/e")));
        for other in [
            &b"a/b/c/"[..],
            b"a/b/",
            b"a/b",
            b"a/bc/d/e",
            b"a/b/c/\xff",
            b"a/b/c/\n",
        ] {
            assert_eq!(keys.parse(other), None, "{other:?}");
        }
        assert_eq!(keys.marked(keys.bucket("c").as_bytes()), Some("c"));
        for other in [&b"a/b/"[..], b"a/b/c", b"a/b/c/d/", b"a/c/"] {
            assert_eq!(keys.marked(other), None, "{other:?}");
        }
        let mark = keys.mark_of_lease(0x5a8);
        assert_eq!(mark, "a/b//5a8");
        assert_eq!(
            (keys.parse(mark.as_bytes()), keys.marked(mark.as_bytes())),
            (None, None)
        );
        assert_eq!(end("a/b/c/"), b"a/b/c0");
    }
}
