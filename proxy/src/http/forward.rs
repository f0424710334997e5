//! **Purpose.** Forwarding: tries over endpoints until one answers or the policy has had enough.
//!
//! **Shape.** [`Downstream::forward`] chooses the cluster and passes its limits; each [`Downstream::try_once`] picks an
//! endpoint, gets a connection, sends the request and reads the answer's head; what the retry policy lets through goes
//! to `relay.rs`. Body bytes taken from the client are kept for another try only while one is possible.
//!
//! **Errors.** A try that failed is a [`TryFault`]: the fault, and whether a byte of the request may have been served.
//!
//! **Cancel.** Dropping the future closes the upstream connection of the try in hand.
//!
//! **Source.** Retry conditions: Envoy, `x-envoy-retry-on`; replay safety: `docs/ARCHITECTURE.md`, "Retries".

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use outrigger_reactor::{now, sleep};

use super::attempt::RouteTiming;
use super::body::{Body, Piece, Replay};
use super::call::{Call, CallForm, code_in};
use super::downstream::{After, Client, Downstream};
use super::exchange::{Matched, Outcome, granted};
use super::head::Request;
use super::pump::Outgoing;
use super::respond::{self, Answering};
use super::upstream::{AnswerHead, Upstream, is_framed};
use crate::balance::Draw;
use crate::config::{ForwardAction, HeaderEdits};
use crate::fault::{Fault, Kind, Retry, Side};
use crate::grpc::GrpcCode;
use crate::http1::{BodyLength, ResponseTable};
use crate::policy::{self, Attempt, Decision, Sent, Slot, Verdict};
use crate::route::{self, Chosen, Hashed, choose_cluster};
use crate::stats::SuppressReason;
use crate::worker::{Cluster, InFlight};

/// What is known of a forwarded request over all its tries.
#[derive(Debug)]
pub(super) struct Forwarding<'a> {
    pub(super) matched: &'a Matched<'a>,
    pub(super) action: &'a ForwardAction,
    pub(super) cluster: &'a Rc<Cluster>,
    /// Edits of the chosen weighted cluster.
    pub(super) choice_request_edits: Option<&'a HeaderEdits>,
    /// As above, for the response.
    pub(super) choice_response_edits: Option<&'a HeaderEdits>,
    pub(super) body: Body,
    pub(super) outgoing: Outgoing,
    /// The endpoint is spoken to in HTTP/2.
    pub(super) is_framed: bool,
    /// What the stream or connection is to become.
    pub(super) upgrade: Option<&'a [u8]>,
    /// The endpoint gets the bytes of the tunnel and no request.
    ends_here: bool,
    /// What it is beside, if it is a call of gRPC.
    pub(super) call: Option<Box<Call>>,
    pub(super) replay: Option<Replay>,
    /// By what the endpoint is chosen, where the route says, and the cookies that it made for that.
    pub(super) hashed: Hashed,
    /// Endpoint of the last try.
    picked: Option<usize>,
    /// Endpoints of the tries before it.
    tried: Vec<usize>,
    tries: u32,
    /// Place among the cluster's retries in flight.
    retrying: Option<Slot>,
    pub(super) replayed: bool,
    pub(super) continued: bool,
    /// Our `x-request-id`, the same for every try.
    pub(super) request_id: Option<[u8; 36]>,
}

impl Forwarding<'_> {
    pub(super) fn per_try_timeout(&self) -> Option<Duration> {
        self.action.retry.as_ref().and_then(|policy| policy.per_try_timeout)
    }
}

/// An upstream that answered.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) upstream: Upstream,
    /// The response head; its table is in [`Downstream::response_table`].
    pub(super) head: AnswerHead,
    pub(super) status: u16,
    /// The code of a call that ended before any message of its answer.
    pub(super) code: Option<GrpcCode>,
    /// Its body, where that had to be looked at before it goes on. Boxed: most are not, and an answer is moved often.
    pub(super) body: Option<Box<Body>>,
    /// The whole request was sent.
    pub(super) uploaded: bool,
    pub(super) endpoint: usize,
    /// Counts the try until its answer is passed on.
    pub(super) in_flight: Option<InFlight>,
}

impl Answered {
    /// Its body, which goes on from here.
    pub(super) fn take_body(&mut self, length: BodyLength, wants_trailers: bool) -> Body {
        match self.body.take() {
            Some(body) => *body,
            None => self.head.body(length, wants_trailers),
        }
    }

