//! Purpose: the control plane beside a real Kubernetes API server, under the rights that the chart gives it and no others.
//! Run by `make interop`; `tests/tools/fetch.py` builds the API server once, which takes minutes.
//!
//! Shape: each test starts an API server of its own; what controllers and kubelets would write, the test writes.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use outrigger_control::kubernetes::{crd, rules};
use outrigger_control::model::document::Syntax;
use outrigger_control::model::parse_manifests;
use outrigger_tests::world::kube::Account;
use outrigger_tests::world::{Control, Io, Kube, Proxy, ProxySetup, downstream, resource, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const SYSTEM: &str = "outrigger-system";

/// An API server with our kinds, the Gateway API's, and an account with the control plane's rights.
fn cluster(has_policy: bool) -> (Kube, Account) {
    let kube = Kube::start();
    kube.namespace(SYSTEM, &[]).unwrap();
    kube.namespace("shop", &[]).unwrap();
    let account = kube.account(SYSTEM, "outrigger-control").unwrap();
    let mut wide = rules::registry_rules();
    if has_policy {
        kube.install(&crd::definitions()).unwrap();
        kube.install_gateway().unwrap();
        wide.extend(rules::policy_rules());
        bind(&kube, "Role", rules::own_rules());
    }
    bind(&kube, "ClusterRole", wide);
    (kube, account)
}

fn bind(kube: &Kube, kind: &str, rules: Vec<Value>) {
    let mut metadata = json!({ "name": "outrigger-control" });
    if kind == "Role" {
        metadata["namespace"] = json!(SYSTEM);
    }
    let version = "rbac.authorization.k8s.io/v1";
    kube.apply(&json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "rules": rules })).unwrap();
    kube.apply(&json!({
        "apiVersion": version, "kind": format!("{kind}Binding"), "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "outrigger-control" },
        "subjects": [{ "kind": "ServiceAccount", "name": "outrigger-control", "namespace": SYSTEM }],
    }))
    .unwrap();
}

fn control(account: &Account, args: &[&str]) -> Control {
    let kubeconfig = account.kubeconfig.display().to_string();
    let args = [args, &["--kube-namespace", SYSTEM]].concat();
    Control::try_start_with(&args, &[("KUBECONFIG", &kubeconfig)]).unwrap_or_else(|error| panic!("{error}"))
}

fn proxy(control: &Control, name: &str) -> Proxy {
    let role = json!({ "namespace": "shop", "outbound": "127.0.0.1:0" });
    Proxy::start(&ProxySetup::new(Io::Auto, resource::dynamic(name, control.xds(), role)))
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "selector": { "app": name }, "ports": [{ "name": "http", "port": port, "targetPort": 8080 }] },
    })
}

fn slice(service: &str, name: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn ready(address: &str, zone: &str) -> Value {
    json!({ "addresses": [address], "conditions": { "ready": true, "serving": true, "terminating": false }, "zone": zone })
}

fn draining(address: &str) -> Value {
    json!({ "addresses": [address], "conditions": { "ready": false, "serving": true, "terminating": true } })
}

/// What the proxy says of its clusters, as text.
fn clusters(proxy: &Proxy) -> String {
    let admin = proxy.admin();
    downstream::get(admin, "/clusters").map(|answer| answer.text()).unwrap_or_default()
}

fn wait_clusters(proxy: &Proxy, what: &str, holds: impl Fn(&str) -> bool) {
    wait_for(what, SOON, || {
        let text = clusters(proxy);
        if holds(&text) { Ok(()) } else { Err(text) }
    });
}

fn status(control: &Control) -> Value {
    let answer = control.call("GET", "/v1/status", "application/json", "").unwrap();
    serde_json::from_slice(&answer.body).unwrap()
}

fn condition(kube: &Kube, path: &str, kind: &str) -> Result<Value, String> {
    let object = kube.get(path).map_err(|error| error.to_string())?.ok_or("it is not there")?;
    let parents = object.pointer("/status/parents/0/conditions");
    let conditions = parents.or(object.pointer("/status/conditions")).and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|one| one["type"] == kind).cloned();
    found.ok_or_else(|| format!("{}", object["status"]))
}

fn wait_condition(kube: &Kube, path: &str, kind: &str, wanted: (&str, &str)) -> Value {
    wait_for(&format!("{kind}={} ({}) of {path}", wanted.0, wanted.1), SOON, || {
        let found = condition(kube, path, kind)?;
        let is_it = found["status"] == wanted.0 && found["reason"] == wanted.1;
        if is_it { Ok(found) } else { Err(found.to_string()) }
    })
}

