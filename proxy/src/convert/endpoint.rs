//! Endpoints of a cluster.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality};
use envoy_types::pb::envoy::config::endpoint::v3 as proto;
use proto::lb_endpoint::HostIdentifier;

use super::at::{At, at};
use super::read;
use super::rejection::{Converted, ResourceKind};
use crate::config::{EndpointConfig, EndpointHealth, EndpointSet};

const DEFAULT_OVERPROVISIONING_PERCENT: u32 = 140;
const MAX_PRIORITY: u32 = 128;

/// Converts an encoded ClusterLoadAssignment; its name is the cluster's, or the service name the cluster gives.
pub fn endpoints(encoded: &[u8]) -> Converted<EndpointSet> {
    super::convert(
        ResourceKind::Endpoints,
        encoded,
        |assignment: &proto::ClusterLoadAssignment| &assignment.cluster_name,
        |at| {
            at!(at.cluster_name).named()?;
            assignment(at)
        },
    )
}

/// A set of endpoints with IP addresses.
pub(super) fn assignment(assignment: At<'_, proto::ClusterLoadAssignment>) -> Option<EndpointSet> {
    let localities = at!(assignment.endpoints);
    let mut groups: Vec<Group> = localities.each().filter_map(|at| group(&at, assignment.value)).collect();
    let mut seen = HashSet::new();
    for group in &mut groups {
        // An address is an endpoint's identity, so it counts once; as in Envoy, the first stands.
        group.endpoints.retain(|endpoint| seen.insert(endpoint.address));
    }
    groups.retain(|group| !group.endpoints.is_empty());
    let mut levels: Vec<u32> = groups.iter().map(|group| group.priority).collect();
    levels.sort_unstable();
    levels.dedup();
    let mut set = EndpointSet { endpoints: Vec::new(), overprovisioning_percent: overprovisioning_percent(assignment) };
    for (priority, level) in (0_u32..).zip(&levels) {
        let members: Vec<&Group> = groups.iter().filter(|group| group.priority == *level).collect();
        if let Err(sum) = sum_of_localities(&members) {
            localities
                .refuse(format_args!("the sum of locality weights of priority {level}, {sum}, is above {}", u32::MAX));
            return None;
        }
        for (group, weights) in members.iter().zip(shares(&members)) {
            set.endpoints.extend(group.endpoints.iter().zip(weights).map(|(endpoint, weight)| EndpointConfig {
                address: endpoint.address,
                weight,
                priority,
                locality: group.locality.clone(),
                health: endpoint.health,
            }));
        }
    }
    Some(set)
}

fn overprovisioning_percent(assignment: At<'_, proto::ClusterLoadAssignment>) -> u32 {
    let Some(policy) = at!(assignment.policy).set() else { return DEFAULT_OVERPROVISIONING_PERCENT };
    if !policy.value.drop_overloads.is_empty() {
        at!(policy.drop_overloads).refuse("dropping a share of requests is not served");
    }
    at!(policy.overprovisioning_factor).within(1..=u32::MAX).unwrap_or(DEFAULT_OVERPROVISIONING_PERCENT)
}

/// The endpoints of one locality at one priority.
struct Group {
    priority: u32,
    weight: Option<u32>,
    locality: Arc<str>,
    endpoints: Vec<Member>,
}

struct Member {
    address: SocketAddr,
    weight: u32,
    health: EndpointHealth,
}

fn group(locality: &At<'_, proto::LocalityLbEndpoints>, whole: &proto::ClusterLoadAssignment) -> Option<Group> {
    let locality = *locality;
    let priority = locality.value.priority;
    if priority > MAX_PRIORITY {
        at!(locality.priority).refuse(format_args!("{priority} is not in 0..={MAX_PRIORITY}"));
    }
    if let Some(proto::locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(leds)) = &locality.value.lb_config {
        locality.field("leds_cluster_locality_config", leds).refuse("LEDS is not served; list lb_endpoints");
        return None;
    }
    let weight = at!(locality.load_balancing_weight).within(1..=u32::MAX);
    let list = at!(locality.lb_endpoints);
    let listed = match &locality.value.lb_config {
        Some(proto::locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(more)) => {
            let more = locality.field("load_balancer_endpoints", more);
            let list = at!(more.lb_endpoints);
            list.each().filter_map(|at| member(&at, whole)).collect()
        }
        _ => Vec::new(),
    };
    let mut endpoints: Vec<Member> = list.each().filter_map(|at| member(&at, whole)).collect();
    endpoints.extend(listed);
    let sum: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    if sum > u64::from(u32::MAX) {
        list.refuse(format_args!("the sum of weights, {sum}, is above {}", u32::MAX));
    }
    Some(Group { priority, weight, locality: locality_text(locality.value.locality.as_ref()), endpoints })
}

