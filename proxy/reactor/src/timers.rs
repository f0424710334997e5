//! **Purpose.** Timers: arm, cancel and reset in constant time; never early.
//!
//! **Shape.** A [`Wheel`] of six levels of 64 slots, a tick a millisecond, each slot a linked list through one table of
//! entries. A timer lies at the level where its deadline first differs from the wheel's time and moves down as that
//! time comes near, so a quiet runtime with long timers is woken at most five times per timer before it fires.
//! ```text
//!   level 0: 64 × 1 ms   1: 64 × 64 ms   2: 64 × 4 s   3: 64 × 4 min   4: 64 × 5 h   5: 64 × 12 d
//! ```
//!
//! **Units.** Ticks are milliseconds since the wheel began: deadlines are rounded up, the clock down.
//!
//! **Cancel.** Dropping a [`Sleep`] frees its entry.
//!
//! **Tests.** Against a sorted list at the foot.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::executor::{self, Core};

const LEVELS: usize = 6;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Ticks the wheel spans, about two years; what lies further is looked at again then.
const SPAN: u64 = 1 << (SLOT_BITS * LEVELS as u32);
const NIL: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Level {
    occupied: u64,
    heads: [u32; SLOTS],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Vacant,
    Armed { level: u8, slot: u8 },
    Fired,
}

struct Entry {
    when: u64,
    prev: u32,
    next: u32,
    place: Place,
    waker: Option<Waker>,
}

/// The timers of one runtime.
pub(crate) struct Wheel {
    origin: Instant,
    elapsed: u64,
    levels: [Level; LEVELS],
    entries: Vec<Entry>,
    vacant: u32,
    armed: usize,
}

impl Wheel {
    pub(crate) fn new(origin: Instant) -> Self {
        let level = Level { occupied: 0, heads: [NIL; SLOTS] };
        Self { origin, elapsed: 0, levels: [level; LEVELS], entries: Vec::new(), vacant: NIL, armed: 0 }
    }

    pub(crate) fn armed(&self) -> usize {
        self.armed
    }

    /// Arms a timer and returns its key, which stays valid until [`Wheel::free`].
    fn arm(&mut self, deadline: Instant, waker: Waker) -> u32 {
        let entry =
            Entry { when: self.tick_of(deadline), prev: NIL, next: NIL, place: Place::Vacant, waker: Some(waker) };
        let key = if self.vacant == NIL {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        } else {
            let key = self.vacant;
            self.vacant = self.entries[key as usize].next;
            self.entries[key as usize] = entry;
            key
        };
        self.link(key);
        key
    }

    /// Moves an entry, armed or fired, to a new deadline.
    fn rearm(&mut self, key: u32, deadline: Instant) {
        self.unlink(key);
        self.entries[key as usize].when = self.tick_of(deadline);
        self.link(key);
    }

    fn set_waker(&mut self, key: u32, waker: &Waker) -> Option<Waker> {
        let held = &mut self.entries[key as usize].waker;
        match held {
            Some(held) if held.will_wake(waker) => None,
            _ => held.replace(waker.clone()),
        }
    }

    fn has_fired(&self, key: u32) -> bool {
        self.entries[key as usize].place == Place::Fired
    }

    /// Gives the entry up; its waker is returned to be dropped outside of any borrow.
    fn free(&mut self, key: u32) -> Option<Waker> {
        self.unlink(key);
        let entry = &mut self.entries[key as usize];
        entry.place = Place::Vacant;
        entry.next = self.vacant;
        self.vacant = key;
        entry.waker.take()
    }

