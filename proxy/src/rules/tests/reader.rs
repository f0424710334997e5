//! Small readers of both texts: what a kernel that was given them would do with a connection. Written from the manuals, not
//! from the code that writes the texts.

use std::net::{IpAddr, SocketAddr};

use crate::rules::{Decision, Owner};

/// A connection at a hook.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub destination: SocketAddr,
    pub owner: Owner,
    pub by_loopback: bool,
    pub has_foreign_source: bool,
}

impl Seen {
    fn has_port(&self, set: &str) -> bool {
        let port = self.destination.port();
        set.split(',').any(|entry| {
            let (first, last) = entry.split_once(['-', ':']).unwrap_or((entry, entry));
            (first.parse::<u16>().unwrap()..=last.parse::<u16>().unwrap()).contains(&port)
        })
    }

    fn has_network(&self, set: &str) -> bool {
        set.split(',').any(|entry| {
            let (address, bits) = entry.split_once('/').unwrap();
            let bits: u32 = bits.parse().unwrap();
            match (address.parse().unwrap(), self.destination.ip()) {
                (IpAddr::V4(network), IpAddr::V4(own)) => {
                    (network.to_bits() ^ own.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
                }
                (IpAddr::V6(network), IpAddr::V6(own)) => {
                    (network.to_bits() ^ own.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
                }
                _ => false,
            }
        })
    }
}

fn has_id(set: &str, id: u32) -> bool {
    set.split(',').any(|entry| entry.parse() == Ok(id))
}

fn port_of(word: &str) -> u16 {
    word.trim_start_matches(':').parse().unwrap()
}

/// The script of nft, at the named chain.
pub(super) fn nft(script: &str, chain: &str, seen: &Seen) -> Decision {
    let (_, body) = script.split_once(&format!("chain {chain} {{\n")).unwrap();
    let (body, _) = body.split_once("\t}\n").unwrap();
    let rules = body.lines().skip(1);
    rules.filter_map(|rule| nft_rule(rule.trim(), seen)).next().unwrap_or(Decision::Passed)
}

fn nft_rule(rule: &str, seen: &Seen) -> Option<Decision> {
    let (rule, _) = rule.split_once(" comment ").unwrap();
    // A set becomes one word.
    let rule = rule.replace("{ ", "").replace(" }", "").replace(", ", ",");
    let words: Vec<&str> = rule.split(' ').collect();
    let mut rest = words.as_slice();
    loop {
        let (takes, holds) = match rest {
            [] => return None,
            ["return" | "accept", ..] => return Some(Decision::Passed),
            ["redirect" | "tproxy", "to", port, ..] => return Some(Decision::Captured(port_of(port))),
            ["meta" | "ct", "mark", "set", _, ..] => (4, true),
            ["iifname", "\"lo\"", ..] => (2, seen.by_loopback),
            ["ip" | "ip6", "daddr", set, ..] => (3, seen.has_network(set)),
            ["fib", "saddr", "type", "!=", "local", ..] => (5, seen.has_foreign_source),
            ["meta", "skuid", set, ..] => (3, has_id(set, seen.owner.uid)),
            ["meta", "skgid", set, ..] => (3, has_id(set, seen.owner.gid)),
            ["meta", "nfproto", "ipv6", ..] => (3, seen.destination.is_ipv6()),
            ["meta", "l4proto", "tcp", ..] | ["ct", "direction", "original", ..] => (3, true),
            ["tcp", "dport", set, ..] => (3, seen.has_port(set)),
            other => panic!("a form that this reader does not know: {other:?}"),
        };
        if !holds {
            return None;
        }
        rest = &rest[takes..];
    }
}

/// The text of iptables-restore, at the named chain.
pub(super) fn iptables(text: &str, chain: &str, seen: &Seen) -> Decision {
    let head = format!("-A {chain} ");
    let rules = text.lines().filter_map(|line| line.strip_prefix(head.as_str()));
    rules.filter_map(|rule| iptables_rule(rule, seen)).next().unwrap_or(Decision::Passed)
}

fn iptables_rule(rule: &str, seen: &Seen) -> Option<Decision> {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let mut rest = words.as_slice();
    loop {
        let (takes, holds) = match rest {
            ["-p", "tcp", ..] => (2, true),
            ["-m", "owner" | "multiport" | "addrtype" | "conntrack", ..] => (2, true),
            ["-i", "lo", ..] => (2, seen.by_loopback),
            ["-d", network, ..] => (2, seen.has_network(network)),
            ["--uid-owner", id, ..] => (2, has_id(id, seen.owner.uid)),
            ["--gid-owner", id, ..] => (2, has_id(id, seen.owner.gid)),
            ["--dport", set, ..] => (2, seen.has_port(set)),
            ["--dports", set, ..] => {
                let slots: usize = set.split(',').map(|entry| if entry.contains(':') { 2 } else { 1 }).sum();
                assert!(slots <= 15, "more than multiport holds: {set}");
                (2, seen.has_port(set))
            }
            ["!", "--src-type", "LOCAL", ..] => (3, seen.has_foreign_source),
            ["--ctdir", "ORIGINAL", ..] => (2, true),
            ["-j", "CONNMARK" | "MARK", ..] => return None,
            ["-j", "RETURN", ..] => return Some(Decision::Passed),
            ["-j", "REDIRECT", "--to-ports", port, ..] | ["-j", "TPROXY", "--on-port", port, ..] => {
                return Some(Decision::Captured(port_of(port)));
            }
            other => panic!("a form that this reader does not know: {other:?}"),
        };
        if !holds {
            return None;
        }
        rest = &rest[takes..];
    }
}
