//! **Purpose.** The heads that this proxy writes: of refusals, of its own answers, of what it forwards and relays.
//!
//! **Shape.** [`refusal`] is the only way from a [`Fault`] to bytes. Everything else here fills in `edit.rs` from the
//! settings of listener, route, host and table.

use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;

use outrigger_reactor::Buf;

use super::edit::{self, Connection, RequestEdits, ResponseEdits, Trust};
use super::exchange::Matched;
use super::forward::Forwarding;
use super::framing::BodyLength;
use super::head::{RequestHead, Version};
use super::line::Name;
use super::local::{LocalResponse, write_local_response};
use super::response::ResponseHead;
use crate::config::{HeaderEdits, HttpConnectionConfig, Redirect};
use crate::fault::{Fault, Kind};
use crate::route;
use crate::worker::Worker;

/// What every answer of one request has in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answering<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) http: &'a HttpConnectionConfig,
    pub(super) epoch: u64,
    /// The connection goes on after an answer that leaves nothing unread.
    pub(super) keep: bool,
    /// The connection could go on if the whole request were read.
    pub(super) may_keep: bool,
    /// The request is a HEAD.
    pub(super) is_head: bool,
    /// The request's version: HTTP/1.0 must be told that a connection is kept.
    pub(super) version: Version,
}

/// An answer ready to be sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Buf,
    pub(super) keep: bool,
}

/// The answer to a fault.
pub(super) fn refusal(fault: &Fault, answering: &Answering<'_>) -> Answer {
    let header = fault.header(answering.epoch);
    // Who is limited is told when to come back.
    let extra: &[(&str, &[u8])] = match fault.kind {
        Kind::RateLimited | Kind::ClusterLimited => &[("retry-after", b"1")],
        _ => &[],
    };
    let body = fault.kind.explanation().as_bytes();
    local(fault.status(), &Content { fault: &header, extra, body }, answering)
}

/// A fixed answer of a route; `fault` says which route's.
pub(super) fn direct(fault: &Fault, body: &[u8], answering: &Answering<'_>) -> Answer {
    let header = fault.header(answering.epoch);
    local(fault.status(), &Content { fault: &header, extra: &[], body }, answering)
}

/// A redirect to `location`; `fault` says which route's.
pub(super) fn redirect(fault: &Fault, location: &[u8], answering: &Answering<'_>) -> Answer {
    let header = fault.header(answering.epoch);
    local(fault.status(), &Content { fault: &header, extra: &[("location", location)], body: b"" }, answering)
}

/// What one local answer says.
struct Content<'a> {
    fault: &'a dyn Display,
    extra: &'a [(&'a str, &'a [u8])],
    body: &'a [u8],
}

fn local(status: u16, content: &Content<'_>, answering: &Answering<'_>) -> Answer {
    let date = answering.worker.date();
    let response = LocalResponse {
        status,
        fault: Some(content.fault),
        extra: content.extra,
        body: content.body,
        is_head: answering.is_head,
        connection: connection(answering.keep, answering.version),
        server_name: &answering.http.server_name,
        date: &date,
    };
    Answer { bytes: Buf::build(|out| write_local_response(&response, out)), keep: answering.keep }
}

/// Where a redirecting route sends its client.
pub(super) fn location(redirect: &Redirect, matched: &Matched<'_>) -> Vec<u8> {
    let mut location = Vec::new();
    route::write_location(redirect, &matched.route.matches, &matched.request, &mut location);
    location
}

/// The same request at its normalised path.
pub(super) fn location_of_path(path: &[u8], query: Option<&[u8]>) -> Vec<u8> {
    let mut location = Vec::new();
    put_path(path, query, &mut location);
    location
}

fn put_path(path: &[u8], query: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(path);
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
}

/// The request head as the upstream gets it.
pub(super) fn forwarded_head(peer: SocketAddr, forwarding: &Forwarding<'_>) -> Buf {
    let matched = forwarding.matched;
    let head = matched.request.head;
    let target = upstream_target(matched, forwarding);
    let levels = request_levels(forwarding);
    Buf::build(|out| {
        let edits = RequestEdits {
            target: target.as_deref(),
            host: upstream_host(matched, forwarding),
            levels: levels.as_slice(),
            forwarded_for: (!matched.http.skip_xff_append).then(|| peer.ip().to_canonical()),
            scheme: matched.request.scheme,
            request_id: forwarding.request_id.as_ref().map(|id| &id[..]),
            via: &matched.http.via,
            trust: Trust::Edge,
            keep_expect: false,
            connection: Connection::Implied,
        };
        edit::write_request_head(&head, &edits, out);
    })
}

