//! Who is served: a connection of HTTP/1, or one stream of HTTP/2.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use outrigger_reactor::{TcpStream, now};

use super::body::Source;
use super::deadline::Deadlines;
use super::inlet::Inlet;
use super::pump::{Pump, Sink};
use super::upstream::Awaited;
use super::workspace::Lease;
use crate::config::{ChainId, HttpConnectionConfig};
use crate::drain::Watch;
use crate::http1::ResponseTable;
use crate::http2::Chunk;
use crate::stats::ListenerCell;
use crate::upstream::Ends;
use crate::worker::Worker;

/// The ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    /// Where it was made to.
    pub(super) destination: SocketAddr,
    /// The other end of its socket, whatever a PROXY header said.
    pub(super) direct: IpAddr,
}

impl Reached {
    /// As the socket says.
    pub(super) fn of(stream: &TcpStream) -> Self {
        Self { destination: stream.local_addr(), direct: stream.peer_addr().ip() }
    }
}

/// What serves the requests of one client, one after the other.
#[derive(Debug)]
pub(super) struct Downstream {
    pub(super) worker: Rc<Worker>,
    pub(super) chain: Rc<ChainId>,
    pub(super) peer: SocketAddr,
    /// The ends of its connection; `None`: what the socket says.
    pub(super) reached: Option<Rc<Reached>>,
    pub(super) cell: Arc<ListenerCell>,
    pub(super) client: Client,
    /// Of the answer in hand; an empty one while idle.
    pub(super) response_table: ResponseTable,
    pub(super) deadlines: Deadlines,
}

/// The client's side.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the small one lives as long as one request")]
pub(super) enum Client {
    Http1(Connection),
    Http2(Stream),
}

/// A connection of HTTP/1.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) inlet: Inlet,
    /// From the first byte of a request on, until it is served.
    pub(super) workspace: Option<Lease>,
    pub(super) watch: Watch,
    pub(super) served: u32,
    pub(super) opened: Instant,
    pub(super) open: Open,
}

/// Counts an open connection of its listener.
#[derive(Debug)]
pub(super) struct Open(Arc<ListenerCell>);

impl Open {
    pub(super) fn new(cell: Arc<ListenerCell>) -> Self {
        cell.connections.add(1);
        Self(cell)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.add(-1);
    }
}

/// A stream of HTTP/2.
#[derive(Debug)]
pub(super) struct Stream {
    /// The request's body.
    pub(super) recv: RecvStream,
    pub(super) respond: SendResponse<Chunk>,
    /// From the answer's head on.
    pub(super) send: Option<SendStream<Chunk>>,
}

/// What becomes of the client's side after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It is broken off: the peer must not take what it got for the whole.
    Abort,
    /// It is closed once the peer has read the answer.
    Close,
    /// It serves the next request.
    Keep,
}

impl Downstream {
    pub(super) fn new(worker: Rc<Worker>, chain: Rc<ChainId>, peer: SocketAddr, client: Client) -> Self {
        let reached = None;
        let cell = worker.listener_cell(&chain.listener);
        Self {
            worker,
            chain,
            peer,
            reached,
            cell,
            client,
            response_table: ResponseTable::default(),
            deadlines: Deadlines::new(),
        }
    }

    /// What its connection's ends are, where the socket does not say it all.
    pub(super) fn reached(mut self, reached: Option<Rc<Reached>>) -> Self {
        self.reached = reached;
        self
    }

    /// Where its connection comes from and was made to.
    pub(super) fn ends(&self) -> Ends {
        Ends { source: self.peer, destination: self.reached_ends().destination }
    }

    /// The ends of its connection.
    pub(super) fn reached_ends(&self) -> Reached {
        match (&self.reached, &self.client) {
            (Some(reached), _) => **reached,
            (None, Client::Http1(connection)) => Reached::of(&connection.stream),
            // A stream is told them when it begins.
            (None, Client::Http2(_)) => {
                Reached { destination: (Ipv4Addr::UNSPECIFIED, 0).into(), direct: self.peer.ip() }
            }
        }
    }

    /// True when the client's connection has served its time.
    pub(super) fn is_worn(&self, http: &HttpConnectionConfig) -> bool {
        match &self.client {
            Client::Http1(connection) => connection.is_worn(http),
            // Its connection looks to that.
            Client::Http2(_) => false,
        }
    }
}

/// How it shows that a client has gone while it waits for its answer.
pub(super) enum Presence<'a> {
    Http1,
    Http2(&'a mut SendResponse<Chunk>),
}

impl Presence<'_> {
    /// Passes interim heads on, where both sides speak HTTP/2 (RFC 9110 §15.2).
    pub(super) fn pass_interim(&mut self, awaited: &mut Awaited<'_>, cx: &mut Context<'_>) {
        let Self::Http2(respond) = self else { return };
        while let Poll::Ready(interim) = awaited.poll_interim(cx) {
            // A client that has gone is noticed elsewhere.
            let _ = respond.send_informational(interim);
        }
    }

    /// True when it has. `is_whole`: all of its request was taken, so that nothing of it is awaited.
    pub(super) fn is_gone(&mut self, is_whole: bool, upload: &mut Pump<'_>, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Http1 => is_whole && upload.is_source_gone(cx),
            Self::Http2(respond) => respond.poll_reset(cx).is_ready(),
        }
    }
}

impl Client {
    /// Where the request's body comes from, and whether the client is still there.
    pub(super) fn halves(&mut self) -> (Source<'_>, Presence<'_>) {
        match self {
            Self::Http1(Connection { stream, inlet, .. }) => {
                (Source::Http1 { input: &mut inlet.input, stream }, Presence::Http1)
            }
            Self::Http2(Stream { recv, respond, .. }) => (Source::Http2(recv), Presence::Http2(respond)),
        }
    }

    /// Where the two bodies come from and go; `None` before the answer's head.
    pub(super) fn bodies(&mut self) -> Option<(Source<'_>, Sink<'_>)> {
        Some(match self {
            Self::Http1(Connection { stream, inlet, .. }) => {
                (Source::Http1 { input: &mut inlet.input, stream }, Sink::Http1(stream))
            }
            Self::Http2(Stream { recv, send, .. }) => (Source::Http2(recv), Sink::Http2(send.as_mut()?)),
        })
    }
}

impl Connection {
    /// True when it has served its time.
    pub(super) fn is_worn(&self, http: &HttpConnectionConfig) -> bool {
        let requests = http.max_requests_per_connection.is_some_and(|max| self.served.saturating_add(1) >= max);
        let age = http.max_connection_duration.is_some_and(|max| now().saturating_duration_since(self.opened) >= max);
        requests || age || self.watch.is_started()
    }
}

impl Stream {
    /// Sends an answer made here.
    pub(super) fn answer(&mut self, head: Response<()>, body: Bytes) -> After {
        let Ok(mut send) = self.respond.send_response(head, body.is_empty()) else { return After::Abort };
        if !body.is_empty() && send.send_data(Chunk::Framed(body), true).is_err() {
            return After::Abort;
        }
        self.send = Some(send);
        After::Keep
    }

    /// Breaks it off.
    pub(super) fn reset(&mut self, reason: Reason) {
        match &mut self.send {
            Some(send) => send.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}
