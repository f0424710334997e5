//! **Purpose.** The one interface of both drivers, and what they share: the wake event and descriptor calls.
//!
//! **Shape.** `fill` brings received bytes into a socket's queue, `push` takes committed bytes out of it, `accept`
//! brings connections; each does it at once or arranges a wake. `turn` submits, waits and completes.
//!
//! **Errors.** Errors of one socket stay in that socket; an `Err` of `turn` means that the driver itself is broken.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use socket2::SockRef;

use crate::buffers::Pool;
use crate::epoll::Epoll;
use crate::meters::Meters;
use crate::ring::Ring;
use crate::socket::{Socket, Step};
use crate::{DriverKind, Options};

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

/// The descriptor that a call returned, or its error.
pub(crate) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for the caller, who passes it here and nowhere else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A non-blocking stream socket for `peer`'s family, TCP_NODELAY set.
pub(crate) fn stream_socket(peer: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointer.
    let fd = owned(unsafe { libc::socket(family, kind, libc::IPPROTO_TCP) })?;
    SockRef::from(&fd).set_tcp_nodelay(true)?;
    Ok(fd)
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
        event: &Arc<WakeEvent>,
    ) -> io::Result<Self> {
        Ok(match kind {
            DriverKind::Epoll => Self::Epoll(Epoll::new(pool, meters, event.clone())?),
            DriverKind::Uring => Self::Uring(Box::new(Ring::new(options, pool, meters, event.clone())?)),
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

    /// Sends committed bytes.
    pub(crate) fn push(&mut self, socket: &Rc<Socket>) -> Step {
        either!(self, push(socket))
    }

    /// Ends what is in flight and closes the descriptor after it.
    pub(crate) fn release(&mut self, socket: &Rc<Socket>) {
        either!(self, release(socket));
    }

    /// Submits, waits for at most `wait` (`None`: until something happens) and completes. Wakers to call are added to
    /// `woken`.
    pub(crate) fn turn(&mut self, wait: Option<Duration>, woken: &mut Vec<Waker>) -> io::Result<()> {
        either!(self, turn(wait, woken))
    }
}
