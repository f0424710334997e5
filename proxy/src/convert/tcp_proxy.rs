//! The TCP proxy: opaque connections and where they go.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use envoy_types::pb::envoy::r#type::v3::{HashPolicy, hash_policy::PolicySpecifier};
use proto::tcp_proxy::{ClusterSpecifier, WeightedCluster};

use super::at::{At, at};
use crate::config::{ClusterShare, TcpConnectionConfig};

const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const SHORTEST_LIFE: Duration = Duration::from_millis(1);

pub(super) fn tcp_proxy(tcp: At<'_, proto::TcpProxy>) -> Option<TcpConnectionConfig> {
    let stat_prefix = at!(tcp.stat_prefix).named();
    let clusters = clusters(&tcp);
    let attempts = match tcp.value.max_connect_attempts {
        None => Some(1),
        Some(_) => at!(tcp.max_connect_attempts).within(1..=u32::MAX),
    };
    let hashes_source = hash_policy(&at!(tcp.hash_policy));
    let life = at!(tcp.max_downstream_connection_duration);
    let max_connection_duration = life.span();
    if let Some(span) = max_connection_duration.filter(|span| *span < SHORTEST_LIFE) {
        life.refuse(format_args!("{span:?} is below {SHORTEST_LIFE:?}"));
    }
    Some(TcpConnectionConfig {
        access: Vec::new(),
        stat_prefix: stat_prefix?.into(),
        clusters: clusters?,
        idle_timeout: at!(tcp.idle_timeout).limit(Some(IDLE_TIMEOUT)),
        max_connection_duration,
        hashes_source: hashes_source?,
        max_connect_attempts: attempts?,
    })
}

/// Whether the address that a connection comes from is its hash.
fn hash_policy(policies: &At<'_, Vec<HashPolicy>>) -> Option<bool> {
    if policies.value.len() > 1 {
        policies.refuse(format_args!("has {} policies; one at most is served", policies.value.len()));
    }
    let policy = policies.each().next();
    match policy.map(|policy| (policy, &policy.value.policy_specifier)) {
        None => Some(false),
        Some((_, Some(PolicySpecifier::SourceIp(_)))) => Some(true),
        Some((policy, Some(PolicySpecifier::FilterState(_)) | None)) => {
            policy.refuse("is not served; use source_ip");
            None
        }
    }
}

fn clusters(tcp: &At<'_, proto::TcpProxy>) -> Option<Vec<ClusterShare>> {
    match &tcp.value.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            let name = tcp.field("cluster", name).named()?;
            Some(vec![ClusterShare { cluster: name.into(), index: None, weight: 1 }])
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => shares(&tcp.field("weighted_clusters", weighted)),
        None => {
            tcp.refuse("names no cluster; one of cluster, weighted_clusters is required");
            None
        }
    }
}

fn shares(weighted: &At<'_, WeightedCluster>) -> Option<Vec<ClusterShare>> {
    let weighted = *weighted;
    let clusters = at!(weighted.clusters);
    if clusters.value.is_empty() {
        clusters.refuse("is empty; at least one cluster is required");
    }
    let mut shares = Vec::with_capacity(clusters.value.len());
    for choice in clusters.each() {
        let weight = choice.value.weight;
        if weight == 0 {
            at!(choice.weight).refuse(format_args!("0 is not in 1..={}", u32::MAX));
        }
        let Some(name) = at!(choice.name).named() else { continue };
        shares.push(ClusterShare { cluster: name.into(), index: None, weight });
    }
    (shares.len() == clusters.value.len() && !shares.is_empty()).then_some(shares)
}
