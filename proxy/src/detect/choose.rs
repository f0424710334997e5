//! **Purpose.** The filter chain that takes a connection.
//!
//! **Shape.** Each thing that a chain asks gives a rank: 0 it does not hold, 1 nothing is asked, more the more specific it
//! is. The chain whose ranks are the largest, read in Envoy's order, takes the connection if none of them is 0. That is
//! Envoy's rule: each step keeps only the chains that match most specifically, and there is no way back.
//!
//! **Limits.** Linear in the chains that the port and the address leave; nothing is allocated.
//!
//! **Source.** Envoy, `config.listener.v3.FilterChainMatch`.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

use super::client_hello::protocols;
use crate::config::{ChainMatch, FilterChain, IpPrefix, ServerNameMatch, SourceType, Takes, Transport};

/// What is asked and does not hold.
const MISS: u16 = 0;
/// Nothing is asked.
const FREE: u16 = 1;
/// The least specific match.
const HIT: u16 = 2;

/// Questions that are answered by port and address alone come first.
const BY_ADDRESS: usize = 2;
const QUESTIONS: usize = 9;

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where it was made to.
    pub destination: SocketAddr,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it comes from as the kernel tells it.
    pub direct_source: IpAddr,
    /// TLS or not.
    pub transport: Transport,
    /// In lower case; empty when not said.
    pub server_name: &'a str,
    /// What the client offers, each name after its length.
    pub protocols: &'a [u8],
}

/// What of the first bytes must be known before a chain can be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Whether they are TLS.
    pub tls: bool,
    /// Whether they are HTTP.
    pub http: bool,
}

/// The place of the chain that takes a connection.
pub fn choose(chains: &[FilterChain], facts: &Facts<'_>) -> Option<usize> {
    let best = most_specific(chains, facts, QUESTIONS);
    best.or_else(|| chains.iter().position(|chain| chain.takes == Takes::Rest))
}

/// What must be known of the bytes of a connection with these addresses. Nothing, where no chain that they leave asks.
pub fn needs(chains: &[FilterChain], facts: &Facts<'_>) -> Needs {
    let mut needs = Needs::default();
    let Some(best) = most_specific(chains, facts, BY_ADDRESS) else { return needs };
    let Takes::Match(best) = &chains[best].takes else { return needs };
    for other in matches(chains).map(|(_, other)| other) {
        if compare(other, best, facts, BY_ADDRESS) == Ordering::Equal && other.asks_for_bytes() {
            needs.tls = true;
            needs.http |= other.protocols.iter().any(|name| matches!(&**name, "http/1.0" | "http/1.1" | "h2c"));
        }
    }
    needs
}

fn matches(chains: &[FilterChain]) -> impl Iterator<Item = (usize, &ChainMatch)> {
    chains.iter().enumerate().filter_map(|(at, chain)| match &chain.takes {
        Takes::Match(asked) => Some((at, &**asked)),
        Takes::Rest => None,
    })
}

/// The chain with the largest ranks for the first `count` questions, if all of them hold.
fn most_specific(chains: &[FilterChain], facts: &Facts<'_>, count: usize) -> Option<usize> {
    let mut best: Option<(usize, &ChainMatch)> = None;
    for (at, asked) in matches(chains) {
        if best.is_none_or(|(_, best)| compare(asked, best, facts, count) == Ordering::Greater) {
            best = Some((at, asked));
        }
    }
    let (at, asked) = best?;
    (0..count).all(|question| rank(asked, question, facts) != MISS).then_some(at)
}

fn compare(a: &ChainMatch, b: &ChainMatch, facts: &Facts<'_>, count: usize) -> Ordering {
    let ranks = |asked| (0..count).map(move |question| rank(asked, question, facts));
    ranks(a).cmp(ranks(b))
}

/// How well a connection answers one question of a chain. The questions stand in Envoy's order.
fn rank(asked: &ChainMatch, question: usize, facts: &Facts<'_>) -> u16 {
    match question {
        0 => rank_of(asked.destination_port, |port| port == facts.destination.port()),
        1 => rank_of_ip(&asked.destinations, facts.destination.ip()),
        2 => rank_of_name(&asked.server_names, facts.server_name),
        3 => rank_of(asked.transport, |transport| transport == facts.transport),
        4 => rank_of_protocol(&asked.protocols, facts.protocols),
        5 => rank_of_ip(&asked.direct_sources, facts.direct_source),
        6 => rank_of_type(asked.source_type, facts),
        7 => rank_of_ip(&asked.sources, facts.source.ip()),
        _ if asked.source_ports.is_empty() => FREE,
        _ => {
            if asked.source_ports.contains(&facts.source.port()) {
                HIT
            } else {
                MISS
            }
        }
    }
}

fn rank_of<T>(asked: Option<T>, holds: impl FnOnce(T) -> bool) -> u16 {
    asked.map_or(FREE, |value| if holds(value) { HIT } else { MISS })
}

