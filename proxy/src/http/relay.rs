//! **Purpose.** Passing an answer on, head and body, as it arrives.
//!
//! **Errors.** An upstream that breaks off after its head was passed on: the downstream connection is reset, since no
//! status can be taken back.
//!
//! **Cancel.** Dropping the future closes the upstream connection.

use std::future::poll_fn;
use std::task::Poll;

use h2::Reason;

use super::attempt::RouteTiming;
use super::body::{Body, BodyFault};
use super::downstream::{After, Client, Downstream};
use super::exchange::Outcome;
use super::forward::{Answered, Forwarding, after};
use super::head::{HttpVersion, Response};
use super::pump::{Outgoing, Pump, PumpFault};
use super::respond::{self, Answering};
use super::upstream::Upstream;
use crate::fault::{Fault, Kind};
use crate::grpc::GrpcCode;
use crate::http1::BodyLength;

/// How the two bodies of an exchange came to their end.
enum Relayed {
    DownstreamBroke,
    UpstreamBroke(Kind, Reason),
    Whole,
}

/// How an answer goes on.
struct Passage {
    body: Body,
    outgoing: Outgoing,
    /// The client's connection serves another request afterwards.
    keep: bool,
    /// Both connections have left HTTP.
    is_tunnel: bool,
}

impl Downstream {
    /// Passes the answer on and decides what becomes of both connections: also gives whether the endpoint's can be kept.
    pub(super) async fn relay(
        &mut self,
        forwarding: &mut Forwarding<'_>,
        answered: &mut Answered,
        answering: &Answering<'_>,
    ) -> (Outcome, bool) {
        let head = answered.head.view(&self.response_table);
        let length = head.body(forwarding.matched.request.head.method());
        let upstream_keeps = head.keep_alive() && length != BodyLength::UntilClose;
        let status = answered.status;
        let passage = match forwarding.upgrade {
            Some(kind) if is_switched(head, kind) => self.pass_switch(forwarding, answered),
            _ => self.pass_head(forwarding, answered, length, answering),
        };
        let Some(passage) = passage else {
            forwarding.matched.cell.faults.add_one(Kind::Gone);
            return (Outcome { after: After::Abort, status }, false);
        };
        let (keep, is_tunnel) = (passage.keep, passage.is_tunnel);
        let relayed = self.relay_bodies(forwarding, answered, passage).await;
        drop(answered.in_flight.take());
        let whole_request = forwarding.body.is_done() && answered.uploaded;
        self.end_call(forwarding, answered, &relayed);
        match relayed {
            Relayed::Whole => {
                let is_empty = matches!(&answered.upstream, Upstream::Http1 { answer, .. } if answer.inlet.is_empty());
                let is_kept = upstream_keeps && whole_request && !is_tunnel && is_empty;
                (Outcome { after: after(keep), status }, is_kept)
            }
            Relayed::DownstreamBroke => {
                forwarding.matched.cell.faults.add_one(Kind::Gone);
                if let Upstream::Http1 { connection, .. } = &answered.upstream
                    && is_tunnel
                {
                    // An orderly end would pass for the client's last word.
                    connection.stream().reset_on_close();
                }
                (Outcome { after: After::Abort, status }, false)
            }
            Relayed::UpstreamBroke(kind, reason) => {
                forwarding.matched.cell.faults.add_one(kind);
                forwarding.cluster.failed(answered.endpoint, kind, &self.worker);
                if let Client::Http2(stream) = &mut self.client {
                    stream.reset(reason);
                }
                (Outcome { after: After::Abort, status }, false)
            }
        }
    }

