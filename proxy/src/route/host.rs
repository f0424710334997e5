//! Virtual host by authority: exact, then longest suffix wildcard (`*.b`), longest prefix wildcard (`a.*`), then `*`.
//! A wildcard stands for at least one byte. Letter case does not count.

use std::collections::HashMap;

use crate::config::RouteTable;

use super::view::split_port;

/// Longest authority that is lowered without allocation: a DNS name and a port fit.
const STACK_BYTES: usize = 264;

/// Domains, each with the place of its virtual host.
type Domains = HashMap<Box<[u8]>, u32>;
/// Wildcards by the length of their fixed part.
type Wildcards = Vec<(usize, Domains)>;

/// Domains of one table, hashed.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    exact: Domains,
    /// Longest first; keys without the `*`.
    suffixes: Wildcards,
    prefixes: Wildcards,
    any: Option<u32>,
    ignore_port: bool,
}

impl HostIndex {
    pub(super) fn build(table: &RouteTable) -> Self {
        let mut index = Self { ignore_port: table.ignore_port_in_host, ..Self::default() };
        for (at, host) in table.virtual_hosts.iter().enumerate() {
            let at = u32::try_from(at).expect("a route table holds fewer than 2^32 hosts");
            for domain in &host.domains {
                let lower = domain.to_ascii_lowercase().into_bytes();
                match lower.as_slice() {
                    b"*" => {
                        index.any.get_or_insert(at);
                    }
                    [b'*', suffix @ ..] => insert(&mut index.suffixes, suffix, at),
                    [prefix @ .., b'*'] => insert(&mut index.prefixes, prefix, at),
                    exact => {
                        index.exact.entry(exact.into()).or_insert(at);
                    }
                }
            }
        }
        for wildcards in [&mut index.suffixes, &mut index.prefixes] {
            wildcards.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        }
        index
    }

    /// The place of the virtual host in its table.
    pub(super) fn find(&self, authority: &[u8]) -> Option<usize> {
        let host = if self.ignore_port { split_port(authority).0 } else { authority };
        let mut stack = [0; STACK_BYTES];
        let found = match stack.get_mut(..host.len()) {
            Some(lower) => {
                lower.copy_from_slice(host);
                lower.make_ascii_lowercase();
                self.find_lower(lower)
            }
            None => self.find_lower(&host.to_ascii_lowercase()),
        };
        found.and_then(|at| usize::try_from(at).ok())
    }

    fn find_lower(&self, host: &[u8]) -> Option<u32> {
        if let Some(at) = self.exact.get(host) {
            return Some(*at);
        }
        let suffix = self.suffixes.iter().filter(|(length, _)| *length < host.len());
        if let Some(at) = suffix.filter_map(|(length, by)| by.get(&host[host.len() - length..])).next() {
            return Some(*at);
        }
        let prefix = self.prefixes.iter().filter(|(length, _)| *length < host.len());
        prefix.filter_map(|(length, by)| by.get(&host[..*length])).next().copied().or(self.any)
    }
}

fn insert(wildcards: &mut Wildcards, key: &[u8], at: u32) {
    let place = wildcards.iter().position(|(length, _)| *length == key.len()).unwrap_or_else(|| {
        wildcards.push((key.len(), HashMap::new()));
        wildcards.len() - 1
    });
    wildcards[place].1.entry(key.into()).or_insert(at);
}

/// The same by walking every domain.
pub(super) fn walk(table: &RouteTable, authority: &[u8]) -> Option<usize> {
    let host = if table.ignore_port_in_host { split_port(authority).0 } else { authority };
    let host = host.to_ascii_lowercase();
    let mut best: Option<(u32, usize, usize)> = None;
    for (at, virtual_host) in table.virtual_hosts.iter().enumerate() {
        for domain in &virtual_host.domains {
            let domain = domain.to_ascii_lowercase().into_bytes();
            let rank = match domain.as_slice() {
                b"*" => Some((1, 0)),
                [b'*', suffix @ ..] if host.len() > suffix.len() && host.ends_with(suffix) => Some((3, suffix.len())),
                [prefix @ .., b'*'] if host.len() > prefix.len() && host.starts_with(prefix) => Some((2, prefix.len())),
                exact if exact == host => Some((4, 0)),
                _ => None,
            };
            if let Some((class, length)) = rank
                && best.is_none_or(|(c, l, _)| (class, length) > (c, l))
            {
                best = Some((class, length, at));
            }
        }
    }
    best.map(|(_, _, at)| at)
}
