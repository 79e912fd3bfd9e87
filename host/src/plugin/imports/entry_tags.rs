//! `entry-tags`: what a typed record says beside its addresses.

use super::bindings::throwbar::plugin::entry_tags::Host;
use super::{HostState, Resolved};
use crate::store::TypedRecord;

impl Host for HostState {
    fn get(&mut self, entry: u32, name: String) -> wasmtime::Result<Option<String>> {
        let record = self.handed_out(entry)?.record();
        Ok(record
            .and_then(|record| record.tag(&name))
            .map(str::to_owned))
    }

    fn all(&mut self, entry: u32) -> wasmtime::Result<Vec<(String, String)>> {
        let tags = self.handed_out(entry)?.record().map(TypedRecord::tags);
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Ok(tags.map_or_else(Vec::new, |tags| tags.map(owned).collect()))
    }
}

impl HostState {
    /// What a handle stands for, which stays the guest's.
    fn handed_out(&self, handle: u32) -> wasmtime::Result<&Resolved> {
        let index = (handle as usize).checked_sub(1);
        let entry = index.and_then(|index| self.entries.get(index));
        entry.ok_or_else(|| {
            wasmtime::format_err!("entry {handle} is no handle of this call's lookups")
        })
    }
}
