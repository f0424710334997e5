//! **Purpose.** The heads that this proxy writes: of refusals, of its own answers, of what it forwards and relays.
//!
//! **Shape.** [`refusal`] is the only way from a [`Fault`] to a client. Everything else here fills in the edits of
//! `http1::edit` and `http2::edit` from the settings of listener, route, host and table: from HTTP/1 to HTTP/1 in bytes,
//! else in a header map.

use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HOST, SERVER};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use outrigger_reactor::Buf;

use super::call::CallForm;
use super::exchange::Matched;
use super::forward::Forwarding;
use super::head::{HttpVersion, Request, Response};
use super::upgrade;
use crate::config::{HeaderEdits, HttpConnectionConfig, Redirect};
use crate::fault::{Fault, Kind};
use crate::grpc::{self, GrpcCode};
use crate::http1::edit::{self, MapHead};
use crate::http1::line::Name;
use crate::http1::{
    BodyLength, Connection, LocalResponse, RequestEdits, ResponseEdits, Trust, write_local_response,
    write_request_head, write_response_head,
};
use crate::http2::edit::{edit_request, edit_response, put, request_map, response_map};
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
    pub(super) version: HttpVersion,
    /// The request is a call of gRPC.
    pub(super) call: Option<CallForm>,
}

impl<'a> Answering<'a> {
    /// Of a request on a stream of HTTP/2.
    pub(super) fn framed(worker: &'a Rc<Worker>, http: &'a HttpConnectionConfig, epoch: u64) -> Self {
        Self {
            worker,
            http,
            epoch,
            keep: true,
            may_keep: true,
            is_head: false,
            version: HttpVersion::Http2,
            call: None,
        }
    }
}

/// An answer ready to be sent.
#[derive(Debug)]
pub(super) enum Answer {
    /// On a connection of HTTP/1, which goes on if `keep`.
    Bytes { bytes: Buf, keep: bool },
    /// On a stream of HTTP/2.
    Frames { head: http::Response<()>, body: Bytes },
}

/// The answer to a fault.
pub(super) fn refusal(fault: &Fault, answering: &Answering<'_>) -> Answer {
    if let Some(form) = answering.call {
        return called(fault, form, answering);
    }
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
    if let Some(form) = answering.call {
        return called(fault, form, answering);
    }
    let header = fault.header(answering.epoch);
    local(fault.status(), &Content { fault: &header, extra: &[], body }, answering)
}

/// The answer to a call, in the form that its caller reads.
fn called(fault: &Fault, form: CallForm, answering: &Answering<'_>) -> Answer {
    let header = fault.header(answering.epoch);
    let (mut kind, mut message) = (Vec::new(), Vec::new());
    form.put_type(b"application/grpc", &mut kind);
    grpc::answer::put_message(fault.kind.explanation(), &mut message);
    let extra = grpc::answer::headers(GrpcCode::of_fault(fault), &kind, &message);
    local(grpc::answer::STATUS, &Content { fault: &header, extra: &extra, body: b"" }, answering)
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
    match answering.version {
        HttpVersion::Http10 | HttpVersion::Http11 => {
            Answer::Bytes { bytes: Buf::build(|out| write_local_response(&response, out)), keep: answering.keep }
        }
        HttpVersion::Http2 => framed_local(&response),
    }
}

/// As [`write_local_response`], in frames.
fn framed_local(response: &LocalResponse<'_>) -> Answer {
    let mut head = http::Response::new(());
    *head.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = head.headers_mut();
    let may_have_body = response.status >= 200 && response.status != 204 && response.status != 304;
    if may_have_body {
        // The end of the stream says as much of an empty one.
        if !response.body.is_empty() {
            put(headers, CONTENT_LENGTH, response.body.len().to_string().as_bytes());
            put(headers, CONTENT_TYPE, b"text/plain");
        }
    }
    if let Some(fault) = response.fault {
        put(headers, HeaderName::from_static("outrigger-fault"), fault.to_string().as_bytes());
    }
    for (name, value) in response.extra {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            put(headers, name, value);
        }
    }
    if !response.server_name.is_empty() {
        put(headers, SERVER, response.server_name.as_bytes());
    }
    if !response.date.is_empty() {
        put(headers, DATE, response.date);
    }
    let has_body = may_have_body && !response.is_head;
    Answer::Frames { head, body: if has_body { Bytes::copy_from_slice(response.body) } else { Bytes::new() } }
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

