//! `session-state`: what a session leaves for the one that takes its place.

use super::HostState;
use super::bindings::throwbar::plugin::session_state::Host;

/// Most bytes that a session keeps.
pub(in crate::plugin) const STATE_BYTES_MAX: usize = 64 << 10;

impl Host for HostState {
    fn save(&mut self, state: Vec<u8>) -> wasmtime::Result<()> {
        if !self.in_session {
            wasmtime::bail!("state saved outside of a session");
        }
        if state.len() > STATE_BYTES_MAX {
            wasmtime::bail!(
                "state of {} bytes saved, at most {STATE_BYTES_MAX} are allowed",
                state.len()
            );
        }
        self.saved = Some(state.into());
        Ok(())
    }
}
