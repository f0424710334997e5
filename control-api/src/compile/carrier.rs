//! Purpose: the policy that Envoy's messages cannot say, packed where Envoy skips it.

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::proto::bucket;
use crate::model::ObjectKey;
use crate::model::traffic_policy::TokenBucket;

/// Key of the cluster's policy in `metadata.typed_filter_metadata`.
pub(super) const CLUSTER_POLICY: &str = "outrigger.policy.v1.ClusterPolicy";
/// Key of the route's policy in `typed_per_filter_config`.
pub(super) const ROUTE_POLICY: &str = "outrigger.policy.v1.RoutePolicy";

/// The limit of a whole cluster.
pub(super) fn cluster_policy(limit: &TokenBucket, source: &ObjectKey) -> Any {
    pack(&ClusterPolicy { local_rate_limit: Some(bucket(limit)), rule: source.to_string() })
}

/// Where a route comes from, and who set its retries.
pub(super) fn route_policy(route: &ObjectKey, retry: Option<(&ObjectKey, bool)>) -> Any {
    let policy = RoutePolicy {
        retry_non_idempotent: retry.map(|(_, non_idempotent)| non_idempotent),
        rule: retry.map(|(source, _)| source.to_string()).unwrap_or_default(),
        kind_namespace_name: format!("{}/{}/{}", route.kind, route.namespace, route.name),
    };
    let config = FilterConfig { config: Some(pack(&policy)), is_optional: true, disabled: false };
    envoy_types::util::pack_any(config)
}

fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

#[derive(Clone, PartialEq, Message)]
struct ClusterPolicy {
    #[prost(message, optional, tag = "1")]
    local_rate_limit: Option<envoy_types::pb::envoy::r#type::v3::TokenBucket>,
    #[prost(string, tag = "2")]
    rule: String,
}

impl Name for ClusterPolicy {
    const NAME: &'static str = "ClusterPolicy";
    const PACKAGE: &'static str = "outrigger.policy.v1";
    fn type_url() -> String {
        "type.googleapis.com/outrigger.policy.v1.ClusterPolicy".to_owned()
    }
}

#[derive(Clone, PartialEq, Message)]
struct RoutePolicy {
    #[prost(bool, optional, tag = "1")]
    retry_non_idempotent: Option<bool>,
    #[prost(string, tag = "2")]
    rule: String,
    #[prost(string, tag = "3")]
    kind_namespace_name: String,
}

impl Name for RoutePolicy {
    const NAME: &'static str = "RoutePolicy";
    const PACKAGE: &'static str = "outrigger.policy.v1";
    fn type_url() -> String {
        "type.googleapis.com/outrigger.policy.v1.RoutePolicy".to_owned()
    }
}