/// The longest prefix counts.
fn rank_of_ip(asked: &[IpPrefix], address: IpAddr) -> u16 {
    if asked.is_empty() {
        return FREE;
    }
    let address = address.to_canonical();
    let held = asked.iter().filter(|prefix| prefix.contains(address));
    held.map(|prefix| HIT + u16::from(prefix.bits())).max().unwrap_or(MISS)
}

/// The longest suffix counts, and the whole name more than any.
fn rank_of_name(asked: &[ServerNameMatch], name: &str) -> u16 {
    if asked.is_empty() {
        return FREE;
    }
    let rank = |one: &ServerNameMatch| match one {
        ServerNameMatch::Exact(exact) if **exact == *name => u16::MAX,
        ServerNameMatch::Suffix(suffix) if name.len() > suffix.len() && name.ends_with(&**suffix) => {
            HIT + u16::try_from(suffix.len()).unwrap_or(u16::MAX - HIT)
        }
        ServerNameMatch::Exact(_) | ServerNameMatch::Suffix(_) => MISS,
    };
    asked.iter().map(rank).max().unwrap_or(MISS)
}

/// What the client names first counts most.
fn rank_of_protocol(asked: &[Box<str>], offered: &[u8]) -> u16 {
    if asked.is_empty() {
        return FREE;
    }
    let place = protocols(offered).position(|name| asked.iter().any(|one| one.as_bytes() == name));
    place.map_or(MISS, |place| u16::MAX - u16::try_from(place).unwrap_or(u16::MAX - HIT))
}

