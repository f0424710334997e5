//! Purpose: the listeners and clusters of a pod whose traffic is captured.
//! Shape: where a connection went decides, by address and port, before its first byte is looked at:
//!
//! ```text
//! outbound ─┬ address and port of a service ─┬ HTTP ▶ the service's route table
//!           │                                └ else ▶ its cluster, bytes unread
//!           └ anywhere else ▶ passthrough, or blackhole where policy allows services only
//! inbound  ─┬ port of one of the pod's endpoints ▶ HTTP or bytes, to where it went
//!           ├ port at which its node asks how it is ▶ likewise, where access is limited
//!           └ any other port ▶ bytes, to where it went
//! ```
//! A service without an address of its own (headless) is known by those of its endpoints; its callers chose one, so
//! without a route they get it. Bytes to one need no chain: passing them through does the same.
//! What policy says of who may call stands before each inbound port.
//! Limits: a port of protocol `detect` waits for the client's first bytes; a client that says nothing within
//! [`DETECT_TIMEOUT`] (MeshConfig may say another) is passed on, and the proxy learns that destination's server speaks first.
//! Source: Envoy, `filter_chain_match`, `original_dst`; Istio's names of the two clusters' jobs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use envoy_types::pb::envoy::config::core::v3::{CidrRange, TrafficDirection};
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{MatchSet, Rule};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, ListenerFilterChainMatchPredicate, filter,
    listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use envoy_types::util::pack_any;

use super::access::{Guarded, Guards};
use super::cluster::{protocol_options, set_http_options};
use super::effective::cluster_name;
use super::listener::{INBOUND_CONNECT_TIMEOUT, http_filter, inbound_routes, pushed_routes};
use super::proto::{address, flag, number, span};
use super::resource::Resource;
use super::role::{Capture, CapturedOutbound};
use super::route::service_table;
use crate::model::mesh_config::MeshConfig;
use crate::model::service::{ServicePort, service_of};
use crate::model::upstream::{AppProtocol, Health};
use crate::model::workload::Probe;
use crate::model::{ObjectKey, PolicySet, Services};

/// Where what belongs to no service goes.
pub(super) const PASSTHROUGH: &str = "passthrough";
/// Where it ends, where policy allows services only.
const BLACKHOLE: &str = "blackhole";
/// Where a connection to a port that no endpoint has goes.
const INBOUND_PASSTHROUGH: &str = "inbound/passthrough";
/// How long a client may say nothing before its server is taken to speak first.
const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
const HTTP_PROTOCOLS: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// The listener for the pod's own connections; the same for all pods that agree in [`CapturedOutbound`].
pub(super) fn outbound_listener(
    policy: &PolicySet,
    wanted: CapturedOutbound,
    detection_timeout: Option<Duration>,
) -> Resource {
    let services = Services::of(policy);
    let mut chains = Vec::new();
    let mut looked_at = Vec::new();
    for ((namespace, name), ports) in services.iter() {
        for port in ports {
            let Some(number) = port.upstream.port else { continue };
            let mut own = service_chains((namespace, name), *port, number);
            if !own.is_empty() && port.upstream.protocol == AppProtocol::Detect {
                looked_at.push(number);
            }
            chains.append(&mut own);
        }
    }
    let elsewhere = elsewhere_chain(if wanted.allows_any.unwrap_or(true) { PASSTHROUGH } else { BLACKHOLE }, &[]);
    let chains = Chains { chains, looked_at, elsewhere, detection_timeout };
    let listen = (wildcard(wanted.has_ipv6), wanted.port).into();
    let listener = chains.listener("outbound", listen, TrafficDirection::Outbound);
    Resource::pack(listener.name.clone(), &listener)
}

