//! Plugins built into the binary.

/// Names of the plugins built in.
pub const NAMES: &[&str] = &[];

/// The component of a built-in plugin.
pub fn component(_name: &str) -> Option<&'static [u8]> {
    None
}
