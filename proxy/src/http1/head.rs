//! **Purpose.** Request heads, parsed in place and strictly.
//!
//! **Shape.** A [`RequestTable`] is reused from request to request; [`RequestTable::parse`] takes all bytes received
//! since the last request and can be called again with more of them. [`RequestTable::view`] joins it with the bytes.
//!
//! **Errors.** A [`Kind`] of the downstream side. After one, the connection cannot be read on.
//!
//! **Limits.** [`HeadLimits`]; at most four empty lines before a request.
//!
//! **Source.** RFC 9112 §3, §5, §6; RFC 3986 §3.2. Stricter: bare LF, obs-fold, an empty Host, user information and
//! anything but visible ASCII in the target are refused.

use crate::config::{HttpConnectionConfig, UnderscoreHeaders};
use crate::fault::Kind;

use super::framing::{BodyLength, ConnectionOptions, Framing};
use super::line::{Cursor, Line, Name, NameSet, find, is_token, narrow, part, starts_with, wide};

/// Empty lines tolerated before a request line.
const LEADING_BLANK_BYTES: usize = 8;

/// Bounds of a request head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Most bytes, from the first of the request line to the empty line.
    pub max_bytes: usize,
    /// Most header lines.
    pub max_headers: usize,
    /// What an underscore in a name gets.
    pub underscores: UnderscoreHeaders,
}

impl From<&HttpConnectionConfig> for HeadLimits {
    fn from(config: &HttpConnectionConfig) -> Self {
        Self {
            max_bytes: config.max_head_bytes,
            max_headers: config.max_headers,
            underscores: config.underscore_headers,
        }
    }
}

/// Version of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Partial,
    /// The head is whole.
    Complete {
        /// Its length; the body starts there.
        head_bytes: usize,
    },
}

/// Offsets of one request head. Reused, so that it allocates only while it grows.
#[derive(Debug, Default)]
pub struct RequestTable {
    cursor: Cursor,
    lines: Vec<Line>,
    seen: NameSet,
    has_start_line: bool,
    start: u32,
    method_end: u32,
    target_end: u32,
    first_line_end: u32,
    version: Version,
    authority: (u32, u32),
    path: (u32, u32),
    query: Option<(u32, u32)>,
    form: Form,
    body: BodyLength,
    connection: ConnectionOptions,
    expects_continue: bool,
    is_upgrade: bool,
}

/// The four forms of a request target. Source: RFC 9112 §3.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    Absolute,
    Asterisk,
    Authority,
    #[default]
    Origin,
}

impl RequestTable {
    /// Parses a head from the start of `bytes`. After [`Progress::Partial`] it goes on where it stopped, so `bytes` must
    /// then be the same with more at the end; after [`Progress::Complete`] or [`RequestTable::reset`] it starts anew.
    pub fn parse(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Progress, Kind> {
        if self.cursor.next() == 0 {
            self.lines.clear();
            self.seen = NameSet::default();
            self.start = 0;
        }
        let result = self.advance(bytes, limits);
        if result != Ok(Progress::Partial) {
            self.cursor = Cursor::default();
            self.has_start_line = false;
        }
        result
    }

    /// Forgets a head that was begun.
    pub fn reset(&mut self) {
        self.cursor = Cursor::default();
        self.lines.clear();
        self.has_start_line = false;
    }

    /// The head that was parsed from `bytes`.
    pub fn view<'a>(&'a self, bytes: &'a [u8]) -> RequestHead<'a> {
        RequestHead { table: self, bytes }
    }

    fn advance(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Progress, Kind> {
        loop {
            let Some((start, lf)) = self.cursor.take_line(bytes) else {
                return self.wait(bytes, limits);
            };
            if lf + 1 - wide(self.start).min(lf) > limits.max_bytes {
                return Err(Kind::HeadTooLarge);
            }
            let is_empty = bytes.get(start..lf) == Some(b"\r");
            if !self.has_start_line {
                if is_empty && lf < LEADING_BLANK_BYTES {
                    self.start = narrow(lf + 1);
                    continue;
                }
                self.parse_start_line(bytes, start, lf)?;
                self.has_start_line = true;
            } else if is_empty {
                self.finish(bytes)?;
                return Ok(Progress::Complete { head_bytes: lf + 1 });
            } else {
                let line = Line::parse(bytes, start, lf).ok_or(Kind::BadHeader)?;
                self.push(line, bytes, limits)?;
            }
        }
    }

    fn wait(&self, bytes: &[u8], limits: &HeadLimits) -> Result<Progress, Kind> {
        // What cannot become a request is refused at its first byte: a TLS hello would else wait for a line end.
        let first = bytes.get(self.cursor.next()).copied().unwrap_or(b'\r');
        if !self.has_start_line && first != b'\r' && !is_token(&[first]) {
            return Err(Kind::BadRequestLine);
        }
        if bytes.len().saturating_sub(wide(self.start)) >= limits.max_bytes {
            return Err(Kind::HeadTooLarge);
        }
        Ok(Progress::Partial)
    }

    fn push(&mut self, mut line: Line, bytes: &[u8], limits: &HeadLimits) -> Result<(), Kind> {
        if self.lines.len() >= limits.max_headers {
            return Err(Kind::HeadTooLarge);
        }
        if limits.underscores != UnderscoreHeaders::Allow && line.name_in(bytes).contains(&b'_') {
            if limits.underscores == UnderscoreHeaders::RejectRequest {
                return Err(Kind::Underscore);
            }
            line.is_dropped = true;
        }
        self.seen.insert(line.name);
        self.lines.push(line);
        Ok(())
    }

    fn parse_start_line(&mut self, bytes: &[u8], start: usize, lf: usize) -> Result<(), Kind> {
        let text = bytes.get(start..lf).and_then(|t| t.strip_suffix(b"\r")).ok_or(Kind::BadRequestLine)?;
        let mut words = text.split(|b| *b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Kind::BadRequestLine);
        };
        if !is_token(method) || target.is_empty() {
            return Err(Kind::BadRequestLine);
        }
        self.version = match version {
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/1.0" => Version::Http10,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                return Err(Kind::BadVersion);
            }
            _ => return Err(Kind::BadRequestLine),
        };
        self.start = narrow(start);
        self.method_end = narrow(start + method.len());
        self.target_end = narrow(start + method.len() + 1 + target.len());
        self.first_line_end = narrow(lf + 1);
        self.parse_target(method, target, start + method.len() + 1)
    }

