//! One read buffer for each worker thread: what arrives is copied out in its exact size, so that no connection holds a
//! buffer while it waits.

use std::cell::RefCell;

/// Its size, in bytes.
pub const BYTES: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BYTES].into_boxed_slice());
}

/// Lends the buffer for one read.
pub fn with<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| read(scratch))
}
