//! **Purpose.** The model: what the proxy runs, as plain immutable values.
//!
//! **Shape.** `convert` makes these values from xDS messages and refuses what cannot be one; [`Snapshot`] is all of
//! it, linked; [`Publisher`] and [`Reader`] hold the only swap in the program. Nothing here does I/O, knows a proto
//! type or changes after it was built: live state (pools, ejections, buckets, counters) is kept elsewhere, keyed by
//! the names in here, so that an update resets nothing.
//!
//! **Units.** Spans are [`std::time::Duration`], sizes are bytes, shares are integers with their total named.
//!
//! **Source.** The names and defaults are Envoy's v3 API.

mod access;
mod capture;
mod chain;
mod cluster;
mod http2;
mod listener;
mod name;
mod policy;
mod publish;
mod route;
mod snapshot;

pub use access::{
    AccessAction, AccessFilter, AccessOverride, AccessPolicy, AccessRules, AddressSet, Condition, RuleSet,
};
pub use capture::{Capture, OriginalCluster, OriginalDestination};
pub use chain::{
    ChainId, ChainMatch, FilterChain, HttpInspection, Inspection, IpPrefix, PortMatch, ProxyInspection, ProxyVersion,
    ServerNameMatch, SourceType, Takes, TlsInspection, Transport,
};
pub use cluster::{
    CircuitLimits, ClusterConfig, Discovery, EndpointConfig, EndpointHealth, EndpointSet, LoadBalancing,
    OutlierDetection, RetryBudget,
};
pub use http2::{Codec, Http2Config, Http2Keepalive, Upgrade, UpstreamProtocol};
pub use listener::{
    ClusterShare, Direction, EscapedSlashes, HttpConnectionConfig, ListenerConfig, Protocol, RouteSource, ServerHeader,
    TcpConnectionConfig, UnderscoreHeaders,
};
pub use name::{ChainName, ClusterName, ListenerName, RouteTableName};
pub use policy::{LocalRateLimit, RetryOn, RetryPolicy, TokenBucketConfig};
pub use publish::{Publisher, Reader};
pub use route::{
    ClusterTarget, DirectResponse, ForwardAction, HashCookie, HashPolicy, HashSource, HeaderEdit, HeaderEdits,
    HeaderMatch, HeaderTest, PathMatch, PathRewrite, QueryMatch, Redirect, Route, RouteAction, RouteMatch, RouteTable,
    TextMatch, VirtualHost, WeightedCluster,
};
pub use snapshot::{ClusterIndex, Dangling, Members, Resources, Snapshot};
