//! **Purpose.** The io_uring driver: the ring is the only sleeping point, one system call submits and waits.
//!
//! **Shape.** A [`Slot`] per socket holds the memory of its operations and counts those in the kernel. `user_data` is
//! slot (32 bits) · generation (24) · loan (5) · operation (3). Receives are multishot into the buffer ring, capped so
//! that they stop by themselves [`AHEAD_BLOCKS`] ahead of the reader, and single where a splice is likely to follow; sends
//! go one at a time; a listener is watched by a poll.
//! ```text
//!   open ─► operations come and go ─► release: cancel each ─► last completion ─► close the descriptor ─► slot vacant
//! ```
//! **Quiet sends.** A small send whose success nobody waits for is told not to block and to complete only when it fails:
//! its success is that the submission is over and no failure came. So a request that is passed on costs one system call,
//! which sends it and sleeps until the answer, instead of one that returns with the send's completion and a second.
//!
//! **Lent sends.** A large send to another machine is read in place: see [`lending`].
//!
//! **Errors.** A full submission queue goes to a backlog; a receive that finds no block parks its stream until one
//! comes back; a completion queue overflow is kept by the kernel (IORING_FEAT_NODROP) and flushed by the next enter.
//!
//! **Limits.** Kernels before the receive cap (6.17; it shows as EINVAL): a multishot is cancelled when the queue is
//! too long, which a burst overruns by what is published; after a full block its stream receives one at a time.
//!
//! **Cancel.** The kernel is never asked to forget: every operation is waited for, also when the runtime ends.
//!
//! **Source.** io_uring(7), io_uring_enter(2), io_uring_register(2), io_uring_multishot(7).

mod complete;
mod gather;
mod lending;
pub(crate) mod setup;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;

use self::gather::Gather;
use self::lending::{LEND_FROM, Lending};
use self::setup::{build, capped, knows_zero_copy, restrict};
use crate::Options;
use crate::buffers::{BufferRing, Pool};
use crate::driver::Wakes;
use crate::meters::Meters;
use crate::receive::{Received, receive_now};
use crate::socket::{AHEAD_BLOCKS, Arm, Direction, End, GATHER, Notice, Socket, Step};

const BUFFER_GROUP: u16 = 0;
/// Upper half of the `user_data` of the watches that end a sleep; the descriptor is the lower. No slot has this index.
const WAKE: u64 = (u32::MAX as u64) << 32;
/// Gathers kept for the next sends.
const GATHERS_KEPT: usize = 64;
/// Lowest bits of the `user_data`: the operation. Those above them in its byte are the number of its loan, or 0.
const OP_BITS: u32 = 3;
/// IORING_RECVSEND_POLL_FIRST: nothing is expected yet, so do not begin with a receive that finds nothing.
const POLL_FIRST: u16 = 1;
/// Turns between two attempts to publish fewer blocks.
const TURNS_PER_NARROW: u64 = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Accept = 1,
    Cancel = 2,
    Connect = 3,
    Readable = 6,
    Recv = 4,
    Send = 5,
    Writable = 7,
}

impl Op {
    const ALL: [Self; 7] =
        [Self::Accept, Self::Cancel, Self::Connect, Self::Readable, Self::Recv, Self::Send, Self::Writable];
    /// Those that stay in the kernel until something happens.
    const LASTING: [Self; 6] = [Self::Accept, Self::Connect, Self::Readable, Self::Recv, Self::Send, Self::Writable];

    fn of(user_data: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u8 == user_data as u8 & ((1 << OP_BITS) - 1))
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    socket: Option<Rc<Socket>>,
    /// Operations in the kernel or on their way to it, a bit each; cancels are counted.
    in_flight: u8,
    cancels: u8,
    is_closing: bool,
    /// Number of the loan that the send in flight is, or 0.
    loan: u8,
    lending: Option<Box<Lending>>,
    gather: Option<Box<Gather>>,
    address: Option<Box<SockAddr>>,
}

pub(crate) struct Ring {
    // Dropped first: the kernel lets go of everything before the memory below is freed.
    ring: IoUring,
    buffers: BufferRing,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    batch: Vec<cqueue::Entry>,
    /// Gathers without a send.
    #[allow(clippy::vec_box, reason = "a gather in the kernel must stay where it is")]
    gathers: Vec<Box<Gather>>,
    /// Parked streams' slots; those of released sockets are skipped.
    starved: VecDeque<u32>,
    is_capped: bool,
    /// The kernel knows how to send without a copy.
    may_lend: bool,
    /// Slots of quiet sends not known to be over.
    quiet: Vec<u32>,
    /// Somebody waits for one of them after all: the next turn must not sleep.
    is_quiet_awaited: bool,
    wakes: Wakes,
    pool: Rc<Pool>,
    meters: Rc<Meters>,
}

