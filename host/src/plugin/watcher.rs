//! Plugins that keep a view of their own of some buckets: each instance is told of changes before a call that sees them.
//!
//! What is told is the difference of two states of the store, so it is whole whatever the store's log still has, and the
//! first call of an instance is the same as any other, from nothing. It is told in pages: who asks for a decision serves
//! others in between ([`Watcher::step`]), and only what came since the last page is told at once
//! ([`Watcher::catch_up`]). A worker's sweep tells instances that nobody asks, so that they hold no old state.
//!
//! A component may have one of two doors: `throwbar:plugin/watcher`, a list for each page, or `wasi:keyvalue/watcher` of
//! either draft, a call for each key.

use super::compile::export;
use super::epoch::EpochClock;
use super::generation::{Grant, Sandbox};
use super::imports::HostState;
use super::imports::keyvalue::OpenBucket;
use super::instance;
use super::report::DeployError;
use super::subscription::Plan;
use super::{Generation, RouteError};
use crate::metrics;
use crate::store::{BucketId, Changed, Delta, Snapshot, Value};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::Store;
use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, ComponentType, Instance, Lift, Lower,
    Resource, TypedFunc,
};

/// The interface that tells a page at a time.
const WATCHER: &str = "throwbar:plugin/watcher@0.1.0";
/// The interfaces that tell a key at a time.
const PORTABLE: [&str; 2] = [
    "wasi:keyvalue/watcher@0.2.0-draft",
    "wasi:keyvalue/watcher@0.2.0-draft2",
];
/// Most buckets that a plugin watches.
const BUCKETS_MAX: usize = 16;
/// Most changes of a page, and most bytes of their keys and values unless one alone has more.
const PAGE_CHANGES: usize = 1_000;
const PAGE_BYTES: usize = 256 << 10;

/// How a component is told of changes.
pub(super) enum Exports {
    /// By [`WATCHER`].
    Pages {
        buckets: ComponentExportIndex,
        changed: ComponentExportIndex,
    },
    /// By one of [`PORTABLE`].
    Keys {
        interface: &'static str,
        set: ComponentExportIndex,
        delete: ComponentExportIndex,
    },
}

impl Exports {
    /// Those of a component; none if it watches nothing.
    ///
    /// # Errors
    /// If it has more than one door, or half of one.
    pub(super) fn of(component: &Component) -> Result<Option<Self>, DeployError> {
        let has = |interface: &&str| component.get_export_index(None, interface).is_some();
        let found: Vec<&str> = [WATCHER].into_iter().chain(PORTABLE).filter(has).collect();
        let interface = match found[..] {
            [] => return Ok(None),
            [interface] => interface,
            _ => {
                return Err(DeployError::World(format!(
                    "exports {}: expected one of them, since each change is told once",
                    found.join(" and ")
                )));
            }
        };
        let named = |name| export(component, interface, name);
        Ok(Some(match interface {
            WATCHER => Self::Pages {
                buckets: named("buckets")?,
                changed: named("changed")?,
            },
            _ => Self::Keys {
                interface,
                set: named("on-set")?,
                delete: named("on-delete")?,
            },
        }))
    }
}

/// A change as the guest gets it.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Change<'a> {
    key: &'a str,
    value: Option<&'a [u8]>,
}

/// Functions of an instance, their arguments borrowed.
enum Functions {
    Pages(TypedFunc<(u32, &'static [Change<'static>], bool), ()>),
    Keys {
        set: TypedFunc<(Resource<OpenBucket>, &'static str, &'static [u8]), ()>,
        delete: TypedFunc<(Resource<OpenBucket>, &'static str), ()>,
    },
}

fn typed<P, R>(
    instance: &Instance,
    store: &mut Store<HostState>,
    (interface, name, export): (&str, &str, &ComponentExportIndex),
) -> Result<TypedFunc<P, R>, String>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let found = instance.get_typed_func(store, export);
    found.map_err(|error| format!("export {name} of {interface}: {error:#}"))
}

impl Functions {
    /// # Errors
    /// Names the one whose type is not that of the contract.
    fn of(
        exports: &Exports,
        instance: &Instance,
        store: &mut Store<HostState>,
    ) -> Result<Self, String> {
        Ok(match exports {
            Exports::Pages { changed, .. } => {
                Self::Pages(typed(instance, store, (WATCHER, "changed", changed))?)
            }
            Exports::Keys {
                interface,
                set,
                delete,
            } => Self::Keys {
                set: typed(instance, store, (interface, "on-set", set))?,
                delete: typed(instance, store, (interface, "on-delete", delete))?,
            },
        })
    }

