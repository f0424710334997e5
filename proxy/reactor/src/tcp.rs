//! **Purpose.** TCP sockets over either driver.
//!
//! **Shape.** [`TcpListener`] and [`TcpStream`] hold a [`Socket`] and their runtime's core. Queued bytes are taken
//! without a system call; only an empty queue asks the driver. An [`Accepted`] belongs to no runtime until it is opened.
//!
//! **Errors.** An error of one direction stays and is returned again by every later call of that direction.
//!
//! **Limits.** At most [`AHEAD_BLOCKS`](crate::AHEAD_BLOCKS) blocks are received ahead of the reader. The send queue
//! has no limit of its own: callers look at [`TcpStream::queued_bytes`].
//!
//! **Cancel.** Futures here only look at queues: dropping one takes nothing with it.
//!
//! **Tests.** `tests/conformance.rs`.

use std::cell::OnceCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::buffers::Buf;
use crate::driver;
use crate::executor::{self, Core};
use crate::socket::{CLOSING_ACCEPTS, Direction, End, HANDED_BYTES, Notice, Socket, Step, register};

fn no_runtime() -> io::Error {
    io::Error::other("no runtime on this thread: sockets are made inside Runtime::block_on")
}

/// A listening socket. Several runtimes may each hold a duplicate of one socket: they take turns. No connection is
/// accepted before somebody asks for it, so a drop loses none that the other holders could serve; one whose wake-up
/// came here just before waits until their next, unless this runtime serves what [`TcpListener::close`] returns.
pub struct TcpListener {
    core: Rc<Core>,
    socket: Rc<Socket>,
}

impl TcpListener {
    /// Takes a bound socket over. Accepted connections inherit TCP_NODELAY from it.
    pub fn from_std(socket: std::net::TcpListener) -> io::Result<Self> {
        let core = executor::current().ok_or_else(no_runtime)?;
        socket.set_nonblocking(true)?;
        let socket = Rc::new(Socket::new(OwnedFd::from(socket)));
        socket.with_fd(|fd| fd.set_tcp_nodelay(true))?;
        core.with_driver(|driver| driver.listen(&socket))??;
        Ok(Self { core, socket })
    }

    /// The next connection. Cancel: no accepted connection is lost; it is given to the next call. EMFILE and ENFILE
    /// come back as errors: the caller backs off.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`TcpListener::accept`].
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.poll_accepted(cx).map(|accepted| {
            let Accepted { fd, peer } = accepted?;
            TcpStream::open(&self.core, fd, peer).map(|stream| (stream, peer))
        })
    }

    /// As [`TcpListener::accept`], of a connection that no runtime drives yet.
    pub fn poll_accepted(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        if self.core.is_share_spent(cx) {
            return Poll::Pending;
        }
        loop {
            let mut side = self.socket.accept.borrow_mut();
            if let Some((fd, peer)) = side.ready.pop_front() {
                drop(side);
                self.core.spend(1);
                return Poll::Ready(Ok(Accepted { fd, peer }));
            }
            if let Some(errno) = side.errno.take() {
                return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
            }
            drop(side);
            let step = self.core.with_driver(|driver| driver.accept(&self.socket))?;
            if step == Step::Wait {
                let mut side = self.socket.accept.borrow_mut();
                if !side.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    side.wakers.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
        }
    }

    /// Stops listening and returns the connections that still lay in the backlog, at most [`CLOSING_ACCEPTS`]: when
    /// this is the socket's last holder, a plain drop resets them.
    pub fn close(self) -> Vec<(TcpStream, SocketAddr)> {
        let mut side = self.socket.accept.borrow_mut();
        while side.ready.len() < CLOSING_ACCEPTS && side.errno.is_none() {
            if !side.take_one(&self.socket, &self.core.meters) {
                break;
            }
        }
        let taken = mem::take(&mut side.ready);
        drop(side);
        let opened = taken.into_iter().filter_map(|(fd, peer)| {
            let stream = TcpStream::open(&self.core, fd, peer).ok()?;
            Some((stream, peer))
        });
        opened.collect()
    }

    /// The bound address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.with_fd(|fd| {
            let address = fd.local_addr()?;
            address.as_socket().ok_or_else(|| io::Error::other("not an internet socket"))
        })
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        release(&self.core, &self.socket);
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener").field("fd", &self.socket.raw()).finish_non_exhaustive()
    }
}

