//! Connections of HTTP/2, each shared by many requests of one worker.
//!
//! **Shape.** A [`Multiplexed`] is one connection and what drives it; a [`Lease`] is one stream's hold on it. The driver
//! ends by itself once the last handle is dropped, or when the endpoint ends the connection.
//!
//! **Cancel.** Dropping a lease gives its place back; the stream itself resets when its halves are dropped.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use h2::SendStream;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::Request;
use outrigger_reactor::{Buf, TcpStream, now, spawn};

use super::{Reuse, Slot};
use crate::chance::Chance;
use crate::config::Http2Config;
use crate::http2::{self, Chunk, Guard, Io, IoState, Keepalive};
use crate::stats::{ClusterCell, EndpointCell};

/// Most bytes in the header list of an answer, as in HTTP/1.
const HEAD_BYTES: usize = 60 * 1024;

/// One connection.
pub struct Multiplexed {
    send: RefCell<SendRequest<Chunk>>,
    /// Of `max_concurrent_streams` as configured.
    streams_max: usize,
    active: Cell<usize>,
    served: Cell<u32>,
    idle_since: Cell<Instant>,
    line: Rc<Line>,
    slot: Slot,
}

/// What the driver and the handles of a connection share; counted while either lives.
struct Line {
    is_over: Cell<bool>,
    cell: Arc<EndpointCell>,
    cluster_cell: Arc<ClusterCell>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.cell.connections.fetch_sub(1, Ordering::Relaxed);
        self.cluster_cell.connections.add(-1);
    }
}

/// One stream's hold on its connection.
#[derive(Debug)]
pub struct Lease(Rc<Multiplexed>);

impl Multiplexed {
    /// Begins to speak HTTP/2 on `stream`.
    pub(super) async fn open(
        stream: TcpStream,
        config: &Http2Config,
        slot: Slot,
        (cell, cluster_cell): (Arc<EndpointCell>, Arc<ClusterCell>),
        seed: u64,
    ) -> io::Result<Rc<Self>> {
        let io = Io::new(stream, Buf::new(), Guard::of_server());
        let state = io.state();
        let opened = http2::client(config, HEAD_BYTES).handshake(io).await;
        let (send, mut connection) = opened.map_err(io::Error::other)?;
        if config.allow_connect {
            // Whether it takes extended CONNECT is told by its first frame (RFC 8441 §3).
            let is_over = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending if state.received() > 0 => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            });
            if is_over.await {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        cell.connections.fetch_add(1, Ordering::Relaxed);
        cluster_cell.connections.add(1);
        let line = Rc::new(Line { is_over: Cell::new(false), cell, cluster_cell });
        // Owned by its handles: it ends with the last of them.
        spawn(drive(connection, state, line.clone(), *config, Chance::from_seed(seed))).detach();
        Ok(Rc::new(Self {
            send: RefCell::new(send),
            streams_max: usize::try_from(config.max_concurrent_streams).unwrap_or(usize::MAX),
            active: Cell::new(0),
            served: Cell::new(0),
            idle_since: Cell::new(now()),
            line,
            slot,
        }))
    }

    /// A place for one more stream, unless there is none.
    pub(super) fn lease(self: &Rc<Self>) -> Option<Lease> {
        let mut send = self.send.borrow_mut();
        let most = self.streams_max.min(send.current_max_send_streams());
        let is_ready = matches!(send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
        if self.active.get() >= most || !is_ready {
            return None;
        }
        self.active.set(self.active.get() + 1);
        self.served.set(self.served.get().saturating_add(1));
        Some(Lease(self.clone()))
    }

    /// It will take more streams, now or when others have ended.
    pub(super) fn is_usable(&self, now: Instant, reuse: Reuse) -> bool {
        let is_worn = reuse.max_requests.is_some_and(|max| self.served.get() >= max);
        let is_idle = self.active.get() == 0
            && reuse.idle_timeout.is_some_and(|limit| now.saturating_duration_since(self.idle_since.get()) >= limit);
        !is_worn && !is_idle && !self.line.is_over.get() && !self.is_closing()
    }

    /// No stream is on it.
    pub(super) fn is_idle(&self) -> bool {
        self.active.get() == 0
    }

    /// The peer takes no more streams.
    fn is_closing(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.send.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }
}

impl Lease {
    /// Sends a request's head; `is_whole` when no body follows it.
    pub fn send(&self, request: Request<()>, is_whole: bool) -> Result<(ResponseFuture, SendStream<Chunk>), h2::Error> {
        self.0.send.borrow_mut().send_request(request, is_whole)
    }

    /// The peer takes extended CONNECT (RFC 8441).
    pub fn takes_extended_connect(&self) -> bool {
        self.0.send.borrow().is_extended_connect_protocol_enabled()
    }

    /// It is not the first stream of its connection.
    pub fn is_reused(&self) -> bool {
        self.0.served.get() > 1
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.idle_since.set(now());
        self.0.slot.call_next();
    }
}

/// Moves the frames of a connection until it ends.
async fn drive(
    mut connection: Connection<Io, Chunk>,
    state: Rc<IoState>,
    line: Rc<Line>,
    config: Http2Config,
    chance: Chance,
) {
    let mut keepalive = Keepalive::new(config.keepalive, connection.ping_pong(), &chance);
    poll_fn(|cx| {
        if Pin::new(&mut connection).poll(cx).is_ready() || state.refusal().is_some() {
            return Poll::Ready(());
        }
        match &mut keepalive {
            Some(keepalive) => keepalive.poll_silent(&chance, cx).map(|_silent| ()),
            None => Poll::Pending,
        }
    })
    .await;
    line.is_over.set(true);
}

impl fmt::Debug for Multiplexed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multiplexed").field("active", &self.active.get()).finish_non_exhaustive()
    }
}
