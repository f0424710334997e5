//! **Purpose.** Response heads of upstreams, parsed in place and strictly.
//!
//! **Shape.** As [`head`](super::head): a [`ResponseTable`] of offsets, a [`ResponseHead`] that joins it with its bytes.
//! Interim responses (1xx) are heads of their own; the caller parses on after them.
//!
//! **Errors.** [`Kind::ResponseMalformed`] and [`Kind::ResponseTooLarge`]. After either, the connection is not reused.
//!
//! **Limits.** [`ResponseLimits`]; the defaults are Envoy's 60 KiB and 100 headers.
//!
//! **Source.** RFC 9112 §4 and §6.3. Stricter: two Content-Length, equal or not, and codings other than one `chunked`
//! are refused whatever the method was.

use crate::fault::Kind;

use super::framing::{BodyLength, ConnectionOptions, Framing};
use super::head::{Progress, Version};
use super::line::{Cursor, Line, NameSet, is_field_value, narrow, part, wide};

/// Bounds of a response head.
#[derive(Clone, Copy, Debug)]
pub struct ResponseLimits {
    /// Most bytes, the empty line included.
    pub max_bytes: usize,
    /// Most header lines.
    pub max_headers: usize,
}

impl Default for ResponseLimits {
    fn default() -> Self {
        Self { max_bytes: 60 * 1024, max_headers: 100 }
    }
}

/// Offsets of one response head. Reused, so that it allocates only while it grows.
#[derive(Debug, Default)]
pub struct ResponseTable {
    cursor: Cursor,
    lines: Vec<Line>,
    seen: NameSet,
    has_start_line: bool,
    version: Version,
    status: u16,
    reason: (u32, u32),
    framing: Framing,
    connection: ConnectionOptions,
}

impl ResponseTable {
    /// Parses a head from the start of `bytes`; rules as for [`RequestTable::parse`](super::RequestTable::parse).
    pub fn parse(&mut self, bytes: &[u8], limits: &ResponseLimits) -> Result<Progress, Kind> {
        if self.cursor.next() == 0 {
            self.lines.clear();
            self.seen = NameSet::default();
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
    pub fn view<'a>(&'a self, bytes: &'a [u8]) -> ResponseHead<'a> {
        ResponseHead { table: self, bytes }
    }

    fn advance(&mut self, bytes: &[u8], limits: &ResponseLimits) -> Result<Progress, Kind> {
        loop {
            let Some((start, lf)) = self.cursor.take_line(bytes) else {
                return self.wait(bytes, limits);
            };
            if lf + 1 > limits.max_bytes {
                return Err(Kind::ResponseTooLarge);
            }
            if !self.has_start_line {
                self.parse_status_line(bytes, start, lf).ok_or(Kind::ResponseMalformed)?;
                self.has_start_line = true;
            } else if bytes.get(start..lf) == Some(b"\r") {
                self.finish(bytes)?;
                return Ok(Progress::Complete { head_bytes: lf + 1 });
            } else if self.lines.len() >= limits.max_headers {
                return Err(Kind::ResponseTooLarge);
            } else {
                let line = Line::parse(bytes, start, lf).ok_or(Kind::ResponseMalformed)?;
                self.seen.insert(line.name);
                self.lines.push(line);
            }
        }
    }

    fn wait(&self, bytes: &[u8], limits: &ResponseLimits) -> Result<Progress, Kind> {
        let seen = bytes.len().min(b"HTTP/1.".len());
        if !self.has_start_line && bytes.get(..seen) != b"HTTP/1.".get(..seen) {
            return Err(Kind::ResponseMalformed);
        }
        if bytes.len() >= limits.max_bytes { Err(Kind::ResponseTooLarge) } else { Ok(Progress::Partial) }
    }

    fn parse_status_line(&mut self, bytes: &[u8], start: usize, lf: usize) -> Option<()> {
        let text = bytes.get(start..lf)?.strip_suffix(b"\r")?;
        let (version, rest) = text.split_at_checked(9)?;
        self.version = match version {
            b"HTTP/1.1 " => Version::Http11,
            b"HTTP/1.0 " => Version::Http10,
            _ => return None,
        };
        let (digits, tail) = rest.split_at_checked(3)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        self.status = digits.iter().fold(0, |sum, b| sum * 10 + u16::from(b - b'0'));
        // The reason may be missing together with its blank: many servers write `HTTP/1.1 200`.
        let reason_at = match tail {
            [] => lf - 1,
            [b' ', ..] => start + 13,
            _ => return None,
        };
        self.reason = (narrow(reason_at), narrow(lf - 1));
        (is_field_value(tail) && (100..=599).contains(&self.status)).then_some(())
    }

    fn finish(&mut self, bytes: &[u8]) -> Result<(), Kind> {
        self.connection = ConnectionOptions::parse(&mut self.lines, self.seen, bytes).ok_or(Kind::ResponseMalformed)?;
        self.framing = Framing::parse(&self.lines, self.seen, bytes).map_err(|_| Kind::ResponseMalformed)?;
        if self.framing.is_chunked && self.version == Version::Http10 {
            return Err(Kind::ResponseMalformed);
        }
        Ok(())
    }
}

/// A parsed response head: a table and the bytes it was made from.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    table: &'a ResponseTable,
    bytes: &'a [u8],
}

impl<'a> ResponseHead<'a> {
    /// 100..=599.
    pub fn status(&self) -> u16 {
        self.table.status
    }

    /// What follows the status; may be empty.
    pub fn reason(&self) -> &'a [u8] {
        part(self.bytes, self.table.reason.0, self.table.reason.1)
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.table.version
    }

    /// Another head follows for the same request (1xx but 101).
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.table.status) && !self.is_switch()
    }

    /// 101: the upstream leaves HTTP.
    pub fn is_switch(&self) -> bool {
        self.table.status == 101
    }

    /// First value of a header; `name` in lower case.
    pub fn header(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.lines().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Names as received and values, in order.
    pub fn lines(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let bytes = self.bytes;
        let kept = self.table.lines.iter().filter(|line| !line.is_dropped);
        kept.map(move |line| (line.name_in(bytes), line.value_in(bytes)))
    }

    /// How long the body is when the request's method was `method`.
    pub fn body(&self, method: &[u8]) -> BodyLength {
        let status = self.table.status;
        if method == b"HEAD" || status < 200 || status == 204 || status == 304 {
            BodyLength::Empty
        } else if self.table.framing.is_chunked {
            BodyLength::Chunked
        } else {
            self.table.framing.length.map_or(BodyLength::UntilClose, BodyLength::Length)
        }
    }

    /// The upstream wants to go on with this connection. A body [`BodyLength::UntilClose`] ends it all the same.
    pub fn keep_alive(&self) -> bool {
        self.table.connection.is_persistent(self.table.version == Version::Http10)
    }

    pub(super) fn table_lines(&self) -> &'a [Line] {
        &self.table.lines
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The framing headers that were there, whatever the body is.
    pub(super) fn framing(&self) -> Framing {
        self.table.framing
    }

    /// Where the header lines start.
    pub(super) fn first_line_end(&self) -> usize {
        wide(self.table.reason.1) + 2
    }
}
