//! **Purpose.** The one interface of both drivers, and what they share: the wake event, the alarm and descriptor calls.
//!
//! **Shape.** `fill` brings received bytes into a socket's queue, `push` takes committed bytes out of it, `accept`
//! brings connections; each does it at once or arranges a wake. `turn` submits, waits and completes.
//!
//! **Errors.** Errors of one socket stay in that socket; an `Err` of `turn` means that the driver itself is broken.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::buffers::Pool;
use crate::epoll::Epoll;
use crate::meters::Meters;
use crate::ring::Ring;
use crate::socket::{Direction, Notice, Socket, Step};
use crate::{DriverKind, Options, local};

/// The descriptor through which other threads end a runtime's sleep.
pub(crate) struct WakeEvent {
    file: File,
}

impl WakeEvent {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self { file: File::from(owned(fd)?) })
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Drivers watch for edges and never read the count; were it ever full, each write is an edge all the same.
    pub(crate) fn signal(&self) {
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }
}

/// The descriptor that ends a runtime's sleep when a timer is due.
///
/// A wait with a time limit arms and disarms a timer of the kernel each time; this one is set only when the next timer
/// is sooner than all that it was set for before.
pub(crate) struct Alarm {
    fd: OwnedFd,
    set_for: Cell<Option<Instant>>,
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        Ok(Self { fd: owned(fd)?, set_for: Cell::new(None) })
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Makes sure that the sleep which begins now ends by `due`. It may end sooner: for a timer that was given up.
    pub(crate) fn set(&self, due: Instant) -> io::Result<bool> {
        let now = Instant::now();
        if self.set_for.get().is_some_and(|set_for| now < set_for && set_for <= due) {
            return Ok(false);
        }
        // Zero would disarm it.
        let span = due.saturating_duration_since(now).max(Duration::from_nanos(1));
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let once = libc::timespec {
            tv_sec: libc::time_t::try_from(span.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(span.subsec_nanos() as i32),
        };
        let spec = libc::itimerspec { it_interval: never, it_value: once };
        // SAFETY: `spec` lives through the call, which keeps no pointer to it and is asked for no old value.
        let done = unsafe { libc::timerfd_settime(self.raw(), 0, &raw const spec, std::ptr::null_mut()) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        self.set_for.set(Some(due));
        Ok(true)
    }
}

/// The descriptor that a call returned, or its error.
pub(crate) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for the caller, who passes it here and nowhere else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A non-blocking stream socket to be connected to `peer`, TCP_NODELAY set.
pub(crate) fn stream_socket(peer: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointer.
    let fd = owned(unsafe { libc::socket(family, kind, libc::IPPROTO_TCP) })?;
    SockRef::from(&fd).set_tcp_nodelay(true)?;
    local::unpace_toward(SockRef::from(&fd), peer.ip());
    Ok(fd)
}

/// What ends a runtime's sleep beside its sockets. Drivers watch both for edges and read neither.
pub(crate) struct Wakes {
    pub(crate) alarm: Rc<Alarm>,
    pub(crate) event: Arc<WakeEvent>,
}

impl Wakes {
    pub(crate) fn raw(&self) -> [RawFd; 2] {
        [self.alarm.raw(), self.event.raw()]
    }
}

/// One of the two drivers.
pub(crate) enum Driver {
    Epoll(Epoll),
    Uring(Box<Ring>),
}

/// Calls the same method of either driver.
macro_rules! either {
    ($driver:expr, $name:ident($($argument:expr),*)) => {
        match $driver {
            Driver::Epoll(epoll) => epoll.$name($($argument),*),
            Driver::Uring(ring) => ring.$name($($argument),*),
        }
    };
}

impl Driver {
    pub(crate) fn new(
        kind: DriverKind,
        options: &Options,
        pool: Rc<Pool>,
        meters: Rc<Meters>,
        wakes: Wakes,
    ) -> io::Result<Self> {
        Ok(match kind {
            DriverKind::Epoll => Self::Epoll(Epoll::new(pool, meters, wakes)?),
            DriverKind::Uring => Self::Uring(Box::new(Ring::new(options, pool, meters, wakes)?)),
        })
    }

    /// Takes a connected stream in.
    pub(crate) fn open(&mut self, socket: &Rc<Socket>) -> io::Result<()> {
        either!(self, open(socket))
    }

    /// Takes a listener in.
    pub(crate) fn listen(&mut self, socket: &Rc<Socket>) -> io::Result<()> {
        either!(self, listen(socket))
    }

    /// Takes a fresh socket in and begins to connect it; the send side's waker learns the end of it.
    pub(crate) fn connect(&mut self, socket: &Rc<Socket>, peer: SocketAddr) -> io::Result<()> {
        either!(self, connect(socket, peer))
    }

    /// Brings a connection, or an error, into the accept side.
    pub(crate) fn accept(&mut self, socket: &Rc<Socket>) -> Step {
        either!(self, accept(socket))
    }

    /// Brings bytes, or the end, into the receive side.
    pub(crate) fn fill(&mut self, socket: &Rc<Socket>) -> Step {
        either!(self, fill(socket))
    }

    /// `Moved` when the kernel holds something to receive; otherwise the receive side's waker learns of it.
    pub(crate) fn look(&mut self, socket: &Rc<Socket>) -> Step {
        either!(self, look(socket))
    }

    /// Sends committed bytes, now and, unless an error ends it, for as long as some are left.
    pub(crate) fn push(&mut self, socket: &Rc<Socket>, notice: Notice) -> Step {
        either!(self, push(socket, notice))
    }

    /// `Moved` when a call on the descriptor itself may find bytes, or room; otherwise that side's waker learns when.
    /// Whoever receives so gets nothing received ahead of it.
    pub(crate) fn direct(&mut self, socket: &Rc<Socket>, direction: Direction) -> Step {
        either!(self, direct(socket, direction))
    }

    /// Ends what is in flight and closes the descriptor after it.
    pub(crate) fn release(&mut self, socket: &Rc<Socket>) {
        either!(self, release(socket));
    }

    /// Submits, waits until something happens if `may_sleep`, and completes. Wakers to call are added to `woken`.
    pub(crate) fn turn(&mut self, may_sleep: bool, woken: &mut Vec<Waker>) -> io::Result<()> {
        either!(self, turn(may_sleep, woken))
    }
}
