//! Purpose: policy → xDS, as a pure function of the stored objects and a node's role.
//! Shape: a [`Snapshot`] is one revision compiled; clusters and endpoint sets are the same for every
//! node, route tables differ by namespace (short names), listeners by node. Parts that many nodes
//! share are compiled once and shared.
//! Units: as Envoy's messages.
//! Errors: none; what does not compile was refused by `model`. A reference left dangling by a forced
//! delete compiles to a cluster nobody has, which answers 503.
//! Source: XDS.md's strictest reader (§5); Gateway API's precedence of matches.
//! Tests: `tests.rs` (golden), rank.

mod access;
mod captured;
mod carrier;
mod cluster;
mod effective;
mod endpoints;
mod listener;
mod proto;
mod rank;
mod resource;
mod role;
mod route;
mod rule;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub use resource::{Digest, Resource, ResourceSet, ResourceType};
pub use role::{Capture, CapturedOutbound, Inbound, NodeRole};

use crate::model::PolicySet;

/// One revision of the policy, compiled.
#[derive(Debug)]
pub struct Snapshot {
    policy: Arc<PolicySet>,
    clusters: ResourceSet,
    endpoints: Arc<ResourceSet>,
    /// Route tables by namespace, made when the first node of a namespace asks.
    routes: Mutex<BTreeMap<String, Arc<ResourceSet>>>,
    /// All of it by role: the replicas of a service share one.
    roles: Mutex<BTreeMap<NodeRole, NodeResources>>,
    /// Who may call, made when the first node with an inbound port asks.
    guards: OnceLock<access::Guards>,
    /// What pods with captured traffic share, made when the first of them asks.
    captured: OnceLock<Captured>,
}

/// How a pod is captured, with the words of its namespace, and how long it waits for a client.
type OutboundKey = (CapturedOutbound, Option<Duration>);

/// What pods with captured traffic share.
#[derive(Debug)]
struct Captured {
    clusters: ResourceSet,
    routes: Arc<ResourceSet>,
    ports: captured::InboundPorts,
    /// Outbound ones, by what they depend on.
    listeners: Mutex<BTreeMap<OutboundKey, Resource>>,
}

/// What one node is to have, per type.
#[derive(Debug, Clone, Default)]
pub struct NodeResources {
    /// The policy revision it comes from.
    pub revision: u64,
    sets: [Arc<ResourceSet>; 4],
}

impl NodeResources {
    /// The resources of one type.
    #[must_use]
    pub fn of(&self, kind: ResourceType) -> &ResourceSet {
        match kind {
            ResourceType::Cluster => &self.sets[0],
            ResourceType::Endpoints => &self.sets[1],
            ResourceType::Listener => &self.sets[2],
            ResourceType::Routes => &self.sets[3],
        }
    }
}

impl Snapshot {
    /// Compiles what all nodes share.
    #[must_use]
    pub fn compile(policy: Arc<PolicySet>) -> Self {
        let clusters = cluster::compile_clusters(&policy);
        let endpoints = Arc::new(endpoints::compile_endpoints(&policy));
        let (routes, roles) = (Mutex::default(), Mutex::default());
        let (guards, captured) = (OnceLock::new(), OnceLock::new());
        Self { policy, clusters, endpoints, routes, roles, guards, captured }
    }

    /// The policy this was compiled from.
    #[must_use]
    pub fn policy(&self) -> &Arc<PolicySet> {
        &self.policy
    }

    /// The policy revision this was compiled from.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.policy.revision
    }

    /// What a node of this role is to have.
    #[must_use]
    pub fn for_node(&self, role: &NodeRole) -> NodeResources {
        let mut roles = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        roles.entry(role.clone()).or_insert_with(|| self.compile_role(role)).clone()
    }

    fn compile_role(&self, role: &NodeRole) -> NodeResources {
        if let Some(capture) = &role.capture {
            return self.compile_captured(&role.namespace, capture);
        }
        let mut clusters = self.clusters.clone();
        if let Some(inbound) = &role.inbound {
            clusters.insert(listener::inbound_cluster(inbound));
        }
        NodeResources {
            revision: self.revision(),
            sets: [
                Arc::new(clusters),
                self.endpoints.clone(),
                Arc::new(listener::compile_listeners((&self.policy, self.guards()), role)),
                self.routes_of(&role.namespace),
            ],
        }
    }

    fn compile_captured(&self, namespace: &str, capture: &Capture) -> NodeResources {
        let shared = self.captured.get_or_init(|| {
            let mut clusters = self.clusters.clone();
            captured::outbound_clusters().into_iter().for_each(|cluster| clusters.insert(cluster));
            Captured {
                clusters,
                routes: Arc::new(route::compile_service_routes(&self.policy)),
                ports: captured::InboundPorts::of(&self.policy),
                listeners: Mutex::default(),
            }
        });
        let config = self.policy.mesh_config(namespace);
        let outbound = {
            let mut listeners = shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            let allows_any = capture.outbound.allows_any.or(config.allows_any);
            let key = (CapturedOutbound { allows_any, ..capture.outbound }, config.detection_timeout);
            let make = || captured::outbound_listener(&self.policy, key.0, key.1);
            listeners.entry(key).or_insert_with(make).clone()
        };
        let workload = capture.addresses.iter().find_map(|address| self.policy.workloads.at(*address));
        let probes = workload.map_or(&[][..], |pod| &pod.probes);
        let pod = captured::Pod { capture, namespace, guards: self.guards(), config: &config, probes };
        let (inbound, own) = captured::inbound(&pod, &shared.ports.at(&capture.addresses));
        let mut clusters = shared.clusters.clone();
        own.into_iter().for_each(|cluster| clusters.insert(cluster));
        let listeners = [outbound, inbound].into_iter().collect();
        NodeResources {
            revision: self.revision(),
            sets: [Arc::new(clusters), self.endpoints.clone(), Arc::new(listeners), shared.routes.clone()],
        }
    }

    fn guards(&self) -> &access::Guards {
        self.guards.get_or_init(|| access::Guards::of(&self.policy))
    }

    fn routes_of(&self, namespace: &str) -> Arc<ResourceSet> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || Arc::new(route::compile_routes(&self.policy, namespace));
        routes.entry(namespace.to_owned()).or_insert_with(compile).clone()
    }
}
