//! **Purpose.** Server name and protocols out of the ClientHello that opens a TLS connection.
//!
//! **Shape.** A [`HelloReader`] takes the handshake message out of its records, then reads it whole. A message that came in
//! one record is read where it lies; one in several is put together first.
//!
//! **Limits.** The caller's bound holds for all bytes, record headers included.
//!
//! **Errors.** What does not begin as TLS is [`HelloVerdict::NotTls`]; what does and then breaks the format is
//! [`HelloVerdict::Malformed`], known at the earliest once the message is whole.
//!
//! **Source.** RFC 8446 §4.1.2, §5.1; RFC 6066 §3 (server name); RFC 7301 §3.1 (ALPN). Names are lower-cased, as in Envoy's
//! `tls_inspector`.

const RECORD_HEADER: usize = 5;
const RECORD_MAX: usize = 1 << 14;
const MESSAGE_HEADER: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What a client says before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// In lower case; empty when not said.
    pub server_name: Box<str>,
    /// As on the wire: see [`protocols`].
    pub protocols: Box<[u8]>,
}

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloVerdict {
    /// TLS.
    Hello(ClientHello),
    /// It began as TLS, but is none.
    Malformed,
    /// Not TLS.
    NotTls,
    /// Longer than what is read.
    TooLarge,
}

/// The names in a list of protocols, in the client's order: each follows its length.
pub fn protocols(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Cursor(wire);
    std::iter::from_fn(move || rest.prefixed8())
}

/// Reads a ClientHello.
#[derive(Debug)]
pub struct HelloReader {
    bytes_max: usize,
    /// Where the next record begins.
    at: usize,
    /// The message so far, when one record does not hold it.
    message: Vec<u8>,
}

impl HelloReader {
    /// A reader of at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, at: 0, message: Vec::new() }
    }

    /// What `bytes`, all so far, are; `None`: the next may tell.
    pub fn read(&mut self, bytes: &[u8]) -> Option<HelloVerdict> {
        loop {
            let record = bytes.get(self.at..).unwrap_or_default();
            let len = match record_length(record) {
                Ok(Some(len)) => len,
                Ok(None) => break,
                Err(()) if self.at == 0 => return Some(HelloVerdict::NotTls),
                Err(()) => return Some(HelloVerdict::Malformed),
            };
            let body = &record[RECORD_HEADER..];
            if self.message.is_empty() {
                if body.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
                    return Some(HelloVerdict::NotTls);
                }
                if let Some(verdict) = self.judge(&body[..body.len().min(len)]) {
                    return Some(verdict);
                }
            }
            if body.len() < len {
                break;
            }
            self.at += RECORD_HEADER + len;
            self.message.extend_from_slice(&body[..len]);
            if let Some(verdict) = self.judge(&self.message) {
                return Some(verdict);
            }
        }
        (bytes.len() >= self.bytes_max).then_some(HelloVerdict::TooLarge)
    }

    /// What a message is whose first bytes these are.
    fn judge(&self, message: &[u8]) -> Option<HelloVerdict> {
        let (&[_, high, middle, low], body) = message.split_first_chunk::<MESSAGE_HEADER>()?;
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if RECORD_HEADER + MESSAGE_HEADER + len > self.bytes_max {
            return Some(HelloVerdict::TooLarge);
        }
        let body = body.get(..len)?;
        Some(parse_hello(body).map_or(HelloVerdict::Malformed, HelloVerdict::Hello))
    }
}

/// The length of the record that begins here, once its header is whole; an error at the first byte that is none of it.
fn record_length(record: &[u8]) -> Result<Option<usize>, ()> {
    let is_so_far = |at: usize, test: fn(u8) -> bool| record.get(at).is_none_or(|byte| test(*byte));
    if !is_so_far(0, |byte| byte == HANDSHAKE) || !is_so_far(1, |byte| byte == 3) || !is_so_far(2, |byte| byte <= 4) {
        return Err(());
    }
    let Some(&[_, _, _, high, low]) = record.first_chunk::<RECORD_HEADER>() else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([high, low]));
    if (1..=RECORD_MAX).contains(&len) { Ok(Some(len)) } else { Err(()) }
}