#[test]
#[ignore = "needs a Kubernetes API server: make interop"]
fn services_of_the_cluster_reach_the_proxies_and_outlive_the_api_server() {
    let (mut kube, account) = cluster(false);
    kube.apply(&service("orders", 80)).unwrap();
    kube.apply(&slice("orders", "orders-a", &[ready("10.1.0.1", "a"), draining("10.1.0.2")])).unwrap();
    kube.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "pay", "namespace": "shop" },
        "spec": { "type": "ExternalName", "externalName": "pay.example.org" },
    }))
    .unwrap();
    let control = control(&account, &["--registry", "kubernetes"]);
    let proxy = proxy(&control, "web");
    wait_clusters(&proxy, "the endpoints of orders", |text| {
        text.contains("10.1.0.1:8080") && text.contains("10.1.0.2:8080")
    });
    let now = status(&control);
    assert_eq!(now["kubernetes"]["skippedServices"][0]["name"], "pay", "{now:#}");
    assert!(now["kubernetes"]["watches"].as_array().unwrap().iter().all(|one| one["ageSeconds"] == 0.0), "{now:#}");

    // Stored policy may refer to what the cluster has.
    kube.apply(&slice("orders", "orders-b", &[ready("10.1.0.3", "b")])).unwrap();
    wait_clusters(&proxy, "a second slice", |text| text.contains("10.1.0.3:8080"));

    kube.kill_server();
    wait_for("the view to grow old", SOON, || {
        let now = status(&control);
        let is_old =
            now["kubernetes"]["watches"].as_array().unwrap().iter().all(|one| one["ageSeconds"].as_f64() > Some(0.0));
        if is_old { Ok(()) } else { Err(now.to_string()) }
    });
    let metrics = control.call("GET", "/metrics", "", "").unwrap().text();
    assert!(metrics.contains("outrigger_control_kubernetes_view_age_seconds{resource=\"services\"}"), "{metrics}");
    let text = clusters(&proxy);
    assert!(text.contains("10.1.0.1:8080") && text.contains("10.1.0.3:8080"), "the last view stays: {text}");
    // A control plane that starts while the API server is away would have nothing to say; this one has.
    let late = self::proxy(&control, "late");
    wait_clusters(&late, "the last view", |text| text.contains("10.1.0.1:8080"));

    kube.resume_server().unwrap();
    kube.apply(&slice("orders", "orders-a", &[ready("10.1.0.4", "a")])).unwrap();
    wait_clusters(&proxy, "the watch to stand again", |text| {
        text.contains("10.1.0.4:8080") && !text.contains("10.1.0.1:8080")
    });
    kube.delete("/api/v1/namespaces/shop/services/orders").unwrap();
    wait_clusters(&proxy, "the service to leave", |text| !text.contains("10.1.0.4:8080"));
}

#[test]
#[ignore = "needs a Kubernetes API server: make interop"]
fn pods_of_the_cluster_are_known_while_they_have_an_address() {
    let (kube, account) = cluster(false);
    let pod = |name: &str, over: Value| {
        let mut spec = json!({ "containers": [{ "name": "app", "image": "shop" }] });
        spec.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
        let metadata = json!({ "name": name, "namespace": "shop", "labels": { "app": name } });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        // The API server is asked for its token only once a kubelet runs it.
        kube.account("shop", "default").unwrap();
        kube.apply(&pod).unwrap();
    };
    let set = |name: &str, phase: &str| {
        let metadata = json!({ "name": name, "namespace": "shop" });
        let status = json!({ "phase": phase, "podIP": "10.1.0.1", "podIPs": [{ "ip": "10.1.0.1" }] });
        kube.apply_status(&json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status }))
            .unwrap();
    };
    pod("cart", json!({}));
    set("cart", "Running");
    pod("daemon", json!({ "hostNetwork": true }));
    let control = control(&account, &["--registry", "kubernetes"]);
    let wait_pods = |wanted: u64| {
        wait_for("the pods to be known", SOON, || {
            let now = status(&control);
            if now["kubernetes"]["pods"] == wanted { Ok(()) } else { Err(now.to_string()) }
        });
    };
    wait_pods(1);
    pod("orders", json!({}));
    wait_pods(2);
    set("cart", "Succeeded");
    wait_pods(1);
    kube.delete("/api/v1/namespaces/shop/pods/orders").unwrap();
    wait_pods(0);
    assert!(status(&control)["kubernetes"]["namespaces"].as_u64() > Some(1));
}

