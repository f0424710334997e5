//! **Purpose.** One request: admitted, routed, limited, forwarded or answered here.
//!
//! **Shape.** [`Downstream::exchange`] takes the worker's view once and keeps it to the end, so that every decision of a
//! request belongs to one epoch. What is forwarded goes to `forward.rs`.
//!
//! **Errors.** Every answer made here is a [`Fault`] through [`respond::refusal`].
//!
//! **Source.** Order of decisions: `docs/ARCHITECTURE.md`, "From policy to traffic".

use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::request;
use outrigger_reactor::{now, timeout};

use super::call::CallForm;
use super::downstream::{After, Client, Downstream};
use super::head::{FramedHead, HeadView, HttpVersion, Request};
use super::http1_server::{ANSWER_TIMEOUT, Received};
use super::respond::{self, Answer, Answering};
use super::workspace::{Lease, Workspace};
use crate::config::{HttpConnectionConfig, Route, RouteAction, Upgrade, VirtualHost};
use crate::fault::{Fault, Kind};
use crate::http1::BodyLength;
use crate::http1::path::{Normal, PathRules, normalize};
use crate::policy::Verdict;
use crate::route::{Found, split_port};
use crate::stats::RouteCell;
use crate::worker::{Limit, ListenerView, LiveRoute, Routes, View};

/// A request that matched a route.
#[derive(Debug)]
pub(super) struct Matched<'a> {
    pub(super) view: &'a Rc<View>,
    pub(super) listener: &'a ListenerView,
    pub(super) http: &'a HttpConnectionConfig,
    pub(super) routes: &'a Routes,
    pub(super) host: &'a VirtualHost,
    pub(super) route: &'a Arc<Route>,
    live: &'a LiveRoute,
    pub(super) cell: &'a RouteCell,
    pub(super) request: HeadView<'a>,
    /// When its first byte was seen.
    pub(super) began: Instant,
}

/// How an exchange ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) after: After,
    /// 0: no answer.
    pub(super) status: u16,
}

impl Downstream {
    /// Serves one request of HTTP/1.
    pub(super) async fn exchange_received(&mut self, received: Received) -> After {
        self.cell.requests.add_one();
        let view = self.worker.view();
        let Some(listener) = view.chain(&self.chain) else { return After::Close };
        let kept = match &mut self.client {
            Client::Http1(connection) => connection.workspace.take(),
            Client::Http2(_) => None,
        };
        let mut lease = kept.unwrap_or_else(Lease::take);
        let Workspace { request_table, response_table, scratch } = &mut *lease;
        mem::swap(&mut self.response_table, response_table);
        let head = request_table.view(&received.head);
        let after = self.admit((&view, listener), (Request::Http1(head), received.began), scratch).await;
        mem::swap(&mut self.response_table, response_table);
        after
    }

    /// Serves the one request of a stream of HTTP/2.
    pub(super) fn exchange_stream(&mut self, parts: request::Parts, began: Instant) -> impl Future<Output = After> {
        // Taken over before the async part, which would hold it twice: as it came and as it is read.
        let mut head = FramedHead::new(parts);
        async move {
            self.cell.requests.add_one();
            let view = self.worker.view();
            let Some(listener) = view.chain(&self.chain) else { return After::Abort };
            let Some(http) = listener.http().map(Arc::as_ref) else { return After::Abort };
            let Client::Http2(stream) = &self.client else { return After::Abort };
            if let Err(kind) = head.settle(stream.recv.is_end_stream(), http) {
                let worker = self.worker.clone();
                let answering = Answering::framed(&worker, http, view.epoch());
                return self.refuse_unmatched(kind, &answering).await;
            }
            let mut lease = Lease::take();
            let Workspace { response_table, scratch, .. } = &mut *lease;
            mem::swap(&mut self.response_table, response_table);
            let after = self.admit((&view, listener), (Request::Http2(&head), began), scratch).await;
            mem::swap(&mut self.response_table, response_table);
            after
        }
    }

