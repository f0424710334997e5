//! What `h2` reads from and writes to.
//!
//! **Shape.** Received blocks are copied into `h2`'s buffer, which needs them in one piece; what it writes is gathered in
//! blocks of ours and leaves with one send a turn.
//!
//! **Limits.** Above [`HIGH_WATER`] bytes not yet taken by the kernel it writes nothing more.
//!
//! **Cancel.** Plain state, polled by its owner.

use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use h2::Reason;
use outrigger_reactor::{Buf, TcpStream, now};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Guard;

/// Bytes waiting to be sent above which `h2` has to wait.
const HIGH_WATER: usize = 128 * 1024;

/// A socket as `h2` sees it.
pub struct Io {
    stream: TcpStream,
    input: Buf,
    guard: Guard,
    state: Rc<IoState>,
}

/// What the owner of a connection may ask while `h2` holds the socket.
#[derive(Debug, Default)]
pub struct IoState {
    refusal: Cell<Option<Reason>>,
    block_since: Cell<Option<Instant>>,
    received: Cell<u64>,
}

impl IoState {
    /// Why the connection is to be closed: the peer only makes work, or sent what is wrong. Nothing more of it is read.
    pub fn refusal(&self) -> Option<Reason> {
        self.refusal.get()
    }

    /// Since when a header block has been coming.
    pub fn block_since(&self) -> Option<Instant> {
        self.block_since.get()
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }
}

impl Io {
    /// Over `stream`, of which `input` was received already.
    pub fn new(stream: TcpStream, input: Buf, guard: Guard) -> Self {
        Self { stream, input, guard, state: Rc::default() }
    }

    /// What can be asked of it later.
    pub fn state(&self) -> Rc<IoState> {
        self.state.clone()
    }

    fn has_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stream.queued_bytes() < HIGH_WATER {
            return Poll::Ready(Ok(()));
        }
        self.stream.poll_hand_over(cx)
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.state.refusal.get().is_some() {
            // Whoever polls the connection looks at this next, and closes it.
            return Poll::Pending;
        }
        if self.input.is_empty() {
            match self.stream.poll_recv(cx) {
                Poll::Ready(Ok(bytes)) => self.input = bytes,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let take = self.input.len().min(into.remaining());
        // An empty slice would hold its block for as long as the peer is silent.
        let taken = if take == self.input.len() { mem::take(&mut self.input) } else { self.input.split_to(take) };
        let passed = self.guard.see(&taken, now);
        self.state.refusal.set(self.guard.refusal());
        self.state.block_since.set(self.guard.block_since());
        self.state.received.set(self.state.received.get() + take as u64);
        if passed == 0 && take > 0 {
            return Poll::Pending;
        }
        into.put_slice(&taken[..passed]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.has_room(cx).map_ok(|()| {
            self.stream.queue(Buf::build(|out| out.extend_from_slice(bytes)));
            bytes.len()
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_room(cx).map_ok(|()| {
            let bytes = slices.iter().map(|slice| slice.len()).sum();
            self.stream.queue(Buf::build(|out| {
                out.reserve(bytes);
                slices.iter().for_each(|slice| out.extend_from_slice(slice));
            }));
            bytes
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_hand_over(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(self.stream.shutdown_write()),
            other => other,
        }
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("stream", &self.stream).finish_non_exhaustive()
    }
}
