//! Clusters whose endpoints are the destinations of their connections.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use http::HeaderName;
use proto::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, OriginalDstLbConfig};

use super::at::{At, at};
use crate::config::{LoadBalancing, OriginalCluster};

const DEFAULT_CLEANUP: Duration = Duration::from_secs(5);
/// Envoy's header, where the cluster names none.
const DEFAULT_HEADER: &str = "x-envoy-original-dst-host";

/// Whether a cluster is one of these.
pub(super) fn is_original(cluster: At<'_, proto::Cluster>) -> bool {
    let original = i32::from(DiscoveryType::OriginalDst);
    matches!(cluster.value.cluster_discovery_type, Some(ClusterDiscoveryType::Type(kind)) if kind == original)
}

/// How its destinations are found.
pub(super) fn discovery(cluster: At<'_, proto::Cluster>) -> Option<OriginalCluster> {
    if cluster.value.load_assignment.is_some() {
        at!(cluster.load_assignment).refuse("is not for ORIGINAL_DST, whose endpoints are the destinations; remove it");
    }
    let cleanup_interval = match cluster.value.cleanup_interval {
        None => Some(DEFAULT_CLEANUP),
        Some(_) => at!(cluster.cleanup_interval).positive(),
    };
    let mut read = OriginalCluster { header: None, port: None, cleanup_interval: cleanup_interval? };
    if let Some(LbConfig::OriginalDstLbConfig(config)) = &cluster.value.lb_config {
        let config = cluster.field("original_dst_lb_config", config);
        read.header = header(config)?;
        let port = at!(config.upstream_port_override);
        if port.value.is_some() {
            read.port = Some(u16::try_from(port.within(1..=65_535)?).ok()?);
        }
        if config.value.metadata_key.is_some() {
            at!(config.metadata_key).refuse("metadata does not choose a destination; use use_http_header");
        }
    }
    Some(read)
}

/// The header that names a destination. The inner value is `None` where none does.
#[allow(clippy::option_option, reason = "refused, none, one")]
fn header(config: At<'_, OriginalDstLbConfig>) -> Option<Option<std::sync::Arc<str>>> {
    let name = at!(config.http_header_name);
    if !config.value.use_http_header {
        if !name.value.is_empty() {
            name.ignore();
        }
        return Some(None);
    }
    if name.value.is_empty() {
        return Some(Some(DEFAULT_HEADER.into()));
    }
    match HeaderName::from_bytes(name.value.as_bytes()) {
        Ok(read) => Some(Some(read.as_str().into())),
        Err(_) => {
            name.refuse(format_args!("{:?} is not a header name", name.value));
            None
        }
    }
}

/// There is nothing to choose between: as in Envoy, the policy says so.
pub(super) fn balancing(cluster: At<'_, proto::Cluster>) -> Option<LoadBalancing> {
    if let Some(list) = at!(cluster.load_balancing_policy).set() {
        list.refuse("is not for ORIGINAL_DST; use lb_policy CLUSTER_PROVIDED");
        return None;
    }
    let given = at!(cluster.lb_policy);
    match given.one_of::<LbPolicy>()? {
        LbPolicy::ClusterProvided => Some(LoadBalancing::RoundRobin),
        other => {
            given.refuse(format_args!("{} is not for ORIGINAL_DST; use CLUSTER_PROVIDED", other.as_str_name()));
            None
        }
    }
}
