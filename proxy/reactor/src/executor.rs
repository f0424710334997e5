//! **Purpose.** Tasks, their wakers, and the loop that runs them.
//!
//! **Shape.** [`Runtime`] holds a [`Core`]; sockets, timers and task handles share it. Futures lie in a slab that the
//! core owns, never in their wakers, so a waker may be dropped anywhere. A [`Signal`] is the part of a task that other
//! threads see: on the runtime's own thread a wake is a push on the ready queue; elsewhere it goes through [`Remote`].
//! ```text
//!   spawn ─► queued ─► polled ─► pending ──wake──► queued …      drop of Task, output, end of Runtime ─► gone
//! ```
//!
//! **Limits.** [`POLLS_PER_TURN`] polls between two looks at the driver; [`READY_PER_POLL`] ready results of one
//! poll before the task is made to yield, so neither a spinning task nor a fast sender starves the rest.
//!
//! **Cancel.** Dropping a [`Task`] drops its future there and then.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::allocator::{self, Keeping};
use crate::buffers::Pool;
use crate::driver::{Alarm, Driver, WakeEvent, Wakes};
use crate::meters::{Counters, Meters};
use crate::splice::Pipes;
use crate::timers::Wheel;
use crate::{DriverKind, Options};

const POLLS_PER_TURN: usize = 128;
const READY_PER_POLL: u32 = 64;
/// Time between two looks at blocks that load has left behind.
const TRIM_EVERY: Duration = Duration::from_secs(1);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
    /// That runtime's clock, where one load finds it: it is read several times a request.
    static TURN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The runtime that this thread is inside of.
pub(crate) fn current() -> Option<Rc<Core>> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// As [`current`], for calls that mean nothing elsewhere.
pub(crate) fn inside() -> Rc<Core> {
    current().expect("called inside Runtime::block_on: no runtime runs on this thread")
}

/// Makes a core the thread's current one for a scope.
struct Entered {
    before: Option<Rc<Core>>,
}

impl Entered {
    fn new(core: &Rc<Core>) -> Self {
        let before = CURRENT.with(|current| current.borrow_mut().replace(core.clone()));
        TURN.set(Some(core.now()));
        Self { before }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        TURN.set(before.as_ref().map(|core| core.now()));
        // The thread may be ending and its slot gone already.
        let left = CURRENT.try_with(|current| mem::replace(&mut *current.borrow_mut(), before));
        drop(left);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct TaskKey {
    index: u32,
    generation: u32,
}

/// Index of the future that `block_on` itself polls.
const ROOT: u32 = u32::MAX;

/// The part of a task that wakers share.
struct Signal {
    key: TaskKey,
    is_queued: AtomicBool,
    remote: Arc<Remote>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_local = CURRENT.try_with(|current| match &*current.borrow() {
            Some(core) if Arc::ptr_eq(&core.remote, &self.remote) => {
                core.ready.borrow_mut().push_back(self.key);
                true
            }
            _ => false,
        });
        if !is_local.unwrap_or(false) {
            self.remote.push(self.key);
        }
    }
}

const RUNNING: u8 = 0;
const SLEEPING: u8 = 1;
const NOTIFIED: u8 = 2;

/// The door for other threads.
struct Remote {
    state: AtomicU8,
    keys: Mutex<Vec<TaskKey>>,
    event: Arc<WakeEvent>,
}

impl Remote {
    fn lock(&self) -> MutexGuard<'_, Vec<TaskKey>> {
        // Only pushes happen under this lock.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, key: TaskKey) {
        self.lock().push(key);
        // The kernel is told only when the runtime sleeps, and once per sleep.
        if self.state.swap(NOTIFIED, Ordering::SeqCst) == SLEEPING {
            self.event.signal();
        }
    }

    /// Announces sleep; false when something came in just before.
    fn try_sleep(&self) -> bool {
        self.state.store(SLEEPING, Ordering::SeqCst);
        self.lock().is_empty()
    }

