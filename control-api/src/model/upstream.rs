//! Purpose: our kind `Upstream`: where endpoints are, how to balance over them and when to eject.
//! Units: spans are [`Duration`]; percentages are 0..=100.
//! Source: names and ranges follow Envoy's cluster, so that an operator's knowledge carries over.
//! Limits: 10,000 endpoints an upstream, 16 addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::cursor::{Cursor, Fields};
use super::object::{LABEL_RULE, is_dns_label};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);
const ENDPOINTS_MAX: usize = 10_000;
const ADDRESSES_MAX: usize = 16;

/// A named group of endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// The name callers use; the object's own name when absent.
    pub service_name: Option<String>,
    /// The port at which callers use it; any, when absent. A service with several ports has an upstream for each.
    pub port: Option<u16>,
    /// Name of that port, for `sectionName` of a policy.
    pub port_name: Option<String>,
    /// Addresses at which callers use it, of no endpoint: a captured connection to one of them is this service's.
    pub addresses: Vec<IpAddr>,
    /// The endpoints; none is allowed and answers 503.
    pub endpoints: Vec<Endpoint>,
    /// Addresses that get no requests, as those that are not ready yet: known so that their own proxies treat them as what
    /// they are going to be. Only a registry tells of them.
    pub not_ready: Vec<SocketAddr>,
    /// What its endpoints speak.
    pub protocol: AppProtocol,
    /// How they are treated.
    pub connection: Connection,
}

/// How the endpoints of an upstream are treated; what is absent is as the mesh says, else as Envoy does it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// How one is chosen; in turn, where the mesh does not say either.
    pub balancing: Option<Balancing>,
    /// Limit of connecting; [`CONNECT_TIMEOUT`] where the mesh does not say either.
    pub connect_timeout: Option<Duration>,
    /// When an endpoint is ejected; never when absent.
    pub outlier: Option<OutlierDetection>,
    /// Bounds on what is open at once.
    pub limits: Option<Limits>,
    /// Below this share of healthy endpoints all are used; 0 turns it off.
    pub panic_percent: Option<u32>,
    /// How long an unused connection is kept.
    pub idle_timeout: Option<Duration>,
    /// How many requests one connection serves.
    pub max_requests_per_connection: Option<u32>,
}

impl Connection {
    /// What is set here, and for the rest what is set farther off.
    #[must_use]
    pub fn over(self, farther: &Self) -> Self {
        Self {
            balancing: self.balancing.or(farther.balancing),
            connect_timeout: self.connect_timeout.or(farther.connect_timeout),
            outlier: self.outlier.or_else(|| farther.outlier.clone()),
            limits: self.limits.or_else(|| farther.limits.clone()),
            panic_percent: self.panic_percent.or(farther.panic_percent),
            idle_timeout: self.idle_timeout.or(farther.idle_timeout),
            max_requests_per_connection: self.max_requests_per_connection.or(farther.max_requests_per_connection),
        }
    }
}

/// Limit of connecting, where nobody says another.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What the endpoints of an upstream speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AppProtocol {
    /// What a captured connection begins with decides: HTTP of either version, or bytes passed on unread.
    Detect,
    /// Whichever version of HTTP the request came in.
    Downstream,
    /// gRPC: HTTP/2 in plaintext, and a call's own deadline in place of a timeout that nobody asked for.
    Grpc,
    /// HTTP/2 in plaintext.
    H2c,
    /// HTTP/1.1.
    #[default]
    Http,
    /// Bytes, passed on unread.
    Tcp,
    /// TLS that the application ends itself, passed on unread.
    Tls,
}

impl AppProtocol {
    /// Whether it may be HTTP, so that routes hold for it.
    #[must_use]
    pub fn has_routes(self) -> bool {
        !matches!(self, Self::Tcp | Self::Tls)
    }
}

/// The words of `appProtocol`; the one with a prefix is that of Kubernetes (KEP-3726).
const PROTOCOLS: [(&str, AppProtocol); 8] = [
    ("http", AppProtocol::Http),
    ("detect", AppProtocol::Detect),
    ("tcp", AppProtocol::Tcp),
    ("tls", AppProtocol::Tls),
    ("h2c", AppProtocol::H2c),
    ("kubernetes.io/h2c", AppProtocol::H2c),
    ("grpc", AppProtocol::Grpc),
    ("downstream", AppProtocol::Downstream),
];

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// Its share within its zone.
    pub weight: u32,
    /// Its zone.
    pub zone: String,
    /// What is known of it.
    pub health: Health,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Gets no new requests, finishes what it has.
    Draining,
    /// In use.
    Healthy,
    /// In use until proven otherwise.
    Unknown,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancing {
    /// The least busy of some random ones.
    LeastRequest {
        /// How many are compared.
        choices: u32,
    },
    /// Any.
    Random,
    /// In turn, by weight.
    RoundRobin,
}

