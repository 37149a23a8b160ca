//! A setting of mimalloc, the programs' allocator.

use std::ffi::{c_int, c_long};

// Links the library that has the function below.
use mimalloc as _;

/// `mi_option_purge_delay` of `mimalloc.h`, 2.2 and 3.
const PURGE_DELAY: c_int = 15;

unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
}

/// Keeps freed memory for later allocations as long as the program runs: a training step frees and takes gigabytes,
/// and fresh pages, which the system has to clear, cost a fifth of its time.
pub fn keep_freed_memory() {
    // SAFETY: sets a number that mimalloc reads; its declaration is the header's.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
}