fn locality_text(locality: Option<&Locality>) -> Arc<str> {
    match locality {
        None => "".into(),
        Some(l) if l.region.is_empty() && l.zone.is_empty() && l.sub_zone.is_empty() => "".into(),
        Some(l) => format!("{}/{}/{}", l.region, l.zone, l.sub_zone).trim_end_matches('/').into(),
    }
}

fn member(endpoint: &At<'_, proto::LbEndpoint>, whole: &proto::ClusterLoadAssignment) -> Option<Member> {
    let endpoint = *endpoint;
    let health = health(at!(endpoint.health_status));
    let weight = match endpoint.value.load_balancing_weight {
        None => Some(1),
        Some(_) => at!(endpoint.load_balancing_weight).within(1..=u32::MAX),
    };
    let host = host(&endpoint, whole)?;
    let address = read::ip_address(at!(host.address));
    Some(Member { address: address?, weight: weight?, health: health? })
}

/// The endpoint itself, in place or by its name in the assignment.
pub(super) fn host<'a>(
    endpoint: &'a At<'a, proto::LbEndpoint>,
    whole: &'a proto::ClusterLoadAssignment,
) -> Option<At<'a, proto::Endpoint>> {
    match &endpoint.value.host_identifier {
        Some(HostIdentifier::Endpoint(host)) => Some(endpoint.field("endpoint", host)),
        Some(HostIdentifier::EndpointName(name)) => {
            let named = whole.named_endpoints.get(name);
            let at = endpoint.field("endpoint_name", name);
            if named.is_none() {
                at.refuse(format_args!("{name:?} is not in named_endpoints"));
            }
            Some(at.with(named?))
        }
        None => {
            endpoint.refuse("has no endpoint; it is required");
            None
        }
    }
}

fn health(status: At<'_, i32>) -> Option<EndpointHealth> {
    Some(match status.one_of::<HealthStatus>()? {
        HealthStatus::Degraded => EndpointHealth::Degraded,
        HealthStatus::Draining => EndpointHealth::Draining,
        HealthStatus::Healthy => EndpointHealth::Healthy,
        HealthStatus::Timeout => EndpointHealth::Timeout,
        HealthStatus::Unhealthy => EndpointHealth::Unhealthy,
        HealthStatus::Unknown => EndpointHealth::Unknown,
    })
}

fn sum_of_localities(members: &[&Group]) -> Result<(), u64> {
    let sum = members.iter().map(|group| u64::from(group.weight.unwrap_or(0))).sum();
    if sum > u64::from(u32::MAX) { Err(sum) } else { Ok(()) }
}

/// The weight of every endpoint within its priority, by group. Without locality weights, its own; with them, a locality
/// gets its share whatever the number of its endpoints, and endpoints share that by their own weights. One without a
/// weight among others that have one counts as 1.
fn shares(members: &[&Group]) -> Vec<Vec<u32>> {
    let own = |group: &Group| group.endpoints.iter().map(|e| u128::from(e.weight)).collect::<Vec<_>>();
    if members.iter().all(|group| group.weight.is_none()) {
        return fit(members.iter().map(|group| own(group)).collect());
    }
    let sums: Vec<u128> = members.iter().map(|group| own(group).iter().sum()).collect();
    // A common multiple keeps the shares exact while it is small; past that, rounding is below one in a million.
    let common = sums.iter().try_fold(1_u128, |all, sum| {
        let next = all / gcd(all, *sum) * sum;
        (next <= 1 << 60).then_some(next)
    });
    let common = common.unwrap_or(1 << 60);
    let scaled = members.iter().zip(&sums).map(|(group, sum)| {
        let locality = u128::from(group.weight.unwrap_or(1));
        own(group).into_iter().map(|weight| weight * common / sum * locality).collect()
    });
    fit(scaled.collect())
}

/// Divides by what is common, and further until the sum fits 32 bits; at least 1 remains.
fn fit(weights: Vec<Vec<u128>>) -> Vec<Vec<u32>> {
    let divisor = weights.iter().flatten().fold(0, |all, weight| gcd(all, *weight)).max(1);
    let sum: u128 = weights.iter().flatten().map(|weight| weight / divisor).sum();
    let count: u128 = weights.iter().map(|group| group.len() as u128).sum();
    let room = u128::from(u32::MAX).saturating_sub(count).max(1);
    let shrink = sum.div_ceil(room).max(1);
    let divide = |weight: u128| u32::try_from((weight / divisor / shrink).max(1)).unwrap_or(u32::MAX);
    weights.into_iter().map(|group| group.into_iter().map(divide).collect()).collect()
}

fn gcd(a: u128, b: u128) -> u128 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