    /// Finds how a call ended if it has ended already: in its head, or in trailers that came with it. It waits for nothing:
    /// the client may need the head to go on.
    async fn look_for_code(&mut self, call: &mut Call, table: &ResponseTable) {
        let AnswerHead::Http2(parts, is_whole) = &self.head else {
            self.code = self.head.view(table).header("grpc-status").map(GrpcCode::parse);
            return;
        };
        self.code = code_in(&parts.headers);
        if self.code.is_none() && !is_whole && self.status == 200 {
            let mut body = Body::framed(false);
            if let Some((_, mut source)) = self.upstream.bodies() {
                self.code = poll_fn(|cx| {
                    Poll::Ready(match body.peek(&mut source, cx) {
                        Some(Ok(Piece::End(Some(trailers)))) => code_in(trailers),
                        _ => None,
                    })
                })
                .await;
            }
            self.body = Some(Box::new(body));
        }
        if let Some(code) = self.code {
            call.end(code);
        }
    }
}

/// A try that gave no answer.
#[derive(Debug)]
pub(super) struct TryFault {
    pub(super) fault: Fault,
    pub(super) sent: Sent,
    pub(super) on_reused: bool,
}

impl TryFault {
    /// The connection was lost before any byte of an answer.
    fn is_loss(&self) -> bool {
        matches!(self.fault.kind, Kind::SendReset | Kind::ResponseReset | Kind::ResponseClosed | Kind::StreamRefused)
    }

    pub(super) fn unsent(kind: Kind) -> Self {
        Self { fault: Fault::new(kind).with_retry(Retry::Safe), sent: Sent::Nothing, on_reused: false }
    }
}

impl Downstream {
    /// Forwards a request and passes its answer on.
    pub(super) async fn forward(
        &mut self,
        matched: &Matched<'_>,
        action: &ForwardAction,
        answering: &Answering<'_>,
    ) -> Outcome {
        let chosen = choose_cluster(&action.target, &matched.request, &self.worker.chance);
        let Some(cluster) = matched.view.cluster(&chosen, &self.worker) else {
            let fault = Fault::new(Kind::NoCluster).with_status(action.cluster_not_found_status);
            let fault = match chosen {
                Chosen::Linked { name, .. } => fault.with_cluster(name.as_str().into()),
                Chosen::Named(name) => fault.with_cluster(String::from_utf8_lossy(name).into()),
                Chosen::Missing => fault,
            };
            return self.refuse_matched(fault, matched, answering).await;
        };
        let cluster = match self.toward(cluster, matched) {
            Ok(cluster) => cluster,
            Err(fault) => return self.refuse_matched(fault, matched, answering).await,
        };
        let weighted = match chosen {
            Chosen::Linked { weighted, .. } => weighted,
            Chosen::Missing | Chosen::Named(_) => None,
        };
        let _admitted = match self.admit_to_cluster(&cluster, matched) {
            Ok(admitted) => admitted,
            Err(fault) => {
                if answering.call.is_some() {
                    cluster.called(matched.request.path, &Call::refused(&fault), &self.worker);
                }
                return self.refuse_matched(fault, matched, answering).await;
            }
        };
        let head = matched.request.head;
        let upgrade = head.upgrade();
        // What follows a request to leave HTTP is not its body, and stays where it is until the upstream has agreed.
        let length = if upgrade.is_some() { BodyLength::Empty } else { head.body() };
        let ends_here =
            upgrade.is_some_and(|kind| granted(&action.upgrades, kind).is_some_and(|grant| grant.ends_here));
        let is_framed = !ends_here && is_framed(cluster.config.protocol, matches!(head, Request::Http2(_)));
        // An endpoint of HTTP/2 may say of any request that it was not processed.
        let may_retry = action.retry.is_some() || head.is_idempotent() || is_framed;
        let mut forwarding = Forwarding {
            matched,
            action,
            cluster: &cluster,
            choice_request_edits: weighted.map(|choice| &choice.request_edits),
            choice_response_edits: weighted.map(|choice| &choice.response_edits),
            body: self.request_body(length, is_framed, matched),
            outgoing: match length {
                BodyLength::Length(_) if matches!(answering.call, Some(CallForm::Web { .. })) => Outgoing::Chunked,
                BodyLength::Chunked if matched.http.http1_trailers => Outgoing::ChunkedWithTrailers,
                BodyLength::Chunked => Outgoing::Chunked,
                BodyLength::Empty | BodyLength::Length(_) | BodyLength::UntilClose => Outgoing::Plain,
            },
            is_framed,
            upgrade,
            ends_here,
            call: answering.call.map(|form| Box::new(Call::new(form, head, matched.began, action.grpc_timeout_max))),
            replay: (may_retry && !length.is_empty()).then(|| Replay::within(self.worker.spare.take(), length)),
            hashed: match &action.hash[..] {
                [] => Hashed::default(),
                policies => route::hash(policies, &matched.request, self.ends()),
            },
            picked: None,
            tried: Vec::new(),
            tries: 0,
            retrying: None,
            replayed: false,
            continued: !head.expects_continue(),
            request_id: respond::request_id(matched.http, head, &self.worker),
        };
        self.set_deadlines(&forwarding);
        let outcome = self.try_until_answered(&mut forwarding, answering).await;
        if let Some(call) = &forwarding.call {
            cluster.called(matched.request.path, &call.count(), &self.worker);
        }
        if let Some(replay) = forwarding.replay.take() {
            self.worker.spare.give(replay.into_memory());
        }
        self.deadlines.clear();
        outcome
    }

