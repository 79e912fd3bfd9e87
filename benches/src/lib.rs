//! Benches.

pub mod doors;
