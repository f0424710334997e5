//! Purpose: the chart installed, upgraded and uninstalled by real Helm, 3 and 4, at a real Kubernetes API. Run by `make
//! interop`; `tests/tools/fetch.py` brings Helm and builds the API server once, which takes minutes.
//!
//! Shape: each test starts an API server of its own. No controller runs, so what is shown is what the API itself does:
//! it takes every object, calls webhooks, grants rights; Helm keeps what the control plane wrote.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use outrigger_tests::world::tool::{fetch, root};
use outrigger_tests::world::{Helm, Kube};
use serde_json::{Value, json};

const NAMESPACE: &str = "outrigger-system";
const SECRET: &str = "/api/v1/namespaces/outrigger-system/secrets";
const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/outrigger-injector";

fn helm<'a>(name: &str, kube: &'a Kube) -> Helm<'a> {
    Helm { program: fetch(name).unwrap(), kube, namespace: NAMESPACE }
}

/// Kinds that others define, for what the chart can make of them.
fn install_kinds_of_others(kube: &Kube) {
    let folder = fetch("chart-schemas").unwrap();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let definitions = serde_yaml_ng::Deserializer::from_str(&text).map(serde::Deserialize::deserialize);
            kube.install(&definitions.map(Result::unwrap).collect::<Vec<Value>>()).unwrap();
        }
    }
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What Helm says of a release's objects is what the API then has.
#[track_caller]
fn all_are_there(helm: &Helm<'_>, release: &str) -> usize {
    let manifest = helm.succeed(&["get", "manifest", release]);
    let documents = serde_yaml_ng::Deserializer::from_str(&manifest).map(serde::Deserialize::deserialize);
    let objects: Vec<Value> = documents.map(Result::unwrap).filter(|object: &Value| !object.is_null()).collect();
    for object in &objects {
        let path = helm.kube.path_of(object).unwrap();
        assert!(helm.kube.get(&path).unwrap().is_some(), "{path} is not there");
    }
    objects.len()
}

#[test]
#[ignore = "needs Helm and a Kubernetes API: make interop"]
fn both_helms_install_upgrade_and_uninstall_and_keep_what_was_written() {
    for name in ["helm3", "helm4"] {
        let kube = Kube::start();
        let helm = helm(name, &kube);
        helm.succeed(&["install", "outrigger", "charts/outrigger", "--create-namespace"]);
        assert!(all_are_there(&helm, "outrigger") >= 14, "{name}");
        let token = kube.get(&format!("{SECRET}/outrigger-api-token")).unwrap().unwrap();
        assert!(text(&token, "/data/token").len() >= 40, "{name}: {token}");

        // What the control plane would write.
        let bundle = "Y2E=";
        let merge = "application/merge-patch+json";
        let body = json!({ "data": { "authorities.json": bundle } }).to_string();
        let secret = format!("{SECRET}/outrigger-injector");
        assert_eq!(kube.call("PATCH", &secret, merge, &body).unwrap().0, 200);
        let step =
            |index| json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle });
        let body = json!([step(0), step(1)]).to_string();
        let (status, answer) = kube.call("PATCH", HOOKS, "application/json-patch+json", &body).unwrap();
        assert_eq!(status, 200, "{answer}");

        helm.succeed(&["upgrade", "outrigger", "charts/outrigger", "--set", "injector.timeoutSeconds=7,replicas=3"]);
        all_are_there(&helm, "outrigger");
        let hooks = kube.get(HOOKS).unwrap().unwrap();
        for index in 0..2 {
            assert_eq!(text(&hooks, &format!("/webhooks/{index}/clientConfig/caBundle")), bundle, "{name}: {hooks}");
            assert_eq!(hooks["webhooks"][index]["timeoutSeconds"], 7, "{name}");
        }
        let kept = kube.get(&secret).unwrap().unwrap();
        assert_eq!(text(&kept, "/data/authorities.json"), bundle, "{name}");
        let again = kube.get(&format!("{SECRET}/outrigger-api-token")).unwrap().unwrap();
        assert_eq!(token["data"], again["data"], "{name}: the token changed");

        // To a file and back: the volume outlives both that and the uninstall.
        let file = "store.type=redb,replicas=1";
        helm.succeed(&["upgrade", "outrigger", "charts/outrigger", "--set", file]);
        helm.succeed(&["uninstall", "outrigger"]);
        assert_eq!(kube.get(HOOKS).unwrap(), None, "{name}");
        let claim = "/api/v1/namespaces/outrigger-system/persistentvolumeclaims/outrigger-policy";
        assert!(kube.get(claim).unwrap().is_some(), "{name}: the volume went with the release");
        let deployment = "/apis/apps/v1/namespaces/outrigger-system/deployments/outrigger-control";
        assert_eq!(kube.get(deployment).unwrap(), None, "{name}");
    }
}