    /// When the wheel next has work; may lie before the first deadline, never after it.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let (_, _, tick) = self.next_slot()?;
        self.origin.checked_add(Duration::from_millis(tick))
    }

    /// Fires what is due at `now`.
    pub(crate) fn advance(&mut self, now: Instant, woken: &mut Vec<Waker>) {
        let now = now.saturating_duration_since(self.origin).as_millis() as u64;
        while let Some((level, slot, tick)) = self.next_slot() {
            if tick > now {
                break;
            }
            self.elapsed = tick;
            self.levels[level].occupied &= !(1 << slot);
            let mut key = mem::replace(&mut self.levels[level].heads[slot], NIL);
            while key != NIL {
                let entry = &mut self.entries[key as usize];
                let next = mem::replace(&mut entry.next, NIL);
                entry.prev = NIL;
                entry.place = Place::Vacant;
                self.armed -= 1;
                if entry.when <= tick {
                    entry.place = Place::Fired;
                    woken.extend(entry.waker.take());
                } else {
                    self.link(key);
                }
                key = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    /// A deadline as a tick, rounded up, and at least one tick ahead of what has been fired.
    fn tick_of(&self, deadline: Instant) -> u64 {
        let span = deadline.saturating_duration_since(self.origin);
        let whole = span.as_millis() as u64;
        let tick = whole + u64::from(!span.subsec_nanos().is_multiple_of(1_000_000));
        tick.max(self.elapsed + 1)
    }

    fn link(&mut self, key: u32) {
        // Less than a whole turn of the top level ahead: a slot must not mean both now and a turn from now.
        let furthest = self.elapsed + SPAN - SPAN / SLOTS as u64;
        let when = self.entries[key as usize].when.min(furthest);
        let differs = ((self.elapsed ^ when) | (SLOTS as u64 - 1)).min(SPAN - 1);
        let level = ((63 - differs.leading_zeros()) / SLOT_BITS) as usize;
        let slot = (when >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let at = &mut self.levels[level];
        let head = mem::replace(&mut at.heads[slot], key);
        at.occupied |= 1 << slot;
        if head != NIL {
            self.entries[head as usize].prev = key;
        }
        let entry = &mut self.entries[key as usize];
        entry.prev = NIL;
        entry.next = head;
        entry.place = Place::Armed { level: level as u8, slot: slot as u8 };
        self.armed += 1;
    }

    fn unlink(&mut self, key: u32) {
        let entry = &mut self.entries[key as usize];
        let Place::Armed { level, slot } = entry.place else {
            return;
        };
        entry.place = Place::Vacant;
        let (prev, next) = (entry.prev, entry.next);
        if next != NIL {
            self.entries[next as usize].prev = prev;
        }
        if prev != NIL {
            self.entries[prev as usize].next = next;
        } else {
            let at = &mut self.levels[usize::from(level)];
            at.heads[usize::from(slot)] = next;
            if next == NIL {
                at.occupied &= !(1 << slot);
            }
        }
        self.armed -= 1;
    }

    /// The occupied slot that comes first: level, slot, and the tick it begins at.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        // A lower level's slots all lie before the next slot of a higher level.
        let level = self.levels.iter().position(|level| level.occupied != 0)?;
        let bits = SLOT_BITS * level as u32;
        let current = (self.elapsed >> bits) as usize % SLOTS;
        let ahead = self.levels[level].occupied.rotate_right(current as u32).trailing_zeros();
        let slot = (current + ahead as usize) % SLOTS;
        let range = 1u64 << (bits + SLOT_BITS);
        let mut tick = (self.elapsed & !(range - 1)) + ((slot as u64) << bits);
        if tick <= self.elapsed {
            // Only the top level wraps: an entry beyond the wheel's span.
            tick += range;
        }
        Some((level, slot, tick))
    }
}

/// Waits for a deadline. Arms its timer when first polled.
pub struct Sleep {
    deadline: Instant,
    timer: Option<(Rc<Core>, u32)>,
}

impl Sleep {
    /// When it fires.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Moves the deadline of an armed timer without a new allocation. A sleep that has fired can be used again; poll it
    /// after a reset, or it wakes nobody.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
        if let Some((core, key)) = &self.timer {
            core.wheel.borrow_mut().rearm(*key, deadline);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        if let Some((core, key)) = &self.timer {
            let mut wheel = core.wheel.borrow_mut();
            if wheel.has_fired(*key) || core.now() >= deadline {
                return Poll::Ready(());
            }
            let stale = wheel.set_waker(*key, cx.waker());
            drop(wheel);
            drop(stale);
            return Poll::Pending;
        }
        let core = executor::inside();
        if core.now() >= deadline {
            return Poll::Ready(());
        }
        let key = core.wheel.borrow_mut().arm(deadline, cx.waker().clone());
        self.timer = Some((core, key));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((core, key)) = self.timer.take() {
            let waker = core.wheel.borrow_mut().free(key);
            drop(waker);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, timer: None }
}

/// Waits for `span` from this turn's time on; a span past the clock's end waits about thirty years.
pub fn sleep(span: Duration) -> Sleep {
    sleep_until(after(span))
}

/// The deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has passed")
    }
}

impl std::error::Error for Elapsed {}

/// A future with a deadline; see [`timeout_at`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Timeout<F> {
    future: F,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `future` is pinned with its whole: it is never moved out, and `Timeout` has no drop of its own.
        let (future, sleep) = unsafe {
            let whole = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut whole.future), &mut whole.sleep)
        };
        if let Poll::Ready(output) = future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

/// Runs `future` until `deadline`; a future that is ready at the deadline wins. Cancel: `future` is dropped when the await
/// is over, at the deadline too.
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    // Not an async function: that would hold the future twice, once as it came and once as it runs.
    Timeout { future, sleep: sleep_until(deadline) }
}

/// Runs `future` for at most `span` from this call on. Cancel: as [`timeout_at`].
pub fn timeout<F: Future>(span: Duration, future: F) -> Timeout<F> {
    timeout_at(after(span), future)
}

