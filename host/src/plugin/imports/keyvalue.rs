//! `wasi:keyvalue`, both drafts, over the same code as `kv`.

use super::HostState;
use super::bindings::wasi::keyvalue0_2_0_draft as draft;
use super::bindings::wasi::keyvalue0_2_0_draft2 as draft2;
use super::kv::{KEYS_MAX, Refusal};
use crate::plugin::generation::Grant;
use crate::store::Expect;
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
    draft2::store::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    draft2::batch::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

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
        let keys = self.list(grant.bucket, "", after.as_deref(), KEYS_MAX);
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
            .iter()
            .try_for_each(|(key, value)| self.write(grant, key, Some(value), Expect::Any))
    }

    fn delete_all(&mut self, grant: Grant, keys: Vec<String>) -> Result<(), Refusal> {
        keys.iter()
            .try_for_each(|key| self.write(grant, key, None, Expect::Any))
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
                let set = self.write(grant, &key, Some(&value), Expect::Any);
                Ok(set.map_err(Into::into))
            }

            fn delete(
                &mut self,
                bucket: Resource<OpenBucket>,
                key: String,
            ) -> wasmtime::Result<Result<(), $draft::store::Error>> {
                let grant = self.granted(&bucket)?;
                let delete = self.write(grant, &key, None, Expect::Any);
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
