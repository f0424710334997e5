//! Purpose: a Service of the cluster and its EndpointSlices → one `Upstream` a port, as somebody would have written it.
//! Shape: pure; [`build_upstreams`] gives objects that went through `model`'s parser, or why there are none.
//!
//! ```text
//! conditions of an endpoint      ready ─▶ Unknown     not ready: serving and terminating ─▶ Draining, else not used
//! ```
//! Errors: [`Skip`] for a whole Service; a single port that cannot be one is left out with its reason.
//! Limits: TCP only. A name of more than 63 characters (`<service>-<port>`) is no name of an Upstream.
//! Source: Kubernetes, EndpointSlice conditions (KEP-1672); appProtocol (KEP-1507, KEP-3726).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde_json::{Value, json};

use crate::model::object::{is_dns_label, parse_manifest};
use crate::model::{Object, ObjectKey, Spec};

/// Why a Service, or one of its ports, is no Upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// It is a name for something outside of the cluster.
    #[error("type ExternalName has no endpoints of its own; calls pass through by name")]
    ExternalName,
    /// It has no port over TCP.
    #[error("it has no port over TCP")]
    NoPorts,
    /// A port's object would be refused.
    #[error("port {port}: {reason}")]
    Refused {
        /// Which.
        port: i32,
        /// Why.
        reason: String,
    },
}

/// What became of a Service.
#[derive(Debug, Clone, Default)]
pub(super) struct Derived {
    /// One object a port.
    pub objects: Vec<(ObjectKey, Arc<Object>)>,
    /// What was left out.
    pub skipped: Vec<Skip>,
}

/// The Upstreams of a Service.
#[must_use]
pub(super) fn build_upstreams<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
) -> Derived {
    let mut derived = Derived::default();
    let Some(spec) = &service.spec else {
        derived.skipped.push(Skip::NoPorts);
        return derived;
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        derived.skipped.push(Skip::ExternalName);
        return derived;
    }
    let is_tcp = |port: &&ServicePort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    for port in spec.ports.iter().flatten().filter(is_tcp) {
        let document = describe(service, port, slices.clone());
        match parse_manifest(&document, None) {
            Ok(manifest) => {
                let (key, mut spec, body) = (manifest.key, manifest.spec, manifest.body);
                if let Spec::Upstream(upstream) = &mut spec {
                    let used = upstream.endpoints.iter().map(|one| one.address).collect::<BTreeSet<_>>();
                    upstream.not_ready = addresses_of(port, slices.clone()).difference(&used).copied().collect();
                }
                let object = Object { key: key.clone(), spec, body, created: 0, changed: 0, generation: 1 };
                derived.objects.push((key, Arc::new(object)));
            }
            Err(problems) => {
                let reason = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                derived.skipped.push(Skip::Refused { port: port.port, reason });
            }
        }
    }
    if derived.objects.is_empty() && derived.skipped.is_empty() {
        derived.skipped.push(Skip::NoPorts);
    }
    derived
}

/// A port as an `Upstream` document.
fn describe<'a>(service: &Service, port: &ServicePort, slices: impl Iterator<Item = &'a EndpointSlice>) -> Value {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let spec = service.spec.as_ref();
    let mut addresses: Vec<&str> =
        spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten().map(String::as_str).collect();
    if addresses.is_empty() {
        addresses.extend(spec.and_then(|spec| spec.cluster_ip.as_deref()));
    }
    addresses.retain(|address| address.parse::<IpAddr>().is_ok());
    let mut upstream = json!({
        "serviceName": name,
        "port": port.port,
        "appProtocol": protocol_of(port),
        "endpoints": endpoints_of(port, slices),
    });
    if !addresses.is_empty() {
        upstream["addresses"] = json!(addresses);
    }
    if let Some(port_name) = &port.name {
        upstream["portName"] = json!(port_name);
    }
    json!({
        "apiVersion": "outrigger.dev/v1",
        "kind": "Upstream",
        "metadata": { "name": format!("{name}-{}", port.port), "namespace": namespace },
        "spec": upstream,
    })
}

/// What the endpoints speak: told by `appProtocol`, else by the first word of the port's name, else to be detected.
fn protocol_of(port: &ServicePort) -> &'static str {
    let told = port.app_protocol.as_deref().filter(|word| !word.is_empty());
    let named = port.name.as_deref().map(|name| name.split('-').next().unwrap_or(name));
    match told.or(named).unwrap_or_default().to_ascii_lowercase().as_str() {
        "http" | "http1" | "kubernetes.io/ws" => "http",
        "http2" | "h2c" | "kubernetes.io/h2c" => "h2c",
        "grpc" => "grpc",
        "tls" | "https" | "kubernetes.io/wss" => "tls",
        // Protocols in which the server may speak first, or which are none of ours to look into.
        "tcp" | "mysql" | "mariadb" | "postgres" | "postgresql" | "redis" | "mongo" | "mongodb" | "amqp" | "kafka"
        | "smtp" | "ftp" | "ssh" => "tcp",
        _ => "detect",
    }
}

