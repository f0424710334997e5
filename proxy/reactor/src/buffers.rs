//! **Purpose.** The receive pool, the provided-buffer ring over it, and [`Buf`], the slice that everything else holds.
//!
//! **Shape.** A [`Pool`] keeps free blocks as a stack: the block returned last, still in cache, is used first. A
//! [`Block`] is either on that stack, lent to the kernel through a [`BufferRing`], or behind one or more `Buf`s; the
//! last `Buf` to drop gives it back. A `Buf` that outlives its pool frees the block.
//! ```text
//!   free stack ──publish──► buffer ring ──completion──► Buf, Buf, … ──last drop──► free stack
//! ```
//!
//! **Limits.** `resting` blocks are kept; up to `limit` exist under load.
//!
//! **Tests.** Properties against `Vec` at the foot; exhaustion and outliving in `tests/conformance.rs`.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::io;
use std::mem;
use std::ops::{Bound, Deref, RangeBounds};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use io_uring::types::BufRingEntry;

/// Built vectors kept per thread for [`Buf::build`], and the most bytes one of them may hold.
const RECYCLED_VECTORS: usize = 64;
const RECYCLED_BYTES: usize = 32 * 1024;

thread_local! {
    static RECYCLED: RefCell<Vec<Rc<Vec<u8>>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a block before those that are received: room for what a head gains on its way (see [`Buf::prepend`]).
const HEADROOM: usize = 128;

/// One receive buffer. Whoever holds the only `Rc` may write it.
pub(crate) struct Block {
    id: u16,
    bytes: Box<[UnsafeCell<u8>]>,
    pool: Weak<Pool>,
}

impl Block {
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    /// Bytes that it receives.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - HEADROOM
    }

    /// Where they are received.
    pub(crate) fn start(&self) -> *mut u8 {
        // SAFETY: every block is made with its headroom.
        unsafe { self.base().add(HEADROOM) }
    }

    fn base(&self) -> *mut u8 {
        UnsafeCell::raw_get(self.bytes.as_ptr())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.vacant.borrow_mut().push(self.id);
            pool.live.set(pool.live.get() - 1);
        }
    }
}

/// The blocks of one runtime.
pub(crate) struct Pool {
    this: Weak<Pool>,
    free: RefCell<Vec<Rc<Block>>>,
    vacant: RefCell<Vec<u16>>,
    live: Cell<usize>,
    lent: Cell<usize>,
    next_id: Cell<u16>,
    resting: usize,
    limit: usize,
    block_bytes: usize,
}

impl Pool {
    pub(crate) fn new(resting: u16, limit: u16, block_bytes: usize) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            free: RefCell::new(Vec::with_capacity(usize::from(resting))),
            vacant: RefCell::default(),
            live: Cell::new(0),
            lent: Cell::new(0),
            next_id: Cell::new(0),
            resting: usize::from(resting),
            limit: usize::from(limit.max(resting)),
            block_bytes,
        })
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// A block to fill, or `None` when `limit` blocks are in use.
    pub(crate) fn take(&self) -> Option<Rc<Block>> {
        if let Some(block) = self.free.borrow_mut().pop() {
            return Some(block);
        }
        if self.live.get() >= self.limit {
            return None;
        }
        let id = self.vacant.borrow_mut().pop().unwrap_or_else(|| {
            let id = self.next_id.get();
            self.next_id.set(id + 1);
            id
        });
        self.live.set(self.live.get() + 1);
        let bytes = (0..HEADROOM + self.block_bytes).map(|_| UnsafeCell::new(0)).collect();
        Some(Rc::new(Block { id, bytes, pool: self.this.clone() }))
    }

    /// Takes a block back. Its `Rc` must be the only one.
    pub(crate) fn give(&self, block: Rc<Block>) {
        debug_assert_eq!(Rc::strong_count(&block), 1);
        self.free.borrow_mut().push(block);
    }

    /// Frees a quarter of what lies unused beyond the resting number, coldest first. Called once in a while: a load
    /// that swings around the resting number must not allocate each time.
    pub(crate) fn trim(&self) {
        let mut free = self.free.borrow_mut();
        let excess = self.live.get().saturating_sub(self.resting).min(free.len());
        let parted: Vec<_> = free.drain(..excess.div_ceil(4)).collect();
        drop(free);
        drop(parted);
    }

    /// Blocks that [`Pool::take`] would still give.
    pub(crate) fn available(&self) -> usize {
        self.free.borrow().len() + self.limit.saturating_sub(self.live.get())
    }

    /// Blocks behind `Buf`s.
    pub(crate) fn in_use(&self) -> usize {
        self.live.get() - self.free.borrow().len() - self.lent.get()
    }

    /// True when so many blocks are held that each stream must do with fewer.
    pub(crate) fn is_pressed(&self) -> bool {
        self.in_use() > self.limit / 2
    }
}

