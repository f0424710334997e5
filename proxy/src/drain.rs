//! **Purpose.** Stop taking new work, let the old finish, know when it has.
//!
//! **Shape.** One [`Drain`] a worker. Live work holds a [`Watch`]; [`Drain::start`] tells every watch, and
//! [`Drain::poll_empty`] is ready when the last watch is gone. All on one thread.
//!
//! **Cancel.** A dropped watch is forgotten at once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The signalling end.
#[derive(Clone, Debug, Default)]
pub struct Drain(Rc<State>);

/// The watching end: one piece of live work.
#[derive(Debug)]
#[must_use = "work without a watch is not waited for"]
pub struct Watch {
    state: Rc<State>,
    key: usize,
}

#[derive(Debug, Default)]
struct State {
    started: Cell<bool>,
    live: Cell<usize>,
    /// A waker's place is its watch's key; places of dropped watches are in `free`.
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
    empty: RefCell<Option<Waker>>,
}

impl Drain {
    /// A watch for one piece of work.
    pub fn watch(&self) -> Watch {
        self.0.live.set(self.0.live.get() + 1);
        let key = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut wakers = self.0.wakers.borrow_mut();
            wakers.push(None);
            wakers.len() - 1
        });
        Watch { state: self.0.clone(), key }
    }

    /// Tells every watch. Later calls change nothing.
    pub fn start(&self) {
        if self.0.started.replace(true) {
            return;
        }
        let told: Vec<Waker> = self.0.wakers.borrow_mut().iter_mut().filter_map(Option::take).collect();
        told.into_iter().for_each(Waker::wake);
    }

    /// True once [`Drain::start`] was called.
    pub fn is_started(&self) -> bool {
        self.0.started.get()
    }

    /// Watches alive.
    pub fn live(&self) -> usize {
        self.0.live.get()
    }

    /// Ready when no watch is alive. One task at a time may wait.
    pub fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.live.get() == 0 {
            return Poll::Ready(());
        }
        *self.0.empty.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Watch {
    /// Ready once the drain has started.
    pub fn poll_started(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.started.get() {
            return Poll::Ready(());
        }
        if let Some(place) = self.state.wakers.borrow_mut().get_mut(self.key) {
            match place {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *place = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }

    /// True once the drain has started.
    pub fn is_started(&self) -> bool {
        self.state.started.get()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(place) = self.state.wakers.borrow_mut().get_mut(self.key) {
            *place = None;
        }
        self.state.free.borrow_mut().push(self.key);
        let live = self.state.live.get() - 1;
        self.state.live.set(live);
        if live == 0
            && let Some(waker) = self.state.empty.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_hears_the_start_and_the_drain_hears_the_end() {
        let mut cx = Context::from_waker(Waker::noop());
        let drain = Drain::default();
        let (a, b) = (drain.watch(), drain.watch());
        assert!(a.poll_started(&mut cx).is_pending());
        drain.start();
        assert!(a.poll_started(&mut cx).is_ready() && b.is_started());
        assert!(drain.poll_empty(&mut cx).is_pending());
        drop(a);
        assert_eq!(drain.live(), 1);
        drop(b);
        assert!(drain.poll_empty(&mut cx).is_ready());
    }

    #[test]
    fn a_place_is_used_again() {
        let drain = Drain::default();
        for _ in 0..10 {
            drop(drain.watch());
        }
        assert_eq!(drain.0.wakers.borrow().len(), 1);
    }
}
