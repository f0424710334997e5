//! Purpose: the whole way into a pod, without a node: the chart installed by Helm at a real Kubernetes API, the control
//! plane and every pod run as a kubelet would run what the API then has. Run by `make interop`, as root.
//!
//! Shape: [`Mesh`] is a node, the API, the control plane's pod and a controller that keeps EndpointSlices; pods are posted
//! to the API, which asks the webhook, and what comes back is run. Traffic is made inside of a pod's namespace.
//!
//! ```text
//! helm ▶ API ◀─ control plane (pod)      pod ▶ API ▶ webhook ▶ kubelet ▶ nft rules, proxy, application
//!                   └── xDS ──▶ proxies        Services, slices, routes ─▶ control plane
//! ```
//! Errors: without root, `crun` or the tools of `make interop` it fails and says so.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod mesh;
mod rollout;

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::world::kubelet::Pod;
use outrigger_tests::world::{Answer, Downstream, Upstream, wait_for};
use serde_json::{Value, json};

use mesh::{Setup, text};

const SHOP: &str = "shop";
const SOON: Duration = Duration::from_secs(20);

fn route(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": SHOP },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders", "port": 80 }],
            "rules": [{
                "filters": [{ "type": "ResponseHeaderModifier", "responseHeaderModifier": {
                    "set": [{ "name": "x-policy", "value": version }],
                } }],
                "backendRefs": [{ "name": "orders", "port": 80 }],
            }],
        },
    })
}

/// What runs a mesh under a seccomp profile, and which driver its proxies then take.
fn captured_pods_are_a_mesh(setup: &Setup, driver: &str) {
    mesh::with(setup, |mesh| {
        let said = mesh.helm_test();
        assert!(said.contains("Succeeded"), "{said}");
        mesh.kube.namespace(SHOP, &[("outrigger.dev/inject", "enabled")]).unwrap();
        let address = mesh.service(SHOP, "orders", 80, 8080);
        // One is told what it is by its environment, the other by a file.
        let from_file = [("outrigger.dev/bootstrap-from", "projected-file")];
        let orders =
            [mesh.server(SHOP, "orders", "orders-1"), mesh.annotated_server(SHOP, "orders", "orders-2", &from_file)];
        let shopper = mesh.server(SHOP, "shopper", "shopper");
        for pod in orders.iter().chain([&shopper]) {
            pod.wait_ready();
            let said = mesh.metrics(pod);
            assert!(said.contains("outrigger_capture_proven 1"), "{said}");
            let wanted = format!("outrigger_io_driver{{driver=\"{driver}\"");
            assert!(said.lines().any(|line| line.starts_with(&wanted)), "{wanted}: {said}");
        }

        // A request to the Service's address, as an application makes it, reaches both, and each by its own sidecar.
        let mut names = std::collections::BTreeSet::new();
        wait_for("both pods to answer", SOON, || {
            let name = shopper.place.inside(|| get(address, "/health"))?;
            names.insert(name.clone());
            if names.len() == 2 { Ok(()) } else { Err(format!("{names:?}")) }
        });
        for pod in &orders {
            wait_for("the request to be counted where it came in", SOON, || {
                let said = mesh.metrics(pod);
                let counted = said.lines().any(|line| {
                    line.starts_with("outrigger_cluster_requests_total{")
                        && line.contains("inbound/orders.shop/8080")
                        && !line.ends_with(" 0")
                });
                if counted { Ok(()) } else { Err(said) }
            });
        }

        let outside = Upstream::start_at((mesh.node.place.address, 0).into(), |_| Answer::status(200).body("outside"));
        what_nobody_knows_is_passed_on_or_closed(mesh, (&shopper, address), outside.address());
        access::who_may_call(mesh, (&orders, &shopper), address);

        // Policy, as kubectl would apply it: it runs, and the resource says so.
        mesh.kube.apply(&route("orders", "one")).unwrap();
        wait_for("the route to hold", SOON, || {
            let answer =
                shopper.place.inside(|| Downstream::connect(address).and_then(|mut client| client.get("/health")));
            let answer = answer.map_err(|error| error.to_string())?;
            let policy = answer.headers.first("x-policy");
            if policy.as_deref() == Some("one") { Ok(()) } else { Err(format!("{answer:?}")) }
        });
        wait_for("the route's status", SOON, || {
            let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/orders";
            let found = mesh.kube.get(path).map_err(|error| error.to_string())?.unwrap_or_default();
            let conditions = found.pointer("/status/parents/0/conditions").and_then(Value::as_array).cloned();
            let is = |kind: &str| conditions.iter().flatten().any(|one| one["type"] == kind && one["status"] == "True");
            if is("Accepted") && is("Programmed") { Ok(()) } else { Err(found["status"].to_string()) }
        });
        mesh.kube
            .apply(&json!({
                "apiVersion": "outrigger.dev/v1", "kind": "RateLimit",
                "metadata": { "name": "orders", "namespace": SHOP },
                "spec": { "targetRefs": [{ "kind": "HTTPRoute", "name": "orders" }], "requests": 1, "per": "1h" },
            }))
            .unwrap();
        wait_for("the limit to hold", SOON, || {
            let answer =
                shopper.place.inside(|| Downstream::connect(address).and_then(|mut client| client.get("/health")));
            let answer = answer.map_err(|error| error.to_string())?;
            if answer.status == 429 && answer.headers.first("outrigger-fault").is_some() {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            }
        });

        // A connection made straight to the proxy's ports goes nowhere, and the proxy serves on.
        for port in [15_001, 15_006] {
            let straight = shopper.place.inside(|| get((shopper.place.address, port).into(), "/"));
            assert!(straight.is_err(), "{port}: {straight:?}");
        }
        assert!(shopper.place.inside(|| get(outside.address(), "/")).is_ok());
    });
}