/// The blocks that the kernel may fill, in a ring it shares with us.
///
/// Few blocks are published at a time, so that the hottest are reused; the number doubles when it proves too small.
pub(crate) struct BufferRing {
    base: NonNull<BufRingEntry>,
    mask: u16,
    tail: u16,
    lent: Vec<Option<Rc<Block>>>,
    published: usize,
    target: usize,
    is_too_narrow: bool,
    pool: Rc<Pool>,
}

/// Published blocks at the start and after a long quiet time.
const PUBLISHED_AT_REST: usize = 16;

impl BufferRing {
    /// Maps a ring for every block that `pool` may have.
    pub(crate) fn map(pool: Rc<Pool>) -> io::Result<Self> {
        let entries = pool.limit().next_power_of_two();
        // SAFETY: an anonymous private mapping of a non-zero length touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * mem::size_of::<BufRingEntry>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            base,
            mask: (entries - 1) as u16,
            tail: 0,
            lent: vec![None; pool.limit()],
            published: 0,
            target: PUBLISHED_AT_REST.min(pool.resting),
            is_too_narrow: false,
            pool,
        })
    }

    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    pub(crate) fn entries(&self) -> u16 {
        self.mask + 1
    }

    pub(crate) fn published(&self) -> usize {
        self.published
    }

    /// The kernel found the ring empty: publish more from the next fill on.
    pub(crate) fn widen(&mut self) {
        self.is_too_narrow |= self.published == 0;
    }

    /// A long time passed: publish fewer from now on.
    pub(crate) fn narrow(&mut self) {
        self.target = (self.target * 3 / 4).max(PUBLISHED_AT_REST.min(self.pool.resting));
    }

    /// Publishes blocks up to the target, hottest first.
    pub(crate) fn fill(&mut self) {
        if mem::take(&mut self.is_too_narrow) {
            // Once a turn, however many streams found nothing; and no more than a cache holds.
            self.target = (self.target * 2).min(self.pool.resting);
        }
        if self.published >= self.target {
            return;
        }
        let before = self.tail;
        while self.published < self.target {
            let Some(block) = self.pool.take() else { break };
            let at = usize::from(self.tail & self.mask);
            // SAFETY: `at` is within the mapping, and the kernel reads an entry only once the tail below passes it.
            let entry = unsafe { &mut *self.base.as_ptr().add(at) };
            entry.set_addr(block.start() as u64);
            entry.set_len(block.len() as u32);
            entry.set_bid(block.id());
            let id = usize::from(block.id());
            self.lent[id] = Some(block);
            self.tail = self.tail.wrapping_add(1);
            self.published += 1;
            self.pool.lent.set(self.pool.lent.get() + 1);
        }
        if self.tail == before {
            return;
        }
        // SAFETY: the tail lies in the mapping's first entry, aligned to two bytes, and only this thread stores it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.base.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Takes block `id`, which the kernel has filled with `len` bytes.
    pub(crate) fn claim(&mut self, id: u16, len: usize) -> Option<Buf> {
        let block = self.lent.get_mut(usize::from(id))?.take()?;
        self.published -= 1;
        self.pool.lent.set(self.pool.lent.get() - 1);
        Some(Buf::pooled(block, len))
    }

    /// Gives up the mapping and every published block without freeing them: for a ring that would not stop.
    pub(crate) fn leak(&mut self) {
        for block in self.lent.drain(..).flatten() {
            mem::forget(block);
        }
        self.mask = 0;
        self.published = usize::MAX;
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        if self.published == usize::MAX {
            return;
        }
        for block in self.lent.drain(..).flatten() {
            self.pool.lent.set(self.pool.lent.get() - 1);
            self.pool.give(block);
        }
        let bytes = usize::from(self.mask + 1) * mem::size_of::<BufRingEntry>();
        // SAFETY: this is the mapping made in `map`; the io_uring that knew it is closed or has no operation left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}

/// What keeps the bytes of a [`Buf`] where they are.
#[derive(Clone)]
enum Owner {
    Static,
    /// Kept until the last slice drops; the vector grows no more.
    Built(Rc<Vec<u8>>),
    Pooled(Rc<Block>),
    /// Behind an `Rc`: it is larger than the others, and rare.
    Shared(#[expect(dead_code, reason = "kept for its bytes, which `start` points to")] Rc<Bytes>),
}

/// A reference-counted slice of bytes: a block of the receive pool, a built `Vec`, shared [`Bytes`], or a static. `!Send`. Clone and
/// slice copy no byte.
#[derive(Clone)]
pub struct Buf {
    /// The first byte. It lies beside the owner, not behind it: bytes are looked at far more often than owners change.
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

impl Buf {
    /// No bytes.
    pub const fn new() -> Self {
        Self::from_static(&[])
    }

    /// Static bytes.
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { start: first_of(bytes), len: bytes.len(), owner: Owner::Static }
    }

    /// Fills a recycled vector, which `fill` finds empty: no allocation at steady state.
    pub fn build(fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut shared = RECYCLED.try_with(|recycled| recycled.borrow_mut().pop()).ok().flatten().unwrap_or_default();
        if let Some(bytes) = Rc::get_mut(&mut shared) {
            fill(bytes);
        }
        Self::built(shared)
    }

    /// A part of these bytes, by reference. Panics when the range is not within them.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let from = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&at) => at + 1,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.len,
        };
        assert!(from <= to && to <= self.len, "slice {from}..{to} of {} bytes", self.len);
        let mut part = self.clone();
        part.truncate(to);
        part.advance(from);
        part
    }

    /// Takes the first `at` bytes off the front and returns them. Panics when there are fewer.
    pub fn split_to(&mut self, at: usize) -> Self {
        if at == self.len {
            return mem::take(self);
        }
        let front = self.slice(..at);
        self.advance(at);
        front
    }

    /// Drops the first `count` bytes. Panics when there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "advance by {count} of {} bytes", self.len);
        // SAFETY: at most one past the last of the bytes that the owner keeps.
        self.start = unsafe { self.start.add(count) };
        self.len -= count;
    }

    /// Keeps the first `len` bytes, or all when there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// True when the bytes lie in the receive pool: long-term holders copy them out.
    pub fn is_pooled(&self) -> bool {
        matches!(self.owner, Owner::Pooled(_))
    }

    /// True when the bytes were written here, not received.
    pub(crate) fn is_built(&self) -> bool {
        matches!(self.owner, Owner::Built(_))
    }

    /// Copies `bytes` in front of these, where the block has room there that no other slice can see; false when not.
    pub(crate) fn prepend(&mut self, bytes: &[u8]) -> bool {
        let Owner::Pooled(block) = &self.owner else { return false };
        let room = self.start.as_ptr().addr() - block.base().addr();
        if room < bytes.len() || Rc::strong_count(block) != 1 {
            return false;
        }
        // SAFETY: the room lies in the block before `start`. This is the block's only `Rc`, so that nobody else reads or
        // writes it, and `bytes` lie elsewhere.
        unsafe {
            self.start = self.start.sub(bytes.len());
            self.start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        self.len += bytes.len();
        true
    }

    pub(crate) fn pooled(block: Rc<Block>, len: usize) -> Self {
        debug_assert!(len <= block.len());
        let len = len.min(block.len());
        // SAFETY: a block lies at an address, even one of no bytes.
        let start = unsafe { NonNull::new_unchecked(block.start()) };
        Self { start, len, owner: Owner::Pooled(block) }
    }

    pub(crate) fn built(bytes: Rc<Vec<u8>>) -> Self {
        Self { start: first_of(&bytes), len: bytes.len(), owner: Owner::Built(bytes) }
    }
}

/// Where bytes start; dangling for none, which reading none allows.
const fn first_of(bytes: &[u8]) -> NonNull<u8> {
    // SAFETY: a reference is not null.
    unsafe { NonNull::new_unchecked(bytes.as_ptr().cast_mut()) }
}

impl Drop for Buf {
    fn drop(&mut self) {
        match mem::replace(&mut self.owner, Owner::Static) {
            Owner::Static => {}
            owner => part_with(owner),
        }
    }
}

/// In one place: slices are dropped in a hundred.
#[inline(never)]
fn part_with(owner: Owner) {
    match owner {
        Owner::Static | Owner::Shared(_) => {}
        Owner::Built(bytes) => recycle(bytes),
        Owner::Pooled(block) => {
            if Rc::strong_count(&block) == 1
                && let Some(pool) = block.pool.upgrade()
            {
                pool.give(block);
            }
        }
    }
}

fn recycle(mut shared: Rc<Vec<u8>>) {
    let Some(bytes) = Rc::get_mut(&mut shared) else {
        return;
    };
    if bytes.capacity() == 0 || bytes.capacity() > RECYCLED_BYTES {
        return;
    }
    bytes.clear();
    // The thread may be ending and its list gone: the vector is then freed.
    let _ = RECYCLED.try_with(|recycled| {
        let mut recycled = recycled.borrow_mut();
        if recycled.len() < RECYCLED_VECTORS {
            recycled.push(shared);
        }
    });
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` are a part of what the owner keeps where it is, initialised (a block is zeroed when it
        // is allocated). Nobody writes it: a vector is changed, and a block published again, only once no `Buf` holds it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Default for Buf {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Vec<u8>> for Buf {
    fn from(bytes: Vec<u8>) -> Self {
        Self::built(Rc::new(bytes))
    }
}

impl From<Bytes> for Buf {
    fn from(bytes: Bytes) -> Self {
        Self { start: first_of(&bytes), len: bytes.len(), owner: Owner::Shared(Rc::new(bytes)) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = match self.owner {
            Owner::Static => "static",
            Owner::Built(_) => "built",
            Owner::Pooled(_) => "pooled",
            Owner::Shared(_) => "shared",
        };
        write!(f, "Buf({owner}, {} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pooled(pool: &Rc<Pool>, bytes: &[u8]) -> Buf {
        let block = pool.take().unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: the block was just taken, so nobody else sees it, and `bytes` fits.
            unsafe { block.start().add(at).write(*byte) };
        }
        Buf::pooled(block, bytes.len())
    }

    #[derive(Clone, Debug)]
    enum Step {
        Advance(usize),
        CloneAndDrop,
        Slice(usize, usize),
        SplitTo(usize),
        Truncate(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..80).prop_map(Step::Advance),
            Just(Step::CloneAndDrop),
            (0usize..80, 0usize..80).prop_map(|(a, b)| Step::Slice(a.min(b), a.max(b))),
            (0usize..80).prop_map(Step::SplitTo),
            (0usize..80).prop_map(Step::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            kind in 0..2,
            steps in proptest::collection::vec(step(), 0..40),
        ) {
            let pool = Pool::new(1, 1, 64);
            let mut buf = match kind {
                0 => Buf::from(bytes.clone()),
                _ => pooled(&pool, &bytes),
            };
            let mut oracle = bytes;
            let mut parts: Vec<(Buf, Vec<u8>)> = Vec::new();
            for step in steps {
                match step {
                    Step::Advance(count) if count <= oracle.len() => {
                        buf.advance(count);
                        oracle.drain(..count);
                    }
                    Step::CloneAndDrop => drop(buf.clone()),
                    Step::Slice(from, to) if to <= oracle.len() => {
                        parts.push((buf.slice(from..to), oracle[from..to].to_vec()));
                    }
                    Step::SplitTo(at) if at <= oracle.len() => {
                        parts.push((buf.split_to(at), oracle.drain(..at).collect()));
                    }
                    Step::Truncate(len) => {
                        buf.truncate(len);
                        oracle.truncate(len);
                    }
                    _ => {}
                }
                prop_assert_eq!(&*buf, &oracle[..]);
            }
            for (part, expected) in &parts {
                prop_assert_eq!(&**part, &expected[..]);
            }
            let is_pooled = buf.is_pooled() || parts.iter().any(|(part, _)| part.is_pooled());
            prop_assert_eq!(pool.in_use(), usize::from(is_pooled));
            drop(buf);
            drop(parts);
            prop_assert_eq!(pool.in_use(), 0);
        }
    }

    #[test]
    fn the_block_returned_last_is_taken_first() {
        let pool = Pool::new(4, 4, 64);
        let blocks: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        for block in blocks {
            pool.give(block);
        }
        assert_eq!(pool.take().unwrap().id(), 2);
    }

    #[test]
    fn load_takes_blocks_up_to_the_limit_and_gives_memory_back() {
        let pool = Pool::new(2, 5, 64);
        let held: Vec<_> = (0..5).map(|_| Buf::pooled(pool.take().unwrap(), 1)).collect();
        assert!(pool.take().is_none());
        assert!(pool.is_pressed());
        assert_eq!(pool.available(), 0);
        drop(held);
        assert_eq!(pool.live.get(), 5, "a swing of load allocates once");
        for left in [4, 3, 2, 2] {
            pool.trim();
            assert_eq!(pool.live.get(), left, "a quarter at a time, down to the resting number");
        }
        let again: Vec<_> = (0..5).map(|_| pool.take().unwrap()).collect();
        let mut ids: Vec<_> = again.iter().map(|block| block.id()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3, 4], "identifiers are reused and unique");
    }

    #[test]
    fn bytes_go_in_front_only_where_nobody_can_see() {
        let pool = Pool::new(2, 2, 64);
        let mut body = pooled(&pool, b"old head, body");
        let head = body.split_to(10);
        assert!(!body.prepend(b"new head: "), "the old one is still read");
        drop(head);
        assert!(body.prepend(b"a longer head: "));
        assert_eq!(&*body, b"a longer head: body");
        let room = HEADROOM + 10 - 15;
        assert!(!body.prepend(&vec![b'>'; room + 1]));
        assert!(body.prepend(&vec![b'>'; room]) && !body.prepend(b">"));
        assert_eq!((&body[..room], &body[room..]), (&vec![b'>'; room][..], &b"a longer head: body"[..]));
        let mut built = Buf::from(b"abc".to_vec());
        built.advance(2);
        assert!(!built.prepend(b"x") && built.is_built() && !body.is_built());
    }

    #[test]
    fn a_slice_outlives_its_pool() {
        let pool = Pool::new(1, 1, 64);
        let mut buf = pooled(&pool, b"hello, world");
        let tail = buf.slice(7..);
        drop(pool);
        assert_eq!(&*buf.split_to(5), b"hello");
        drop(buf);
        assert_eq!(&*tail, b"world");
    }

    #[test]
    fn built_vectors_are_recycled() {
        let first = Buf::build(|bytes| bytes.extend_from_slice(b"abc"));
        let at = first.as_ptr();
        drop(first);
        let second = Buf::build(|bytes| {
            assert!(bytes.is_empty());
            bytes.extend_from_slice(b"de");
        });
        assert_eq!(second.as_ptr(), at);
        assert_eq!(&*second, b"de");
    }

    #[test]
    #[should_panic(expected = "slice 2..9 of 3 bytes")]
    fn a_slice_past_the_end_names_the_lengths() {
        let _ = Buf::from_static(b"abc").slice(2..9);
    }
}