/// Envoy's outlier detection; a knob left out has Envoy's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Answers of class 5xx in a row.
    pub consecutive_5xx: Option<u32>,
    /// Gateway failures (502, 503, 504) in a row.
    pub consecutive_gateway_failure: Option<u32>,
    /// Failures of our own (connect, reset) in a row, when split.
    pub consecutive_local_origin_failure: Option<u32>,
    /// How often ejections are reviewed.
    pub interval: Option<Duration>,
    /// First ejection; multiplied by the number of ejections.
    pub base_ejection_time: Option<Duration>,
    /// Longest ejection.
    pub max_ejection_time: Option<Duration>,
    /// Largest share ejected at once.
    pub max_ejection_percent: Option<u32>,
    /// Share of detections acted upon.
    pub enforcing_consecutive_5xx: Option<u32>,
    /// Share of detections acted upon.
    pub enforcing_consecutive_gateway_failure: Option<u32>,
    /// Share of detections acted upon.
    pub enforcing_consecutive_local_origin_failure: Option<u32>,
    /// Count local failures apart.
    pub split_local_origin: Option<bool>,
}

/// Envoy's circuit breakers; a bound left out has Envoy's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
}

/// Reads a spec.
pub fn parse_upstream(at: &Cursor<'_>) -> Option<Upstream> {
    const OWN: [&str; 6] = ["serviceName", "port", "portName", "addresses", "endpoints", "appProtocol"];
    let fields = at.fields(&[&OWN[..], &CONNECTION_FIELDS].concat())?;
    let service = fields.optional("serviceName");
    let protocol = match fields.optional("appProtocol") {
        Some(at) => at.choice(&PROTOCOLS),
        None => Some(AppProtocol::default()),
    };
    if !fields.has("port") {
        for name in ["portName", "addresses"].into_iter().filter(|name| fields.has(name)) {
            fields.refuse_field(name, "needs port beside it: a captured connection is known by address and port");
        }
    }
    Some(Upstream {
        service_name: service.and_then(|at| at.text(is_dns_label, LABEL_RULE)),
        port: fields.optional("port").and_then(|at| at.port()),
        port_name: fields.optional("portName").and_then(|at| at.text(is_dns_label, LABEL_RULE)),
        addresses: parse_addresses(&fields),
        endpoints: parse_endpoints(&fields),
        not_ready: Vec::new(),
        protocol: protocol?,
        connection: parse_connection(&fields),
    })
}

/// The fields of [`Connection`].
pub const CONNECTION_FIELDS: [&str; 7] = [
    "loadBalancing",
    "connectTimeout",
    "outlierDetection",
    "limits",
    "panicThresholdPercent",
    "idleTimeout",
    "maxRequestsPerConnection",
];

/// Reads how endpoints are treated, from fields beside others.
#[must_use]
pub fn parse_connection(fields: &Fields<'_>) -> Connection {
    let most = fields.optional("maxRequestsPerConnection");
    Connection {
        balancing: fields.optional("loadBalancing").and_then(|at| parse_balancing(&at)),
        connect_timeout: fields.optional("connectTimeout").and_then(|at| at.duration(MS..=HOUR)),
        outlier: fields.optional("outlierDetection").and_then(|at| parse_outlier(&at)),
        limits: fields.optional("limits").and_then(|at| parse_limits(&at)),
        panic_percent: fields.optional("panicThresholdPercent").and_then(|at| at.integer32(0..=100)),
        idle_timeout: fields.optional("idleTimeout").and_then(|at| at.duration(MS..=24 * HOUR)),
        max_requests_per_connection: most.and_then(|at| at.integer32(1..=u32::MAX)),
    }
}

fn parse_addresses(fields: &Fields<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for at in fields.list("addresses", 0..=ADDRESSES_MAX) {
        match at.string().map(|text| text.parse::<IpAddr>()) {
            Some(Ok(address)) if address.is_unspecified() || address.is_multicast() || address.is_loopback() => {
                at.refuse("is no address of a service");
            }
            Some(Ok(address)) if addresses.contains(&address) => at.refuse("this address is in the list twice"),
            Some(Ok(address)) => addresses.push(address),
            Some(Err(_)) => at.refuse_with("must be an IP address", "write it like \"10.96.0.10\" or \"fd00::10\""),
            None => {}
        }
    }
    addresses
}

fn parse_endpoints(fields: &Fields<'_>) -> Vec<Endpoint> {
    let items = fields.required("endpoints").map(|at| at.items(0..=ENDPOINTS_MAX));
    let mut seen = BTreeSet::new();
    let mut endpoints = Vec::new();
    for at in items.unwrap_or_default() {
        let Some(endpoint) = parse_endpoint(&at) else { continue };
        if !seen.insert(endpoint.address) {
            at.refuse("this address is in the list twice");
        }
        endpoints.push(endpoint);
    }
    let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    if total > u64::from(u32::MAX) {
        fields.refuse_field("endpoints", format!("the sum of weights {total} is above {}", u32::MAX));
    }
    endpoints
}