    fn request_body(&self, length: BodyLength, is_framed: bool, matched: &Matched<'_>) -> Body {
        match &self.client {
            Client::Http1(_) if matched.http.http1_trailers || is_framed => Body::with_trailers(length),
            Client::Http1(_) => Body::new(length),
            Client::Http2(_) => Body::framed(length == BodyLength::Empty),
        }
    }

    fn admit_to_cluster(&self, cluster: &Rc<Cluster>, matched: &Matched<'_>) -> Result<Slot, Fault> {
        let name = || cluster.name().clone();
        if let (Some(limit), Some(bucket)) = (&cluster.config.rate_limit, cluster.bucket()) {
            match self.worker.admit(limit, bucket) {
                Verdict::Admitted => {}
                Verdict::WouldLimit => matched.cell.would_limit.add_one(),
                Verdict::Limited => {
                    matched.cell.limited.add_one();
                    let fault = Fault::new(Kind::ClusterLimited).with_rule(limit.rule.clone());
                    return Err(fault.with_status(limit.status).with_cluster(name()));
                }
            }
        }
        cluster
            .state
            .circuit
            .try_request(&cluster.config.limits)
            .ok_or_else(|| Fault::new(Kind::MaxRequests).with_cluster(name()))
    }

    fn set_deadlines(&mut self, forwarding: &Forwarding<'_>) {
        let http = forwarding.matched.http;
        self.deadlines.clear();
        self.deadlines.set_idle(match forwarding.action.idle_timeout {
            Some(Duration::ZERO) => None,
            Some(span) => Some(span),
            None => http.stream_idle_timeout,
        });
        if let Some(deadline) = forwarding.call.as_ref().and_then(|call| call.deadline) {
            self.deadlines.set(Kind::CallTimeout, Some(deadline));
        }
        if let Some(span) = forwarding.action.max_stream_duration {
            self.deadlines.set(Kind::StreamOverAge, forwarding.matched.began.checked_add(span));
        }
        if forwarding.body.is_done() {
            RouteTiming::new(forwarding.action, None).request_ended(&mut self.deadlines);
        } else {
            self.deadlines.set(Kind::RequestTimeout, http.request_timeout.map(|span| now() + span));
        }
    }