    fn parse_target(&mut self, method: &[u8], target: &[u8], at: usize) -> Result<(), Kind> {
        if !target.iter().fold(true, |fine, &b| fine & (b > 0x20) & (b < 0x7f) & (b != b'#')) {
            return Err(Kind::BadPath);
        }
        let end = narrow(at + target.len());
        self.authority = (0, 0);
        self.query = None;
        let (form, path_at) = if method == b"CONNECT" {
            (Form::Authority, target.len())
        } else if target[0] == b'/' {
            (Form::Origin, 0)
        } else if target == b"*" && method == b"OPTIONS" {
            (Form::Asterisk, 0)
        } else {
            let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| starts_with(target, scheme));
            let from = scheme.ok_or(Kind::BadRequestLine)?.len();
            let rest = &target[from..];
            let length = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
            self.authority = (narrow(at + from), narrow(at + from + length));
            (Form::Absolute, from + length)
        };
        self.form = form;
        match form {
            Form::Authority => {
                self.authority = (narrow(at), end);
                parse_authority(target)?;
            }
            Form::Absolute => parse_authority(&target[path_at - wide(self.authority.1 - self.authority.0)..path_at])?,
            Form::Asterisk | Form::Origin => {}
        }
        let tail = &target[path_at..];
        let path_length = find(b'?', tail).unwrap_or(tail.len());
        self.path = (narrow(at + path_at), narrow(at + path_at + path_length));
        if path_length < tail.len() {
            self.query = Some((narrow(at + path_at + path_length + 1), end));
        }
        if tail[..path_length].windows(3).any(|three| three == b"%00") {
            return Err(Kind::BadPath);
        }
        Ok(())
    }

    fn finish(&mut self, bytes: &[u8]) -> Result<(), Kind> {
        self.connection = ConnectionOptions::parse(&mut self.lines, self.seen, bytes).ok_or(Kind::BadHeader)?;
        let framing = Framing::parse(&self.lines, self.seen, bytes)?;
        self.body = match (framing.is_chunked, framing.length) {
            (true, _) if self.version == Version::Http10 => return Err(Kind::BadFraming),
            (true, _) => BodyLength::Chunked,
            (false, Some(length)) => BodyLength::Length(length),
            (false, None) => BodyLength::Empty,
        };
        let mut hosts = 0_u32;
        self.expects_continue = false;
        let mut upgrade = None;
        for line in &self.lines {
            let value = line.value_in(bytes);
            match line.name {
                Name::Host => {
                    hosts += 1;
                    parse_authority(value)?;
                    if matches!(self.form, Form::Origin | Form::Asterisk) {
                        self.authority = line.value_range();
                    }
                }
                Name::Expect => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Kind::BadExpectation);
                    }
                    self.expects_continue = self.version == Version::Http11;
                }
                Name::Upgrade => upgrade = Some(value),
                _ => {}
            }
        }
        self.is_upgrade = self.connection.upgrade && upgrade.is_some_and(|value| !value.eq_ignore_ascii_case(b"h2c"));
        let needed = u32::from(self.version == Version::Http11);
        if hosts > 1 || hosts < needed { Err(Kind::BadHost) } else { Ok(()) }
    }
}

