//! Purpose: who may call whom, by what the pods are: policy as resources, refusals by the callee's own sidecar.

use std::sync::Arc;

use outrigger_tests::world::kubelet::Pod;
use outrigger_tests::world::{Downstream, Response, wait_for};
use serde_json::{Value, json};

use super::mesh::Mesh;
use super::{SHOP, SOON};

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "outrigger.dev/v1", "kind": "AccessPolicy",
        "metadata": { "name": name, "namespace": SHOP }, "spec": spec,
    })
}

fn ask(from: &Pod, address: std::net::SocketAddr, method: &str) -> Result<Response, String> {
    from.place
        .inside(|| Downstream::connect(address).and_then(|mut client| client.request(method, "/anything", &[], b"")))
        .map_err(|error| error.to_string())
}

fn wait_verdict(from: &Pod, address: std::net::SocketAddr, method: &str, is_refused: bool) {
    let what = format!("{method} of {} to be {}", from.name, if is_refused { "refused" } else { "let in" });
    wait_for(&what, SOON, || {
        let answer = ask(from, address, method)?;
        let refused = answer.status == 403 && answer.fault_kind() == "local/authorize/denied";
        if refused == is_refused { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

/// The namespace is closed; `orders` may be read by pods labelled `shopper`, and by nobody else.
pub(crate) fn who_may_call(mesh: &Mesh<'_>, (orders, shopper): (&[Arc<Pod>], &Pod), address: std::net::SocketAddr) {
    let stranger = mesh.server(SHOP, "stranger", "stranger");
    stranger.wait_ready();
    wait_verdict(&stranger, address, "GET", false);

    mesh.kube.apply(&policy("closed", &json!({}))).unwrap();
    let readers = json!([{ "podSelector": { "matchLabels": { "app": "shopper" } } }]);
    let spec = json!({
        "targetRefs": [{ "kind": "Service", "name": "orders" }],
        "rules": [{ "from": readers, "to": [{ "methods": ["GET"] }] }],
    });
    mesh.kube.apply(&policy("readers", &spec)).unwrap();
    wait_verdict(&stranger, address, "GET", true);
    wait_verdict(shopper, address, "GET", false);
    wait_verdict(shopper, address, "POST", true);
    // Of no service, and closed too, straight at the pod.
    wait_verdict(&stranger, (shopper.place.address, 8080).into(), "GET", true);
    wait_for("the policy's status", SOON, || {
        let path = "/apis/outrigger.dev/v1/namespaces/shop/accesspolicies/readers";
        let found = mesh.kube.get(path).map_err(|error| error.to_string())?.unwrap_or_default();
        let conditions = found.pointer("/status/conditions").and_then(Value::as_array).cloned();
        let is = |kind: &str| conditions.iter().flatten().any(|one| one["type"] == kind && one["status"] == "True");
        if is("Accepted") && is("ResolvedRefs") && is("Programmed") { Ok(()) } else { Err(found["status"].to_string()) }
    });

    // Another label, as `kubectl label` writes it, and the stranger is none.
    let path = "/api/v1/namespaces/shop/pods/stranger";
    let label = json!({ "metadata": { "labels": { "app": "shopper" } } }).to_string();
    assert_eq!(mesh.kube.call("PATCH", path, "application/merge-patch+json", &label).unwrap().0, 200);
    wait_verdict(&stranger, address, "GET", false);

    // Their node asked all the while how they are.
    for pod in orders.iter().map(Arc::as_ref).chain([shopper, &stranger]) {
        assert!(pod.state().is_ready, "{}: {:#?}", pod.name, pod.state());
    }
    for name in ["closed", "readers"] {
        mesh.kube.delete(&format!("/apis/outrigger.dev/v1/namespaces/shop/accesspolicies/{name}")).unwrap();
    }
    wait_verdict(shopper, address, "POST", false);
}
