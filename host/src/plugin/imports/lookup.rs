//! `lookup`: the fast door to the map. The value never enters the guest, the guest gets a handle.

use super::{HostState, Resolved, request};
use crate::plugin::decision::RouteTarget;
use crate::store::{BucketId, LookupKind, Target, Value, value::parse_port};
use std::borrow::Cow;
use std::sync::Arc;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmStr};

/// Linked by hand: bindings would copy each key into a `String` of its own.
pub(super) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut lookup = linker.instance("throwbar:plugin/lookup@0.1.0")?;
    lookup.func_wrap(
        "entry",
        |mut cx: StoreContextMut<'_, HostState>,
         (bucket, key, port): (u32, WasmStr, Option<u16>)| {
            let found = {
                let key = key.to_str(&cx)?;
                let state = cx.data();
                state.resolve(state.lookup_bucket(bucket)?, &key, port)
            };
            hand_out(cx.data_mut(), found)
        },
    )?;
    lookup.func_wrap(
        "entry-at",
        |mut cx: StoreContextMut<'_, HostState>, (bucket, key, port): (u32, u32, Option<u32>)| {
            let found = cx.data().resolve_at(bucket, key, port)?;
            hand_out(cx.data_mut(), found)
        },
    )?;
    Ok(())
}

fn hand_out(state: &mut HostState, found: Option<Resolved>) -> wasmtime::Result<(Option<u32>,)> {
    Ok((match found {
        Some(entry) => Some(state.hand_out(entry)?),
        None => None,
    },))
}

impl HostState {
    fn lookup_bucket(&self, index: u32) -> wasmtime::Result<BucketId> {
        let buckets = &self.plan.buckets;
        buckets.get(index as usize).copied().ok_or_else(|| {
            wasmtime::format_err!(
                "lookup: bucket {index} of a subscription with {} buckets",
                buckets.len()
            )
        })
    }

    fn resolve_at(
        &self,
        bucket: u32,
        key: u32,
        port: Option<u32>,
    ) -> wasmtime::Result<Option<Resolved>> {
        let bucket = self.lookup_bucket(bucket)?;
        let key = self.slot(key)?;
        let port = match port {
            Some(slot) => match self.slot(slot)?.as_deref().and_then(parse_port) {
                Some(port) => Some(port),
                None => return Ok(None),
            },
            None => None,
        };
        Ok(key.and_then(|key| self.resolve(bucket, &key, port)))
    }

    /// The text of a slot; an error if the subscription has no such slot.
    pub(super) fn slot(&self, index: u32) -> wasmtime::Result<Option<Cow<'_, str>>> {
        let slots = &self.plan.slots;
        let Some(field) = slots.get(index as usize) else {
            wasmtime::bail!("slot {index} of a subscription with {} slots", slots.len());
        };
        Ok(match &self.head {
            Some(head) => request::text(head, field),
            None => {
                let kept = self.kept_slots.get(index as usize);
                kept.and_then(Option::as_deref).map(Cow::Borrowed)
            }
        })
    }

    fn resolve(&self, bucket: BucketId, key: &str, port: Option<u16>) -> Option<Resolved> {
        let (value, found_by) = self.looked_up(bucket, key)?;
        let (to, own_port) = match value {
            Value::Bytes(_) => return None,
            Value::Target(target) => {
                let (host, own_port) = target.split_port();
                // A socket of the file system has no port.
                let port = match target {
                    Target::Unix(_) => 0,
                    Target::Ip(..) | Target::Name(..) => port.or(own_port)?,
                };
                (RouteTarget::Address(host, port), own_port)
            }
            Value::Typed(record) if record.needs_port && port.is_none() => return None,
            Value::Typed(record) => (RouteTarget::Record(Arc::clone(record), port), None),
        };
        Some(Resolved {
            to,
            bucket,
            key: key.into(),
            found_by: found_by.map(Into::into),
            own_port,
        })
    }

    /// The value that a key finds, and the key it is under if that is another one, which stands for it. What the
    /// instance itself wrote is found under its own key, and stands for others once it is applied.
    fn looked_up<'s>(
        &'s self,
        bucket: BucketId,
        key: &'s str,
    ) -> Option<(&'s Value, Option<&'s str>)> {
        let state = self.snapshot.bucket(bucket)?;
        let found = match self.own(bucket, key) {
            Some(Some(own)) if !state.is_pattern(key) => return Some((own, None)),
            Some(None) => state.lookup_pattern(key)?,
            _ => state.lookup(key)?,
        };
        if found.kind == LookupKind::Exact {
            return Some((&found.entry.value, None));
        }
        let value = match self.own(bucket, found.key) {
            Some(own) => own?,
            None => &found.entry.value,
        };
        Some((value, Some(found.key)))
    }
}
