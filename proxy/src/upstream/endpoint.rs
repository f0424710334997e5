//! One worker's side of one endpoint: idle connections and their reuse.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_reactor::TcpStream;

use super::{ConnectFault, Lease, Multiplexed, Slot};
use crate::stats::{ClusterCell, EndpointCell};

/// One address of a cluster, as one worker sees it. Outlives configuration updates that keep the address.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its counts, shared by all workers.
    pub cell: Arc<EndpointCell>,
    idle: RefCell<VecDeque<Idle>>,
    /// Connections of HTTP/2 that take streams.
    shared: RefCell<Vec<Rc<Multiplexed>>>,
    /// Such a connection being opened: who needs one waits for it.
    opening: RefCell<Option<Rc<Attempt>>>,
    /// No connection is kept any more: the endpoint left the configuration.
    retired: Cell<bool>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<Open>,
    since: Instant,
}

/// What a connection is made of; counted while it lives. Boxed: it goes from hand to hand with every request.
#[derive(Debug)]
struct Open {
    stream: TcpStream,
    served: u32,
    cell: Arc<EndpointCell>,
    cluster_cell: Arc<ClusterCell>,
    slot: Slot,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.cell.connections.fetch_sub(1, Ordering::Relaxed);
        self.cluster_cell.connections.add(-1);
    }
}

/// A connection of HTTP/2 being opened, and who waits for it.
#[derive(Debug, Default)]
struct Attempt {
    result: Cell<Option<Result<(), ConnectFault>>>,
    waiting: RefCell<Vec<Waker>>,
}

/// The one attempt to open a connection of HTTP/2 to an endpoint; whoever waits for it is told when it is over.
#[derive(Debug)]
pub struct Opening {
    endpoint: Rc<Endpoint>,
    attempt: Rc<Attempt>,
}

impl Opening {
    /// It is over.
    pub fn settle(self, opened: &Result<Rc<Multiplexed>, ConnectFault>) {
        if let Ok(connection) = opened
            && !self.endpoint.retired.get()
        {
            self.endpoint.shared.borrow_mut().push(connection.clone());
        }
        self.attempt.result.set(Some(opened.as_ref().map(|_| ()).map_err(|fault| *fault)));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.endpoint.opening.take();
        self.attempt.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// When a connection may be kept for another request.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    /// Unused for longer: closed.
    pub idle_timeout: Option<Duration>,
    /// Requests in its life.
    pub max_requests: Option<u32>,
}

/// A connection checked out of an endpoint. Dropped: closed.
#[derive(Debug)]
pub struct Connection {
    endpoint: Rc<Endpoint>,
    open: Box<Open>,
    sent_before: u64,
}

impl Endpoint {
    /// An endpoint without connections.
    pub fn new(address: SocketAddr, cell: Arc<EndpointCell>) -> Self {
        Self {
            address,
            cell,
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: RefCell::default(),
            retired: Cell::new(false),
        }
    }

    /// The most recently used idle connection whose peer is still there; stale ones met on the way are closed.
    pub fn checkout(self: &Rc<Self>, now: Instant, reuse: Reuse) -> Option<Connection> {
        loop {
            let Idle { connection, since } = self.idle.borrow_mut().pop_back()?;
            if is_fresh(&connection.stream, since, now, reuse) {
                let sent_before = connection.stream.sent_bytes();
                return Some(Connection { endpoint: self.clone(), open: connection, sent_before });
            }
        }
    }

    /// A place for a stream on one of its connections of HTTP/2.
    pub fn lease(&self, now: Instant, reuse: Reuse) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        let mut worn = false;
        let lease = shared.iter().find_map(|one| {
            let is_usable = one.is_usable(now, reuse);
            worn |= !is_usable;
            is_usable.then(|| one.lease()).flatten()
        });
        if worn {
            shared.retain(|one| one.is_usable(now, reuse));
        }
        lease
    }

    /// The right to open a connection of HTTP/2; `None` while somebody else does.
    pub fn begin_opening(self: &Rc<Self>) -> Option<Opening> {
        let mut opening = self.opening.borrow_mut();
        if opening.is_some() {
            return None;
        }
        let attempt = Rc::<Attempt>::default();
        *opening = Some(attempt.clone());
        Some(Opening { endpoint: self.clone(), attempt })
    }