/// `host[:port]` without user information: a name, an IPv4 address or a bracketed IPv6 address.
pub(crate) fn parse_authority(text: &[u8]) -> Result<(), Kind> {
    let (host, port) = match text {
        [b'[', rest @ ..] => {
            let close = memchr::memchr(b']', rest).ok_or(Kind::BadHost)?;
            let (address, tail) = (&rest[..close], &rest[close + 1..]);
            let fine = !address.is_empty() && address.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
            let port = match tail {
                [] => None,
                [b':', port @ ..] => Some(port),
                _ => return Err(Kind::BadHost),
            };
            (fine, port)
        }
        _ => {
            let colon = find(b':', text);
            let name = &text[..colon.unwrap_or(text.len())];
            let fine = !name.is_empty() && name.iter().all(|&b| HOST[usize::from(b)]);
            (fine, colon.map(|colon| &text[colon + 1..]))
        }
    };
    let port_is_fine = port.is_none_or(|port| {
        (1..=5).contains(&port.len())
            && port.iter().all(u8::is_ascii_digit)
            && port.iter().fold(0_u32, |sum, b| sum * 10 + u32::from(b - b'0')) <= 65_535
    });
    if host && port_is_fine { Ok(()) } else { Err(Kind::BadHost) }
}

/// Unreserved, percent and those sub-delimiters of RFC 3986 that do not join two hosts into one.
static HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = (b as u8).is_ascii_alphanumeric()
            || matches!(b as u8, b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')')
            || matches!(b as u8, b'*' | b'+' | b';' | b'=');
        b += 1;
    }
    table
};

/// A parsed request head: a table and the bytes it was made from.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    table: &'a RequestTable,
    bytes: &'a [u8],
}

impl<'a> RequestHead<'a> {
    /// The method as received; letter case counts.
    pub fn method(&self) -> &'a [u8] {
        part(self.bytes, self.table.start, self.table.method_end)
    }

    /// The request target as received.
    pub fn target(&self) -> &'a [u8] {
        part(self.bytes, self.table.method_end + 1, self.table.target_end)
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.table.version
    }

    /// Host and port: of the target when it has them, else of `Host`; empty only in HTTP/1.0.
    pub fn authority(&self) -> &'a [u8] {
        part(self.bytes, self.table.authority.0, self.table.authority.1)
    }

    /// The path without its query; `/` when an absolute target has none, `*` in `OPTIONS *`, empty in `CONNECT`.
    pub fn path(&self) -> &'a [u8] {
        match part(self.bytes, self.table.path.0, self.table.path.1) {
            b"" if self.table.form != Form::Authority => b"/",
            path => path,
        }
    }

    /// What follows `?`.
    pub fn query(&self) -> Option<&'a [u8]> {
        self.table.query.map(|(start, end)| part(self.bytes, start, end))
    }

    /// Path and query as one slice; `None` when they are not one (an absolute target without a path).
    pub fn path_and_query(&self) -> Option<&'a [u8]> {
        let (start, end) = self.table.path;
        (start < end).then(|| part(self.bytes, start, self.table.target_end))
    }

    /// First value of a header; `name` in lower case.
    pub fn header(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.values(name).next()
    }

    /// All values of a header, in order; `name` in lower case.
    pub fn values<'n>(&self, name: &'n [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.lines().filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Names as received and values, in order, without those that are dropped before anyone looks.
    pub fn lines(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let bytes = self.bytes;
        let kept = self.table.lines.iter().filter(|line| !line.is_dropped);
        kept.map(move |line| (line.name_in(bytes), line.value_in(bytes)))
    }

    /// How long the body is.
    pub fn body(&self) -> BodyLength {
        self.table.body
    }

    /// The downstream wants to go on with this connection.
    pub fn keep_alive(&self) -> bool {
        self.table.connection.is_persistent(self.table.version == Version::Http10)
    }

    /// The downstream waits for `100 Continue` before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.table.expects_continue
    }

    /// The downstream asks to leave HTTP; `h2c` does not count, it is dropped.
    pub fn is_upgrade(&self) -> bool {
        self.table.is_upgrade
    }

    /// Doing it twice is doing it once. Source: RFC 9110 §9.2.2.
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
    }

    /// The downstream named the work, so that the application can tell a repetition.
    pub fn has_idempotency_key(&self) -> bool {
        self.known(Name::IdempotencyKey).any(|value| !value.is_empty())
    }

    /// All values of a header that has a class of its own, in order.
    pub(crate) fn known(&self, name: Name) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        let lines = if self.table.seen.has_any([name]) { &self.table.lines[..] } else { &[] };
        lines.iter().filter(move |line| line.name == name && !line.is_dropped).map(move |line| line.value_in(bytes))
    }

    pub(super) fn table_lines(&self) -> &'a [Line] {
        &self.table.lines
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// `Host` can be passed on as it came.
    pub(super) fn host_is_authority(&self) -> bool {
        matches!(self.table.form, Form::Origin | Form::Asterisk)
    }

    /// The request line can be passed on as it came: where it starts and ends.
    pub(super) fn plain_request_line(&self) -> Option<(usize, usize)> {
        let plain = self.table.version == Version::Http11 && self.host_is_authority();
        plain.then(|| (wide(self.table.start), wide(self.table.first_line_end)))
    }
}