/// A connection just accepted that no runtime drives yet: it may cross threads. A drop closes it.
#[derive(Debug)]
pub struct Accepted {
    fd: OwnedFd,
    peer: SocketAddr,
}

impl Accepted {
    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Gives it to the runtime that this thread is inside of. Costs no system call that [`TcpListener::accept`] would
    /// not have made.
    pub fn open(self) -> io::Result<TcpStream> {
        let core = executor::current().ok_or_else(no_runtime)?;
        TcpStream::open(&core, self.fd, self.peer)
    }
}

fn release(core: &Core, socket: &Rc<Socket>) {
    drop(socket.take_wakers());
    // A runtime that has ended left the descriptor to the socket.
    if core.with_driver(|driver| driver.release(socket)).is_err() {
        socket.close();
    }
}

/// A connected socket, TCP_NODELAY set. Methods take `&self`: one task may receive while another sends.
/// Drop cancels what is in flight, waits for its terminal completion inside the driver, then closes the descriptor.
pub struct TcpStream {
    core: Rc<Core>,
    socket: Rc<Socket>,
    peer: SocketAddr,
    local: OnceCell<SocketAddr>,
}

impl TcpStream {
    fn open(core: &Rc<Core>, fd: OwnedFd, peer: SocketAddr) -> io::Result<Self> {
        let socket = Rc::new(Socket::new(fd));
        core.with_driver(|driver| driver.open(&socket))??;
        Ok(Self::of(core, socket, peer))
    }

    fn of(core: &Rc<Core>, socket: Rc<Socket>, peer: SocketAddr) -> Self {
        Self { core: core.clone(), socket, peer, local: OnceCell::new() }
    }

    /// Connects to `peer`. Cancel: the attempt is cancelled and its socket closed.
    pub async fn connect(peer: SocketAddr) -> io::Result<Self> {
        let core = executor::current().ok_or_else(no_runtime)?;
        let socket = Rc::new(Socket::new(driver::stream_socket(&peer)?));
        core.with_driver(|driver| driver.connect(&socket, peer))??;
        // From here on dropping the stream releases the socket.
        let stream = Self::of(&core, socket, peer);
        poll_fn(|cx| {
            let mut send = stream.socket.send.borrow_mut();
            if !stream.socket.is_connecting.get() {
                return Poll::Ready(match send.error {
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                    None => Ok(()),
                });
            }
            let stale = register(&mut send.waker, cx);
            drop(send);
            drop(stale);
            Poll::Pending
        })
        .await?;
        Ok(stream)
    }

