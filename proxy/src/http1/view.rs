//! HTTP/1 requests as routing sees them.

use crate::route::RequestView;

use super::head::RequestHead;

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
