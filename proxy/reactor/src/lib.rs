//! A ring-first, single-threaded async runtime with owned buffers.
//!
//! **Purpose.** One executor per worker thread over one of two drivers, `uring` and `epoll`, that behave alike.
//!
//! **Shape.** [`probe`] says which driver this machine allows and why. A [`Runtime`] owns one driver, its tasks
//! (`!Send`), its timers and its buffer pool. [`TcpListener`] and [`TcpStream`] are the sockets, [`Buf`] is a
//! reference-counted slice of received or written bytes, [`mailbox`] brings values from other threads.
//!
//! **Units.** Bytes and [`std::time::Duration`]; timers are kept in milliseconds and never fire early.
//!
//! **Cancel.** Dropping any future of this crate loses no received byte and frees no memory that the kernel may
//! still write to: see each function.
#![allow(
    missing_docs,
    unused,
    missing_debug_implementations,
    clippy::unimplemented,
    reason = "contract stubs, being filled in"
)]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeBounds;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What `--io` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    #[default]
    Auto,
    Epoll,
    Uring,
}
/// The driver in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    Epoll,
    Uring,
}

/// One thing looked at by [`probe`].
#[derive(Clone, Debug)]
pub struct Check {
    pub name: &'static str,
    pub passed: bool,
    pub detail: String,
}
/// What [`probe`] found. `reason` is one line for people: why this driver.
#[derive(Clone, Debug)]
pub struct Probe {
    pub choice: IoChoice,
    pub driver: DriverKind,
    pub reason: String,
    pub kernel: String,
    pub checks: Vec<Check>,
}
/// Setup errno, opcode probe, loopback self-test. `Err` only for `IoChoice::Uring` on a machine that lacks it.
pub fn probe(choice: IoChoice) -> Result<Probe, ProbeError> {
    unimplemented!()
}
/// `--io uring` was asked for and cannot be had; Display says why and what to do.
#[derive(Debug)]
pub struct ProbeError {
    pub probe: Probe,
}
impl std::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        unimplemented!()
    }
}
impl std::error::Error for ProbeError {}

/// Sizes of one runtime.
#[derive(Clone, Debug)]
pub struct Options {
    /** Blocks in the receive pool. */
    pub buffers: u16,
    /** Bytes in a block. */
    pub buffer_bytes: usize,
    /** Submission queue entries. */
    pub entries: u32,
}
impl Default for Options {
    fn default() -> Self {
        Self { buffers: 128, buffer_bytes: 4096, entries: 256 }
    }
}

/// One thread's executor, driver, timers and buffer pool.
pub struct Runtime {
    _p: std::marker::PhantomData<Rc<()>>,
}
impl Runtime {
    pub fn new(driver: DriverKind, options: &Options) -> io::Result<Self> {
        unimplemented!()
    }
    /// Runs `root` to its end; spawned tasks still alive then are dropped with the runtime.
    pub fn block_on<F: Future>(&mut self, root: F) -> F::Output {
        unimplemented!()
    }
}

/// Counters of the current thread's runtime (plain copies).
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub turns: u64,
    pub syscalls: u64,
    pub submissions: u64,
    pub completions: u64,
    pub cancels: u64,
    pub recv_bytes: u64,
    pub sent_bytes: u64,
    pub buffers_in_use: u64,
    pub buffer_exhausted: u64,
    pub tasks_live: u64,
    pub sockets_open: u64,
    pub timers_armed: u64,
}
pub fn counters() -> Counters {
    unimplemented!()
}

/// A spawned task. Dropping it aborts the task; awaiting it gives its output; `detach` lets it run on.
pub struct Task<T> {
    _p: std::marker::PhantomData<Rc<T>>,
}
impl<T> Task<T> {
    pub fn detach(self) {
        unimplemented!()
    }
    pub fn is_finished(&self) -> bool {
        unimplemented!()
    }
}
impl<T> Future for Task<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        unimplemented!()
    }
}
/// Spawns on the current thread's runtime. Panics outside one.
pub fn spawn<F: Future + 'static>(future: F) -> Task<F::Output> {
    unimplemented!()
}
/// Lets every other ready task run once.
pub async fn yield_now() {
    unimplemented!()
}

/// Time of the current loop turn: read once a turn, monotonic.
pub fn now() -> Instant {
    unimplemented!()
}
pub struct Sleep {
    _p: std::marker::PhantomData<Rc<()>>,
}
impl Sleep {
    /** Moves the deadline of an armed timer without a new allocation. */
    pub fn reset(&mut self, deadline: Instant) {
        unimplemented!()
    }
}
impl Future for Sleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        unimplemented!()
    }
}
pub fn sleep_until(deadline: Instant) -> Sleep {
    unimplemented!()
}
pub fn sleep(span: Duration) -> Sleep {
    unimplemented!()
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;
/// Runs `future` until `deadline`. Cancel: `future` is dropped at the deadline.
pub async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    unimplemented!()
}
pub async fn timeout<F: Future>(span: Duration, future: F) -> Result<F::Output, Elapsed> {
    unimplemented!()
}

