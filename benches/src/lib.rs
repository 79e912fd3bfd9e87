//! What benches share.

pub mod callgrind;
pub mod chats;
pub mod deploys;
pub mod doors;
pub mod load;
pub mod running;
pub mod wire;
