//! Listeners: where they listen, and what becomes of their connections.

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as proto;

use super::at::{At, at};
use super::rejection::{Converted, ResourceKind};
use super::{filter_chain, listener_filter, read};
use crate::config::{Direction, ListenerConfig};

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
    let chains = filter_chain::filter_chains(&listener, &shown);
    let inspection = listener_filter::inspection(&listener, chains.as_deref().unwrap_or_default());
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
        inspection: inspection?,
        chains: chains?,
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
