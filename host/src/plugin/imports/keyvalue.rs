//! `wasi:keyvalue`, both drafts, over the same code as `kv`.

use super::HostState;
use super::bindings::wasi::keyvalue0_2_0_draft as draft;
use super::bindings::wasi::keyvalue0_2_0_draft2 as draft2;
use super::kv::Refusal;
use super::listing::KEYS_MAX;
use crate::plugin::generation::Grant;
use crate::store::{Action, BucketId, Expect};
use std::collections::VecDeque;
use wasmtime::component::{HasSelf, Linker, Resource};

/// Pages that one open bucket of the first draft remembers the place of: the latest ones.
const CURSORS_MAX: usize = 16;

/// An open bucket.
#[allow(unreachable_pub, reason = "generated bindings re-export it")]
pub struct OpenBucket {
    grant: Grant,
    cursors: Cursors,
}

/// The first draft's cursors, which are numbers: the key that each stands after.
#[derive(Default)]
struct Cursors {
    keys: VecDeque<Box<str>>,
    /// The number of the first one that is remembered.
    first: u64,
}

impl Cursors {
    fn get(&self, number: u64) -> Option<&str> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.keys.get(index).map(|key| &**key)
    }

    fn add(&mut self, key: &str) -> u64 {
        if self.keys.len() >= CURSORS_MAX {
            self.forget(1);
        }
        self.keys.push_back(key.into());
        self.first + self.keys.len() as u64 - 1
    }

    /// Forgets so many of the first.
    fn forget(&mut self, count: usize) {
        self.keys.drain(..count);
        self.first += count as u64;
    }
}

/// Keys, and the number of the place after them if there are more.
type NumberedPage = (Vec<String>, Option<u64>);

/// Links both drafts.
pub(super) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    draft::store::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    draft::batch::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    draft::atomics::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    draft2::store::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    draft2::batch::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    draft2::atomics::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

/// A key as it was found, to be written only if it still is so.
#[allow(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Cas {
    grant: Grant,
    key: Box<str>,
    found: Found,
}

/// The revision of an entry, and the number of the call's own write of it.
type Found = (Option<u64>, Option<u64>);