    /// Ends sleep and hands over what came in.
    fn drain(&self, ready: &mut VecDeque<TaskKey>) {
        // Also after a sleep without notice: a push may lie between its two steps, and its notice be overwritten by
        // the next `try_sleep`.
        if self.state.swap(RUNNING, Ordering::SeqCst) != RUNNING {
            ready.extend(self.lock().drain(..));
        }
    }
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

struct TaskSlot {
    generation: u32,
    /// Taken out while it is polled.
    future: Option<LocalFuture>,
    signal: Option<Arc<Signal>>,
    waker: Option<Waker>,
    is_aborted: bool,
}

#[derive(Default)]
struct TaskTable {
    slots: Vec<TaskSlot>,
    vacant: Vec<u32>,
    live: usize,
}

impl TaskTable {
    fn insert(&mut self, future: LocalFuture, remote: &Arc<Remote>) -> TaskKey {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(TaskSlot { generation: 0, future: None, signal: None, waker: None, is_aborted: false });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let key = TaskKey { index, generation: slot.generation };
        let signal = Arc::new(Signal { key, is_queued: AtomicBool::new(true), remote: remote.clone() });
        slot.future = Some(future);
        slot.waker = Some(Waker::from(signal.clone()));
        slot.signal = Some(signal);
        slot.is_aborted = false;
        self.live += 1;
        key
    }

    fn slot(&mut self, key: TaskKey) -> Option<&mut TaskSlot> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.generation == key.generation && slot.signal.is_some()).then_some(slot)
    }

    /// Ends a task; its future is returned to be dropped outside of any borrow.
    fn remove(&mut self, key: TaskKey) -> Option<LocalFuture> {
        let slot = self.slot(key)?;
        slot.signal = None;
        slot.waker = None;
        slot.generation = slot.generation.wrapping_add(1);
        let future = slot.future.take();
        self.vacant.push(key.index);
        self.live -= 1;
        future
    }
}

/// What the sockets, timers and tasks of one runtime share.
pub(crate) struct Core {
    pub(crate) driver: RefCell<Option<Driver>>,
    pub(crate) wheel: RefCell<Wheel>,
    pub(crate) meters: Rc<Meters>,
    pool: Rc<Pool>,
    pub(crate) pipes: Pipes,
    alarm: Rc<Alarm>,
    clock: Cell<Instant>,
    tasks: RefCell<TaskTable>,
    ready: RefCell<VecDeque<TaskKey>>,
    remote: Arc<Remote>,
    ready_left: Cell<u32>,
    trim_due: Cell<Instant>,
}

impl Core {
    pub(crate) fn now(&self) -> Instant {
        self.clock.get()
    }

    /// Reads the clock. Called by whoever has entered this core.
    fn set_clock(&self) {
        let now = Instant::now();
        self.clock.set(now);
        TURN.set(Some(now));
    }

    pub(crate) fn counters(&self) -> Counters {
        let meters = &self.meters;
        Counters {
            turns: meters.turns.read(),
            syscalls: meters.syscalls.read(),
            submissions: meters.submissions.read(),
            completions: meters.completions.read(),
            cancels: meters.cancels.read(),
            recv_bytes: meters.recv_bytes.read(),
            sent_bytes: meters.sent_bytes.read(),
            spliced_bytes: meters.spliced_bytes.read(),
            copied_bytes: meters.copied_bytes.read(),
            zc_sends: meters.zc_sends.read(),
            zc_copied: meters.zc_copied.read(),
            buffers_in_use: self.pool.in_use() as u64,
            buffer_exhausted: meters.buffer_exhausted.read(),
            tasks_live: self.tasks.borrow().live as u64,
            sockets_open: meters.sockets_open.read(),
            timers_armed: self.wheel.borrow().armed() as u64,
        }
    }

    /// Runs `act` on the driver. Errors when the runtime has ended.
    pub(crate) fn with_driver<T>(&self, act: impl FnOnce(&mut Driver) -> T) -> io::Result<T> {
        match &mut *self.driver.borrow_mut() {
            Some(driver) => Ok(act(driver)),
            None => Err(io::Error::other("the runtime of this socket has ended")),
        }
    }

    /// True when the running task had its share of ready results: the caller returns pending, a wake is on its way.
    pub(crate) fn is_share_spent(&self, cx: &mut Context<'_>) -> bool {
        let is_spent = self.ready_left.get() == 0;
        if is_spent {
            cx.waker().wake_by_ref();
        }
        is_spent
    }

    /// Counts ready results against the running task's share.
    pub(crate) fn spend(&self, results: u32) {
        self.ready_left.set(self.ready_left.get().saturating_sub(results));
    }