    /// Takes a connected socket over.
    pub fn from_std(socket: std::net::TcpStream) -> io::Result<Self> {
        let core = executor::current().ok_or_else(no_runtime)?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let peer = socket.peer_addr()?;
        Self::open(&core, OwnedFd::from(socket), peer)
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// This end; `0.0.0.0:0` when the kernel no longer knows it.
    pub fn local_addr(&self) -> SocketAddr {
        *self.local.get_or_init(|| {
            let address = self.socket.with_fd(|fd| fd.local_addr());
            address
                .ok()
                .and_then(|address| address.as_socket())
                .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
        })
    }

    /// Where the peer connected to before a rule of this machine (REDIRECT, DNAT) brought it here; without one, the local
    /// address, which is the destination too where TPROXY brought it. IPv4 in the form of IPv6 is told as IPv4. Asks the
    /// kernel each time.
    pub fn original_dst(&self) -> SocketAddr {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let local = self.local_addr();
        let is_ipv4 = local.ip().to_canonical().is_ipv4();
        let asked = self.socket.with_fd(|fd| if is_ipv4 { fd.original_dst_v4() } else { fd.original_dst_v6() });
        match asked.ok().and_then(|address| address.as_socket()) {
            Some(SocketAddr::V6(address)) if !is_ipv4 => SocketAddr::V6(address),
            Some(address) => canonical(address),
            None if is_ipv4 => canonical(local),
            None => local,
        }
    }

    /// Next received bytes; an empty `Buf` is the orderly end (FIN). Arms the receive on first use. Back-pressure: at
    /// most a few blocks are taken ahead of the reader. Cancel: no byte is lost.
    pub async fn recv(&self) -> io::Result<Buf> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`TcpStream::recv`].
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Buf>> {
        if self.core.is_share_spent(cx) {
            return Poll::Pending;
        }
        loop {
            let mut recv = self.socket.recv.borrow_mut();
            if let Some(bytes) = recv.queue.pop_front() {
                drop(recv);
                self.core.spend(1);
                return Poll::Ready(Ok(bytes));
            }
            match recv.end {
                Some(End::Fin) => return Poll::Ready(Ok(Buf::new())),
                Some(End::Errno(errno)) => {
                    return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
                }
                None => drop(recv),
            }
            let step = self.core.with_driver(|driver| driver.fill(&self.socket))?;
            if step == Step::Wait {
                return self.wait_for_bytes(cx);
            }
        }
    }

    fn wait_for_bytes<T>(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut recv = self.socket.recv.borrow_mut();
        let stale = register(&mut recv.waker, cx);
        drop(recv);
        drop(stale);
        Poll::Pending
    }

    /// True while received bytes are queued: the next receive is ready and makes no system call.
    pub fn has_received(&self) -> bool {
        !self.socket.recv.borrow().queue.is_empty()
    }

    /// Ready when a call on the descriptor itself may find bytes or room.
    pub(crate) fn poll_direct(&self, direction: Direction, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let step = self.core.with_driver(|driver| driver.direct(&self.socket, direction))?;
        match (step, direction) {
            (Step::Moved, _) => Poll::Ready(Ok(())),
            (Step::Wait, Direction::Receive) => self.wait_for_bytes(cx),
            (Step::Wait, Direction::Send) => self.wait_for_room(cx),
        }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Gives bytes back to the front of the receive queue.
    pub fn unread(&self, bytes: Buf) {
        if !bytes.is_empty() {
            self.socket.recv.borrow_mut().queue.push_front(bytes);
        }
    }

    /// Ready when the peer has sent bytes, FIN or reset; takes nothing. For idle pooled connections: any readiness
    /// means "do not reuse".
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let recv = self.socket.recv.borrow();
        if !recv.queue.is_empty() || recv.end.is_some() {
            return Poll::Ready(());
        }
        drop(recv);
        match self.core.with_driver(|driver| driver.look(&self.socket)) {
            Ok(Step::Wait) => self.wait_for_bytes(cx),
            Ok(Step::Moved) | Err(_) => Poll::Ready(()),
        }
    }

    /// Puts bytes at the end of the send queue; no I/O happens until a flush. After a send error they are dropped, and
    /// the next flush returns it.
    pub fn queue(&self, bytes: Buf) {
        let mut send = self.socket.send.borrow_mut();
        if !bytes.is_empty() && send.error.is_none() {
            send.push(bytes);
        }
    }

    /// Bytes that the kernel has not taken yet.
    pub fn queued_bytes(&self) -> usize {
        self.socket.send.borrow().queued
    }

    /// Slices that the kernel has not taken whole yet: a bound on the received blocks that the queue holds.
    pub fn queued_slices(&self) -> usize {
        self.socket.send.borrow().queue.len()
    }

    /// Gathered sends until the queue is empty. Cancel: what is queued stays queued; bytes in flight finish.
    pub async fn flush(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// As [`TcpStream::flush`].
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(Notice::End, cx)
    }