/// A reference-counted slice of bytes: a block of the receive pool, a built `Vec`, or a static. `!Send`. Clone and slice copy no byte.
#[derive(Clone)]
pub struct Buf {
    _p: Rc<()>,
}
impl Buf {
    pub fn new() -> Self {
        unimplemented!()
    }
    pub fn from_static(bytes: &'static [u8]) -> Self {
        unimplemented!()
    }
    /// Fills a recycled vector: no allocation at steady state.
    pub fn build(fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        unimplemented!()
    }
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        unimplemented!()
    }
    /// Takes the first `at` bytes off the front and returns them.
    pub fn split_to(&mut self, at: usize) -> Self {
        unimplemented!()
    }
    pub fn advance(&mut self, count: usize) {
        unimplemented!()
    }
    pub fn truncate(&mut self, len: usize) {
        unimplemented!()
    }
    /// True when the bytes lie in the receive pool: long-term holders copy them out.
    pub fn is_pooled(&self) -> bool {
        unimplemented!()
    }
}
impl From<Vec<u8>> for Buf {
    fn from(bytes: Vec<u8>) -> Self {
        unimplemented!()
    }
}
impl std::ops::Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        unimplemented!()
    }
}

/// A listening socket. Several runtimes may each hold a duplicate of one socket (exclusive wake-ups).
pub struct TcpListener {
    _p: Rc<()>,
}
impl TcpListener {
    pub fn from_std(socket: std::net::TcpListener) -> io::Result<Self> {
        unimplemented!()
    }
    /// Cancel: no accepted connection is lost; it is given to the next call. EMFILE and ENFILE come back as errors: the caller backs off.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        unimplemented!()
    }
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        unimplemented!()
    }
}

/// A connected socket, TCP_NODELAY set. Methods take `&self`: one task may receive while another sends.
/// Drop cancels what is in flight, waits for its terminal completion inside the driver, then closes the descriptor.
pub struct TcpStream {
    _p: Rc<()>,
}
impl TcpStream {
    /// Cancel: the attempt is cancelled and its socket closed.
    pub async fn connect(peer: SocketAddr) -> io::Result<Self> {
        unimplemented!()
    }
    pub fn from_std(socket: std::net::TcpStream) -> io::Result<Self> {
        unimplemented!()
    }
    pub fn peer_addr(&self) -> SocketAddr {
        unimplemented!()
    }
    pub fn local_addr(&self) -> SocketAddr {
        unimplemented!()
    }
    /// Next received bytes; an empty `Buf` is the orderly end (FIN). Arms the receive on first use. Back-pressure: at most a few
    /// blocks are taken ahead of the reader. Cancel: no byte is lost.
    pub async fn recv(&self) -> io::Result<Buf> {
        unimplemented!()
    }
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Buf>> {
        unimplemented!()
    }
    /// Gives bytes back to the front of the receive queue.
    pub fn unread(&self, bytes: Buf) {
        unimplemented!()
    }
    /// Ready when the peer has sent bytes, FIN or reset; takes nothing. For idle pooled connections: any readiness means "do not reuse".
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        unimplemented!()
    }
    /// Puts bytes at the end of the send queue; no I/O happens until a flush.
    pub fn queue(&self, bytes: Buf) {
        unimplemented!()
    }
    pub fn queued_bytes(&self) -> usize {
        unimplemented!()
    }
    /// Gathered sends until the queue is empty. Cancel: what is queued stays queued; bytes in flight finish.
    pub async fn flush(&self) -> io::Result<()> {
        unimplemented!()
    }
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
    /// Bytes the kernel has taken from the send queue since the connection began: 0 proves that nothing left.
    pub fn sent_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Sends FIN; the receive side stays open.
    pub fn shutdown_write(&self) -> io::Result<()> {
        unimplemented!()
    }
    /// Makes the close a reset (SO_LINGER 0): tells the peer that a body was cut short.
    pub fn reset_on_close(&self) {
        unimplemented!()
    }
}

/// A channel into a runtime from any thread; a send wakes the runtime (MSG_RING or eventfd).
pub fn mailbox<T: Send>() -> (Sender<T>, Mailbox<T>) {
    unimplemented!()
}
pub struct Sender<T> {
    _p: std::sync::Arc<std::sync::Mutex<Option<T>>>,
}
impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        unimplemented!()
    }
}
impl<T: Send> Sender<T> {
    /** Err gives the value back when the mailbox is gone. */
    pub fn send(&self, value: T) -> Result<(), T> {
        unimplemented!()
    }
}
pub struct Mailbox<T> {
    _p: Rc<T>,
}
impl<T: Send> Mailbox<T> {
    /** `None` when every sender is gone. Cancel: loses nothing. */
    pub async fn recv(&mut self) -> Option<T> {
        unimplemented!()
    }
}
