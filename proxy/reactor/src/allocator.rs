//! **Purpose.** The system's allocator, and by thread the blocks that were freed last.
//!
//! **Shape.** A stream of HTTP/2 takes some fifteen blocks and gives them back, and a wake brings dozens of streams at
//! once: more than the C library keeps by thread (seven of a size in glibc, none above 1,032 bytes), so most of them were
//! merged with their neighbours and cut out again each time. [`Allocator`] keeps freed blocks on lists of the thread, one
//! for each of [`SIZES`] sizes up to 16 KiB, and hands out the one freed last, which is in the cache. Rust says the size of
//! what it frees, so a block needs no search. A program makes it its global allocator.
//!
//! **Limits.** Only threads inside of [`Runtime::block_on`](crate::Runtime::block_on) keep blocks, each
//! [`KEPT_BYTES`] at most; when for a second none was of use, [`TRIMMED`] of them a second are given back. A block is
//! up to 15 bytes larger than what was asked for, above a KiB up to an eighth.
//!
//! **Tests.** At the foot of this file; `proxy/tests/alloc.rs` counts what is asked of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::iter;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// What one thread keeps at most.
const KEPT_BYTES: usize = 2 * 1024 * 1024;
/// Blocks that one [`trim`] gives back: some tens of microseconds, for which whoever calls just then waits.
const TRIMMED: usize = 1024;
/// Sizes up to [`SMALL`] are this far apart; every block is aligned so.
const STEP: usize = align_of::<u128>();
const SMALL: usize = 1 << SMALL_BITS;
const SMALL_BITS: u32 = 10;
/// Larger requests are the system allocator's own: they are rare, and the largest a mapping each.
const LARGE: usize = 1 << LARGE_BITS;
const LARGE_BITS: u32 = 14;
/// Sizes in steps, then eight to each power of two.
const SIZES: usize = SMALL / STEP + EIGHTHS * (LARGE_BITS - SMALL_BITS) as usize;
const EIGHTHS: usize = 1 << EIGHTH_BITS;
const EIGHTH_BITS: u32 = 3;

/// Blocks of one size.
#[derive(Clone, Copy)]
struct Size {
    /// Their place among all [`SIZES`].
    index: usize,
    bytes: usize,
}

impl Size {
    /// What serves a request; nothing when the system's allocator serves it as it is.
    #[inline]
    fn of(layout: Layout) -> Option<Self> {
        let asked = layout.size();
        if asked == 0 || asked > LARGE || layout.align() > STEP {
            return None;
        }
        let last = asked - 1;
        Some(if asked <= SMALL {
            Self { index: last / STEP, bytes: (last / STEP + 1) * STEP }
        } else {
            // The top bits say which eighth of which power of two.
            let power = last.ilog2();
            let top = last >> (power - EIGHTH_BITS);
            let index = SMALL / STEP + EIGHTHS * (power - SMALL_BITS) as usize + (top - EIGHTHS);
            Self { index, bytes: (top + 1) << (power - EIGHTH_BITS) }
        })
    }

    fn at(index: usize) -> Self {
        let bytes = match index.checked_sub(SMALL / STEP) {
            None => (index + 1) * STEP,
            Some(above) => (EIGHTHS + above % EIGHTHS + 1) << (above / EIGHTHS + (SMALL_BITS - EIGHTH_BITS) as usize),
        };
        Self { index, bytes }
    }

    fn layout(self) -> Layout {
        // SAFETY: the alignment is a power of two, and the size a multiple of it of at most `LARGE`.
        unsafe { Layout::from_size_align_unchecked(self.bytes, STEP) }
    }
}

/// What a kept block holds: the one that was freed before it.
struct Free {
    next: Option<NonNull<Free>>,
}

/// The kept blocks of one thread. It has no destructor, so it can be used to the thread's very end.
struct Kept {
    lists: [Cell<Option<NonNull<Free>>>; SIZES],
    /// Bytes that may still be kept: none outside of all [`Keeping`]s.
    room: Cell<usize>,
    /// Whether a block was of use since the last [`trim`].
    is_used: Cell<bool>,
    /// How many [`Keeping`]s there are.
    depth: Cell<usize>,
}

