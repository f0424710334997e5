//! **Purpose.** One try: a connection or a stream, the request sent over it, and the head of its answer.
//!
//! **Errors.** A [`TryFault`]: the fault, and whether a byte of the request may have been served.
//!
//! **Cancel.** Dropping the future closes the connection of the try, or resets its stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use h2::ext::Protocol;
use outrigger_reactor::{Buf, count_copied, now};

use super::answer::FinalHead;
use super::body::{BodyFault, Replay};
use super::deadline::Deadlines;
use super::downstream::{Client, Downstream};
use super::forward::{Answered, Forwarding, TryFault};
use super::pump::{Pump, PumpFault, queue_framed};
use super::respond;
use super::upstream::{AnswerHead, Link, Upstream, fault_of};
use crate::config::ForwardAction;
use crate::fault::{Fault, Kind, Retry};
use crate::http2::Chunk;
use crate::policy::Sent;
use crate::upstream::Connection;
use crate::worker::{Cluster, InFlight, OpenFault};

impl Downstream {
    /// What the try goes out on.
    pub(super) async fn link(&mut self, forwarding: &Forwarding<'_>, endpoint: usize) -> Result<Link, TryFault> {
        let cluster = forwarding.cluster;
        if forwarding.is_framed {
            return self.open_stream(cluster, endpoint).await;
        }
        // A replay follows a pooled connection found dead: its neighbours may be as dead.
        let pooled = if forwarding.replayed { None } else { cluster.checkout(endpoint) };
        self.connect(cluster, endpoint, pooled).await.map(Link::Http1)
    }

    /// A place on a connection of HTTP/2 to the picked endpoint.
    async fn open_stream(&mut self, cluster: &Rc<Cluster>, endpoint: usize) -> Result<Link, TryFault> {
        let connects = cluster.cell.connects.value();
        let worker = self.worker.clone();
        let lease = self.opened(pin!(cluster.open_stream(endpoint, &worker.chance))).await?;
        if cluster.cell.connects.value() == connects {
            cluster.cell.reuses.add_one();
        }
        Ok(Link::Http2(lease))
    }

    /// A connection to the picked endpoint: a pooled one, or a new one within the limits.
    async fn connect(
        &mut self,
        cluster: &Rc<Cluster>,
        endpoint: usize,
        pooled: Option<Connection>,
    ) -> Result<Connection, TryFault> {
        if let Some(connection) = pooled {
            cluster.cell.reuses.add_one();
            return Ok(connection);
        }
        self.opened(pin!(cluster.open(endpoint))).await
    }

    /// The far end of a tunnel that ends here. No request goes out: that there is a connection is the answer.
    pub(super) async fn open_tunnel(
        &mut self,
        cluster: &Cluster,
        in_flight: Option<InFlight>,
        endpoint: usize,
    ) -> Result<Answered, TryFault> {
        let ends = self.ends();
        let connection = self.opened(pin!(cluster.open_unpooled(endpoint, || ends))).await?;
        Ok(Answered {
            status: 200,
            upstream: Upstream::Http1 { connection, answer: FinalHead::default() },
            head: AnswerHead::opened(),
            code: None,
            body: None,
            uploaded: false,
            endpoint,
            in_flight,
        })
    }

    /// What `opening` brings before a deadline passes.
    async fn opened<T>(
        &mut self,
        mut opening: Pin<&mut impl Future<Output = Result<T, OpenFault>>>,
    ) -> Result<T, TryFault> {
        let deadlines = &mut self.deadlines;
        poll_fn(|cx| {
            if let Poll::Ready(opened) = opening.as_mut().poll(cx) {
                return Poll::Ready(opened.map_err(|fault| TryFault::unsent(fault.kind())));
            }
            deadlines.poll_passed(cx).map(|kind| Err(TryFault::unsent(kind)))
        })
        .await
    }