/// The message without its header.
fn parse_hello(body: &[u8]) -> Option<ClientHello> {
    let mut rest = Cursor(body);
    rest.take(2 + 32)?;
    let session = rest.prefixed8()?;
    let suites = rest.prefixed16()?;
    let compressions = rest.prefixed8()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    let mut hello = ClientHello::default();
    if rest.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Cursor(rest.prefixed16()?);
    let (mut has_name, mut has_protocols) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.prefixed16()?;
        let is_again = match kind {
            SERVER_NAME => std::mem::replace(&mut has_name, true),
            ALPN => std::mem::replace(&mut has_protocols, true),
            _ => false,
        };
        match kind {
            _ if is_again => return None,
            SERVER_NAME => hello.server_name = parse_server_name(content)?,
            ALPN => hello.protocols = parse_protocols(content)?,
            _ => {}
        }
    }
    rest.0.is_empty().then_some(hello)
}

fn parse_server_name(content: &[u8]) -> Option<Box<str>> {
    let mut content = Cursor(content);
    let mut names = Cursor(content.prefixed16()?);
    let kind = names.take(1)?;
    let name = names.prefixed16()?;
    let is_one = kind == [0] && names.0.is_empty() && content.0.is_empty();
    let is_name = (1..=255).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(name).ok().filter(|_| is_one && is_name)?;
    Some(name.to_ascii_lowercase().into())
}

fn parse_protocols(content: &[u8]) -> Option<Box<[u8]>> {
    let mut content = Cursor(content);
    let list = content.prefixed16()?;
    let mut names = Cursor(list);
    while !names.0.is_empty() {
        names.prefixed8().filter(|name| !name.is_empty())?;
    }
    (content.0.is_empty() && !list.is_empty()).then(|| list.into())
}

