//! **Purpose.** One downstream connection from its accept to its close, as HTTP/1.
//!
//! **Shape.** [`serve`] reads a head, hands it to an exchange, and goes on or ends; a connection that begins with the
//! preface of HTTP/2 goes to `http2_server.rs`:
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
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_reactor::{Buf, TcpStream, nest, now, timeout};

use super::downstream::{After, Client, Connection, Downstream, Open, Reached};
use super::head::HttpVersion;
use super::http2_server;
use super::inlet::{HeadFault, Inlet};
use super::respond::{self, Answer, Answering};
use super::workspace::Lease;
use crate::config::{ChainId, Codec, HttpConnectionConfig};
use crate::fault::{Fault, Kind};
use crate::http1::{HeadLimits, Progress};
use crate::http2::is_preface;
use crate::worker::Worker;

/// A client that does not take its answer for this long is given up.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a closing connection is read on, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes of it.
const LINGER_BYTES: usize = 256 * 1024;
/// How long a connection accepted during a drain may take to send its request.
const LAST_CALL: Duration = Duration::from_secs(1);

/// A request head as received.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) head: Buf,
    /// When its first byte was seen.
    pub(super) began: Instant,
}

/// What a connection brought.
enum Brought {
    /// A request.
    Head(Received),
    /// Nothing more: it is to be closed without a word.
    Nothing,
    /// The preface of HTTP/2.
    Preface,
}

/// Serves a connection just accepted, made by `peer` to `destination` or else where it was accepted, until either side has
/// had enough.
/// Cancel: as the module says.
pub fn serve(
    worker: Rc<Worker>,
    chain: Rc<ChainId>,
    stream: TcpStream,
    (peer, destination): (SocketAddr, Option<SocketAddr>),
) -> impl Future<Output = ()> + use<> {
    let watch = worker.drain.watch();
    let reached = destination.map(|destination| Rc::new(Reached { destination, ..Reached::of(&stream) }));
    let open = Open::new(worker.listener_cell(&chain.listener));
    let connection =
        Connection { stream, inlet: Inlet::default(), workspace: None, watch, served: 0, opened: now(), open };
    // Built before the task is: what is passed to an async function stands in it twice.
    let mut downstream = Downstream::new(worker, chain, peer, Client::Http1(connection)).reached(reached);
    async move {
        if downstream.serve_requests().await == Next::Http2
            && let Some(serving) = nest(http2_server::begin(downstream)).await
        {
            serving.await;
        }
    }
}

/// What follows for a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Close,
    Http2,
}

impl Downstream {
    async fn serve_requests(&mut self) -> Next {
        loop {
            let Some(http) = self.worker.view().http(&self.chain) else { return Next::Close };
            match self.read_head(&http).await {
                Ok(Brought::Head(received)) => match nest(self.exchange_received(received)).await {
                    After::Keep => {
                        let Client::Http1(connection) = &mut self.client else { return Next::Close };
                        connection.served = connection.served.saturating_add(1);
                        connection.inlet.release();
                    }
                    After::Close => {
                        nest(self.linger()).await;
                        return Next::Close;
                    }
                    After::Abort => {
                        if let Client::Http1(connection) = &self.client {
                            connection.stream.reset_on_close();
                        }
                        return Next::Close;
                    }
                },
                Ok(Brought::Nothing) => {
                    // Whoever does not take the rest is not waited for longer.
                    nest(self.flush()).await;
                    return Next::Close;
                }
                Ok(Brought::Preface) => return Next::Http2,
                Err(kind) => {
                    self.refuse(kind, &http);
                    nest(self.linger()).await;
                    return Next::Close;
                }
            }
        }
    }

