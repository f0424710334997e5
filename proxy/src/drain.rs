//! **Purpose.** Stop taking new work, let the old finish, know when it has.
//!
//! **Shape.** One [`Drain`] a worker. Live work holds a [`Watch`]; [`Drain::start`] tells every watch, and
//! [`Drain::poll_empty`] is ready when the last watch is gone. All on one thread, but for the [`Load`] that a drain may
//! show: the number of its watches, and of [`Place`]s taken for work that is still on its way.
//!
//! **Cancel.** A dropped watch is forgotten at once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

/// The signalling end.
#[derive(Clone, Debug, Default)]
pub struct Drain(Rc<State>);

/// How much live work a drain has, for any thread to see. It has its cache lines to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Load(AtomicU32);

/// One piece of work that counts before its watch exists. It may cross threads.
#[derive(Debug)]
#[must_use = "it counts until it is dropped"]
pub struct Place(Arc<Load>);

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
    ended: Cell<u64>,
    /// A waker's place is its watch's key; places of dropped watches are in `free`.
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
    empty: RefCell<Option<Waker>>,
    shown: Option<Arc<Load>>,
}

impl Load {
    /// Watches and places.
    pub fn value(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one piece of work until the place is dropped.
    pub fn place(self: &Arc<Self>) -> Place {
        self.add_one();
        Place(self.clone())
    }

    // A count that others only compare: it orders nothing.
    fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn take_one(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.take_one();
    }
}

impl Drain {
    /// A drain whose watches count in `load`.
    pub fn showing(load: Arc<Load>) -> Self {
        Self(Rc::new(State { shown: Some(load), ..State::default() }))
    }

    /// A watch for one piece of work.
    pub fn watch(&self) -> Watch {
        self.0.live.set(self.0.live.get() + 1);
        if let Some(load) = &self.0.shown {
            load.add_one();
        }
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

    /// Watches that have been dropped since the beginning.
    pub fn ended(&self) -> u64 {
        self.0.ended.get()
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
        self.state.ended.set(self.state.ended.get().wrapping_add(1));
        if let Some(load) = &self.state.shown {
            load.take_one();
        }
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
    fn the_load_is_watches_and_places() {
        let load = Arc::<Load>::default();
        let drain = Drain::showing(load.clone());
        let place = load.place();
        let (a, b) = (drain.watch(), drain.watch());
        assert_eq!((load.value(), drain.live()), (3, 2));
        std::thread::spawn(move || drop(place)).join().unwrap();
        drop((a, b));
        assert_eq!((load.value(), drain.live(), drain.ended()), (0, 0, 2));
        assert_eq!(size_of::<Load>(), 128);
    }

    #[test]
    fn a_key_is_used_again() {
        let drain = Drain::default();
        for _ in 0..10 {
            drop(drain.watch());
        }
        assert_eq!(drain.0.wakers.borrow().len(), 1);
    }
}
