//! PROXY headers: the addresses of a connection, told to its endpoint before its bytes.
//!
//! **Source.** <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::ProxyVersion;

const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The two ends of a downstream connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it was made to.
    pub destination: SocketAddr,
}

/// The header that tells `ends`. Both are told as IPv6 unless both are IPv4.
pub fn proxy_header(version: ProxyVersion, ends: Ends) -> Vec<u8> {
    let Ends { source, destination } = ends;
    match (version, source.ip().to_canonical(), destination.ip().to_canonical()) {
        (ProxyVersion::V1, IpAddr::V4(from), IpAddr::V4(to)) => {
            format!("PROXY TCP4 {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (ProxyVersion::V1, from, to) => {
            let (from, to) = (widened(from), widened(to));
            format!("PROXY TCP6 {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (ProxyVersion::V2, IpAddr::V4(from), IpAddr::V4(to)) => binary(0x11, &from.octets(), &to.octets(), ends),
        (ProxyVersion::V2, from, to) => binary(0x21, &widened(from).octets(), &widened(to).octets(), ends),
    }
}

fn widened(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn binary(family: u8, from: &[u8], to: &[u8], ends: Ends) -> Vec<u8> {
    let ports = [ends.source.port().to_be_bytes(), ends.destination.port().to_be_bytes()].concat();
    let len = u16::try_from(from.len() + to.len() + ports.len()).unwrap_or(0);
    [BINARY, &[0x21, family], &len.to_be_bytes(), from, to, &ports].concat()
}
