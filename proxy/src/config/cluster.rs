//! Upstream clusters and their endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{ClusterName, Http2Config, LocalRateLimit, OriginalCluster, ProxyVersion, UpstreamProtocol};

/// A named upstream group. Defaults are Envoy's.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// Its name; live state is kept by it over updates.
    pub name: ClusterName,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// Time for one connect. Default 5 s.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub balancing: LoadBalancing,
    /// Bounds on what is open at once.
    pub limits: CircuitLimits,
    /// Passive ejection; `None` is off.
    pub outlier: Option<OutlierDetection>,
    /// Below this share of usable endpoints (in percent) all are used; 0 is off. Default 50.
    pub panic_threshold_percent: u32,
    /// A pooled connection unused for this long is closed; `None` never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Requests sent on one connection before it is closed.
    pub max_requests_per_connection: Option<u32>,
    /// How its endpoints are spoken to.
    pub protocol: UpstreamProtocol,
    /// Settings of its HTTP/2 connections.
    pub http2: Http2Config,
    /// Opaque connections begin with a PROXY header of this form; requests are refused then, since they share connections.
    pub proxy_header: Option<ProxyVersion>,
    /// A limit over all requests to this cluster (`outrigger.policy.v1.ClusterPolicy`).
    pub rate_limit: Option<Arc<LocalRateLimit>>,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    /// The endpoint discovery service, under this name.
    Eds(Arc<str>),
    /// Names looked up again and again; every address counts (`strict`), or one per new connection.
    Dns {
        /// `host:port` with the weight each address gets.
        targets: Vec<(Arc<str>, u16, u32)>,
        /// STRICT_DNS, else LOGICAL_DNS.
        strict: bool,
        /// Time between look-ups. Default 5 s.
        refresh: Duration,
    },
    /// The destinations of its connections.
    Original(OriginalCluster),
    /// Given with the cluster.
    Static(Arc<EndpointSet>),
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancing {
    /// Fewest active requests of `choices` drawn at random, by weight when weights differ. Default 2 choices.
    LeastRequest {
        /** Endpoints drawn: 2 or more. */
        choices: u32,
    },
    /// By hash, in a table that the endpoints fill evenly (Maglev). Source: Envoy `Maglev`.
    Maglev {
        /// Slots: a prime. Default 65537.
        table_size: u32,
    },
    /// At random, by weight.
    Random,
    /// By hash, to the next point on a ring. Source: Envoy `RingHash`.
    RingHash {
        /// Fewest points. Default 1024.
        minimum: u32,
        /// Most points. Default 8 Mi.
        maximum: u32,
    },
    /// In turn, by weight.
    RoundRobin,
}

/// Bounds on one cluster (Envoy: circuit breakers, default priority).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitLimits {
    /// Connections open or being opened. Default 1024.
    pub max_connections: u32,
    /// Requests waiting for a connection. Default 1024.
    pub max_pending_requests: u32,
    /// Requests in flight. Default 1024.
    pub max_requests: u32,
    /// Retries in flight. Default 3. Not used when `retry_budget` is set.
    pub max_retries: u32,
    /// Retries as a share of active requests.
    pub retry_budget: Option<RetryBudget>,
}

/// Retries allowed as a share of active requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Share in hundredths of a percent (2000 is 20 %).
    pub budget_bp: u32,
    /// Always allowed. Default 3.
    pub min_concurrency: u32,
}

/// Passive ejection of endpoints. Source: Envoy `OutlierDetection`; defaults are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// 5xx in a row (local faults of the endpoint count) before ejection. Default 5; 0 is off.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 in a row. Default 5; 0 is off.
    pub consecutive_gateway_failure: u32,
    /// Connect failures, timeouts and resets in a row; only with `split_external_local_origin`. Default 5.
    pub consecutive_local_origin_failure: u32,
    /// Local faults are counted apart from the endpoint's answers. Default false.
    pub split_external_local_origin: bool,
    /// Chance in percent that a detected endpoint is ejected. Default 100.
    pub enforcing_consecutive_5xx: u32,
    /// As above. Default 0.
    pub enforcing_consecutive_gateway_failure: u32,
    /// As above. Default 100.
    pub enforcing_consecutive_local_origin_failure: u32,
    /// Time between the sweeps that bring endpoints back. Default 10 s.
    pub interval: Duration,
    /// Ejection lasts this times the number of ejections in a row. Default 30 s.
    pub base_ejection_time: Duration,
    /// Longest ejection. Default the larger of 300 s and the base.
    pub max_ejection_time: Duration,
    /// Largest random addition to an ejection time. Default 0.
    pub max_ejection_time_jitter: Duration,
    /// Most endpoints ejected at once, in percent. Default 10.
    pub max_ejection_percent: u32,
    /// The first may be ejected whatever `max_ejection_percent` says: small clusters need it. Default false, as in Envoy.
    pub always_eject_one: bool,
}

/// The endpoints of a cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// In the order given.
    pub endpoints: Vec<EndpointConfig>,
    /// Percent by which a priority may be short of healthy endpoints before the next is used. Default 140.
    pub overprovisioning_percent: u32,
}

/// One address.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointConfig {
    /// Where it listens; its identity within the cluster.
    pub address: SocketAddr,
    /// Share within its priority, locality weight multiplied in: at least 1.
    pub weight: u32,
    /// Failover level, 0 first; levels without gaps.
    pub priority: u32,
    /// `region/zone/sub_zone`, empty when not said.
    pub locality: Arc<str>,
    /// What discovery says of it.
    pub health: EndpointHealth,
}

/// Health as discovery tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointHealth {
    /// Used after healthy ones.
    Degraded,
    /// Takes no new requests.
    Draining,
    /// Usable.
    Healthy,
    /// A health check ran out of time: not used.
    Timeout,
    /// Not used.
    Unhealthy,
    /// Usable.
    #[default]
    Unknown,
}

impl EndpointHealth {
    /// Takes new requests when nothing else speaks against it.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Unknown | Self::Degraded)
    }
}