fn route(backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "split", "namespace": "shop" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders", "port": 80 }],
            "rules": [{ "backendRefs": [{ "group": "outrigger.dev", "kind": "Upstream", "name": backend }] }],
        },
    })
}

fn upstream(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "outrigger.dev/v1", "kind": "Upstream", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "endpoints": [{ "address": address }] },
    })
}

#[test]
#[ignore = "needs a Kubernetes API server: make interop"]
fn policy_of_the_cluster_is_obeyed_and_its_status_says_so() {
    let (kube, account) = cluster(true);
    let control = control(&account, &["--store", "kubernetes"]);
    let proxy = proxy(&control, "web");
    let (of_route, of_upstream) = (
        "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/split",
        "/apis/outrigger.dev/v1/namespaces/shop/upstreams/canary",
    );
    // A route comes before its backend: it waits, and says for what.
    kube.apply(&service("orders", 80)).unwrap();
    kube.apply(&route("canary")).unwrap();
    let refused = wait_condition(&kube, of_route, "Accepted", ("False", "UnsupportedValue"));
    assert!(refused["message"].as_str().unwrap().contains("canary"), "{refused}");
    kube.apply(&upstream("canary", "10.2.0.1:80")).unwrap();
    wait_condition(&kube, of_route, "Accepted", ("True", "Accepted"));
    wait_condition(&kube, of_upstream, "Accepted", ("True", "Accepted"));
    wait_clusters(&proxy, "the endpoints of canary", |text| text.contains("10.2.0.1:80"));
    let programmed = wait_condition(&kube, of_upstream, "Programmed", ("True", "Programmed"));
    assert_eq!(programmed["message"].as_str().unwrap().split(" epoch").next(), Some("all 1 connected proxies run"));
    let stored = kube.get(of_upstream).unwrap().unwrap();
    assert_eq!(stored["status"]["proxies"], json!({ "running": 1, "connected": 1 }), "{stored:#}");
    let parent = kube.get(of_route).unwrap().unwrap()["status"]["parents"][0].clone();
    assert_eq!(parent["controllerName"], "outrigger.dev/controller");

    // What the definitions cannot know: its last good version stays in force.
    let mut twice = upstream("canary", "[fd00::1]:80");
    twice["spec"]["endpoints"] = json!([{ "address": "[fd00::1]:80" }, { "address": "[fd00:0::1]:80" }]);
    kube.apply(&twice).unwrap();
    let refused = wait_condition(&kube, of_upstream, "Accepted", ("False", "Invalid"));
    assert!(refused["message"].as_str().unwrap().contains("in the list twice"), "{refused}");
    assert!(clusters(&proxy).contains("10.2.0.1:80"));
    kube.apply(&upstream("canary", "10.2.0.2:80")).unwrap();
    wait_condition(&kube, of_upstream, "Accepted", ("True", "Accepted"));
    wait_clusters(&proxy, "the mended upstream", |text| text.contains("10.2.0.2:80"));

    // A second replica stands by; when the first stops, it writes.
    let second = self::control(&account, &["--store", "kubernetes"]);
    assert_eq!(
        (status(&control)["kubernetes"]["isLeader"].clone(), status(&second)["kubernetes"]["isLeader"].clone()),
        (json!(true), json!(false))
    );
    let mut first = control;
    first.process().unwrap().signal(rustix::process::Signal::TERM).unwrap();
    first.process().unwrap().wait_exit(SOON).unwrap();
    wait_for("the second replica to lead", SOON, || {
        let now = status(&second);
        if now["kubernetes"]["isLeader"] == true { Ok(()) } else { Err(now.to_string()) }
    });
    wait_condition(&kube, of_upstream, "Programmed", ("Unknown", "NoProxies"));
}