    /// Notes how a call of gRPC ended, and judges its endpoint by that where the head of its answer did not tell.
    fn end_call(&self, forwarding: &mut Forwarding<'_>, answered: &Answered, relayed: &Relayed) {
        let Some(call) = &mut forwarding.call else { return };
        match relayed {
            Relayed::DownstreamBroke => call.fail(GrpcCode::of_fault(&Fault::new(Kind::Gone))),
            Relayed::UpstreamBroke(kind, _) => call.fail(GrpcCode::of_fault(&Fault::new(*kind))),
            Relayed::Whole if answered.code.is_some() => {}
            Relayed::Whole => {
                let untold =
                    if answered.status == 200 { GrpcCode::Unknown } else { GrpcCode::of_http(answered.status) };
                let code = call.code().unwrap_or(untold);
                call.end(code);
                if answered.status == 200 {
                    forwarding.cluster.ended_call(answered.endpoint, code, &self.worker);
                }
            }
        }
    }

    /// Passes the head of an ordinary answer on; `None` when the client is gone.
    fn pass_head(
        &mut self,
        forwarding: &Forwarding<'_>,
        answered: &mut Answered,
        length: BodyLength,
        answering: &Answering<'_>,
    ) -> Option<Passage> {
        let request = forwarding.matched.request.head;
        let head = answered.head.view(&self.response_table);
        let wants_trailers = forwarding.matched.http.http1_trailers;
        let is_chunked = matches!(length, BodyLength::Chunked | BodyLength::UntilClose);
        let may_chunk = request.version() != HttpVersion::Http10;
        // A request body still on its way would be taken for the next request: unless it ends, the connection does.
        let is_whole = forwarding.body.is_done() && answered.uploaded;
        let keep = is_whole && request.keep_alive() && answering.may_keep && (may_chunk || !is_chunked);
        let keep = keep && !self.is_worn(forwarding.matched.http);
        match &mut self.client {
            Client::Http1(connection) => {
                connection.stream.queue(respond::relayed_head(head, length, keep, &self.worker, forwarding));
                let outgoing = match is_chunked && may_chunk {
                    true if wants_trailers => Outgoing::ChunkedWithTrailers,
                    true => Outgoing::Chunked,
                    false => Outgoing::Plain,
                };
                let body = answered.take_body(length, wants_trailers);
                answered.head.let_go();
                Some(Passage { body, outgoing, keep, is_tunnel: false })
            }
            Client::Http2(stream) => {
                let received = (answered.status, answered.head.take_headers(&self.response_table, length));
                let response = respond::relayed_response(received, length, &self.worker, forwarding);
                let mut body = answered.take_body(length, true);
                body.end_queued = body.is_over();
                stream.send = Some(stream.respond.send_response(response, body.end_queued).ok()?);
                Some(Passage { body, outgoing: Outgoing::Plain, keep: true, is_tunnel: false })
            }
        }
    }

    /// Tells the client that its connection or stream is a tunnel from here on; `None` when it is gone.
    fn pass_switch(&mut self, forwarding: &mut Forwarding<'_>, answered: &Answered) -> Option<Passage> {
        let head = answered.head.view(&self.response_table);
        match &mut self.client {
            Client::Http1(connection) => {
                connection.stream.queue(respond::switched_head(head, &self.worker, forwarding));
                forwarding.body = Body::new(BodyLength::UntilClose);
            }
            Client::Http2(stream) => {
                let response = respond::switched_response(head, &self.worker, forwarding);
                stream.send = Some(stream.respond.send_response(response, false).ok()?);
                forwarding.body = Body::framed(stream.recv.is_end_stream());
            }
        }
        forwarding.outgoing = Outgoing::Tunnel;
        // What it may take is told by its idle timeout.
        self.deadlines.set(Kind::RouteTimeout, None);
        let body = answered.head.body(BodyLength::UntilClose, false);
        Some(Passage { body, outgoing: Outgoing::Tunnel, keep: false, is_tunnel: true })
    }

