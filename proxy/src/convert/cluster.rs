//! Clusters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as Lifetimes, RoutingPriority, TransportSocket,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies as lb;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstream;
use envoy_types::pb::google::protobuf::Any;
use proto::cluster::{ClusterDiscoveryType, ClusterProtocolSelection, DiscoveryType, LbConfig, LbPolicy};

use super::at::{At, at};
use super::rejection::{Converted, ResourceKind};
use super::{endpoint, hashing, hcm, http2, original, policy, read};
use crate::config::{
    CircuitLimits, ClusterConfig, Discovery, EndpointSet, Http2Config, LoadBalancing, LocalRateLimit, OutlierDetection,
    ProxyVersion, RetryBudget, UpstreamProtocol,
};

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_DNS_REFRESH: Duration = Duration::from_secs(5);
const MIN_DNS_REFRESH: Duration = Duration::from_millis(1);
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const DEFAULT_MAX_EJECTION: Duration = Duration::from_secs(300);
const DEFAULT_PANIC_PERCENT: u32 = 50;
const DEFAULT_RETRY_BUDGET_BP: u32 = 2000;
const DEFAULT_CHOICES: u32 = 2;
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const CLUSTER_POLICY: &str = "outrigger.policy.v1.ClusterPolicy";

/// Converts an encoded Cluster.
pub fn cluster(encoded: &[u8]) -> Converted<ClusterConfig> {
    super::convert(ResourceKind::Cluster, encoded, |cluster: &proto::Cluster| &cluster.name, read_cluster)
}

fn read_cluster(cluster: At<'_, proto::Cluster>) -> Option<ClusterConfig> {
    let name = at!(cluster.name).named();
    let shown = name.clone().unwrap_or_default();
    let discovery = discovery(cluster, &shown);
    let connect_timeout = match cluster.value.connect_timeout {
        None => Some(DEFAULT_CONNECT_TIMEOUT),
        Some(_) => at!(cluster.connect_timeout).positive(),
    };
    let balancing = balancing(cluster);
    let limits = at!(cluster.circuit_breakers).set().map_or(Some(DEFAULT_LIMITS), circuit_limits);
    let outlier = match at!(cluster.outlier_detection).set() {
        // A destination has no other endpoint that could serve in its place.
        Some(given) if original::is_original(cluster) => {
            given.ignore();
            None
        }
        given => given.map(outlier),
    };
    let proxy_header = at!(cluster.transport_socket).set().map(transport_socket);
    let matches = at!(cluster.transport_socket_matches);
    for choice in matches.each() {
        at!(choice.transport_socket).set().into_iter().for_each(read::plaintext);
    }
    let connections = connections(cluster);
    let rate_limit = cluster_limit(cluster, &shown).or(connections.rate_limit);
    Some(ClusterConfig {
        name: name?.into(),
        discovery: discovery?,
        connect_timeout: connect_timeout?,
        balancing: balancing?,
        limits: limits?,
        outlier: outlier.transpose_read()?,
        panic_threshold_percent: panic_threshold_percent(cluster),
        idle_timeout: connections.idle_timeout,
        max_requests_per_connection: connections.max_requests,
        protocol: connections.protocol,
        http2: connections.http2,
        proxy_header: proxy_header.transpose_read()?.flatten(),
        rate_limit,
    })
}

/// The form of the PROXY headers that connections begin with. The inner value is `None` for a socket that changes nothing.
#[allow(clippy::option_option, reason = "refused, plain, with a header")]
fn transport_socket(socket: At<'_, TransportSocket>) -> Option<Option<ProxyVersion>> {
    let Some(ConfigType::TypedConfig(any)) = &socket.value.config_type else {
        read::plaintext(socket);
        return Some(None);
    };
    let any = socket.field("typed_config", any);
    if !any.is::<ProxyProtocolUpstreamTransport>() {
        read::plaintext(socket);
        return Some(None);
    }
    let outer = any.unpack::<ProxyProtocolUpstreamTransport>()?;
    let outer = any.with(&outer);
    if let Some(inner) = at!(outer.transport_socket).required() {
        read::plaintext(inner);
    }
    let Some(config) = at!(outer.config).set() else { return Some(Some(ProxyVersion::V1)) };
    Some(Some(match at!(config.version).one_of::<Version>()? {
        Version::V1 => ProxyVersion::V1,
        Version::V2 => ProxyVersion::V2,
    }))
}