    /// The next head.
    async fn read_head(&mut self, http: &HttpConnectionConfig) -> Result<Brought, Kind> {
        let Self { client: Client::Http1(connection), deadlines, .. } = self else { return Ok(Brought::Nothing) };
        let limits = HeadLimits::from(http);
        let head_timeout = http.request_headers_timeout.or(http.stream_idle_timeout);
        let mut began = None;
        let has_served = connection.served > 0;
        let mut is_last_call = false;
        deadlines.clear();
        deadlines.set(Kind::StreamIdle, http.idle_timeout.map(|span| now() + span));
        let Connection { inlet, stream, workspace, watch, .. } = connection;
        let codec = if has_served { Codec::Http1 } else { http.codec };
        poll_fn(|cx| {
            let mut first = None;
            let mut is_preface = false;
            let polled = inlet.poll_head(stream, cx, |bytes| {
                first.get_or_insert_with(now);
                match preface(codec, bytes) {
                    Prefaced::Http1 => {}
                    Prefaced::Http2 => {
                        is_preface = true;
                        return Ok(Progress::Complete { head_bytes: 0 });
                    }
                    Prefaced::Open => return Ok(Progress::Partial),
                    Prefaced::Wrong => return Err(Kind::BadVersion),
                }
                workspace.get_or_insert_with(Lease::take).request_table.parse(bytes, &limits)
            });
            if let (None, Some(first)) = (began, first) {
                began = Some(first);
                deadlines.set(Kind::StreamIdle, None);
                deadlines.set(Kind::HeadTimeout, head_timeout.map(|span| first + span));
            }
            match polled {
                Poll::Ready(Ok(_)) if is_preface => return Poll::Ready(Ok(Brought::Preface)),
                Poll::Ready(Ok(head)) => {
                    return Poll::Ready(Ok(Brought::Head(Received { head, began: began.unwrap_or_else(now) })));
                }
                Poll::Ready(Err(HeadFault::Refused(kind))) => return Poll::Ready(Err(kind)),
                Poll::Ready(Err(HeadFault::Broken | HeadFault::Ended(_))) => return Poll::Ready(Ok(Brought::Nothing)),
                Poll::Pending => {}
            }
            if began.is_none() && watch.poll_started(cx).is_ready() {
                if has_served {
                    return Poll::Ready(Ok(Brought::Nothing));
                }
                // Its request may be on the way: who was accepted is not turned away unheard.
                if !is_last_call {
                    is_last_call = true;
                    deadlines.set(Kind::StreamIdle, Some(now() + LAST_CALL));
                }
            }
            match deadlines.poll_passed(cx) {
                Poll::Ready(kind) if began.is_some() => Poll::Ready(Err(kind)),
                Poll::Ready(_) => Poll::Ready(Ok(Brought::Nothing)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Answers bytes that are no request.
    fn refuse(&mut self, kind: Kind, http: &HttpConnectionConfig) {
        self.cell.faults.add_one(kind);
        if http.codec == Codec::Http2 {
            // An answer of HTTP/1 is no frame to whoever was to speak HTTP/2; GOAWAY may be left out (RFC 9113 §3.4).
            return;
        }
        let fault = Fault::new(kind);
        let answering = Answering {
            worker: &self.worker,
            http,
            epoch: self.worker.view().epoch(),
            keep: false,
            may_keep: false,
            is_head: false,
            version: HttpVersion::Http11,
            call: None,
        };
        if let (Client::Http1(connection), Answer::Bytes { bytes, .. }) =
            (&self.client, respond::refusal(&fault, &answering))
        {
            connection.stream.queue(bytes);
        }
    }

    /// Sends the rest of the last answer, which was only handed over. False when the peer does not take it.
    async fn flush(&self) -> bool {
        let Client::Http1(connection) = &self.client else { return false };
        matches!(timeout(ANSWER_TIMEOUT, connection.stream.flush()).await, Ok(Ok(())))
    }

    /// Ends our side and reads the peer's until it ends too, within bounds: a close with unread bytes would reset the
    /// connection and could take the answer with it.
    async fn linger(&self) {
        let Client::Http1(Connection { stream, .. }) = &self.client else { return };
        if !self.flush().await || stream.shutdown_write().is_err() {
            return;
        }
        let drained = timeout(LINGER, async {
            let mut bytes = 0;
            while let Ok(more) = stream.recv().await {
                bytes += more.len();
                if more.is_empty() || bytes > LINGER_BYTES {
                    return;
                }
            }
        });
        let _ = drained.await;
    }
}

/// Which HTTP the first bytes of a connection are.
enum Prefaced {
    Http1,
    Http2,
    /// More bytes will tell.
    Open,
    /// Not the one that is configured.
    Wrong,
}

fn preface(codec: Codec, bytes: &[u8]) -> Prefaced {
    match (codec, is_preface(bytes)) {
        (Codec::Http1, _) | (Codec::Auto, Some(false)) => Prefaced::Http1,
        (Codec::Http2, Some(false)) => Prefaced::Wrong,
        (Codec::Auto | Codec::Http2, Some(true)) => Prefaced::Http2,
        (Codec::Auto | Codec::Http2, None) => Prefaced::Open,
    }
}
