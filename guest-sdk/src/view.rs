//! Views: what a plugin keeps of its buckets in a form of its own, such as parsed rules, a trie or compiled patterns.
//!
//! A decision by `lookup` or [`kv`](crate::kv) reads the store's own bytes. What has to be parsed first is better parsed
//! once, when it changes: the host tells each instance what has changed before a call that sees it, so a view is of the
//! same revision as everything else that the call reads.

pub use crate::watch_bindings::exports::throwbar::plugin::watcher::Change;
use std::any::Any;
use std::cell::RefCell;

/// What a plugin keeps of some buckets in a form of its own.
///
/// [`#[throwbar::router(view = …)]`](macro@crate::router) makes it a part of the plugin, and [`with`] looks at it:
///
/// ```
/// use std::collections::BTreeMap;
/// use throwbar::prelude::*;
///
/// #[throwbar::router(view = Limits)]
/// fn route(req: &Request) -> Decision {
///     let tenant = req.header("x-tenant").unwrap_or_default();
///     match view::with(|limits: &Limits| limits.0.get(tenant).copied()) {
///         Some(0) => Reply::text(403, "not any more\n").into(),
///         _ => Target::upstream("app").into(),
///     }
/// }
///
/// /// Requests that a tenant may make, by its name.
/// #[derive(Default)]
/// struct Limits(BTreeMap<String, u32>);
///
/// impl View for Limits {
///     fn buckets() -> Vec<String> {
///         vec!["limits".into()]
///     }
///
///     fn set(&mut self, _bucket: &str, key: &str, value: &[u8]) {
///         let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
///         match number {
///             Some(number) => {
///                 self.0.insert(key.to_owned(), number);
///             }
///             None => {
///                 self.0.remove(key);
///                 log::warn(format!("limit of {key:?} is no number"));
///             }
///         }
///     }
///
///     fn delete(&mut self, _bucket: &str, key: &str) {
///         self.0.remove(key);
///     }
/// }
///
/// # fn main() {
/// use throwbar::testing::{Host, get};
/// let host = Host::new().bytes_bucket("limits", [("anna", "0")]);
/// let plugin = host.start::<route>().unwrap().with_view::<Limits>();
/// assert_eq!(plugin.route(get("/").header("x-tenant", "anna")).replied().status, 403);
/// # }
/// ```
///
/// Each instance has one of its own, which begins as the default: with nothing in it. A panic in one of these methods loses
/// the instance, and the next one is told the same again; so what cannot be used is best left out, and logged.
pub trait View: Default + 'static {
    /// The buckets, at most 16, each granted in the config. Called more than once: it has to say the same each time.
    fn buckets() -> Vec<String>;

    /// An entry is there, or has another value than before.
    fn set(&mut self, bucket: &str, key: &str, value: &[u8]);

    /// An entry is gone.
    fn delete(&mut self, bucket: &str, key: &str);

    /// All that has changed was told, and a call is next: the place for work that is better done once.
    fn complete(&mut self) {}
}

/// A view, with the names of its buckets.
pub(crate) struct Kept {
    buckets: Vec<String>,
    view: Box<dyn Any>,
}

thread_local! {
    pub(crate) static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Looks at the view of the plugin.
///
/// # Panics
/// If `V` is not the type that `#[throwbar::router(view = …)]` names, or a test started the plugin without
/// `with_view`.
pub fn with<V: View, T>(look: impl FnOnce(&V) -> T) -> T {
    KEPT.with_borrow(|kept| match kept {
        Some(kept) => look(view(kept.view.downcast_ref())),
        // Of empty buckets nothing is told.
        None if cfg!(target_arch = "wasm32") => look(&V::default()),
        None => panic!("there is no view: expected `start::<…>()?.with_view::<…>()`"),
    })
}

fn view<T>(view: Option<T>) -> T {
    view.expect("the type that `#[throwbar::router(view = …)]` names")
}

/// Takes changes of one bucket, named by its place.
#[doc(hidden)]
pub fn changed<V: View>(bucket: u32, changes: Vec<Change>, more: bool) {
    KEPT.with_borrow_mut(|kept| {
        let kept = kept.get_or_insert_with(|| Kept {
            buckets: V::buckets(),
            view: Box::new(V::default()),
        });
        let name = &kept.buckets[bucket as usize];
        let view: &mut V = view(kept.view.downcast_mut());
        for Change { key, value } in changes {
            match value {
                Some(value) => view.set(name, &key, &value),
                None => view.delete(name, &key),
            }
        }
        if !more {
            view.complete();
        }
    });
}