/// Tells "absent" from "present and refused".
trait TransposeRead<T> {
    fn transpose_read(self) -> Option<Option<T>>;
}

impl<T> TransposeRead<T> for Option<Option<T>> {
    fn transpose_read(self) -> Option<Option<T>> {
        match self {
            None => Some(None),
            Some(read) => read.map(Some),
        }
    }
}

fn discovery(cluster: At<'_, proto::Cluster>, name: &str) -> Option<Discovery> {
    let kind = match &cluster.value.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => cluster.field("type", kind).one_of::<DiscoveryType>()?,
        Some(ClusterDiscoveryType::ClusterType(kind)) => {
            cluster
                .field("cluster_type", kind)
                .refuse(format_args!("{:?} is not served; use STATIC, STRICT_DNS, LOGICAL_DNS or EDS", kind.name));
            return None;
        }
    };
    match kind {
        DiscoveryType::Eds => {
            let eds = at!(cluster.eds_cluster_config).required()?;
            read::ads_source(at!(eds.eds_config));
            if cluster.value.load_assignment.is_some() {
                at!(cluster.load_assignment).ignore();
            }
            let service = if eds.value.service_name.is_empty() { name } else { &eds.value.service_name };
            Some(Discovery::Eds(service.into()))
        }
        DiscoveryType::LogicalDns => dns(cluster, false),
        DiscoveryType::OriginalDst => original::discovery(cluster).map(Discovery::Original),
        DiscoveryType::Static => {
            let set = match at!(cluster.load_assignment).set() {
                None => EndpointSet { endpoints: Vec::new(), overprovisioning_percent: 140 },
                Some(assignment) => endpoint::assignment(assignment)?,
            };
            Some(Discovery::Static(Arc::new(set)))
        }
        DiscoveryType::StrictDns => dns(cluster, true),
    }
}

fn dns(cluster: At<'_, proto::Cluster>, strict: bool) -> Option<Discovery> {
    let refresh = match cluster.value.dns_refresh_rate {
        None => Some(DEFAULT_DNS_REFRESH),
        Some(_) => at!(cluster.dns_refresh_rate).positive(),
    };
    if refresh.is_some_and(|refresh| refresh < MIN_DNS_REFRESH) {
        at!(cluster.dns_refresh_rate).refuse("is below 1ms");
    }
    let assignment = at!(cluster.load_assignment).required()?;
    let mut targets = Vec::new();
    let localities = at!(assignment.endpoints);
    for locality in localities.each() {
        let endpoints = at!(locality.lb_endpoints);
        for endpoint in endpoints.each() {
            let weight = match endpoint.value.load_balancing_weight {
                None => Some(1),
                Some(_) => at!(endpoint.load_balancing_weight).within(1..=u32::MAX),
            };
            let Some(host) = endpoint::host(&endpoint, assignment.value) else { continue };
            let target = read::host_and_port(at!(host.address));
            if let (Some((name, port)), Some(weight)) = (target, weight) {
                targets.push((name, port, weight));
            }
        }
    }
    if !strict && targets.len() > 1 {
        localities.refuse(format_args!("{} endpoints; LOGICAL_DNS takes one", targets.len()));
    }
    Some(Discovery::Dns { targets, strict, refresh: refresh? })
}

