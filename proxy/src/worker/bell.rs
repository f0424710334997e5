//! Rung by any thread, heard by one task of any executor.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A bell: however often it is rung before somebody listens, it is heard once.
#[derive(Debug, Default)]
pub struct Bell(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_rung: bool,
    waker: Option<Waker>,
}

impl Bell {
    /// Wakes who listens, now or next.
    pub fn ring(&self) {
        let mut state = self.lock();
        state.is_rung = true;
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Ends once it is rung, at once if it was since somebody last heard it. Cancel: it stays rung.
    pub async fn heard(&self) {
        poll_fn(|cx| self.poll_heard(cx)).await;
    }

    fn poll_heard(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if std::mem::take(&mut state.is_rung) {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; the state is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_bell_is_heard_once_whoever_came_first() {
        let (bell, woken) = (Bell::default(), Arc::<Woken>::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        bell.ring();
        bell.ring();
        assert!(pin!(bell.heard()).poll(&mut cx).is_ready());
        let mut listening = pin!(bell.heard());
        assert!(listening.as_mut().poll(&mut cx).is_pending());
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        bell.ring();
        bell.ring();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(listening.poll(&mut cx).is_ready());
        assert!(pin!(bell.heard()).poll(&mut cx).is_pending());
    }
}