    async fn try_until_answered(&mut self, forwarding: &mut Forwarding<'_>, answering: &Answering<'_>) -> Outcome {
        loop {
            let mut result = self.try_once(forwarding).await;
            forwarding.retrying = None;
            let decision = match &result {
                Ok(answered) => self.judge_answer(forwarding, answered),
                Err(failed) => self.judge_fault(forwarding, failed),
            };
            match decision {
                Decision::Retry { backoff } => {
                    self.count_retry(forwarding);
                    forwarding.tried.extend(forwarding.picked.take());
                    if let Ok(answered) = result {
                        self.recycle(forwarding, answered);
                    }
                    if let Some(kind) = self.wait_to_retry(backoff).await {
                        let fault = Fault::new(kind).with_cluster(forwarding.cluster.name().clone());
                        fail_call(forwarding, &fault);
                        return self.refuse_matched(fault, forwarding.matched, &close(answering, forwarding)).await;
                    }
                    continue;
                }
                Decision::Replay => {
                    forwarding.replayed = true;
                    forwarding.tries -= 1;
                    continue;
                }
                Decision::Suppressed(reason) => self.count_suppressed(forwarding, reason),
                Decision::Pass => {}
            }
            return match result {
                // Lent: an answer is large, and moved it would have a place for each step.
                Ok(ref mut answered) => {
                    if forwarding.tries > 1 {
                        forwarding.matched.cell.retry_success.add_one();
                    }
                    let (outcome, is_kept) = self.relay(forwarding, answered, answering).await;
                    if is_kept && let Ok(Answered { upstream: Upstream::Http1 { connection, .. }, .. }) = result {
                        forwarding.cluster.give_back(connection);
                    }
                    outcome
                }
                Err(failed) => {
                    let fault = failed.fault.with_cluster(forwarding.cluster.name().clone());
                    fail_call(forwarding, &fault);
                    self.refuse_matched(fault, forwarding.matched, &close(answering, forwarding)).await
                }
            };
        }
    }

    /// One try: endpoint, connection, request, response head.
    async fn try_once(&mut self, forwarding: &mut Forwarding<'_>) -> Result<Answered, TryFault> {
        let cluster = forwarding.cluster;
        let draw = Draw { chance: &self.worker.chance, hash: forwarding.hashed.hash };
        let pick = cluster.pick(&forwarding.tried, draw);
        let pick = pick.ok_or_else(|| TryFault::unsent(Kind::NoEndpoint))?;
        forwarding.tries += 1;
        forwarding.picked = Some(pick.index);
        cluster.cell.requests.add_one();
        let per_try = forwarding.per_try_timeout();
        self.deadlines.set(Kind::PerTryTimeout, per_try.map(|span| now() + span));
        let in_flight = cluster.in_flight(pick.index);
        let began = now();
        let mut result = if forwarding.ends_here {
            self.open_tunnel(cluster, in_flight, pick.index).await
        } else {
            match self.link(forwarding, pick.index).await {
                Ok(link) => self.exchange_head(forwarding, link, in_flight, pick.index).await,
                Err(failed) => Err(failed),
            }
        };
        self.deadlines.set(Kind::PerTryTimeout, None);
        if let (Ok(answered), Some(call)) = (&mut result, &mut forwarding.call) {
            answered.look_for_code(call, &self.response_table).await;
        }
        match &result {
            Ok(answered) => {
                let elapsed = now().saturating_duration_since(began).as_micros();
                cluster.cell.latency.record(u64::try_from(elapsed).unwrap_or(u64::MAX));
                self.answered(forwarding, answered);
            }
            // A kept connection that the endpoint had closed says nothing about the endpoint.
            Err(failed) if failed.on_reused && failed.is_loss() => cluster.cell.faults.add_one(failed.fault.kind),
            Err(failed) => cluster.failed(pick.index, failed.fault.kind, &self.worker),
        }
        result
    }

    /// Tells the cluster of an answer. A call whose code is still to come is judged by it, later.
    fn answered(&self, forwarding: &Forwarding<'_>, answered: &Answered) {
        let Answered { endpoint, status, .. } = *answered;
        match (&forwarding.call, answered.code) {
            (Some(_), Some(code)) => forwarding.cluster.answered_call(endpoint, status, code, &self.worker),
            (Some(_), None) if status == 200 => forwarding.cluster.cell.by_class[2].add_one(),
            (Some(_) | None, _) => forwarding.cluster.answered(endpoint, status, &self.worker),
        }
    }

    fn judge_answer(&mut self, forwarding: &mut Forwarding<'_>, answered: &Answered) -> Decision {
        let view = answered.head.view(&self.response_table);
        let has_header = |name: &str| view.header(name).is_some();
        let Some(retry) = forwarding.action.retry.as_deref() else { return Decision::Pass };
        let status = answered.status;
        let outcome = match answered.code {
            Some(code) if policy::asks_on_grpc(retry, code) => policy::Outcome::Grpc(code),
            _ if policy::asks_on_answer(retry, status, &has_header) => {
                policy::Outcome::Status { status, has_header: &has_header }
            }
            _ => return Decision::Pass,
        };
        let retry = Some(retry);
        let attempt = self.attempt(forwarding, Sent::Maybe, false);
        let decision = policy::decide(retry, &attempt, &outcome, &self.worker.chance);
        within_budget(forwarding, decision)
    }

