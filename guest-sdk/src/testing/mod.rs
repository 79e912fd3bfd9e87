//! A fake host, for unit tests of a plugin with plain `cargo test`.
//!
//! ```
//! use throwbar::prelude::*;
//! use throwbar::testing::{Host, get};
//!
//! #[throwbar::router]
//! fn route(req: &Request) -> Decision {
//!     match req.lookup_port("upstreams", "x-id", "x-port") {
//!         Some(entry) => Forward::to(entry).remove_header("x-id").into(),
//!         None => Reply::new(404).into(),
//!     }
//! }
//!
//! # fn main() {
//! let host = Host::new().bucket("upstreams", [("id1", "127.0.0.2")]);
//! let plugin = host.start::<route>().unwrap();
//!
//! let request = get("/").header("x-id", "id1").header("x-port", "80");
//! let forwarded = plugin.route(request).forwarded();
//! assert_eq!(forwarded.to, Target::address("127.0.0.2:80"));
//! assert_eq!(forwarded.header("x-id"), None);
//!
//! assert_eq!(plugin.route(get("/")).replied().status, 404);
//! # }
//! ```
//!
//! It keeps the promises a plugin builds on: subscribed fields, buckets with grants and revisions, reads of one's own
//! writes, all writes or none. It has no limits of time or memory, and checks decisions no further than to read them.

mod ask;
mod call;
mod outcome;
mod store;
mod stream;
mod view;

pub use ask::{Ask, get, request};
pub use outcome::{Forwarded, Outcome};
pub use stream::Stream;

use crate::log::Level;
use crate::router::{Router, Running};
pub(crate) use call::current;
use call::{Call, run};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use store::{Kind, Store};
use view::Watching;

/// A fake host, which plugins share that were started from it.
#[derive(Debug, Clone, Default)]
pub struct Host {
    state: Rc<RefCell<State>>,
}

#[derive(Debug, Default)]
struct State {
    settings: BTreeMap<String, String>,
    store: Store,
    log: Vec<(Level, String)>,
}

/// A plugin that runs on a fake host.
pub struct Plugin<R> {
    running: Running<R>,
    host: Host,
    view: Option<Watching>,
}

impl Host {
    /// A host with no settings and no buckets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the plugin a setting.
    pub fn config(self, name: &str, value: &str) -> Self {
        let mut state = self.state.borrow_mut();
        state.settings.insert(name.to_owned(), value.to_owned());
        drop(state);
        self
    }

    /// Grants a bucket of addresses for reading, with these entries.
    pub fn bucket<'e>(
        self,
        name: &str,
        entries: impl IntoIterator<Item = (&'e str, &'e str)>,
    ) -> Self {
        let mut state = self.state.borrow_mut();
        state.store.add(name, Kind::Addresses, false, entries);
        drop(state);
        self
    }

    /// Gives an entry tags, as a typed record has them.
    pub fn tags<'t>(
        self,
        bucket: &str,
        key: &str,
        tags: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) -> Self {
        self.state.borrow_mut().store.tag(bucket, key, tags);
        self
    }

    /// Grants a bucket of addresses for reading and writing, with these entries.
    pub fn writable_bucket<'e>(
        self,
        name: &str,
        entries: impl IntoIterator<Item = (&'e str, &'e str)>,
    ) -> Self {
        let mut state = self.state.borrow_mut();
        state.store.add(name, Kind::Addresses, true, entries);
        drop(state);
        self
    }

    /// Grants a bucket of bytes for reading and writing, with these entries.
    pub fn bytes_bucket<'e>(
        self,
        name: &str,
        entries: impl IntoIterator<Item = (&'e str, &'e str)>,
    ) -> Self {
        let mut state = self.state.borrow_mut();
        state.store.add(name, Kind::Bytes, true, entries);
        drop(state);
        self
    }

    /// Writes an entry, as somebody else does.
    ///
    /// # Panics
    /// If there is no such bucket.
    #[track_caller]
    pub fn put(&self, bucket: &str, key: &str, value: &str) {
        let mut state = self.state.borrow_mut();
        state.store.set(bucket, key, Some(value));
    }

    /// Deletes an entry, as somebody else does.
    ///
    /// # Panics
    /// If there is no such bucket.
    #[track_caller]
    pub fn delete(&self, bucket: &str, key: &str) {
        self.state.borrow_mut().store.set(bucket, key, None);
    }

    /// Lets time go by: entries whose time has come are gone then.
    pub fn advance(&self, time: Duration) {
        self.state.borrow_mut().store.advance(time);
    }

    /// Runs a plugin's [migration](macro@crate::router#migration), as before its activation: `from` is the version that the
    /// data are of, none at the first activation. What it wrote is in the buckets then, unless it failed.
    ///
    /// # Errors
    /// Its error, or the message of its panic.
    pub fn migrate(
        &self,
        migrate: impl FnOnce(Option<&str>) -> Result<(), String>,
        from: Option<&str>,
    ) -> Result<(), String> {
        let (migrated, call) = run(self.call(None), || migrate(from));
        self.state.borrow_mut().log.extend(call.log);
        migrated.map_err(|panic| format!("migrate panicked: {panic}"))??;
        self.state.borrow_mut().store = call.store.commit();
        Ok(())
    }

    /// Starts a plugin: runs its `init`, and checks what it subscribes to as the real host does.
    ///
    /// # Errors
    /// The message with which `init` refused, or why the host does.
    pub fn start<R: Router>(&self) -> Result<Plugin<R>, String> {
        let (started, call) = run(self.call(None), Running::<R>::start);
        self.state.borrow_mut().log.extend(call.log);
        let running = started.map_err(|panic| format!("init panicked: {panic}"))??;
        for bucket in &running.subscription().buckets {
            if !self.state.borrow().store.has(bucket) {
                return Err(format!("bucket {bucket:?} is not granted"));
            }
        }
        Ok(Plugin {
            view: None,
            running,
            host: self.clone(),
        })
    }

    /// What a bucket holds under a key.
    pub fn value(&self, bucket: &str, key: &str) -> Option<String> {
        let entry = self.state.borrow().store.get(bucket, key).ok()??;
        Some(String::from_utf8_lossy(&entry.value).into_owned())
    }

    /// The lines logged so far.
    pub fn log(&self) -> Vec<(Level, String)> {
        self.state.borrow().log.clone()
    }

    fn call(&self, ask: Option<Ask>) -> Call {
        let state = self.state.borrow();
        Call::new(ask, state.settings.clone(), state.store.clone())
    }
}

impl<R: Router> Plugin<R> {
    /// Has it decide one request. What it wrote is in the buckets then, unless it panicked.
    pub fn route(&self, ask: Ask) -> Outcome {
        let subscription = self.running.subscription();
        let fields = ask.packed(&subscription.fields);
        let mut call = self.host.call(Some(ask));
        call.subscribe(subscription);
        let route = || run(call, || self.running.route(fields));
        let (decision, call) = match &self.view {
            Some(view) => view.around(&self.host, route),
            None => route(),
        };
        self.host.state.borrow_mut().log.extend(call.log.clone());
        match decision {
            Ok(decision) => {
                let outcome = Outcome::new(decision, &call, subscription);
                self.host.state.borrow_mut().store = call.store.commit();
                outcome
            }
            Err(panic) => Outcome::Panicked(panic),
        }
    }
}
