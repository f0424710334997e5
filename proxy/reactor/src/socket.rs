//! **Purpose.** What a socket's owner and its driver share: queues, wakers and how far each side is.
//!
//! **Shape.** [`Socket`] has a receive, a send and an accept side, each borrowed for moments only. Drivers fill
//! the receive queue and empty the send queue; `tcp` does the opposite.
//!
//! **Limits.** [`AHEAD_BLOCKS`], [`CLOSING_ACCEPTS`].
//!
//! **Errors.** An error of either side stays: every later call returns it again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::task::{Context, Waker};

use socket2::{SockAddr, SockRef};

use crate::buffers::Buf;
use crate::bufs::Bufs;
use crate::calls;
use crate::driver::owned;
use crate::meters::Meters;

/// Most blocks received ahead of a stream's reader.
pub const AHEAD_BLOCKS: usize = 8;
/// Most connections taken out of the backlog by the close of a listener.
pub const CLOSING_ACCEPTS: usize = 128;
/// Most bytes that may still be on their way to the kernel when a stream's hand-over is done.
pub const HANDED_BYTES: usize = 16 * 1024;
/// Most slices in one gathered send.
pub(crate) const GATHER: usize = 64;
/// Slices of most gathered sends: the memory of so few is cheap to have ready.
const FEW_SLICES: usize = 4;

/// Most bytes of a head that is copied to where the body lies.
const JOINED: usize = 1024;

/// Most bytes of the first receive where a long body is likely to follow a head, to be spliced: what of it comes with the head
/// is copied in and out again.
const HEAD_BYTES: usize = 1024;

/// What the one who sends wants to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The end of it, either way.
    End,
    /// Failure, which the next call on the stream returns.
    Failure,
    /// The end of it, and before anything else is done if it can be.
    Now,
}

/// One of the two ways of a stream's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Receive,
    Send,
}

/// What became of a request to a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The queue, or the end, has changed: look again.
    Moved,
    /// It will wake the side's waker.
    Wait,
}

/// A descriptor that only its driver closes: on the ring, after the last completion that names it.
pub(crate) struct Socket {
    raw: RawFd,
    owned: RefCell<Option<OwnedFd>>,
    pub(crate) token: Cell<u32>,
    pub(crate) is_connecting: Cell<bool>,
    pub(crate) accept: RefCell<AcceptSide>,
    pub(crate) recv: RefCell<RecvSide>,
    pub(crate) send: RefCell<SendSide>,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            raw: fd.as_raw_fd(),
            owned: RefCell::new(Some(fd)),
            token: Cell::new(u32::MAX),
            is_connecting: Cell::new(false),
            accept: RefCell::default(),
            recv: RefCell::default(),
            send: RefCell::default(),
        }
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.raw
    }

    /// The descriptor, or ENOTCONN when it is closed: its number may be another's by then.
    fn open_raw(&self) -> Result<RawFd, i32> {
        if self.owned.borrow().is_some() { Ok(self.raw) } else { Err(libc::ENOTCONN) }
    }

    /// Runs `act` on the descriptor. Errors when it is closed.
    pub(crate) fn with_fd<T>(&self, act: impl FnOnce(SockRef<'_>) -> io::Result<T>) -> io::Result<T> {
        match &*self.owned.borrow() {
            Some(fd) => act(SockRef::from(fd)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Takes the wakers of all sides out, to be dropped while nothing is borrowed.
    pub(crate) fn take_wakers(&self) -> Vec<Waker> {
        let mut wakers = mem::take(&mut self.accept.borrow_mut().wakers);
        wakers.extend(self.recv.borrow_mut().waker.take());
        wakers.extend(self.send.borrow_mut().waker.take());
        wakers
    }

    pub(crate) fn close(&self) {
        let fd = self.owned.borrow_mut().take();
        drop(fd);
    }

    /// True when bytes or FIN wait in the kernel; takes neither. An error is kept as the end: the kernel tells it once.
    pub(crate) fn peek(&self, recv: &mut RecvSide) -> bool {
        match self.open_raw().and_then(calls::peek) {
            Ok(_) => true,
            Err(libc::EAGAIN | libc::EINTR) => false,
            Err(errno) => {
                recv.end.get_or_insert(End::Errno(errno));
                true
            }
        }
    }

    /// Sends FIN now, or, while bytes are queued, once they are gone.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        let mut send = self.send.borrow_mut();
        if send.queued > 0 {
            send.is_fin_due = true;
            return Ok(());
        }
        drop(send);
        self.with_fd(|fd| fd.shutdown(std::net::Shutdown::Write))
    }

    /// The send queue ran empty: sends a FIN that waited for it.
    pub(crate) fn settle_fin(&self) {
        let mut send = self.send.borrow_mut();
        if send.queued == 0 && mem::take(&mut send.is_fin_due) {
            drop(send);
            // A peer that reset meanwhile shows in the next call on either side.
            let _ = self.with_fd(|fd| fd.shutdown(std::net::Shutdown::Write));
        }
    }
}

/// Puts `cx`'s waker into `held` and returns what it replaces, to be dropped outside of any borrow.
pub(crate) fn register(held: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match held {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        _ => held.replace(cx.waker().clone()),
    }
}

/// How a side stands with its driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Arm {
    /// A multishot receive is in the kernel.
    Armed,
    /// It is being cancelled: its last completion is still to come.
    Cancelling,
    /// Readiness is known without arming (epoll).
    #[default]
    Direct,
    /// Nothing is in the kernel.
    Idle,
    /// No block was left; armed again when one comes back.
    Parked,
}

/// The end of the incoming bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Errno(i32),
    Fin,
}