#[test]
#[ignore = "needs a Kubernetes API server: make interop"]
fn the_rest_api_writes_to_the_cluster_all_or_nothing() {
    let (kube, account) = cluster(true);
    let control = control(&account, &["--store", "kubernetes"]);
    let of_upstream = "/apis/outrigger.dev/v1/namespaces/shop/upstreams/orders";
    let good = upstream("orders", "10.3.0.1:80");
    let path = "/v1/Upstream/shop/orders";
    let call = |method: &str, path: &str, body: &Value| {
        let answer = control.call(method, path, "application/json", &body.to_string()).unwrap();
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        (answer.status, value)
    };
    let (code, answer) = call("POST", "/v1/apply?dryRun=true", &good);
    assert_eq!((code, &answer["objects"][0]["change"]), (200, &json!("created")), "{answer}");
    assert_eq!(kube.get(of_upstream).unwrap(), None, "a dry run writes nothing");
    let (code, answer) = call("PUT", path, &good);
    assert_eq!(code, 201, "{answer}");
    let stored = kube.get(of_upstream).unwrap().expect("it is in the cluster");
    let owners = stored["metadata"]["managedFields"].to_string();
    assert!(owners.contains("outrigger-control"), "{owners}");
    let (code, read) = call("GET", path, &json!(""));
    assert_eq!((code, &read["spec"]["endpoints"][0]["address"]), (200, &json!("10.3.0.1:80")), "{read}");
    let (code, answer) = call("POST", "/v1/apply", &good);
    assert_eq!((code, &answer["objects"][0]["change"]), (200, &json!("unchanged")), "{answer}");

    // All or nothing: what the API server would refuse in the second object keeps the first from being written.
    let mut other = upstream("stock", "10.3.0.2:80");
    other["metadata"]["labels"] = json!({ "not a label": "x" });
    let both = json!({ "kind": "List", "items": [upstream("orders", "10.3.0.9:80"), other] });
    let (code, answer) = call("POST", "/v1/apply", &both);
    assert_eq!(code, 422, "{answer}");
    let stored = kube.get(of_upstream).unwrap().unwrap();
    assert_eq!(stored["spec"]["endpoints"][0]["address"], "10.3.0.1:80");

    // The version that was seen: written status or not, it holds until somebody changes the object.
    let seen = read["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut next = upstream("orders", "10.3.0.3:80");
    next["metadata"]["resourceVersion"] = json!(seen);
    wait_condition(&kube, of_upstream, "Accepted", ("True", "Accepted"));
    let (code, answer) = call("PUT", path, &next);
    assert_eq!(code, 200, "{answer}");
    next["spec"]["endpoints"][0]["address"] = json!("10.3.0.4:80");
    let (code, answer) = call("PUT", path, &next);
    assert_eq!(code, 409, "{answer}");
    let (code, answer) = call("DELETE", path, &json!(""));
    assert_eq!(code, 200, "{answer}");
    assert_eq!(kube.get(of_upstream).unwrap(), None);
    let (code, answer) = call("DELETE", path, &json!(""));
    assert_eq!(code, 404, "{answer}");
}

/// Kind, what it is about, spec, whether it is good.
#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<(&'static str, &'static str, Value, bool)> {
    let endpoints = |list: Value| json!({ "endpoints": list });
    let at = |address: &str| json!({ "endpoints": [{ "address": address }] });
    let with = |name: &str, value: Value| json!({ "endpoints": [], name: value });
    let target = json!([{ "kind": "Upstream", "name": "orders" }]);
    let route = json!([{ "kind": "HTTPRoute", "name": "split", "sectionName": "all" }]);
    let policy = |name: &str, value: Value| json!({ "targetRefs": target, name: value });
    let limit = |name: &str, value: Value| {
        let mut spec = json!({ "targetRefs": target, "requests": 100 });
        spec[name] = value;
        spec
    };
    let mut cases = Vec::new();
    let mut add = |kind, about, spec, is_good| cases.push((kind, about, spec, is_good));
    let up = "Upstream";
    add(up, "nothing", json!({}), false);
    add(up, "no endpoints", endpoints(json!([])), true);
    add(up, "an unknown field", with("colour", json!("red")), false);
    for (address, is_good) in [
        ("10.0.0.1:80", true),
        ("10.0.0.1:65535", true),
        ("10.0.0.1:65536", false),
        ("10.0.0.1:0", false),
        ("10.0.0.1", false),
        ("10.0.0.256:80", false),
        ("10.0.0.01:80", false),
        ("127.0.0.1:080", true),
        ("[fd00::1]:80", true),
        ("[fd00::1]", false),
        ("[fd00::g]:80", false),
        ("[10.0.0.1]:80", false),
        ("0.0.0.0:80", false),
        ("[::]:80", false),
        ("224.0.0.1:80", false),
        ("239.1.1.1:80", false),
        ("240.0.0.1:80", true),
        ("[ff02::1]:80", false),
        ("orders:80", false),
        ("", false),
    ] {
        add(up, "an address", at(address), is_good);
    }
    add(up, "an address twice", endpoints(json!([{ "address": "10.0.0.1:80" }, { "address": "10.0.0.1:80" }])), false);
    for (weight, is_good) in [
        (json!(0), false),
        (json!(1), true),
        (json!(1_000_000), true),
        (json!(1_000_001), false),
        (json!("1"), false),
        (json!(1.5), false),
    ] {
        add(up, "a weight", endpoints(json!([{ "address": "10.0.0.1:80", "weight": weight }])), is_good);
    }
    add(up, "a zone", endpoints(json!([{ "address": "10.0.0.1:80", "zone": "a-1" }])), true);
    add(up, "a zone with a capital", endpoints(json!([{ "address": "10.0.0.1:80", "zone": "A" }])), false);
    add(up, "health", endpoints(json!([{ "address": "10.0.0.1:80", "health": "Draining" }])), true);
    add(up, "health of an unknown word", endpoints(json!([{ "address": "10.0.0.1:80", "health": "draining" }])), false);
    add(up, "a service name", with("serviceName", json!("orders")), true);
    add(up, "a service name with a dot", with("serviceName", json!("orders.shop")), false);
    add(up, "a service name of 64", with("serviceName", json!("a".repeat(64))), false);
    for word in ["http", "h2c", "kubernetes.io/h2c", "grpc", "downstream", "detect", "tcp", "tls"] {
        add(up, "a protocol", with("appProtocol", json!(word)), true);
    }
    add(up, "an unknown protocol", with("appProtocol", json!("gopher")), false);
    let at_port = |name: &str, value: Value| json!({ "endpoints": [], "port": 80, name: value });
    add(up, "a port", with("port", json!(65_535)), true);
    add(up, "a port above all", with("port", json!(65_536)), false);
    add(up, "a port's name", at_port("portName", json!("http")), true);
    add(up, "a name without its port", with("portName", json!("http")), false);
    add(up, "addresses without their port", with("addresses", json!(["10.96.0.10"])), false);
    for (address, is_good) in [
        ("10.96.0.10", true),
        ("fd00::10", true),
        ("10.96.0.10:80", false),
        ("orders", false),
        ("127.0.0.1", false),
        ("::1", false),
        ("0.0.0.0", false),
        ("224.0.0.1", false),
        ("ff02::1", false),
    ] {
        add(up, "an address of a service", at_port("addresses", json!([address])), is_good);
    }
    add(up, "an address of a service twice", at_port("addresses", json!(["10.96.0.10", "10.96.0.10"])), false);
    for (span, is_good) in [
        ("1ms", true),
        ("1h", true),
        ("1h1ms", false),
        ("0s", false),
        ("1s500ms", true),
        ("1.5s", false),
        ("-1s", false),
        ("1", false),
        ("1d", false),
        ("100000ms", false),
        ("1ms1ms1ms1ms", true),
        ("1ms1ms1ms1ms1ms", false),
        ("", false),
    ] {
        add(up, "a connect timeout", with("connectTimeout", json!(span)), is_good);
    }
    add(up, "an idle timeout", with("idleTimeout", json!("24h")), true);
    add(up, "an idle timeout above a day", with("idleTimeout", json!("24h1ms")), false);
    add(up, "requests of a connection", with("maxRequestsPerConnection", json!(1)), true);
    add(up, "no requests of a connection", with("maxRequestsPerConnection", json!(0)), false);
    add(up, "a panic share", with("panicThresholdPercent", json!(100)), true);
    add(up, "a panic share above all", with("panicThresholdPercent", json!(101)), false);
    add(up, "least request", with("loadBalancing", json!({ "policy": "LeastRequest", "choiceCount": 64 })), true);
    add(up, "too many choices", with("loadBalancing", json!({ "policy": "LeastRequest", "choiceCount": 65 })), false);
    add(up, "choices in turn", with("loadBalancing", json!({ "choiceCount": 2 })), false);
    add(up, "a balancer of another name", with("loadBalancing", json!({ "policy": "Maglev" })), false);
    add(up, "limits", with("limits", json!({ "maxConnections": 0, "maxRetries": 4_294_967_295_u32 })), true);
    add(up, "a limit above 32 bits", with("limits", json!({ "maxConnections": 4_294_967_296_u64 })), false);
    add(
        up,
        "ejection",
        with("outlierDetection", json!({ "consecutive5xx": 5, "baseEjectionTime": "30s", "maxEjectionTime": "5m" })),
        true,
    );
    add(
        up,
        "the longest ejection shorter than the first",
        with("outlierDetection", json!({ "baseEjectionTime": "30s", "maxEjectionTime": "29s" })),
        false,
    );
    add(up, "an ejection share above all", with("outlierDetection", json!({ "maxEjectionPercent": 101 })), false);
    add(up, "an interval of nothing", with("outlierDetection", json!({ "interval": "0s" })), false);

    let tp = "TrafficPolicy";
    add(tp, "nothing set", json!({ "targetRefs": target }), false);
    add(tp, "no targets", json!({ "targetRefs": [], "timeouts": {} }), false);
    add(tp, "an empty stanza", policy("timeouts", json!({})), true);
    add(
        tp,
        "timeouts",
        policy("timeouts", json!({ "request": "1s", "perTry": "1s", "stream": "0s", "grpcDeadlineMax": "1m" })),
        true,
    );
    add(tp, "a try longer than the whole", policy("timeouts", json!({ "request": "1s", "perTry": "1s1ms" })), false);
    add(tp, "a try of a whole without end", policy("timeouts", json!({ "request": "0s", "perTry": "1s" })), true);
    add(
        tp,
        "retries",
        policy(
            "retry",
            json!({ "on": ["5xx", "reset"], "attempts": 50, "perTryTimeout": "1s", "backoff": { "base": "10ms", "max": "10ms" }, "nonIdempotent": true }),
        ),
        true,
    );
    add(tp, "retries by default", policy("retry", json!({})), true);
    add(tp, "too many retries", policy("retry", json!({ "attempts": 51 })), false);
    add(tp, "a condition twice", policy("retry", json!({ "on": ["5xx", "5xx"] })), false);
    add(tp, "an unknown condition", policy("retry", json!({ "on": ["4xx"] })), false);
    add(tp, "no condition", policy("retry", json!({ "on": [] })), false);
    add(tp, "codes", policy("retry", json!({ "statusCodes": [429, 599] })), true);
    add(tp, "a code that is no failure", policy("retry", json!({ "statusCodes": [399] })), false);
    add(tp, "codes that are missing", policy("retry", json!({ "on": ["retriable-status-codes"] })), false);
    add(
        tp,
        "codes that are there",
        policy("retry", json!({ "on": ["retriable-status-codes"], "statusCodes": [429] })),
        true,
    );
    add(tp, "a backoff without its base", policy("retry", json!({ "backoff": { "max": "1s" } })), false);
    add(tp, "a backoff that shrinks", policy("retry", json!({ "backoff": { "base": "1s", "max": "999ms" } })), false);
    let mut twice = policy("retry", json!({ "perTryTimeout": "1s" }));
    twice["timeouts"] = json!({ "perTry": "1s" });
    add(tp, "a try's limit in two places", twice, false);
    add(tp, "upgrades", policy("upgrades", json!(["websocket", "x-own/1"])), true);
    add(tp, "no upgrades", policy("upgrades", json!([])), true);
    add(tp, "h2c", policy("upgrades", json!(["H2C"])), false);
    add(tp, "an upgrade twice", policy("upgrades", json!(["websocket", "WebSocket"])), false);
    add(tp, "an upgrade with a blank", policy("upgrades", json!(["web socket"])), false);
    add(tp, "a limit", policy("localRateLimit", json!({ "requests": 10 })), true);
    add(tp, "a limit without its number", policy("localRateLimit", json!({ "per": "1s" })), false);
    add(tp, "limits of an upstream", policy("limits", json!({ "maxRequests": 1 })), true);
    add(tp, "limits of a route", json!({ "targetRefs": route, "limits": { "maxRequests": 1 } }), false);
    add(tp, "ejection of a route", json!({ "targetRefs": route, "outlierDetection": {} }), false);
    add(tp, "a rule of a route", json!({ "targetRefs": route, "timeouts": { "request": "1s" } }), true);
    let targets = |targets: Value| json!({ "targetRefs": targets, "timeouts": { "request": "1s" } });
    add(
        tp,
        "a section of an upstream",
        targets(json!([{ "kind": "Upstream", "name": "orders", "sectionName": "x" }])),
        false,
    );
    add(tp, "a group", targets(json!([{ "group": "outrigger.dev", "kind": "Upstream", "name": "orders" }])), true);
    add(
        tp,
        "the group of another kind",
        targets(json!([{ "group": "outrigger.dev", "kind": "HTTPRoute", "name": "orders" }])),
        false,
    );
    add(tp, "a Service", targets(json!([{ "kind": "Service", "name": "orders" }])), true);
    add(
        tp,
        "a port of a Service",
        targets(json!([{ "group": "", "kind": "Service", "name": "orders", "sectionName": "http" }])),
        true,
    );
    add(
        tp,
        "a Service of a group",
        targets(json!([{ "group": "outrigger.dev", "kind": "Service", "name": "orders" }])),
        false,
    );
    add(
        tp,
        "limits of a Service",
        json!({ "targetRefs": [{ "kind": "Service", "name": "orders" }], "limits": {} }),
        true,
    );
    add(tp, "a target of an unknown kind", targets(json!([{ "kind": "Gateway", "name": "edge" }])), false);
    add(tp, "a target without a name", targets(json!([{ "kind": "Upstream" }])), false);
    add(
        tp,
        "a target twice",
        targets(json!([{ "kind": "Upstream", "name": "a" }, { "kind": "Upstream", "name": "a" }])),
        false,
    );
    add(
        tp,
        "two rules of a route",
        targets(
            json!([{ "kind": "HTTPRoute", "name": "a", "sectionName": "x" }, { "kind": "HTTPRoute", "name": "a" }]),
        ),
        true,
    );

    let rl = "RateLimit";
    add(rl, "nothing", json!({}), false);
    add(rl, "a rate", limit("per", json!("1m")), true);
    add(rl, "no requests", limit("requests", json!(0)), false);
    add(rl, "a scope", limit("scope", json!("Local")), true);
    add(rl, "an unknown scope", limit("scope", json!("Global")), false);
    add(rl, "a burst", limit("burst", json!(1_000)), true);
    add(rl, "a small burst", limit("burst", json!(5)), true);
    add(rl, "a burst that is too small", limit("burst", json!(4)), false);
    add(rl, "a span that is too short", limit("per", json!("49ms")), false);

    let mc = "MeshConfig";
    add(mc, "nothing", json!({}), true);
    add(mc, "an unknown field", json!({ "endpoints": [] }), false);
    for (name, value, is_good) in [
        ("outboundTraffic", json!("RegistryOnly"), true),
        ("outboundTraffic", json!("registry-only"), false),
        ("detectionTimeout", json!("10ms"), true),
        ("detectionTimeout", json!("9ms"), false),
        ("detectionTimeout", json!("15s1ms"), false),
        ("access", json!({ "default": "Deny" }), true),
        ("access", json!({ "default": "Audit" }), false),
        ("connection", json!({ "connectTimeout": "1s", "loadBalancing": { "policy": "LeastRequest" } }), true),
        ("connection", json!({ "loadBalancing": { "choiceCount": 2 } }), false),
        ("connection", json!({ "endpoints": [] }), false),
        ("traffic", json!({ "timeouts": { "request": "1s" }, "retry": {}, "upgrades": [] }), true),
        ("traffic", json!({ "timeouts": { "perTry": "1s" }, "retry": { "perTryTimeout": "1s" } }), false),
        ("traffic", json!({ "localRateLimit": { "requests": 1 } }), false),
    ] {
        add(mc, "a setting", json!({ name: value }), is_good);
    }

    let ap = "AccessPolicy";
    let from = |source: Value| json!({ "rules": [{ "from": [source] }] });
    let to = |operation: Value| json!({ "rules": [{ "to": [operation] }] });
    add(ap, "nothing", json!({}), true);
    add(ap, "a denial that is counted", json!({ "action": "Deny", "mode": "Audit", "rules": [] }), true);
    add(ap, "an unknown action", json!({ "action": "Permit" }), false);
    add(ap, "a rule for everything", json!({ "rules": [{}] }), true);
    add(ap, "no targets", json!({ "targetRefs": [] }), false);
    add(ap, "a port", json!({ "targetRefs": [{ "kind": "Service", "name": "a", "sectionName": "http" }] }), true);
    add(ap, "a route", json!({ "targetRefs": [{ "kind": "HTTPRoute", "name": "a" }] }), false);
    add(ap, "a source that says nothing", from(json!({})), false);
    add(ap, "an operation that says nothing", to(json!({})), false);
    add(ap, "no source", json!({ "rules": [{ "from": [] }] }), false);
    for (name, value, is_good) in [
        ("namespaces", json!(["shop"]), true),
        ("namespaces", json!([]), false),
        ("namespaces", json!(["Shop"]), false),
        ("namespaceSelector", json!({}), true),
        ("namespaceSelector", json!({ "matchLabels": { "example.com/team": "shop" } }), true),
        ("podSelector", json!({ "matchLabels": { "app": "" } }), true),
        ("podSelector", json!({ "matchLabels": { "app": "-" } }), false),
        ("podSelector", json!({ "matchLabels": { "app": 1 } }), false),
        ("podSelector", json!({ "matchExpressions": [] }), false),
        ("serviceAccounts", json!(["seller", "ops/an.admin"]), true),
        ("serviceAccounts", json!(["a/b/c"]), false),
        ("addresses", json!(["10.0.0.1", "10.0.0.0/8", "fd00::/64", "0.0.0.0/0"]), true),
        ("addresses", json!(["10.0.0.0/33"]), false),
        ("addresses", json!(["10.0.0.0/"]), false),
        ("addresses", json!(["shop"]), false),
        ("notAddresses", json!(["::1"]), true),
    ] {
        add(ap, "a source", from(json!({ name: value })), is_good);
    }
    add(ap, "namespaces twice", from(json!({ "namespaces": ["a"], "namespaceSelector": {} })), false);
    for (name, value, is_good) in [
        ("methods", json!(["GET", "PATCH"]), true),
        ("methods", json!(["FETCH"]), false),
        ("methods", json!([]), false),
        ("paths", json!([{ "value": "/pay" }, { "type": "Exact", "value": "/a" }, {}]), true),
        ("paths", json!([{ "type": "Suffix", "value": "/a" }]), false),
        ("headers", json!([{ "name": "x-shop", "value": "a" }]), true),
        ("headers", json!([{ "name": "x shop", "value": "a" }]), false),
        ("headers", json!([{ "name": "x-shop" }]), false),
        ("headers", json!([]), false),
    ] {
        add(ap, "an operation", to(json!({ name: value })), is_good);
    }
    cases
}

