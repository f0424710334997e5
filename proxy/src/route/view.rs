//! What routing reads of a request.

use crate::http1::RequestHead;

/// A request as routing sees it.
pub trait RequestView {
    /// The method; letter case counts.
    fn method(&self) -> &[u8];
    /// `http` or `https`.
    fn scheme(&self) -> &[u8];
    /// Host and port as sent.
    fn authority(&self) -> &[u8];
    /// The path without its query, spelled as it is to be matched.
    fn path(&self) -> &[u8];
    /// What follows `?`.
    fn query(&self) -> Option<&[u8]>;
    /// Visits every value of a header in order; `name` in lower case.
    fn each_value<'s>(&'s self, name: &[u8], visit: &mut dyn FnMut(&'s [u8]));

    /// First value of a header; `name` in lower case.
    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        let mut first = None;
        self.each_value(name, &mut |value| {
            first.get_or_insert(value);
        });
        first
    }
}

/// An HTTP/1 request with the spelling of path and authority that it is routed by.
#[derive(Clone, Copy, Debug)]
pub struct HeadView<'a> {
    /// The head as received.
    pub head: RequestHead<'a>,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The authority, with or without its port.
    pub authority: &'a [u8],
    /// The path, normalised.
    pub path: &'a [u8],
}

impl<'a> HeadView<'a> {
    /// The head as it came.
    pub fn new(head: RequestHead<'a>, scheme: &'a str) -> Self {
        Self { head, scheme, authority: head.authority(), path: head.path() }
    }
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
        self.head.values(name).for_each(visit);
    }
}

impl RequestView for RequestHead<'_> {
    fn method(&self) -> &[u8] {
        RequestHead::method(self)
    }

    fn scheme(&self) -> &[u8] {
        b"http"
    }

    fn authority(&self) -> &[u8] {
        RequestHead::authority(self)
    }

    fn path(&self) -> &[u8] {
        RequestHead::path(self)
    }

    fn query(&self) -> Option<&[u8]> {
        RequestHead::query(self)
    }

    fn each_value<'s>(&'s self, name: &[u8], visit: &mut dyn FnMut(&'s [u8])) {
        self.values(name).for_each(visit);
    }
}

/// Host and port of an authority; the brackets of an IPv6 address stay.
pub fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let after_address = memchr::memrchr(b']', authority).unwrap_or(0);
    match memchr::memchr(b':', &authority[after_address..]) {
        Some(colon) => (&authority[..after_address + colon], Some(&authority[after_address + colon + 1..])),
        None => (authority, None),
    }
}