fn balancing(cluster: At<'_, proto::Cluster>) -> Option<LoadBalancing> {
    if original::is_original(cluster) {
        return original::balancing(cluster);
    }
    if let Some(list) = at!(cluster.load_balancing_policy).set() {
        return listed_balancing(list);
    }
    if let Some(subset) = at!(cluster.lb_subset_config).set() {
        subset.refuse("subsets are not served");
    }
    let given = at!(cluster.lb_policy);
    match given.one_of::<LbPolicy>()? {
        LbPolicy::LeastRequest => {
            let choices = match &cluster.value.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => {
                    let config = cluster.field("least_request_lb_config", config);
                    choice_count(at!(config.choice_count))?
                }
                _ => DEFAULT_CHOICES,
            };
            Some(LoadBalancing::LeastRequest { choices })
        }
        LbPolicy::Maglev => match &cluster.value.lb_config {
            Some(LbConfig::MaglevLbConfig(config)) => hashing::old_maglev(&cluster.field("maglev_lb_config", config)),
            _ => Some(hashing::MAGLEV),
        },
        LbPolicy::Random => Some(LoadBalancing::Random),
        LbPolicy::RingHash => match &cluster.value.lb_config {
            Some(LbConfig::RingHashLbConfig(config)) => {
                hashing::old_ring_hash(&cluster.field("ring_hash_lb_config", config))
            }
            _ => Some(hashing::RING_HASH),
        },
        LbPolicy::RoundRobin => Some(LoadBalancing::RoundRobin),
        other => {
            given.refuse(format_args!(
                "{} is not served here; use ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH or MAGLEV",
                other.as_str_name()
            ));
            None
        }
    }
}

fn choice_count(count: At<'_, Option<envoy_types::pb::google::protobuf::UInt32Value>>) -> Option<u32> {
    if count.value.is_none() { Some(DEFAULT_CHOICES) } else { count.within(2..=u32::MAX) }
}

/// The first policy of the list that is served, as in Envoy.
fn listed_balancing(list: At<'_, proto::LoadBalancingPolicy>) -> Option<LoadBalancing> {
    let policies = at!(list.policies);
    for policy in policies.each() {
        let Some(extension) = at!(policy.typed_extension_config).set() else { continue };
        let Some(any) = at!(extension.typed_config).set() else { continue };
        if any.is::<lb::round_robin::v3::RoundRobin>() {
            return Some(LoadBalancing::RoundRobin);
        }
        if any.is::<lb::random::v3::Random>() {
            return Some(LoadBalancing::Random);
        }
        if any.is::<lb::least_request::v3::LeastRequest>() {
            let config = any.unpack::<lb::least_request::v3::LeastRequest>()?;
            let config = any.with(&config);
            return Some(LoadBalancing::LeastRequest { choices: choice_count(at!(config.choice_count))? });
        }
        if any.is::<lb::ring_hash::v3::RingHash>() {
            let config = any.unpack::<lb::ring_hash::v3::RingHash>()?;
            return hashing::listed_ring_hash(&any.with(&config));
        }
        if any.is::<lb::maglev::v3::Maglev>() {
            let config = any.unpack::<lb::maglev::v3::Maglev>()?;
            return hashing::listed_maglev(&any.with(&config));
        }
        if any.is::<lb::wrr_locality::v3::WrrLocality>() {
            let config = any.unpack::<lb::wrr_locality::v3::WrrLocality>()?;
            let config = any.with(&config);
            // Locality weights are part of every endpoint's weight here, so the inner policy says all.
            if config.value.endpoint_picking_policy.as_ref().is_some_and(|inner| inner.policies.len() <= 16) {
                return inner_balancing(at!(config.endpoint_picking_policy).set()?);
            }
        }
        any.ignore();
    }
    policies.refuse("none of these policies is served; use round_robin, least_request, random, ring_hash or maglev");
    None
}

/// The policy inside `wrr_locality`, which must be a leaf: nesting ends here.
fn inner_balancing(list: At<'_, proto::LoadBalancingPolicy>) -> Option<LoadBalancing> {
    let policies = at!(list.policies);
    for policy in policies.each() {
        let Some(extension) = at!(policy.typed_extension_config).set() else { continue };
        let Some(any) = at!(extension.typed_config).set() else { continue };
        if any.is::<lb::wrr_locality::v3::WrrLocality>() {
            any.refuse("wrr_locality must not hold itself");
            return None;
        }
    }
    listed_balancing(list)
}

