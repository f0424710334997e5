//! **Purpose.** Header lines: cut at CR LF, checked byte by byte, classed by name.
//!
//! **Shape.** A [`Cursor`] walks the received bytes and remembers how far it looked, so that input of one byte at a time
//! costs no more than all at once. A [`Line`] is five offsets and the [`Name`] that forwarding cares about.
//!
//! **Limits.** Offsets are 32 bits wide; heads are bounded far below that.
//!
//! **Source.** RFC 9112 §2.2 and §5, without what it merely tolerates: bare LF and obs-fold are refused.

use memchr::memchr;

/// Names that decide framing, forwarding or trust. Prefixes count where the doc says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Connection,
    ContentLength,
    Date,
    Expect,
    Host,
    Http2Settings,
    IdempotencyKey,
    KeepAlive,
    Other,
    /// `outrigger-*`
    Outrigger,
    ProxyConnection,
    Server,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    /// `x-envoy-*`
    XEnvoy,
    XForwardedClientCert,
    XForwardedFor,
    XForwardedProto,
    XRequestId,
}

impl Name {
    /// The class of a header name, in any letter case: of a token, or of what has no control bytes and is to be one.
    pub(crate) fn of(name: &[u8]) -> Self {
        let found = ends(name);
        let is = |wanted| found == wanted;
        // Length first: most names are compared with none of ours, the others with one or two, by two words each.
        match name.len() {
            2 if is(const { ends(b"te") }) => Self::Te,
            4 if is(const { ends(b"date") }) => Self::Date,
            4 if is(const { ends(b"host") }) => Self::Host,
            6 if is(const { ends(b"expect") }) => Self::Expect,
            6 if is(const { ends(b"server") }) => Self::Server,
            7 if is(const { ends(b"trailer") }) => Self::Trailer,
            7 if is(const { ends(b"upgrade") }) => Self::Upgrade,
            10 if is(const { ends(b"connection") }) => Self::Connection,
            10 if is(const { ends(b"keep-alive") }) => Self::KeepAlive,
            12 if is(const { ends(b"x-request-id") }) => Self::XRequestId,
            14 if is(const { ends(b"content-length") }) => Self::ContentLength,
            14 if is(const { ends(b"http2-settings") }) => Self::Http2Settings,
            15 if is(const { ends(b"idempotency-key") }) => Self::IdempotencyKey,
            15 if is(const { ends(b"x-forwarded-for") }) => Self::XForwardedFor,
            16 if is(const { ends(b"proxy-connection") }) => Self::ProxyConnection,
            17 if is(const { ends(b"transfer-encoding") }) && has(name, b"-") => Self::TransferEncoding,
            17 if is(const { ends(b"x-forwarded-proto") }) && has(name, b"d") => Self::XForwardedProto,
            23 if is(const { ends(b"x-forwarded-client-cert") }) && has(name, b"ded-cli") => Self::XForwardedClientCert,
            8.. if found.0 == const { ends(b"x-envoy-").0 } => Self::XEnvoy,
            10.. if found.0 == const { ends(b"outrigge").0 } && has(name, b"r-") => Self::Outrigger,
            _ => Self::Other,
        }
    }

    /// Every byte of a name of this class is known: one without control bytes is a token.
    fn is_spelled_out(self) -> bool {
        !matches!(self, Self::Other | Self::Outrigger | Self::XEnvoy)
    }

    /// Concerns one connection only, and is never passed on as it came.
    pub(crate) fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::Http2Settings
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Te
                | Self::Trailer
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }
}

/// The first and the last eight bytes of a token in lower case; of a shorter one all of them. Setting the bit that makes a
/// letter lower case makes a letter, a digit or a hyphen of no other byte but of control bytes.
const fn ends(token: &[u8]) -> (u64, u64) {
    const LOWER: u64 = 0x2020_2020_2020_2020;
    if let (Some(first), Some(last)) = (token.first_chunk(), token.last_chunk()) {
        return (u64::from_le_bytes(*first) | LOWER, u64::from_le_bytes(*last) | LOWER);
    }
    let (mut word, mut at) = (0, 0);
    while at < token.len() {
        word = word << 8 | token[at] as u64;
        at += 1;
    }
    (word | LOWER, 0)
}

