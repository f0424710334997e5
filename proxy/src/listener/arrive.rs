//! **Purpose.** From an accepted connection to the filter chain that takes it, where that is not clear from the start.
//!
//! **Shape.**
//! ```text
//!   PROXY header ──▶ first bytes, if a chain asks for them ──▶ chosen ──▶ served, its bytes unread
//!        │ none,         │ in time no verdict: goes on            │ none takes it
//!        ▼ broken        ▼ or not                                 ▼
//!      closed          closed                                   closed
//! ```
//! What is read is given back: in the block it came in, or, when it came in several pieces, in one copy of them, so that a
//! client that sends single bytes holds no more than it sent.
//!
//! A client whose server speaks first says nothing: the wait for its bytes is paid once a destination
//! ([`ServerFirst`](crate::worker::ServerFirst)), and never where port and address alone choose.
//!
//! **Limits.** `listener_filters_timeout` from the accept on, for all of it; a second once a drain has begun. Bytes: those of
//! the readers in [`detect`](crate::detect).
//!
//! **Errors.** A connection that is not served is counted as a `Fault` of its listener.
//!
//! **Cancel.** Dropping the future closes the connection.
//!
//! **Source.** Envoy, listener filters. Stricter: the time's end does not waive a PROXY header. Milder: an end of the client's
//! bytes decides as the time's end does with `continue_on_listener_filters_timeout`, and an inspector that no chain asks for
//! is not run.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use outrigger_reactor::{Buf, Sleep, TcpStream, now, sleep_until};

use super::accept::start;
use crate::config::{Inspection, ListenerConfig, PortMatch, Transport};
use crate::detect::{
    self, ClientHello, Facts, HelloReader, HelloVerdict, LineReader, Needs, Preface, ProxyVerdict, proxy_header,
};
use crate::drain::Watch;
use crate::fault::{Fault, Kind};
use crate::stats::{Detected, ListenerCell};
use crate::tcp::Origin;
use crate::worker::{Destination, FirstWord, View, Worker};

/// How long a connection may take to show what it is once a drain has begun.
const LAST_CALL: Duration = Duration::from_secs(1);

/// A connection that is looked at.
#[derive(Debug)]
pub(super) struct Arrival {
    worker: Rc<Worker>,
    config: Arc<ListenerConfig>,
    stream: TcpStream,
    held: Held,
    cell: Counted,
    clock: Clock,
    destination: SocketAddr,
    source: SocketAddr,
    /// The client said nothing.
    first_word: Option<FirstWord>,
}

/// Counts the connection among those of its listener while it lives.
#[derive(Debug)]
struct Counted(Arc<ListenerCell>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.add(-1);
    }
}

/// Why no more bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// The connection broke.
    Broken,
    /// The client has ended its side.
    End,
    /// The time is over.
    Late,
    /// The server is known to speak first.
    Skipped,
}

/// What the first bytes told.
#[derive(Debug, Default)]
struct Seen {
    /// `None`: not TLS.
    hello: Option<ClientHello>,
    preface: Option<Preface>,
}

impl Arrival {
    /// A connection made to `destination`, or else where it was accepted.
    pub(super) fn new(
        worker: &Rc<Worker>,
        config: &Arc<ListenerConfig>,
        stream: TcpStream,
        destination: Option<SocketAddr>,
    ) -> Self {
        let cell = worker.listener_cell(&config.name);
        cell.connections.add(1);
        Self {
            worker: worker.clone(),
            clock: Clock::new(config.inspection.timeout, worker.drain.watch()),
            config: config.clone(),
            destination: destination.unwrap_or_else(|| stream.local_addr()),
            source: stream.peer_addr(),
            stream,
            held: Held::default(),
            cell: Counted(cell),
            first_word: None,
        }
    }

    /// Finds the chain and serves the connection under it.
    pub(super) async fn serve(mut self) {
        let decided = self.decide().await;
        let view = self.worker.view();
        match decided {
            Ok(Some(place)) => self.start(&view, place),
            Ok(None) => {}
            Err(kind) => self.refuse(&view, kind),
        }
    }

    fn start(mut self, view: &Rc<View>, place: usize) {
        // The listener may have changed meanwhile: the chain is found by its name.
        let name = &self.config.chains[place].name;
        let chain = view.chains(&self.config.name).iter().find(|chain| chain.id().chain == *name);
        let Some(chain) = chain else { return self.refuse(view, Kind::NoFilterChain) };
        let origin =
            Origin { source: self.source, destination: Some(self.destination), first_word: self.first_word.take() };
        self.held.give_back(&self.stream);
        // From here on whoever serves it counts it, and has the drain wait.
        start(&self.worker, view, chain, self.stream, origin);
    }