    /// Moves the response body, and what is left of the request body beside it.
    async fn relay_bodies(
        &mut self,
        forwarding: &mut Forwarding<'_>,
        answered: &mut Answered,
        passage: Passage,
    ) -> Relayed {
        let Passage { mut body, outgoing, is_tunnel, .. } = passage;
        let Self { client, deadlines, .. } = self;
        let Answered { upstream, uploaded, .. } = answered;
        let (Some((request, client_sink)), Some((upstream_sink, response))) = (client.bodies(), upstream.bodies())
        else {
            return Relayed::DownstreamBroke;
        };
        let (asked, answered) = match forwarding.call.as_deref_mut().filter(|_| !is_tunnel) {
            Some(call) => (Some(&mut call.request), Some(&mut call.answer)),
            None => (None, None),
        };
        let mut download = Pump::new(&mut body, response, client_sink, outgoing).metered(answered);
        let mut upload = Pump::new(&mut forwarding.body, request, upstream_sink, forwarding.outgoing).metered(asked);
        let cell = forwarding.matched.cell;
        let mut upload_over = *uploaded && !is_tunnel;
        let mut download_over = false;
        let mut timing = RouteTiming::new(forwarding.action, None);
        let relayed = poll_fn(|cx| {
            let moved = download.moved() + upload.moved();
            if !upload_over {
                // An upload that fails after the answer began is no fault of the answer: it is only not whole.
                if let Poll::Ready(result) = upload.poll_moved(cx) {
                    upload_over = true;
                    *uploaded = result.is_ok();
                    if let Err(PumpFault::Source(_)) = result {
                        return Poll::Ready(Relayed::DownstreamBroke);
                    }
                }
                if upload.is_received() && !is_tunnel {
                    timing.request_ended(deadlines);
                }
            }
            if !download_over {
                match download.poll_moved(cx) {
                    Poll::Ready(Ok(())) => download_over = true,
                    Poll::Ready(Err(PumpFault::Source(fault))) => return Poll::Ready(broken(fault)),
                    Poll::Ready(Err(PumpFault::Sink)) => return Poll::Ready(Relayed::DownstreamBroke),
                    Poll::Pending => {}
                }
            }
            if download_over && (upload_over || !is_tunnel) {
                return Poll::Ready(Relayed::Whole);
            }
            // The end of a tunnel's one direction says nothing of the other.
            let is_gone = !is_tunnel && upload_over && *uploaded && upload.is_source_gone(cx);
            if is_gone || download.is_sink_reset(cx) {
                return Poll::Ready(Relayed::DownstreamBroke);
            }
            if download.moved() + upload.moved() != moved {
                deadlines.touch();
            }
            // What waits to be read by the client, or to be sent by it, is the client's delay, whatever clock notices it.
            let awaits_upload = !upload_over && !upload.is_received() && !upload.is_blocked();
            let awaits_client = awaits_upload || download.is_blocked();
            deadlines.poll_passed(cx).map(|kind| match awaits_client {
                true => Relayed::DownstreamBroke,
                false => Relayed::UpstreamBroke(kind, Reason::CANCEL),
            })
        })
        .await;
        cell.bytes_out.add(download.moved());
        cell.bytes_in.add(upload.moved());
        relayed
    }
}

/// The upstream has left HTTP as it was asked to.
fn is_switched(head: Response<'_>, kind: &[u8]) -> bool {
    match head {
        Response::Http1(head) if kind != b"connect" => head.is_switch(),
        Response::Http1(head) => (200..300).contains(&head.status()),
        Response::Http2 { parts, .. } => parts.status.is_success(),
    }
}

/// An answer that breaks off; a client of HTTP/2 is told in the upstream's own word.
fn broken(fault: BodyFault) -> Relayed {
    let reason = match fault {
        BodyFault::Reset(reason) => reason,
        BodyFault::Malformed => Reason::PROTOCOL_ERROR,
        BodyFault::Truncated => Reason::INTERNAL_ERROR,
    };
    Relayed::UpstreamBroke(Kind::ResponseTruncated, reason)
}
