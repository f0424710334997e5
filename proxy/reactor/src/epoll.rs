//! **Purpose.** The driver for machines where io_uring is not allowed: non-blocking sockets and readiness.
//!
//! **Shape.** A stream is registered once, edge-triggered; its two readiness flags are cleared by the call that finds
//! nothing, so steady traffic costs no `epoll_ctl`. A receive takes a pool block only when bytes are expected, and
//! never ahead of the reader. A listener is watched, exclusively, only from an accept that found nothing to the next
//! event.
//!
//! **Cancel.** Nothing is ever in flight: a release closes at once. The generation in an event's token tells a new
//! socket's events from an old one's.
//!
//! **Source.** epoll(7), epoll_ctl(2) on EPOLLEXCLUSIVE.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::Waker;

use socket2::SockAddr;

use crate::buffers::Pool;
use crate::calls;
use crate::driver::{Wakes, owned};
use crate::meters::Meters;
use crate::receive::{Received, receive_now};
use crate::socket::{Arm, Direction, Notice, Socket, Step};

const EVENTS_PER_TURN: usize = 256;
const WAKE_TOKEN: u64 = u64::MAX;
const STREAM_EVENTS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
const LISTENER_EVENTS: i32 = libc::EPOLLIN | libc::EPOLLEXCLUSIVE;
const ENDED: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;

#[derive(Default)]
struct Slot {
    generation: u32,
    socket: Option<Rc<Socket>>,
}

pub(crate) struct Epoll {
    fd: OwnedFd,
    wakes: Wakes,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    events: Vec<libc::epoll_event>,
    /// Readers that found no block; entries of released sockets are skipped.
    starved: VecDeque<Rc<Socket>>,
    pool: Rc<Pool>,
    meters: Rc<Meters>,
}