    /// Sends the request over `link` and reads the head of its answer, both at once: an upstream may answer, and even
    /// close, before it has read a body.
    pub(super) async fn exchange_head(
        &mut self,
        forwarding: &mut Forwarding<'_>,
        link: Link,
        in_flight: Option<InFlight>,
        endpoint: usize,
    ) -> Result<Answered, TryFault> {
        let on_reused = link.is_reused();
        let mut upstream = self.begin_request(forwarding, link).await?;
        let mut uploaded = false;
        let mut upload_broke = false;
        let action = forwarding.action;
        let Self { client, response_table, deadlines, .. } = self;
        response_table.reset();
        let mut timing = RouteTiming::new(action, forwarding.per_try_timeout());
        if !forwarding.body.is_done() {
            // While the client sends, it is not the endpoint that is waited for.
            deadlines.set(Kind::PerTryTimeout, None);
        }
        let cell = forwarding.matched.cell;
        let (source, mut presence) = client.halves();
        let result = {
            let (sink, mut awaited) = upstream.halves();
            let Forwarding { body, replay, outgoing, call, .. } = &mut *forwarding;
            let meter = call.as_mut().map(|call| &mut call.request);
            let mut pump = Pump::new(body, source, sink, *outgoing).kept_in(replay.as_mut()).metered(meter);
            let polled = poll_fn(|cx| {
                if !uploaded {
                    let moved = pump.moved();
                    match pump.poll_moved(cx) {
                        Poll::Ready(Ok(())) => uploaded = true,
                        Poll::Ready(Err(PumpFault::Source(fault))) => {
                            return Poll::Ready(Err(Broke::Downstream(fault)));
                        }
                        // The answer may already be on its way: it decides, not the failed send.
                        Poll::Ready(Err(PumpFault::Sink)) => (uploaded, upload_broke) = (true, true),
                        Poll::Pending => {}
                    }
                    if pump.moved() != moved {
                        deadlines.touch();
                    }
                    if pump.is_received() {
                        timing.request_ended(deadlines);
                    }
                }
                presence.pass_interim(&mut awaited, cx);
                if let Poll::Ready(answer) = awaited.poll(response_table, cx) {
                    return Poll::Ready(answer.map_err(Broke::Upstream));
                }
                if presence.is_gone(uploaded && !upload_broke, &mut pump, cx) {
                    return Poll::Ready(Err(Broke::Gone));
                }
                // A client that stops in the middle of its body is not the endpoint's fault.
                let awaits_client = !uploaded && !pump.is_received() && !pump.is_blocked();
                deadlines.poll_passed(cx).map(|kind| {
                    let is_client = awaits_client && kind == Kind::StreamIdle;
                    Err(Broke::Deadline(if is_client { Kind::RequestTimeout } else { kind }))
                })
            })
            .await;
            cell.bytes_in.add(pump.moved());
            polled
        };
        match result {
            Ok(head) => Ok(Answered {
                status: head.view(response_table).status(),
                upstream,
                head,
                code: None,
                body: None,
                uploaded: uploaded && !upload_broke,
                endpoint,
                in_flight,
            }),
            Err(broke) => Err(broke.into_fault(&upstream, on_reused)),
        }
    }

