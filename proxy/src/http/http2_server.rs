//! **Purpose.** One downstream connection of HTTP/2, from its preface to its close.
//!
//! **Shape.** What [`begin`] gives polls the connection; each stream that it brings is a task of its own.
//! ```text
//!   preface ──▶ serving ──drain, idle, over age──▶ GOAWAY ──streams ended──▶ closed
//!                  └── flood, silent peer, slow head, protocol error ──▶ GOAWAY and closed at once
//! ```
//!
//! **Limits.** Streams at once and windows as configured; header lists as large as HTTP/1 heads. A connection without a
//! stream holds what `h2` keeps for it.
//!
//! **Cancel.** Dropping the future closes the connection; its streams then end as broken.
//!
//! **Source.** RFC 9113 §5, §6.8.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use h2::server::{Connection as Framed, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use outrigger_reactor::{Sleep, nest, now, sleep_until, spawn, timeout};

use super::downstream::{After, Client, Connection, Downstream, Reached, Stream};
use crate::config::{ChainId, HttpConnectionConfig};
use crate::drain::Watch;
use crate::http2::{self, Chunk, Guard, Io, IoState, Keepalive};
use crate::worker::Worker;

/// What is left to a peer to take the last frames of a connection that is closed for what it did.
const CLOSING: Duration = Duration::from_secs(1);
/// Time for the rest of the preface, or of a header block, where the listener sets none.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// A stream that a client opened.
type Accepted = (Request<RecvStream>, SendResponse<Chunk>);

/// A connection and when it is to end.
struct Serving {
    framed: Framed<Io, Chunk>,
    state: Rc<IoState>,
    worker: Rc<Worker>,
    watch: Watch,
    keepalive: Option<Keepalive>,
    /// Streams being served, and when the last one ended.
    streams: Rc<Streams>,
    idle_timeout: Option<Duration>,
    timer: Sleep,
    head_timeout: Duration,
    head_timer: Sleep,
    /// End of its life, where it is bounded.
    over_age: Option<Instant>,
    max_requests: Option<u32>,
    accepted: u32,
    /// GOAWAY was sent.
    is_leaving: bool,
}

/// Streams of one connection.
#[derive(Debug)]
struct Streams {
    active: Cell<u32>,
    idle_since: Cell<Instant>,
}

/// Counts one of them.
struct Active(Rc<Streams>);

impl Active {
    fn begin(streams: &Rc<Streams>) -> Self {
        streams.active.set(streams.active.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.idle_since.set(now());
    }
}

/// Begins to serve a connection whose first bytes are the preface. Gives what serves it on: small, and without what only the
/// beginning needs.
pub(super) async fn begin(downstream: Downstream) -> Option<impl Future<Output = ()>> {
    let Downstream { worker, chain, peer, reached, client: Client::Http1(connection), .. } = downstream else {
        return None;
    };
    let http = worker.view().http(&chain)?;
    let Connection { stream, inlet, watch, opened, open, .. } = connection;
    let reached = Some(reached.unwrap_or_else(|| Rc::new(Reached::of(&stream))));
    let io = Io::new(stream, inlet.input, Guard::of_client());
    let state = io.state();
    let shaking = http2::server(&http.http2, http.max_head_bytes).handshake(io);
    let span = http.request_headers_timeout.unwrap_or(HEAD_TIMEOUT);
    let Ok(Ok(framed)) = timeout(span, shaking).await else { return None };
    let mut serving = Serving::new((framed, state), &worker, watch, &http, opened);
    Some(nest(async move {
        while let Some(stream) = poll_fn(|cx| serving.poll_next(cx)).await {
            serving.spawn_exchange(stream, &chain, (peer, &reached));
        }
        serving.close().await;
        drop(open);
    }))
}

impl Serving {
    fn new(
        (mut framed, state): (Framed<Io, Chunk>, Rc<IoState>),
        worker: &Rc<Worker>,
        watch: Watch,
        http: &HttpConnectionConfig,
        opened: Instant,
    ) -> Self {
        let streams = Rc::new(Streams { active: Cell::new(0), idle_since: Cell::new(now()) });
        Self {
            keepalive: Keepalive::new(http.http2.keepalive, framed.ping_pong(), &worker.chance),
            framed,
            state,
            worker: worker.clone(),
            watch,
            streams,
            idle_timeout: http.idle_timeout,
            timer: sleep_until(now()),
            head_timeout: http.request_headers_timeout.unwrap_or(HEAD_TIMEOUT),
            head_timer: sleep_until(now()),
            over_age: http.max_connection_duration.map(|span| opened + span),
            max_requests: http.max_requests_per_connection,
            accepted: 0,
            is_leaving: false,
        }
    }