fn parse_endpoint(at: &Cursor<'_>) -> Option<Endpoint> {
    let fields = at.fields(&["address", "weight", "zone", "health"])?;
    let address = fields.required("address").and_then(|at| parse_address(&at));
    let weight = match fields.optional("weight") {
        Some(at) => at.integer32(1..=1_000_000),
        None => Some(1),
    };
    let zone = fields.optional("zone").and_then(|at| at.text(is_dns_label, LABEL_RULE));
    let words = [("Unknown", Health::Unknown), ("Healthy", Health::Healthy), ("Draining", Health::Draining)];
    let health = match fields.optional("health") {
        Some(at) => at.choice(&words),
        None => Some(Health::Unknown),
    };
    Some(Endpoint { address: address?, weight: weight?, zone: zone.unwrap_or_default(), health: health? })
}

fn parse_address(at: &Cursor<'_>) -> Option<SocketAddr> {
    const REMEDY: &str = "write it like \"10.0.0.7:8080\" or \"[fd00::7]:8080\"; \
                          names are not resolved here";
    let text = at.string()?;
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => at.refuse_with("the port must be in 1..=65535", REMEDY),
        Ok(address) if address.ip().is_unspecified() => {
            at.refuse_with("is the unspecified address, which nothing can connect to", REMEDY);
        }
        Ok(address) if address.ip().is_multicast() => at.refuse_with("is a multicast address", REMEDY),
        Ok(address) => return Some(address),
        Err(_) => {
            at.refuse_with("must be an IP address and a port in 1..=65535", REMEDY);
        }
    }
    None
}

fn parse_balancing(at: &Cursor<'_>) -> Option<Balancing> {
    #[derive(Clone, Copy, PartialEq)]
    enum Word {
        Least,
        Random,
        Round,
    }
    let fields = at.fields(&["policy", "choiceCount"])?;
    let words = [("RoundRobin", Word::Round), ("LeastRequest", Word::Least), ("Random", Word::Random)];
    let word = match fields.optional("policy") {
        Some(at) => at.choice(&words),
        None => Some(Word::Round),
    };
    let choices = fields.optional("choiceCount").and_then(|at| at.integer32(2..=64));
    if fields.has("choiceCount") && word.is_some_and(|word| word != Word::Least) {
        fields.refuse_field("choiceCount", "belongs to the policy LeastRequest only");
    }
    Some(match word? {
        Word::Least => Balancing::LeastRequest { choices: choices.unwrap_or(2) },
        Word::Random => Balancing::Random,
        Word::Round => Balancing::RoundRobin,
    })
}

/// Reads an outlier-detection stanza.
pub fn parse_outlier(at: &Cursor<'_>) -> Option<OutlierDetection> {
    let fields = at.fields(&[
        "consecutive5xx",
        "consecutiveGatewayFailure",
        "consecutiveLocalOriginFailure",
        "interval",
        "baseEjectionTime",
        "maxEjectionTime",
        "maxEjectionPercent",
        "enforcingConsecutive5xx",
        "enforcingConsecutiveGatewayFailure",
        "enforcingConsecutiveLocalOriginFailure",
        "splitExternalLocalOriginErrors",
    ])?;
    let count = |name: &str| fields.optional(name).and_then(|at| at.integer32(0..=u32::MAX));
    let percent = |name: &str| fields.optional(name).and_then(|at| at.integer32(0..=100));
    let span = |name: &str| fields.optional(name).and_then(|at| at.duration(MS..=24 * HOUR));
    let outlier = OutlierDetection {
        consecutive_5xx: count("consecutive5xx"),
        consecutive_gateway_failure: count("consecutiveGatewayFailure"),
        consecutive_local_origin_failure: count("consecutiveLocalOriginFailure"),
        interval: span("interval"),
        base_ejection_time: span("baseEjectionTime"),
        max_ejection_time: span("maxEjectionTime"),
        max_ejection_percent: percent("maxEjectionPercent"),
        enforcing_consecutive_5xx: percent("enforcingConsecutive5xx"),
        enforcing_consecutive_gateway_failure: percent("enforcingConsecutiveGatewayFailure"),
        enforcing_consecutive_local_origin_failure: percent("enforcingConsecutiveLocalOriginFailure"),
        split_local_origin: fields.optional("splitExternalLocalOriginErrors").and_then(|at| at.boolean()),
    };
    if let (Some(base), Some(max)) = (outlier.base_ejection_time, outlier.max_ejection_time)
        && max < base
    {
        fields.refuse_field("maxEjectionTime", "must not be shorter than baseEjectionTime");
    }
    Some(outlier)
}

/// Reads a limits stanza.
pub fn parse_limits(at: &Cursor<'_>) -> Option<Limits> {
    let fields = at.fields(&["maxConnections", "maxPendingRequests", "maxRequests", "maxRetries"])?;
    let count = |name: &str| fields.optional(name).and_then(|at| at.integer32(0..=u32::MAX));
    Some(Limits {
        max_connections: count("maxConnections"),
        max_pending_requests: count("maxPendingRequests"),
        max_requests: count("maxRequests"),
        max_retries: count("maxRetries"),
    })
}
