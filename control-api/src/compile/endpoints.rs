//! Purpose: one endpoint set per Upstream, as the strictest reader wants it: every locality once,
//! with a weight; one priority; unique IP addresses.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};

use super::effective::cluster_name;
use super::proto::{address, number};
use super::resource::{Resource, ResourceSet};
use crate::model::PolicySet;
use crate::model::upstream::{self, Health, Upstream};

pub(super) fn compile_endpoints(policy: &PolicySet) -> ResourceSet {
    policy
        .upstreams()
        .map(|(object, upstream)| {
            let name = cluster_name(&object.key.namespace, &object.key.name);
            Resource::pack(name.clone(), &build_assignment(name, upstream))
        })
        .collect()
}

fn build_assignment(cluster_name: String, upstream: &Upstream) -> ClusterLoadAssignment {
    let mut zones: BTreeMap<&str, Vec<&upstream::Endpoint>> = BTreeMap::new();
    for endpoint in &upstream.endpoints {
        zones.entry(&endpoint.zone).or_default().push(endpoint);
    }
    let endpoints = zones
        .into_iter()
        .map(|(zone, endpoints)| {
            let weight: u32 = endpoints.iter().fold(0, |sum: u32, endpoint| sum.saturating_add(endpoint.weight));
            LocalityLbEndpoints {
                locality: Some(Locality { zone: zone.to_owned(), ..Locality::default() }),
                load_balancing_weight: Some(number(weight)),
                lb_endpoints: endpoints.into_iter().map(build_endpoint).collect(),
                ..LocalityLbEndpoints::default()
            }
        })
        .collect();
    ClusterLoadAssignment { cluster_name, endpoints, ..ClusterLoadAssignment::default() }
}

pub(super) fn build_endpoint(endpoint: &upstream::Endpoint) -> LbEndpoint {
    let health = match endpoint.health {
        Health::Draining => HealthStatus::Draining,
        Health::Healthy => HealthStatus::Healthy,
        Health::Unknown => HealthStatus::Unknown,
    };
    LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: Some(number(endpoint.weight)),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(address(endpoint.address)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    }
}
