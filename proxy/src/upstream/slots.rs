//! How many connections a cluster has open, over all workers, and who waits for one to close.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Poll, Waker};

/// One worker's hold on the count; clones are the same hold.
#[derive(Clone, Debug)]
pub struct Slots {
    taken: Arc<AtomicU32>,
    own: Rc<Own>,
}

#[derive(Debug, Default)]
struct Own {
    taken: Cell<u32>,
    waiting: RefCell<VecDeque<Rc<Turn>>>,
}

#[derive(Debug, Default)]
struct Turn {
    is_called: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// One open connection's place; freed on drop.
#[derive(Debug)]
pub struct Slot(Slots);

impl Slots {
    /// A worker's hold on a count that all workers share.
    pub fn new(taken: Arc<AtomicU32>) -> Self {
        Self { taken, own: Rc::default() }
    }

    /// A place, unless `max` are taken. A worker that has none gets one beyond the bound: it would else wait for others
    /// that need not tell it when they close (Envoy does the same).
    pub fn try_take(&self, max: u32) -> Option<Slot> {
        let has_none = self.own.taken.get() == 0;
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
            (taken < max || has_none).then(|| taken.saturating_add(1))
        });
        taken.ok().map(|_| {
            self.own.taken.set(self.own.taken.get() + 1);
            Slot(self.clone())
        })
    }

    /// Waits until a place of this worker was freed or one of its connections became idle. First come, first called.
    /// Cancel: the call goes to the next in line.
    pub async fn turn(&self) {
        let waiting = Waiting { turn: Rc::default(), slots: self };
        self.own.waiting.borrow_mut().push_back(waiting.turn.clone());
        poll_fn(|cx| {
            if waiting.turn.is_called.get() {
                return Poll::Ready(());
            }
            *waiting.turn.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        waiting.turn.is_called.set(false);
    }

    /// Calls the first in line.
    pub fn call_next(&self) {
        let next = self.own.waiting.borrow_mut().pop_front();
        if let Some(turn) = next {
            turn.is_called.set(true);
            if let Some(waker) = turn.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Places taken, by all workers.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }
}

struct Waiting<'a> {
    turn: Rc<Turn>,
    slots: &'a Slots,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.slots.own.waiting.borrow_mut().retain(|turn| !Rc::ptr_eq(turn, &self.turn));
        if self.turn.is_called.get() {
            self.slots.call_next();
        }
    }
}

impl Slot {
    /// Tells who waits that this connection became idle.
    pub fn call_next(&self) {
        self.0.call_next();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.own.taken.set(self.0.own.taken.get() - 1);
        self.0.call_next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn the_bound_holds_and_frees_on_drop() {
        let slots = Slots::new(Arc::default());
        let held: Vec<_> = (0..5).map_while(|_| slots.try_take(3)).collect();
        assert_eq!(held.len(), 3);
        drop(held);
        assert_eq!(slots.taken(), 0);
    }

    #[test]
    fn a_worker_without_connections_gets_one_beyond_the_bound() {
        let taken = Arc::new(AtomicU32::new(3));
        let slots = Slots::new(taken);
        let one = slots.try_take(3);
        assert!(one.is_some() && slots.try_take(3).is_none());
    }

    #[test]
    fn who_waits_is_called_in_order_and_a_call_to_the_dead_passes_on() {
        let mut cx = Context::from_waker(Waker::noop());
        let slots = Slots::new(Arc::default());
        let slot = slots.try_take(1).unwrap();
        let mut first = Box::pin(slots.turn());
        let mut second = pin!(slots.turn());
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        drop(slot);
        drop(first);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }
}
