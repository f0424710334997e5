//! Purpose: the cluster's Pods and Namespaces as they are now, and the [`Workloads`] that follow from them.
//! Shape: pure; [`Pods`] takes watch events in any order. A Pod is a large object of which little counts: [`PodView`] reads that
//! and steps over the rest.
//! Limits: a pod on its node's network is none of ours (its address is the node's); one that ended has no address any more.
//! Tests: foot (orders of events, changes that change nothing).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use super::registry::{Name, name_of};
use super::watch::Event;
use crate::inject::PROXY_CONTAINER;
use crate::model::workload::{Labels, Probe};
use crate::model::{Workload, Workloads};

/// The fields of a Pod that are read.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodView {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: SpecView,
    #[serde(default)]
    status: StatusView,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecView {
    host_network: Option<bool>,
    service_account_name: Option<String>,
    containers: Option<Vec<ContainerView>>,
    init_containers: Option<Vec<ContainerView>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerView {
    #[serde(default)]
    name: String,
    ports: Option<Vec<PortView>>,
    liveness_probe: Option<ProbeView>,
    readiness_probe: Option<ProbeView>,
    startup_probe: Option<ProbeView>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortView {
    name: Option<String>,
    #[serde(default)]
    container_port: i32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProbeView {
    http_get: Option<HttpGetView>,
    grpc: Option<GrpcView>,
}

#[derive(Debug, Clone, Deserialize)]
struct HttpGetView {
    port: IntOrString,
    path: Option<String>,
    scheme: Option<String>,
    host: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct GrpcView {
    #[serde(default)]
    port: i32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusView {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    address: Option<String>,
    #[serde(rename = "podIPs")]
    addresses: Option<Vec<AddressView>>,
}

#[derive(Debug, Clone, Deserialize)]
struct AddressView {
    #[serde(default)]
    ip: String,
}

/// The API server knows it as a Pod.
impl kube::Resource for PodView {
    type DynamicType = ();
    type Scope = <Pod as kube::Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Pods and the labels of namespaces.
#[derive(Debug, Default)]
pub(super) struct Pods {
    workloads: BTreeMap<Name, Workload>,
    namespaces: BTreeMap<String, Labels>,
    is_changed: bool,
}

impl Pods {
    /// Takes what was seen of Pods.
    pub(super) fn take_pod(&mut self, event: Event<PodView>) {
        self.is_changed |= take(&mut self.workloads, event, |pod| (name_of(&pod.metadata), read(pod)));
    }

    /// Takes what was seen of Namespaces.
    pub(super) fn take_namespace(&mut self, event: Event<Namespace>) {
        self.is_changed |= take(&mut self.namespaces, event, |Namespace { metadata, .. }| {
            (metadata.name.unwrap_or_default(), Some(metadata.labels.unwrap_or_default()))
        });
    }

    /// What there is, if that differs from when this was last asked.
    pub(super) fn refresh(&mut self) -> Option<Workloads> {
        std::mem::take(&mut self.is_changed)
            .then(|| Workloads::new(self.workloads.values().cloned(), self.namespaces.clone()))
    }

    /// How many pods and namespaces there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.workloads.len(), self.namespaces.len())
    }
}

/// Takes an event into what is kept of a kind, of which `read` keeps nothing where it gives no value; whether that changed.
fn take<T, K: Ord, V: PartialEq>(
    kept: &mut BTreeMap<K, V>,
    event: Event<T>,
    read: impl Fn(T) -> (K, Option<V>),
) -> bool {
    let (key, value) = match event {
        Event::Applied(one) => read(one),
        Event::Deleted(one) => (read(one).0, None),
        Event::Listed(all) => {
            let listed = all.into_iter().map(read).filter_map(|(key, value)| Some((key, value?))).collect();
            let before = std::mem::replace(kept, listed);
            return *kept != before;
        }
    };
    if kept.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => kept.insert(key, value),
        None => kept.remove(&key),
    };
    true
}

fn read(pod: PodView) -> Option<Workload> {
    let StatusView { phase, address, addresses } = pod.status;
    let is_over = matches!(phase.as_deref(), Some("Succeeded" | "Failed"));
    if is_over || pod.spec.host_network == Some(true) {
        return None;
    }
    let written = addresses.unwrap_or_default().into_iter().map(|one| one.ip).chain(address);
    let mut addresses: Vec<IpAddr> = written.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let (namespace, name) = name_of(&pod.metadata);
    let probes = probes_of(&pod.spec);
    Some(Workload {
        namespace,
        name,
        service_account: pod.spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
        labels: pod.metadata.labels.unwrap_or_default(),
        addresses,
        probes,
    })
}

/// What the node asks the pod. What is encrypted nobody but the pod can read, and elsewhere is not asked of the pod.
fn probes_of(spec: &SpecView) -> Vec<Probe> {
    let containers = [&spec.containers, &spec.init_containers].into_iter().flatten().flatten();
    // What is asked of the proxy does not pass through it.
    let containers = containers.filter(|container| container.name != PROXY_CONTAINER);
    let asked = containers.flat_map(|container| {
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        probes
            .into_iter()
            .flatten()
            .filter_map(|probe| read_probe(probe, container.ports.as_deref().unwrap_or_default()))
    });
    asked.collect::<BTreeSet<_>>().into_iter().collect()
}

fn read_probe(probe: &ProbeView, ports: &[PortView]) -> Option<Probe> {
    if let Some(GrpcView { port }) = probe.grpc {
        // The gRPC health checking protocol's one call.
        let path = "/grpc.health.v1.Health/Check".to_owned();
        return Some(Probe { port: u16::try_from(port).ok()?, method: "POST", path });
    }
    let get = probe.http_get.as_ref()?;
    if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") || get.host.is_some() {
        return None;
    }
    let number = match &get.port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => ports.iter().find(|port| port.name.as_ref() == Some(name))?.container_port,
    };
    let written = get.path.as_deref().unwrap_or_default();
    let path = written.split(['?', '#']).next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Some(Probe { port: u16::try_from(number).ok()?, method: "GET", path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, over: Value) -> PodView {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "shop", "labels": { "app": name }, "resourceVersion": "1" },
            "spec": { "containers": [{ "name": "app", "image": "shop" }], "serviceAccountName": "seller" },
            "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
        });
        merge(&mut pod, over);
        serde_json::from_value(pod).expect("a Pod")
    }

    fn merge(into: &mut Value, over: Value) {
        match (into, over) {
            (Value::Object(into), Value::Object(over)) => {
                over.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
            }
            (into, over) => *into = over,
        }
    }

    fn namespace(name: &str, team: &str) -> Namespace {
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "team": team } } }))
            .expect("a Namespace")
    }

    #[test]
    fn a_pod_is_what_selectors_see_of_it() {
        let mut pods = Pods::default();
        pods.take_pod(Event::Applied(pod("cart", json!({}))));
        let workloads = pods.refresh().expect("a change");
        let cart = workloads.at("fd00::1".parse().expect("an address")).expect("the pod");
        assert_eq!((cart.name.as_str(), cart.service_account.as_str()), ("cart", "seller"));
        assert_eq!(cart.labels.get("app").map(String::as_str), Some("cart"));
        assert_eq!(cart.addresses.len(), 2);
    }

    #[test]
    fn what_a_node_asks_is_known_by_port_method_and_path() {
        let spec = json!({ "spec": {
            "containers": [{
                "name": "app", "image": "shop", "ports": [{ "name": "web", "containerPort": 8080 }],
                "livenessProbe": { "httpGet": { "port": "web", "path": "/live?deep=1" } },
                "readinessProbe": { "httpGet": { "port": 8081 } },
                "startupProbe": { "httpGet": { "port": 8443, "path": "/live", "scheme": "HTTPS" } },
            }],
            "initContainers": [
                { "name": "outrigger-proxy", "image": "x", "startupProbe": { "httpGet": { "port": 15021, "path": "/ready" } } },
                { "name": "side", "image": "shop", "startupProbe": { "grpc": { "port": 50051 } } },
                { "name": "other", "image": "shop", "livenessProbe": { "tcpSocket": { "port": 3306 } },
                  "readinessProbe": { "httpGet": { "port": 80, "path": "/x", "host": "elsewhere" } },
                  "startupProbe": { "httpGet": { "port": "nowhere" } } },
            ],
        }});
        let mut pods = Pods::default();
        pods.take_pod(Event::Applied(pod("cart", spec)));
        let workloads = pods.refresh().expect("a change");
        let probe = |port, method, path: &str| Probe { port, method, path: path.to_owned() };
        assert_eq!(
            workloads.iter().next().expect("a pod").probes,
            [
                probe(8080, "GET", "/live"),
                probe(8081, "GET", "/"),
                probe(50051, "POST", "/grpc.health.v1.Health/Check"),
            ]
        );
    }

    #[test]
    fn what_changes_nothing_of_it_wakes_nobody() {
        let mut pods = Pods::default();
        pods.take_pod(Event::Applied(pod("cart", json!({}))));
        pods.take_namespace(Event::Applied(namespace("shop", "a")));
        assert!(pods.refresh().is_some());
        let newer = json!({ "metadata": { "resourceVersion": "2", "annotations": { "a": "b" } }, "status": { "startTime": "2026-01-01T00:00:00Z" } });
        pods.take_pod(Event::Applied(pod("cart", newer)));
        pods.take_pod(Event::Listed(vec![pod("cart", json!({}))]));
        pods.take_namespace(Event::Listed(vec![namespace("shop", "a")]));
        assert_eq!(pods.refresh(), None);
        pods.take_namespace(Event::Applied(namespace("shop", "b")));
        assert!(pods.refresh().is_some());
    }

    #[test]
    fn what_has_no_address_of_its_own_is_left_out() {
        let mut pods = Pods::default();
        pods.take_pod(Event::Listed(vec![
            pod("node", json!({ "spec": { "hostNetwork": true } })),
            pod("done", json!({ "status": { "phase": "Succeeded" } })),
            pod("failed", json!({ "status": { "phase": "Failed" } })),
        ]));
        assert_eq!((pods.refresh(), pods.counts()), (None, (0, 0)));
        pods.take_pod(Event::Applied(pod("cart", json!({}))));
        assert_eq!(pods.counts(), (1, 0));
        // It ends, and its address is free for another.
        pods.take_pod(Event::Applied(pod("cart", json!({ "status": { "phase": "Succeeded" } }))));
        assert_eq!(pods.counts(), (0, 0));
    }

    #[test]
    fn a_list_takes_away_what_it_does_not_hold() {
        let mut pods = Pods::default();
        pods.take_pod(Event::Applied(pod("old", json!({}))));
        pods.take_namespace(Event::Applied(namespace("old", "a")));
        pods.take_pod(Event::Listed(vec![pod("new", json!({}))]));
        pods.take_namespace(Event::Listed(vec![namespace("new", "a"), namespace("other", "a")]));
        let workloads = pods.refresh().expect("a change");
        assert_eq!(workloads.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["new"]);
        assert_eq!((pods.counts(), workloads.namespace_labels("old")), ((1, 2), None));
        pods.take_pod(Event::Deleted(pod("new", json!({}))));
        pods.take_namespace(Event::Deleted(namespace("new", "a")));
        assert_eq!(pods.counts(), (0, 1));
    }

    #[test]
    fn a_pod_that_has_no_status_yet_is_known_by_its_labels() {
        let bare = json!({ "metadata": { "name": "bare", "namespace": "shop" } });
        let mut pods = Pods::default();
        pods.take_pod(Event::Applied(serde_json::from_value(bare).expect("a Pod")));
        let workloads = pods.refresh().expect("a change");
        assert_eq!(workloads.iter().next().map(|one| one.service_account.as_str()), Some("default"));
    }
}