const DEFAULT_LIMITS: CircuitLimits = CircuitLimits {
    max_connections: 1024,
    max_pending_requests: 1024,
    max_requests: 1024,
    max_retries: 3,
    retry_budget: None,
};

fn circuit_limits(breakers: At<'_, proto::CircuitBreakers>) -> Option<CircuitLimits> {
    let mut limits = DEFAULT_LIMITS;
    let mut is_read = false;
    let thresholds = at!(breakers.thresholds);
    for threshold in thresholds.each() {
        let priority = at!(threshold.priority).one_of::<RoutingPriority>()?;
        // Envoy takes the first entry of a priority. Requests have the default one: routes with another are refused.
        if priority != RoutingPriority::Default || is_read {
            threshold.ignore();
            continue;
        }
        is_read = true;
        let or = |given: Option<u32>, default| given.unwrap_or(default);
        limits = CircuitLimits {
            max_connections: or(at!(threshold.max_connections).number(), DEFAULT_LIMITS.max_connections),
            max_pending_requests: or(at!(threshold.max_pending_requests).number(), DEFAULT_LIMITS.max_pending_requests),
            max_requests: or(at!(threshold.max_requests).number(), DEFAULT_LIMITS.max_requests),
            max_retries: or(at!(threshold.max_retries).number(), DEFAULT_LIMITS.max_retries),
            retry_budget: at!(threshold.retry_budget).set().map(|budget| {
                let percent = at!(budget.budget_percent);
                let is_given = percent.value.is_some();
                RetryBudget {
                    budget_bp: if is_given { read::percent_bp(percent).unwrap_or(0) } else { DEFAULT_RETRY_BUDGET_BP },
                    min_concurrency: or(at!(budget.min_retry_concurrency).number(), DEFAULT_LIMITS.max_retries),
                }
            }),
        };
    }
    Some(limits)
}

fn outlier(given: At<'_, proto::OutlierDetection>) -> Option<OutlierDetection> {
    type Number<'a> = At<'a, Option<envoy_types::pb::google::protobuf::UInt32Value>>;
    let percent = |at: Number<'_>, default: u32| match at.value {
        None => Some(default),
        Some(_) => at.within(0..=100),
    };
    let count = |at: Number<'_>| at.number().unwrap_or(5);
    let span = |at: At<'_, Option<envoy_types::pb::google::protobuf::Duration>>, default_secs: u64| match at.value {
        None => Some(Duration::from_secs(default_secs)),
        Some(_) => at.positive(),
    };
    let interval = span(at!(given.interval), 10);
    let base_ejection_time = span(at!(given.base_ejection_time), 30);
    let base = base_ejection_time.unwrap_or_default();
    let max_ejection_time = match given.value.max_ejection_time {
        None => Some(DEFAULT_MAX_EJECTION.max(base)),
        Some(_) => at!(given.max_ejection_time).positive(),
    };
    if let Some(max) = max_ejection_time.filter(|max| *max < base) {
        at!(given.max_ejection_time).refuse(format_args!("{max:?} is below base_ejection_time, {base:?}"));
    }
    let enforcing_5xx = percent(at!(given.enforcing_consecutive_5xx), 100);
    let enforcing_gateway = percent(at!(given.enforcing_consecutive_gateway_failure), 0);
    let enforcing_local = percent(at!(given.enforcing_consecutive_local_origin_failure), 100);
    let max_ejection_percent = percent(at!(given.max_ejection_percent), 10);
    Some(OutlierDetection {
        consecutive_5xx: count(at!(given.consecutive_5xx)),
        consecutive_gateway_failure: count(at!(given.consecutive_gateway_failure)),
        consecutive_local_origin_failure: count(at!(given.consecutive_local_origin_failure)),
        split_external_local_origin: given.value.split_external_local_origin_errors,
        enforcing_consecutive_5xx: enforcing_5xx?,
        enforcing_consecutive_gateway_failure: enforcing_gateway?,
        enforcing_consecutive_local_origin_failure: enforcing_local?,
        interval: interval?,
        base_ejection_time: base_ejection_time?,
        max_ejection_time: max_ejection_time?,
        max_ejection_time_jitter: at!(given.max_ejection_time_jitter).span().unwrap_or_default(),
        max_ejection_percent: max_ejection_percent?,
        always_eject_one: at!(given.always_eject_one_host).flag(false),
    })
}

