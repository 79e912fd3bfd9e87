//! The engine: what guests may use of WebAssembly, and the pool that bounds how many there are.

use anyhow::bail;
use sha2::{Digest, Sha256};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Instances of all workers together that hold sessions of streams.
const WITH_SESSIONS: usize = 1_024;
/// Instances that one worker may have at the same time, of all plugins; it drops those unused for longest.
const INSTANCES_PER_WORKER: usize = 128;
/// Instances beyond those of workers, for trials and shadows.
const TRIALS: usize = 32;
/// Address space of one instance's memory, and so the most that `memory_bytes_max` can be.
pub(crate) const MEMORY_RESERVATION: usize = 64 << 20;
/// Kernel mappings of one pool slot in use.
const MAPPINGS_PER_SLOT: usize = 6;
/// Kernel mappings left to everything else.
const MAPPINGS_RESERVED: usize = 5_000;
/// The kernel's default of `vm.max_map_count`, for systems that do not say.
const MAX_MAP_COUNT_DEFAULT: usize = 65_530;

/// What the engine's pool has room for.
pub(super) struct Room {
    /// Instances that decide requests, of each worker.
    pub(super) per_worker: usize,
    /// Instances with sessions.
    pub(super) sessions: SessionInstances,
}

/// Makes the engine for so many workers; with it goes how many instances they may have.
///
/// When the machine has not the address space for the whole pool, a smaller one is tried, down to what the workers need for
/// one plugin.
///
/// # Errors
/// If not even that fits; names the limit.
pub(super) fn new(workers: usize) -> anyhow::Result<(Engine, Room)> {
    let workers = workers.max(1);
    let routing = workers * INSTANCES_PER_WORKER + TRIALS;
    let wanted = routing + WITH_SESSIONS;
    // Active, last good and warming.
    let least = workers * 3 + TRIALS;
    let mappings_max = max_map_count();
    let fitting = mappings_max.saturating_sub(MAPPINGS_RESERVED) / MAPPINGS_PER_SLOT;
    if fitting < least {
        bail!(
            "vm.max_map_count is {mappings_max}, expected at least {} for {workers} workers: raise it with sysctl or run fewer workers",
            least * MAPPINGS_PER_SLOT + MAPPINGS_RESERVED
        );
    }
    let mut slots = wanted.min(fitting);
    loop {
        match Engine::new(&config(slots)) {
            Ok(engine) => {
                if slots < wanted {
                    tracing::warn!(
                        slots,
                        wanted,
                        "the machine has room for fewer plugin instances than wanted"
                    );
                }
                // Sessions never take what routing needs.
                let routing = routing.min((slots / 2).max(least)).min(slots);
                let room = Room {
                    per_worker: (routing - TRIALS) / workers,
                    sessions: SessionInstances::new(slots - routing),
                };
                return Ok((engine, room));
            }
            Err(error) if slots <= least => {
                let mebibytes = slots * (MEMORY_RESERVATION >> 20);
                bail!(
                    "plugin engine: {slots} instances, {mebibytes} MiB of address space in all, do not fit: {error:#}"
                );
            }
            Err(_) => slots = (slots / 2).max(least),
        }
    }
}

/// How many instances with sessions the pool has room for, and how many there are.
pub(crate) struct SessionInstances {
    live: AtomicUsize,
    max: usize,
}

/// The place of one instance with sessions; given back when dropped.
pub(crate) struct SessionInstance(Arc<SessionInstances>);

impl SessionInstances {
    fn new(max: usize) -> Self {
        Self {
            live: AtomicUsize::new(0),
            max,
        }
    }

    /// Takes a place, or says how many there are in all.
    pub(super) fn take(self: &Arc<Self>) -> Result<SessionInstance, usize> {
        let taken = self
            .live
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                (live < self.max).then_some(live + 1)
            });
        match taken {
            Ok(_) => Ok(SessionInstance(Arc::clone(self))),
            Err(_) => Err(self.max),
        }
    }
}

impl Drop for SessionInstance {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes an engine that compiles for the one of [`new`], and runs nothing: it reserves no address space.
///
/// # Errors
/// If the engine does not fit this machine.
pub(super) fn without_pool() -> wasmtime::Result<Engine> {
    Engine::new(&settings())
}

/// Everything that decides what compiled code looks like, the same for who compiles and who runs it.
fn settings() -> Config {
    let mut config = Config::new();
    config
        // Triples the price of an empty call.
        .concurrency_support(false)
        .epoch_interruption(true)
        .memory_init_cow(true)
        .memory_reservation(MEMORY_RESERVATION as u64)
        .memory_guard_size(4 << 20)
        .max_wasm_stack(256 << 10)
        .async_stack_size(512 << 10)
        // Less surface: nothing a router needs.
        .wasm_memory64(false)
        .wasm_relaxed_simd(false);
    config
}

fn config(slots: usize) -> Config {
    let slots = u32::try_from(slots).unwrap_or(u32::MAX / 64);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_memories(slots)
        .total_core_instances(slots.saturating_mul(32))
        .total_tables(slots.saturating_mul(4))
        // Calls are synchronous: no fibers.
        .total_stacks(1)
        .max_memory_size(MEMORY_RESERVATION)
        .table_elements(20_000)
        .max_core_instances_per_component(32)
        .max_tables_per_component(8)
        .max_memories_per_component(1)
        // Kept bytes are cleared at each drop, whether the guest touched them or not.
        .linear_memory_keep_resident(16 << 10)
        .table_keep_resident(8 << 10)
        .max_unused_warm_slots(16);
    let mut config = settings();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// The engine's settings and version as hex: the same for the same build of this program on the same kind of machine.
pub(super) fn compatibility(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            unreachable!("the digest is taken whole")
        }
    }
    let mut hasher = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    super::artifact::hex(&hasher.0.finalize()[..8])
}

fn max_map_count() -> usize {
    let read = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let parsed = read.ok().and_then(|text| text.trim().parse().ok());
    parsed.unwrap_or(MAX_MAP_COUNT_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_compiles_makes_code_for_who_runs_it() {
        let (running, _) = new(1).expect("an engine");
        let compiling = without_pool().expect("an engine");
        assert_eq!(compatibility(&compiling), compatibility(&running));
    }
}
