//! Host functions: one file per interface, what they act on ([`HostState`]), and the linker that offers them.
//!
//! Everything here runs inside a call of the guest. Nothing blocks, nothing panics on what a guest passes, and no
//! import grants more than the plugin's config does.

use super::decision::RouteTarget;
use super::generation::{CallStats, Sandbox};
use super::subscription::{Field, Plan};
use super::{PluginLimits, RequestHead};
use crate::store::{
    BucketId, Condition, OnChange, Snapshot, Target, TypedRecord, Value, WriteBatch,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime::{Engine, ResourceLimiter, StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

pub(crate) mod config;
pub(crate) mod entry_tags;
pub(crate) mod keyvalue;
pub(crate) mod kv;
mod listing;
pub(crate) mod logging;
pub(crate) mod lookup;
pub(crate) mod overlay;
pub(crate) mod request;
pub(crate) mod session_state;
pub(crate) mod stream_options;
pub(crate) mod survey;
pub(crate) mod unapplied;
pub(crate) mod wasi;

use survey::Survey;
use unapplied::Unapplied;

/// Types and traits made from `guest-sdk/wit`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../guest-sdk/wit",
        world: "throwbar:plugin/everything",
        imports: { default: trappable },
        with: {
            "wasi:keyvalue/store@0.2.0-draft.bucket": super::keyvalue::OpenBucket,
            "wasi:keyvalue/store@0.2.0-draft2.bucket": super::keyvalue::OpenBucket,
            "wasi:keyvalue/atomics@0.2.0-draft2.cas": super::keyvalue::Cas,
        },
    });
}

pub(crate) use bindings::exports::throwbar::plugin::streams as wit_streams;
pub(crate) use bindings::throwbar::plugin::types as wit;

/// Most handles that `lookup` gives out in one call.
const ENTRIES_MAX: usize = 64;
/// Most resources of one instance, open buckets and streams together.
const RESOURCES_MAX: usize = 256;

/// An entry that `lookup` found: what a handle stands for.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Where it leads.
    pub(crate) to: RouteTarget,
    /// The bucket it is in.
    pub(crate) bucket: BucketId,
    /// The key looked up.
    pub(crate) key: Box<str>,
    /// The key it is kept under, if that is another one, which stands for this.
    pub(crate) found_by: Option<Box<str>>,
    /// The port it has itself.
    pub(crate) own_port: Option<u16>,
}

impl Resolved {
    /// Its value, as the bucket has it.
    fn value(&self) -> Option<Value> {
        let target = match &self.to {
            RouteTarget::Address(Target::Ip(ip, _), _) => Target::Ip(*ip, self.own_port),
            RouteTarget::Address(Target::Name(name, _), _) => {
                Target::Name(name.clone(), self.own_port)
            }
            RouteTarget::Address(socket @ Target::Unix(_), _) => socket.clone(),
            RouteTarget::Record(record, _) => return Some(Value::Typed(Arc::clone(record))),
            RouteTarget::Upstream(..) => return None,
        };
        Some(Value::Target(target))
    }

    /// The typed record that it is, if it is one.
    fn record(&self) -> Option<&TypedRecord> {
        match &self.to {
            RouteTarget::Record(record, _) => Some(record),
            RouteTarget::Address(..) | RouteTarget::Upstream(..) => None,
        }
    }
}

/// Bounds of what one call writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteBounds {
    /// Keys.
    pub(crate) count: usize,
    /// Keys and values together.
    pub(crate) bytes: usize,
}

/// What the imports of one instance act on.
pub(crate) struct HostState {
    pub(super) sandbox: Arc<Sandbox>,
    /// Empty until `init` returned.
    pub(super) plan: Arc<Plan>,
    /// The request being decided; none during `init`.
    pub(super) head: Option<RequestHead>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) entries: Vec<Resolved>,
    pub(super) overlay: overlay::Overlay,
    /// What sessions of the instance wrote before.
    pub(super) unapplied: Unapplied,
    /// What the call said of the stream it opens.
    pub(super) on_change: Option<OnChange>,
    /// Whether a session is running.
    pub(super) in_session: bool,
    /// What it saved.
    pub(super) saved: Option<Box<[u8]>>,
    /// What the call may write; none during `init`, which has nothing to answer for a commit.
    pub(super) writes: Option<WriteBounds>,
    /// What the slots of the subscription held, for a session that takes the place of a lost one: its request is gone.
    pub(super) kept_slots: Box<[Option<Box<str>>]>,
    /// What a migration reads and writes; none in other calls.
    pub(super) survey: Option<Survey>,
    pub(super) bound: MemoryBound,
    pub(super) worker: usize,
    /// Whether the guest asked for a part of a request that it does not subscribe to; of a shadow only.
    pub(super) asked_beyond: Option<bool>,
    table: ResourceTable,
    wasi: WasiCtx,
}

