//! One call into a plugin under test, and what it may ask of the fake host meanwhile.

use super::ask::Ask;
use super::store::{Draft, Store};
use crate::bindings::throwbar::plugin::types::Subscription;
use crate::log::Level;
use crate::request::parse_port;
use crate::setup::Field;
use crate::stream_options::OnChange;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CURRENT: RefCell<Option<Call>> = const { RefCell::new(None) };
}

/// What the fake host knows while a plugin runs.
#[derive(Debug)]
pub(crate) struct Call {
    ask: Option<Ask>,
    /// What the slots held, of a session that takes the place of a lost one.
    pub(super) kept_slots: Vec<Option<String>>,
    slots: Vec<Field>,
    buckets: Vec<String>,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) store: Draft,
    pub(crate) log: Vec<(Level, String)>,
    /// What a session saved.
    pub(crate) saved: Option<Vec<u8>>,
    pub(super) entries: Vec<Found>,
    pub(crate) on_change: Option<OnChange>,
}

/// What a handle of this call stands for.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: String,
    pub(super) address: String,
    tags: BTreeMap<String, String>,
}

/// Asks the host of the plugin that is running on this thread.
///
/// # Panics
/// If there is none: a test called into the plugin past [`Plugin`](super::Plugin) and [`Stream`](super::Stream).
pub(crate) fn current<T>(ask: impl FnOnce(&mut Call) -> T) -> T {
    CURRENT.with_borrow_mut(|call| {
        let call = call.as_mut();
        ask(call.expect(
            "a plugin calls its host only inside Host::start, or a call of Plugin or Stream",
        ))
    })
}

/// Runs `plugin` with `call` as its host; a panic becomes its message.
pub(super) fn run<T>(call: Call, plugin: impl FnOnce() -> T) -> (Result<T, String>, Call) {
    let outer = CURRENT.replace(Some(call));
    let result = catch_unwind(AssertUnwindSafe(plugin));
    let call = CURRENT.replace(outer);
    let result = result.map_err(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => match panic.downcast::<&str>() {
            Ok(message) => (*message).to_owned(),
            Err(_) => "a panic without a message".to_owned(),
        },
    });
    (result, call.expect("only this function takes a call away"))
}

impl Call {
    pub(super) fn new(ask: Option<Ask>, settings: BTreeMap<String, String>, store: Store) -> Self {
        Self {
            ask,
            kept_slots: Vec::new(),
            slots: Vec::new(),
            buckets: Vec::new(),
            settings,
            store: Draft::new(store),
            log: Vec::new(),
            saved: None,
            entries: Vec::new(),
            on_change: None,
        }
    }

    pub(super) fn subscribe(&mut self, subscription: &Subscription) {
        self.slots.clone_from(&subscription.slots);
        self.buckets.clone_from(&subscription.buckets);
    }

    /// The request; none in `init`, in a migration, and in a session after `open`.
    pub(crate) fn ask(&self) -> Option<&Ask> {
        self.ask.as_ref()
    }

    pub(crate) fn slot(&self, index: u32) -> Option<String> {
        let field = &self.slots[index as usize];
        match &self.ask {
            Some(ask) => ask.field(field),
            None => self.kept_slots.get(index as usize)?.clone(),
        }
    }

    pub(crate) fn entry_at(&mut self, bucket: u32, key: u32, port: Option<u32>) -> Option<u32> {
        let key = self.slot(key)?;
        let port = match port {
            Some(port) => Some(parse_port(&self.slot(port)?)?),
            None => None,
        };
        self.entry(bucket, &key, port)
    }

    pub(crate) fn entry(&mut self, bucket: u32, key: &str, port: Option<u16>) -> Option<u32> {
        let entry = self.store.get(&self.buckets[bucket as usize], key).ok()??;
        let value = String::from_utf8(entry.value).ok()?;
        let address = if value.starts_with("unix:") || value.starts_with('{') {
            value
        } else {
            let (host, own) = split_port(&value);
            let port = port.or(own)?;
            match host.contains(':') && !host.starts_with('[') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            }
        };
        let tags = self.store.tags(&self.buckets[bucket as usize], key);
        self.entries.push(Found {
            key: key.to_owned(),
            address,
            tags,
        });
        u32::try_from(self.entries.len() - 1).ok()
    }

    /// The tags of what was found.
    pub(crate) fn tags(&self, entry: u32) -> &BTreeMap<String, String> {
        let found = self.entries.get(entry as usize);
        &found.expect("a handle of this call's lookups").tags
    }
}

/// `host`, `host:port`, `::1` or `[::1]:port`, taken apart.
pub(super) fn split_port(value: &str) -> (&str, Option<u16>) {
    match value.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, parse_port(port))
        }
        _ => (value, None),
    }
}
