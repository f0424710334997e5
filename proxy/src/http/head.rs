//! **Purpose.** Heads of either version, seen alike.
//!
//! **Shape.** A [`Request`] is bytes with a table over them, or a header map; routing sees it as a [`HeadView`], with the
//! spelling of path and authority that it is routed by. A [`Response`] likewise.
//!
//! **Errors.** A [`Kind`] of the parse stage for a head of HTTP/2 that `h2` lets through and HTTP does not.
//!
//! **Source.** RFC 9113 §8.3; RFC 8441 §4 for extended CONNECT.

use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, EXPECT, HOST};
use http::{HeaderMap, Method, request, response};

use crate::config::{HttpConnectionConfig, UnderscoreHeaders};
use crate::fault::Kind;
use crate::http1::head::parse_authority;
use crate::http1::line::Name;
use crate::http1::{BodyLength, RequestHead, ResponseHead, Version};
use crate::route::RequestView;

/// Which HTTP a message came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpVersion {
    Http10,
    Http11,
    Http2,
}

/// A request head as it came.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request<'a> {
    Http1(RequestHead<'a>),
    Http2(&'a FramedHead),
}

/// The head of a request that came by HTTP/2.
#[derive(Debug)]
pub(super) struct FramedHead {
    pub(super) parts: request::Parts,
    body: BodyLength,
}

impl FramedHead {
    /// Takes a head over. Nothing of it holds before [`FramedHead::settle`].
    pub(super) fn new(parts: request::Parts) -> Self {
        Self { body: BodyLength::Empty, parts }
    }

    /// Makes of it what a request must be; `is_whole` when no body follows it.
    pub(super) fn settle(&mut self, is_whole: bool, http: &HttpConnectionConfig) -> Result<(), Kind> {
        self.body = body_length(&self.parts, is_whole)?;
        self.settle_authority()?;
        self.settle_names(http)?;
        if self.parts.headers.get(EXPECT).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            return Err(Kind::BadExpectation);
        }
        Ok(())
    }

    /// `:authority` decides, else `host`; two that differ are two hosts.
    fn settle_authority(&mut self) -> Result<(), Kind> {
        let headers = &self.parts.headers;
        let mut hosts = headers.get_all(HOST).iter();
        let (host, more) = (hosts.next(), hosts.next());
        let authority = self.parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        if more.is_some() || (authority.is_some() && host.is_some_and(|host| Some(host.as_bytes()) != authority)) {
            return Err(Kind::BadHost);
        }
        parse_authority(authority.or(host.map(|host| host.as_bytes())).ok_or(Kind::BadHost)?)
    }

    fn settle_names(&mut self, http: &HttpConnectionConfig) -> Result<(), Kind> {
        let headers = &mut self.parts.headers;
        if headers.len() > http.max_headers {
            return Err(Kind::HeadTooLarge);
        }
        if http.underscore_headers == UnderscoreHeaders::Allow {
            return Ok(());
        }
        let odd: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        if !odd.is_empty() && http.underscore_headers == UnderscoreHeaders::RejectRequest {
            return Err(Kind::Underscore);
        }
        for name in odd {
            headers.remove(name);
        }
        Ok(())
    }
}

fn body_length(parts: &request::Parts, is_whole: bool) -> Result<BodyLength, Kind> {
    if is_whole {
        return Ok(BodyLength::Empty);
    }
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Kind::BadFraming);
    }
    match length.map(|length| length.to_str().ok().and_then(|text| text.parse().ok())) {
        None => Ok(BodyLength::Chunked),
        Some(Some(bytes)) => Ok(BodyLength::Length(bytes)),
        Some(None) => Err(Kind::BadFraming),
    }
}