    fn abort(&self, key: TaskKey) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(slot) = tasks.slot(key) else { return };
        if slot.future.is_none() {
            // It is being polled: the loop removes it afterwards.
            slot.is_aborted = true;
            return;
        }
        let future = tasks.remove(key);
        drop(tasks);
        drop(future);
    }

    fn poll_task(&self, key: TaskKey) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(slot) = tasks.slot(key) else { return };
        let (Some(mut future), Some(waker)) = (slot.future.take(), slot.waker.take()) else {
            return;
        };
        if let Some(signal) = &slot.signal {
            signal.is_queued.store(false, Ordering::Release);
        }
        drop(tasks);
        self.ready_left.set(READY_PER_POLL);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut tasks = self.tasks.borrow_mut();
        match tasks.slot(key) {
            Some(slot) if polled.is_pending() && !slot.is_aborted => {
                slot.future = Some(future);
                slot.waker = Some(waker);
            }
            _ => {
                tasks.remove(key);
                drop(tasks);
                drop(future);
            }
        }
    }

    /// Looks at the driver, sleeping there only when nothing is ready, then fires timers and wakes.
    fn turn(&self, woken: &mut Vec<Waker>) {
        let may_sleep = self.ready.borrow().is_empty() && self.remote.try_sleep();
        let due = if may_sleep { self.wheel.borrow().next_due() } else { None };
        if let Some(due) = due {
            let is_set = self.alarm.set(due).expect("a timer descriptor takes any time");
            self.meters.syscalls.add(u64::from(is_set));
        }
        self.meters.turns.add(1);
        let turned = self.with_driver(|driver| driver.turn(may_sleep, woken));
        self.set_clock();
        if self.now() >= self.trim_due.get() {
            self.trim_due.set(self.now() + TRIM_EVERY);
            self.pool.trim();
            allocator::trim();
        }
        self.remote.drain(&mut self.ready.borrow_mut());
        self.wheel.borrow_mut().advance(self.now(), woken);
        woken.drain(..).for_each(Waker::wake);
        turned.and_then(|outcome| outcome).expect("the driver's own descriptors stay usable while the runtime lives");
    }
}

/// One thread's executor, driver, timers and buffer pool.
pub struct Runtime {
    core: Rc<Core>,
    roots: u32,
}