fn panic_threshold_percent(cluster: At<'_, proto::Cluster>) -> u32 {
    let Some(common) = at!(cluster.common_lb_config).set() else { return DEFAULT_PANIC_PERCENT };
    if common.value.healthy_panic_threshold.is_none() {
        return DEFAULT_PANIC_PERCENT;
    }
    read::percent_bp(at!(common.healthy_panic_threshold)).map_or(0, |bp| (bp + 50) / 100)
}

/// How upstream connections live.
struct Connections {
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
    protocol: UpstreamProtocol,
    http2: Http2Config,
    rate_limit: Option<Arc<LocalRateLimit>>,
}

impl Connections {
    /// Speaks HTTP/2 as `options` say; what they refuse refuses the cluster.
    fn speak_http2(&mut self, protocol: UpstreamProtocol, options: Option<At<'_, Http2ProtocolOptions>>) {
        self.protocol = protocol;
        self.http2 = options.and_then(http2::options).unwrap_or_default();
    }
}

fn connections(cluster: At<'_, proto::Cluster>) -> Connections {
    let mut read = Connections {
        idle_timeout: Some(DEFAULT_IDLE_TIMEOUT),
        max_requests: at!(cluster.max_requests_per_connection).bound(),
        protocol: UpstreamProtocol::Http1,
        http2: Http2Config::default(),
        rate_limit: None,
    };
    if let Some(lifetimes) = at!(cluster.common_http_protocol_options).set() {
        apply_lifetimes(&mut read, lifetimes);
    }
    older_protocol(&mut read, cluster);
    let options = at!(cluster.typed_extension_protocol_options);
    for (key, any) in options.entries() {
        if key == HTTP_OPTIONS {
            http_options(&mut read, &any, &cluster.value.name);
        } else {
            any.ignore();
        }
    }
    read
}

/// Where the protocol stood before it was an extension; Envoy looks here only without that.
fn older_protocol(read: &mut Connections, cluster: At<'_, proto::Cluster>) {
    let options = at!(cluster.http2_protocol_options).set();
    let selection = at!(cluster.protocol_selection);
    if let Some(http1) = at!(cluster.http_protocol_options).set() {
        http1_options(http1);
    }
    if cluster.value.typed_extension_protocol_options.contains_key(HTTP_OPTIONS) {
        options.iter().for_each(At::ignore);
        if *selection.value != 0 {
            selection.ignore();
        }
        return;
    }
    match selection.one_of::<ClusterProtocolSelection>() {
        Some(ClusterProtocolSelection::UseDownstreamProtocol) => {
            read.speak_http2(UpstreamProtocol::Downstream, options);
        }
        Some(ClusterProtocolSelection::UseConfiguredProtocol) if options.is_some() => {
            read.speak_http2(UpstreamProtocol::Http2, options);
        }
        Some(ClusterProtocolSelection::UseConfiguredProtocol) | None => {}
    }
}

/// None of these is read: what is forwarded in HTTP/1 follows the listener.
fn http1_options(options: At<'_, Http1ProtocolOptions>) {
    if options.value.accept_http_10 {
        at!(options.accept_http_10).ignore();
    }
    if options.value.enable_trailers {
        at!(options.enable_trailers).ignore();
    }
}

fn apply_lifetimes(read: &mut Connections, lifetimes: At<'_, Lifetimes>) {
    read.idle_timeout = at!(lifetimes.idle_timeout).limit(Some(DEFAULT_IDLE_TIMEOUT));
    read.max_requests = at!(lifetimes.max_requests_per_connection).bound().or(read.max_requests);
}