/// What is left to read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn prefixed8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    fn prefixed16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 16 * 1024;

    fn prefixed16(content: &[u8]) -> Vec<u8> {
        [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [kind.to_be_bytes().as_slice(), &prefixed16(content)].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        extension(SERVER_NAME, &prefixed16(&[&[0], prefixed16(name).as_slice()].concat()))
    }

    /// The body of a hello with these extensions.
    fn body(extensions: &[u8]) -> Vec<u8> {
        let fixed = [&[3, 3][..], &[7; 32], &[0], &prefixed16(&[0x13, 1]), &[1, 0]].concat();
        if extensions.is_empty() { fixed } else { [fixed, prefixed16(extensions)].concat() }
    }

    fn message(body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO, len[1], len[2], len[3]], body].concat()
    }

    /// In records of `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &prefixed16(part)].concat()).collect()
    }

    fn sample() -> Vec<u8> {
        let alpn = extension(ALPN, &prefixed16(b"\x02h2\x08http/1.1"));
        message(&body(
            &[extension(0x0a0a, b""), server_name(b"WWW.Example.com"), alpn, extension(21, &[0; 300])].concat(),
        ))
    }

    /// The verdict with the number of bytes it took, given one by one.
    fn bytewise(bytes: &[u8], max: usize) -> (Option<HelloVerdict>, usize) {
        let mut reader = HelloReader::new(max);
        for end in 1..=bytes.len() {
            if let Some(verdict) = reader.read(&bytes[..end]) {
                return (Some(verdict), end);
            }
        }
        (None, bytes.len())
    }

    #[test]
    fn name_and_protocols_are_read_from_any_records() {
        for size in [1, 2, 3, 4, 5, 100, RECORD_MAX] {
            let bytes = records(&sample(), size);
            let (verdict, after) = bytewise(&bytes, MAX);
            let Some(HelloVerdict::Hello(hello)) = verdict else { panic!("{size}: {verdict:?}") };
            assert_eq!(after, bytes.len(), "not before it is whole");
            assert_eq!(&*hello.server_name, "www.example.com");
            assert_eq!(protocols(&hello.protocols).collect::<Vec<_>>(), [b"h2".as_slice(), b"http/1.1"]);
            assert_eq!(HelloReader::new(MAX).read(&bytes), Some(HelloVerdict::Hello(hello)));
        }
        let bare = records(&message(&body(b"")), RECORD_MAX);
        assert_eq!(HelloReader::new(MAX).read(&bare), Some(HelloVerdict::Hello(ClientHello::default())));
    }

    #[test]
    fn what_is_not_tls_is_known_at_its_first_wrong_byte() {
        for (bytes, after) in [
            (b"GET / HTTP/1.1".as_slice(), 1),
            (b"\x15\x03\x01", 1),
            (b"\x16\x02", 2),
            (b"\x16\x03\x05", 3),
            (b"\x16\x03\x01\x00\x00", 5),
            (b"\x16\x03\x01\x40\x01", 5),
            (b"\x16\x03\x01\x00\x05\x02", 6),
        ] {
            assert_eq!(bytewise(bytes, MAX), (Some(HelloVerdict::NotTls), after), "{bytes:?}");
        }
    }

    #[test]
    fn what_breaks_the_format_is_malformed() {
        let twice = [server_name(b"a"), server_name(b"b")].concat();
        let long = [b'a'; 256];
        for bad in [
            body(&twice),
            body(&server_name(b"")),
            body(&server_name(b"a b")),
            body(&server_name(b"a\0b")),
            body(&server_name("é".as_bytes())),
            body(&server_name(&long)),
            body(&extension(SERVER_NAME, b"")),
            body(&extension(SERVER_NAME, &prefixed16(b"\x01\x00\x01a"))),
            body(&extension(ALPN, &prefixed16(b""))),
            body(&extension(ALPN, &prefixed16(b"\x00"))),
            body(&extension(ALPN, &prefixed16(b"\x03h2"))),
            body(b"\x00\x00\x00"),
            [body(b""), vec![0]].concat(),
            [body(&extension(21, b"")), vec![0]].concat(),
            body(b"")[..20].to_vec(),
            Vec::new(),
        ] {
            let bytes = records(&message(&bad), RECORD_MAX);
            assert_eq!(HelloReader::new(MAX).read(&bytes), Some(HelloVerdict::Malformed), "{bad:?}");
        }
        let mut second = records(&sample(), 100);
        second[RECORD_HEADER + 100] = 23;
        assert_eq!(HelloReader::new(MAX).read(&second), Some(HelloVerdict::Malformed));
    }

    #[test]
    fn the_bound_holds_for_all_bytes() {
        let fill = |bytes: usize| {
            let empty = records(&message(&body(&extension(21, b""))), RECORD_MAX).len();
            records(&message(&body(&extension(21, &vec![0; bytes - empty]))), RECORD_MAX)
        };
        for (bytes, fits) in [(MAX - 1, true), (MAX, true), (MAX + 1, false)] {
            let hello = fill(bytes);
            assert_eq!(hello.len(), bytes);
            let (verdict, after) = bytewise(&hello, MAX);
            assert_eq!(matches!(verdict, Some(HelloVerdict::Hello(_))), fits, "{bytes}");
            if !fits {
                assert_eq!((verdict, after), (Some(HelloVerdict::TooLarge), RECORD_HEADER + MESSAGE_HEADER));
            }
        }
        // Small records cost more bytes than the message has.
        assert_eq!(bytewise(&records(&sample(), 1), 1_000), (Some(HelloVerdict::TooLarge), 1_000));
    }

    proptest! {
        #[test]
        fn any_bytes_get_the_same_verdict_however_they_come(
            size in 1_usize..600,
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            split in any::<prop::sample::Index>(),
        ) {
            let mut bytes = records(&sample(), size);
            for (at, value) in edits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let whole = HelloReader::new(MAX).read(&bytes);
            let mut reader = HelloReader::new(MAX);
            let halves = reader.read(&bytes[..split.index(bytes.len() + 1)]).or_else(|| reader.read(&bytes));
            prop_assert_eq!(&halves, &whole);
            prop_assert_eq!(bytewise(&bytes, MAX).0, whole);
        }

        #[test]
        fn random_bytes_never_panic(
            head in prop::sample::select(vec![&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]),
            bytes in prop::collection::vec(any::<u8>(), 0..1_000),
        ) {
            let bytes = [head, &bytes].concat();
            HelloReader::new(600).read(&bytes);
            if let Some(hello) = parse_hello(&bytes) {
                protocols(&hello.protocols).count();
            }
        }
    }
}