#[test]
#[ignore = "needs Helm and a Kubernetes API: make interop"]
fn a_real_api_takes_every_object_of_every_set_of_values() {
    let kube = Kube::start();
    install_kinds_of_others(&kube);
    let helm = helm("helm4", &kube);
    let mut sets: Vec<PathBuf> =
        std::fs::read_dir(root().join("tests/chart/values")).unwrap().map(|entry| entry.unwrap().path()).collect();
    sets.sort();
    assert!(sets.len() >= 5, "{sets:?}");
    for set in sets {
        // A name each: a volume stays, and cannot become another.
        let release = format!("outrigger-{}", set.file_stem().unwrap().display());
        let file = set.display().to_string();
        let said = helm.succeed(&["install", &release, "charts/outrigger", "--create-namespace", "-f", &file]);
        // Helm 4 ends its own watch when it has seen enough, and client-go sometimes tells of that in the same words.
        let warned = |line: &&str| line.to_lowercase().contains("warning") && !line.contains("watch ended with error");
        assert_eq!(said.lines().find(warned), None, "{file}: {said}");
        println!("{release}: {} objects", all_are_there(&helm, &release));
        helm.succeed(&["uninstall", &release]);
    }
}

/// The strictest standard that Kubernetes has for pods; only what writes to a node needs more.
#[test]
#[ignore = "needs Helm and a Kubernetes API: make interop"]
fn pods_are_let_into_a_restricted_namespace_but_for_the_one_that_writes_to_nodes() {
    let kube = Kube::start();
    let enforce = "pod-security.kubernetes.io/enforce";
    kube.namespace("restricted", &[(enforce, "restricted")]).unwrap();
    let helm = helm("helm4", &kube);
    let said = helm.succeed(&["template", "outrigger", "charts/outrigger"]);
    let documents = serde_yaml_ng::Deserializer::from_str(&said).map(serde::Deserialize::deserialize);
    let mut judged = 0;
    for object in documents.map(Result::unwrap).filter(|object: &Value| !object.is_null()) {
        let kind = text(&object, "/kind");
        let Some(spec) = object.pointer(if kind == "Pod" { "/spec" } else { "/spec/template/spec" }) else { continue };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "pod", "namespace": "restricted" }, "spec": spec,
        });
        let path = "/api/v1/namespaces/restricted/pods?dryRun=All&fieldValidation=Strict";
        let (status, answer) = kube.call("POST", path, "application/json", &pod.to_string()).unwrap();
        let said = answer["message"].as_str().unwrap_or_default();
        match kind.as_str() {
            "DaemonSet" => {
                assert!(status == 403 && said.contains("hostPath") && said.contains("runAsUser=0"), "{answer}")
            }
            _ => assert_eq!(status, 201, "{kind}: {answer}"),
        }
        judged += 1;
    }
    assert_eq!(judged, 3, "the control plane, the test, what installs the profile");
}

