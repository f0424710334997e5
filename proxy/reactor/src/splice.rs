//! **Purpose.** Bytes from one stream to another inside the kernel, through a pipe: none of them enters this process.
//!
//! **Shape.** A [`Splice`] borrows a pipe from its runtime while bytes are in it or may come soon; a pipe is filled from
//! one socket, emptied into the other, and given back empty. Both drivers make the same two calls and differ only in how
//! they wait. A stream that is spliced from receives nothing ahead: [`Spliced::Received`] hands over to
//! [`TcpStream::poll_recv`] while bytes from before are queued.
//! ```text
//!   socket ──splice──▶ pipe ──splice──▶ socket        empty ─▶ filled ─▶ empty …
//! ```
//!
//! **Errors.** [`SpliceFault`] tells the two ends apart, and both from a pipe that could not be had: then nothing was
//! moved, and the bytes can be received and sent instead.
//!
//! **Limits.** [`PIPE_BYTES`] at once, [`PIPES`] pipes a runtime, [`PIPES_KEPT`] of them at rest.
//!
//! **Cancel.** Dropping a splice with bytes in its pipe loses them: the connection is of no more use.
//!
//! **Source.** splice(2), pipe(7).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::calls;
use crate::driver::owned;
use crate::executor::{self, Core};
use crate::socket::{Direction, End};
use crate::tcp::TcpStream;

/// Most bytes that a pipe holds; the kernel may grant less.
pub const PIPE_BYTES: usize = 256 * 1024;
/// Pipes that one runtime may have at once.
const PIPES: usize = 512;
/// Empty pipes kept for the next splice.
const PIPES_KEPT: usize = 16;
/// Ready results that filling a pipe once counts as: it moves as much as many receives.
const SHARE: u32 = 8;

/// Both ends of one pipe, not blocking.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let mut ends: [RawFd; 2] = [-1; 2];
        // SAFETY: the call fills two descriptors and keeps no pointer.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let pipe = Self { read: owned(ends[0])?, write: owned(ends[1])? };
        // Refused beyond the user's share of pipe memory: then it holds the default, 64 KiB or less.
        // SAFETY: takes no pointer.
        let _ = unsafe { libc::fcntl(pipe.write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES as libc::c_int) };
        Ok(pipe)
    }
}

/// The pipes of one runtime.
#[derive(Default)]
pub(crate) struct Pipes {
    kept: RefCell<Vec<Pipe>>,
    live: Cell<usize>,
}

impl Pipes {
    fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.kept.borrow_mut().pop() {
            return Ok(pipe);
        }
        if self.live.get() >= PIPES {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let pipe = Pipe::new()?;
        self.live.set(self.live.get() + 1);
        Ok(pipe)
    }

    /// Takes a pipe back; one that is not empty is closed.
    fn give(&self, pipe: Pipe, is_empty: bool) {
        let mut kept = self.kept.borrow_mut();
        if is_empty && kept.len() < PIPES_KEPT {
            kept.push(pipe);
        } else {
            self.live.set(self.live.get() - 1);
        }
    }
}

/// What a splice did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spliced {
    /// The source has ended (FIN); everything before it was moved.
    End,
    /// So many bytes were taken from the source, and the sink has them all.
    Moved(u64),
    /// Bytes received before wait in the source's queue: they go first.
    Received,
}

/// Why a splice cannot go on.
#[derive(Debug)]
pub enum SpliceFault {
    /// No pipe is to be had. Nothing was moved.
    NoPipe(io::Error),
    /// The sending end.
    Sink(io::Error),
    /// The receiving end.
    Source(io::Error),
}

/// One direction of bytes that stay in the kernel. At rest it holds nothing.
#[derive(Default)]
pub struct Splice {
    pipe: Option<(Rc<Core>, Pipe)>,
    /// Bytes in the pipe.
    held: usize,
    /// Bytes taken since the last result.
    taken: u64,
    delivered: u64,
}

