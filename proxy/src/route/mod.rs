//! **Purpose.** From a request to a route: virtual host by authority, route by first match, cluster by weight.
//!
//! **Shape.** [`find`] is the plain walk over a [`RouteTable`]: what routing means. [`Index`] is built once per table and
//! gives the same answers without the walk. [`choose_cluster`], [`hash`], [`rewrite_path`] and [`write_location`] say what
//! follows from a route. A request is seen through [`RequestView`], so that every HTTP version is routed by the same code.
//!
//! **Limits.** No allocation, but for header tests on names sent in several lines and for regex rewrites.
//!
//! **Source.** Envoy, `config.route.v3`: exact domain, then longest suffix wildcard, longest prefix wildcard, `*`; first
//! match in order.
//!
//! **Tests.** [`Index`] against [`find`] on random tables and requests.

mod access;
mod action;
mod hash;
mod host;
mod index;
mod matching;
mod trie;
mod view;

pub use access::{Caller, authorize};
pub use action::{Chosen, choose_cluster, rewrite_path, write_location};
pub use hash::{Hashed, hash};
pub use index::Index;
pub use view::{RequestView, split_port};

use std::sync::Arc;

use crate::chance::Chance;
use crate::config::{Route, RouteTable, VirtualHost};

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub enum Found<'t> {
    /// No virtual host has its authority.
    NoHost,
    /// No route of its virtual host matches.
    NoRoute {
        /// The virtual host.
        host: &'t VirtualHost,
        /// Its place in the table.
        host_index: usize,
    },
    /// The first route that matches.
    Route {
        /// The virtual host.
        host: &'t VirtualHost,
        /// Its place in the table.
        host_index: usize,
        /// The route.
        route: &'t Arc<Route>,
        /// Its place in the virtual host.
        route_index: usize,
    },
}

/// Walks the whole table: slow and obvious. The data path uses [`Index::find`].
pub fn find<'t>(table: &'t RouteTable, request: &impl RequestView, chance: &Chance) -> Found<'t> {
    let Some(host_index) = host::walk(table, request.authority()) else { return Found::NoHost };
    let host = &table.virtual_hosts[host_index];
    let found = host.routes.iter().position(|route| matching::matches(&route.matches, request, chance));
    match found {
        Some(route_index) => Found::Route { host, host_index, route: &host.routes[route_index], route_index },
        None => Found::NoRoute { host, host_index },
    }
}

#[cfg(test)]
mod tests;