thread_local! {
    static KEPT: Kept = const {
        Kept { lists: [const { Cell::new(None) }; SIZES], room: Cell::new(0), is_used: Cell::new(false), depth: Cell::new(0) }
    };
}

impl Kept {
    #[inline]
    fn take(&self, size: Size) -> Option<NonNull<u8>> {
        let list = &self.lists[size.index];
        let block = list.get()?;
        // SAFETY: a block on a list is nobody's, and begins with what `keep` wrote.
        list.set(unsafe { block.read() }.next);
        self.room.set(self.room.get() + size.bytes);
        self.is_used.set(true);
        Some(block.cast())
    }

    /// False when there is no room for it.
    ///
    /// # Safety
    /// The block is of this size, aligned to [`STEP`], and nobody uses it any more.
    #[inline]
    unsafe fn keep(&self, block: NonNull<u8>, size: Size) -> bool {
        let Some(room) = self.room.get().checked_sub(size.bytes) else {
            return false;
        };
        let list = &self.lists[size.index];
        let block = block.cast::<Free>();
        // SAFETY: no block is smaller or less aligned than what is written, and this one is ours.
        unsafe { block.write(Free { next: list.get() }) };
        list.set(Some(block));
        self.room.set(room);
        true
    }

    /// Gives back so many blocks, large ones first.
    fn release(&self, most: usize) {
        let kept =
            (0..SIZES).rev().map(Size::at).flat_map(|size| iter::from_fn(move || Some((self.take(size)?, size))));
        for (block, size) in kept.take(most) {
            // SAFETY: allocated by `System` with this layout, and nobody uses it.
            unsafe { System.dealloc(block.as_ptr(), size.layout()) };
        }
        self.is_used.set(false);
    }
}

/// While it lives, this thread keeps blocks. The last one gives them back.
pub(crate) struct Keeping(PhantomData<*const ()>);

impl Keeping {
    pub(crate) fn new() -> Self {
        KEPT.with(|kept| {
            if kept.depth.replace(kept.depth.get() + 1) == 0 {
                kept.room.set(KEPT_BYTES);
            }
        });
        Self(PhantomData)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        KEPT.with(|kept| {
            kept.depth.set(kept.depth.get() - 1);
            if kept.depth.get() == 0 {
                kept.release(usize::MAX);
                kept.room.set(0);
            }
        });
    }
}

/// Gives back some of what this thread keeps if none of it was of use since the last call.
pub(crate) fn trim() {
    KEPT.with(|kept| {
        if !kept.is_used.replace(false) {
            kept.release(TRIMMED);
        }
    });
}

/// The system's allocator, and before it what the thread has freed last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

