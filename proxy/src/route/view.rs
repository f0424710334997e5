//! What routing reads of a request.

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

/// Host and port of an authority; the brackets of an IPv6 address stay.
pub fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    let after_address = memchr::memrchr(b']', authority).unwrap_or(0);
    match memchr::memchr(b':', &authority[after_address..]) {
        Some(colon) => (&authority[..after_address + colon], Some(&authority[after_address + colon + 1..])),
        None => (authority, None),
    }
}
