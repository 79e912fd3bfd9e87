//! The view of a plugin under test: told of changes before each call, as by the real host.

use super::call::run;
use super::store::Store;
use super::{Host, Plugin};
use crate::Router;
use crate::view::{self, Change, KEPT, Kept, View};
use std::cell::RefCell;

/// What one instance has been told.
pub(super) struct Watching {
    buckets: fn() -> Vec<String>,
    changed: fn(u32, Vec<Change>, bool),
    kept: RefCell<Option<Kept>>,
    /// The store as it was then.
    told: RefCell<Store>,
}

impl<R: Router> Plugin<R> {
    /// Gives the plugin its view, the type that `#[throwbar::router(view = …)]` names: it is told of what is in its buckets
    /// before each call.
    ///
    /// # Panics
    /// If it names a bucket that is not granted, as the real host refuses it.
    #[track_caller]
    pub fn with_view<V: View>(mut self) -> Self {
        let (buckets, _) = run(self.host.call(None), V::buckets);
        for bucket in buckets.unwrap_or_else(|panic| panic!("View::buckets panicked: {panic}")) {
            let granted = self.host.state.borrow().store.has(&bucket);
            assert!(granted, "view: bucket {bucket:?} is not granted");
        }
        self.view = Some(Watching {
            buckets: V::buckets,
            changed: view::changed::<V>,
            kept: RefCell::default(),
            told: RefCell::default(),
        });
        self
    }
}

impl Watching {
    /// That of another instance.
    pub(super) fn another(&self) -> Self {
        Self {
            buckets: self.buckets,
            changed: self.changed,
            kept: RefCell::default(),
            told: RefCell::default(),
        }
    }

    /// Tells what has changed, and lets a call look at it.
    pub(super) fn around<T>(&self, host: &Host, call: impl FnOnce() -> T) -> T {
        let outer = KEPT.replace(self.kept.take());
        let store = host.state.borrow().store.clone();
        let told = self.told.replace(store.clone());
        let (informed, ended) = run(host.call(None), || {
            let changes = (self.buckets)();
            let changes = changes.iter().map(|name| store.changed_since(&told, name));
            let mut changes = (0..)
                .zip(changes)
                .filter(|(_, changes)| !changes.is_empty());
            let mut next = changes.next();
            while let Some((bucket, told)) = next {
                next = changes.next();
                (self.changed)(bucket, told, next.is_some());
            }
        });
        host.state.borrow_mut().log.extend(ended.log);
        let called = informed.map(|()| call());
        self.kept.replace(KEPT.replace(outer));
        called.unwrap_or_else(|panic| panic!("the view panicked: {panic}"))
    }
}