// SAFETY: a request that has no `Size` goes to `System` as it came, and comes back so. One that has is served by a block
// that `System` allocated with that size's layout, which is no smaller and no less aligned; the block is with its owner, on
// the list of one thread, or given back to `System` with the same layout, since the size follows from the request alone.
unsafe impl GlobalAlloc for Allocator {
    // Hundreds of thousands of bytes of code more, were it copied to each place that allocates.
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(size) = Size::of(layout) else {
            // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
            return unsafe { System.alloc(layout) };
        };
        match KEPT.with(|kept| kept.take(size)) {
            Some(block) => block.as_ptr(),
            // SAFETY: the size is not zero.
            None => unsafe { System.alloc(size.layout()) },
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(size) = Size::of(layout) else {
            // SAFETY: `alloc` had it from `System` with this layout.
            return unsafe { System.dealloc(block, layout) };
        };
        // SAFETY: a block that is given back is not null; `alloc` made it of this size, and its owner is done with it.
        let is_kept = KEPT.with(|kept| unsafe { kept.keep(NonNull::new_unchecked(block), size) });
        if !is_kept {
            // SAFETY: `System` allocated it with this layout.
            unsafe { System.dealloc(block, size.layout()) };
        }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(size) = Size::of(layout) else {
            // SAFETY: the caller keeps the contract, which is that of `alloc`.
            return unsafe { System.alloc_zeroed(layout) };
        };
        match KEPT.with(|kept| kept.take(size)) {
            Some(block) => {
                // SAFETY: the block is ours and of at least so many bytes.
                unsafe { ptr::write_bytes(block.as_ptr(), 0, layout.size()) };
                block.as_ptr()
            }
            // SAFETY: the size is not zero. What the system has just mapped is zero, which it knows.
            None => unsafe { System.alloc_zeroed(size.layout()) },
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's size is not zero and does not overflow when rounded up to the alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        let moved = match (Size::of(layout), Size::of(wanted)) {
            // SAFETY: `System` allocated it with this layout.
            (None, None) => return unsafe { System.realloc(block, layout, bytes) },
            (Some(before), Some(after)) if before.index == after.index => return block,
            (Some(before), Some(after)) => match KEPT.with(|kept| kept.take(after)) {
                Some(moved) => moved.as_ptr(),
                // It may have room where it is. SAFETY: `System` allocated it with this layout.
                None => return unsafe { System.realloc(block, before.layout(), after.bytes) },
            },
            // SAFETY: as above.
            (None, Some(_)) | (Some(_), None) => unsafe { self.alloc(wanted) },
        };
        if !moved.is_null() {
            // SAFETY: two blocks, both of at least so many bytes; the old one is the caller's to give back.
            unsafe {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(bytes));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 8).unwrap()
    }

    fn kept() -> usize {
        KEPT.with(|kept| KEPT_BYTES - kept.room.get())
    }

    fn allocate(bytes: usize) -> *mut u8 {
        // SAFETY: not of zero bytes.
        unsafe { Allocator.alloc(layout(bytes)) }
    }

    fn free(block: *mut u8, bytes: usize) {
        // SAFETY: from `allocate` with so many bytes, and not used again.
        unsafe { Allocator.dealloc(block, layout(bytes)) };
    }

    #[test]
    fn each_request_has_the_smallest_size_that_holds_it() {
        for size in (0..SIZES).map(Size::at) {
            let fits = Size::of(layout(size.bytes)).unwrap();
            assert_eq!((fits.index, fits.bytes), (size.index, size.bytes));
            let next = Size::of(layout(size.bytes + 1));
            assert!(next.is_none_or(|next| next.index == size.index + 1 && next.bytes <= size.bytes / 8 * 9 + STEP));
            assert_eq!(next.is_none(), size.bytes == LARGE);
        }
        assert_eq!(Size::of(layout(1)).map(|size| size.bytes), Some(STEP));
        assert!(Size::of(Layout::from_size_align(64, 2 * STEP).unwrap()).is_none(), "aligned more than blocks are");
    }

    #[test]
    fn the_block_freed_last_is_the_next_one() {
        let _keeping = Keeping::new();
        for bytes in [1, 40, 1024, 1025, 3464, LARGE] {
            let (one, other) = (allocate(bytes), allocate(bytes));
            free(one, bytes);
            free(other, bytes);
            assert_eq!([allocate(bytes), allocate(bytes)], [other, one]);
            free(one, bytes);
            free(other, bytes);
        }
    }

    #[test]
    fn blocks_are_kept_inside_of_a_runtime_only_and_up_to_a_bound() {
        let fill = |count: usize| {
            let blocks: Vec<_> = (0..count).map(|_| allocate(LARGE)).collect();
            blocks.into_iter().for_each(|block| free(block, LARGE));
        };
        let without = KEPT.with(|kept| kept.room.get());
        fill(3);
        assert_eq!((without, KEPT.with(|kept| kept.room.get())), (0, 0));
        let outer = Keeping::new();
        let inner = Keeping::new();
        let listed = kept();
        fill(3);
        assert_eq!(kept() - listed, 3 * LARGE);
        drop(inner);
        assert_eq!(kept() - listed, 3 * LARGE, "the outer one keeps them");
        fill(KEPT_BYTES / LARGE + 50);
        assert!(kept() <= KEPT_BYTES);
        assert!(kept() > KEPT_BYTES - LARGE);
        drop(outer);
        assert_eq!(KEPT.with(|kept| kept.room.get()), 0);
        assert!(KEPT.with(|kept| kept.lists.iter().all(|list| list.get().is_none())));
    }

