//! An allocator that counts what the current thread has asked for.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a decoder may ask for besides a multiple of its input: error texts, and a tuple
/// of as many columns as a table can have.
pub const ALLOCATED_BYTES_BASE: usize = 256 << 10;
/// A cell of a tuple takes 40 bytes for one in the stream, and vectors grow by doubling.
pub const ALLOCATED_BYTES_PER_INPUT_BYTE: usize = 256;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

pub struct Counting;

// SAFETY: every call goes to the system's allocator, unchanged; counting allocates
// nothing, for the counter is a constant-initialised thread local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn count(bytes: usize) {
    // A thread that is ending counts for nobody.
    let _ = ALLOCATED.try_with(|sum| sum.set(sum.get().saturating_add(bytes)));
}

/// What this thread asks for meanwhile, all in all.
pub fn during<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.with(Cell::get);
    let done = work();
    (done, ALLOCATED.with(Cell::get) - before)
}

/// The most that may be asked for on behalf of an input.
pub fn limit(input_bytes: usize) -> usize {
    ALLOCATED_BYTES_BASE + ALLOCATED_BYTES_PER_INPUT_BYTE * input_bytes
}
