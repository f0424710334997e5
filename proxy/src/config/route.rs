//! Route tables: virtual hosts, matches and actions.

use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Regex;

use super::{AccessOverride, ClusterIndex, ClusterName, LocalRateLimit, RetryPolicy, RouteTableName, Upgrade};

/// A whole route table (Envoy: RouteConfiguration).
#[derive(Clone, Debug, PartialEq)]
pub struct RouteTable {
    /// Its name.
    pub name: RouteTableName,
    /// Hosts in the order given. No two share a domain (the converter refuses that).
    pub virtual_hosts: Vec<VirtualHost>,
    /// Edits for every request and response of the table, applied last of the three levels (route, host, table).
    pub request_edits: HeaderEdits,
    /// As above, for responses.
    pub response_edits: HeaderEdits,
    /// Ports are cut from `Host` before matching.
    pub ignore_port_in_host: bool,
}

/// A group of domains and the routes under them.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualHost {
    /// Its name.
    pub name: Arc<str>,
    /// Lower case: `a.b`, `*.b`, `a.*` or `*`.
    pub domains: Vec<Arc<str>>,
    /// First match wins.
    pub routes: Vec<Arc<Route>>,
    /// Edits after the route's.
    pub request_edits: HeaderEdits,
    /// As above, for responses.
    pub response_edits: HeaderEdits,
    /// Limit for routes that have none of their own.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
}

/// One match and what follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Name for statistics and faults: the configured one, else `<virtual host>/<index>`.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: RouteAction,
    /// What this route says to the filters that decide who may call, its host's and table's word included.
    pub access: Vec<AccessOverride>,
    /// The limit on this route.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
    /// Edits of the request, before those of the host and table.
    pub request_edits: HeaderEdits,
    /// Edits of the response.
    pub response_edits: HeaderEdits,
}

/// All parts must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    /// Test of the path without its query.
    pub path: PathMatch,
    /// Whether letter case counts in `path`; regular expressions say it themselves.
    pub case_sensitive: bool,
    /// Tests of headers; `:method`, `:authority`, `:path` and `:scheme` are matched too.
    pub headers: Vec<HeaderMatch>,
    /// Tests of query parameters.
    pub query: Vec<QueryMatch>,
    /// Share of requests it applies to, in millionths.
    pub fraction_ppm: u32,
}

/// Test of a path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// A request of the method CONNECT, which has no path; no other test holds for it.
    Connect,
    /// The whole path.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// Its beginning, ending at a `/` or the path's end; has no trailing `/`.
    SeparatedPrefix(Arc<str>),
    /// The whole path by regular expression (anchored by the converter).
    Regex(Regex),
}

/// Test of one header.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: Arc<str>,
    /// The test.
    pub test: HeaderTest,
    /// The result is turned round.
    pub invert: bool,
    /// An absent header is tested as an empty value.
    pub missing_as_empty: bool,
}

/// What is asked of a header's value (several lines of one name are joined by `,`).
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderTest {
    /// The content type of a gRPC call.
    Grpc,
    /// `true`: it is there; `false`: it is not.
    Present(bool),
    /// A decimal integer in `start..end`.
    Range {
        /** First value. */
        start: i64,
        /** One past the last. */
        end: i64,
    },
    /// A test of text.
    Text(TextMatch),
}

/// Test of a text. Source: Envoy `type.matcher.v3.StringMatcher`.
#[derive(Clone, Debug)]
pub enum TextMatch {
    /// Contains.
    Contains {
        /** The text, lower case when `ignore_case`. */
        text: Arc<str>,
        /** Letter case does not count. */
        ignore_case: bool,
    },
    /// Equal.
    Exact {
        /** The text. */
        text: Arc<str>,
        /** Letter case does not count. */
        ignore_case: bool,
    },
    /// Begins with.
    Prefix {
        /** The text. */
        text: Arc<str>,
        /** Letter case does not count. */
        ignore_case: bool,
    },
    /// The whole of it by regular expression (anchored by the converter).
    Regex(Regex),
    /// Ends with.
    Suffix {
        /** The text. */
        text: Arc<str>,
        /** Letter case does not count. */
        ignore_case: bool,
    },
}

/// Test of one query parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Its name; letter case counts.
    pub name: Arc<str>,
    /// `None`: it only has to be there.
    pub test: Option<TextMatch>,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteAction {
    /// Answer here.
    Direct(DirectResponse),
    /// Forward to a cluster.
    Forward(ForwardAction),
    /// Send the client elsewhere.
    Redirect(Redirect),
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// 200..=599.
    pub status: u16,
    /// Up to 4 KiB, as in Envoy.
    pub body: Arc<[u8]>,
}

/// A redirect; `None` keeps that part of the request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// New scheme.
    pub scheme: Option<Arc<str>>,
    /// New host, without port.
    pub host: Option<Arc<str>>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<PathRewrite>,
    /// The query is cut.
    pub strip_query: bool,
}