impl<'a> Request<'a> {
    /// The method; letter case counts.
    pub(super) fn method(self) -> &'a [u8] {
        match self {
            Self::Http1(head) => head.method(),
            Self::Http2(head) => head.parts.method.as_str().as_bytes(),
        }
    }

    /// Host and port.
    pub(super) fn authority(self) -> &'a [u8] {
        match self {
            Self::Http1(head) => head.authority(),
            Self::Http2(head) => match head.parts.uri.authority() {
                Some(authority) => authority.as_str().as_bytes(),
                None => head.parts.headers.get(HOST).map(|host| host.as_bytes()).unwrap_or_default(),
            },
        }
    }

    /// The path without its query; empty in CONNECT.
    pub(super) fn path(self) -> &'a [u8] {
        match self {
            Self::Http1(head) => head.path(),
            Self::Http2(head) => head.parts.uri.path().as_bytes(),
        }
    }

    /// What follows `?`.
    pub(super) fn query(self) -> Option<&'a [u8]> {
        match self {
            Self::Http1(head) => head.query(),
            Self::Http2(head) => head.parts.uri.query().map(str::as_bytes),
        }
    }

    /// First value of a header; `name` in lower case.
    pub(super) fn header(self, name: &str) -> Option<&'a [u8]> {
        match self {
            Self::Http1(head) => head.header(name.as_bytes()),
            Self::Http2(head) => head.parts.headers.get(name).map(|value| value.as_bytes()),
        }
    }

    /// As [`Self::header`], of one that has a class: where none of it came, no line is looked at.
    pub(super) fn known(self, class: Name, name: &str) -> Option<&'a [u8]> {
        match self {
            Self::Http1(head) => head.known(class).next(),
            Self::Http2(head) => head.parts.headers.get(name).map(|value| value.as_bytes()),
        }
    }

    /// How long the body is; [`BodyLength::Chunked`]: it tells by itself when it ends.
    pub(super) fn body(self) -> BodyLength {
        match self {
            Self::Http1(head) => head.body(),
            Self::Http2(head) => head.body,
        }
    }

    /// Which HTTP it came by.
    pub(super) fn version(self) -> HttpVersion {
        match self {
            Self::Http1(head) if head.version() == Version::Http10 => HttpVersion::Http10,
            Self::Http1(_) => HttpVersion::Http11,
            Self::Http2(_) => HttpVersion::Http2,
        }
    }

    /// The client wants to go on with its connection.
    pub(super) fn keep_alive(self) -> bool {
        match self {
            Self::Http1(head) => head.keep_alive(),
            Self::Http2(_) => true,
        }
    }

    /// The client waits for `100 Continue` before it sends the body.
    pub(super) fn expects_continue(self) -> bool {
        match self {
            Self::Http1(head) => head.expects_continue(),
            Self::Http2(head) => !head.body.is_empty() && head.parts.headers.contains_key(EXPECT),
        }
    }

    /// What the client asks its connection or stream to become: the word of `Upgrade` or `:protocol`, or `connect`.
    pub(super) fn upgrade(self) -> Option<&'a [u8]> {
        if let Self::Http2(head) = self
            && let Some(protocol) = head.parts.extensions.get::<Protocol>()
        {
            return Some(protocol.as_str().as_bytes());
        }
        match self {
            _ if self.method() == b"CONNECT" => Some(b"connect"),
            Self::Http1(head) if head.is_upgrade() => head.header(b"upgrade"),
            Self::Http1(_) | Self::Http2(_) => None,
        }
    }

    /// Doing it twice is doing it once.
    pub(super) fn is_idempotent(self) -> bool {
        match self {
            Self::Http1(head) => head.is_idempotent(),
            Self::Http2(head) => {
                [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE]
                    .contains(&head.parts.method)
            }
        }
    }

    /// The client named the work, so that the application can tell a repetition.
    pub(super) fn has_idempotency_key(self) -> bool {
        match self {
            Self::Http1(head) => head.has_idempotency_key(),
            Self::Http2(_) => self.header("idempotency-key").is_some_and(|key| !key.is_empty()),
        }
    }
}

/// A request with the spelling of path and authority that it is routed by.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadView<'a> {
    /// The head as it came.
    pub(super) head: Request<'a>,
    /// `http` or `https`.
    pub(super) scheme: &'a str,
    /// The authority, with or without its port.
    pub(super) authority: &'a [u8],
    /// The path, normalised.
    pub(super) path: &'a [u8],
}

impl RequestView for HeadView<'_> {
    fn method(&self) -> &[u8] {
        self.head.method()
    }

    fn scheme(&self) -> &[u8] {
        self.scheme.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority
    }

    fn path(&self) -> &[u8] {
        self.path
    }

    fn query(&self) -> Option<&[u8]> {
        self.head.query()
    }

    fn each_value<'s>(&'s self, name: &[u8], visit: &mut dyn FnMut(&'s [u8])) {
        match self.head {
            Request::Http1(head) => head.values(name).for_each(visit),
            Request::Http2(head) => {
                let Ok(name) = std::str::from_utf8(name) else { return };
                head.parts.headers.get_all(name).iter().for_each(|value| visit(value.as_bytes()));
            }
        }
    }
}

/// A response head as it came.
#[derive(Clone, Copy, Debug)]
pub(super) enum Response<'a> {
    Http1(ResponseHead<'a>),
    Http2 { parts: &'a response::Parts, is_whole: bool },
}

impl Response<'_> {
    /// 100..=599 or so.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Http1(head) => head.status(),
            Self::Http2 { parts, .. } => parts.status.as_u16(),
        }
    }

    /// First value of a header; `name` in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&[u8]> {
        match self {
            Self::Http1(head) => head.header(name.as_bytes()),
            Self::Http2 { parts, .. } => parts.headers.get(name).map(|value| value.as_bytes()),
        }
    }

    /// How long the body is when the request's method was `method`.
    pub(super) fn body(self, method: &[u8]) -> BodyLength {
        match self {
            Self::Http1(head) => head.body(method),
            Self::Http2 { parts, is_whole: true } => {
                let has_none = method == b"HEAD" || matches!(parts.status.as_u16(), 204 | 304);
                if has_none { BodyLength::Empty } else { BodyLength::Length(0) }
            }
            Self::Http2 { parts, .. } => length(&parts.headers).map_or(BodyLength::Chunked, BodyLength::Length),
        }
    }

    /// The upstream connection may serve another request.
    pub(super) fn keep_alive(self) -> bool {
        match self {
            Self::Http1(head) => head.keep_alive(),
            Self::Http2 { .. } => true,
        }
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