    /// What must hold of a request before it is routed.
    async fn admit(
        &mut self,
        (view, listener): (&Rc<View>, &ListenerView),
        received: (Request<'_>, Instant),
        scratch: &mut Vec<u8>,
    ) -> After {
        let (head, began) = received;
        let Some(http) = listener.http().map(Arc::as_ref) else { return After::Close };
        let worker = self.worker.clone();
        // Whatever follows a request to leave HTTP is not to be taken for another request.
        let may_keep = head.keep_alive() && head.upgrade().is_none() && !self.is_worn(http);
        let answering = Answering {
            worker: &worker,
            http,
            epoch: view.epoch(),
            // A body that stands unread behind a refusal would be taken for the next request.
            keep: may_keep && head.body().is_empty(),
            may_keep,
            is_head: head.method() == b"HEAD",
            version: head.version(),
            call: CallForm::of(head, http.grpc_web),
        };
        let normal = precondition(http, head).and_then(|()| match head.path() {
            // CONNECT has none.
            b"" => Ok(Normal::Unchanged),
            path => normalize(path, PathRules::from(http), scratch),
        });
        let path = match normal {
            Ok(Normal::Unchanged) => head.path(),
            Ok(Normal::Changed(path)) => path,
            Ok(Normal::RedirectTo(path)) => {
                let location = respond::location_of_path(path, head.query());
                let fault = Fault::new(Kind::Redirect).with_status(307);
                return self.answer(respond::redirect(&fault, &location, &answering)).await;
            }
            Err(kind) => {
                let answering = Answering { keep: false, ..answering };
                return self.refuse_unmatched(kind, &answering).await;
            }
        };
        let Some(routes) = view.routes(listener) else {
            return self.refuse_unmatched(unrouted(Kind::NoRouteTable, head, http), &answering).await;
        };
        let ignores_port = http.strip_any_host_port || routes.table().ignore_port_in_host;
        let authority = if ignores_port { split_port(head.authority()).0 } else { head.authority() };
        let request = HeadView { head, scheme: respond::scheme(http, head), authority, path };
        let Found::Route { host, host_index, route, route_index } = routes.index.find(&request, &worker.chance) else {
            // Who may not call is not told what there is.
            let denied = self.authorize(http, &request, &[]).err();
            let fault = denied.unwrap_or_else(|| Fault::new(unrouted(Kind::NoRoute, head, http)));
            return self.refuse_unrouted(&fault, &answering).await;
        };
        let Some(live) = routes.live(&worker, host_index, route_index) else {
            return self.refuse_unmatched(Kind::Internal, &answering).await;
        };
        let matched = Matched { view, listener, http, routes, host, route, live, cell: &live.cell, request, began };
        self.measure(&matched, &answering).await
    }

    /// Runs a matched request and counts how it went.
    async fn measure(&mut self, matched: &Matched<'_>, answering: &Answering<'_>) -> After {
        let cell = matched.cell;
        cell.requests.add_one();
        cell.active.add(1);
        let active = Active(cell);
        let outcome = self.act(matched, answering).await;
        drop(active);
        cell.by_class[usize::from(outcome.status / 100).min(5)].add_one();
        let elapsed = now().saturating_duration_since(matched.began);
        cell.latency.record(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
        outcome.after
    }

    async fn refuse_unmatched(&mut self, kind: Kind, answering: &Answering<'_>) -> After {
        self.refuse_unrouted(&Fault::new(kind), answering).await
    }

    async fn refuse_unrouted(&mut self, fault: &Fault, answering: &Answering<'_>) -> After {
        self.cell.faults.add_one(fault.kind);
        self.answer(respond::refusal(fault, answering)).await
    }

    async fn act(&mut self, matched: &Matched<'_>, answering: &Answering<'_>) -> Outcome {
        if let Err(fault) = self.authorize(matched.http, &matched.request, &matched.route.access) {
            return self.refuse_matched(fault, matched, answering).await;
        }
        if !is_upgrade_granted(matched) {
            return self.refuse_matched(Fault::new(Kind::UpgradeRefused), matched, answering).await;
        }
        if let Err(fault) = self.limit(matched) {
            matched.cell.limited.add_one();
            return self.refuse_matched(fault, matched, answering).await;
        }
        match &matched.route.action {
            RouteAction::Forward(forward) => self.forward(matched, forward, answering).await,
            RouteAction::Direct(direct) => {
                let fault = by_route(Kind::DirectResponse, matched).with_status(direct.status);
                if direct.status >= 400 {
                    matched.cell.faults.add_one(fault.kind);
                }
                let after = self.answer(respond::direct(&fault, &direct.body, answering)).await;
                Outcome { after, status: direct.status }
            }
            RouteAction::Redirect(redirect) => {
                let fault = by_route(Kind::Redirect, matched).with_status(redirect.status);
                let location = respond::location(redirect, matched);
                let after = self.answer(respond::redirect(&fault, &location, answering)).await;
                Outcome { after, status: redirect.status }
            }
        }
    }

    /// Takes a token of each limit that applies: the listener's, then the route's or else its host's.
    fn limit(&self, matched: &Matched<'_>) -> Result<(), Fault> {
        for limit in [matched.listener.limit(&self.worker), matched.live.limit.as_ref()].into_iter().flatten() {
            self.take(limit, matched)?;
        }
        Ok(())
    }

    fn take(&self, limit: &Limit, matched: &Matched<'_>) -> Result<(), Fault> {
        let Limit { config, bucket } = limit;
        match self.worker.admit(config, bucket) {
            Verdict::Admitted => Ok(()),
            Verdict::WouldLimit => {
                matched.cell.would_limit.add_one();
                Ok(())
            }
            Verdict::Limited => {
                Err(Fault::new(Kind::RateLimited).with_rule(config.rule.clone()).with_status(config.status))
            }
        }
    }

    /// Answers a fault of a request that matched a route.
    pub(super) async fn refuse_matched(
        &mut self,
        fault: Fault,
        matched: &Matched<'_>,
        answering: &Answering<'_>,
    ) -> Outcome {
        matched.cell.faults.add_one(fault.kind);
        let status = fault.status();
        if status == 0 {
            return Outcome { after: After::Abort, status };
        }
        Outcome { after: self.answer(respond::refusal(&fault, answering)).await, status }
    }

    /// Sends an answer made here.
    pub(super) async fn answer(&mut self, answer: Answer) -> After {
        match (&mut self.client, answer) {
            (Client::Http1(connection), Answer::Bytes { bytes, keep }) => {
                connection.stream.queue(bytes);
                match timeout(ANSWER_TIMEOUT, connection.stream.hand_over()).await {
                    Ok(Ok(())) if keep => After::Keep,
                    Ok(Ok(())) => After::Close,
                    Ok(Err(_)) | Err(_) => After::Abort,
                }
            }
            (Client::Http2(stream), Answer::Frames { head, body }) => stream.answer(head, body),
            (Client::Http1(_), Answer::Frames { .. }) | (Client::Http2(_), Answer::Bytes { .. }) => After::Abort,
        }
    }
}

/// Keeps the gauge right whatever way the exchange ends.
struct Active<'a>(&'a RouteCell);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.add(-1);
    }
}

