//! A route table prepared for finding: hashed domains, and per virtual host a trie of paths.

use std::sync::Arc;

use crate::chance::Chance;
use crate::config::{PathMatch, RouteTable};

use super::host::HostIndex;
use super::trie::{Key, Trie};
use super::view::RequestView;
use super::{Found, matching};

/// Candidate lists merged without allocation; a path under more prefixes than that is walked linearly.
const LISTS: usize = 16;

/// A route table with its index. Built once per table and kept as long as the table is.
#[derive(Debug)]
pub struct Index {
    table: Arc<RouteTable>,
    hosts: HostIndex,
    routes: Vec<RouteIndex>,
}

/// Routes of one virtual host by path.
#[derive(Debug)]
struct RouteIndex {
    trie: Trie,
    /// Routes that no path tells apart (regular expressions, letter case ignored, CONNECT), ascending.
    unindexed: Box<[u32]>,
}

impl Index {
    /// Indexes `table`.
    pub fn build(table: Arc<RouteTable>) -> Self {
        let hosts = HostIndex::build(&table);
        let routes = table
            .virtual_hosts
            .iter()
            .map(|host| {
                let mut keys = Vec::new();
                let mut unindexed = Vec::new();
                for (place, route) in host.routes.iter().enumerate() {
                    let place = u32::try_from(place).expect("a virtual host holds fewer than 2^32 routes");
                    match &route.matches.path {
                        PathMatch::Exact(path) if route.matches.case_sensitive => {
                            keys.push(Key { path: path.as_bytes(), is_exact: true, place });
                        }
                        PathMatch::Prefix(path) | PathMatch::SeparatedPrefix(path) if route.matches.case_sensitive => {
                            keys.push(Key { path: path.as_bytes(), is_exact: false, place });
                        }
                        PathMatch::Connect
                        | PathMatch::Exact(_)
                        | PathMatch::Prefix(_)
                        | PathMatch::SeparatedPrefix(_)
                        | PathMatch::Regex(_) => unindexed.push(place),
                    }
                }
                RouteIndex { trie: Trie::build(keys), unindexed: unindexed.into() }
            })
            .collect();
        Self { table, hosts, routes }
    }

    /// The table it was built from.
    pub fn table(&self) -> &Arc<RouteTable> {
        &self.table
    }

    /// The same answer as [`find`](super::find).
    pub fn find(&self, request: &impl RequestView, chance: &Chance) -> Found<'_> {
        let Some(host_index) = self.hosts.find(request.authority()) else { return Found::NoHost };
        let host = &self.table.virtual_hosts[host_index];
        let fits = |place: usize| matching::matches(&host.routes[place].matches, request, chance);
        let found = self.routes[host_index].first(request.path(), host.routes.len(), fits);
        match found {
            Some(route_index) => Found::Route { host, host_index, route: &host.routes[route_index], route_index },
            None => Found::NoRoute { host, host_index },
        }
    }
}

impl RouteIndex {
    /// The first of `count` routes that fits, looking at none whose path cannot match.
    fn first(&self, path: &[u8], count: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let mut candidates = Candidates { lists: [&[]; LISTS], count: 0 };
        let mut has_all = candidates.push(&self.unindexed);
        self.trie.walk(path, |places| has_all &= candidates.push(places));
        if has_all { candidates.find(|place| fits(*place)) } else { (0..count).find(|place| fits(*place)) }
    }
}

/// A merge of ascending lists.
struct Candidates<'t> {
    lists: [&'t [u32]; LISTS],
    count: usize,
}

impl<'t> Candidates<'t> {
    fn push(&mut self, places: &'t [u32]) -> bool {
        if places.is_empty() {
            return true;
        }
        let Some(slot) = self.lists.get_mut(self.count) else { return false };
        *slot = places;
        self.count += 1;
        true
    }
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let lists = &mut self.lists[..self.count];
        if let [only] = lists {
            let (place, rest) = only.split_first()?;
            *only = rest;
            return usize::try_from(*place).ok();
        }
        let least = lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list[0])?;
        let place = least[0];
        *least = &least[1..];
        usize::try_from(place).ok()
    }
}