    /// Serves a stream in a task of its own. Owned by the connection, which does not end in order before its streams have.
    fn spawn_exchange(
        &self,
        (request, respond): Accepted,
        chain: &Rc<ChainId>,
        (peer, reached): (SocketAddr, &Option<Rc<Reached>>),
    ) {
        let active = Active::begin(&self.streams);
        let (parts, recv) = request.into_parts();
        let client = Client::Http2(Stream { recv, respond, send: None });
        let mut one = Downstream::new(self.worker.clone(), chain.clone(), peer, client).reached(reached.clone());
        let began = now();
        spawn(async move {
            let after = nest(one.exchange_stream(parts, began)).await;
            if let (After::Abort, Client::Http2(stream)) = (after, &mut one.client) {
                stream.reset(Reason::INTERNAL_ERROR);
            }
            drop(one);
            drop(active);
        })
        .detach();
    }

    /// The next stream; `None` when the connection is over, or to be closed.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        loop {
            match self.framed.poll_accept(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    self.accepted = self.accepted.saturating_add(1);
                    return Poll::Ready(Some(stream));
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(None),
                Poll::Pending => {}
            }
            let slow = self.poll_slow_head(cx).is_ready().then_some(Reason::ENHANCE_YOUR_CALM);
            if let Some(reason) = self.state.refusal().or(slow) {
                self.framed.abrupt_shutdown(reason);
                return Poll::Ready(None);
            }
            if !self.is_leaving && self.poll_leaving(cx).is_ready() {
                self.is_leaving = true;
                self.framed.graceful_shutdown();
                continue;
            }
            return match &mut self.keepalive {
                Some(keepalive) => keepalive.poll_silent(&self.worker.chance, cx).map(|_silent| None),
                None => Poll::Pending,
            };
        }
    }

    /// Ready when a header block has taken too long. It holds up all streams: no other frame may come amid it.
    fn poll_slow_head(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(since) = self.state.block_since() else { return Poll::Pending };
        self.head_timer.reset(since + self.head_timeout);
        Pin::new(&mut self.head_timer).poll(cx)
    }

    /// Ready when no new stream is wanted.
    fn poll_leaving(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.max_requests.is_some_and(|max| self.accepted >= max) || self.watch.poll_started(cx).is_ready() {
            return Poll::Ready(());
        }
        // Each end only moves further away while it is waited for: the timer looks again when it fires.
        while Pin::new(&mut self.timer).poll(cx).is_ready() {
            let Some(due) = self.due() else { break };
            if due <= now() {
                return Poll::Ready(());
            }
            self.timer.reset(due);
        }
        Poll::Pending
    }

    /// When it is to be looked at again: the end of its life, or of its idleness as it stands now.
    fn due(&self) -> Option<Instant> {
        let is_idle = self.streams.active.get() == 0;
        let since = if is_idle { self.streams.idle_since.get() } else { now() };
        let idle = self.idle_timeout.map(|span| since + span);
        idle.into_iter().chain(self.over_age).min()
    }

    /// Sends what is left to say.
    async fn close(&mut self) {
        let _ = timeout(CLOSING, poll_fn(|cx| self.framed.poll_closed(cx))).await;
    }
}
