//! Purpose: what the control plane may do in a cluster: exactly the rules that it needs, which the chart copies.
//! Shape: rules for a ClusterRole and for a Role in the control plane's own namespace, by what is switched on.
//! Tests: the interop tests run the control plane under these and nothing else.
//!
//! ```yaml
//! # ClusterRole; registry: services from the cluster (--registry kubernetes, --store kubernetes)
//! - { apiGroups: [""], resources: [namespaces, pods, services], verbs: [list, watch] }
//! - { apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch] }
//! # policy from the cluster (--store kubernetes); create, patch and delete are for the REST API's writes
//! - { apiGroups: [outrigger.dev], resources: [accesspolicies, meshconfigs, ratelimits, trafficpolicies, upstreams], verbs: [list, watch, create, patch, delete] }
//! - { apiGroups: [outrigger.dev], resources: [accesspolicies/status, meshconfigs/status, ratelimits/status, trafficpolicies/status, upstreams/status], verbs: [patch] }
//! - { apiGroups: [gateway.networking.k8s.io], resources: [grpcroutes, httproutes], verbs: [list, watch, create, patch, delete] }
//! - { apiGroups: [gateway.networking.k8s.io], resources: [grpcroutes/status, httproutes/status], verbs: [patch] }
//! # Role in the release's namespace: who writes statuses (--store kubernetes)
//! - { apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create] }
//! - { apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [outrigger-control], verbs: [get, update] }
//! ```

use serde_json::{Value, json};

use super::lease::LEASE;

/// Rules of the ClusterRole for reading Services and pods.
#[must_use]
pub fn registry_rules() -> Vec<Value> {
    vec![
        rule("", &["namespaces", "pods", "services"], &["list", "watch"]),
        rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
    ]
}

/// Rules of the ClusterRole for keeping policy in the cluster, beside [`registry_rules`].
#[must_use]
pub fn policy_rules() -> Vec<Value> {
    const OBJECTS: [&str; 5] = ["list", "watch", "create", "patch", "delete"];
    let own = ["accesspolicies", "meshconfigs", "ratelimits", "trafficpolicies", "upstreams"];
    let gateway = ["grpcroutes", "httproutes"];
    vec![
        rule("outrigger.dev", &own, &OBJECTS),
        rule("outrigger.dev", &own.map(|plural| format!("{plural}/status")), &["patch"]),
        rule("gateway.networking.k8s.io", &gateway, &OBJECTS),
        rule("gateway.networking.k8s.io", &gateway.map(|plural| format!("{plural}/status")), &["patch"]),
    ]
}

/// Rules of the Role in the control plane's own namespace.
#[must_use]
pub fn own_rules() -> Vec<Value> {
    let group = "coordination.k8s.io";
    let mut held = rule(group, &["leases"], &["get", "update"]);
    held["resourceNames"] = json!([LEASE]);
    vec![rule(group, &["leases"], &["create"]), held]
}

fn rule<R: serde::Serialize>(group: &str, resources: &[R], verbs: &[&str]) -> Value {
    json!({ "apiGroups": [group], "resources": resources, "verbs": verbs })
}