    /// Tells changes of one bucket.
    fn call(
        &self,
        store: &mut Store<HostState>,
        bucket: BucketId,
        page: &[Changed],
        more: bool,
    ) -> wasmtime::Result<()> {
        let bytes = page.iter().map(|one| one.value().map(Value::to_bytes));
        let bytes: Vec<_> = bytes.collect();
        let changes = page.iter().zip(&bytes).map(|(one, bytes)| Change {
            key: one.key(),
            value: bytes.as_deref(),
        });
        match self {
            Self::Pages(changed) => {
                let changed: TypedFunc<(u32, &[Change<'_>], bool), ()> = *changed;
                let changes: Vec<_> = changes.collect();
                let place = page.first().map_or(0, Changed::bucket);
                // There are at most `BUCKETS_MAX`.
                changed.call(store, (place as u32, &changes, more))
            }
            Self::Keys { set, delete } => {
                for Change { key, value } in changes {
                    let bucket = store.data_mut().lend_bucket(bucket)?;
                    match value {
                        Some(value) => {
                            let set: TypedFunc<(_, &str, &[u8]), ()> = *set;
                            set.call(&mut *store, (bucket, key, value))?;
                        }
                        None => {
                            let delete: TypedFunc<(_, &str), ()> = *delete;
                            delete.call(&mut *store, (bucket, key))?;
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

/// What a version watches, asked once, at its trial: it holds for every instance. Empty if it watches nothing.
///
/// # Errors
/// Why the version is refused: its type, or what it asks for.
pub(super) fn watched(
    sandbox: &Sandbox,
    instance: &Instance,
    store: &mut Store<HostState>,
) -> Result<Arc<[BucketId]>, instance::TrialError> {
    use instance::TrialError::{Init, World};
    let Some(exports) = &sandbox.code.watcher_exports else {
        return Ok(Arc::default());
    };
    Functions::of(exports, instance, store).map_err(World)?;
    match exports {
        Exports::Pages { buckets, .. } => {
            let asked: TypedFunc<(), (Vec<String>,)> =
                typed(instance, store, (WATCHER, "buckets", buckets)).map_err(World)?;
            let (names,) = asked.call(store, ()).map_err(|error| {
                let cause = instance::cause(&error, sandbox.config.limits.init_deadline);
                Init(format!("buckets of {WATCHER}: {cause}"))
            })?;
            check(&names, &sandbox.grants).map_err(Init)
        }
        Exports::Keys { .. } => Ok(sandbox.grants.values().map(|grant| grant.bucket).collect()),
    }
}

fn check(names: &[String], grants: &BTreeMap<String, Grant>) -> Result<Arc<[BucketId]>, String> {
    if names.len() > BUCKETS_MAX {
        return Err(format!(
            "watcher: {} buckets, at most {BUCKETS_MAX} are allowed",
            names.len()
        ));
    }
    let checked = names.iter().enumerate().map(|(at, name)| {
        if names[..at].contains(name) {
            return Err(format!(
                "watcher: bucket {name:?} is named twice, expected each once"
            ));
        }
        let grant = grants.get(name);
        grant.map(|grant| grant.bucket).ok_or_else(|| {
            format!(
                "watcher: bucket {name:?} is not granted to this plugin; grant it in the config, expected one of {:?}",
                grants.keys().collect::<Vec<_>>()
            )
        })
    });
    checked.collect()
}

impl Generation {
    /// Whether its instances keep a view of their own.
    #[inline]
    pub fn has_view(&self) -> bool {
        !self.plan.watched.is_empty()
    }
}

/// What one instance has been told.
pub(super) struct Watcher {
    functions: Functions,
    buckets: Arc<[BucketId]>,
    /// The state that its view is of; none: it is empty.
    seen: Option<Arc<Snapshot>>,
    /// What it is being told.
    delta: Option<Delta>,
    /// How long it has taken over that.
    spent: Duration,
}

impl Watcher {
    /// That of a new instance; none if it watches nothing.
    ///
    /// # Errors
    /// If the type of a function is not that of the contract.
    pub(super) fn of(
        sandbox: &Sandbox,
        plan: &Plan,
        instance: &Instance,
        store: &mut Store<HostState>,
    ) -> Result<Option<Box<Self>>, RouteError> {
        let exports = sandbox.code.watcher_exports.as_ref();
        let Some(exports) = exports.filter(|_| !plan.watched.is_empty()) else {
            return Ok(None);
        };
        let functions = Functions::of(exports, instance, store);
        Ok(Some(Box::new(Self {
            functions: functions.map_err(RouteError::Instantiate)?,
            buckets: Arc::clone(&plan.watched),
            seen: None,
            delta: None,
            spent: Duration::ZERO,
        })))
    }

    /// Tells all that the view has not of a state.
    ///
    /// # Errors
    /// [`RouteError::Trap`] or [`RouteError::WatchDeadline`]: the instance must be dropped.
    #[inline]
    pub(super) fn catch_up(
        &mut self,
        store: &mut Store<HostState>,
        sandbox: &Sandbox,
        snapshot: &Arc<Snapshot>,
    ) -> Result<(), RouteError> {
        while !self.has_seen(snapshot) {
            self.step(store, sandbox, snapshot)?;
        }
        Ok(())
    }

    fn has_seen(&self, snapshot: &Arc<Snapshot>) -> bool {
        let seen = self.seen.as_ref().filter(|_| self.delta.is_none());
        seen.is_some_and(|seen| Arc::ptr_eq(seen, snapshot))
    }

    /// Tells a page of it. Whether that was the last one; since the first one other changes may have come.
    ///
    /// # Errors
    /// As [`Watcher::catch_up`].
    pub(super) fn step(
        &mut self,
        store: &mut Store<HostState>,
        sandbox: &Sandbox,
        snapshot: &Arc<Snapshot>,
    ) -> Result<bool, RouteError> {
        if self.has_seen(snapshot) {
            return Ok(true);
        }
        let mut delta = self.delta.take().unwrap_or_else(|| {
            let buckets = Arc::clone(&self.buckets);
            Delta::new(self.seen.clone(), Arc::clone(snapshot), buckets)
        });
        let page = delta.page(PAGE_CHANGES, PAGE_BYTES);
        let more = delta.has_more();
        if !page.is_empty() {
            self.tell(store, sandbox, (delta.after(), &page, more))?;
        }
        if more {
            self.delta = Some(delta);
            return Ok(false);
        }
        self.seen = Some(Arc::clone(delta.after()));
        self.spent = Duration::ZERO;
        Ok(true)
    }

    fn tell(
        &mut self,
        store: &mut Store<HostState>,
        sandbox: &Sandbox,
        (snapshot, page, more): (&Arc<Snapshot>, &[Changed], bool),
    ) -> Result<(), RouteError> {
        let deadline = sandbox.config.limits.watch_deadline;
        let left = deadline.saturating_sub(self.spent);
        let bucket = page.first().and_then(|one| self.buckets.get(one.bucket()));
        let Some(&bucket) = bucket else {
            return Ok(());
        };
        let state = store.data_mut();
        state.begin_watch(snapshot);
        let stats = &sandbox.stats[state.worker % sandbox.stats.len()];
        metrics::add(&stats.watch_changes, page.len() as u64);
        sandbox.clock.arm(store, EpochClock::ticks(left));
        let began = Instant::now();
        let called = catch_unwind(AssertUnwindSafe(|| {
            self.functions.call(store, bucket, page, more)
        }));
        self.spent += began.elapsed();
        // That is for calls of sessions.
        store.data_mut().saved = None;
        let error = match called {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => match instance::cause(&error, deadline) {
                RouteError::Deadline(deadline) => RouteError::WatchDeadline(deadline),
                error => RouteError::Trap(format!("watcher: {error}")),
            },
            Err(panic) => RouteError::Trap(format!(
                "watcher: host function: {}",
                instance::text_of(&*panic)
            )),
        };
        let kind = match error {
            RouteError::WatchDeadline(_) => &stats.watch_deadlines,
            _ => &stats.watch_traps,
        };
        metrics::add(kind, 1);
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Access;
    use crate::store::ValueKind;

    #[test]
    fn buckets_that_cannot_be_watched_are_named() {
        let grant = Grant {
            bucket: BucketId(3),
            access: Access::Read,
            values: ValueKind::Bytes,
        };
        let grants = BTreeMap::from([("rules".to_owned(), grant)]);
        let asked = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            check(&names, &grants)
        };
        assert_eq!(*asked(&["rules"]).expect("granted"), [BucketId(3)]);
        let error = asked(&["rules", "map"]).expect_err("not granted");
        assert!(error.contains("\"map\" is not granted") && error.contains("[\"rules\"]"));
        let error = asked(&["rules", "rules"]).expect_err("twice");
        assert!(error.contains("\"rules\" is named twice"), "{error}");
        let error = asked(&["rules"; 17]).expect_err("too many");
        assert!(error.contains("17 buckets, at most 16"), "{error}");
    }
}