/// The API server's own reading of selectors and conditions: it calls for what a label selected, cannot reach anybody
/// here, and so refuses exactly that.
#[test]
#[ignore = "needs Helm and a Kubernetes API: make interop"]
fn the_api_asks_about_selected_pods_and_no_others() {
    let kube = Kube::start();
    let helm = helm("helm4", &kube);
    helm.succeed(&[
        "install",
        "outrigger",
        "charts/outrigger",
        "--create-namespace",
        "--set",
        "injector.timeoutSeconds=1",
    ]);
    let label = "outrigger.dev/inject";
    for (name, value) in [("silent", ""), ("on", "enabled"), ("off", "disabled")] {
        let labels: Vec<(&str, &str)> = if value.is_empty() { Vec::new() } else { vec![(label, value)] };
        kube.namespace(name, &labels).unwrap();
    }
    kube.namespace("kube-public", &[(label, "enabled")]).unwrap();
    // Namespace, the pod's label, and which webhook is called.
    let cases = [
        ("silent", "", None),
        ("silent", "enabled", Some("pod.inject.outrigger.dev")),
        ("on", "", Some("namespace.inject.outrigger.dev")),
        ("on", "enabled", Some("namespace.inject.outrigger.dev")),
        ("on", "disabled", None),
        ("off", "", None),
        ("off", "enabled", None),
        ("kube-public", "enabled", None),
        (NAMESPACE, "enabled", None),
    ];
    for (namespace, value, called) in cases {
        let labels = if value.is_empty() { json!({}) } else { json!({ label: value }) };
        let pod = |annotations: Value| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "app", "namespace": namespace, "labels": labels, "annotations": annotations },
                "spec": { "containers": [{ "name": "app", "image": "app:1" }] },
            })
        };
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let (status, answer) = kube.call("POST", &path, "application/json", &pod(json!({})).to_string()).unwrap();
        let said = answer["message"].as_str().unwrap_or_default();
        match called {
            None => assert_eq!(status, 201, "{namespace}, pod {value:?}: {answer}"),
            Some(webhook) => assert!(status == 500 && said.contains(webhook), "{namespace}, pod {value:?}: {answer}"),
        }
    }
}

/// With the release's own account: what it needs is granted, what lies beside is not.
#[test]
#[ignore = "needs Helm and a Kubernetes API: make interop"]
fn the_account_may_do_its_work_and_nothing_beside() {
    let kube = Kube::start();
    let helm = helm("helm4", &kube);
    helm.succeed(&["install", "outrigger", "charts/outrigger", "--create-namespace"]);
    let may = |verb: &str, group: &str, resource: &str, name: &str, namespace: &str| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{NAMESPACE}:outrigger-control"),
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource,
                    "name": name, "namespace": namespace,
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let (status, answer) = kube.call("POST", path, "application/json", &review.to_string()).unwrap();
        assert_eq!(status, 201, "{answer}");
        answer["status"]["allowed"] == true
    };
    let (hooks, core) = ("admissionregistration.k8s.io", "");
    for (verb, group, resource, name, namespace) in [
        ("list", core, "services", "", ""),
        ("watch", core, "pods", "", ""),
        ("list", core, "namespaces", "", ""),
        ("watch", "discovery.k8s.io", "endpointslices", "", ""),
        ("create", "outrigger.dev", "upstreams", "x", "shop"),
        ("patch", "outrigger.dev", "trafficpolicies/status", "x", "shop"),
        ("delete", "gateway.networking.k8s.io", "httproutes", "x", "shop"),
        ("patch", hooks, "mutatingwebhookconfigurations", "outrigger-injector", ""),
        ("update", core, "secrets", "outrigger-injector", NAMESPACE),
        ("update", "coordination.k8s.io", "leases", "outrigger-control", NAMESPACE),
    ] {
        assert!(may(verb, group, resource, name, namespace), "may not {verb} {group} {resource} {name}");
    }
    for (verb, group, resource, name, namespace) in [
        ("get", core, "secrets", "outrigger-api-token", NAMESPACE),
        ("list", core, "secrets", "", NAMESPACE),
        ("get", core, "secrets", "outrigger-injector", "shop"),
        ("patch", hooks, "mutatingwebhookconfigurations", "another", ""),
        ("create", hooks, "mutatingwebhookconfigurations", "", ""),
        ("delete", hooks, "mutatingwebhookconfigurations", "outrigger-injector", ""),
        ("update", "coordination.k8s.io", "leases", "another", NAMESPACE),
        ("create", core, "pods", "x", "shop"),
        ("update", core, "services", "x", "shop"),
        ("create", "rbac.authorization.k8s.io", "clusterroles", "x", ""),
        ("patch", "apps", "deployments", "outrigger-control", NAMESPACE),
    ] {
        assert!(!may(verb, group, resource, name, namespace), "may {verb} {group} {resource} {name} in {namespace}");
    }
}
