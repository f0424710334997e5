//! Filter chains: which connections of a listener they take, and what is looked at to tell.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::time::Duration;

use super::{ChainName, ListenerName, Protocol};

/// What a listener does with some of its connections.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterChain {
    /// Unique in its listener; live connections find their chain by it after an update.
    pub name: ChainName,
    /// Which connections it takes.
    pub takes: Takes,
    /// What they are.
    pub protocol: Protocol,
}

/// Which connections a chain takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Those that match. No two chains of a listener match alike.
    Match(Box<ChainMatch>),
    /// Those that no other chain takes.
    Rest,
}

/// A chain of a listener: the place whose settings a connection runs under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainId {
    /// The listener.
    pub listener: ListenerName,
    /// Its chain.
    pub chain: ChainName,
}

/// What must hold of a connection. What is empty, or `None`, asks nothing. Source: Envoy `FilterChainMatch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// The port it was made to.
    pub destination_port: Option<u16>,
    /// Where it was made to.
    pub destinations: Vec<IpPrefix>,
    /// The name asked for in TLS.
    pub server_names: Vec<ServerNameMatch>,
    /// TLS or not.
    pub transport: Option<Transport>,
    /// One that the client offers: ALPN, or what its first bytes are (`http/1.0`, `http/1.1`, `h2c`).
    pub protocols: Vec<Box<str>>,
    /// Where it comes from as the kernel tells it, whatever a PROXY header says.
    pub direct_sources: Vec<IpPrefix>,
    /// From this machine or not.
    pub source_type: SourceType,
    /// Where it comes from.
    pub sources: Vec<IpPrefix>,
    /// The port it comes from.
    pub source_ports: Vec<u16>,
}

impl ChainMatch {
    /// True when it takes every connection.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// True when only the client's first bytes can tell whether it matches.
    pub fn asks_for_bytes(&self) -> bool {
        !self.server_names.is_empty() || self.transport.is_some() || !self.protocols.is_empty()
    }

    /// True when some connection could match both with nothing to prefer one: Envoy refuses such chains.
    pub fn is_ambiguous_with(&self, other: &Self) -> bool {
        fn shares<T: PartialEq>(a: &[T], b: &[T]) -> bool {
            (a.is_empty() && b.is_empty()) || a.iter().any(|one| b.contains(one))
        }
        self.destination_port == other.destination_port
            && self.transport == other.transport
            && self.source_type == other.source_type
            && shares(&self.destinations, &other.destinations)
            && shares(&self.server_names, &other.server_names)
            && shares(&self.protocols, &other.protocols)
            && shares(&self.direct_sources, &other.direct_sources)
            && shares(&self.sources, &other.sources)
            && shares(&self.source_ports, &other.source_ports)
    }
}

/// As in `destination_port=443; server_names=a.example,*.b.example`.
impl fmt::Display for ChainMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(values: &[T]) -> String {
            values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
        let source_type = match self.source_type {
            SourceType::Any => "",
            SourceType::External => "external",
            SourceType::Local => "local",
        };
        let parts = [
            ("destination_port", self.destination_port.map(|port| port.to_string()).unwrap_or_default()),
            ("destinations", list(&self.destinations)),
            ("server_names", list(&self.server_names)),
            ("transport", self.transport.map(Transport::label).unwrap_or_default().to_owned()),
            ("protocols", list(&self.protocols)),
            ("direct_sources", list(&self.direct_sources)),
            ("source_type", source_type.to_owned()),
            ("sources", list(&self.sources)),
            ("source_ports", list(&self.source_ports)),
        ];
        let mut joint = "";
        for (key, value) in parts.iter().filter(|(_, value)| !value.is_empty()) {
            write!(f, "{joint}{key}={value}")?;
            joint = "; ";
        }
        if joint.is_empty() { f.write_str("any") } else { Ok(()) }
    }
}

/// What carries a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP alone.
    Raw,
    /// TLS.
    Tls,
}

impl Transport {
    /// Envoy's word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Raw => "raw_buffer",
            Self::Tls => "tls",
        }
    }
}

/// Where connections come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// Another machine.
    External,
    /// Loopback, or the very address that the connection was made to.
    Local,
}

/// A name asked for in TLS, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerNameMatch {
    /// This one.
    Exact(Box<str>),
    /// Every name that ends so; begins with a dot.
    Suffix(Box<str>),
}

impl fmt::Display for ServerNameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPrefix {
    /// The first of them.
    address: IpAddr,
    /// Bits that are alike.
    bits: u8,
}

impl IpPrefix {
    /// The addresses whose first `bits` are those of `address`; `None` when it has fewer.
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) => {
                let others = 32_u32.checked_sub(bits.into())?;
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(others).unwrap_or(0)))
            }
            IpAddr::V6(v6) => {
                let others = 128_u32.checked_sub(bits.into())?;
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(others).unwrap_or(0)))
            }
        };
        Some(Self { address, bits })
    }

    /// The first of them.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that are alike: the more, the more specific it is.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// True when `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.bits) == Some(*self)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// What is looked at of a connection before it gets its chain (Envoy: listener filters).
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// A PROXY header is taken off.
    pub proxy: Option<ProxyInspection>,
    /// TLS is told from the rest.
    pub tls: Option<TlsInspection>,
    /// HTTP is told from the rest.
    pub http: Option<HttpInspection>,
    /// Time for all of it; `None` no bound. Default 15 s.
    pub timeout: Option<Duration>,
    /// When the time is over: a chain is chosen by what is known, else the connection is closed. Default false.
    pub goes_on: bool,
}