/// The request head as an upstream of HTTP/1 gets it.
pub(super) fn forwarded_head(peer: SocketAddr, forwarding: &Forwarding<'_>, worker: &Worker) -> Buf {
    let matched = forwarding.matched;
    let target = upstream_target(matched, forwarding);
    let levels = request_levels(forwarding);
    let edits = request_edits(peer, forwarding, target.as_deref(), &levels);
    if let (Request::Http1(head), None, None) = (matched.request.head, forwarding.upgrade, &forwarding.call) {
        return Buf::build(|out| write_request_head(&head, &edits, out));
    }
    let head = matched.request.head;
    let mut headers = map_of(head);
    edit_request(&mut headers, &edits);
    forwarding.call.iter().for_each(|call| call.edit_request(&mut headers));
    let host = edits.host.unwrap_or_else(|| head.authority());
    let is_connect = forwarding.upgrade == Some(b"connect");
    let mut method = head.method();
    if let Some(protocol) = forwarding.upgrade.filter(|_| !is_connect) {
        upgrade::to_http1(&mut headers, protocol, &worker.chance);
        method = b"GET";
    }
    let full = match &target {
        Some(target) => target.clone(),
        None => Buf::build(|target| put_path(head.path(), head.query(), target)),
    };
    let target = if is_connect { host } else { &full[..] };
    let is_translated = forwarding.call.as_ref().is_some_and(|call| call.is_translated());
    let body = match (forwarding.upgrade, head.body()) {
        (Some(_), _) => BodyLength::Empty,
        (None, BodyLength::Length(_)) if is_translated => BodyLength::Chunked,
        (None, body) => body,
    };
    let upgrade = forwarding.upgrade.filter(|_| !is_connect);
    let map = MapHead { headers: &headers, body, upgrade, connection: Connection::Implied };
    Buf::build(|out| edit::write_request_map(method, target, host, &map, out))
}

/// The request as an upstream of HTTP/2 gets it. An error: it has no form there.
pub(super) fn forwarded_request(peer: SocketAddr, forwarding: &Forwarding<'_>) -> Result<http::Request<()>, Kind> {
    let matched = forwarding.matched;
    let head = matched.request.head;
    let target = upstream_target(matched, forwarding);
    let levels = request_levels(forwarding);
    let edits = request_edits(peer, forwarding, target.as_deref(), &levels);
    let mut request = http::Request::new(());
    *request.version_mut() = http::Version::HTTP_2;
    let mut headers = map_of(head);
    edit_request(&mut headers, &edits);
    forwarding.call.iter().for_each(|call| call.edit_request(&mut headers));
    headers.remove(HOST);
    let is_connect = forwarding.upgrade == Some(b"connect");
    *request.method_mut() = match head {
        _ if forwarding.upgrade.is_some() => Method::CONNECT,
        Request::Http2(head) => head.parts.method.clone(),
        Request::Http1(head) => Method::from_bytes(head.method()).map_err(|_| Kind::BadRequestLine)?,
    };
    if let Some(protocol) = forwarding.upgrade.filter(|_| !is_connect) {
        upgrade::to_http2(&mut headers);
        let protocol = std::str::from_utf8(protocol).map_err(|_| Kind::BadHeader)?;
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    }
    *request.uri_mut() = uri(head, &edits, is_connect)?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn uri(head: Request<'_>, edits: &RequestEdits<'_>, is_connect: bool) -> Result<Uri, Kind> {
    let mut parts = http::uri::Parts::default();
    let received = match head {
        Request::Http2(head) => Some(&head.parts.uri),
        Request::Http1(_) => None,
    };
    parts.authority = Some(match (edits.host, received.and_then(Uri::authority)) {
        (None, Some(authority)) => authority.clone(),
        (host, _) => Authority::try_from(host.unwrap_or_else(|| head.authority())).map_err(|_| Kind::BadHost)?,
    });
    if !is_connect {
        parts.scheme = Some(Scheme::HTTP);
        parts.path_and_query = Some(match (edits.target, received.and_then(Uri::path_and_query)) {
            (None, Some(path)) => path.clone(),
            (Some(target), _) => PathAndQuery::try_from(target).map_err(|_| Kind::BadPath)?,
            (None, None) => {
                let target = Buf::build(|target| put_path(head.path(), head.query(), target));
                PathAndQuery::try_from(&target[..]).map_err(|_| Kind::BadPath)?
            }
        });
    }
    Uri::from_parts(parts).map_err(|_| Kind::BadPath)
}

fn map_of(head: Request<'_>) -> HeaderMap {
    match head {
        Request::Http1(head) => request_map(&head),
        Request::Http2(head) => head.parts.headers.clone(),
    }
}

fn request_edits<'a>(
    peer: SocketAddr,
    forwarding: &'a Forwarding<'_>,
    target: Option<&'a [u8]>,
    levels: &'a Levels<'_>,
) -> RequestEdits<'a> {
    let matched = forwarding.matched;
    RequestEdits {
        target,
        host: upstream_host(matched, forwarding),
        levels: levels.as_slice(),
        forwarded_for: (!matched.http.skip_xff_append).then(|| peer.ip().to_canonical()),
        scheme: matched.request.scheme,
        request_id: forwarding.request_id.as_ref().map(|id| &id[..]),
        via: &matched.http.via,
        trust: Trust::Edge,
        keep_expect: false,
        connection: Connection::Implied,
    }
}

