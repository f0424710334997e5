//! Listeners, and what their connections are: HTTP, or bytes passed on unread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{
    AccessFilter, Capture, ChainName, ClusterIndex, ClusterName, Codec, FilterChain, HeaderEdits, Http2Config,
    Inspection, ListenerName, LocalRateLimit, RouteTable, RouteTableName, Takes, Upgrade,
};

/// Which way traffic through a listener flows, seen from the workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
    /// Not said.
    #[default]
    Unspecified,
}

/// A bound address and what happens to its connections.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerConfig {
    /// Its name; live sockets are kept by it over updates.
    pub name: ListenerName,
    /// At least one address. All are bound, or the listener is not ready; none where it is handed its connections.
    pub addresses: Vec<SocketAddr>,
    /// How connections come to it.
    pub capture: Capture,
    /// Inbound or outbound.
    pub direction: Direction,
    /// What is looked at of a connection before it gets its chain.
    pub inspection: Inspection,
    /// What is done with its connections: at least one chain, each with a name of its own.
    pub chains: Vec<FilterChain>,
}

impl ListenerConfig {
    /// One chain for all connections, looked at by nothing.
    pub fn plain(name: ListenerName, addresses: Vec<SocketAddr>, direction: Direction, protocol: Protocol) -> Self {
        let chain = FilterChain { name: ChainName::from("any"), takes: Takes::Rest, protocol };
        let (capture, inspection) = Default::default();
        Self { name, addresses, capture, direction, inspection, chains: vec![chain] }
    }

    /// The chain that takes every connection as it is accepted: no byte and no address of it needs to be known.
    pub fn only_chain(&self) -> Option<&FilterChain> {
        let refuses_bytes = self.inspection.tls.as_ref().is_some_and(|tls| tls.closes_on_error);
        match &self.chains[..] {
            [only] if self.inspection.proxy.is_none() && !refuses_bytes => match &only.takes {
                Takes::Match(asked) => asked.is_any().then_some(only),
                Takes::Rest => Some(only),
            },
            _ => None,
        }
    }

    /// The HTTP settings of its chains that have some, in order.
    pub fn https(&self) -> impl Iterator<Item = &Arc<HttpConnectionConfig>> {
        self.chains.iter().filter_map(|chain| chain.protocol.http())
    }

    /// The route tables that it takes from discovery.
    pub fn named_routes(&self) -> impl Iterator<Item = &RouteTableName> {
        self.https().filter_map(|http| match &http.routes {
            RouteSource::Named(name) => Some(name),
            RouteSource::Inline(_) => None,
        })
    }
}

/// What the connections of a chain are.
#[derive(Clone, Debug, PartialEq)]
pub enum Protocol {
    /// Requests, routed one by one.
    Http(Arc<HttpConnectionConfig>),
    /// Opaque bytes: each connection is one to an endpoint of a cluster.
    Tcp(Arc<TcpConnectionConfig>),
}

impl Protocol {
    /// The HTTP settings; `None`: it is not HTTP.
    pub fn http(&self) -> Option<&Arc<HttpConnectionConfig>> {
        match self {
            Self::Http(http) => Some(http),
            Self::Tcp(_) => None,
        }
    }
}

/// Settings of opaque connections. Defaults are Envoy's.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpConnectionConfig {
    /// Who may connect, filter by filter.
    pub access: Vec<AccessFilter>,
    /// Label of this listener in the statistics.
    pub stat_prefix: Arc<str>,
    /// Where connections go, by weight: at least one.
    pub clusters: Vec<ClusterShare>,
    /// A connection on which no byte moves either way for this long is closed; `None` never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Longest life of a connection; it is then reset.
    pub max_connection_duration: Option<Duration>,
    /// The address that a connection comes from is its hash, for balancing by hash.
    pub hashes_source: bool,
    /// Connects tried for one connection, each at another endpoint while there is one: 1 or more. Default 1.
    pub max_connect_attempts: u32,
}

/// A cluster and its share of a listener's connections.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterShare {
    /// The cluster.
    pub cluster: ClusterName,
    /// Set when the snapshot is linked.
    pub index: Option<ClusterIndex>,
    /// Its share of the sum of all weights: 1 or more.
    pub weight: u32,
}

/// Where the routes of a listener come from.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteSource {
    /// In the listener itself.
    Inline(Arc<RouteTable>),
    /// From the route discovery service, by name.
    Named(RouteTableName),
}

/// What `%2F`, `%2f`, `%5C` and `%5c` in a path get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Left as they are.
    #[default]
    KeepUnchanged,
    /// 400.
    RejectRequest,
    /// Unescaped, and the client is sent there (307).
    UnescapeAndRedirect,
    /// Unescaped, then matched and forwarded.
    UnescapeAndForward,
}

