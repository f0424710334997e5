//! Purpose: the policy that Envoy's messages cannot say, packed where Envoy skips it.

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::google::protobuf::Any;
use outrigger_xds_proto::any::{pack, pack_as_struct};
use outrigger_xds_proto::policy::v1::{ClusterPolicy, RoutePolicy};

use super::proto::bucket;
use crate::model::ObjectKey;
use crate::model::traffic_policy::TokenBucket;

/// Key of the cluster's policy in `metadata.typed_filter_metadata`.
pub(super) const CLUSTER_POLICY: &str = "outrigger.policy.v1.ClusterPolicy";
/// Key of the route's policy in `typed_per_filter_config`.
pub(super) const ROUTE_POLICY: &str = "outrigger.policy.v1.RoutePolicy";

/// The limit of a whole cluster.
pub(super) fn cluster_policy(limit: &TokenBucket, source: &ObjectKey) -> Any {
    pack_as_struct(&ClusterPolicy { local_rate_limit: Some(bucket(limit)), rule: source.to_string() })
}

/// Where a route comes from, and who set its retries.
pub(super) fn route_policy(route: &ObjectKey, retry: Option<(&ObjectKey, bool)>) -> Any {
    let policy = RoutePolicy {
        retry_non_idempotent: retry.map(|(_, non_idempotent)| non_idempotent),
        rule: retry.map(|(source, _)| source.to_string()).unwrap_or_default(),
        kind_namespace_name: format!("{}/{}/{}", route.kind, route.namespace, route.name),
    };
    let config = FilterConfig { config: Some(pack_as_struct(&policy)), is_optional: true, disabled: false };
    pack(&config)
}
