//! **Purpose.** One downstream connection from its accept to its close.
//!
//! **Shape.** [`Downstream::serve`] reads a head, hands it to an exchange, and goes on or ends:
//! ```text
//!   idle ──head──▶ exchange ──keep──▶ idle
//!    │ end, idle timeout,  │ close ──▶ lingering close
//!    ▼ drain, bad head     ▼ abort ──▶ reset
//! ```
//!
//! **Limits.** An idle connection holds no received block, no snapshot and no memory of an exchange: what serves a request
//! is nested. Requests are served one at a time; pipelined
//! ones wait in the kernel and in at most a few blocks.
//!
//! **Cancel.** Dropping the future closes the connection and whatever exchange is in hand.
//!
//! **Source.** RFC 9112 §9.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_reactor::{Buf, TcpStream, nest, now, timeout};

use super::deadline::Deadlines;
use super::head::{HeadLimits, Version};
use super::inlet::{HeadFault, Inlet};
use super::respond::{self, Answering};
use super::response::ResponseTable;
use super::workspace::Lease;
use crate::config::{HttpConnectionConfig, ListenerName};
use crate::drain::Watch;
use crate::fault::{Fault, Kind};
use crate::stats::ListenerCell;
use crate::worker::Worker;

/// A client that does not take its answer for this long is given up.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a closing connection is read on, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes of it.
const LINGER_BYTES: usize = 256 * 1024;
/// How long a connection accepted during a drain may take to send its request.
const LAST_CALL: Duration = Duration::from_secs(1);

/// A connection that a client made to us.
#[derive(Debug)]
pub struct Downstream {
    pub(super) worker: Rc<Worker>,
    pub(super) listener: ListenerName,
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) inlet: Inlet,
    /// From the first byte of a request on, until it is served.
    pub(super) workspace: Option<Lease>,
    /// Of the answer in hand; an empty one while idle.
    pub(super) response_table: ResponseTable,
    pub(super) deadlines: Deadlines,
    pub(super) watch: Watch,
    pub(super) cell: Arc<ListenerCell>,
    pub(super) served: u32,
    opened: Instant,
}

/// What becomes of the connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It is broken off: the peer must not take what it got for the whole.
    Abort,
    /// It is closed once the peer has read the answer.
    Close,
    /// It serves the next request.
    Keep,
}

/// A request head as received.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) head: Buf,
    /// When its first byte was seen.
    pub(super) began: Instant,
}

impl Downstream {
    /// A connection just accepted.
    pub fn new(worker: Rc<Worker>, listener: ListenerName, stream: TcpStream, peer: SocketAddr) -> Self {
        let cell = worker.listener_cell(&listener);
        cell.connections.add(1);
        Self {
            watch: worker.drain.watch(),
            worker,
            listener,
            stream,
            peer,
            inlet: Inlet::default(),
            workspace: None,
            response_table: ResponseTable::default(),
            deadlines: Deadlines::new(),
            cell,
            served: 0,
            opened: now(),
        }
    }

    /// Serves requests until either side has had enough.
    pub async fn serve(&mut self) {
        loop {
            let Some(http) = self.worker.view().http(&self.listener) else { return };
            match self.read_head(&http).await {
                Ok(Some(received)) => match nest(self.exchange(received)).await {
                    After::Keep => {
                        self.served = self.served.saturating_add(1);
                        self.inlet.release();
                    }
                    After::Close => return nest(self.linger()).await,
                    After::Abort => return self.stream.reset_on_close(),
                },
                Ok(None) => {
                    // Whoever does not take the rest is not waited for longer.
                    nest(self.flush()).await;
                    return;
                }
                Err(kind) => {
                    self.refuse(kind, &http);
                    return nest(self.linger()).await;
                }
            }
        }
    }

    /// The next head, or `None` when the connection is to be closed without a word.
    async fn read_head(&mut self, http: &HttpConnectionConfig) -> Result<Option<Received>, Kind> {
        let limits = HeadLimits::from(http);
        let head_timeout = http.request_headers_timeout.or(http.stream_idle_timeout);
        let mut began = None;
        let has_served = self.served > 0;
        let mut is_last_call = false;
        self.deadlines.clear();
        self.deadlines.set(Kind::StreamIdle, http.idle_timeout.map(|span| now() + span));
        let Self { inlet, stream, workspace, deadlines, watch, .. } = self;
        let head = poll_fn(|cx| {
            let mut first = None;
            let polled = inlet.poll_head(stream, cx, |bytes| {
                first.get_or_insert_with(now);
                workspace.get_or_insert_with(Lease::take).request_table.parse(bytes, &limits)
            });
            if let (None, Some(first)) = (began, first) {
                began = Some(first);
                deadlines.set(Kind::StreamIdle, None);
                deadlines.set(Kind::HeadTimeout, head_timeout.map(|span| first + span));
            }
            match polled {
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(Some(head))),
                Poll::Ready(Err(HeadFault::Refused(kind))) => return Poll::Ready(Err(kind)),
                Poll::Ready(Err(HeadFault::Broken | HeadFault::Ended(_))) => return Poll::Ready(Ok(None)),
                Poll::Pending => {}
            }
            if began.is_none() && watch.poll_started(cx).is_ready() {
                if has_served {
                    return Poll::Ready(Ok(None));
                }
                // Its request may be on the way: who was accepted is not turned away unheard.
                if !is_last_call {
                    is_last_call = true;
                    deadlines.set(Kind::StreamIdle, Some(now() + LAST_CALL));
                }
            }
            match deadlines.poll_passed(cx) {
                Poll::Ready(kind) if began.is_some() => Poll::Ready(Err(kind)),
                Poll::Ready(_) => Poll::Ready(Ok(None)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
        Ok(head.map(|head| Received { head, began: began.unwrap_or_else(now) }))
    }

    /// Answers bytes that are no request.
    fn refuse(&mut self, kind: Kind, http: &HttpConnectionConfig) {
        self.cell.faults.add_one(kind);
        let fault = Fault::new(kind);
        let answering = Answering {
            worker: &self.worker,
            http,
            epoch: self.worker.view().epoch(),
            keep: false,
            may_keep: false,
            is_head: false,
            version: Version::Http11,
        };
        self.stream.queue(respond::refusal(&fault, &answering).bytes);
    }

    /// True when the connection has served its time.
    pub(super) fn is_worn(&self, http: &HttpConnectionConfig) -> bool {
        let requests = http.max_requests_per_connection.is_some_and(|max| self.served.saturating_add(1) >= max);
        let age = http.max_connection_duration.is_some_and(|max| now().saturating_duration_since(self.opened) >= max);
        requests || age || self.watch.is_started()
    }

    /// Sends the rest of the last answer, which was only handed over. False when the peer does not take it.
    async fn flush(&self) -> bool {
        matches!(timeout(ANSWER_TIMEOUT, self.stream.flush()).await, Ok(Ok(())))
    }

    /// Ends our side and reads the peer's until it ends too, within bounds: a close with unread bytes would reset the
    /// connection and could take the answer with it.
    async fn linger(&self) {
        if !self.flush().await || self.stream.shutdown_write().is_err() {
            return;
        }
        let drained = timeout(LINGER, async {
            let mut bytes = 0;
            while let Ok(more) = self.stream.recv().await {
                bytes += more.len();
                if more.is_empty() || bytes > LINGER_BYTES {
                    return;
                }
            }
        });
        let _ = drained.await;
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        self.cell.connections.add(-1);
    }
}