    #[test]
    fn what_was_of_no_use_is_given_back() {
        let _keeping = Keeping::new();
        free(allocate(LARGE), LARGE);
        free(allocate(LARGE), LARGE);
        trim();
        assert!(kept() >= LARGE, "it was used since the start");
        trim();
        assert_eq!(kept(), 0);
    }

    #[test]
    fn a_block_may_be_freed_by_another_thread() {
        let _keeping = Keeping::new();
        let block = allocate(500) as usize;
        let elsewhere = thread::spawn(move || {
            let _keeping = Keeping::new();
            free(block as *mut u8, 500);
            assert_eq!(allocate(500) as usize, block);
            free(block as *mut u8, 500);
        });
        elsewhere.join().unwrap();
    }

    #[test]
    fn zeroed_blocks_are_zero() {
        let _keeping = Keeping::new();
        for bytes in [24, 2000, LARGE + 1] {
            let block = allocate(bytes);
            // SAFETY: each of the three is of so many bytes.
            unsafe {
                block.write_bytes(0xff, bytes);
                free(block, bytes);
                let zeroed = Allocator.alloc_zeroed(layout(bytes));
                assert!(std::slice::from_raw_parts(zeroed, bytes).iter().all(|byte| *byte == 0));
                free(zeroed, bytes);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(usize),
        Resize(usize, usize),
        Free(usize),
        Trim,
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || prop_oneof![1usize..80, 900usize..1300, 4000usize..20_000];
        prop_oneof![
            4 => bytes().prop_map(Step::Allocate),
            2 => (any::<usize>(), bytes()).prop_map(|(which, bytes)| Step::Resize(which, bytes)),
            3 => any::<usize>().prop_map(Step::Free),
            1 => Just(Step::Trim),
        ]
    }

    /// A block and what it is filled with.
    struct Held {
        block: *mut u8,
        bytes: usize,
        mark: u8,
    }

    impl Held {
        fn fill(self) -> Self {
            // SAFETY: the block is ours and of so many bytes.
            unsafe { self.block.write_bytes(self.mark, self.bytes) };
            self
        }

        fn is_whole(&self, bytes: usize) -> bool {
            // SAFETY: as above; filled before.
            let content = unsafe { std::slice::from_raw_parts(self.block, bytes) };
            content.iter().all(|byte| *byte == self.mark)
        }
    }

    proptest! {
        #[test]
        fn no_block_is_handed_out_twice(steps in proptest::collection::vec(step(), 1..120)) {
            let _keeping = Keeping::new();
            let mut held: Vec<Held> = Vec::new();
            for (at, step) in steps.into_iter().enumerate() {
                let mark = at as u8;
                match step {
                    Step::Allocate(bytes) => held.push(Held { block: allocate(bytes), bytes, mark }.fill()),
                    Step::Resize(which, bytes) if !held.is_empty() => {
                        let one = held.swap_remove(which % held.len());
                        // SAFETY: a block of ours of so many bytes; it is not used again under its old address.
                        let block = unsafe { Allocator.realloc(one.block, layout(one.bytes), bytes) };
                        let moved = Held { block, bytes, mark: one.mark };
                        prop_assert!(moved.is_whole(one.bytes.min(bytes)));
                        held.push(moved.fill());
                    }
                    Step::Free(which) if !held.is_empty() => {
                        let one = held.swap_remove(which % held.len());
                        prop_assert!(one.is_whole(one.bytes));
                        free(one.block, one.bytes);
                    }
                    Step::Resize(..) | Step::Free(_) => {}
                    Step::Trim => trim(),
                }
            }
            for one in held {
                prop_assert!(one.is_whole(one.bytes));
                free(one.block, one.bytes);
            }
        }
    }
}