    fn refuse(self, view: &View, kind: Kind) {
        self.cell.0.faults.add_one(kind);
        let (peer, fault) = (self.source, Fault::new(kind));
        let fault = fault.header(view.epoch());
        tracing::debug!(listener = %self.config.name, %peer, %fault, "connection closed before it was served");
        if !self.held.bytes().is_empty() {
            // As the kernel does when bytes were not read: the peer is to see that they were not taken.
            self.stream.reset_on_close();
        }
    }

    /// The place of the chain; `None`: the client is gone.
    async fn decide(&mut self) -> Result<Option<usize>, Kind> {
        let config = self.config.clone();
        let inspection = &config.inspection;
        let direct_source = self.source.ip();
        let port = self.destination.port();
        if let Some(proxy) = inspection.proxy.as_ref().filter(|proxy| is_on(proxy.off.as_ref(), port)) {
            match self.until(false, |bytes| proxy_header(bytes, proxy.refused)).await {
                Ok(ProxyVerdict::Header { len, addresses, .. }) => {
                    self.cell.0.proxy_headers.add_one();
                    self.held.skip(len);
                    (self.source, self.destination) = addresses.unwrap_or((self.source, self.destination));
                }
                Ok(ProxyVerdict::Absent) if proxy.is_optional => {}
                Ok(ProxyVerdict::Absent | ProxyVerdict::Malformed) => return Err(Kind::BadProxyHeader),
                Err(Pause::Late | Pause::Skipped) if proxy.is_optional && inspection.goes_on => {}
                Err(Pause::Late | Pause::Skipped) => return Err(Kind::DetectTimeout),
                Err(Pause::End) if !self.held.bytes().is_empty() && proxy.is_optional => {}
                Err(Pause::End) if !self.held.bytes().is_empty() => return Err(Kind::BadProxyHeader),
                Err(Pause::End | Pause::Broken) => return Ok(None),
            }
        }
        let mut facts = Facts {
            destination: self.destination,
            source: self.source,
            direct_source,
            transport: Transport::Raw,
            server_name: "",
            protocols: b"",
        };
        let needs = needed(&config, &facts);
        let Some(seen) = self.look(inspection, needs).await? else { return Ok(None) };
        if let Some(hello) = &seen.hello {
            facts.transport = Transport::Tls;
            (facts.server_name, facts.protocols) = (&hello.server_name, &hello.protocols);
        } else if let Some(preface) = seen.preface {
            facts.protocols = preface.protocol();
        }
        let place = detect::choose(&config.chains, &facts).ok_or(Kind::NoFilterChain)?;
        Ok(Some(place))
    }

    /// Looks at the first bytes as far as `needs` asks; `None`: the client is gone.
    async fn look(&mut self, inspection: &Inspection, needs: Needs) -> Result<Option<Seen>, Kind> {
        let mut seen = Seen::default();
        if needs == Needs::default() {
            return Ok(Some(seen));
        }
        let closes_on_error = inspection.tls.as_ref().is_some_and(|tls| tls.closes_on_error);
        let hello_max = inspection.tls.as_ref().map_or(0, |tls| tls.hello_max);
        let mut hello = needs.tls.then(|| HelloReader::new(hello_max));
        let mut line = needs.http.then(LineReader::default);
        let mut bad_hello = false;
        let looked = self.until(inspection.goes_on, |bytes| {
            if let Some(reader) = &mut hello {
                match reader.read(bytes)? {
                    HelloVerdict::Hello(found) => {
                        seen.hello = Some(found);
                        return Some(Ok(Detected::Tls));
                    }
                    HelloVerdict::NotTls | HelloVerdict::Malformed | HelloVerdict::TooLarge if closes_on_error => {
                        return Some(Err(Kind::BadClientHello));
                    }
                    HelloVerdict::Malformed | HelloVerdict::TooLarge => bad_hello = true,
                    HelloVerdict::NotTls => {}
                }
                hello = None;
            }
            let Some(line) = &mut line else { return Some(Ok(Detected::Opaque)) };
            let preface = line.read(bytes)?;
            seen.preface = Some(preface);
            Some(Ok(match preface {
                Preface::Http10 | Preface::Http11 => Detected::Http1,
                Preface::Http2 => Detected::Http2,
                Preface::Opaque => Detected::Opaque,
            }))
        });
        let detected = match looked.await {
            Ok(verdict) => verdict?,
            Err(Pause::Broken) => return Ok(None),
            Err(Pause::Late) if !inspection.goes_on => return Err(Kind::DetectTimeout),
            Err(pause) => {
                if self.held.bytes().is_empty() && pause != Pause::End {
                    let known = self.worker.shared.server_first.clone();
                    self.first_word = Some(FirstWord::new(known, self.place()));
                }
                if pause == Pause::Skipped { Detected::Skipped } else { Detected::Silent }
            }
        };
        let detected = if bad_hello { Detected::BadHello } else { detected };
        self.cell.0.detected[detected as usize].add_one();
        Ok(Some(seen))
    }

