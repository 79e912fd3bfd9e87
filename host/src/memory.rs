//! What this process asks of its allocator, glibc's. Others give memory back by themselves, and need no telling.

/// Free memory that a part of the heap keeps at its end, and the least block that is one of the system's own, in bytes.
const KEPT_MAX: i32 = 1 << 20;

/// Has little kept of what is freed. To be called at the start.
///
/// Each piece is joined to the free ones beside it when it is freed. Else glibc keeps small ones apart until some thread asks
/// for a large one: that thread then joins all of them, 0.25 µs each, while whoever else needs that part of the heap waits.
/// Once a million entries were freed, that was 0.7 s.
///
/// What is free at the end of a part of the heap goes back to the system beyond 1 MiB. Left to itself, glibc keeps up to
/// twice the largest block that was ever freed, 64 MiB at most, in each part (mallopt(3), M_MMAP_THRESHOLD), and malloc_trim
/// leaves that where it is: 327,680 entries of 200 bytes, set and deleted twice, left 98 MiB, and leave 3.
pub fn keep_little() {
    glibc::keep_little(KEPT_MAX);
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
    /// malloc.h: free bytes at the end of a part of the heap, from which on they are given back.
    const M_TRIM_THRESHOLD: c_int = -1;
    /// malloc.h: bytes from which on a block is mapped by itself.
    const M_MMAP_THRESHOLD: c_int = -3;

    unsafe extern "C" {
        /// malloc.h: sets a parameter; 0 if it cannot be that.
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
        /// malloc.h: gives free pages of every part of the heap back, but for `pad` bytes at its end.
        fn malloc_trim(pad: usize) -> c_int;
    }

    pub(super) fn keep_little(kept_max: c_int) {
        for (parameter, value) in [
            (M_MXFAST, 0),
            (M_TRIM_THRESHOLD, kept_max),
            (M_MMAP_THRESHOLD, kept_max),
        ] {
            // SAFETY: glibc's own function, under its own lock; pieces that are kept apart by now stay what they are.
            let _is_set = unsafe { mallopt(parameter, value) };
        }
    }

    pub(super) fn give_back() {
        // SAFETY: glibc's own function; it may be called by any thread at any time, and touches free memory only.
        let _gave_some = unsafe { malloc_trim(0) };
    }
}

#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn keep_little(_kept_max: i32) {}

    pub(super) fn give_back() {}
}