#[derive(Default)]
pub(crate) struct RecvSide {
    pub(crate) queue: Bufs,
    pub(crate) end: Option<End>,
    pub(crate) waker: Option<Waker>,
    pub(crate) arm: Arm,
    /// The kernel may have something (ring: for a splice). Begins true, so that the first look needs no event.
    pub(crate) is_readable: bool,
    /// Ring: nothing is received ahead, the bytes are spliced.
    pub(crate) is_direct: bool,
    /// Bulk was taken by calls of its own; no more than a head should be received before it is known whether more follows.
    pub(crate) was_bulk: bool,
    /// The last receive filled all it was given: more is to be expected.
    pub(crate) is_bulk: bool,
    /// Epoll: FIN or an error is known to follow, so a short read does not mean "empty".
    pub(crate) is_hung_up: bool,
}

impl RecvSide {
    /// Bytes that a single receive asks for; with as many it was a full one.
    pub(crate) fn wanted(&self, block_bytes: usize) -> usize {
        if self.was_bulk { HEAD_BYTES.min(block_bytes) } else { block_bytes }
    }

    /// True when whoever reads has nothing left and a receive ended without bytes.
    pub(crate) fn wants_more(&self) -> bool {
        self.arm == Arm::Idle && self.queue.is_empty() && self.end.is_none() && !self.is_direct
    }

    /// Keeps the end and hands the waker over.
    pub(crate) fn finish(&mut self, end: End) -> Option<Waker> {
        self.end.get_or_insert(end);
        self.waker.take()
    }
}

#[derive(Default)]
pub(crate) struct SendSide {
    pub(crate) queue: Bufs,
    /// Bytes in the queue and in flight.
    pub(crate) queued: usize,
    /// Of these, how many a flush was asked for.
    pub(crate) committed: usize,
    /// Of these, how many an operation in the kernel holds.
    pub(crate) in_flight: usize,
    /// Ring: the operation tells only of its failure (see `ring`, "Quiet sends").
    pub(crate) is_quiet: bool,
    pub(crate) sent: u64,
    pub(crate) error: Option<i32>,
    pub(crate) is_fin_due: bool,
    pub(crate) waker: Option<Waker>,
    /// The kernel may have room (ring: for a splice).
    pub(crate) is_writable: bool,
}

impl SendSide {
    /// Puts bytes at the end of the queue. A short head of ours that waits alone is moved in front of received bytes, where
    /// there is room: one slice is sent for less than two.
    pub(crate) fn push(&mut self, mut bytes: Buf) {
        self.queued += bytes.len();
        match self.queue.only_mut() {
            Some(head) if self.committed == 0 && head.is_built() && head.len() <= JOINED && bytes.prepend(head) => {
                *head = bytes;
            }
            _ => self.queue.push_back(bytes),
        }
    }