/// The ninth byte and what follows are these (lower case), in any letter case.
fn has(name: &[u8], after_eight: &[u8]) -> bool {
    name.get(8..).is_some_and(|rest| starts_with(rest, after_eight))
}

/// Names that were seen in one head: a question about one that was not needs no look at the lines.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NameSet(u32);

impl NameSet {
    /// It was seen.
    pub(super) fn insert(&mut self, name: Name) {
        self.0 |= 1 << name as u32;
    }

    /// True when any of `names` was.
    pub(super) fn has_any<const COUNT: usize>(self, names: [Name; COUNT]) -> bool {
        self.0 & names.iter().fold(0, |bits, name| bits | (1 << *name as u32)) != 0
    }
}

/// One header line within the received bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    start: u32,
    name_end: u32,
    value_start: u32,
    value_end: u32,
    end: u32,
    /// What its name means to us.
    pub(super) name: Name,
    /// Not to be seen by routing and not passed on (nominated by `Connection`, or dropped by configuration).
    pub(super) is_dropped: bool,
}

impl Line {
    /// Parses the line from `start` to its LF at `lf`. `None`: not a header line. One copy for requests and responses:
    /// between two requests of a busy hour the code's own lines have left the cache.
    #[inline(never)]
    pub(super) fn parse(bytes: &[u8], start: usize, lf: usize) -> Option<Self> {
        let text = bytes.get(start..lf)?.strip_suffix(b"\r")?;
        let is_plain = is_plain(text);
        let colon = find(b':', text)?;
        let (name, value) = (&text[..colon], &text[colon + 1..]);
        let class = Name::of(name);
        let is_name = (is_plain && class.is_spelled_out()) || is_token(name);
        if !is_name || !(is_plain || is_field_value(value)) {
            return None;
        }
        let lead = value.iter().position(|b| !is_blank(*b)).unwrap_or(value.len());
        let trail = value[lead..].iter().rev().position(|b| !is_blank(*b)).unwrap_or(0);
        let value_start = start + colon + 1 + lead;
        Some(Self {
            start: narrow(start),
            name_end: narrow(start + colon),
            value_start: narrow(value_start),
            value_end: narrow(start + text.len() - trail),
            end: narrow(lf + 1),
            name: class,
            is_dropped: false,
        })
    }

    /// The name as received.
    pub(super) fn name_in<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        part(bytes, self.start, self.name_end)
    }

    /// The value without blanks around it.
    pub(super) fn value_in<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        part(bytes, self.value_start, self.value_end)
    }

    /// Where the value is.
    pub(super) fn value_range(&self) -> (u32, u32) {
        (self.value_start, self.value_end)
    }

    /// Where the line starts.
    pub(super) fn start(&self) -> usize {
        wide(self.start)
    }

    /// One past its LF.
    pub(super) fn end(&self) -> usize {
        wide(self.end)
    }
}

/// A walk over received lines that can stop and go on when more has come.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    next: usize,
    scanned: usize,
}

impl Cursor {
    /// Start of the line that is not yet taken.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// The next whole line: where it starts, and where its LF is. One copy, as of [`Line::parse`].
    #[inline(never)]
    pub(super) fn take_line(&mut self, bytes: &[u8]) -> Option<(usize, usize)> {
        let from = self.scanned.max(self.next);
        let Some(offset) = find(b'\n', bytes.get(from..).unwrap_or_default()) else {
            self.scanned = bytes.len();
            return None;
        };
        let (start, lf) = (self.next, from + offset);
        self.next = lf + 1;
        self.scanned = lf + 1;
        Some((start, lf))
    }
}