    fn judge_fault(&mut self, forwarding: &mut Forwarding<'_>, failed: &TryFault) -> Decision {
        if failed.fault.kind.side() != Side::Upstream || failed.fault.kind == Kind::RouteTimeout {
            return Decision::Pass;
        }
        let attempt = self.attempt(forwarding, failed.sent, failed.on_reused);
        let outcome = policy::Outcome::Fault(&failed.fault);
        let decision = policy::decide(forwarding.action.retry.as_deref(), &attempt, &outcome, &self.worker.chance);
        within_budget(forwarding, decision)
    }

    fn attempt(&self, forwarding: &Forwarding<'_>, sent: Sent, on_reused: bool) -> Attempt {
        let head = forwarding.matched.request.head;
        Attempt {
            tries_made: forwarding.tries,
            sent,
            on_reused,
            replayed: forwarding.replayed,
            idempotent: head.is_idempotent() || head.has_idempotency_key(),
            // What follows a request to leave HTTP has not moved.
            body_replayable: forwarding.upgrade.is_some()
                || head.body().is_empty()
                || forwarding.replay.as_ref().is_some_and(Replay::is_whole),
            response_started: false,
            deadline_left: self.deadlines.at(Kind::RouteTimeout).map(|at| at.saturating_duration_since(now())),
            budget: forwarding.cluster.state.circuit.may_retry(&forwarding.cluster.config.limits),
        }
    }

    /// Keeps the connection of an answer that is not passed on, when all of it is at hand.
    fn recycle(&self, forwarding: &Forwarding<'_>, mut answered: Answered) {
        let head = answered.head.view(&self.response_table);
        let length = match head.body(forwarding.matched.request.head.method()) {
            BodyLength::Empty => Some(0),
            BodyLength::Length(bytes) => usize::try_from(bytes).ok(),
            BodyLength::Chunked | BodyLength::UntilClose => None,
        };
        let keeps = head.keep_alive() && answered.uploaded;
        // A stream is reset, its connection goes on by itself.
        let Upstream::Http1 { connection, answer } = answered.upstream else { return };
        if keeps && length.is_some_and(|length| answer.inlet.input.len() == length) {
            drop(answered.in_flight.take());
            forwarding.cluster.give_back(connection);
        }
    }

    fn count_retry(&self, forwarding: &Forwarding<'_>) {
        forwarding.matched.cell.retries.add_one();
        forwarding.cluster.cell.retries.add_one();
    }

    fn count_suppressed(&self, forwarding: &Forwarding<'_>, reason: SuppressReason) {
        forwarding.matched.cell.retry_suppressed[reason as usize].add_one();
        forwarding.cluster.cell.retry_suppressed[reason as usize].add_one();
    }

    /// Waits before the next try; `Some` when a deadline passed instead.
    async fn wait_to_retry(&mut self, backoff: Duration) -> Option<Kind> {
        if backoff.is_zero() {
            return None;
        }
        let mut pause = pin!(sleep(backoff));
        let deadlines = &mut self.deadlines;
        poll_fn(|cx| {
            if pause.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            deadlines.poll_passed(cx).map(Some)
        })
        .await
    }
}

/// Notes how a call ends that this proxy answers.
fn fail_call(forwarding: &mut Forwarding<'_>, fault: &Fault) {
    if let Some(call) = &mut forwarding.call {
        call.fail(GrpcCode::of_fault(fault));
    }
}

/// A retry takes a place among the cluster's retries in flight; the last one may have gone since it was asked for.
fn within_budget(forwarding: &mut Forwarding<'_>, decision: Decision) -> Decision {
    if !matches!(decision, Decision::Retry { .. }) {
        return decision;
    }
    forwarding.retrying = forwarding.cluster.state.circuit.try_retry(&forwarding.cluster.config.limits);
    if forwarding.retrying.is_some() { decision } else { Decision::Suppressed(SuppressReason::Budget) }
}

/// A refusal after part of a body was left unread ends the connection.
fn close<'a>(answering: &Answering<'a>, forwarding: &Forwarding<'_>) -> Answering<'a> {
    let whole = forwarding.body.is_done();
    Answering { keep: whole && forwarding.matched.request.head.keep_alive() && answering.may_keep, ..*answering }
}

/// Whatever becomes of the connection after a refused or relayed request.
pub(super) fn after(keep: bool) -> After {
    if keep { After::Keep } else { After::Close }
}