/// The response head as a client of HTTP/1 gets it. `body` is how the upstream framed it.
pub(super) fn relayed_head(
    head: Response<'_>,
    body: BodyLength,
    keep: bool,
    worker: &Worker,
    forwarding: &Forwarding<'_>,
) -> Buf {
    let http = forwarding.matched.http;
    let version = forwarding.matched.request.head.version();
    let body = match body {
        BodyLength::UntilClose if version == HttpVersion::Http11 => BodyLength::Chunked,
        BodyLength::Chunked if version == HttpVersion::Http10 => BodyLength::UntilClose,
        body => body,
    };
    let date = worker.date();
    let levels = response_levels(forwarding);
    let edits = response_edits(body, http, &levels, (&date, connection(keep, version)));
    match head {
        Response::Http1(head) if forwarding.call.is_none() => Buf::build(|out| write_response_head(&head, &edits, out)),
        head => {
            let mut headers = response_map_of(head, body);
            edit_response(&mut headers, &edits);
            forwarding.call.iter().for_each(|call| call.edit_response(&mut headers));
            let map = MapHead { headers: &headers, body, upgrade: None, connection: edits.connection };
            Buf::build(|out| edit::write_response_map(head.status(), &map, out))
        }
    }
}

fn response_map_of(head: Response<'_>, body: BodyLength) -> HeaderMap {
    match head {
        Response::Http1(head) => response_map(&head, body),
        Response::Http2 { parts, .. } => parts.headers.clone(),
    }
}

/// The response as a client of HTTP/2 gets it, out of the upstream's status and headers.
pub(super) fn relayed_response(
    (status, mut headers): (u16, HeaderMap),
    body: BodyLength,
    worker: &Worker,
    forwarding: &Forwarding<'_>,
) -> http::Response<()> {
    let date = worker.date();
    let levels = response_levels(forwarding);
    let edits = response_edits(body, forwarding.matched.http, &levels, (&date, Connection::Implied));
    edit_response(&mut headers, &edits);
    forwarding.call.iter().for_each(|call| call.edit_response(&mut headers));
    let mut response = http::Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = headers;
    response
}

/// The head that tells a client of HTTP/1 that its connection is a tunnel from here on.
pub(super) fn switched_head(head: Response<'_>, worker: &Worker, forwarding: &Forwarding<'_>) -> Buf {
    let received = (head.status(), response_map_of(head, BodyLength::Empty));
    let mut response = relayed_response(received, BodyLength::Empty, worker, forwarding);
    let protocol = forwarding.upgrade.filter(|kind| *kind != b"connect");
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    let status = if protocol.is_some() { 101 } else { 200 };
    if let (Some(_), Response::Http2 { .. }) = (protocol, head) {
        upgrade::accept_in_http1(headers, forwarding.matched.request.head.header("sec-websocket-key"));
    }
    let map = MapHead { headers, body: BodyLength::Empty, upgrade: protocol, connection: Connection::Implied };
    Buf::build(|out| edit::write_response_map(status, &map, out))
}