/// The response head as the client gets it.
pub(super) fn relayed_head(
    head: ResponseHead<'_>,
    body: BodyLength,
    keep: bool,
    worker: &Worker,
    forwarding: &Forwarding<'_>,
) -> Buf {
    let matched = forwarding.matched;
    let http = matched.http;
    let version = matched.request.head.version();
    let body = match body {
        BodyLength::UntilClose if version == Version::Http11 => BodyLength::Chunked,
        BodyLength::Chunked if version == Version::Http10 => BodyLength::UntilClose,
        body => body,
    };
    let date = worker.date();
    let levels = response_levels(forwarding);
    Buf::build(|out| {
        let edits = ResponseEdits {
            body,
            levels: levels.as_slice(),
            server: http.server_header,
            server_name: &http.server_name,
            via: &http.via,
            date: &date,
            extra: &[],
            connection: connection(keep, version),
        };
        edit::write_response_head(&head, &edits, out);
    })
}

fn connection(keep: bool, version: Version) -> Connection {
    match (keep, version) {
        (false, _) => Connection::Close,
        (true, Version::Http10) => Connection::KeepAlive,
        (true, Version::Http11) => Connection::Implied,
    }
}

/// Authority for the upstream, when it is not as received.
fn upstream_host<'a>(matched: &'a Matched<'_>, forwarding: &'a Forwarding<'_>) -> Option<&'a [u8]> {
    let rewritten = forwarding.action.host_rewrite.as_ref().map(|host| host.as_bytes());
    let stripped = matched.http.strip_any_host_port.then_some(matched.request.authority);
    rewritten.or(stripped)
}

/// Path and query for the upstream, when they are not as received.
fn upstream_target(matched: &Matched<'_>, forwarding: &Forwarding<'_>) -> Option<Buf> {
    let request = &matched.request;
    if let Some(rewrite) = &forwarding.action.path_rewrite {
        let rewritten = |target: &mut Vec<u8>| {
            route::rewrite_path(rewrite, &matched.route.matches, request, target);
        };
        return Some(Buf::build(rewritten));
    }
    (request.path != request.head.path())
        .then(|| Buf::build(|target| put_path(request.path, request.head.query(), target)))
}

/// At the edge every scheme but ours is the client's invention; inside the mesh it is the edge's word.
pub(super) fn scheme(http: &HttpConnectionConfig, head: RequestHead<'_>) -> &'static str {
    match head.known(Name::XForwardedProto).next() {
        Some(b"https") if !http.use_remote_address => "https",
        _ => "http",
    }
}

/// A random `x-request-id` where the client sent none, or where the edge does not keep the client's.
pub(super) fn request_id(http: &HttpConnectionConfig, head: RequestHead<'_>, worker: &Worker) -> Option<[u8; 36]> {
    if !http.generate_request_id {
        return None;
    }
    let replaces = http.use_remote_address && !http.preserve_request_id;
    let has_one = head.known(Name::XRequestId).next().is_some_and(|id| !id.is_empty());
    (replaces || !has_one).then(|| uuid(worker.chance.bits(), worker.chance.bits()))
}

/// A version 4 UUID (RFC 9562 §5.4) from random bits.
fn uuid(high: u64, low: u64) -> [u8; 36] {
    let high = (high & 0xFFFF_FFFF_FFFF_0FFF) | 0x4000;
    let low = (low & 0x3FFF_FFFF_FFFF_FFFF) | 0x8000_0000_0000_0000;
    /// Where the two digits of each byte stand.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let bytes = ((u128::from(high) << 64) | u128::from(low)).to_be_bytes();
    for (byte, at) in bytes.into_iter().zip(PLACES) {
        text[at] = DIGITS[usize::from(byte >> 4)];
        text[at + 1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

/// Up to four levels of edits without an allocation.
struct Levels<'a> {
    edits: [&'a HeaderEdits; 4],
    count: usize,
}

impl<'a> Levels<'a> {
    fn new(none: &'a HeaderEdits, levels: [Option<&'a HeaderEdits>; 4]) -> Self {
        let mut edits = [none; 4];
        let mut count = 0;
        for level in levels.into_iter().flatten().filter(|level| !level.is_empty()) {
            edits[count] = level;
            count += 1;
        }
        Self { edits, count }
    }

    fn as_slice(&self) -> &[&'a HeaderEdits] {
        &self.edits[..self.count]
    }
}

fn request_levels<'a>(forwarding: &'a Forwarding<'_>) -> Levels<'a> {
    let matched = forwarding.matched;
    let (route, host, table) =
        (&matched.route.request_edits, &matched.host.request_edits, &matched.routes.table().request_edits);
    Levels::new(route, [forwarding.choice_request_edits, Some(route), Some(host), Some(table)])
}

fn response_levels<'a>(forwarding: &'a Forwarding<'_>) -> Levels<'a> {
    let matched = forwarding.matched;
    let (route, host, table) =
        (&matched.route.response_edits, &matched.host.response_edits, &matched.routes.table().response_edits);
    Levels::new(route, [forwarding.choice_response_edits, Some(route), Some(host), Some(table)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_version_4_uuid() {
        let text = String::from_utf8(uuid(u64::MAX, u64::MAX).to_vec()).unwrap();
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(&uuid(0, 0), b"00000000-0000-4000-8000-000000000000");
        assert_eq!(&uuid(0x0123_4567_89AB_CDEF, 0x0123_4567_89AB_CDEF), b"01234567-89ab-4def-8123-456789abcdef");
    }
}
