//! **Purpose.** A future that waits in memory used over and over, not in the future that awaits it.
//!
//! **Shape.** An async function is as large as the largest thing it awaits, always. [`nest`] puts a large and rare one
//! behind a pointer, so that a task which mostly waits for something small is small. The memory comes from and goes back
//! to a list of this thread: no allocation at steady state.
//!
//! **Limits.** [`KEPT`] places of each size are kept.
//!
//! **Cancel.** Dropping it drops the future.

use std::alloc::{self, Layout};
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// Places of one size that are kept for the next.
const KEPT: usize = 64;

/// Places not in use, by what fits them.
#[derive(Default)]
struct Places(Vec<(Layout, Vec<NonNull<u8>>)>);

thread_local! {
    static PLACES: RefCell<Places> = const { RefCell::new(Places(Vec::new())) };
}

impl Places {
    fn of(&mut self, layout: Layout) -> &mut Vec<NonNull<u8>> {
        let at = self.0.iter().position(|(known, _)| *known == layout).unwrap_or_else(|| {
            self.0.push((layout, Vec::with_capacity(KEPT)));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for (layout, places) in &mut self.0 {
            for place in places.drain(..) {
                // SAFETY: each place was allocated with the layout that it is listed under, and nobody uses it.
                unsafe { alloc::dealloc(place.as_ptr(), *layout) };
            }
        }
    }
}

/// See [`nest`].
pub struct Nested<F> {
    future: NonNull<F>,
    owned: PhantomData<F>,
}

/// Puts `future` into memory of its own, for awaiting it from a future that should stay small.
pub fn nest<F: Future>(future: F) -> Nested<F> {
    let layout = layout_of::<F>();
    // The thread may be ending and its list gone: then the allocator serves.
    let kept = PLACES.try_with(|places| places.borrow_mut().of(layout).pop()).ok().flatten();
    let place = kept.unwrap_or_else(|| {
        // SAFETY: the layout is of at least one byte.
        let place = unsafe { alloc::alloc(layout) };
        NonNull::new(place).unwrap_or_else(|| alloc::handle_alloc_error(layout))
    });
    let place = place.cast::<F>();
    // SAFETY: the place is large and aligned enough for `F` and nobody else has it.
    unsafe { place.write(future) };
    Nested { future: place, owned: PhantomData }
}

fn layout_of<F>() -> Layout {
    let layout = Layout::new::<F>();
    if layout.size() == 0 { Layout::new::<u8>() } else { layout }
}

// The future stays where it is when its `Nested` moves.
impl<F> Unpin for Nested<F> {}

impl<F: Future> Future for Nested<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the place holds a future from `nest` to the drop, is borrowed through `self` alone and does not move.
        let future = unsafe { Pin::new_unchecked(self.future.as_mut()) };
        future.poll(cx)
    }
}

impl<F> Drop for Nested<F> {
    fn drop(&mut self) {
        /// Gives the place back also when the future's own drop panics.
        struct Leave(NonNull<u8>, Layout);
        impl Drop for Leave {
            fn drop(&mut self) {
                let is_kept = PLACES.try_with(|places| {
                    let mut places = places.borrow_mut();
                    let places = places.of(self.1);
                    let has_room = places.len() < KEPT;
                    if has_room {
                        places.push(self.0);
                    }
                    has_room
                });
                if !is_kept.unwrap_or(false) {
                    // SAFETY: allocated with this layout by `nest`; nobody uses it any more.
                    unsafe { alloc::dealloc(self.0.as_ptr(), self.1) };
                }
            }
        }
        let _leave = Leave(self.future.cast(), layout_of::<F>());
        // SAFETY: the place holds a future that nobody uses after this.
        unsafe { self.future.drop_in_place() };
    }
}

impl<F> fmt::Debug for Nested<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nested").field("bytes", &size_of::<F>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    struct Count(Rc<Cell<u32>>);

    impl Drop for Count {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    fn place_of<F>(nested: &Nested<F>) -> usize {
        nested.future.as_ptr() as usize
    }

    #[test]
    fn it_gives_the_output_drops_once_and_uses_the_place_again() {
        let dropped = Rc::new(Cell::new(0));
        let mut cx = Context::from_waker(Waker::noop());
        let big = |count: Count| async move {
            let bytes = [7u8; 3000];
            ready(()).await;
            let _count = count;
            bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>()
        };
        let mut first = nest(big(Count(dropped.clone())));
        let place = place_of(&first);
        assert_eq!(pin!(&mut first).poll(&mut cx), Poll::Ready(21_000));
        drop(first);
        assert_eq!(dropped.get(), 1);
        let second = nest(big(Count(dropped.clone())));
        let third = nest(big(Count(dropped.clone())));
        assert_eq!(place_of(&second), place);
        assert_ne!(place_of(&third), place);
        drop((second, third));
        assert_eq!(dropped.get(), 3, "dropped without being polled");
        assert!(size_of_val(&nest(pending::<()>())) <= size_of::<usize>());
    }

    #[test]
    fn more_than_are_kept_come_and_go() {
        let nested: Vec<_> = (0..3 * KEPT).map(|at| nest(async move { at })).collect();
        drop(nested);
        let kept = PLACES.with(|places| places.borrow().0.iter().map(|(_, kept)| kept.len()).max());
        assert_eq!(kept, Some(KEPT));
    }
}
