//! **Purpose.** How often one thread asks the allocator for memory.
//!
//! **Shape.** [`Counting`] is the system's allocator with a count per thread; a test binary makes it its global one. It
//! lies here because a global allocator is `unsafe` code, which has its place below `proxy/reactor` only; other crates'
//! tests take it in by its path.
//!
//! **Limits.** Frees are not counted: in a steady state they are as many as the allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static TRACED: Cell<u32> = const { Cell::new(0) };
}

/// The system's allocator, counted.
pub(crate) struct Counting;

/// Allocations and reallocations of this thread so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Prints where the next `count` allocations of this thread come from.
pub(crate) fn trace(count: u32) {
    TRACED.set(count);
}

fn count(bytes: usize) {
    // A thread that is ending has no count left, and nobody to read it.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
    let left = TRACED.try_with(|traced| traced.replace(0)).unwrap_or(0);
    if left > 0 {
        // Off while it is printed, since printing allocates.
        eprintln!("{bytes} bytes allocated at\n{}", Backtrace::force_capture());
        TRACED.set(left - 1);
    }
}

// SAFETY: every call is passed on to `System` with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}