impl Epoll {
    pub(crate) fn new(pool: Rc<Pool>, meters: Rc<Meters>, wakes: Wakes) -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let epoll = Self {
            fd,
            wakes,
            slots: Vec::new(),
            vacant: Vec::new(),
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_TURN],
            starved: VecDeque::new(),
            pool,
            meters,
        };
        let events = libc::EPOLLIN | libc::EPOLLET;
        for fd in epoll.wakes.raw() {
            epoll.control(libc::EPOLL_CTL_ADD, fd, events, WAKE_TOKEN)?;
        }
        Ok(epoll)
    }

    fn control(&self, operation: i32, fd: i32, events: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        self.meters.syscalls.add(1);
        // SAFETY: `event` lives through the call, which keeps no pointer to it.
        let done = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &mut event) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn token(&self, socket: &Socket) -> u64 {
        let index = socket.token.get();
        let generation = self.slots[index as usize].generation;
        u64::from(generation) << 32 | u64::from(index)
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
        socket.recv.borrow_mut().is_readable = true;
        socket.send.borrow_mut().is_writable = true;
        self.add_stream(socket)
    }

    fn add_stream(&mut self, socket: &Rc<Socket>) -> io::Result<()> {
        self.insert(socket);
        let token = self.token(socket);
        let added = self.control(libc::EPOLL_CTL_ADD, socket.raw(), STREAM_EVENTS, token);
        if added.is_err() {
            self.release(socket);
        }
        added
    }

    pub(crate) fn listen(&mut self, socket: &Rc<Socket>) -> io::Result<()> {
        self.insert(socket);
        Ok(())
    }

    pub(crate) fn connect(&mut self, socket: &Rc<Socket>, peer: SocketAddr) -> io::Result<()> {
        self.meters.syscalls.add(3);
        let begun = socket.with_fd(|fd| fd.connect(&SockAddr::from(peer)));
        match begun {
            Ok(()) => return self.open(socket),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINPROGRESS | libc::EINTR) => {}
                _ => return Err(error),
            },
        }
        socket.is_connecting.set(true);
        self.add_stream(socket)
    }

    pub(crate) fn accept(&mut self, socket: &Rc<Socket>) -> Step {
        let mut side = socket.accept.borrow_mut();
        if side.is_watched {
            return Step::Wait;
        }
        if side.take_one(socket, &self.meters) {
            return Step::Moved;
        }
        let token = self.token(socket);
        if let Err(error) = self.control(libc::EPOLL_CTL_ADD, socket.raw(), LISTENER_EVENTS, token) {
            side.errno = Some(error.raw_os_error().unwrap_or(libc::EIO));
            return Step::Moved;
        }
        side.is_watched = true;
        Step::Wait
    }

    pub(crate) fn fill(&mut self, socket: &Rc<Socket>) -> Step {
        let mut recv = socket.recv.borrow_mut();
        if !recv.is_readable {
            return Step::Wait;
        }
        let received = receive_now(socket, &mut recv, &self.pool, &self.meters);
        match received {
            Received::Bytes => recv.is_readable = recv.is_bulk || recv.is_hung_up,
            Received::End => {}
            Received::NoBlock => {
                if recv.arm != Arm::Parked {
                    recv.arm = Arm::Parked;
                    self.starved.push_back(socket.clone());
                }
                return Step::Wait;
            }
            Received::Nothing => {
                recv.is_readable = false;
                return Step::Wait;
            }
        }
        Step::Moved
    }

    pub(crate) fn look(&mut self, socket: &Rc<Socket>) -> Step {
        let mut recv = socket.recv.borrow_mut();
        if recv.is_readable {
            self.meters.syscalls.add(1);
            recv.is_readable = socket.peek(&mut recv);
        }
        if recv.is_readable { Step::Moved } else { Step::Wait }
    }

    /// Failure and success are both known at once here, whoever asks.
    pub(crate) fn push(&mut self, socket: &Rc<Socket>, _: Notice) -> Step {
        let mut send = socket.send.borrow_mut();
        if send.committed > 0 && send.is_writable {
            send.is_writable = send.send_now(socket, &self.meters);
        }
        if send.committed > 0 {
            return Step::Wait;
        }
        drop(send);
        socket.settle_fin();
        Step::Moved
    }

    /// `Moved` when the kernel may have bytes or room.
    pub(crate) fn direct(&mut self, socket: &Rc<Socket>, direction: Direction) -> Step {
        let is_ready = match direction {
            Direction::Receive => socket.recv.borrow().is_readable,
            Direction::Send => socket.send.borrow().is_writable,
        };
        if is_ready { Step::Moved } else { Step::Wait }
    }

    pub(crate) fn release(&mut self, socket: &Rc<Socket>) {
        let index = socket.token.get();
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.socket = None;
        self.vacant.push(index);
        // A duplicate elsewhere would keep the registration alive past the close. A listener that nobody waits at has none.
        let _ = self.control(libc::EPOLL_CTL_DEL, socket.raw(), 0, 0);
        self.meters.syscalls.add(1);
        self.meters.sockets_open.sub(1);
        socket.close();
    }

    pub(crate) fn turn(&mut self, may_sleep: bool, woken: &mut Vec<Waker>) -> io::Result<()> {
        let before = woken.len();
        self.feed_starved(woken);
        let wait_ms = if may_sleep && woken.len() == before { -1 } else { 0 };
        self.meters.syscalls.add(1);
        let count = match calls::epoll_wait(self.fd.as_raw_fd(), &mut self.events, wait_ms) {
            Ok(count) => count,
            Err(libc::EINTR) => return Ok(()),
            Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
        };
        self.meters.completions.add(count as u64);
        for at in 0..count {
            let event = self.events[at];
            if event.u64 != WAKE_TOKEN {
                self.note(event.u64, event.events, woken);
            }
        }
        Ok(())
    }

    fn feed_starved(&mut self, woken: &mut Vec<Waker>) {
        for _ in 0..self.starved.len().min(self.pool.available()) {
            let Some(socket) = self.starved.pop_front() else {
                return;
            };
            let mut recv = socket.recv.borrow_mut();
            recv.arm = Arm::Direct;
            woken.extend(recv.waker.take());
        }
    }

    fn note(&mut self, token: u64, events: u32, woken: &mut Vec<Waker>) {
        let slot = &self.slots[token as u32 as usize];
        let Some(socket) = slot.socket.clone() else { return };
        if slot.generation != (token >> 32) as u32 {
            return;
        }
        let mut side = socket.accept.borrow_mut();
        if side.is_watched {
            side.is_watched = false;
            woken.append(&mut side.wakers);
            // Whoever accepts next joins the end of the line: runtimes that share the socket take turns.
            let _ = self.control(libc::EPOLL_CTL_DEL, socket.raw(), 0, 0);
            return;
        }
        drop(side);
        if events & (libc::EPOLLIN as u32 | ENDED) != 0 {
            let mut recv = socket.recv.borrow_mut();
            recv.is_readable = true;
            recv.is_hung_up |= events & ENDED != 0;
            if !socket.is_connecting.get() {
                woken.extend(recv.waker.take());
            }
        }
        if events & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
            let mut send = socket.send.borrow_mut();
            if socket.is_connecting.replace(false)
                && let Ok(Some(error)) = socket.with_fd(|fd| fd.take_error())
            {
                send.fail(error.raw_os_error().unwrap_or(libc::EIO));
            }
            send.is_writable = true;
            woken.extend(send.waker.take());
            let is_left = send.committed > 0;
            drop(send);
            if is_left {
                // Handed over: nobody may be waiting to push it on.
                self.push(&socket, Notice::Failure);
            }
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // The sockets' owners may outlive the runtime; each keeps its descriptor until then.
        for slot in mem::take(&mut self.slots) {
            drop(slot.socket);
        }
    }
}