/// The number that a port of a Service has in a slice.
fn number_in(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let is_it = |of: &&k8s_openapi::api::discovery::v1::EndpointPort| {
        of.name.as_deref().unwrap_or_default() == wanted
            && of.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    };
    let number = slice.ports.iter().flatten().find(is_it).and_then(|of| of.port)?;
    u16::try_from(number).ok().filter(|number| *number > 0)
}

fn parsed(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    endpoint.addresses.iter().filter_map(|address| address.parse().ok())
}

/// All addresses behind a port, whether they are used or not.
fn addresses_of<'a>(port: &ServicePort, slices: impl Iterator<Item = &'a EndpointSlice>) -> BTreeSet<SocketAddr> {
    let of = |slice: &'a EndpointSlice| {
        let number = number_in(slice, port);
        let at = move |address| Some(SocketAddr::new(address, number?));
        slice.endpoints.iter().flat_map(parsed).filter_map(at)
    };
    slices.flat_map(of).collect()
}

fn endpoints_of<'a>(port: &ServicePort, slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<Value> {
    let mut found: BTreeMap<SocketAddr, (bool, String)> = BTreeMap::new();
    for slice in slices {
        let Some(number) = number_in(slice, port) else { continue };
        for endpoint in &slice.endpoints {
            let Some(is_draining) = standing_of(endpoint) else { continue };
            let zone = endpoint.zone.as_deref().filter(|zone| is_dns_label(zone)).unwrap_or_default();
            for address in parsed(endpoint) {
                let entry = (is_draining, zone.to_owned());
                // While an endpoint moves between slices it is in both; one that is in use is believed.
                let known = found.entry(SocketAddr::new(address, number)).or_insert_with(|| entry.clone());
                if (known.0 && !is_draining) || (known.0 == is_draining && known.1 < entry.1) {
                    *known = entry;
                }
            }
        }
    }
    found.into_iter().map(|(address, (is_draining, zone))| to_endpoint(address, is_draining, &zone)).collect()
}

/// Whether an endpoint drains; `None`: it is not to be used at all.
fn standing_of(endpoint: &Endpoint) -> Option<bool> {
    let conditions = endpoint.conditions.as_ref();
    let is_ready = conditions.and_then(|one| one.ready).unwrap_or(true);
    if is_ready {
        return Some(false);
    }
    let serves = conditions.and_then(|one| one.serving).unwrap_or(false);
    let terminates = conditions.and_then(|one| one.terminating).unwrap_or(false);
    (serves && terminates).then_some(true)
}

