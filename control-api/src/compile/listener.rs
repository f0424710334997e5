//! Purpose: the listeners of a node, from its role: `outbound` routes by the pushed table,
//! `inbound` hands everything to the application.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{PathWithEscapedSlashesAction, RouteSpecifier},
    http_filter,
};
use envoy_types::util::pack_any;
use std::net::SocketAddr;
use std::time::Duration;

use super::access::{Guarded, Guards};
use super::cluster::{protocol_options, set_http_options};
use super::endpoints::build_endpoint;
use super::proto::{address, ads, flag, number, span};
use super::resource::{Resource, ResourceSet};
use super::role::{Inbound, NodeRole};
use super::route::ROUTE_TABLE;
use super::rule::{LOCAL_RATE_LIMIT, build_upgrade};
use crate::model::upstream::{AppProtocol, Endpoint, Health};
use crate::model::{PolicySet, Services};

pub(super) const INBOUND_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn compile_listeners((policy, guards): (&PolicySet, &Guards), role: &NodeRole) -> ResourceSet {
    let outbound = role.outbound.map(|listen| {
        let filter = http_filter("outbound", pushed_routes(ROUTE_TABLE), &Guarded::default());
        build_listener("outbound", listen, TrafficDirection::Outbound, filter)
    });
    let inbound = role.inbound.as_ref().map(|inbound| {
        let routes = RouteSpecifier::RouteConfig(inbound_routes(&inbound_cluster_name(inbound)));
        let services = Services::of(policy);
        let upstreams = services.ports(&role.namespace, &inbound.service).iter().map(|port| port.key);
        let guarded = guards.at(&role.namespace, upstreams, Vec::new());
        let filter = http_filter("inbound", routes, &guarded);
        build_listener("inbound", inbound.listen, TrafficDirection::Inbound, filter)
    });
    outbound.into_iter().chain(inbound).map(|listener| Resource::pack(listener.name.clone(), &listener)).collect()
}

fn build_listener(name: &str, listen: SocketAddr, direction: TrafficDirection, filter: Filter) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(address(listen)),
        traffic_direction: direction.into(),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    }
}

/// The network filter that serves HTTP by these routes to whom the guards let in.
pub(super) fn http_filter(stat_prefix: &str, routes: RouteSpecifier, guarded: &Guarded) -> Filter {
    let guards = guarded.requests.iter().cloned();
    let mut connections = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: guards.chain([local_rate_limit_filter(), router_filter()]).collect(),
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    };
    if guarded.asks_for_paths {
        // Where a path decides, an application that reads another one into it would let in whom policy keeps out.
        connections.normalize_path = Some(flag(true));
        connections.merge_slashes = true;
        connections.path_with_escaped_slashes_action = PathWithEscapedSlashesAction::RejectRequest.into();
    }
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack_any(connections))),
    }
}

/// Routes from the pushed table of this name.
pub(super) fn pushed_routes(table: &str) -> RouteSpecifier {
    RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: table.to_owned() })
}

/// Without a bucket it limits nothing; routes bring their own.
fn local_rate_limit_filter() -> HttpFilter {
    let config = LocalRateLimit { stat_prefix: "local_rate_limit".to_owned(), ..LocalRateLimit::default() };
    HttpFilter {
        name: LOCAL_RATE_LIMIT.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(config))),
        ..HttpFilter::default()
    }
}

fn router_filter() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
        ..HttpFilter::default()
    }
}

fn inbound_cluster_name(inbound: &Inbound) -> String {
    format!("inbound/{}", inbound.service)
}

/// Everything to the application, which is this cluster.
pub(super) fn inbound_routes(cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        // The caller's proxy limits the exchange; a second clock here would only guess.
        timeout: Some(span(Duration::ZERO)),
        // As with time: the caller's proxy has granted it, by policy.
        upgrade_configs: vec![build_upgrade("websocket")],
        ..RouteAction::default()
    };
    let path = PathSpecifier::Prefix("/".to_owned());
    RouteConfiguration {
        name: "inbound".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: cluster.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                name: cluster.to_owned(),
                r#match: Some(RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }),
                action: Some(Action::Route(action)),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

/// The application itself, as a cluster of one fixed endpoint.
pub(super) fn inbound_cluster(inbound: &Inbound) -> Resource {
    let name = inbound_cluster_name(inbound);
    let endpoint = Endpoint { address: inbound.app, weight: 1, zone: String::new(), health: Health::Unknown };
    let mut cluster = Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(span(INBOUND_CONNECT_TIMEOUT)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints: vec![LocalityLbEndpoints {
                load_balancing_weight: Some(number(1)),
                lb_endpoints: vec![build_endpoint(&endpoint)],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    };
    // What the caller's proxy was told to speak is what the application speaks.
    set_http_options(&mut cluster, protocol_options(AppProtocol::Downstream));
    Resource::pack(name, &cluster)
}