/// The listener for connections to the pod, and the clusters that stand for the application.
pub(super) fn inbound(pod: &Pod<'_>, ports: &BTreeMap<u16, InboundPort>) -> (Resource, Vec<Resource>) {
    let capture = pod.capture;
    let mut chains = Vec::new();
    let mut clusters = vec![original_cluster(INBOUND_PASSTHROUGH)];
    let elsewhere = pod.guards.at(pod.namespace, [], Vec::new());
    let asked_elsewhere =
        pod.probes.iter().map(|probe| probe.port).filter(|port| elsewhere.allows && !ports.contains_key(port));
    let all = ports.iter().map(|(number, port)| (*number, Some(port)));
    let all: BTreeMap<u16, Option<&InboundPort>> = all.chain(asked_elsewhere.map(|port| (port, None))).collect();
    for (number, port) in &all {
        let service = port.map(|port| format!("inbound/{}/{number}", port.service));
        let cluster = service.as_deref().unwrap_or(INBOUND_PASSTHROUGH);
        let matched = || FilterChainMatch { destination_port: Some(number_of(*number)), ..FilterChainMatch::default() };
        let routes = || RouteSpecifier::RouteConfig(inbound_routes(cluster));
        let probes = pod.probes.iter().filter(|probe| probe.port == *number).cloned().collect();
        let upstreams = port.map_or(&[][..], |port| &port.upstreams);
        let guarded = pod.guards.at(pod.namespace, upstreams, probes);
        add_chains(&mut chains, protocol_at(*port), (cluster, &guarded), (matched, routes));
        clusters.extend(service.as_deref().map(original_cluster));
    }
    let looked_at = all.iter().filter(|(_, port)| protocol_at(**port) == AppProtocol::Detect);
    let looked_at = looked_at.map(|(number, _)| *number).collect();
    let elsewhere = elsewhere_chain(INBOUND_PASSTHROUGH, &elsewhere.connections);
    let chains = Chains { chains, looked_at, elsewhere, detection_timeout: pod.config.detection_timeout };
    let listen = (wildcard(capture.outbound.has_ipv6), capture.inbound_port).into();
    let mut listener = chains.listener("inbound", listen, TrafficDirection::Inbound);
    listener.transparent = capture.is_transparent.then(|| flag(true));
    (Resource::pack(listener.name.clone(), &listener), clusters)
}

/// What a port speaks; one of no service is looked at.
fn protocol_at(port: Option<&InboundPort>) -> AppProtocol {
    port.map_or(AppProtocol::Detect, |port| port.protocol)
}

/// A pod, and what holds for who calls it.
pub(super) struct Pod<'a> {
    pub(super) capture: &'a Capture,
    pub(super) namespace: &'a str,
    pub(super) guards: &'a Guards,
    pub(super) config: &'a MeshConfig,
    /// What its node asks it.
    pub(super) probes: &'a [Probe],
}

/// The clusters of what leads to no service.
pub(super) fn outbound_clusters() -> [Resource; 2] {
    let closed = Cluster {
        name: BLACKHOLE.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(span(INBOUND_CONNECT_TIMEOUT)),
        ..Cluster::default()
    };
    [original_cluster(PASSTHROUGH), Resource::pack(BLACKHOLE.to_owned(), &closed)]
}

/// A port at which a pod is an endpoint.
#[derive(Debug, Clone)]
pub(super) struct InboundPort {
    /// Name and namespace of its service.
    service: String,
    protocol: AppProtocol,
    /// All that it is a port of.
    upstreams: Vec<ObjectKey>,
}

/// The ports of every address that is an endpoint of a service.
#[derive(Debug, Default)]
pub(super) struct InboundPorts {
    by_address: BTreeMap<IpAddr, BTreeMap<u16, InboundPort>>,
}

impl InboundPorts {
    pub(super) fn of(policy: &PolicySet) -> Self {
        let mut by_address: BTreeMap<IpAddr, BTreeMap<u16, InboundPort>> = BTreeMap::new();
        for (object, upstream) in policy.upstreams() {
            let service = cluster_name(&object.key.namespace, service_of(&object.key, upstream));
            for address in upstream.endpoints.iter().map(|one| one.address).chain(upstream.not_ready.iter().copied()) {
                let ports = by_address.entry(address.ip()).or_default();
                // The first service by name keeps the port: it is one port, whoever names it. What guards any guards it.
                let port = ports.entry(address.port()).or_insert_with(|| InboundPort {
                    service: service.clone(),
                    protocol: upstream.protocol,
                    upstreams: Vec::new(),
                });
                port.upstreams.push(object.key.clone());
            }
        }
        Self { by_address }
    }

    /// The ports of a pod.
    pub(super) fn at(&self, addresses: &[IpAddr]) -> BTreeMap<u16, InboundPort> {
        let known = addresses.iter().filter_map(|address| self.by_address.get(address));
        known.flatten().map(|(number, port)| (*number, port.clone())).collect()
    }
}

fn service_chains((namespace, name): (&str, &str), port: ServicePort<'_>, number: u16) -> Vec<FilterChain> {
    let upstream = port.upstream;
    let is_headless = upstream.addresses.is_empty();
    if is_headless && matches!(upstream.protocol, AppProtocol::Detect | AppProtocol::Tcp | AppProtocol::Tls) {
        return Vec::new();
    }
    // Of a headless service, callers connect to an endpoint, at the endpoint's port.
    let mut at: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    if is_headless {
        for endpoint in upstream.endpoints.iter().filter(|endpoint| endpoint.health != Health::Draining) {
            at.entry(endpoint.address.port()).or_default().push(endpoint.address.ip());
        }
    } else {
        at.insert(number, upstream.addresses.clone());
    }
    let cluster = cluster_name(&port.key.namespace, &port.key.name);
    let mut chains = Vec::new();
    for (number_there, addresses) in at {
        let matched = || FilterChainMatch {
            destination_port: Some(number_of(number_there)),
            prefix_ranges: addresses.iter().map(host_range).collect(),
            ..FilterChainMatch::default()
        };
        let routes = || pushed_routes(&service_table(namespace, name, number));
        add_chains(&mut chains, upstream.protocol, (&cluster, &Guarded::default()), (matched, routes));
    }
    chains
}

