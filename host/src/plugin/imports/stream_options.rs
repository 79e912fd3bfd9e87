//! `stream-options`: what a decision says of the stream it opens.

use super::bindings::throwbar::plugin::stream_options::{ChangePolicy, Host};
use super::{HostState, Resolved};
use crate::plugin::decision::Follow;
use crate::store::OnChange;
use std::time::Duration;

impl Host for HostState {
    fn on_change(&mut self, policy: ChangePolicy) -> wasmtime::Result<()> {
        let millis = |millis: u32| Duration::from_millis(millis.into());
        self.on_change = Some(match policy {
            ChangePolicy::Keep => OnChange::Keep,
            ChangePolicy::Drain(spread) => OnChange::Drain {
                after: millis(spread.after_ms),
                over: millis(spread.over_ms),
            },
            ChangePolicy::Close => OnChange::Close,
        });
        Ok(())
    }
}

impl HostState {
    /// The entry that a stream is to follow: none of a request that opens none, or that nothing is to become of. What
    /// this call said goes before what a typed record says, and that before what the config says of the bucket.
    pub(in crate::plugin) fn follow(&self, entry: &Resolved) -> Option<Box<Follow>> {
        if !self.head.as_ref().is_some_and(|head| head.websocket) {
            return None;
        }
        let on_change = match self.on_change {
            Some(said) => said,
            None => match entry.record().and_then(|record| record.on_change) {
                Some(said) => said,
                None => self.snapshot.bucket(entry.bucket)?.config().on_change,
            },
        };
        if on_change == OnChange::Keep {
            return None;
        }
        Some(Box::new(Follow {
            bucket: entry.bucket,
            key: entry.found_by.as_ref().unwrap_or(&entry.key).clone(),
            value: entry.value()?,
            on_change,
        }))
    }
}