impl Default for Inspection {
    fn default() -> Self {
        Self { proxy: None, tls: None, http: None, timeout: Some(Duration::from_secs(15)), goes_on: false }
    }
}

/// How PROXY headers are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyInspection {
    /// A connection without one is served too. Default false.
    pub is_optional: bool,
    /// A form that counts as none.
    pub refused: Option<ProxyVersion>,
    /// Ports where it is off.
    pub off: Option<PortMatch>,
}

/// The form of a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// How a ClientHello is read.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsInspection {
    /// Most bytes of it. Default 16 KiB.
    pub hello_max: usize,
    /// What is no ClientHello, or one too large, closes the connection; else it is not TLS. Default false.
    pub closes_on_error: bool,
    /// Ports where it is off.
    pub off: Option<PortMatch>,
}

impl Default for TlsInspection {
    fn default() -> Self {
        Self { hello_max: 16 * 1024, closes_on_error: false, off: None }
    }
}

/// How a request line is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpInspection {
    /// Ports where it is off.
    pub off: Option<PortMatch>,
}

/// Ports, as `filter_disabled` names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMatch {
    /// Those in all.
    All(Vec<PortMatch>),
    /// Those in one.
    Any(Vec<PortMatch>),
    /// Every port.
    Every,
    /// Those not in it.
    Not(Box<PortMatch>),
    /// The end is not in it.
    Range(Range<u32>),
}

impl PortMatch {
    /// Whether it has `port`.
    pub fn has(&self, port: u16) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.has(port)),
            Self::Any(parts) => parts.iter().any(|part| part.has(port)),
            Self::Every => true,
            Self::Not(part) => !part.has(port),
            Self::Range(range) => range.contains(&u32::from(port)),
        }
    }
}

/// As in `not (8080..8081 or 9090..9091)`.
impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |parts: &[Self], joint: &str| {
            let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
            format!("({})", parts.join(joint))
        };
        match self {
            Self::All(parts) => f.write_str(&joined(parts, " and ")),
            Self::Any(parts) => f.write_str(&joined(parts, " or ")),
            Self::Every => f.write_str("every"),
            Self::Not(part) => write!(f, "not {part}"),
            Self::Range(range) => write!(f, "{}..{}", range.start, range.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str, bits: u8) -> IpPrefix {
        IpPrefix::new(address.parse().unwrap(), bits).unwrap()
    }

    #[test]
    fn prefixes_hold_what_begins_alike() {
        for (address, bits, inside, outside) in [
            ("10.1.2.3", 8, "10.255.0.0", "11.0.0.0"),
            ("10.1.2.3", 32, "10.1.2.3", "10.1.2.2"),
            ("10.1.2.3", 0, "255.255.255.255", "::"),
            ("2001:db8::1", 32, "2001:db8:ffff::", "2001:db9::"),
            ("::1", 128, "::1", "::"),
            ("::1", 0, "ffff::", "0.0.0.0"),
        ] {
            let prefix = prefix(address, bits);
            assert!(prefix.contains(inside.parse().unwrap()), "{prefix} {inside}");
            assert!(!prefix.contains(outside.parse().unwrap()), "{prefix} {outside}");
        }
        assert_eq!(prefix("10.1.2.3", 8), prefix("10.9.9.9", 8));
        assert_eq!(IpPrefix::new("10.0.0.0".parse().unwrap(), 33), None);
        assert_eq!(IpPrefix::new("::".parse().unwrap(), 129), None);
    }

    #[test]
    fn ports_follow_their_predicate() {
        let range = |start, end| PortMatch::Range(start..end);
        let not = PortMatch::Not(Box::new(range(80, 81)));
        assert_eq!([79, 80, 81].map(|port| range(80, 81).has(port)), [false, true, false]);
        assert_eq!([79, 80, 81].map(|port| not.has(port)), [true, false, true]);
        let both = PortMatch::All(vec![not.clone(), range(79, 82)]);
        assert_eq!([78, 79, 80, 81].map(|port| both.has(port)), [false, true, false, true]);
        let either = PortMatch::Any(vec![range(1, 2), range(65_535, 65_536)]);
        assert_eq!([1, 2, 65_535].map(|port| either.has(port)), [true, false, true]);
        assert_eq!(PortMatch::All(vec![not, PortMatch::Every]).to_string(), "(not 80..81 and every)");
        assert!(PortMatch::Every.has(0) && !PortMatch::Any(Vec::new()).has(0));
    }

    #[test]
    fn chains_that_some_connection_fits_equally_are_ambiguous() {
        let names = |names: &[&str]| ChainMatch {
            server_names: names.iter().map(|name| ServerNameMatch::Exact((*name).into())).collect(),
            ..ChainMatch::default()
        };
        let any = ChainMatch::default();
        assert!(any.is_ambiguous_with(&any) && any.is_any());
        assert!(names(&["a", "b"]).is_ambiguous_with(&names(&["b", "c"])));
        assert!(!names(&["a"]).is_ambiguous_with(&names(&["b"])));
        assert!(!names(&["a"]).is_ambiguous_with(&any), "a name is more specific than none");
        let on = |port| ChainMatch { destination_port: Some(port), ..names(&["a"]) };
        assert!(!on(1).is_ambiguous_with(&on(2)) && on(1).is_ambiguous_with(&on(1)));
        assert_eq!(on(1).to_string(), "destination_port=1; server_names=a");
        assert_eq!(any.to_string(), "any");
    }
}
