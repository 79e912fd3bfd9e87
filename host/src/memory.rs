//! What this process asks of its allocator, glibc's. Others give memory back by themselves, and need no telling.

/// Has each piece of memory joined to the free ones beside it when it is freed. Else glibc keeps small ones apart until some
/// thread asks for a large one: that thread then joins all of them, 0.25 µs each, while whoever else needs that part of the
/// heap waits. Once a million entries were freed, that was 0.7 s.
pub fn join_freed_at_once() {
    glibc::join_freed_at_once();
}

/// Gives free memory back to the system; some milliseconds for each 100 MiB. Other threads wait for it only to allocate in the
/// part of the heap that is being looked at, and theirs are small.
pub(crate) fn give_back() {
    glibc::give_back();
}

#[cfg(target_env = "gnu")]
mod glibc {
    use std::ffi::c_int;

    /// malloc.h: the largest piece that is kept apart, in bytes.
    const M_MXFAST: c_int = 1;

    unsafe extern "C" {
        /// malloc.h: sets a parameter; 0 if it cannot be that.
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
        /// malloc.h: gives free pages of every part of the heap back, but for `pad` bytes at its end.
        fn malloc_trim(pad: usize) -> c_int;
    }

    pub(super) fn join_freed_at_once() {
        // SAFETY: glibc's own function, under its own lock; pieces that are kept apart by now stay what they are.
        let _is_set = unsafe { mallopt(M_MXFAST, 0) };
    }

    pub(super) fn give_back() {
        // SAFETY: glibc's own function; it may be called by any thread at any time, and touches free memory only.
        let _gave_some = unsafe { malloc_trim(0) };
    }
}

#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn join_freed_at_once() {}

    pub(super) fn give_back() {}
}