/// What the `server` response header gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeader {
    /// Ours when the upstream set none.
    AppendIfAbsent,
    /// Always ours.
    #[default]
    Overwrite,
    /// The upstream's, or none.
    PassThrough,
}

/// What request headers with an underscore in their name get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnderscoreHeaders {
    /// Forwarded.
    #[default]
    Allow,
    /// Dropped.
    Drop,
    /// 400.
    RejectRequest,
}

/// Settings of the HTTP connection manager. Defaults are Envoy's.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConnectionConfig {
    /// Label of this listener in the statistics.
    pub stat_prefix: Arc<str>,
    /// Where routes come from.
    pub routes: RouteSource,
    /// A keep-alive connection with no request for this long is closed; `None` never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Time from the first byte of a request to the end of its head; `None` no bound of its own. Default none.
    pub request_headers_timeout: Option<Duration>,
    /// Time from the first byte of a request to the end of its body; `None` no bound. Default none.
    pub request_timeout: Option<Duration>,
    /// Longest time without a byte either way in an exchange. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// Longest life of a connection; it is then closed after the exchange in hand.
    pub max_connection_duration: Option<Duration>,
    /// Requests served on one connection before it is closed.
    pub max_requests_per_connection: Option<u32>,
    /// Most bytes in a request head: 1 KiB ..= 8 MiB, default 60 KiB.
    pub max_head_bytes: usize,
    /// Most headers in a request head; default 100.
    pub max_headers: usize,
    /// Underscores in header names.
    pub underscore_headers: UnderscoreHeaders,
    /// The peer's address is the client's (this proxy is the edge): forwarding headers of the request are not trusted.
    pub use_remote_address: bool,
    /// `x-forwarded-for` is passed on as it came (no address appended).
    pub skip_xff_append: bool,
    /// Trusted proxies before this one.
    pub xff_trusted_hops: u32,
    /// Resolve `.` and `..` and decode unreserved characters before matching. Stricter than Envoy: on unless set to false.
    pub normalize_path: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// Escaped slashes.
    pub escaped_slashes: EscapedSlashes,
    /// Value for [`ServerHeader`]; default `outrigger`.
    pub server_name: Arc<str>,
    /// What happens to `server`.
    pub server_header: ServerHeader,
    /// Value of `via` added both ways; empty adds none.
    pub via: Arc<str>,
    /// Add `x-request-id` when absent. Default true.
    pub generate_request_id: bool,
    /// Keep the client's `x-request-id` at the edge.
    pub preserve_request_id: bool,
    /// Remove the port from `Host` before matching and forwarding.
    pub strip_any_host_port: bool,
    /// HTTP/1.0 requests are served (Envoy's `accept_http_10`).
    pub accept_http_10: bool,
    /// Which version of HTTP its connections speak.
    pub codec: Codec,
    /// Settings of HTTP/2 connections.
    pub http2: Http2Config,
    /// Upgrades that routes grant unless they say otherwise; none: every upgrade is refused.
    pub upgrades: Vec<Upgrade>,
    /// Trailers are passed on in HTTP/1 too (Envoy: `enable_trailers`).
    pub http1_trailers: bool,
    /// Requests of gRPC-Web are turned into gRPC ones, and their answers back.
    pub grpc_web: bool,
    /// Who may make requests, filter by filter.
    pub access: Vec<AccessFilter>,
    /// Limit over all requests of the listener.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
    /// Edits of every response (from the route table they would be per table; kept for local replies).
    pub response_edits: HeaderEdits,
}

impl HttpConnectionConfig {
    /// Envoy's defaults, but for path normalisation, which is on.
    pub fn new(stat_prefix: &str, routes: RouteSource) -> Self {
        Self {
            stat_prefix: stat_prefix.into(),
            routes,
            idle_timeout: Some(Duration::from_secs(3600)),
            request_headers_timeout: None,
            request_timeout: None,
            stream_idle_timeout: Some(Duration::from_secs(300)),
            max_connection_duration: None,
            max_requests_per_connection: None,
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            underscore_headers: UnderscoreHeaders::default(),
            use_remote_address: false,
            skip_xff_append: false,
            xff_trusted_hops: 0,
            normalize_path: true,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::default(),
            server_name: "outrigger".into(),
            server_header: ServerHeader::default(),
            via: "".into(),
            generate_request_id: true,
            preserve_request_id: false,
            strip_any_host_port: false,
            accept_http_10: false,
            codec: Codec::default(),
            http2: Http2Config::default(),
            upgrades: Vec::new(),
            http1_trailers: false,
            grpc_web: false,
            access: Vec::new(),
            rate_limit: None,
            response_edits: HeaderEdits::default(),
        }
    }
}
