//! Purpose: the Gateway API's precedence of matches, as an order. The smaller rank is tried first.
//! Source: gateway-api v1 `HTTPRouteRule.matches`: exact path, longest prefix, method, number of
//! headers, number of query parameters; then the older route, then its name. A regular expression
//! stands between exact and prefix, as other implementations have it. That a request is a call of
//! gRPC counts as one more header.

use std::cmp::Reverse;

use crate::model::http_route::{Match, PathMatch};
use crate::model::{Kind, Object};

/// Where a match stands among all matches of a virtual host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    path_kind: u8,
    path_bytes: Reverse<usize>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    created: u64,
    route: (String, String, Kind),
    rule: usize,
    index: usize,
}

impl Rank {
    pub(super) fn of(one: &Match, route: &Object, rule: usize, index: usize) -> Self {
        let (path_kind, path) = match &one.path {
            PathMatch::Exact(path) => (0, path),
            PathMatch::Regex(path) => (1, path),
            PathMatch::Prefix(path) => (2, path),
        };
        let bytes = if path_kind == 2 { path.trim_end_matches('/').len() } else { 0 };
        Self {
            path_kind,
            path_bytes: Reverse(bytes),
            method: Reverse(one.method.is_some()),
            headers: Reverse(one.headers.len() + usize::from(one.is_grpc)),
            query: Reverse(one.query.len()),
            created: route.created,
            route: (route.key.namespace.clone(), route.key.name.clone(), route.key.kind),
            rule,
            index,
        }
    }
}
