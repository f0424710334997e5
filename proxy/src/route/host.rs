//! Virtual host by authority: exact, then longest suffix wildcard (`*.b`), longest prefix wildcard (`a.*`), then `*`.
//! A wildcard stands for at least one byte. Letter case does not count.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::config::RouteTable;

use super::trie::{Key, Trie};
use super::view::split_port;

/// Longest authority that is lowered without allocation: a DNS name and a port fit.
const STACK_BYTES: usize = 264;

/// Domains, each with the place of its virtual host.
type Domains = HashMap<Box<[u8]>, u32, BuildHasherDefault<Folded>>;

/// Domains of one table: whole ones hashed, the fixed parts of wildcards in tries.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    exact: Domains,
    /// Fixed parts from their last byte to their first.
    suffixes: Trie,
    prefixes: Trie,
    any: Option<u32>,
    ignore_port: bool,
}

impl HostIndex {
    pub(super) fn build(table: &RouteTable) -> Self {
        let mut index = Self { ignore_port: table.ignore_port_in_host, ..Self::default() };
        let (mut suffixes, mut prefixes) = (Vec::new(), Vec::new());
        for (at, host) in table.virtual_hosts.iter().enumerate() {
            let at = u32::try_from(at).expect("a route table holds fewer than 2^32 hosts");
            for domain in &host.domains {
                let lower = domain.to_ascii_lowercase().into_bytes();
                match lower.as_slice() {
                    b"*" => {
                        index.any.get_or_insert(at);
                    }
                    [b'*', suffix @ ..] => suffixes.push((suffix.iter().rev().copied().collect::<Vec<u8>>(), at)),
                    [prefix @ .., b'*'] => prefixes.push((prefix.to_vec(), at)),
                    exact => {
                        index.exact.entry(exact.into()).or_insert(at);
                    }
                }
            }
        }
        index.suffixes = build_trie(&suffixes);
        index.prefixes = build_trie(&prefixes);
        index
    }

    /// The place of the virtual host in its table.
    pub(super) fn find(&self, authority: &[u8]) -> Option<usize> {
        if self.exact.is_empty() && self.prefixes.is_empty() && self.suffixes.is_empty() {
            return self.any.and_then(|at| usize::try_from(at).ok());
        }
        let host = if self.ignore_port { split_port(authority).0 } else { authority };
        let mut stack = [0; STACK_BYTES];
        let found = match stack.get_mut(..host.len()) {
            Some(lower) => {
                lower.copy_from_slice(host);
                lower.make_ascii_lowercase();
                self.find_lower(lower)
            }
            None => self.find_lower(&mut host.to_ascii_lowercase()),
        };
        found.and_then(|at| usize::try_from(at).ok())
    }

    /// `host` may be turned round on the way.
    fn find_lower(&self, host: &mut [u8]) -> Option<u32> {
        if let Some(at) = self.exact.get(&*host) {
            return Some(*at);
        }
        let prefix = longest(&self.prefixes, host);
        if self.suffixes.is_empty() {
            return prefix.or(self.any);
        }
        host.reverse();
        longest(&self.suffixes, host).or(prefix).or(self.any)
    }
}

fn build_trie(fixed: &[(Vec<u8>, u32)]) -> Trie {
    Trie::build(fixed.iter().map(|(path, place)| Key { path, is_exact: false, place: *place }).collect())
}

/// The host of the longest fixed part that leaves at least one byte for the `*`; of equal ones the first.
fn longest(wildcards: &Trie, host: &[u8]) -> Option<u32> {
    let mut found = None;
    let (_, before) = host.split_last()?;
    wildcards.walk(before, |places| found = places.first().copied());
    found
}

/// A short hash of few steps. Only configured domains are put under it, so nobody outside chooses what collides.
#[derive(Debug, Default)]
struct Folded(u64);

impl Folded {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15;
        // Both halves in one: a plain product would leave its low bits to the low bytes alone.
        self.0 = (product ^ (product >> 64)) as u64;
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.fold(u64::from_le_bytes(*word)));
        let last = rest.iter().fold(1, |word, b| (word << 8) | u64::from(*b));
        self.fold(last);
    }

    fn finish(&self) -> u64 {
        self.0
    }
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