    fn place(&self) -> Destination {
        Destination::new(&self.config.name, self.destination)
    }

    /// Asks `verdict` with ever more bytes, until it has one or no more come.
    async fn until<T>(&mut self, may_skip: bool, mut verdict: impl FnMut(&[u8]) -> Option<T>) -> Result<T, Pause> {
        loop {
            if let Some(verdict) = verdict(self.held.bytes()) {
                return Ok(verdict);
            }
            poll_fn(|cx| self.poll_more(may_skip, cx)).await?;
        }
    }

    fn poll_more(&mut self, may_skip: bool, cx: &mut Context<'_>) -> Poll<Result<(), Pause>> {
        match self.stream.poll_recv(cx) {
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => return Poll::Ready(Err(Pause::End)),
            Poll::Ready(Ok(bytes)) => {
                self.held.push(bytes);
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Pause::Broken)),
            Poll::Pending => {}
        }
        if may_skip && self.held.bytes().is_empty() && self.worker.shared.server_first.has(self.place(), now()) {
            return Poll::Ready(Err(Pause::Skipped));
        }
        self.clock.poll_over(cx).map(|()| Err(Pause::Late))
    }
}

/// What must be known of the bytes, as far as it is looked for on this port.
fn needed(config: &ListenerConfig, facts: &Facts<'_>) -> Needs {
    let port = facts.destination.port();
    let asked = detect::needs(&config.chains, facts);
    let tls = config.inspection.tls.as_ref().filter(|tls| is_on(tls.off.as_ref(), port));
    let http = config.inspection.http.as_ref().filter(|http| is_on(http.off.as_ref(), port));
    Needs { tls: tls.is_some_and(|tls| asked.tls || tls.closes_on_error), http: http.is_some() && asked.http }
}

fn is_on(off: Option<&PortMatch>, port: u16) -> bool {
    off.is_none_or(|off| !off.has(port))
}

/// When the wait is over.
#[derive(Debug)]
struct Clock {
    timer: Option<Sleep>,
    watch: Watch,
    is_last_call: bool,
}

impl Clock {
    fn new(span: Option<Duration>, watch: Watch) -> Self {
        Self { timer: span.map(|span| sleep_until(now() + span)), watch, is_last_call: false }
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_last_call && self.watch.poll_started(cx).is_ready() {
            self.is_last_call = true;
            let at = now() + LAST_CALL;
            if self.timer.as_ref().is_none_or(|timer| timer.deadline() > at) {
                self.timer = Some(sleep_until(at));
            }
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| Pin::new(timer).poll(cx))
    }
}

/// Bytes that were read and are to be read again.
#[derive(Debug, Default)]
enum Held {
    #[default]
    None,
    /// As it came.
    One(Buf),
    /// Pieces, put together.
    Joined(Vec<u8>),
}

impl Held {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::One(bytes) => bytes,
            Self::Joined(bytes) => bytes,
        }
    }

    fn push(&mut self, more: Buf) {
        match self {
            Self::None => *self = Self::One(more),
            Self::One(bytes) => *self = Self::Joined([&**bytes, &*more].concat()),
            Self::Joined(bytes) => bytes.extend_from_slice(&more),
        }
    }

    /// Drops so many from the front.
    fn skip(&mut self, count: usize) {
        match self {
            Self::None => {}
            Self::One(bytes) => bytes.advance(count),
            Self::Joined(bytes) => drop(bytes.drain(..count)),
        }
    }

    fn give_back(self, stream: &TcpStream) {
        match self {
            Self::None => {}
            Self::One(bytes) => stream.unread(bytes),
            Self::Joined(bytes) => stream.unread(Buf::from(bytes)),
        }
    }
}