    /// Sends the request head, and what earlier tries already took of the body; tells a waiting client to go on.
    async fn begin_request(&mut self, forwarding: &mut Forwarding<'_>, link: Link) -> Result<Upstream, TryFault> {
        forwarding.body.begin_outgoing();
        let kept = forwarding.replay.as_ref().map(Replay::bytes).filter(|bytes| !bytes.is_empty());
        let kept = kept.map(|bytes| {
            count_copied(bytes.len());
            Buf::from(bytes.to_vec())
        });
        let upstream = match link {
            Link::Http1(connection) => {
                let stream = connection.stream();
                stream.queue(respond::forwarded_head(self.peer, forwarding, &self.worker));
                kept.into_iter().for_each(|kept| queue_framed(stream, kept, forwarding.outgoing));
                let answer = forwarding.upgrade.map_or_else(FinalHead::default, |_| FinalHead::to_upgrade());
                Upstream::Http1 { connection, answer }
            }
            Link::Http2(lease) => {
                let request = respond::forwarded_request(self.peer, forwarding);
                let request = request.map_err(TryFault::unsent)?;
                let is_extended = request.extensions().get::<Protocol>().is_some();
                if is_extended && !lease.takes_extended_connect() {
                    return Err(TryFault::unsent(Kind::UpgradeUnsupported));
                }
                let is_whole = forwarding.upgrade.is_none() && kept.is_none() && forwarding.body.is_done();
                // What an upgrade sends waits for the answer.
                forwarding.body.end_queued = is_whole || forwarding.upgrade.is_some();
                forwarding.body.held = kept.map(Chunk::Received);
                match lease.send(request, is_whole) {
                    Ok((response, send)) => Upstream::streaming(lease, response, send),
                    Err(error) => return Err(TryFault::unsent(fault_of(&error))),
                }
            }
        };
        if !forwarding.continued {
            forwarding.continued = true;
            if !self.tell_to_continue().await {
                return Err(TryFault::unsent(Kind::Gone));
            }
        }
        Ok(upstream)
    }

    /// Sends `100 Continue` to a client that waits for it; false when it is gone.
    async fn tell_to_continue(&mut self) -> bool {
        match &mut self.client {
            // One that sends already does not wait.
            Client::Http1(connection) if !connection.inlet.is_empty() => true,
            Client::Http1(connection) => {
                connection.stream.queue(Buf::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"));
                connection.stream.flush().await.is_ok()
            }
            Client::Http2(stream) => {
                let mut interim = http::Response::new(());
                *interim.status_mut() = http::StatusCode::CONTINUE;
                stream.respond.send_informational(interim).is_ok()
            }
        }
    }
}

/// Starts what runs from the end of the request, once.
pub(super) struct RouteTiming<'a> {
    action: &'a ForwardAction,
    /// `None` too when the try has answered: its time is over.
    per_try: Option<Duration>,
    armed: bool,
}

impl<'a> RouteTiming<'a> {
    pub(super) fn new(action: &'a ForwardAction, per_try: Option<Duration>) -> Self {
        Self { action, per_try, armed: false }
    }

    pub(super) fn request_ended(&mut self, deadlines: &mut Deadlines) {
        if self.armed {
            return;
        }
        self.armed = true;
        deadlines.set(Kind::RequestTimeout, None);
        if deadlines.at(Kind::PerTryTimeout).is_none() {
            deadlines.set(Kind::PerTryTimeout, self.per_try.map(|span| now() + span));
        }
        if deadlines.at(Kind::RouteTimeout).is_none() {
            deadlines.set(Kind::RouteTimeout, self.action.timeout.map(|span| now() + span));
        }
    }
}

/// What ended a try before its answer.
#[derive(Debug)]
enum Broke {
    Downstream(BodyFault),
    Gone,
    Deadline(Kind),
    Upstream(Kind),
}

impl Broke {
    fn into_fault(self, upstream: &Upstream, on_reused: bool) -> TryFault {
        let kind = match self {
            Self::Downstream(BodyFault::Malformed) => Kind::BadChunk,
            Self::Downstream(BodyFault::Reset(_) | BodyFault::Truncated) | Self::Gone => Kind::Gone,
            Self::Deadline(kind) | Self::Upstream(kind) => kind,
        };
        let is_unsent = upstream.is_unsent() || kind == Kind::StreamRefused;
        let sent = if is_unsent { Sent::Nothing } else { Sent::Maybe };
        let verdict = if sent == Sent::Nothing { Retry::Safe } else { kind.retry() };
        TryFault { fault: Fault::new(kind).with_retry(verdict), sent, on_reused }
    }
}
