//! `wasi:keyvalue`, both drafts, over the same code as `kv`.

use super::HostState;
use super::bindings::wasi::keyvalue0_2_0_draft as draft;
use super::bindings::wasi::keyvalue0_2_0_draft2 as draft2;
use super::kv::{KEYS_MAX, Refusal};
use crate::plugin::generation::Grant;
use crate::store::{Action, Expect};
use wasmtime::component::{HasSelf, Linker, Resource};

/// Pages that one open bucket of the first draft remembers the place of.
const CURSORS_MAX: usize = 10_000;

/// An open bucket.
#[allow(unreachable_pub, reason = "generated bindings re-export it")]
pub struct OpenBucket {
    grant: Grant,
    /// The first draft's cursors are numbers: the key that each stands after.
    cursors: Vec<Box<str>>,
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
            cursors: Vec::new(),
        };
        Ok(Ok(self.table.push(bucket)?))
    }

    fn granted(&self, bucket: &Resource<OpenBucket>) -> wasmtime::Result<Grant> {
        Ok(self.table.get(bucket)?.grant)
    }

    fn page_after_cursor(
        &mut self,
        bucket: &Resource<OpenBucket>,
        cursor: Option<u64>,
    ) -> wasmtime::Result<Result<NumberedPage, Refusal>> {
        let open = self.table.get(bucket)?;
        let after = match cursor {
            None => None,
            Some(cursor) => match usize::try_from(cursor)
                .ok()
                .and_then(|c| open.cursors.get(c))
            {
                Some(key) => Some(key.clone()),
                None => {
                    return Ok(Err(Refusal::InvalidValue(format!(
                        "no such cursor: {cursor}"
                    ))));
                }
            },
        };
        let keys = self.list(open.grant.bucket, "", after.as_deref(), KEYS_MAX);
        let next = match keys.last() {
            Some(last) if keys.len() == KEYS_MAX => {
                let cursors = &mut self.table.get_mut(bucket)?.cursors;
                // Listing from the start again makes the old places useless.
                if cursor.is_none() {
                    cursors.clear();
                }
                if cursors.len() >= CURSORS_MAX {
                    return Ok(Err(Refusal::Quota(format!(
                        "more than {CURSORS_MAX} pages"
                    ))));
                }
                cursors.push(last.as_str().into());
                Some(cursors.len() as u64 - 1)
            }
            _ => None,
        };
        Ok(Ok((keys, next)))
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
        let read = |key: String| self.read(grant.bucket, &key).map(|(value, _)| (key, value));
        Ok(Ok(keys.into_iter().map(read).collect()))
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
        let read = |key: String| {
            let value = self.read(grant.bucket, &key).map(|(value, _)| value);
            (key, value)
        };
        Ok(Ok(keys.into_iter().map(read).collect()))
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
