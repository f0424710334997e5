//! What follows from a route: its cluster, the path that is sent on, the place a client is sent to.
//! Source: Envoy, `RouteAction` and `RedirectAction`.

use memchr::memchr;

use crate::chance::Chance;
use crate::config::{
    ClusterIndex, ClusterName, ClusterTarget, PathMatch, PathRewrite, Redirect, RouteMatch, WeightedCluster,
};

use super::view::{RequestView, split_port};

/// The cluster of one request.
#[derive(Clone, Copy, Debug)]
pub enum Chosen<'t, 'r> {
    /// Named in the configuration.
    Linked {
        /// Its name.
        name: &'t ClusterName,
        /// Its place in the snapshot; `None`: it is not there.
        index: Option<ClusterIndex>,
        /// The weighted choice that was drawn, with its edits.
        weighted: Option<&'t WeightedCluster>,
    },
    /// The header that should name it is missing.
    Missing,
    /// Named by a request header: to be looked up in the snapshot.
    Named(&'r [u8]),
}

/// Chooses a cluster; weighted ones by one draw.
pub fn choose_cluster<'t, 'r>(
    target: &'t ClusterTarget,
    request: &'r impl RequestView,
    chance: &Chance,
) -> Chosen<'t, 'r> {
    match target {
        ClusterTarget::Header(name) => request.header(name.as_bytes()).map_or(Chosen::Missing, Chosen::Named),
        ClusterTarget::One(name, index) => Chosen::Linked { name, index: *index, weighted: None },
        ClusterTarget::Weighted { choices, total } => {
            let mut left = chance.below(u64::from(*total));
            for choice in choices {
                let weight = u64::from(choice.weight);
                if left < weight {
                    return Chosen::Linked { name: &choice.cluster, index: choice.index, weighted: Some(choice) };
                }
                left -= weight;
            }
            Chosen::Missing
        }
    }
}

/// Writes the path and query that are sent on into `out` (cleared first). The result always begins with `/`.
pub fn rewrite_path(rewrite: &PathRewrite, matches: &RouteMatch, request: &impl RequestView, out: &mut Vec<u8>) {
    out.clear();
    let has_query = put_path(rewrite, matches, request.path(), out);
    if out.first() != Some(&b'/') {
        out.insert(0, b'/');
    }
    if let Some(query) = request.query().filter(|_| !has_query) {
        out.push(b'?');
        out.extend_from_slice(query);
    }
}

/// Writes the value of `location` into `out` (cleared first).
pub fn write_location(redirect: &Redirect, matches: &RouteMatch, request: &impl RequestView, out: &mut Vec<u8>) {
    out.clear();
    let scheme = redirect.scheme.as_deref().map_or(request.scheme(), str::as_bytes);
    out.extend_from_slice(scheme);
    out.extend_from_slice(b"://");
    let (host, port) = split_port(request.authority());
    out.extend_from_slice(redirect.host.as_deref().map_or(host, str::as_bytes));
    // The request's port belongs to the request's host, and a default port to its scheme.
    let is_default = match request.scheme() {
        b"https" => port == Some(b"443"),
        _ => port == Some(b"80"),
    };
    let kept = port.filter(|_| redirect.host.is_none() && !(redirect.scheme.is_some() && is_default));
    if let Some(port) = redirect.port {
        out.push(b':');
        out.extend_from_slice(port.to_string().as_bytes());
    } else if let Some(port) = kept {
        out.push(b':');
        out.extend_from_slice(port);
    }
    let path_at = out.len();
    let has_query = match &redirect.path {
        None => {
            out.extend_from_slice(request.path());
            false
        }
        Some(rewrite) => put_path(rewrite, matches, request.path(), out),
    };
    if out.get(path_at) != Some(&b'/') {
        out.insert(path_at, b'/');
    }
    if let Some(query) = request.query().filter(|_| !redirect.strip_query && !has_query) {
        out.push(b'?');
        out.extend_from_slice(query);
    }
}

/// Appends the new path. True: it brings a query of its own.
fn put_path(rewrite: &PathRewrite, matches: &RouteMatch, path: &[u8], out: &mut Vec<u8>) -> bool {
    match rewrite {
        PathRewrite::Full(text) => {
            out.extend_from_slice(text.as_bytes());
            memchr(b'?', text.as_bytes()).is_some()
        }
        PathRewrite::Prefix(text) => {
            let matched = match &matches.path {
                PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => prefix.len(),
                PathMatch::Connect | PathMatch::Exact(_) | PathMatch::Regex(_) => path.len(),
            };
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(path.get(matched..).unwrap_or_default());
            false
        }
        PathRewrite::Regex { pattern, with } => {
            out.extend_from_slice(&pattern.replace_all(path, with.as_bytes()));
            false
        }
    }
}