impl Splice {
    /// Bytes that sinks have got through this splice, in all: it moves between results too.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes taken from a source that its sink has not got yet.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves at most `limit` (at least 1) bytes from `from` to `to`, whose send queue must be empty. Ready when what was
    /// taken is delivered.
    pub fn poll_move(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        limit: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Spliced, SpliceFault>> {
        loop {
            if self.held > 0 {
                match self.poll_empty(to, cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(SpliceFault::Sink(error))),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.taken > 0 {
                return Poll::Ready(Ok(Spliced::Moved(std::mem::take(&mut self.taken))));
            }
            if from.core().is_share_spent(cx) {
                return Poll::Pending;
            }
            match self.poll_fill(from, limit, cx) {
                Poll::Ready(Ok(None)) => from.core().spend(SHARE),
                Poll::Ready(Ok(Some(result))) => {
                    self.rest();
                    return Poll::Ready(Ok(result));
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Pending => {
                    self.rest();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Fills the pipe; `Some` when there was nothing to fill it with.
    fn poll_fill(
        &mut self,
        from: &TcpStream,
        limit: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Spliced>, SpliceFault>> {
        let socket = from.socket();
        loop {
            let recv = socket.recv.borrow();
            if !recv.queue.is_empty() {
                return Poll::Ready(Ok(Some(Spliced::Received)));
            }
            match recv.end {
                Some(End::Fin) => return Poll::Ready(Ok(Some(Spliced::End))),
                Some(End::Errno(errno)) => {
                    return Poll::Ready(Err(SpliceFault::Source(io::Error::from_raw_os_error(errno))));
                }
                None => drop(recv),
            }
            if let Err(error) = self.borrow_pipe() {
                return Poll::Ready(Err(SpliceFault::NoPipe(error)));
            }
            match from.poll_direct(Direction::Receive, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(SpliceFault::Source(error))),
                Poll::Pending => return Poll::Pending,
            }
            let Some((core, pipe)) = &self.pipe else { continue };
            let bytes = usize::try_from(limit).map_or(PIPE_BYTES, |limit| limit.min(PIPE_BYTES));
            match splice(core, socket.raw(), pipe.write.as_raw_fd(), bytes) {
                Ok(0) => socket.recv.borrow_mut().end = Some(End::Fin),
                Ok(count) => {
                    (self.held, self.taken) = (count, count as u64);
                    // A head comes next, not more of the same.
                    let mut recv = socket.recv.borrow_mut();
                    (recv.is_bulk, recv.was_bulk) = (false, true);
                    drop(recv);
                    return Poll::Ready(Ok(None));
                }
                // The pipe is empty, so it is the socket that has nothing.
                Err(libc::EAGAIN) => socket.recv.borrow_mut().is_readable = false,
                Err(errno) => socket.recv.borrow_mut().end = Some(End::Errno(errno)),
            }
        }
    }

    /// Empties the pipe.
    fn poll_empty(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = to.socket();
        while self.held > 0 {
            let Some((core, pipe)) = &self.pipe else { break };
            if let Some(errno) = socket.send.borrow().error {
                return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
            }
            match to.poll_direct(Direction::Send, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
            match splice(core, pipe.read.as_raw_fd(), socket.raw(), self.held) {
                Ok(0) => socket.send.borrow_mut().fail(libc::EPIPE),
                Ok(count) => {
                    core.meters.spliced_bytes.add(count as u64);
                    socket.send.borrow_mut().sent += count as u64;
                    self.held -= count;
                    self.delivered += count as u64;
                }
                Err(libc::EAGAIN) => socket.send.borrow_mut().is_writable = false,
                Err(errno) => socket.send.borrow_mut().fail(errno),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn borrow_pipe(&mut self) -> io::Result<()> {
        if self.pipe.is_none() {
            let core = executor::inside();
            let pipe = core.pipes.take()?;
            self.pipe = Some((core, pipe));
        }
        Ok(())
    }

    /// Gives the pipe back.
    fn rest(&mut self) {
        if let Some((core, pipe)) = self.pipe.take() {
            core.pipes.give(pipe, self.held == 0);
        }
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.rest();
    }
}

impl fmt::Debug for Splice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splice").field("held", &self.held).field("delivered", &self.delivered).finish_non_exhaustive()
    }
}

/// One call; `Err` is its errno.
fn splice(core: &Core, from: RawFd, to: RawFd, bytes: usize) -> Result<usize, i32> {
    loop {
        core.meters.syscalls.add(1);
        match calls::splice(from, to, bytes, libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK) {
            Err(libc::EINTR) => {}
            moved => return moved,
        }
    }
}