/// The chains of one destination: for HTTP, for bytes, or for what it turns out to be.
fn add_chains(
    chains: &mut Vec<FilterChain>,
    protocol: AppProtocol,
    (cluster, guarded): (&str, &Guarded),
    (matched, routes): (impl Fn() -> FilterChainMatch, impl Fn() -> RouteSpecifier),
) {
    let mut add = |name: String, chain_match: FilterChainMatch, filters: Vec<Filter>| {
        let filter_chain_match = Some(chain_match);
        chains.push(FilterChain { name, filter_chain_match, filters, ..FilterChain::default() });
    };
    let suffix = matched().destination_port.map(|port| port.value).unwrap_or_default();
    if protocol.has_routes() {
        let is_looked_at = protocol == AppProtocol::Detect;
        let application_protocols = HTTP_PROTOCOLS.iter().filter(|_| is_looked_at).map(ToString::to_string).collect();
        let matched = FilterChainMatch { application_protocols, ..matched() };
        add(format!("{cluster}:{suffix}/http"), matched, vec![http_filter(cluster, routes(), guarded)]);
    }
    if protocol == AppProtocol::Detect || !protocol.has_routes() {
        add(format!("{cluster}:{suffix}/tcp"), matched(), tcp_filters(cluster, &guarded.connections));
    }
}

/// The chains of a listener and what holds for all of them.
struct Chains {
    chains: Vec<FilterChain>,
    /// Ports at which the first bytes decide.
    looked_at: Vec<u16>,
    /// The chain of what none of them takes.
    elsewhere: FilterChain,
    detection_timeout: Option<Duration>,
}

impl Chains {
    fn listener(self, name: &str, listen: std::net::SocketAddr, direction: TrafficDirection) -> Listener {
        let mut listener_filters = vec![ListenerFilter {
            name: "envoy.filters.listener.original_dst".to_owned(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(pack_any(OriginalDst {}))),
            ..ListenerFilter::default()
        }];
        listener_filters.extend(http_inspector(self.looked_at));
        Listener {
            name: name.to_owned(),
            address: Some(address(listen)),
            traffic_direction: direction.into(),
            filter_chains: self.chains,
            default_filter_chain: Some(self.elsewhere),
            listener_filters,
            listener_filters_timeout: Some(span(self.detection_timeout.unwrap_or(DETECT_TIMEOUT))),
            continue_on_listener_filters_timeout: true,
            ..Listener::default()
        }
    }
}

fn elsewhere_chain(cluster: &str, guards: &[Filter]) -> FilterChain {
    FilterChain { name: cluster.to_owned(), filters: tcp_filters(cluster, guards), ..FilterChain::default() }
}

/// Looks at the first bytes at these ports only: elsewhere a server that speaks first must not wait.
fn http_inspector(mut ports: Vec<u16>) -> Option<ListenerFilter> {
    ports.sort_unstable();
    ports.dedup();
    let mut rules: Vec<ListenerFilterChainMatchPredicate> = ports
        .into_iter()
        .map(|port| {
            let range = Int32Range { start: i32::from(port), end: i32::from(port) + 1 };
            predicate(Rule::DestinationPortRange(range))
        })
        .collect();
    let any = if rules.len() > 1 { predicate(Rule::OrMatch(MatchSet { rules })) } else { rules.pop()? };
    Some(ListenerFilter {
        name: "envoy.filters.listener.http_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack_any(HttpInspector::default()))),
        filter_disabled: Some(predicate(Rule::NotMatch(Box::new(any)))),
    })
}

fn predicate(rule: Rule) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}

fn tcp_filters(cluster: &str, guards: &[Filter]) -> Vec<Filter> {
    let proxy = TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    let proxy = Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack_any(proxy))),
    };
    guards.iter().cloned().chain([proxy]).collect()
}

/// A cluster whose endpoint is wherever a connection went.
fn original_cluster(name: &str) -> Resource {
    let mut cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        connect_timeout: Some(span(INBOUND_CONNECT_TIMEOUT)),
        ..Cluster::default()
    };
    set_http_options(&mut cluster, protocol_options(AppProtocol::Downstream));
    Resource::pack(name.to_owned(), &cluster)
}

fn host_range(address: &IpAddr) -> CidrRange {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    CidrRange { address_prefix: address.to_string(), prefix_len: Some(number(bits)) }
}

fn wildcard(has_ipv6: bool) -> IpAddr {
    if has_ipv6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() }
}

fn number_of(port: u16) -> envoy_types::pb::google::protobuf::UInt32Value {
    number(u32::from(port))
}