    /// As [`TcpStream::flush`], by a system call of its own: for who goes on with a [`Splice`](crate::Splice) at once.
    pub fn poll_flush_now(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(Notice::Now, cx)
    }

    fn poll_sent(&self, notice: Notice, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut send = self.socket.send.borrow_mut();
            if let Some(errno) = send.error {
                return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
            }
            if send.queued == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.core.is_share_spent(cx) {
                return Poll::Pending;
            }
            send.committed = send.queued;
            drop(send);
            let step = self.core.with_driver(|driver| driver.push(&self.socket, notice))?;
            if step == Step::Wait {
                return self.wait_for_room(cx);
            }
            self.core.spend(1);
        }
    }

    fn wait_for_room<T>(&self, cx: &mut Context<'_>) -> Poll<T> {
        let mut send = self.socket.send.borrow_mut();
        let stale = register(&mut send.waker, cx);
        drop(send);
        drop(stale);
        Poll::Pending
    }

    /// Hands what is queued to the driver, which sends it as soon as the kernel has room; ready once at most
    /// [`HANDED_BYTES`](crate::HANDED_BYTES) are still on their way. Cheaper than a flush for who does not need to know
    /// when they have left: an error of theirs comes with the next call. Flush before a close: a drop gives up what is
    /// left. Cancel: as [`TcpStream::flush`].
    pub async fn hand_over(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_hand_over(cx)).await
    }

    /// As [`TcpStream::hand_over`].
    pub fn poll_hand_over(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut send = self.socket.send.borrow_mut();
            if let Some(errno) = send.error {
                return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
            }
            if send.queued <= send.committed && send.queued <= HANDED_BYTES {
                return Poll::Ready(Ok(()));
            }
            if self.core.is_share_spent(cx) {
                return Poll::Pending;
            }
            send.committed = send.queued;
            let notice = if send.may_be_quiet() { Notice::Failure } else { Notice::End };
            drop(send);
            let step = self.core.with_driver(|driver| driver.push(&self.socket, notice))?;
            if step == Step::Wait && notice == Notice::End {
                return self.wait_for_room(cx);
            }
            self.core.spend(1);
        }
    }

    /// Bytes the kernel has taken from the send queue since the connection began: 0 proves that nothing left. While a
    /// send is in flight all of its bytes count, for any of them may have left.
    pub fn sent_bytes(&self) -> u64 {
        let send = self.socket.send.borrow();
        send.sent + send.in_flight as u64
    }

    /// Sends FIN, after what is queued has been flushed; the receive side stays open.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.socket.shutdown_write()
    }

    /// Makes the close a reset (SO_LINGER 0): tells the peer that a body was cut short.
    pub fn reset_on_close(&self) {
        // Fails only on a socket that is gone, where there is no peer left to tell.
        let _ = self.socket.with_fd(|fd| fd.set_linger(Some(Duration::ZERO)));
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        release(&self.core, &self.socket);
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream").field("fd", &self.socket.raw()).field("peer", &self.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DriverKind, Options, Runtime, spawn};

    #[test]
    fn both_ends_send_small_segments_at_once() {
        for driver in [DriverKind::Epoll, DriverKind::Uring] {
            let mut runtime = Runtime::new(driver, &Options::default()).unwrap();
            runtime.block_on(async {
                let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let listener = TcpListener::from_std(bound).unwrap();
                let connecting = spawn(TcpStream::connect(listener.local_addr().unwrap()));
                let (accepted, _) = listener.accept().await.unwrap();
                let connected = connecting.await.unwrap();
                for stream in [&accepted, &connected] {
                    assert!(stream.socket.with_fd(|fd| fd.tcp_nodelay()).unwrap(), "{driver:?}");
                }
                connected.reset_on_close();
                assert_eq!(connected.socket.with_fd(|fd| fd.linger()).unwrap(), Some(Duration::ZERO));
            });
        }
    }
}
