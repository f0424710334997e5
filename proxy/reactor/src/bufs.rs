//! **Purpose.** The queue of slices of one direction of a stream, without memory of its own while it is empty.
//!
//! **Shape.** A [`VecDeque`] that comes from a list of this thread with the first slice and goes back with the last:
//! thousands of idle connections hold none.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::ops::{Deref, DerefMut};

use crate::buffers::Buf;

/// Deques kept for the next queue, and the most slices that one of them has room for.
const KEPT: usize = 128;
const KEPT_SLICES: usize = 64;
/// Slices that a new deque has room for: a head and a few chunks in their frames.
pub(crate) const NEW_SLICES: usize = 16;

thread_local! {
    static KEPT_DEQUES: RefCell<Vec<VecDeque<Buf>>> = const { RefCell::new(Vec::new()) };
}

/// Slices in order.
#[derive(Default)]
pub(crate) struct Bufs(VecDeque<Buf>);

impl Bufs {
    fn make_room(&mut self) {
        if self.0.capacity() == 0 {
            // The thread may be ending and its list gone.
            let kept = KEPT_DEQUES.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
            self.0 = kept.unwrap_or_else(|| VecDeque::with_capacity(NEW_SLICES));
        }
    }

    pub(crate) fn push_back(&mut self, buf: Buf) {
        self.make_room();
        self.0.push_back(buf);
    }

    pub(crate) fn push_front(&mut self, buf: Buf) {
        self.make_room();
        self.0.push_front(buf);
    }

    pub(crate) fn pop_front(&mut self) -> Option<Buf> {
        let front = self.0.pop_front();
        self.rest();
        front
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
        self.rest();
    }

    /// Gives the memory back when nothing is in it.
    fn rest(&mut self) {
        if self.0.is_empty() && (1..=KEPT_SLICES).contains(&self.0.capacity()) {
            let deque = mem::take(&mut self.0);
            let _ = KEPT_DEQUES.try_with(|kept| {
                let mut kept = kept.borrow_mut();
                if kept.len() < KEPT {
                    kept.push(deque);
                }
            });
        }
    }
}

impl Deref for Bufs {
    type Target = VecDeque<Buf>;

    fn deref(&self) -> &VecDeque<Buf> {
        &self.0
    }
}

impl DerefMut for Bufs {
    fn deref_mut(&mut self) -> &mut VecDeque<Buf> {
        &mut self.0
    }
}

impl Drop for Bufs {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_holds_no_memory_and_the_next_gets_it() {
        let mut first = Bufs::default();
        first.push_back(Buf::from_static(b"a"));
        first.push_front(Buf::from_static(b"b"));
        let room = first.capacity();
        assert_eq!(first.pop_front().as_deref(), Some(&b"b"[..]));
        assert!(first.capacity() > 0);
        assert_eq!(first.pop_front().as_deref(), Some(&b"a"[..]));
        assert_eq!(first.capacity(), 0);
        let mut second = Bufs::default();
        second.push_back(Buf::from_static(b"c"));
        assert_eq!(second.capacity(), room);
        second.clear();
        assert_eq!(second.capacity(), 0);
    }
}
