//! **Purpose.** HTTP told from everything else by the first line.
//!
//! **Shape.** A [`LineReader`] walks `METHOD SP target SP HTTP/1.x` byte by byte; HTTP/2 is its preface and nothing else.
//!
//! **Limits.** A line of [`LINE_MAX`] bytes without an end is HTTP/1.1: nothing else begins like that.
//!
//! **Source.** RFC 9112 §3, RFC 9113 §3.4. The line must be complete up to its version, as for Envoy's `http_inspector`.

use crate::http2::is_preface;

/// Bytes of a request line that are looked at.
pub const LINE_MAX: usize = 8 * 1024;

/// Longest method that is believed to be one.
const METHOD_MAX: usize = 32;

const VERSION: &[u8] = b"HTTP/1.";

/// What a connection without TLS speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// A request line of HTTP/1.0.
    Http10,
    /// A request line of HTTP/1.1, or of a later 1.x.
    Http11,
    /// The preface of HTTP/2, with prior knowledge.
    Http2,
    /// No HTTP.
    Opaque,
}

impl Preface {
    /// The name that a filter chain asks for, as a list of protocols.
    pub fn protocol(self) -> &'static [u8] {
        match self {
            Self::Http10 => b"\x08http/1.0",
            Self::Http11 => b"\x08http/1.1",
            Self::Http2 => b"\x03h2c",
            Self::Opaque => b"",
        }
    }
}

/// Reads a first line.
#[derive(Debug, Default)]
pub struct LineReader {
    at: usize,
    part: Part,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Method,
    /// Its first byte is to come.
    TargetStart,
    Target,
    /// So many bytes of [`VERSION`] have been seen.
    Version(usize),
}

impl LineReader {
    /// What `bytes`, all so far, are; `None`: the next may tell.
    pub fn read(&mut self, bytes: &[u8]) -> Option<Preface> {
        match is_preface(bytes) {
            None => return None,
            Some(true) => return Some(Preface::Http2),
            Some(false) => {}
        }
        for at in self.at..bytes.len() {
            if at >= LINE_MAX {
                return Some(Preface::Http11);
            }
            match step(self.part, at, bytes) {
                Ok(part) => self.part = part,
                Err(verdict) => return Some(verdict),
            }
        }
        self.at = bytes.len();
        None
    }
}

/// The part of the line after the byte at `at`, or what the bytes up to it are.
fn step(part: Part, at: usize, bytes: &[u8]) -> Result<Part, Preface> {
    let byte = bytes[at];
    match (part, byte) {
        (Part::Method, b' ') if at > 0 => Ok(Part::TargetStart),
        (Part::Method, _) if is_token(byte) && at < METHOD_MAX => Ok(part),
        (Part::TargetStart, b'/' | b'*' | b'h' | b'H') => Ok(Part::Target),
        (Part::TargetStart, b'!'..=b'~') if bytes.starts_with(b"CONNECT ") => Ok(Part::Target),
        (Part::Target, b' ') => Ok(Part::Version(0)),
        (Part::Target, b'!'..=b'~' | 0x80..) => Ok(part),
        (Part::Version(seen), _) if VERSION.get(seen) == Some(&byte) => Ok(Part::Version(seen + 1)),
        (Part::Version(seen), b'0') if seen == VERSION.len() => Err(Preface::Http10),
        (Part::Version(seen), b'1'..=b'9') if seen == VERSION.len() => Err(Preface::Http11),
        _ => Err(Preface::Opaque),
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::PREFACE;
    use proptest::prelude::*;

    /// The verdict with the number of bytes it took, given one by one.
    fn bytewise(bytes: &[u8]) -> (Option<Preface>, usize) {
        let mut reader = LineReader::default();
        for end in 1..=bytes.len() {
            if let Some(verdict) = reader.read(&bytes[..end]) {
                return (Some(verdict), end);
            }
        }
        (None, bytes.len())
    }

    #[test]
    fn a_verdict_falls_at_the_earliest_byte() {
        let long = [b"GET /".as_slice(), &[b'a'; LINE_MAX]].concat();
        let method = [b'A'; METHOD_MAX + 1];
        for (bytes, verdict, after) in [
            (b"GET / HTTP/1.1\r\n".as_slice(), Some(Preface::Http11), 14),
            (b"get /x HTTP/1.0\r\n", Some(Preface::Http10), 15),
            (b"OPTIONS * HTTP/1.1", Some(Preface::Http11), 18),
            (b"CONNECT a:1 HTTP/1.1", Some(Preface::Http11), 20),
            (b"GET http://a/ HTTP/1.1", Some(Preface::Http11), 22),
            (b"PRI /x HTTP/1.1", Some(Preface::Http11), 15),
            (PREFACE, Some(Preface::Http2), 24),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", Some(Preface::Opaque), 24),
            (b"PRI * HTTP/1.1", Some(Preface::Http11), 14),
            (b"GET / HTTP/2.0", Some(Preface::Opaque), 12),
            (b"get key\r\n", Some(Preface::Opaque), 5),
            (b"USER anonymous\r\n", Some(Preface::Opaque), 6),
            (b"SSH-2.0-x\r\n", Some(Preface::Opaque), 10),
            (b"\r\nGET", Some(Preface::Opaque), 1),
            (b"\x16\x03\x01", Some(Preface::Opaque), 1),
            (b" /", Some(Preface::Opaque), 1),
            (b"GET /\n", Some(Preface::Opaque), 6),
            (&method, Some(Preface::Opaque), METHOD_MAX + 1),
            (&long, Some(Preface::Http11), LINE_MAX + 1),
            (&long[..LINE_MAX], None, LINE_MAX),
            (b"GET / HTTP/1.", None, 13),
            (b"PRI * HTTP/2.0", None, 14),
        ] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
            assert_eq!(bytewise(bytes), (verdict, after), "{shown:?}");
        }
    }

    proptest! {
        #[test]
        fn no_split_changes_a_verdict(
            start in prop::sample::select(vec![&b"GET /a HTTP/1.1\r\n"[..], PREFACE, b"get /b HTTP/1.0", b""]),
            noise in prop::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
        ) {
            let mut bytes = start.to_vec();
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, noise);
            let whole = LineReader::default().read(&bytes);
            prop_assert_eq!(bytewise(&bytes).0, whole);
            let mut reader = LineReader::default();
            let split = reader.read(&bytes[..at]).or_else(|| reader.read(&bytes));
            prop_assert_eq!(split, whole);
        }
    }
}
