//! Listeners and their filter chain, which ends in what their connections are.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use proto::filter::ConfigType;

use super::at::{At, at};
use super::rejection::{Converted, ResourceKind};
use super::{hcm, read, tcp_proxy};
use crate::config::{Direction, ListenerConfig, Protocol};

/// Filters that do nothing here, yet come in every Istio listener.
const IDLE_FILTERS: [&str; 2] =
    ["envoy.tcp.metadataexchange.config.MetadataExchange", "istio.envoy.config.filter.network.stats.PluginConfig"];

/// What a filter chain ends in.
const TERMINAL: &str = "the HTTP connection manager or the TCP proxy";

/// Converts an encoded Listener.
pub fn listener(encoded: &[u8]) -> Converted<ListenerConfig> {
    super::convert(ResourceKind::Listener, encoded, |listener: &proto::Listener| &listener.name, read_listener)
}

fn read_listener(listener: At<'_, proto::Listener>) -> Option<ListenerConfig> {
    let name = at!(listener.name).named();
    let shown = name.clone().unwrap_or_default();
    refuse_other_kinds(listener);
    let first = read::ip_address(at!(listener.address));
    let more = at!(listener.additional_addresses);
    let mut addresses: Vec<_> = first.into_iter().collect();
    for address in more.each() {
        addresses.extend(read::ip_address(at!(address.address)));
    }
    let direction = at!(listener.traffic_direction).one_of::<TrafficDirection>();
    let listener_filters = at!(listener.listener_filters);
    for filter in listener_filters.each() {
        listener_filter(&filter);
    }
    let protocol = filter_chain(listener, &shown);
    if addresses.len() != more.value.len() + 1 {
        return None;
    }
    Some(ListenerConfig {
        name: name?.into(),
        addresses,
        direction: match direction? {
            TrafficDirection::Inbound => Direction::Inbound,
            TrafficDirection::Outbound => Direction::Outbound,
            TrafficDirection::Unspecified => Direction::Unspecified,
        },
        protocol: protocol?,
    })
}

fn refuse_other_kinds(listener: At<'_, proto::Listener>) {
    if let Some(api) = at!(listener.api_listener).set() {
        api.refuse("is for gRPC clients; use address and filter_chains");
    }
    if let Some(udp) = at!(listener.udp_listener_config).set() {
        udp.refuse("UDP is not served");
    }
    if let Some(matcher) = at!(listener.filter_chain_matcher).set() {
        matcher.refuse("a matcher tree is not served");
    }
    if let Some(source) = at!(listener.fcds_config).set() {
        source.refuse("filter chains on demand are not served");
    }
    if let Some(proto::listener::ListenerSpecifier::InternalListener(internal)) = &listener.value.listener_specifier {
        listener.field("internal_listener", internal).refuse("internal listeners are not served");
    }
    if !at!(listener.bind_to_port).flag(true) {
        at!(listener.bind_to_port).refuse("a listener without a port of its own is not served");
    }
    if at!(listener.use_original_dst).flag(false) {
        at!(listener.use_original_dst).refuse("hand-off by original destination is not served");
    }
    if at!(listener.transparent).flag(false) {
        at!(listener.transparent).refuse("transparent sockets are not served");
    }
}

/// Inspectors feed filter-chain matches, of which there are none; the rest would change what a connection is.
fn listener_filter(filter: &At<'_, proto::ListenerFilter>) {
    use proto::listener_filter::ConfigType;
    match &filter.value.config_type {
        Some(ConfigType::TypedConfig(any)) => {
            let any = filter.field("typed_config", any);
            if any.is::<HttpInspector>() || any.is::<TlsInspector>() {
                any.ignore();
            } else {
                any.refuse(format_args!("listener filter {} is not served", any.type_name()));
            }
        }
        Some(ConfigType::ConfigDiscovery(source)) => {
            filter.field("config_discovery", source).refuse("ECDS is not served; use typed_config");
        }
        None => filter.refuse("has no typed_config; it is required"),
    }
}

/// The one filter chain: an only entry without a match, or the default one.
fn filter_chain(listener: At<'_, proto::Listener>, name: &str) -> Option<Protocol> {
    let chains = at!(listener.filter_chains);
    let default = at!(listener.default_filter_chain).set();
    let mut all: Vec<At<'_, proto::FilterChain>> = chains.each().collect();
    all.extend(default);
    if all.len() != 1 {
        chains.refuse(format_args!("{} filter chains; exactly one is served", all.len()));
    }
    let mut read = None;
    for chain in &all {
        read = network_filters(chain, name);
    }
    read
}

fn network_filters(chain: &At<'_, proto::FilterChain>, name: &str) -> Option<Protocol> {
    let chain = *chain;
    let matched = at!(chain.filter_chain_match).set();
    if let Some(matched) = matched.filter(|matched| *matched.value != proto::FilterChainMatch::default()) {
        matched.refuse("choosing a filter chain by connection is not served");
    }
    if let Some(socket) = at!(chain.transport_socket).set() {
        read::plaintext(socket);
    }
    let filters = at!(chain.filters);
    let mut read = None;
    for filter in filters.each() {
        let any = match &filter.value.config_type {
            Some(ConfigType::TypedConfig(any)) => filter.field("typed_config", any),
            Some(ConfigType::ConfigDiscovery(source)) => {
                filter.field("config_discovery", source).refuse("ECDS is not served; use typed_config");
                continue;
            }
            None => {
                filter.refuse("has no typed_config; it is required");
                continue;
            }
        };
        if read.is_some() {
            filter.refuse(format_args!("comes after {TERMINAL}, which must be last"));
        } else if any.is::<HttpConnectionManager>() {
            let Some(hcm) = any.unpack::<HttpConnectionManager>() else { continue };
            let http = hcm::connection_manager(any.with(&hcm), name);
            read = Some(http.map(|http| Protocol::Http(Arc::new(http))));
        } else if any.is::<TcpProxy>() {
            let Some(tcp) = any.unpack::<TcpProxy>() else { continue };
            let tcp = tcp_proxy::tcp_proxy(any.with(&tcp));
            read = Some(tcp.map(|tcp| Protocol::Tcp(Arc::new(tcp))));
        } else if IDLE_FILTERS.contains(&any.type_name().as_str()) {
            any.ignore();
        } else {
            any.refuse(format_args!(
                "network filter {:?} with {} is not served; only {TERMINAL} is",
                filter.value.name,
                any.type_name()
            ));
        }
    }
    if read.is_none() {
        filters.refuse(format_args!("does not end in {TERMINAL}"));
    }
    read.flatten()
}
