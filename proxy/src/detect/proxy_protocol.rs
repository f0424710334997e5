//! **Purpose.** The addresses that a proxy before this one tells ahead of a connection's bytes.
//!
//! **Shape.** [`proxy_header`] reads the text form (1) and the binary form (2). Additional values of the binary form are
//! passed over.
//!
//! **Limits.** Text: 107 bytes. Binary: [`PROXY_HEADER_MAX`].
//!
//! **Source.** <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>. Only TCP is told by a header; a local socket
//! or a datagram in one is malformed, as in Envoy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ProxyVersion;

/// Bytes of a header, its additional values included.
pub const PROXY_HEADER_MAX: usize = 16 * 1024;

const TEXT: &[u8] = b"PROXY ";
const TEXT_MAX: usize = 107;
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const BINARY_HEADER: usize = 16;

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVerdict {
    /// No header.
    Absent,
    /// A header.
    Header {
        /// Its bytes.
        len: usize,
        /// Its form.
        version: ProxyVersion,
        /// Source and destination; `None`: they are those of the connection itself.
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
    /// It began as a header, but is none.
    Malformed,
}

/// What `bytes` begin with; `None`: the next byte may tell. A header of the refused form is none.
pub fn proxy_header(bytes: &[u8], refused: Option<ProxyVersion>) -> Option<ProxyVerdict> {
    let may_be = |signature: &[u8]| signature.starts_with(&bytes[..bytes.len().min(signature.len())]);
    if may_be(TEXT) && refused != Some(ProxyVersion::V1) {
        text_header(bytes)
    } else if may_be(BINARY) && refused != Some(ProxyVersion::V2) {
        binary_header(bytes)
    } else {
        Some(ProxyVerdict::Absent)
    }
}

fn text_header(bytes: &[u8]) -> Option<ProxyVerdict> {
    let seen = &bytes[..bytes.len().min(TEXT_MAX)];
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return (seen.len() == TEXT_MAX).then_some(ProxyVerdict::Malformed);
    };
    let line = seen[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let verdict = line.and_then(text_addresses).map_or(ProxyVerdict::Malformed, |addresses| ProxyVerdict::Header {
        len: end + 1,
        version: ProxyVersion::V1,
        addresses,
    });
    Some(verdict)
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 1000 80`
fn text_addresses(line: &str) -> Option<Option<(SocketAddr, SocketAddr)>> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let parse_ip = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse().ok().map(IpAddr::V4),
            "TCP6" => text.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, destination) = (parse_ip(words.next()?)?, parse_ip(words.next()?)?);
    let (from, to) = (parse_port(words.next()?)?, parse_port(words.next()?)?);
    words.next().is_none().then_some(Some((SocketAddr::new(source, from), SocketAddr::new(destination, to))))
}

/// Digits alone, and no zero before others.
fn parse_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn binary_header(bytes: &[u8]) -> Option<ProxyVerdict> {
    let command = *bytes.get(BINARY.len())?;
    if !matches!(command, 0x20 | 0x21) {
        return Some(ProxyVerdict::Malformed);
    }
    let (header, rest) = bytes.split_first_chunk::<BINARY_HEADER>()?;
    let family = header[BINARY.len() + 1];
    let len = usize::from(u16::from_be_bytes([header[BINARY_HEADER - 2], header[BINARY_HEADER - 1]]));
    if BINARY_HEADER + len > PROXY_HEADER_MAX {
        return Some(ProxyVerdict::Malformed);
    }
    let content = rest.get(..len)?;
    let addresses = match (command, family) {
        (0x20, _) | (_, 0x00) => Some(None),
        (_, 0x11) => binary_v4(content).map(Some),
        (_, 0x21) => binary_v6(content).map(Some),
        _ => None,
    };
    let len = BINARY_HEADER + len;
    let header = |addresses| ProxyVerdict::Header { len, version: ProxyVersion::V2, addresses };
    Some(addresses.map_or(ProxyVerdict::Malformed, header))
}

fn binary_v4(content: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let [a, b, c, d, e, f, g, h, ports @ ..] = *content.first_chunk::<12>()?;
    let (from, to) = ports_of(ports);
    let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
    Some((SocketAddr::from((source, from)), SocketAddr::from((destination, to))))
}

fn binary_v6(content: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (source, rest) = content.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let (from, to) = ports_of(*rest.first_chunk::<4>()?);
    let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination));
    Some((SocketAddr::from((source, from)), SocketAddr::from((destination, to))))
}

fn ports_of([a, b, c, d]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream;
    use proptest::prelude::*;

    fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let len = u16::try_from(content.len()).unwrap().to_be_bytes();
        [BINARY, &[command, family], &len, content].concat()
    }

    fn v4() -> Vec<u8> {
        [[192, 0, 2, 1], [192, 0, 2, 2], [0x03, 0xe8, 0x00, 0x50]].concat()
    }

    fn header(version: ProxyVersion, len: usize, addresses: Option<(&str, &str)>) -> ProxyVerdict {
        let parse = |text: &str| text.parse().unwrap();
        ProxyVerdict::Header { len, version, addresses: addresses.map(|(from, to)| (parse(from), parse(to))) }
    }

    /// The verdict with the number of bytes it took, given one by one.
    fn bytewise(bytes: &[u8]) -> (Option<ProxyVerdict>, usize) {
        let verdict = (1..=bytes.len()).find_map(|end| Some((proxy_header(&bytes[..end], None)?, end)));
        verdict.map_or((None, bytes.len()), |(verdict, end)| (Some(verdict), end))
    }

    #[test]
    fn both_forms_are_read_whatever_follows() {
        use ProxyVersion::{V1, V2};
        let some = Some(("192.0.2.1:1000", "192.0.2.2:80"));
        let some6 = Some(("[2001:db8::1]:65535", "[2001:db8::2]:0"));
        let v6 = [
            &Ipv6Addr::from(0x2001_0db8 << 96 | 1).octets()[..],
            &Ipv6Addr::from(0x2001_0db8 << 96 | 2).octets(),
            &[255, 255, 0, 0],
        ]
        .concat();
        let with_values = [v4(), vec![1, 0, 2, 9, 9]].concat();
        for (bytes, version, addresses) in [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n".to_vec(), V1, some),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 0\r\n".to_vec(), V1, some6),
            (b"PROXY UNKNOWN\r\n".to_vec(), V1, None),
            (b"PROXY UNKNOWN what ever\r\n".to_vec(), V1, None),
            (binary(0x21, 0x11, &v4()), V2, some),
            (binary(0x21, 0x11, &with_values), V2, some),
            (binary(0x21, 0x21, &v6), V2, some6),
            (binary(0x20, 0x11, &v4()), V2, None),
            (binary(0x20, 0x00, b""), V2, None),
            (binary(0x21, 0x00, b"x"), V2, None),
            (binary(0x21, 0x11, &[v4(), vec![0; PROXY_HEADER_MAX - 28]].concat()), V2, some),
        ] {
            let told = header(version, bytes.len(), addresses);
            assert_eq!(proxy_header(&[&bytes, b"GET /".as_slice()].concat(), None), Some(told));
            assert_eq!(bytewise(&bytes), (Some(told), bytes.len()), "not before it is whole");
        }
    }

    #[test]
    fn what_breaks_the_format_is_malformed() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'a'; TEXT_MAX]].concat();
        for bytes in [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1000\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80 1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 01 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1  1 80\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::2 1 80\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 80\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 80\r\n".to_vec(),
            b"PROXY \r\n".to_vec(),
            b"PROXY \xff\r\n".to_vec(),
            long[..TEXT_MAX].to_vec(),
            binary(0x22, 0x11, &v4()),
            binary(0x11, 0x11, &v4()),
            binary(0x21, 0x12, &v4()),
            binary(0x21, 0x31, &[0; 216]),
            binary(0x21, 0x11, &v4()[..11]),
            binary(0x21, 0x21, &v4()),
            binary(0x21, 0x11, &[0; PROXY_HEADER_MAX - 15]),
        ] {
            assert_eq!(bytewise(&bytes).0, Some(ProxyVerdict::Malformed), "{:?}", String::from_utf8_lossy(&bytes));
        }
        assert_eq!(bytewise(&long[..TEXT_MAX - 1]).0, None);
    }

    #[test]
    fn other_bytes_are_no_header_at_the_first_that_differs() {
        for (bytes, after) in
            [(b"GET /".as_slice(), 1), (b"PROXI", 5), (b"PRI * HTTP/2", 3), (b"\r\n\r\n\0\r\nQUIX", 11)]
        {
            assert_eq!(bytewise(bytes), (Some(ProxyVerdict::Absent), after));
        }
        assert_eq!(proxy_header(b"", None), None);
        let refused = [(ProxyVersion::V1, b"PROXY UNKNOWN\r\n".to_vec()), (ProxyVersion::V2, binary(0x20, 0, b""))];
        for (version, bytes) in refused {
            assert_eq!(proxy_header(&bytes, Some(version)), Some(ProxyVerdict::Absent));
        }
    }

    proptest! {
        #[test]
        fn what_we_tell_endpoints_is_what_we_read(
            from in any::<(std::net::IpAddr, u16)>(),
            to in any::<(std::net::IpAddr, u16)>(),
            version in prop::sample::select(vec![ProxyVersion::V1, ProxyVersion::V2]),
        ) {
            let ends = upstream::Ends { source: from.into(), destination: to.into() };
            let bytes = upstream::proxy_header(version, ends);
            let Some(ProxyVerdict::Header { len, version: read, addresses: Some((source, destination)) }) =
                proxy_header(&bytes, None)
            else {
                return Err(TestCaseError::fail(format!("{bytes:?}")));
            };
            let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
            prop_assert_eq!((len, read), (bytes.len(), version));
            prop_assert_eq!(plain(source), plain(ends.source));
            prop_assert_eq!(plain(destination), plain(ends.destination));
        }

        #[test]
        fn any_bytes_get_the_same_verdict_however_they_come(
            start in prop::sample::select(vec![b"PROXY TCP4 ".to_vec(), binary(0x21, 0x11, &v4()), Vec::new()]),
            noise in prop::collection::vec(any::<u8>(), 0..60),
            at in any::<prop::sample::Index>(),
        ) {
            let mut bytes = start;
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..at, noise);
            prop_assert_eq!(bytewise(&bytes).0, proxy_header(&bytes, None));
            if let Some(ProxyVerdict::Header { len, .. }) = proxy_header(&bytes, None) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
