//! **Purpose.** Passing an answer on, head and body, as it arrives.
//!
//! **Errors.** An upstream that breaks off after its head was passed on: the downstream connection is reset, since no
//! status can be taken back.
//!
//! **Cancel.** Dropping the future closes the upstream connection.

use std::future::poll_fn;
use std::task::Poll;

use super::body::{Body, Outgoing, Pump, PumpFault};
use super::exchange::Outcome;
use super::forward::{Answered, Forwarding, RouteTiming, after, received_end};
use super::framing::BodyLength;
use super::head::Version;
use super::respond::{self, Answering};
use super::server::{After, Downstream};
use crate::fault::Kind;

/// How the two bodies of an exchange came to their end.
enum Relayed {
    DownstreamBroke,
    UpstreamBroke(Kind),
    Whole,
}

impl Downstream {
    /// Passes the answer on and decides what becomes of both connections.
    pub(super) async fn relay(
        &mut self,
        forwarding: &mut Forwarding<'_>,
        mut answered: Answered,
        answering: &Answering<'_>,
    ) -> Outcome {
        let request = forwarding.matched.request.head;
        let head = self.response_table.view(&answered.head);
        let length = head.body(request.method());
        let is_chunked = matches!(length, BodyLength::Chunked | BodyLength::UntilClose);
        let may_chunk = request.version() == Version::Http11;
        let outgoing = if is_chunked && may_chunk { Outgoing::Chunked } else { Outgoing::Plain };
        let upstream_keeps = head.keep_alive() && length != BodyLength::UntilClose;
        // A request body still on its way would be taken for the next request: unless it ends, the connection does.
        let is_whole = forwarding.body.is_done() && answered.uploaded;
        let keep = is_whole && request.keep_alive() && answering.may_keep && (may_chunk || !is_chunked);
        let keep = keep && !self.is_worn(forwarding.matched.http);
        self.stream.queue(respond::relayed_head(head, length, keep, &self.worker, forwarding));
        let status = answered.status;
        let relayed = self.relay_bodies(forwarding, &mut answered, Body::new(length), outgoing).await;
        drop(answered.in_flight.take());
        let whole_request = forwarding.body.is_done() && answered.uploaded;
        match relayed {
            Relayed::Whole => {
                if upstream_keeps && whole_request && answered.inlet.is_empty() {
                    forwarding.cluster.give_back(answered.connection);
                }
                Outcome { after: after(keep), status }
            }
            Relayed::DownstreamBroke => {
                forwarding.matched.cell.faults.add_one(Kind::Gone);
                Outcome { after: After::Abort, status }
            }
            Relayed::UpstreamBroke(kind) => {
                forwarding.matched.cell.faults.add_one(kind);
                forwarding.cluster.failed(answered.endpoint, kind, &self.worker);
                Outcome { after: After::Abort, status }
            }
        }
    }

    /// Moves the response body, and what is left of the request body beside it.
    async fn relay_bodies(
        &mut self,
        forwarding: &mut Forwarding<'_>,
        answered: &mut Answered,
        mut body: Body,
        outgoing: Outgoing,
    ) -> Relayed {
        let Self { stream, inlet, deadlines, .. } = self;
        let Answered { connection, inlet: answer, uploaded, .. } = answered;
        let mut download = Pump::new(&mut body, &mut answer.input, connection.stream(), stream).framed(outgoing);
        let mut upload =
            Pump::new(&mut forwarding.body, &mut inlet.input, stream, connection.stream()).framed(forwarding.outgoing);
        let cell = forwarding.matched.cell;
        let mut upload_over = *uploaded;
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
                if upload.is_received() {
                    timing.request_ended(deadlines);
                }
            }
            match download.poll_moved(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Relayed::Whole),
                Poll::Ready(Err(PumpFault::Source(_))) => {
                    return Poll::Ready(Relayed::UpstreamBroke(Kind::ResponseTruncated));
                }
                Poll::Ready(Err(PumpFault::Sink)) => return Poll::Ready(Relayed::DownstreamBroke),
                Poll::Pending => {}
            }
            if upload_over && *uploaded && received_end(stream, &mut upload, cx) {
                return Poll::Ready(Relayed::DownstreamBroke);
            }
            if download.moved() + upload.moved() != moved {
                deadlines.touch();
            }
            // What waits to be read by the client, or to be sent by it, is the client's delay, whatever clock notices it.
            let awaits_upload = !upload_over && !upload.is_received() && !upload.is_blocked();
            let awaits_client = awaits_upload || download.is_blocked();
            deadlines
                .poll_passed(cx)
                .map(|kind| if awaits_client { Relayed::DownstreamBroke } else { Relayed::UpstreamBroke(kind) })
        })
        .await;
        cell.bytes_out.add(download.moved());
        cell.bytes_in.add(upload.moved());
        relayed
    }
}