impl Ring {
    pub(crate) fn new(options: &Options, pool: Rc<Pool>, meters: Rc<Meters>, wakes: Wakes) -> io::Result<Self> {
        let ring = build(options.entries)?;
        let buffers = BufferRing::map(pool.clone())?;
        // SAFETY: the mapping holds `entries` entries and is unmapped only after this ring is closed (field order).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.address(), buffers.entries(), BUFFER_GROUP, 0)?;
        }
        let may_lend = knows_zero_copy(&ring);
        // Hardening only: a kernel that knows no restrictions runs the same operations.
        let _ = restrict(&ring);
        ring.submitter().register_enable_rings()?;
        let mut ring = Self {
            ring,
            buffers,
            slots: Vec::new(),
            vacant: Vec::new(),
            backlog: VecDeque::new(),
            batch: Vec::new(),
            gathers: Vec::new(),
            starved: VecDeque::new(),
            is_capped: true,
            may_lend,
            quiet: Vec::new(),
            is_quiet_awaited: false,
            wakes,
            pool,
            meters,
        };
        for fd in ring.wakes.raw() {
            ring.watch(fd);
        }
        Ok(ring)
    }

    fn watch(&mut self, fd: RawFd) {
        let watch = opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true);
        self.submit(watch.build().user_data(WAKE | fd as u64));
    }

    fn insert(&mut self, socket: &Rc<Socket>) {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        self.slots[index as usize].socket = Some(socket.clone());
        socket.token.set(index);
        self.meters.sockets_open.add(1);
    }

    pub(crate) fn open(&mut self, socket: &Rc<Socket>) -> io::Result<()> {
        self.insert(socket);
        let mut recv = socket.recv.borrow_mut();
        (recv.arm, recv.is_readable) = (Arm::Idle, true);
        socket.send.borrow_mut().is_writable = true;
        Ok(())
    }

    pub(crate) fn listen(&mut self, socket: &Rc<Socket>) -> io::Result<()> {
        self.insert(socket);
        Ok(())
    }

    pub(crate) fn connect(&mut self, socket: &Rc<Socket>, peer: SocketAddr) -> io::Result<()> {
        self.meters.syscalls.add(2);
        self.open(socket)?;
        let index = socket.token.get();
        let address = Box::new(SockAddr::from(peer));
        let connect = opcode::Connect::new(Fd(socket.raw()), address.as_ptr().cast(), address.len());
        self.slots[index as usize].address = Some(address);
        socket.is_connecting.set(true);
        self.start(index, Op::Connect, connect.build());
        Ok(())
    }

    pub(crate) fn accept(&mut self, socket: &Rc<Socket>) -> Step {
        let mut side = socket.accept.borrow_mut();
        if side.is_watched {
            return Step::Wait;
        }
        if side.take_one(socket, &self.meters) {
            return Step::Moved;
        }
        // One event, for one of the runtimes that share the socket; the next watch joins the end of their line. A
        // multishot accept would stay at its head: one runtime got every connection, and those accepted ahead were
        // reset when it stopped.
        side.is_watched = true;
        let events = libc::POLLIN as u32 | libc::EPOLLEXCLUSIVE as u32;
        let watch = opcode::PollAdd::new(Fd(socket.raw()), events);
        self.start(socket.token.get(), Op::Accept, watch.build());
        Step::Wait
    }

    pub(crate) fn fill(&mut self, socket: &Rc<Socket>) -> Step {
        let mut recv = socket.recv.borrow_mut();
        recv.is_direct = false;
        if recv.arm != Arm::Idle {
            return Step::Wait;
        }
        if recv.is_bulk {
            recv.was_bulk = true;
            match receive_now(socket, &mut recv, &self.pool, &self.meters) {
                Received::Bytes | Received::End => return Step::Moved,
                // The receive below waits for either.
                Received::NoBlock | Received::Nothing => recv.is_bulk = false,
            }
        }
        drop(recv);
        self.arm_recv(socket.token.get(), socket);
        Step::Wait
    }

    pub(crate) fn direct(&mut self, socket: &Rc<Socket>, direction: Direction) -> Step {
        let (op, events, is_ready) = match direction {
            Direction::Receive => {
                if !self.stops_ahead(socket) {
                    return Step::Wait;
                }
                (Op::Readable, libc::POLLIN | libc::POLLRDHUP, socket.recv.borrow().is_readable)
            }
            Direction::Send => (Op::Writable, libc::POLLOUT, socket.send.borrow().is_writable),
        };
        if is_ready {
            return Step::Moved;
        }
        let index = socket.token.get();
        if self.slots[index as usize].in_flight & op.bit() == 0 {
            let watch = opcode::PollAdd::new(Fd(socket.raw()), events as u32);
            self.start(index, op, watch.build());
        }
        Step::Wait
    }

    /// True once the kernel receives nothing ahead of the reader; until then the receive side's waker learns of it.
    fn stops_ahead(&mut self, socket: &Rc<Socket>) -> bool {
        let mut recv = socket.recv.borrow_mut();
        if !mem::replace(&mut recv.is_direct, true) {
            (recv.was_bulk, recv.is_readable) = (true, true);
        }
        match recv.arm {
            Arm::Armed => {
                recv.arm = Arm::Cancelling;
                drop(recv);
                self.cancel(socket.token.get(), Op::Recv);
                false
            }
            Arm::Cancelling => false,
            Arm::Parked => {
                recv.arm = Arm::Idle;
                true
            }
            Arm::Direct | Arm::Idle => true,
        }
    }

    pub(crate) fn look(&mut self, socket: &Rc<Socket>) -> Step {
        // A parked stream sees nothing of the kernel's queue by itself.
        let mut recv = socket.recv.borrow_mut();
        if recv.arm == Arm::Parked {
            self.meters.syscalls.add(1);
            if socket.peek(&mut recv) {
                return Step::Moved;
            }
        }
        drop(recv);
        self.fill(socket)
    }

    pub(crate) fn push(&mut self, socket: &Rc<Socket>, notice: Notice) -> Step {
        if notice == Notice::Now && self.send_now(socket) {
            return Step::Moved;
        }
        let send = socket.send.borrow();
        let is_quiet = notice == Notice::Failure && send.may_be_quiet();
        if send.in_flight == 0 {
            drop(send);
            self.send(socket.token.get(), socket, is_quiet);
        } else if send.is_quiet {
            // What was just committed goes once that is over.
            self.is_quiet_awaited = true;
        }
        Step::Wait
    }

    pub(crate) fn release(&mut self, socket: &Rc<Socket>) {
        let index = socket.token.get();
        self.slots[index as usize].is_closing = true;
        for op in Op::LASTING {
            if self.slots[index as usize].in_flight & op.bit() != 0 {
                self.cancel(index, op);
            }
        }
        let parted = {
            let mut recv = socket.recv.borrow_mut();
            let mut accept = socket.accept.borrow_mut();
            (mem::take(&mut recv.queue), mem::take(&mut accept.ready))
        };
        drop(parted);
        self.retire(index);
    }

    /// Closes a released socket once no operation names its slot. The slot itself waits until what it lent is back,
    /// which takes as long as the peer likes.
    fn retire(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.is_closing || slot.in_flight != 0 || slot.cancels != 0 {
            return;
        }
        slot.address = None;
        if let Some(socket) = slot.socket.take() {
            self.meters.syscalls.add(1);
            self.meters.sockets_open.sub(1);
            socket.close();
        }
        if slot.lending.as_ref().is_some_and(|lending| lending.is_lent()) {
            return;
        }
        slot.lending = None;
        slot.is_closing = false;
        slot.generation = slot.generation.wrapping_add(1) & 0xff_ffff;
        self.vacant.push(index);
    }

    fn user_data(&self, index: u32, op: Op) -> u64 {
        let slot = &self.slots[index as usize];
        let loan = if op == Op::Send { slot.loan } else { 0 };
        u64::from(index) << 32 | u64::from(slot.generation) << 8 | u64::from(loan) << OP_BITS | op as u64
    }

    fn start(&mut self, index: u32, op: Op, entry: squeue::Entry) {
        let user_data = self.user_data(index, op);
        let slot = &mut self.slots[index as usize];
        debug_assert_eq!(slot.in_flight & op.bit(), 0, "{op:?} is in flight already");
        slot.in_flight |= op.bit();
        self.submit(entry.user_data(user_data));
    }

    fn cancel(&mut self, index: u32, op: Op) {
        let target = self.user_data(index, op);
        let user_data = self.user_data(index, Op::Cancel);
        self.slots[index as usize].cancels += 1;
        self.meters.cancels.add(1);
        self.submit(opcode::AsyncCancel::new(target).build().user_data(user_data));
    }

    fn arm_recv(&mut self, index: u32, socket: &Socket) {
        let mut recv = socket.recv.borrow_mut();
        recv.arm = Arm::Armed;
        let fd = Fd(socket.raw());
        let block_bytes = self.pool.block_bytes();
        let entry = if recv.was_bulk || (!self.is_capped && recv.is_bulk) {
            // After bulk comes a head, and then a splice as likely as not, before which a multishot would have to be
            // cancelled. Without the cap nothing else bounds a fast sender.
            let wanted = recv.wanted(block_bytes) as u32;
            let recv = opcode::Recv::new(fd, std::ptr::null_mut(), wanted).ioprio(POLL_FIRST);
            recv.buf_group(BUFFER_GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
        } else if self.is_capped {
            // The kernel ends at the first receive past the cap: up to one block more. Under memory pressure each stream
            // gets a single one.
            let blocks = if self.pool.is_pressed() { 1 } else { AHEAD_BLOCKS - 2 };
            capped(opcode::RecvMulti::new(fd, BUFFER_GROUP).build(), (blocks * block_bytes) as u32)
        } else {
            opcode::RecvMulti::new(fd, BUFFER_GROUP).build()
        };
        drop(recv);
        self.start(index, Op::Recv, entry);
    }

    /// Sends what is committed by a call of its own; false when some of it is left.
    fn send_now(&mut self, socket: &Socket) -> bool {
        let mut send = socket.send.borrow_mut();
        if send.in_flight > 0 || !send.send_now(socket, &self.meters) {
            return false;
        }
        drop(send);
        socket.settle_fin();
        true
    }

    /// Starts one send of what is committed. A quiet one holds all of it.
    fn send(&mut self, index: u32, socket: &Socket, is_quiet: bool) {
        let mut send = socket.send.borrow_mut();
        let slot = &mut self.slots[index as usize];
        let gather = slot.gather.insert(self.gathers.pop().unwrap_or_else(|| Box::new(Gather::new())));
        let mut bytes = 0;
        gather.slices.clear();
        for buf in send.queue.iter().take(GATHER) {
            if bytes >= send.committed {
                break;
            }
            gather.slices.push(libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() });
            // A clone keeps the bytes where they are until the completion, whatever becomes of the queue.
            gather.bufs.push(buf.clone());
            bytes += buf.len();
        }
        if bytes >= LEND_FROM && !is_quiet && self.may_lend && !self.pool.is_pressed() {
            let lending = slot.lending.get_or_insert_with(|| Box::new(Lending::of(socket, &self.meters)));
            slot.loan = lending.begin().unwrap_or(0);
            self.meters.zc_sends.add(u64::from(slot.loan != 0));
        }
        // All of it at once, or a failure that says how much: without a completion nobody would send the rest.
        let flags = libc::MSG_NOSIGNAL | if is_quiet { libc::MSG_DONTWAIT | libc::MSG_WAITALL } else { 0 };
        let entry = gather.entry(Fd(socket.raw()), flags, slot.loan != 0);
        send.in_flight = bytes;
        send.is_quiet = is_quiet;
        drop(send);
        let entry = if is_quiet {
            self.quiet.push(index);
            entry.flags(squeue::Flags::SKIP_SUCCESS)
        } else {
            entry
        };
        self.start(index, Op::Send, entry);
    }

    fn submit(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: what the entry points to lies in its slot (boxed) or the buffer ring until its last completion.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Moves the backlog into the submission queue, submitting as often as that takes.
    fn submit_backlog(&mut self) -> io::Result<()> {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `submit`.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                self.backlog.pop_front();
                continue;
            }
            self.meters.syscalls.add(1);
            match self.ring.submit() {
                Ok(count) => self.meters.submissions.add(count as u64),
                // The completion queue is full: complete first, submit the rest next turn.
                Err(error) if is_passing(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.submit_backlog()?;
        let wait = if self.backlog.is_empty() { wait } else { Some(Duration::ZERO) };
        let may_wait = wait.is_none_or(|wait| !wait.is_zero());
        let queue = self.ring.submission();
        let is_idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if is_idle && !may_wait {
            return Ok(());
        }
        self.meters.syscalls.add(1);
        let submitter = self.ring.submitter();
        let entered = match wait {
            Some(wait) if may_wait => {
                let span = Timespec::from(wait);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&span))
            }
            Some(_) => submitter.submit(),
            None => submitter.submit_and_wait(1),
        };
        match entered {
            Ok(count) => self.meters.submissions.add(count as u64),
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(crate) fn turn(&mut self, may_sleep: bool, woken: &mut Vec<Waker>) -> io::Result<()> {
        self.buffers.fill();
        self.feed_starved();
        if self.meters.turns.read().is_multiple_of(TURNS_PER_NARROW) {
            self.buffers.narrow();
        }
        let may_sleep = may_sleep && !mem::take(&mut self.is_quiet_awaited);
        self.enter(if may_sleep { None } else { Some(Duration::ZERO) })?;
        self.complete(woken);
        Ok(())
    }

    /// Arms parked streams, as many as there are published blocks.
    fn feed_starved(&mut self) {
        for _ in 0..self.starved.len().min(self.buffers.published()) {
            let Some(index) = self.starved.pop_front() else {
                return;
            };
            let slot = &self.slots[index as usize];
            let Some(socket) = slot.socket.clone() else {
                continue;
            };
            if !slot.is_closing && socket.recv.borrow().arm == Arm::Parked {
                self.arm_recv(index, &socket);
            }
        }
    }

    /// Cancels everything and waits for it, so that the memory of operations and blocks can be freed.
    fn shut_down(&mut self) -> io::Result<()> {
        for index in 0..self.slots.len() as u32 {
            let Some(socket) = self.slots[index as usize].socket.clone() else {
                continue;
            };
            for op in Op::LASTING {
                if self.slots[index as usize].in_flight & op.bit() != 0 {
                    self.cancel(index, op);
                }
            }
            socket.recv.borrow_mut().end.get_or_insert(End::Errno(libc::ECANCELED));
            socket.send.borrow_mut().committed = 0;
        }
        let mut woken = Vec::new();
        while self.slots.iter().any(|slot| slot.in_flight != 0 || slot.cancels != 0) {
            self.enter(Some(Duration::from_secs(1)))?;
            self.complete(&mut woken);
        }
        self.call_in_loans()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.shut_down().is_err() {
            // The kernel may still write: leaving the memory to it is the only safe end.
            self.buffers.leak();
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

/// Errors of enter that the next turn mends: a signal, a wait that ran out, no room for completions.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::task::Poll;

    use super::AHEAD_BLOCKS;
    use crate::driver::Driver;
    use crate::{Buf, DriverKind, Options, Runtime, TcpListener, TcpStream, counters, executor, spawn};

    /// Kernels that do not know the cap: a burst may overrun by the published blocks, once more before it is cancelled.
    #[test]
    fn without_the_cap_a_slow_reader_still_bounds_the_queue() {
        const BYTES: usize = 4 << 20;
        let options = Options { buffers: 32, ..Options::default() };
        let mut runtime = Runtime::new(DriverKind::Uring, &options).unwrap();
        runtime.block_on(async {
            let uncap = |driver: &mut Driver| match driver {
                Driver::Uring(ring) => ring.is_capped = false,
                Driver::Epoll(_) => unreachable!("the ring was asked for"),
            };
            executor::inside().with_driver(uncap).unwrap();
            let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let listener = TcpListener::from_std(bound).unwrap();
            let connecting = spawn(TcpStream::connect(listener.local_addr().unwrap()));
            let (server, _) = listener.accept().await.unwrap();
            let client = connecting.await.unwrap();
            let sending = spawn(async move {
                client.queue(Buf::from((0..BYTES).map(|at| (at % 253) as u8).collect::<Vec<_>>()));
                client.flush().await.unwrap();
                client
            });
            let mut read = 0;
            while read < BYTES {
                let bound = 2 * u64::from(options.buffers) + AHEAD_BLOCKS as u64;
                if read % (1 << 19) < 4096 {
                    crate::sleep(std::time::Duration::from_millis(5)).await;
                    let held = counters().buffers_in_use;
                    assert!(held <= bound, "{held} blocks ahead");
                }
                let bytes = server.recv().await.unwrap();
                assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == ((read + at) % 253) as u8));
                read += bytes.len();
            }
            let client = sending.await;
            assert!(counters().cancels > 0, "the bound was enforced by cancels");
            drop(client);
            assert!(server.recv().await.unwrap().is_empty());
            let again = poll_fn(|cx| Poll::Ready(server.poll_recv(cx).is_ready())).await;
            assert!(again, "the end stays");
        });
    }
}