#[test]
#[ignore = "needs a Kubernetes API server: make interop"]
fn the_definitions_take_and_refuse_what_the_model_does() {
    let kube = Kube::start();
    kube.install(&crd::definitions()).unwrap();
    let mut wrong = Vec::new();
    let all = cases();
    assert!(all.len() > 100, "{} cases", all.len());
    for (kind, about, spec, is_good) in all {
        let object = json!({
            "apiVersion": "outrigger.dev/v1", "kind": kind,
            "metadata": { "name": if kind == "MeshConfig" { "mesh" } else { "case" }, "namespace": "default" },
            "spec": spec,
        });
        let theirs = kube.judge(&object).unwrap().map(drop);
        let ours = parse_manifests(&object.to_string(), Syntax::Json).map(drop);
        if (theirs.is_ok(), ours.is_ok()) != (is_good, is_good) {
            wrong.push(format!("{kind}, {about}: {spec}: API server {theirs:?}, model {ours:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    let long = json!({
        "apiVersion": "outrigger.dev/v1", "kind": "Upstream", "metadata": { "name": "a.b", "namespace": "default" },
        "spec": { "endpoints": [] },
    });
    assert!(kube.judge(&long).unwrap().is_err() && parse_manifests(&long.to_string(), Syntax::Json).is_err());
    let other = json!({
        "apiVersion": "outrigger.dev/v1", "kind": "MeshConfig", "metadata": { "name": "case", "namespace": "default" },
        "spec": {},
    });
    assert!(kube.judge(&other).unwrap().is_err() && parse_manifests(&other.to_string(), Syntax::Json).is_err());
    // What is not written is filled in as the model reads it.
    let stored = kube.apply(&upstream_in("default")).unwrap();
    assert_eq!(
        (&stored["spec"]["appProtocol"], &stored["spec"]["endpoints"][0]["weight"]),
        (&json!("http"), &json!(1)),
        "{stored:#}"
    );
}

fn upstream_in(namespace: &str) -> Value {
    let mut object = upstream("orders", "10.0.0.1:80");
    object["metadata"]["namespace"] = json!(namespace);
    object
}