fn what_nobody_knows_is_passed_on_or_closed(
    mesh: &mesh::Mesh<'_>,
    (shopper, address): (&Pod, SocketAddr),
    outside: SocketAddr,
) {
    // What is no service of the mesh is passed on.
    let passed = shopper.place.inside(|| get(outside, "/"));
    assert_eq!(passed.unwrap(), "outside");
    // Unless the mesh says otherwise, which pods that run hear of too.
    let closed = json!({
        "apiVersion": "outrigger.dev/v1", "kind": "MeshConfig",
        "metadata": { "name": "mesh", "namespace": mesh::SYSTEM }, "spec": { "outboundTraffic": "RegistryOnly" },
    });
    mesh.kube.apply(&closed).unwrap();
    let ask = || shopper.place.inside(|| get(outside, "/"));
    wait_for("what nobody knows to be closed", SOON, || ask().map_or(Ok(()), Err));
    assert!(shopper.place.inside(|| get(address, "/health")).is_ok(), "services are open");
    mesh.kube.delete(&format!("/apis/outrigger.dev/v1/namespaces/{}/meshconfigs/mesh", mesh::SYSTEM)).unwrap();
    wait_for("it to be open again", SOON, || ask().map(drop));
}

fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let answer =
        Downstream::connect(address).and_then(|mut client| client.get(path)).map_err(|error| error.to_string())?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    let name = serde_json::from_str::<Value>(&body).ok().map(|value| text(&value, "/name"));
    match answer.status {
        200 => Ok(name.unwrap_or(body)),
        status => Err(format!("{status}: {body}")),
    }
}

#[test]
#[ignore = "runs pods: make interop"]
fn captured_pods_are_a_mesh_under_the_profile_that_allows_io_uring() {
    captured_pods_are_a_mesh(&Setup { installs_profile: true }, "uring");
}

#[test]
#[ignore = "runs pods: make interop"]
fn captured_pods_are_a_mesh_under_the_runtimes_own_profile() {
    captured_pods_are_a_mesh(&Setup { installs_profile: false }, "epoll");
}