/// Bytes of `start..end`; empty when they are not there, which only a table used with foreign bytes can cause.
pub(super) fn part(bytes: &[u8], start: u32, end: u32) -> &[u8] {
    bytes.get(wide(start)..wide(end)).unwrap_or_default()
}

/// An offset within a head. Saturates: a head beyond 4 GiB is refused long before by its limit.
pub(super) fn narrow(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// The same offset for slicing.
pub(super) fn wide(offset: u32) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// `bytes` is a token of RFC 9110 §5.6.2.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&b| TOKEN[usize::from(b)])
}

/// No control byte but TAB.
pub(super) fn is_field_value(bytes: &[u8]) -> bool {
    is_plain(bytes) || bytes.iter().all(|b| (*b >= 0x20 && *b != 0x7f) || *b == b'\t')
}

/// No control byte. Eight bytes at a time, the last eight perhaps twice.
fn is_plain(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk() else { return !bytes.iter().any(u8::is_ascii_control) };
    let (words, _) = bytes.as_chunks();
    words.iter().fold(controls(last), |found, word| found | controls(word)) == 0
}

/// A word with this in each byte is that times each byte.
const ONES: u64 = u64::MAX / 255;

/// Not 0 when a byte is below 0x20 or is 0x7f. Source: S. Anderson, "Bit Twiddling Hacks", hasless and haszero.
fn controls(word: &[u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(*word);
    (word.wrapping_sub(ONES * 0x20) & !word & (ONES * 0x80)) | zeros(word ^ (ONES * 0x7f))
}

/// Bits of bytes that are 0, the lowest of which is right (as above, haszero).
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (ONES * 0x80)
}

/// Where the first `wanted` is. What is looked for in a head is most often near: eight bytes at a time are through before
/// longer steps are made ready.
pub(super) fn find(wanted: u8, bytes: &[u8]) -> Option<usize> {
    const NEAR_WORDS: usize = 8;
    let (words, rest) = bytes.as_chunks();
    let near = words.iter().take(NEAR_WORDS).map(|word| zeros(u64::from_le_bytes(*word) ^ (ONES * u64::from(wanted))));
    let mut at = 0;
    for found in near {
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let offset =
        if words.len() > NEAR_WORDS { memchr(wanted, &bytes[at..]) } else { rest.iter().position(|b| *b == wanted) };
    offset.map(|offset| at + offset)
}

/// Blank within a line.
pub(super) fn is_blank(b: u8) -> bool {
    b == b' ' || b == b'\t'
}

/// `bytes` without blanks around it.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b, rest @ ..] = bytes
        && is_blank(*b)
    {
        bytes = rest;
    }
    while let [rest @ .., b] = bytes
        && is_blank(*b)
    {
        bytes = rest;
    }
    bytes
}

