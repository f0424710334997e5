//! **Purpose.** The queue of slices of one direction of a stream, without memory of its own while it is empty.
//!
//! **Shape.** The first slice lies in the queue itself, which is all that most messages have. What follows it lies in a
//! [`VecDeque`] that comes from a list of this thread with the second slice and goes back with the last: thousands of
//! idle connections hold none.

use std::cell::RefCell;
use std::collections::VecDeque;

use crate::buffers::Buf;

/// Deques kept for the next queue, and the most slices that one of them has room for.
const KEPT: usize = 128;
const KEPT_SLICES: usize = 64;
/// Slices that a new deque has room for: a head and a few chunks in their frames.
pub(crate) const NEW_SLICES: usize = 16;

/// Behind a pointer: a queue is part of every connection, and seldom has a second slice.
type More = Box<VecDeque<Buf>>;

thread_local! {
    static KEPT_DEQUES: RefCell<Vec<More>> = const { RefCell::new(Vec::new()) };
}

/// Slices in order.
#[derive(Default)]
pub(crate) struct Bufs {
    /// There whenever anything is.
    first: Option<Buf>,
    /// Never empty.
    more: Option<More>,
}

impl Bufs {
    pub(crate) fn push_back(&mut self, buf: Buf) {
        if self.first.is_none() {
            self.first = Some(buf);
        } else {
            self.more.get_or_insert_with(take_deque).push_back(buf);
        }
    }

    pub(crate) fn push_front(&mut self, buf: Buf) {
        if let Some(second) = self.first.replace(buf) {
            self.more.get_or_insert_with(take_deque).push_front(second);
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<Buf> {
        let first = self.first.take()?;
        if let Some(more) = &mut self.more {
            self.first = more.pop_front();
            if more.is_empty() {
                self.more.take().into_iter().for_each(keep_deque);
            }
        }
        Some(first)
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut Buf> {
        self.first.as_mut()
    }

    /// The slice, when there is just one.
    pub(crate) fn only(&self) -> Option<&Buf> {
        self.first.as_ref().filter(|_| self.more.is_none())
    }

    /// As [`Bufs::only`].
    pub(crate) fn only_mut(&mut self) -> Option<&mut Buf> {
        self.first.as_mut().filter(|_| self.more.is_none())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Buf> {
        self.first.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.as_ref().map_or(0, |more| more.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn clear(&mut self) {
        self.first = None;
        self.more.take().into_iter().for_each(keep_deque);
    }
}

fn take_deque() -> More {
    // The thread may be ending and its list gone.
    let kept = KEPT_DEQUES.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
    kept.unwrap_or_else(|| Box::new(VecDeque::with_capacity(NEW_SLICES)))
}

fn keep_deque(mut more: More) {
    more.clear();
    if more.capacity() > KEPT_SLICES {
        return;
    }
    let _ = KEPT_DEQUES.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT {
            kept.push(more);
        }
    });
}

impl Drop for Bufs {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kept() -> usize {
        KEPT_DEQUES.with(|kept| kept.borrow().len())
    }

    #[test]
    fn an_empty_queue_holds_no_memory_and_the_next_gets_it() {
        let mut first = Bufs::default();
        first.push_back(Buf::from_static(b"a"));
        assert!(first.more.is_none() && first.only().is_some());
        first.push_front(Buf::from_static(b"b"));
        assert!(first.more.is_some() && first.only().is_none());
        assert_eq!(first.pop_front().as_deref(), Some(&b"b"[..]));
        assert!(first.more.is_none() && kept() == 1);
        assert_eq!(first.pop_front().as_deref(), Some(&b"a"[..]));
        let mut second = Bufs::default();
        (0..2).for_each(|_| second.push_back(Buf::from_static(b"c")));
        assert_eq!(kept(), 0);
        drop(second);
        assert_eq!(kept(), 1);
    }

    proptest! {
        #[test]
        fn behaves_like_a_deque(steps in proptest::collection::vec((0..4, 0..200usize), 0..60)) {
            static BYTES: [u8; 200] = [7; 200];
            let mut bufs = Bufs::default();
            let mut oracle = VecDeque::new();
            for (step, len) in steps {
                let buf = Buf::from_static(&BYTES[..len]);
                match step {
                    0 => {
                        bufs.push_back(buf);
                        oracle.push_back(len);
                    }
                    1 => {
                        bufs.push_front(buf);
                        oracle.push_front(len);
                    }
                    _ => prop_assert_eq!(bufs.pop_front().map(|buf| buf.len()), oracle.pop_front()),
                }
                let lens: Vec<usize> = bufs.iter().map(|buf| buf.len()).collect();
                prop_assert_eq!(&lens, &Vec::from(oracle.clone()));
                prop_assert_eq!((bufs.len(), bufs.is_empty()), (oracle.len(), oracle.is_empty()));
                prop_assert_eq!(bufs.front_mut().map(|buf| buf.len()), oracle.front().copied());
            }
        }
    }
}