impl Runtime {
    /// A runtime for this thread. Errors: the kernel refuses the ring or the epoll instance, or a size is out of range.
    pub fn new(driver: DriverKind, options: &Options) -> io::Result<Self> {
        let ranges = [
            ("buffers", usize::from(options.buffers), 1..=32_768),
            ("buffers_max", usize::from(options.buffers_max), 1..=32_768),
            ("buffer_bytes", options.buffer_bytes, 64..=1 << 20),
            ("entries", options.entries as usize, 1..=32_768),
        ];
        for (name, value, range) in ranges {
            if !range.contains(&value) {
                let text = format!("reactor option {name}: {value} not in {range:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        let meters = Rc::new(Meters::default());
        let pool = Pool::new(options.buffers, options.buffers_max, options.buffer_bytes);
        let event = Arc::new(WakeEvent::new()?);
        let alarm = Rc::new(Alarm::new()?);
        let wakes = Wakes { alarm: alarm.clone(), event: event.clone() };
        let driver = Driver::new(driver, options, pool.clone(), meters.clone(), wakes)?;
        let clock = Instant::now();
        let core = Rc::new(Core {
            driver: RefCell::new(Some(driver)),
            wheel: RefCell::new(Wheel::new(clock)),
            meters,
            pool,
            pipes: Pipes::default(),
            alarm,
            clock: Cell::new(clock),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            remote: Arc::new(Remote { state: AtomicU8::new(RUNNING), keys: Mutex::default(), event }),
            ready_left: Cell::new(READY_PER_POLL),
            trim_due: Cell::new(clock + TRIM_EVERY),
        });
        Ok(Self { core, roots: 0 })
    }

    /// Runs `root` to its end; spawned tasks still alive then are dropped with the runtime. A panic of a task comes out
    /// of this call.
    pub fn block_on<F: Future>(&mut self, root: F) -> F::Output {
        let core = self.core.clone();
        let _entered = Entered::new(&core);
        let _keeping = Keeping::new();
        let mut root = pin!(root);
        self.roots = self.roots.wrapping_add(1);
        let key = TaskKey { index: ROOT, generation: self.roots };
        let signal = Arc::new(Signal { key, is_queued: AtomicBool::new(true), remote: core.remote.clone() });
        let waker = Waker::from(signal.clone());
        let mut woken = Vec::new();
        core.set_clock();
        core.ready.borrow_mut().push_back(key);
        loop {
            for _ in 0..POLLS_PER_TURN {
                let Some(next) = core.ready.borrow_mut().pop_front() else {
                    break;
                };
                if next.index != ROOT {
                    core.poll_task(next);
                } else if next == key {
                    signal.is_queued.store(false, Ordering::Release);
                    core.ready_left.set(READY_PER_POLL);
                    if let Poll::Ready(output) = root.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return output;
                    }
                }
            }
            core.turn(&mut woken);
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _entered = Entered::new(&self.core);
        // A future may spawn while it is dropped, so look again until none is left.
        loop {
            let mut tasks = self.core.tasks.borrow_mut();
            if tasks.live == 0 {
                break;
            }
            let mut futures = Vec::new();
            for index in 0..tasks.slots.len() {
                let key = TaskKey { index: index as u32, generation: tasks.slots[index].generation };
                futures.extend(tasks.remove(key));
            }
            drop(tasks);
            drop(futures);
        }
        let driver = self.core.driver.borrow_mut().take();
        drop(driver);
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("counters", &self.core.counters()).finish_non_exhaustive()
    }
}

struct Join<T> {
    output: Option<T>,
    is_finished: bool,
    waker: Option<Waker>,
}

/// A spawned task. Dropping it aborts the task; awaiting it gives its output; `detach` lets it run on.
pub struct Task<T> {
    core: Rc<Core>,
    key: TaskKey,
    join: Rc<RefCell<Join<T>>>,
    is_detached: bool,
}

impl<T> Task<T> {
    /// Lets the task run to its end, or to the runtime's.
    pub fn detach(mut self) {
        self.is_detached = true;
    }

    /// True once the task has its output.
    pub fn is_finished(&self) -> bool {
        self.join.borrow().is_finished
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut join = self.join.borrow_mut();
        if let Some(output) = join.output.take() {
            return Poll::Ready(output);
        }
        let stale = join.waker.replace(cx.waker().clone());
        drop(join);
        drop(stale);
        Poll::Pending
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if !self.is_detached {
            self.core.abort(self.key);
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("is_finished", &self.is_finished()).finish_non_exhaustive()
    }
}

/// What a task runs: its future, then the hand-over of the output.
struct Whole<F: Future> {
    future: F,
    ending: Rc<RefCell<Join<F::Output>>>,
}

impl<F: Future> Future for Whole<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `future` is pinned with its whole: it is never moved out, and `Whole` has no drop of its own.
        let (future, ending) = unsafe {
            let whole = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut whole.future), &whole.ending)
        };
        let Poll::Ready(output) = future.poll(cx) else { return Poll::Pending };
        let mut join = ending.borrow_mut();
        join.output = Some(output);
        join.is_finished = true;
        let waker = join.waker.take();
        drop(join);
        if let Some(waker) = waker {
            waker.wake();
        }
        Poll::Ready(())
    }
}

/// Spawns on the current thread's runtime. Panics outside one.
#[must_use = "dropping the task aborts it: await it, keep it, or detach it"]
pub fn spawn<F: Future + 'static>(future: F) -> Task<F::Output> {
    let core = inside();
    let join = Rc::new(RefCell::new(Join { output: None, is_finished: false, waker: None }));
    // Not an async block: that would hold the future twice, once as it came and once as it runs.
    let whole = Box::pin(Whole { future, ending: join.clone() });
    let key = core.tasks.borrow_mut().insert(whole, &core.remote);
    core.ready.borrow_mut().push_back(key);
    Task { core, key, join, is_detached: false }
}

/// Lets every other ready task run once.
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Time of the current loop turn: read once a turn, monotonic. Outside a runtime, the clock's time.
pub fn now() -> Instant {
    TURN.get().unwrap_or_else(Instant::now)
}