fn http_options(read: &mut Connections, any: &At<'_, Any>, cluster: &str) {
    use upstream::http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig};
    if !any.is::<upstream::HttpProtocolOptions>() {
        any.refuse(format_args!("carries {}, not {HTTP_OPTIONS}", any.type_name()));
        return;
    }
    let Some(options) = any.unpack::<upstream::HttpProtocolOptions>() else { return };
    let options = any.with(&options);
    if let Some(lifetimes) = at!(options.common_http_protocol_options).set() {
        apply_lifetimes(read, lifetimes);
    }
    match &options.value.upstream_protocol_options {
        None => {
            options.refuse("names no protocol; explicit_http_config or use_downstream_protocol_config is required");
        }
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            let explicit = options.field("explicit_http_config", explicit);
            match &explicit.value.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                    http1_options(explicit.field("http_protocol_options", http1));
                }
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                    let http2 = explicit.field("http2_protocol_options", http2);
                    read.speak_http2(UpstreamProtocol::Http2, Some(http2));
                }
                Some(ProtocolConfig::Http3ProtocolOptions(http3)) => {
                    explicit
                        .field("http3_protocol_options", http3)
                        .refuse("HTTP/3 is not served; use http_protocol_options or http2_protocol_options");
                }
                None => {
                    explicit.refuse("names no protocol; http_protocol_options or http2_protocol_options is required")
                }
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(downstream)) => {
            let downstream = options.field("use_downstream_protocol_config", downstream);
            read.speak_http2(UpstreamProtocol::Downstream, at!(downstream.http2_protocol_options).set());
            if let Some(http1) = at!(downstream.http_protocol_options).set() {
                http1_options(http1);
            }
        }
        // As in Envoy: ALPN is a part of TLS.
        Some(UpstreamProtocolOptions::AutoConfig(auto)) => options
            .field("auto_config", auto)
            .refuse("chooses by ALPN, which a plaintext connection has not; use explicit_http_config"),
    }
    read.rate_limit = hcm::upstream_rate_limit(at!(options.http_filters), cluster).map(Arc::new);
}

/// Our own policy, in the cluster's metadata.
fn cluster_limit(cluster: At<'_, proto::Cluster>, name: &str) -> Option<Arc<LocalRateLimit>> {
    let metadata = at!(cluster.metadata).set()?;
    let typed: At<'_, HashMap<String, Any>> = at!(metadata.typed_filter_metadata);
    let mut limit = None;
    for (key, any) in typed.entries() {
        if key == CLUSTER_POLICY {
            limit = policy::cluster_policy(&any, name);
        }
    }
    limit
}

/// Where the servers of a cluster listen that is used by the control plane's client and not by traffic: its protocol is
/// gRPC, whatever the cluster says.
pub fn server_addresses(encoded: &[u8]) -> Converted<Vec<(Arc<str>, u16)>> {
    super::convert(
        ResourceKind::Cluster,
        encoded,
        |cluster: &proto::Cluster| &cluster.name,
        |cluster| {
            if let Some(socket) = at!(cluster.transport_socket).set() {
                read::plaintext(socket);
            }
            if let Some(ClusterDiscoveryType::Type(kind)) = &cluster.value.cluster_discovery_type {
                let at = cluster.field("type", kind);
                if matches!(at.one_of::<DiscoveryType>()?, DiscoveryType::Eds | DiscoveryType::OriginalDst) {
                    at.refuse("the xDS server must be known from the start; use STATIC or STRICT_DNS");
                }
            }
            let Discovery::Dns { targets, .. } = dns(cluster, true)? else { return None };
            if targets.is_empty() {
                at!(cluster.load_assignment).refuse("has no endpoint; the xDS server needs one");
            }
            Some(targets.into_iter().map(|(host, port, _)| (host, port)).collect())
        },
    )
}