fn to_endpoint(address: SocketAddr, is_draining: bool, zone: &str) -> Value {
    let health = if is_draining { "Draining" } else { "Unknown" };
    let mut endpoint = json!({ "address": address.to_string(), "health": health });
    if !zone.is_empty() {
        endpoint["zone"] = json!(zone);
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: Value) -> Service {
        serde_json::from_value(text).expect("a Service")
    }

    fn slice(text: Value) -> EndpointSlice {
        serde_json::from_value(text).expect("an EndpointSlice")
    }

    fn described(service: &Service, slices: &[EndpointSlice]) -> Vec<Value> {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
        ports.iter().map(|port| describe(service, port, slices.iter())["spec"].clone()).collect()
    }

    #[test]
    fn a_port_becomes_an_upstream_with_the_endpoints_of_every_slice() {
        let orders = service(json!({
            "metadata": { "name": "orders", "namespace": "shop" },
            "spec": { "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"], "ports": [
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "dns", "port": 53, "protocol": "UDP" },
            ]},
        }));
        let four = slice(json!({
            "metadata": { "name": "orders-1", "namespace": "shop" },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "dns", "port": 53, "protocol": "UDP" }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "conditions": { "ready": true }, "zone": "a" },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false, "serving": true, "terminating": true }, "zone": "b" },
                { "addresses": ["10.0.0.3"], "conditions": { "ready": false, "serving": false, "terminating": true } },
                { "addresses": ["10.0.0.4"], "conditions": { "ready": false, "serving": true, "terminating": false } },
                { "addresses": ["10.0.0.5"] },
            ],
        }));
        let six = slice(json!({
            "metadata": { "name": "orders-2", "namespace": "shop" },
            "addressType": "IPv6",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [{ "addresses": ["fd00::1"], "conditions": { "ready": true }, "zone": "a" }],
        }));
        let derived = build_upstreams(&orders, [&four, &six].into_iter());
        assert_eq!(derived.skipped, []);
        let [(key, _)] = derived.objects.as_slice() else { panic!("one port over TCP: {derived:?}") };
        assert_eq!(key.to_string(), "Upstream shop/orders-80");
        let Spec::Upstream(upstream) = &derived.objects[0].1.spec else { panic!("{derived:?}") };
        assert_eq!(upstream.not_ready, ["10.0.0.3:8080", "10.0.0.4:8080"].map(|one| one.parse().expect("an address")));
        assert_eq!(
            described(&orders, &[four, six])[0],
            json!({
                "serviceName": "orders", "port": 80, "portName": "http", "appProtocol": "http",
                "addresses": ["10.96.0.10", "fd00::10"],
                "endpoints": [
                    { "address": "10.0.0.1:8080", "health": "Unknown", "zone": "a" },
                    { "address": "10.0.0.2:8080", "health": "Draining", "zone": "b" },
                    { "address": "10.0.0.5:8080", "health": "Unknown" },
                    { "address": "[fd00::1]:8080", "health": "Unknown", "zone": "a" },
                ],
            })
        );
    }

    #[test]
    fn an_endpoint_in_two_slices_is_used_when_one_of_them_says_so() {
        let one = |ready: bool| {
            slice(json!({
                "metadata": { "name": "x" }, "addressType": "IPv4", "ports": [{ "port": 80 }],
                "endpoints": [{ "addresses": ["10.0.0.1"], "conditions":
                    { "ready": ready, "serving": true, "terminating": !ready } }],
            }))
        };
        let port = service(json!({ "spec": { "ports": [{ "port": 80 }] } }));
        for slices in [[one(true), one(false)], [one(false), one(true)]] {
            assert_eq!(described(&port, &slices)[0]["endpoints"][0]["health"], "Unknown");
        }
    }

    #[test]
    fn what_cannot_be_an_upstream_says_why() {
        let none: [EndpointSlice; 0] = [];
        let outside = service(json!({ "metadata": { "name": "pay", "namespace": "shop" },
            "spec": { "type": "ExternalName", "externalName": "pay.example.org" } }));
        assert_eq!(build_upstreams(&outside, none.iter()).skipped, [Skip::ExternalName]);
        let udp = service(json!({ "metadata": { "name": "dns", "namespace": "shop" },
            "spec": { "ports": [{ "port": 53, "protocol": "UDP" }] } }));
        assert_eq!(build_upstreams(&udp, none.iter()).skipped, [Skip::NoPorts]);
        let long = service(json!({ "metadata": { "name": "a".repeat(62), "namespace": "shop" },
            "spec": { "ports": [{ "port": 80 }] } }));
        let skipped = build_upstreams(&long, none.iter()).skipped;
        assert!(matches!(skipped.as_slice(), [Skip::Refused { port: 80, .. }]), "{skipped:?}");
    }

    #[test]
    fn a_headless_service_has_endpoints_and_no_addresses() {
        let headless = service(json!({ "metadata": { "name": "db", "namespace": "shop" },
            "spec": { "clusterIP": "None", "clusterIPs": ["None"], "ports": [{ "name": "mysql", "port": 3306 }] } }));
        let spec = &described(&headless, &[])[0];
        assert_eq!(spec.get("addresses"), None);
        assert_eq!(spec["appProtocol"], "tcp");
    }

    #[test]
    fn the_protocol_comes_from_app_protocol_then_from_the_name() {
        for (told, name, wanted) in [
            (None, Some("http"), "http"),
            (None, Some("http2-api"), "h2c"),
            (None, Some("grpc-web"), "grpc"),
            (None, Some("https"), "tls"),
            (None, Some("redis"), "tcp"),
            (None, Some("web"), "detect"),
            (None, None, "detect"),
            (Some("kubernetes.io/h2c"), Some("tcp"), "h2c"),
            (Some("kubernetes.io/wss"), None, "tls"),
            (Some("example.org/own"), Some("http"), "detect"),
        ] {
            let port = ServicePort {
                app_protocol: told.map(str::to_owned),
                name: name.map(str::to_owned),
                ..ServicePort::default()
            };
            assert_eq!(protocol_of(&port), wanted, "{told:?} {name:?}");
        }
    }
}
