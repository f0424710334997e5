//! **Purpose.** Values from any thread into a task of a runtime.
//!
//! **Shape.** Many [`Sender`]s, one [`Mailbox`]; a send wakes the task that waits, which wakes its runtime.
//!
//! **Limits.** The queue itself has none: senders hold what they send to a known amount (a snapshot, a stop signal).
//!
//! **Cancel.** A value leaves the queue only in the poll that returns it.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::executor;

struct Post<T> {
    queue: VecDeque<T>,
    waker: Option<Waker>,
    senders: usize,
    is_open: bool,
}

fn lock<T>(post: &Mutex<Post<T>>) -> MutexGuard<'_, Post<T>> {
    // Nothing panics while the lock is held; a poisoned value is whole all the same.
    post.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A channel into a runtime from any thread; a send wakes the runtime.
pub fn mailbox<T: Send>() -> (Sender<T>, Mailbox<T>) {
    let post = Arc::new(Mutex::new(Post { queue: VecDeque::new(), waker: None, senders: 1, is_open: true }));
    (Sender { post: post.clone() }, Mailbox { post })
}

/// The sending end.
pub struct Sender<T> {
    post: Arc<Mutex<Post<T>>>,
}

impl<T: Send> Sender<T> {
    /// Err gives the value back when the mailbox is gone or closed.
    pub fn send(&self, value: T) -> Result<(), T> {
        let mut post = lock(&self.post);
        if !post.is_open {
            return Err(value);
        }
        post.queue.push_back(value);
        let waker = post.waker.take();
        drop(post);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        lock(&self.post).senders += 1;
        Self { post: self.post.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut post = lock(&self.post);
        post.senders -= 1;
        let waker = if post.senders == 0 { post.waker.take() } else { None };
        drop(post);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// The receiving end.
pub struct Mailbox<T> {
    post: Arc<Mutex<Post<T>>>,
}

impl<T: Send> Mailbox<T> {
    /// `None` when every sender is gone, or after a close. Cancel: loses nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            let core = executor::current();
            if core.as_ref().is_some_and(|core| core.is_share_spent(cx)) {
                return Poll::Pending;
            }
            let mut post = lock(&self.post);
            if let Some(value) = post.queue.pop_front() {
                if let Some(core) = core {
                    core.spend(1);
                }
                return Poll::Ready(Some(value));
            }
            if post.senders == 0 || !post.is_open {
                return Poll::Ready(None);
            }
            let stale = post.waker.replace(cx.waker().clone());
            drop(post);
            drop(stale);
            Poll::Pending
        })
        .await
    }

    /// Lets nothing more in and returns what is there: every value sent is either here, or was received before, or is
    /// given back to its sender.
    pub fn close(&mut self) -> VecDeque<T> {
        let mut post = lock(&self.post);
        post.is_open = false;
        std::mem::take(&mut post.queue)
    }

    /// The next value, if one is there.
    pub fn try_recv(&mut self) -> Option<T> {
        lock(&self.post).queue.pop_front()
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        let mut post = lock(&self.post);
        post.is_open = false;
        let left = std::mem::take(&mut post.queue);
        let waker = post.waker.take();
        drop(post);
        drop((left, waker));
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}