    /// Waits for the connection that somebody else opens. `Ok` too when it was given up: then it is this one's turn.
    pub async fn opened(&self) -> Result<(), ConnectFault> {
        let Some(attempt) = self.opening.borrow().clone() else { return Ok(()) };
        poll_fn(|cx| {
            let is_current = self.opening.borrow().as_ref().is_some_and(|opening| Rc::ptr_eq(opening, &attempt));
            if !is_current {
                return Poll::Ready(attempt.result.get().unwrap_or(Ok(())));
            }
            attempt.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// True while a sweep may find a connection.
    pub fn holds_connections(&self) -> bool {
        !self.idle.borrow().is_empty() || !self.shared.borrow().is_empty()
    }

    /// Closes idle connections that are over age or whose peer closed. Returns how many.
    pub fn sweep(&self, now: Instant, reuse: Reuse) -> usize {
        // Taken out while it is looked through: closing a connection may call a waiter, which looks in here.
        let mut idle = self.idle.take();
        let before = idle.len();
        idle.retain(|one| is_fresh(&one.connection.stream, one.since, now, reuse));
        let closed = before - idle.len();
        self.idle.borrow_mut().append(&mut idle);
        let before = self.shared.borrow().len();
        self.shared.borrow_mut().retain(|one| one.is_usable(now, reuse));
        closed + before - self.shared.borrow().len()
    }

    /// Closes the connection that was idle longest: its place is needed elsewhere. False when there is none.
    pub fn close_one(&self) -> bool {
        let oldest = self.idle.borrow_mut().pop_front();
        if oldest.is_some() {
            return true;
        }
        let mut shared = self.shared.borrow_mut();
        let idle = shared.iter().position(|one| one.is_idle());
        let closed = idle.map(|at| shared.remove(at));
        drop(shared);
        closed.is_some()
    }

    /// Closes what is idle and keeps nothing from now on.
    pub fn retire(&self) {
        self.retired.set(true);
        drop(self.idle.take());
        drop(self.shared.take());
    }

    /// The endpoint is back in the configuration.
    pub fn reinstate(&self) {
        self.retired.set(false);
    }

    /// Connections waiting for a request.
    pub fn idle_connections(&self) -> usize {
        self.idle.borrow().len() + self.shared.borrow().iter().filter(|one| one.is_idle()).count()
    }
}

fn is_fresh(stream: &TcpStream, since: Instant, now: Instant, reuse: Reuse) -> bool {
    let expired = reuse.idle_timeout.is_some_and(|limit| now.saturating_duration_since(since) >= limit);
    // Bytes, an end or a reset on a connection that waits for a request all mean the same: not for reuse.
    !expired && stream.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending()
}

impl Connection {
    pub(super) fn new(endpoint: Rc<Endpoint>, stream: TcpStream, slot: Slot, cluster_cell: Arc<ClusterCell>) -> Self {
        let cell = endpoint.cell.clone();
        cell.connections.fetch_add(1, Ordering::Relaxed);
        cluster_cell.connections.add(1);
        let open = Box::new(Open { stream, served: 0, cell, cluster_cell, slot });
        Self { endpoint, open, sent_before: 0 }
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.open.stream
    }

    /// True when it served a request before this one: its end before an answer may only mean that the peer had closed it.
    pub fn is_reused(&self) -> bool {
        self.open.served > 0
    }

    /// Bytes of this request that the kernel has taken; 0 proves that none left.
    pub fn sent_bytes(&self) -> u64 {
        self.open.stream.sent_bytes().saturating_sub(self.sent_before)
    }

    /// The exchange is over and the peer keeps the connection: it goes back to the pool, unless it has served its time.
    pub fn give_back(mut self, now: Instant, reuse: Reuse) {
        self.open.served = self.open.served.saturating_add(1);
        let worn = reuse.max_requests.is_some_and(|max| self.open.served >= max);
        if !worn && !self.endpoint.retired.get() {
            self.open.slot.call_next();
            self.endpoint.idle.borrow_mut().push_back(Idle { connection: self.open, since: now });
        }
    }
}
