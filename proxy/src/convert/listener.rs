//! Listeners: where they listen, and what becomes of their connections.

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3 as proto;

use super::at::{At, at};
use super::rejection::{Converted, ResourceKind};
use super::{filter_chain, listener_filter, read};
use crate::config::{Capture, Direction, ListenerConfig, OriginalDestination};

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
    let capture = capture(listener);
    if !capture.is_bound && capture.original == OriginalDestination::HandsOver {
        at!(listener.use_original_dst)
            .refuse("a listener that is handed its connections hands none over; set one of both");
    }
    if addresses.len() != more.value.len() + 1 {
        return None;
    }
    Some(ListenerConfig {
        name: name?.into(),
        addresses,
        capture,
        direction: match direction? {
            TrafficDirection::Inbound => Direction::Inbound,
            TrafficDirection::Outbound => Direction::Outbound,
            TrafficDirection::Unspecified => Direction::Unspecified,
        },
        inspection: inspection?,
        chains: chains?,
    })
}

/// How connections come to the listener.
fn capture(listener: At<'_, proto::Listener>) -> Capture {
    let hands_over = at!(listener.use_original_dst).flag(false);
    Capture {
        is_bound: at!(listener.bind_to_port).flag(true),
        is_transparent: at!(listener.transparent).flag(false),
        original: match hands_over {
            true => OriginalDestination::HandsOver,
            false if listener_filter::asks_original(&listener) => OriginalDestination::Asked,
            false => OriginalDestination::Unasked,
        },
    }
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
}