impl HostState {
    /// The state of a new instance, reading the newest snapshot until its first call.
    pub(super) fn new(sandbox: Arc<Sandbox>, worker: usize) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Self {
            plan: Arc::new(Plan::default()),
            head: None,
            snapshot: sandbox.store.snapshot(),
            entries: Vec::new(),
            overlay: overlay::Overlay::default(),
            unapplied: Unapplied::default(),
            on_change: None,
            in_session: false,
            saved: None,
            writes: None,
            kept_slots: Box::default(),
            survey: None,
            bound: MemoryBound {
                limits: store_limits(&sandbox.config.limits),
                bytes: 0,
                stats: Arc::clone(&sandbox.stats),
                worker,
            },
            worker,
            asked_beyond: None,
            table,
            wasi: wasi::context(&sandbox, worker),
            sandbox,
        }
    }

    /// Takes the request and the snapshot of a call.
    pub(super) fn begin(&mut self, head: &mut Option<RequestHead>, snapshot: &Arc<Snapshot>) {
        self.entries.clear();
        self.on_change = None;
        self.writes = Some(WriteBounds {
            count: self.sandbox.config.limits.writes_max,
            bytes: kv::WRITES_BYTES_MAX,
        });
        self.refresh(snapshot);
        // Swapped, not moved: a head is some hundred bytes.
        std::mem::swap(&mut self.head, head);
    }

    /// Reads this state from now on.
    pub(super) fn refresh(&mut self, snapshot: &Arc<Snapshot>) {
        if !Arc::ptr_eq(&self.snapshot, snapshot) {
            self.snapshot = Arc::clone(snapshot);
        }
    }

    /// Takes the state that a view is told of. There is no request, and nothing may be written.
    pub(super) fn begin_watch(&mut self, snapshot: &Arc<Snapshot>) {
        self.entries.clear();
        self.writes = None;
        self.snapshot = Arc::clone(snapshot);
    }

    /// Takes the state and the bounds of a migration. It has no request, and no subscription: lookups are of requests.
    pub(super) fn begin_migration(&mut self, snapshot: &Arc<Snapshot>, writes: WriteBounds) {
        self.snapshot = Arc::clone(snapshot);
        self.writes = Some(writes);
        self.survey = Some(Survey::default());
    }

    /// The writes of a call that decided a request: of no use once another version has migrated the data meanwhile.
    pub(super) fn take_writes(&mut self) -> Option<WriteBatch> {
        let mut batch = self.overlay.take_batch()?;
        let mark = Arc::clone(&self.sandbox.label.plugin);
        let seen = self.snapshot.mark(&mark).map(|mark| mark.revision);
        batch.by = Some(Arc::clone(&self.sandbox.label.writer));
        batch.conditions.push(Condition::Unmarked(mark, seen));
        Some(batch)
    }

    /// The writes of a call of a session. It may have been accepted by a version before, and goes on writing as long as
    /// nobody changes what the data are.
    pub(super) fn take_session_writes(&mut self) -> Option<WriteBatch> {
        let mut batch = self.overlay.take_batch()?;
        let mark = Arc::clone(&self.sandbox.data_mark);
        let seen = self.snapshot.mark(&mark).map(|mark| mark.revision);
        batch.by = Some(Arc::clone(&self.sandbox.label.writer));
        batch.conditions.push(Condition::Unmarked(mark, seen));
        Some(batch)
    }

    /// Notes that the guest asks for a field, or with none for all of them.
    fn note_asked(&mut self, field: Option<&Field>) {
        if let Some(beyond) = &mut self.asked_beyond {
            let has = |fields: &[Field]| field.is_some_and(|field| fields.contains(field));
            *beyond |= !has(&self.plan.fields) && !has(&self.plan.slots);
        }
    }

    /// Gives a handle for an entry.
    fn hand_out(&mut self, entry: Resolved) -> wasmtime::Result<u32> {
        if self.entries.len() >= ENTRIES_MAX {
            wasmtime::bail!("more than {ENTRIES_MAX} entries looked up in one call");
        }
        self.entries.push(entry);
        // At most ENTRIES_MAX, so it fits.
        Ok(self.entries.len() as u32)
    }

    /// What a handle of this call stands for.
    pub(super) fn take_entry(&mut self, handle: u32) -> Option<Resolved> {
        let index = (handle as usize).checked_sub(1)?;
        (index < self.entries.len()).then(|| self.entries.swap_remove(index))
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// Bounds of one sandbox, and the count of what it has of memory.
pub(crate) struct MemoryBound {
    limits: StoreLimits,
    bytes: usize,
    stats: Arc<[CallStats]>,
    worker: usize,
}

impl MemoryBound {
    /// Trial instances and others count at the same place, each from a thread of its own.
    fn counter(&self) -> &AtomicU64 {
        &self.stats[self.worker % self.stats.len()].memory_bytes
    }
}

impl ResourceLimiter for MemoryBound {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = self.limits.memory_growing(current, desired, maximum)?;
        if allowed {
            let grown = desired.saturating_sub(current);
            self.bytes += grown;
            self.counter().fetch_add(grown as u64, Ordering::Relaxed);
        }
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.memory_grow_failed(error)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.limits.table_grow_failed(error)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

impl Drop for MemoryBound {
    fn drop(&mut self) {
        self.counter()
            .fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

/// Bounds of one sandbox: the component's own memory, and room for the adapters that toolchains add.
fn store_limits(limits: &PluginLimits) -> StoreLimits {
    StoreLimitsBuilder::new()
        .memory_size(limits.memory_bytes_max)
        .table_elements(20_000)
        .instances(64)
        .tables(16)
        .memories(2)
        .build()
}

/// Everything a plugin may import.
///
/// # Errors
/// If an interface is linked twice: a mistake of this file.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    type Own = HasSelf<HostState>;
    let mut linker = Linker::new(engine);
    let l = &mut linker;
    lookup::add_to_linker(l)?;
    bindings::throwbar::plugin::types::add_to_linker::<_, Own>(l, |state| state)?;
    bindings::throwbar::plugin::request::add_to_linker::<_, Own>(l, |state| state)?;
    bindings::throwbar::plugin::kv::add_to_linker::<_, Own>(l, |state| state)?;
    bindings::throwbar::plugin::stream_options::add_to_linker::<_, Own>(l, |state| state)?;
    bindings::throwbar::plugin::entry_tags::add_to_linker::<_, Own>(l, |state| state)?;
    bindings::throwbar::plugin::session_state::add_to_linker::<_, Own>(l, |state| state)?;
    bindings::wasi::config::store::add_to_linker::<_, Own>(l, |state| state)?;
    bindings::wasi::logging::logging::add_to_linker::<_, Own>(l, |state| state)?;
    keyvalue::add_to_linker(l)?;
    wasi::add_to_linker(l)?;
    Ok(linker)
}

/// The interfaces that [`linker`] offers, without their versions' patch level.
pub(crate) const OFFERED: &[&str] = &[
    "throwbar:plugin/types@0.1",
    "throwbar:plugin/lookup@0.1",
    "throwbar:plugin/request@0.1",
    "throwbar:plugin/kv@0.1",
    "throwbar:plugin/stream-options@0.1",
    "throwbar:plugin/entry-tags@0.1",
    "throwbar:plugin/session-state@0.1",
    "wasi:config/store@0.2.0-rc.1",
    "wasi:logging/logging@0.1.0-draft",
    "wasi:keyvalue/store@0.2.0-draft",
    "wasi:keyvalue/batch@0.2.0-draft",
    "wasi:keyvalue/atomics@0.2.0-draft",
    "wasi:keyvalue/store@0.2.0-draft2",
    "wasi:keyvalue/batch@0.2.0-draft2",
    "wasi:keyvalue/atomics@0.2.0-draft2",
    "wasi:cli/environment@0.2",
    "wasi:cli/exit@0.2",
    "wasi:cli/stderr@0.2",
    "wasi:cli/stdin@0.2",
    "wasi:cli/stdout@0.2",
    "wasi:cli/terminal-input@0.2",
    "wasi:cli/terminal-output@0.2",
    "wasi:cli/terminal-stderr@0.2",
    "wasi:cli/terminal-stdin@0.2",
    "wasi:cli/terminal-stdout@0.2",
    "wasi:clocks/monotonic-clock@0.2",
    "wasi:clocks/wall-clock@0.2",
    "wasi:filesystem/preopens@0.2",
    "wasi:filesystem/types@0.2",
    "wasi:io/error@0.2",
    "wasi:io/poll@0.2",
    "wasi:io/streams@0.2",
    "wasi:random/insecure-seed@0.2",
    "wasi:random/insecure@0.2",
    "wasi:random/random@0.2",
    "wasi:sockets/instance-network@0.2",
    "wasi:sockets/ip-name-lookup@0.2",
    "wasi:sockets/network@0.2",
    "wasi:sockets/tcp-create-socket@0.2",
    "wasi:sockets/tcp@0.2",
    "wasi:sockets/udp-create-socket@0.2",
    "wasi:sockets/udp@0.2",
];