/// As [`switched_head`], for a client of HTTP/2 and its stream.
pub(super) fn switched_response(
    head: Response<'_>,
    worker: &Worker,
    forwarding: &Forwarding<'_>,
) -> http::Response<()> {
    let received = (head.status(), response_map_of(head, BodyLength::Empty));
    let mut response = relayed_response(received, BodyLength::Empty, worker, forwarding);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().remove(CONTENT_LENGTH);
    upgrade::accept_in_http2(response.headers_mut());
    response
}

fn response_edits<'a>(
    body: BodyLength,
    http: &'a HttpConnectionConfig,
    levels: &'a Levels<'_>,
    (date, connection): (&'a [u8], Connection),
) -> ResponseEdits<'a> {
    ResponseEdits {
        body,
        levels: levels.as_slice(),
        server: http.server_header,
        server_name: &http.server_name,
        via: &http.via,
        date,
        extra: &[],
        connection,
    }
}

fn connection(keep: bool, version: HttpVersion) -> Connection {
    match (keep, version) {
        (false, _) => Connection::Close,
        (true, HttpVersion::Http10) => Connection::KeepAlive,
        (true, HttpVersion::Http11 | HttpVersion::Http2) => Connection::Implied,
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
pub(super) fn scheme(http: &HttpConnectionConfig, head: Request<'_>) -> &'static str {
    match head.known(Name::XForwardedProto, "x-forwarded-proto") {
        Some(b"https") if !http.use_remote_address => "https",
        _ => "http",
    }
}

/// A random `x-request-id` where the client sent none, or where the edge does not keep the client's.
pub(super) fn request_id(http: &HttpConnectionConfig, head: Request<'_>, worker: &Worker) -> Option<[u8; 36]> {
    if !http.generate_request_id {
        return None;
    }
    let replaces = http.use_remote_address && !http.preserve_request_id;
    let has_one = head.known(Name::XRequestId, "x-request-id").is_some_and(|id| !id.is_empty());
    (replaces || !has_one).then(|| uuid(worker.chance.bits(), worker.chance.bits()))
}

/// A version 4 UUID (RFC 9562 §5.4) from random bits.
fn uuid(high: u64, low: u64) -> [u8; 36] {
    let high = (high & 0xFFFF_FFFF_FFFF_0FFF) | 0x4000;
    let low = (low & 0x3FFF_FFFF_FFFF_FFFF) | 0x8000_0000_0000_0000;
    let mut text = [b'-'; 36];
    let (first, second) = (digits((high >> 32) as u32), digits(high as u32));
    let (third, fourth) = (digits((low >> 32) as u32), digits(low as u32));
    text[..8].copy_from_slice(&first);
    text[9..13].copy_from_slice(&second[..4]);
    text[14..18].copy_from_slice(&second[4..]);
    text[19..23].copy_from_slice(&third[..4]);
    text[24..28].copy_from_slice(&third[4..]);
    text[28..].copy_from_slice(&fourth);
    text
}

/// Eight hexadecimal digits at once: each half byte is given a byte of its own, and each of these made a digit.
#[inline(never)]
fn digits(word: u32) -> [u8; 8] {
    const ONES: u64 = u64::MAX / 255;
    let mut halves = u64::from(word);
    halves = ((halves << 16) | halves) & 0x0000_FFFF_0000_FFFF;
    halves = ((halves << 8) | halves) & 0x00FF_00FF_00FF_00FF;
    halves = ((halves << 4) | halves) & (ONES * 0x0F);
    let is_letter = ((halves + ONES * 6) >> 4) & ONES;
    (halves + ONES * u64::from(b'0') + is_letter * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

/// Up to five levels of edits without an allocation.
struct Levels<'a> {
    edits: [&'a HeaderEdits; 5],
    count: usize,
}

impl<'a> Levels<'a> {
    /// One copy for requests and responses.
    #[inline(never)]
    fn new(none: &'a HeaderEdits, levels: [Option<&'a HeaderEdits>; 5]) -> Self {
        let mut edits = [none; 5];
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
    Levels::new(route, [forwarding.choice_request_edits, Some(route), Some(host), Some(table), None])
}

fn response_levels<'a>(forwarding: &'a Forwarding<'_>) -> Levels<'a> {
    let matched = forwarding.matched;
    let (route, host, table) =
        (&matched.route.response_edits, &matched.host.response_edits, &matched.routes.table().response_edits);
    let cookies = &forwarding.hashed.cookies;
    Levels::new(route, [forwarding.choice_response_edits, Some(route), Some(host), Some(table), Some(cookies)])
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