/// A new path; the query stays.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// The whole path (and query, if it has one).
    Full(Arc<str>),
    /// The matched prefix or exact path is replaced.
    Prefix(Arc<str>),
    /// All matches are replaced, with `\1` groups written as `$1`.
    Regex {
        /** What is replaced. */
        pattern: Regex,
        /** By what. */
        with: Arc<str>,
    },
}

/// Where and how a request is forwarded.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardAction {
    /// The cluster, or how it is chosen.
    pub target: ClusterTarget,
    /// Code when the cluster is not there; Envoy's default 503.
    pub cluster_not_found_status: u16,
    /// From the end of the request to the end of the response, retries included; `None` no bound. Default 15 s.
    pub timeout: Option<Duration>,
    /// Longest life of a stream, from its head on, whatever moves in it; `None` no bound.
    pub max_stream_duration: Option<Duration>,
    /// Most of a `grpc-timeout` that is honoured; `None` all of it.
    pub grpc_timeout_max: Option<Duration>,
    /// Upgrades that it grants or refuses, before those of the listener.
    pub upgrades: Vec<Upgrade>,
    /// Overrides the stream idle timeout; `Some(ZERO)` turns it off.
    pub idle_timeout: Option<Duration>,
    /// Retries; `None`: none but the replay of a request that provably did not leave.
    pub retry: Option<Arc<RetryPolicy>>,
    /// New path.
    pub path_rewrite: Option<PathRewrite>,
    /// New host.
    pub host_rewrite: Option<Arc<str>>,
    /// What the hash of a request is taken of, for clusters that balance by it.
    pub hash: Vec<HashPolicy>,
}

/// One of the things that a request's hash is taken of. Source: Envoy, `RouteAction.HashPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    /// What is taken.
    pub source: HashSource,
    /// Where there is a hash by now, those after it do not count.
    pub is_terminal: bool,
}

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// The value of a cookie.
    Cookie(HashCookie),
    /// All values of a header; its name in lower case.
    Header(Arc<str>),
    /// The first value of a query parameter; letter case counts.
    Query(Arc<str>),
    /// The address that its connection comes from.
    SourceIp,
}

/// A cookie that a client is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name; letter case counts.
    pub name: Arc<str>,
    /// A client that has none gets one that lives for so long; zero: as long as the client pleases. `None`: it gets none.
    pub ttl: Option<Duration>,
    /// What is written behind the value of one that is made here: `; Path=/; Secure`.
    pub attributes: Arc<str>,
}

/// Which cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterTarget {
    /// Named by a request header (lower case).
    Header(Arc<str>),
    /// One cluster; the index is set when the snapshot is linked.
    One(ClusterName, Option<ClusterIndex>),
    /// By weight.
    Weighted {
        /// The choices.
        choices: Vec<WeightedCluster>,
        /// Sum of the weights: 1..=u32::MAX.
        total: u32,
    },
}

/// One choice of a weighted route.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: ClusterName,
    /// Set when the snapshot is linked.
    pub index: Option<ClusterIndex>,
    /// Its share of the total.
    pub weight: u32,
    /// Edits for this choice alone.
    pub request_edits: HeaderEdits,
    /// As above, for responses.
    pub response_edits: HeaderEdits,
}

/// Edits of a message head, in the order: remove, then set and append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names (lower case) removed.
    pub remove: Vec<Arc<str>>,
    /// Headers added.
    pub add: Vec<HeaderEdit>,
}

impl HeaderEdits {
    /// True when nothing is edited.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// One header added. Source: Envoy `HeaderValueOption.append_action`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderEdit {
    /// Added only when the name is absent.
    AddIfAbsent(Arc<str>, Arc<str>),
    /// Added beside those that are there.
    Append(Arc<str>, Arc<str>),
    /// Replaces all of that name.
    Overwrite(Arc<str>, Arc<str>),
    /// Replaces, but only when the name is there.
    OverwriteIfExists(Arc<str>, Arc<str>),
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::SeparatedPrefix(a), Self::SeparatedPrefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            (Self::Connect, Self::Connect) => true,
            (Self::Connect | Self::Exact(_) | Self::Prefix(_) | Self::SeparatedPrefix(_) | Self::Regex(_), _) => false,
        }
    }
}

impl PartialEq for TextMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            (Self::Contains { text: a, ignore_case: i }, Self::Contains { text: b, ignore_case: j })
            | (Self::Exact { text: a, ignore_case: i }, Self::Exact { text: b, ignore_case: j })
            | (Self::Prefix { text: a, ignore_case: i }, Self::Prefix { text: b, ignore_case: j })
            | (Self::Suffix { text: a, ignore_case: i }, Self::Suffix { text: b, ignore_case: j }) => a == b && i == j,
            _ => false,
        }
    }
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Full(a), Self::Full(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex { pattern: a, with: x }, Self::Regex { pattern: b, with: y }) => {
                a.as_str() == b.as_str() && x == y
            }
            (Self::Full(_) | Self::Prefix(_) | Self::Regex { .. }, _) => false,
        }
    }
}