fn rank_of_type(asked: SourceType, facts: &Facts<'_>) -> u16 {
    let source = facts.source.ip().to_canonical();
    let is_local = source.is_loopback() || source == facts.destination.ip().to_canonical();
    match asked {
        SourceType::Any => FREE,
        SourceType::Local if is_local => HIT,
        SourceType::External if !is_local => HIT,
        SourceType::Local | SourceType::External => MISS,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{HttpConnectionConfig, Protocol, RouteSource};
    use proptest::prelude::*;

    fn chain(takes: Takes) -> FilterChain {
        let http = HttpConnectionConfig::new("test", RouteSource::Named("r".into()));
        FilterChain { name: "c".into(), takes, protocol: Protocol::Http(Arc::new(http)) }
    }

    fn chains(asked: Vec<ChainMatch>) -> Vec<FilterChain> {
        asked.into_iter().map(|asked| chain(Takes::Match(Box::new(asked)))).collect()
    }

    fn facts() -> Facts<'static> {
        Facts {
            destination: "10.0.0.1:443".parse().unwrap(),
            source: "192.0.2.7:5000".parse().unwrap(),
            direct_source: "198.51.100.1".parse().unwrap(),
            transport: Transport::Tls,
            server_name: "www.shop.example",
            protocols: b"\x02h2\x08http/1.1",
        }
    }

    fn any() -> ChainMatch {
        ChainMatch::default()
    }

    fn ips(texts: &[(&str, u8)]) -> Vec<IpPrefix> {
        texts.iter().map(|(text, bits)| IpPrefix::new(text.parse().unwrap(), *bits).unwrap()).collect()
    }

    fn names(texts: &[&str]) -> Vec<ServerNameMatch> {
        let name = |text: &&str| match text.strip_prefix('*') {
            Some(suffix) => ServerNameMatch::Suffix(suffix.into()),
            None => ServerNameMatch::Exact((*text).into()),
        };
        texts.iter().map(name).collect()
    }

    fn alpn(texts: &[&str]) -> Vec<Box<str>> {
        texts.iter().map(|text| (*text).into()).collect()
    }

    #[test]
    fn of_each_question_the_most_specific_answer_counts() {
        let name = |texts: &[&str]| ChainMatch { server_names: names(texts), ..any() };
        let to = |texts: &[(&str, u8)]| ChainMatch { destinations: ips(texts), ..any() };
        let from = |texts: &[(&str, u8)]| ChainMatch { sources: ips(texts), ..any() };
        let port = |port| ChainMatch { destination_port: Some(port), ..any() };
        let offers = |texts: &[&str]| ChainMatch { protocols: alpn(texts), ..any() };
        let over = |transport| ChainMatch { transport: Some(transport), ..any() };
        for (asked, chosen) in [
            (vec![any(), port(443), port(80)], Some(1)),
            (vec![port(80)], None),
            (vec![to(&[("10.0.0.0", 8)]), to(&[("10.0.0.1", 32)]), to(&[("0.0.0.0", 0)]), any()], Some(1)),
            (vec![any(), to(&[("0.0.0.0", 0)])], Some(1)),
            (vec![name(&["*.example"]), name(&["*.shop.example"]), name(&["shop.example"])], Some(1)),
            (vec![name(&["*.shop.example"]), name(&["b.example", "www.shop.example"])], Some(1)),
            (vec![name(&["*.www.shop.example"])], None),
            (vec![over(Transport::Raw), over(Transport::Tls), any()], Some(1)),
            (vec![offers(&["http/1.1"]), offers(&["h2"])], Some(1)),
            (vec![offers(&["h3"]), offers(&["http/1.1"]), any()], Some(1)),
            (vec![ChainMatch { direct_sources: ips(&[("198.51.100.0", 24)]), ..any() }, any()], Some(0)),
            (vec![ChainMatch { source_type: SourceType::Local, ..any() }, any()], Some(1)),
            (vec![ChainMatch { source_type: SourceType::External, ..any() }, any()], Some(0)),
            (vec![from(&[("192.0.2.0", 24)]), from(&[("192.0.2.7", 32), ("10.0.0.0", 8)])], Some(1)),
            (vec![ChainMatch { source_ports: vec![1, 5000], ..any() }, any()], Some(0)),
            (vec![ChainMatch { source_ports: vec![1], ..any() }, any()], Some(1)),
        ] {
            assert_eq!(choose(&chains(asked.clone()), &facts()), chosen, "{asked:?}");
        }
    }

    #[test]
    fn an_earlier_question_decides_and_there_is_no_way_back() {
        let on_443 = ChainMatch { destination_port: Some(443), source_ports: vec![1], ..any() };
        let named = ChainMatch { server_names: names(&["www.shop.example"]), ..any() };
        let mut both = chains(vec![named.clone(), on_443]);
        assert_eq!(choose(&both, &facts()), None, "the port leaves only the chain that fails later");
        both.push(chain(Takes::Rest));
        assert_eq!(choose(&both, &facts()), Some(2), "then the default chain takes it");
        let http = ChainMatch { protocols: alpn(&["h2"]), ..any() };
        assert_eq!(choose(&chains(vec![http, named]), &facts()), Some(1), "a name before a protocol");
    }

    #[test]
    fn mapped_addresses_are_those_of_ipv4() {
        let facts = Facts { source: "[::ffff:127.0.0.1]:1".parse().unwrap(), ..facts() };
        let local = ChainMatch { source_type: SourceType::Local, sources: ips(&[("127.0.0.0", 8)]), ..any() };
        assert_eq!(choose(&chains(vec![local, any()]), &facts), Some(0));
    }

    #[test]
    fn bytes_are_asked_for_only_where_they_can_decide() {
        let none = Needs::default();
        let tls = Needs { tls: true, http: false };
        let port = |port| ChainMatch { destination_port: Some(port), ..any() };
        let named = ChainMatch { server_names: names(&["a"]), ..any() };
        let http = ChainMatch { protocols: alpn(&["http/1.1"]), ..port(443) };
        for (asked, expected) in [
            (vec![any()], none),
            (vec![port(443), named.clone()], none),
            (vec![port(80), named.clone()], tls),
            (vec![port(443), http, named], Needs { tls: true, http: true }),
            (vec![ChainMatch { protocols: alpn(&["h2"]), ..any() }], tls),
            (vec![port(80)], none),
        ] {
            assert_eq!(needs(&chains(asked.clone()), &facts()), expected, "{asked:?}");
        }
        assert_eq!(needs(&[chain(Takes::Rest)], &facts()), none);
    }

    /// As Envoy's documentation puts it: step by step, those that match most specifically stay.
    fn by_steps(chains: &[FilterChain], facts: &Facts<'_>) -> Option<usize> {
        let mut left: Vec<_> = matches(chains).collect();
        for question in 0..QUESTIONS {
            left.retain(|(_, asked)| rank(asked, question, facts) != MISS);
            let most = left.iter().map(|(_, asked)| rank(asked, question, facts)).max()?;
            left.retain(|(_, asked)| rank(asked, question, facts) == most);
        }
        left.first().map(|(at, _)| *at)
    }

    fn any_match() -> impl Strategy<Value = ChainMatch> {
        use prop::collection::vec;
        use prop::sample::select;
        let prefixes =
            || vec(select(ips(&[("10.0.0.0", 8), ("10.0.0.1", 32), ("192.0.2.0", 24), ("0.0.0.0", 0)])), 0..3);
        (
            select(vec![None, Some(443), Some(80)]),
            prefixes(),
            vec(select(names(&["www.shop.example", "*.shop.example", "*.example", "other"])), 0..2),
            select(vec![None, Some(Transport::Tls), Some(Transport::Raw)]),
            vec(select(alpn(&["h2", "http/1.1", "h3"])), 0..2),
            select(vec![SourceType::Any, SourceType::External, SourceType::Local]),
            prefixes(),
            vec(select(vec![5000_u16, 1]), 0..2),
        )
            .prop_map(
                |(destination_port, destinations, server_names, transport, protocols, source_type, sources, ports)| {
                    let source_ports = ports;
                    let direct_sources = Vec::new();
                    ChainMatch {
                        destination_port,
                        destinations,
                        server_names,
                        transport,
                        protocols,
                        direct_sources,
                        source_type,
                        sources,
                        source_ports,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn the_order_of_ranks_is_envoys_steps(asked in prop::collection::vec(any_match(), 1..8)) {
            let mut kept: Vec<ChainMatch> = Vec::new();
            for one in asked {
                if !kept.iter().any(|other| other.is_ambiguous_with(&one)) {
                    kept.push(one);
                }
            }
            let chains = chains(kept);
            prop_assert_eq!(choose(&chains, &facts()), by_steps(&chains, &facts()));
        }
    }
}