/// Begins with `prefix` (lower case) in any letter case.
pub(super) fn starts_with(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = matches!(b as u8, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9'
            | b'A'..=b'Z' | b'^'..=b'z' | b'|' | b'~');
        b += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [(&str, Name); 20] = [
        ("connection", Name::Connection),
        ("content-length", Name::ContentLength),
        ("date", Name::Date),
        ("expect", Name::Expect),
        ("host", Name::Host),
        ("http2-settings", Name::Http2Settings),
        ("idempotency-key", Name::IdempotencyKey),
        ("keep-alive", Name::KeepAlive),
        ("outrigger-x", Name::Outrigger),
        ("proxy-connection", Name::ProxyConnection),
        ("server", Name::Server),
        ("te", Name::Te),
        ("trailer", Name::Trailer),
        ("transfer-encoding", Name::TransferEncoding),
        ("upgrade", Name::Upgrade),
        ("x-envoy-x", Name::XEnvoy),
        ("x-forwarded-client-cert", Name::XForwardedClientCert),
        ("x-forwarded-for", Name::XForwardedFor),
        ("x-forwarded-proto", Name::XForwardedProto),
        ("x-request-id", Name::XRequestId),
    ];

    #[test]
    fn every_name_is_known_in_any_letter_case() {
        for (text, name) in NAMES {
            assert_eq!(Name::of(text.as_bytes()), name, "{text}");
            assert_eq!(Name::of(text.to_ascii_uppercase().as_bytes()), name, "{text}");
            assert_eq!(Name::of(text.replace('-', "_").as_bytes()) == name, !text.contains('-'), "{text}");
        }
        assert_eq!(Name::of(b"x-envo"), Name::Other);
        assert_eq!(Name::of(b""), Name::Other);
    }

    #[test]
    fn no_name_is_taken_for_one_that_differs_in_a_byte() {
        for (text, name) in NAMES {
            let fixed = if matches!(name, Name::XEnvoy | Name::Outrigger) { text.len() - 1 } else { text.len() };
            for at in 0..fixed {
                for b in (0..=255_u8).filter(|b| !b.is_ascii_control()) {
                    let mut other = text.as_bytes().to_vec();
                    other[at] = b;
                    let is_same = other.eq_ignore_ascii_case(text.as_bytes());
                    assert_eq!(Name::of(&other) == name, is_same, "{text} with {b:#x} at {at}");
                }
            }
        }
    }

    #[test]
    fn a_control_byte_is_found_wherever_it_stands() {
        for length in 0..40 {
            for bad in (0..length).map(Some).chain([None]) {
                for b in 0..=255 {
                    let mut value = vec![b'\t'; length];
                    value.iter_mut().step_by(3).for_each(|place| *place = 0xff);
                    let at = bad.unwrap_or(length);
                    value.get_mut(at).into_iter().for_each(|place| *place = b);
                    let fine = bad.is_none() || b == b'\t' || (b >= 0x20 && b != 0x7f);
                    assert_eq!(is_field_value(&value), fine, "{b:#x} at {at} of {length}");
                }
            }
        }
    }

    #[test]
    fn a_byte_is_found_where_it_first_stands() {
        for length in 0..100 {
            for first in 0..=length {
                let mut bytes = vec![b'\n' + 1; length];
                bytes.iter_mut().step_by(3).for_each(|place| *place = b'\n' | 0x80);
                bytes.iter_mut().skip(first).step_by(2).for_each(|place| *place = b'\n');
                assert_eq!(find(b'\n', &bytes), (first < length).then_some(first), "{first} of {length}");
            }
        }
    }

    #[test]
    fn a_line_is_one_whatever_its_name_means() {
        for line in ["content-length: 17", "x-content-length: 17", "te:", "x-envoy-a:\t b\t"] {
            let colon = line.find(':').unwrap();
            for at in 0..line.len() {
                for b in 0..=255_u8 {
                    let mut bytes = line.as_bytes().to_vec();
                    bytes[at] = b;
                    let is_fine = match at {
                        _ if at < colon => TOKEN[usize::from(b)] || (b == b':' && at > 0),
                        _ if at == colon => b == b':' || (TOKEN[usize::from(b)] && line[at + 1..].contains(':')),
                        _ => !b.is_ascii_control() || b == b'\t',
                    };
                    bytes.extend(b"\r\n");
                    let parsed = Line::parse(&bytes, 0, bytes.len() - 1);
                    assert_eq!(parsed.is_some(), is_fine, "{b:#x} at {at} of {line}");
                    let name = parsed.map(|line| line.name_in(&bytes).to_vec());
                    let until = bytes.iter().position(|b| *b == b':').unwrap_or_default();
                    assert!(name.is_none_or(|name| name == bytes[..until]));
                }
            }
        }
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let mut set = NameSet::default();
        assert!(!set.has_any([Name::Connection, Name::XRequestId]));
        set.insert(Name::XRequestId);
        assert!(set.has_any([Name::Connection, Name::XRequestId]) && !set.has_any([Name::Connection]));
    }
}