/// What a route answers by itself, named by the route.
fn by_route(kind: Kind, matched: &Matched<'_>) -> Fault {
    Fault::new(kind).with_rule(matched.route.name.clone())
}

/// The route, or else the listener, lets the request leave HTTP the way it asks for.
fn is_upgrade_granted(matched: &Matched<'_>) -> bool {
    let Some(kind) = matched.request.head.upgrade() else { return true };
    let of_route: &[Upgrade] = match &matched.route.action {
        RouteAction::Forward(forward) => &forward.upgrades,
        RouteAction::Direct(_) | RouteAction::Redirect(_) => &[],
    };
    granted(of_route, kind).or_else(|| granted(&matched.http.upgrades, kind)).is_some_and(|grant| grant.enabled)
}

/// What `upgrades` say of one kind, if anything.
pub(super) fn granted<'a>(upgrades: &'a [Upgrade], kind: &[u8]) -> Option<&'a Upgrade> {
    upgrades.iter().find(|upgrade| upgrade.kind.as_bytes().eq_ignore_ascii_case(kind))
}

/// An upgrade that only a route could grant is refused where there is no route.
fn unrouted(kind: Kind, head: Request<'_>, http: &HttpConnectionConfig) -> Kind {
    let is_granted = |kind| granted(&http.upgrades, kind).is_some_and(|grant| grant.enabled);
    let is_refused = head.upgrade().is_some_and(|kind| !is_granted(kind));
    if is_refused { Kind::UpgradeRefused } else { kind }
}

fn precondition(http: &HttpConnectionConfig, head: Request<'_>) -> Result<(), Kind> {
    if head.version() == HttpVersion::Http10 {
        if !http.accept_http_10 {
            return Err(Kind::BadVersion);
        }
        if head.body() == BodyLength::Chunked {
            return Err(Kind::BadFraming);
        }
    }
    Ok(())
}