    /// Takes `count` sent bytes off the front of the queue.
    pub(crate) fn consume(&mut self, count: usize) {
        self.queued -= count;
        self.committed = self.committed.saturating_sub(count);
        self.sent += count as u64;
        let mut left = count;
        while let Some(front) = self.queue.front_mut() {
            if front.len() > left {
                front.advance(left);
                break;
            }
            left -= front.len();
            self.queue.pop_front();
        }
    }

    /// Sends what is committed by calls of its own; false when the kernel has no room for the rest.
    pub(crate) fn send_now(&mut self, socket: &Socket, meters: &Meters) -> bool {
        while self.committed > 0 {
            meters.syscalls.add(1);
            match self.gathered(socket) {
                Ok(count) => {
                    meters.sent_bytes.add(count as u64);
                    self.consume(count);
                }
                Err(libc::EINTR) => {}
                Err(libc::EAGAIN) => return false,
                Err(errno) => self.fail(errno),
            }
        }
        true
    }

    /// One call that sends from the front of the queue what the kernel has room for.
    fn gathered(&self, socket: &Socket) -> Result<usize, i32> {
        if let Some(only) = self.queue.only() {
            return calls::send(socket.open_raw()?, only, libc::MSG_NOSIGNAL);
        }
        if self.queue.len() <= FEW_SLICES {
            return self.gathered_in::<FEW_SLICES>(socket);
        }
        self.gathered_in::<GATHER>(socket)
    }

    fn gathered_in<const MAX: usize>(&self, socket: &Socket) -> Result<usize, i32> {
        let mut slices = [IoSlice::new(&[]); MAX];
        let mut bytes = 0;
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(self.queue.iter()) {
            if bytes >= self.committed {
                break;
            }
            *slice = IoSlice::new(part);
            bytes += part.len();
            count += 1;
        }
        calls::send_gathered(socket.open_raw()?, &slices[..count], libc::MSG_NOSIGNAL)
    }

    /// Keeps an error and gives up what is queued.
    pub(crate) fn fail(&mut self, errno: i32) {
        self.error.get_or_insert(errno);
        self.queue.clear();
        self.queued = 0;
        self.committed = 0;
        self.in_flight = 0;
    }

    /// True when nobody needs to be told of these bytes' success: they are few, and one operation takes them all.
    pub(crate) fn may_be_quiet(&self) -> bool {
        self.queued <= HANDED_BYTES && self.queue.len() <= GATHER && !self.is_fin_due
    }
}

#[derive(Default)]
pub(crate) struct AcceptSide {
    pub(crate) ready: VecDeque<(OwnedFd, SocketAddr)>,
    pub(crate) errno: Option<i32>,
    pub(crate) wakers: Vec<Waker>,
    /// The driver tells when a connection comes.
    pub(crate) is_watched: bool,
}

impl AcceptSide {
    /// Takes one connection, or an error, out of the backlog; false when there is none.
    pub(crate) fn take_one(&mut self, socket: &Socket, meters: &Meters) -> bool {
        loop {
            meters.syscalls.add(1);
            let error = match accept_now(socket) {
                Ok(connection) => {
                    self.ready.push_back(connection);
                    return true;
                }
                Err(error) => error,
            };
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            if errno == libc::EAGAIN {
                return false;
            }
            if !is_of_connection(errno) {
                self.errno = Some(errno);
                return true;
            }
        }
    }
}

fn accept_now(socket: &Socket) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `try_init` gives a zeroed address storage and its length, which the call fills and keeps no pointer to.
    let (fd, address) =
        unsafe { SockAddr::try_init(|address, len| owned(libc::accept4(socket.raw(), address.cast(), len, flags)))? };
    let peer = address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::ECONNABORTED))?;
    Ok((fd, peer))
}

/// Errors of accept that belong to the connection that failed, not to the listener: accept(2), "Error handling".
fn is_of_connection(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
    )
}
