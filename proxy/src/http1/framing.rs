//! **Purpose.** How long a body is, and what `Connection` says.
//!
//! **Errors.** Requests: [`Kind::BadFraming`] (400) for every Content-Length that is not one plain number, and for
//! Content-Length beside Transfer-Encoding; [`Kind::BadCoding`] (501) for a coding other than one `chunked`.
//!
//! **Source.** RFC 9112 §6. Stricter: equal duplicates of Content-Length and several codings are refused too.

use crate::fault::Kind;

use super::line::{Line, Name, NameSet, trim};

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    #[default]
    Empty,
    /// So many bytes, which may be 0.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection; responses only.
    UntilClose,
}

impl BodyLength {
    /// No byte of a body follows the head.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::Empty | Self::Length(0))
    }
}

/// What the framing headers of one message say, before its kind and version are considered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    /// The one Content-Length.
    pub(super) length: Option<u64>,
    /// Transfer-Encoding is exactly `chunked`.
    pub(super) is_chunked: bool,
}

impl Framing {
    /// Reads the framing headers among `lines`.
    pub(super) fn parse(lines: &[Line], seen: NameSet, bytes: &[u8]) -> Result<Self, Kind> {
        let mut framing = Self::default();
        if !seen.has_any([Name::ContentLength, Name::TransferEncoding]) {
            return Ok(framing);
        }
        let mut codings = 0_u32;
        for line in lines {
            match line.name {
                Name::ContentLength => {
                    let length = parse_length(line.value_in(bytes)).ok_or(Kind::BadFraming)?;
                    if framing.length.replace(length).is_some() {
                        return Err(Kind::BadFraming);
                    }
                }
                Name::TransferEncoding => {
                    codings += 1;
                    framing.is_chunked = codings == 1 && line.value_in(bytes).eq_ignore_ascii_case(b"chunked");
                }
                _ => {}
            }
        }
        match (framing.length, codings) {
            (Some(_), 1..) => Err(Kind::BadFraming),
            (None, 1..) if !framing.is_chunked => Err(Kind::BadCoding),
            _ => Ok(framing),
        }
    }
}

/// 1 to 19 digits and nothing else.
fn parse_length(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0_u64, |sum, b| sum * 10 + u64::from(b - b'0')))
}

/// What the `Connection` headers of one message ask for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionOptions {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

/// Most header names that `Connection` may nominate for removal; more is refused.
const NOMINATIONS: usize = 32;

impl ConnectionOptions {
    /// Reads `Connection` and marks the lines it nominates as dropped. `None`: it names a header that must not be
    /// removed by the peer's wish, or too many.
    pub(super) fn parse(lines: &mut [Line], seen: NameSet, bytes: &[u8]) -> Option<Self> {
        let mut options = Self::default();
        if !seen.has_any([Name::Connection]) {
            return Some(options);
        }
        let mut nominations = 0;
        for at in 0..lines.len() {
            if lines[at].name != Name::Connection {
                continue;
            }
            let value = lines[at].value_in(bytes);
            // What nearly everybody sends.
            if value == b"keep-alive" {
                options.keep_alive = true;
                continue;
            }
            for token in value.split(|b| *b == b',').map(trim) {
                let is = |text: &str| token.eq_ignore_ascii_case(text.as_bytes());
                if token.is_empty() {
                } else if is("close") {
                    options.close = true;
                } else if is("keep-alive") {
                    options.keep_alive = true;
                } else if is("upgrade") {
                    options.upgrade = true;
                } else if !Name::of(token).is_hop_by_hop() {
                    nominations += 1;
                    if nominations > NOMINATIONS || is_protected(token) {
                        return None;
                    }
                    for line in lines.iter_mut().filter(|line| line.name_in(bytes).eq_ignore_ascii_case(token)) {
                        line.is_dropped = true;
                    }
                }
            }
        }
        Some(options)
    }

    /// The connection goes on after this message, as far as its sender is concerned.
    pub(super) fn is_persistent(self, is_http10: bool) -> bool {
        !self.close && (!is_http10 || self.keep_alive)
    }
}

/// Headers that carry identity, framing or trust: whoever could have them removed could pose as someone else.
fn is_protected(name: &[u8]) -> bool {
    const NAMES: [&str; 7] = ["authorization", "cookie", "forwarded", "host", "idempotency-key", "via", "x-request-id"];
    matches!(Name::of(name), Name::ContentLength | Name::Expect | Name::Outrigger | Name::XEnvoy)
        || super::line::starts_with(name, b"x-forwarded-")
        || name.starts_with(b":")
        || NAMES.iter().any(|text| name.eq_ignore_ascii_case(text.as_bytes()))
}