impl HostState {
    fn open_bucket(
        &mut self,
        name: &str,
    ) -> wasmtime::Result<Result<Resource<OpenBucket>, Refusal>> {
        let grant = match self.grant(name) {
            Ok(grant) => grant,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let bucket = OpenBucket {
            grant,
            cursors: Cursors::default(),
        };
        Ok(Ok(self.table.push(bucket)?))
    }

    /// A granted bucket, open: for a guest that is told of a change in it.
    pub(in crate::plugin) fn lend_bucket(
        &mut self,
        id: BucketId,
    ) -> wasmtime::Result<Resource<OpenBucket>> {
        let grant = self.sandbox.grants.values();
        let grant = grant.copied().find(|grant| grant.bucket == id);
        let Some(grant) = grant else {
            wasmtime::bail!("a bucket that is not granted");
        };
        let cursors = Cursors::default();
        Ok(self.table.push(OpenBucket { grant, cursors })?)
    }

    fn granted(&mut self, bucket: &Resource<OpenBucket>) -> wasmtime::Result<Grant> {
        let grant = self.table.get(bucket)?.grant;
        self.note_used(grant.bucket);
        Ok(grant)
    }

    fn page_after_cursor(
        &mut self,
        bucket: &Resource<OpenBucket>,
        cursor: Option<u64>,
    ) -> wasmtime::Result<Result<NumberedPage, Refusal>> {
        let grant = self.granted(bucket)?;
        let open = self.table.get(bucket)?;
        let after = match cursor {
            None => None,
            Some(cursor) => match open.cursors.get(cursor) {
                Some(key) => Some(key.to_owned()),
                None => {
                    return Ok(Err(Refusal::InvalidValue(format!(
                        "no such cursor: {cursor}"
                    ))));
                }
            },
        };
        let keys = self.list(grant.bucket, "", after.as_deref(), KEYS_MAX);
        let next = match keys.last() {
            Some(last) if keys.len() == KEYS_MAX => {
                let cursors = &mut self.table.get_mut(bucket)?.cursors;
                // Listing from the start again makes the old places useless.
                if cursor.is_none() {
                    cursors.forget(cursors.keys.len());
                }
                Some(cursors.add(last))
            }
            _ => None,
        };
        Ok(Ok((keys, next)))
    }

    /// Entries by key, in the order that was asked for. A key may be asked for again and again, so the values may be more
    /// than there is room for in the guest; then they are not gathered here either.
    fn read_many(
        &self,
        bucket: BucketId,
        keys: Vec<String>,
    ) -> wasmtime::Result<Vec<(String, Option<Vec<u8>>)>> {
        let bytes_max = self.sandbox.config.limits.memory_bytes_max;
        let mut bytes = 0;
        let read = |key: String| {
            let value = self.read(bucket, &key).map(|(value, _)| value);
            bytes += value.as_ref().map_or(0, Vec::len);
            if bytes > bytes_max {
                wasmtime::bail!("get-many of more than the {bytes_max} bytes of memory there are");
            }
            Ok((key, value))
        };
        keys.into_iter().map(read).collect()
    }

    fn set_all(&mut self, grant: Grant, pairs: Vec<(String, Vec<u8>)>) -> Result<(), Refusal> {
        pairs
            .into_iter()
            .try_for_each(|(key, value)| self.put_value(grant, &key, value, None))
    }

    fn delete_all(&mut self, grant: Grant, keys: Vec<String>) -> Result<(), Refusal> {
        keys.iter()
            .try_for_each(|key| self.write(grant, key, Action::Delete, Expect::Any))
    }
}

/// What both drafts share: they differ in their cursors and in the shape of `get-many`.
macro_rules! implement {
    ($draft:ident, $list_keys:item, $get_many:item) => {
        impl From<Refusal> for $draft::store::Error {
            fn from(refusal: Refusal) -> Self {
                match refusal {
                    Refusal::NoSuchBucket => Self::NoSuchStore,
                    Refusal::AccessDenied => Self::AccessDenied,
                    Refusal::InvalidValue(reason) | Refusal::Quota(reason) => Self::Other(reason),
                    Refusal::Conflict(_) => Self::Other("conflict".into()),
                }
            }
        }

        impl $draft::store::Host for HostState {
            fn open(
                &mut self,
                name: String,
            ) -> wasmtime::Result<Result<Resource<OpenBucket>, $draft::store::Error>> {
                Ok(self.open_bucket(&name)?.map_err(Into::into))
            }
        }

        impl $draft::store::HostBucket for HostState {
            fn get(
                &mut self,
                bucket: Resource<OpenBucket>,
                key: String,
            ) -> wasmtime::Result<Result<Option<Vec<u8>>, $draft::store::Error>> {
                let grant = self.granted(&bucket)?;
                Ok(Ok(self.read(grant.bucket, &key).map(|(value, _)| value)))
            }

            fn set(
                &mut self,
                bucket: Resource<OpenBucket>,
                key: String,
                value: Vec<u8>,
            ) -> wasmtime::Result<Result<(), $draft::store::Error>> {
                let grant = self.granted(&bucket)?;
                let set = self.put_value(grant, &key, value, None);
                Ok(set.map_err(Into::into))
            }

            fn delete(
                &mut self,
                bucket: Resource<OpenBucket>,
                key: String,
            ) -> wasmtime::Result<Result<(), $draft::store::Error>> {
                let grant = self.granted(&bucket)?;
                let delete = self.write(grant, &key, Action::Delete, Expect::Any);
                Ok(delete.map_err(Into::into))
            }

            fn exists(
                &mut self,
                bucket: Resource<OpenBucket>,
                key: String,
            ) -> wasmtime::Result<Result<bool, $draft::store::Error>> {
                let grant = self.granted(&bucket)?;
                Ok(Ok(self.read(grant.bucket, &key).is_some()))
            }

            $list_keys

            fn drop(&mut self, bucket: Resource<OpenBucket>) -> wasmtime::Result<()> {
                self.table.delete(bucket)?;
                Ok(())
            }
        }

        impl $draft::batch::Host for HostState {
            $get_many

            fn set_many(
                &mut self,
                bucket: Resource<OpenBucket>,
                pairs: Vec<(String, Vec<u8>)>,
            ) -> wasmtime::Result<Result<(), $draft::store::Error>> {
                let grant = self.granted(&bucket)?;
                Ok(self.set_all(grant, pairs).map_err(Into::into))
            }

            fn delete_many(
                &mut self,
                bucket: Resource<OpenBucket>,
                keys: Vec<String>,
            ) -> wasmtime::Result<Result<(), $draft::store::Error>> {
                let grant = self.granted(&bucket)?;
                Ok(self.delete_all(grant, keys).map_err(Into::into))
            }
        }
    };
}

implement!(
    draft,
    fn list_keys(
        &mut self,
        bucket: Resource<OpenBucket>,
        cursor: Option<u64>,
    ) -> wasmtime::Result<Result<draft::store::KeyResponse, draft::store::Error>> {
        let page = self.page_after_cursor(&bucket, cursor)?;
        Ok(page
            .map(|(keys, cursor)| draft::store::KeyResponse { keys, cursor })
            .map_err(Into::into))
    },
    fn get_many(
        &mut self,
        bucket: Resource<OpenBucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<Option<(String, Vec<u8>)>>, draft::store::Error>> {
        let grant = self.granted(&bucket)?;
        let entries = self.read_many(grant.bucket, keys)?;
        let found = |(key, value): (String, Option<Vec<u8>>)| value.map(|value| (key, value));
        Ok(Ok(entries.into_iter().map(found).collect()))
    }
);

implement!(
    draft2,
    fn list_keys(
        &mut self,
        bucket: Resource<OpenBucket>,
        cursor: Option<String>,
    ) -> wasmtime::Result<Result<draft2::store::KeyResponse, draft2::store::Error>> {
        let grant = self.granted(&bucket)?;
        let keys = self.list(grant.bucket, "", cursor.as_deref(), KEYS_MAX);
        let cursor = keys.last().filter(|_| keys.len() == KEYS_MAX).cloned();
        Ok(Ok(draft2::store::KeyResponse { keys, cursor }))
    },
    fn get_many(
        &mut self,
        bucket: Resource<OpenBucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<(String, Option<Vec<u8>>)>, draft2::store::Error>> {
        let grant = self.granted(&bucket)?;
        Ok(Ok(self.read_many(grant.bucket, keys)?))
    }
);

impl draft::atomics::Host for HostState {
    fn increment(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        delta: u64,
    ) -> wasmtime::Result<Result<u64, draft::store::Error>> {
        let grant = self.granted(&bucket)?;
        let sum = i64::try_from(delta)
            .map_err(|_| Refusal::InvalidValue(format!("{delta} is beyond 63 bits")))
            .and_then(|by| self.add(grant, &key, by, None))
            .and_then(|sum| {
                u64::try_from(sum).map_err(|_| Refusal::InvalidValue(format!("{sum} is below 0")))
            });
        Ok(sum.map_err(Into::into))
    }
}

impl HostState {
    fn found(&self, grant: Grant, key: &str) -> Found {
        let stamp = self.overlay.stamp(grant.bucket, key);
        (self.revision(grant.bucket, key), stamp)
    }
}

impl draft2::atomics::HostCas for HostState {
    fn new(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
    ) -> wasmtime::Result<Result<Resource<Cas>, draft2::store::Error>> {
        let grant = self.granted(&bucket)?;
        let cas = Cas {
            grant,
            found: self.found(grant, &key),
            key: key.into(),
        };
        Ok(Ok(self.table.push(cas)?))
    }

    fn current(
        &mut self,
        cas: Resource<Cas>,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, draft2::store::Error>> {
        let cas = self.table.get(&cas)?;
        let found = self.read(cas.grant.bucket, &cas.key);
        Ok(Ok(found.map(|(value, _)| value)))
    }

    fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl draft2::atomics::Host for HostState {
    fn increment(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        delta: i64,
    ) -> wasmtime::Result<Result<i64, draft2::store::Error>> {
        let grant = self.granted(&bucket)?;
        Ok(self.add(grant, &key, delta, None).map_err(Into::into))
    }

    fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), draft2::atomics::CasError>> {
        use draft2::atomics::CasError;
        let cas = self.table.delete(cas)?;
        let found = self.found(cas.grant, &cas.key);
        if found != cas.found {
            let fresh = self.table.push(Cas { found, ..cas })?;
            return Ok(Err(CasError::CasFailed(fresh)));
        }
        let (revision, _) = found;
        let swapped = self.write_if(cas.grant, &cas.key, revision, Some(value));
        Ok(swapped.map_err(|refusal| CasError::StoreError(refusal.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_cursors_are_known_and_forgotten_ones_stand_for_nothing() {
        let mut cursors = Cursors::default();
        let numbers: Vec<u64> = (0..20).map(|n| cursors.add(&format!("k{n}"))).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        assert_eq!(cursors.keys.len(), CURSORS_MAX);
        assert_eq!((cursors.get(3), cursors.get(4)), (None, Some("k4")));
        assert_eq!((cursors.get(19), cursors.get(20)), (Some("k19"), None));
        cursors.forget(cursors.keys.len());
        assert_eq!(cursors.add("again"), 20);
        assert_eq!((cursors.get(19), cursors.get(20)), (None, Some("again")));
    }
}