fn after(span: Duration) -> Instant {
    const THIRTY_YEARS: Duration = Duration::from_secs(30 * 365 * 86_400);
    // The turn's time may lie a little in the past; a span counts from this very moment, or it would end early.
    Instant::now() + span.min(THIRTY_YEARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    struct Bell(AtomicBool);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Advance(u64),
        Arm(u64),
        Cancel(usize),
        Rearm(usize, u64),
    }

    fn span_us() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..5_000, 0u64..200_000, 0u64..30_000_000, 0u64..20_000_000_000, 0u64..100_000_000_000_000_000,]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            span_us().prop_map(Step::Advance),
            span_us().prop_map(Step::Arm),
            (0usize..64).prop_map(Step::Cancel),
            (0usize..64, span_us()).prop_map(|(at, us)| Step::Rearm(at, us)),
        ]
    }

    proptest! {
        /// The oracle holds every armed timer with its deadline in microseconds; a timer must have fired exactly when
        /// the millisecond after its deadline has begun.
        #[test]
        fn fires_as_a_sorted_list_would(steps in proptest::collection::vec(step(), 0..120)) {
            let origin = Instant::now();
            let mut wheel = Wheel::new(origin);
            let mut now_us = 0u64;
            let mut armed: BTreeMap<u32, (u64, Arc<Bell>)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Arm(us) => {
                        let bell = Arc::new(Bell(AtomicBool::new(false)));
                        let due = now_us + us;
                        let deadline = origin + Duration::from_micros(due);
                        let key = wheel.arm(deadline, Waker::from(bell.clone()));
                        // A deadline in the wheel's past or present fires with the next tick.
                        let due = due.max((now_us / 1000 + 1) * 1000);
                        prop_assert!(armed.insert(key, (due, bell)).is_none());
                    }
                    Step::Cancel(at) => {
                        if let Some(key) = armed.keys().copied().nth(at) {
                            let waker = wheel.free(key);
                            prop_assert!(waker.is_some());
                            armed.remove(&key);
                        }
                    }
                    Step::Rearm(at, us) => {
                        if let Some((key, slot)) = armed.iter_mut().nth(at) {
                            let due = now_us + us;
                            wheel.rearm(*key, origin + Duration::from_micros(due));
                            slot.0 = due.max((now_us / 1000 + 1) * 1000);
                        }
                    }
                    Step::Advance(us) => {
                        now_us += us;
                        let now = origin + Duration::from_micros(now_us);
                        let first = armed.values().map(|(due, _)| due.div_ceil(1000)).min();
                        let hint = wheel.next_due();
                        prop_assert_eq!(hint.is_some(), first.is_some());
                        if let (Some(hint), Some(first)) = (hint, first) {
                            prop_assert!(hint <= origin + Duration::from_millis(first));
                        }
                        let mut woken = Vec::new();
                        wheel.advance(now, &mut woken);
                        woken.into_iter().for_each(Waker::wake);
                        let mut fired = Vec::new();
                        for (key, (due, bell)) in &armed {
                            let is_due = due.div_ceil(1000) <= now_us / 1000;
                            prop_assert_eq!(bell.0.load(Ordering::Relaxed), is_due);
                            prop_assert_eq!(wheel.has_fired(*key), is_due);
                            if is_due {
                                fired.push(*key);
                            }
                        }
                        for key in fired {
                            wheel.free(key);
                            armed.remove(&key);
                        }
                    }
                }
                prop_assert_eq!(wheel.armed(), armed.len());
            }
        }
    }

    #[test]
    fn a_quiet_long_timer_costs_few_wakes() {
        let origin = Instant::now();
        let mut wheel = Wheel::new(origin);
        let deadline = origin + Duration::from_secs(3600 * 24 * 400);
        let key = wheel.arm(deadline, Waker::noop().clone());
        let mut wakes = 0;
        while !wheel.has_fired(key) {
            let due = wheel.next_due().unwrap();
            wheel.advance(due, &mut Vec::new());
            wakes += 1;
        }
        assert!(wakes <= LEVELS, "{wakes} wakes");
    }

    #[test]
    fn entries_are_reused() {
        let mut wheel = Wheel::new(Instant::now());
        for _ in 0..1000 {
            let key = wheel.arm(Instant::now() + Duration::from_secs(1), Waker::noop().clone());
            wheel.free(key);
        }
        assert_eq!(wheel.entries.len(), 1);
        assert_eq!(wheel.armed(), 0);
    }

    #[test]
    fn a_timeout_holds_its_future_once() {
        let large = [0u8; 4096];
        let waiting = async move {
            std::future::pending::<()>().await;
            large[0]
        };
        let most = size_of_val(&waiting).next_multiple_of(align_of::<Sleep>()) + size_of::<Sleep>();
        assert!(size_of_val(&timeout(Duration::from_secs(1), waiting)) <= most);
    }
}
