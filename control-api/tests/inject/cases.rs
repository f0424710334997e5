//! The recorded reviews: each row of the annotations' table with good and bad values, and every shape of pod that matters.
//! They are built rather than kept as files, because most differ from one pod in one line.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use outrigger_control::inject::InjectorConfig;
use outrigger_control::inject::Pod;
use outrigger_control::inject::patch::{Step, to_json};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// One review.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// What it is about.
    pub(crate) name: String,
    /// The body that is sent.
    pub(crate) body: Vec<u8>,
    /// The pod inside, where there is one that can be read.
    pub(crate) pod: Option<Value>,
    /// The pod's namespace.
    pub(crate) namespace: String,
}

/// Good values and bad ones of each annotation.
const VALUES: &[(&str, &[&str], &[&str])] = &[
    ("inject", &["enabled"], &["enable", "true", ""]),
    ("upgrade", &["keep", "image", "all"], &["always", "Image"]),
    ("image", &["registry.example:5000/mesh/proxy:2", "p@sha256:00"], &["a b", "$(POD_NAME)", ""]),
    ("image-pull-policy", &["Always", "Never"], &["always", "Sometimes"]),
    ("log-level", &["debug", "info,outrigger_proxy::xds=trace"], &["loud", "", "debug;info"]),
    ("log-format", &["text"], &["xml", "JSON"]),
    ("workers", &["2", "1024", "auto"], &["0", "1025", "-1", "two", "1.5"]),
    ("io", &["epoll", "uring"], &["iocp", "io_uring"]),
    ("cpu-request", &["1m", "2", "none"], &["0", "-1", "1025", "2k", "NaN"]),
    ("cpu-limit", &["1", "1500m"], &["50m", "lots"]),
    ("memory-request", &["32Mi", "none"], &["1Gi", "64MB", "0"]),
    ("memory-limit", &["1Gi", "none"], &["32Mi", "2Ti", "-1Mi"]),
    ("capture-mode", &["tproxy"], &["ebpf", "REDIRECT"]),
    ("include-inbound-ports", &["80,443", "8080 , 9090", ""], &["0", "65536", "http", "80;443"]),
    ("exclude-inbound-ports", &["22", "3306,6379"], &["*", "-1", "22,"]),
    ("include-outbound-cidrs", &["10.0.0.0/8", "10.96.0.0/12,fd00::/8"], &["10.0.0.0", "10.0.0.0/33", "all"]),
    ("exclude-outbound-cidrs", &["169.254.169.254/32"], &["*", "::/129"]),
    ("include-outbound-ports", &["80,443"], &["80-90", "65536"]),
    ("exclude-outbound-ports", &["5432"], &["*", "postgres"]),
    ("exclude-uids", &["0,1000"], &["root", "-1", "4294967295"]),
    ("exclude-gids", &["2000"], &["*", "1e3"]),
    ("capture-backend", &["nft", "iptables"], &["ebpf", "nftables"]),
    ("capture-ipv6", &["on", "off"], &["true", "maybe"]),
    ("outbound-policy", &["registry-only"], &["deny", "REGISTRY_ONLY"]),
    ("drain-time", &["0s", "20s", "29s", "auto"], &["30s", "1m", "500ms", "20", "-1s"]),
    ("hold-app-stop", &["disabled"], &["off", "false"]),
    ("ready-deadline", &["0s", "2m", "1h"], &["60", "2h", "1.5s", "never"]),
    ("probes", &["startup", "none"], &["off", "liveness"]),
    ("bootstrap-from", &["projected-file"], &["file", "configmap"]),
    ("seccomp", &["localhost", "runtime-default"], &["unconfined", "Localhost"]),
    (
        "xds-address",
        &["control.mesh.svc:15010", "[fd00::10]:15010"],
        &["control.mesh.svc", "http://c:1", "c:0", "a b:1"],
    ),
    ("status", &["{}", "anything"], &[]),
    ("bootstrap", &["node: {}"], &[]),
];

/// The configuration of all cases.
pub(crate) fn config() -> InjectorConfig {
    let text = "image: registry.example/outrigger-proxy:1.0.0\nxdsAddress: outrigger-control.mesh.svc:15010\n\
                controlNamespace: mesh\nseccompProfile: outrigger/proxy.json\n";
    InjectorConfig::parse(text).expect("the configuration of the cases is good")
}

/// The pod from which the others differ, as an API server sends it.
pub(crate) fn plain() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "orders-7d9c-", "namespace": "shop", "labels": { "app": "orders" },
            "annotations": { "note": "kept" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders-7d9c", "uid": "1" }],
        },
        "spec": {
            "containers": [{
                "name": "app", "image": "orders:1", "ports": [{ "containerPort": 8080, "protocol": "TCP" }],
                "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 } },
            }],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "serviceAccountName": "orders",
            "terminationGracePeriodSeconds": 30,
            "volumes": [{ "name": "work", "emptyDir": {} }],
        },
    })
}

/// A review of a new pod.
pub(crate) fn review(pod: &Value, namespace: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "requestKind": { "group": "", "version": "v1", "kind": "Pod" },
            "requestResource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": namespace, "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:authenticated"] },
            "object": pod, "oldObject": null, "dryRun": false,
            "options": { "apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions" },
        },
    })
}

fn case(name: impl Into<String>, pod: Value, namespace: &str) -> Case {
    let body = review(&pod, namespace).to_string().into_bytes();
    Case { name: name.into(), body, pod: Some(pod), namespace: namespace.to_owned() }
}

/// The plain pod, changed.
fn changed(name: impl Into<String>, change: impl FnOnce(&mut Value)) -> Case {
    let mut pod = plain();
    change(&mut pod);
    case(name, pod, "shop")
}

/// The plain pod, with a field set; `null` takes it away.
fn with(name: &str, pointer: &str, value: Value) -> Case {
    changed(name, |pod| put(pod, pointer, value))
}

fn put(pod: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let key = key.replace("~1", "/");
    match pod.pointer_mut(parent).expect("the parent is there") {
        Value::Object(map) if value.is_null() => drop(map.remove(&key)),
        Value::Object(map) => drop(map.insert(key, value)),
        Value::Array(list) if key == "-" => list.push(value),
        other => panic!("{pointer}: {other}"),
    }
}

fn annotated(name: impl Into<String>, entries: &[(&str, &str)]) -> Case {
    changed(name, |pod| annotate(pod, entries))
}

fn annotate(pod: &mut Value, entries: &[(&str, &str)]) {
    for (key, value) in entries {
        pod["metadata"]["annotations"][format!("outrigger.dev/{key}")] = json!(value);
    }
}

/// All cases but the large ones.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = vec![case("plain", plain(), "shop")];
    for (name, good, bad) in VALUES {
        for value in good.iter().chain(*bad) {
            cases.push(annotated(format!("{name}: {value:?}"), &[(name, value)]));
        }
    }
    cases.extend(names());
    cases.extend(switches());
    cases.extend(shapes());
    cases.extend(lives());
    cases.extend(conflicts());
    cases.extend(again());
    cases.extend(no_pods());
    cases
}

fn names() -> Vec<Case> {
    vec![
        annotated("unknown: log-levl", &[("log-levl", "info")]),
        annotated("unknown: Log-Level", &[("Log-Level", "info")]),
        annotated("unknown: nothing near", &[("frobnicate", "yes")]),
        annotated("unknown: empty", &[("", "x")]),
        annotated("unknown: two, and a bad value", &[("logs", "x"), ("port", "1"), ("io", "no")]),
        changed("foreign: other prefixes pass", |pod| {
            pod["metadata"]["annotations"]["outrigger.dev.example/io"] = json!("x");
            pod["metadata"]["annotations"]["sidecar.outrigger.dev/io"] = json!("x");
        }),
        annotated("long value", &[("image", &"a".repeat(2_000))]),
        annotated("several good", &[("log-level", "warn"), ("workers", "4"), ("cpu-request", "4"), ("cpu-limit", "4")]),
        annotated("request above limit", &[("cpu-request", "2"), ("cpu-limit", "1")]),
        annotated(
            "all amounts none",
            &[("cpu-request", "none"), ("cpu-limit", "none"), ("memory-request", "none"), ("memory-limit", "none")],
        ),
        annotated("uring under the runtime's profile", &[("io", "uring"), ("seccomp", "runtime-default")]),
        changed("an annotation that is null", |pod| {
            pod["metadata"]["annotations"]["outrigger.dev/log-level"] = Value::Null;
        }),
        changed("an annotation that is a number", |pod| {
            pod["metadata"]["annotations"]["outrigger.dev/workers"] = json!(2);
        }),
    ]
}

fn switches() -> Vec<Case> {
    let label = |value: &str| json!({ "app": "orders", "outrigger.dev/inject": value });
    let in_namespace = |namespace: &str| case(format!("namespace: {namespace}"), plain(), namespace);
    let mut cases = vec![
        with("label: enabled", "/metadata/labels", label("enabled")),
        with("label: disabled", "/metadata/labels", label("disabled")),
        with("label: on", "/metadata/labels", label("on")),
        annotated("annotation: disabled", &[("inject", "disabled")]),
        annotated("annotation: disabled, and others are bad", &[("inject", "disabled"), ("io", "no"), ("logs", "x")]),
        changed("label enabled, annotation disabled", |pod| {
            pod["metadata"]["labels"] = label("enabled");
            annotate(pod, &[("inject", "disabled")]);
        }),
        changed("label disabled, annotation enabled", |pod| {
            pod["metadata"]["labels"] = label("disabled");
            annotate(pod, &[("inject", "enabled")]);
        }),
        changed("label disabled, annotation bad", |pod| {
            pod["metadata"]["labels"] = label("disabled");
            annotate(pod, &[("inject", "perhaps")]);
        }),
        with("host network", "/spec/hostNetwork", json!(true)),
        with("host network: false", "/spec/hostNetwork", json!(false)),
        changed("host network, asked for by label", |pod| {
            pod["metadata"]["labels"] = label("enabled");
            pod["spec"]["hostNetwork"] = json!(true);
        }),
        changed("host network, with a bad annotation", |pod| {
            annotate(pod, &[("io", "no")]);
            pod["spec"]["hostNetwork"] = json!(true);
        }),
        with("windows by os", "/spec/os", json!({ "name": "windows" })),
        with("linux by os", "/spec/os", json!({ "name": "linux" })),
        with("windows by node selector", "/spec/nodeSelector", json!({ "kubernetes.io/os": "windows" })),
        with("linux by node selector", "/spec/nodeSelector", json!({ "kubernetes.io/os": "linux" })),
    ];
    cases.extend(["kube-system", "kube-public", "kube-node-lease", "mesh", "default", ""].map(in_namespace));
    let skipped = apply(&with("", "/spec/hostNetwork", json!(true)).pod.expect("a pod"), "shop");
    cases.push(case("host network, asked again", skipped, "shop"));
    cases
}

fn shapes() -> Vec<Case> {
    let sidecar = json!([
        { "name": "migrate", "image": "migrate:1" },
        { "name": "logs", "image": "logs:1", "restartPolicy": "Always", "ports": [{ "containerPort": 2020 }] },
    ]);
    vec![
        with("no metadata", "/metadata", Value::Null),
        with("no annotations", "/metadata/annotations", Value::Null),
        changed("annotations: null", |pod| pod["metadata"]["annotations"] = Value::Null),
        with("annotations: empty", "/metadata/annotations", json!({})),
        with("no labels", "/metadata/labels", Value::Null),
        with("init containers and a native sidecar keep their order", "/spec/initContainers", sidecar),
        with("init containers: empty", "/spec/initContainers", json!([])),
        changed("init containers: null", |pod| pod["spec"]["initContainers"] = Value::Null),
        with("no volumes", "/spec/volumes", Value::Null),
        changed("no volumes, projected file", |pod| {
            put(pod, "/spec/volumes", Value::Null);
            annotate(pod, &[("bootstrap-from", "projected-file")]);
        }),
        annotated(
            "projected file over a bootstrap of the user's",
            &[("bootstrap-from", "projected-file"), ("bootstrap", "x")],
        ),
        with("two containers", "/spec/containers/-", json!({ "name": "second", "image": "second:1" })),
        with(
            "a preStop of its own",
            "/spec/containers/0/lifecycle",
            json!({ "preStop": { "sleep": { "seconds": 3 } } }),
        ),
        with(
            "a postStart of its own",
            "/spec/containers/0/lifecycle",
            json!({ "postStart": { "exec": { "command": ["x"] } } }),
        ),
        with("lifecycle: empty", "/spec/containers/0/lifecycle", json!({})),
        changed("lifecycle: null", |pod| pod["spec"]["containers"][0]["lifecycle"] = Value::Null),
        changed("preStop: null", |pod| pod["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": null })),
        with("ephemeral containers", "/spec/ephemeralContainers", json!([{ "name": "debug", "image": "sh" }])),
        with("user namespace", "/spec/hostUsers", json!(false)),
        with("shared process namespace", "/spec/shareProcessNamespace", json!(true)),
        with(
            "run as non-root, fsGroup",
            "/spec/securityContext",
            json!({ "runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 2000 }),
        ),
        with("fsGroup of the proxy", "/spec/securityContext", json!({ "fsGroup": 1337, "supplementalGroups": [1337] })),
        with("pod-level resources", "/spec/resources", json!({ "requests": { "cpu": "1" } })),
        with("dual stack", "/status", json!({ "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] })),
        with("a field of tomorrow", "/spec/tomorrow", json!({ "deep": [[[{ "a": 1 }]]] })),
        with("odd names in annotations", "/metadata/annotations", json!({ "a/b~c": "~1", "": "x" })),
        with("no containers", "/spec/containers", json!([])),
        with("no spec", "/spec", Value::Null),
        with("containers is text", "/spec/containers", json!("app")),
        with("a container is null", "/spec/containers", json!([null])),
        with("ports is a number", "/spec/containers/0/ports", json!(80)),
        with("hostNetwork is text", "/spec/hostNetwork", json!("true")),
        with("grace period is text", "/spec/terminationGracePeriodSeconds", json!("30")),
        with("labels is a list", "/metadata/labels", json!([])),
    ]
}

fn lives() -> Vec<Case> {
    let mut cases: Vec<Case> = [0, 1, 2, 5, 10, 11, 30, 600, 86_400, -1]
        .into_iter()
        .map(|grace| with(&format!("grace period {grace} s"), "/spec/terminationGracePeriodSeconds", json!(grace)))
        .collect();
    cases.push(with("no grace period", "/spec/terminationGracePeriodSeconds", Value::Null));
    cases.push(changed("drain time of a long grace period", |pod| {
        annotate(pod, &[("drain-time", "5m")]);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(600);
    }));
    for (owner, policy) in [("Job", "Never"), ("Job", "OnFailure"), ("StatefulSet", "Always"), ("DaemonSet", "Always")]
    {
        cases.push(changed(format!("{owner}, restartPolicy {policy}"), |pod| {
            pod["metadata"]["ownerReferences"][0]["kind"] = json!(owner);
            pod["spec"]["restartPolicy"] = json!(policy);
        }));
    }
    cases.push(changed("StatefulSet with a claim and a name", |pod| {
        pod["metadata"]["name"] = json!("orders-0");
        pod["spec"]["hostname"] = json!("orders-0");
        pod["spec"]["volumes"] = json!([{ "name": "d", "persistentVolumeClaim": { "claimName": "d-orders-0" } }]);
    }));
    cases.push(changed("DaemonSet with tolerations and a host port", |pod| {
        pod["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
        pod["spec"]["containers"][0]["ports"][0]["hostPort"] = json!(8080);
    }));
    cases
}

fn conflicts() -> Vec<Case> {
    let mut cases: Vec<Case> = [15_000, 15_001, 15_006, 15_009, 15_020]
        .into_iter()
        .map(|port| with(&format!("port {port}"), "/spec/containers/0/ports/-", json!({ "containerPort": port })))
        .collect();
    cases.push(with("port 15002 is free", "/spec/containers/0/ports/-", json!({ "containerPort": 15_002 })));
    cases.push(with(
        "port of an init container",
        "/spec/initContainers",
        json!([{ "name": "i", "ports": [{ "containerPort": 15_001 }] }]),
    ));
    for name in ["outrigger-proxy", "outrigger-intercept"] {
        cases.push(with(&format!("a container named {name}"), "/spec/containers/0/name", json!(name)));
        cases.push(with(
            &format!("an init container named {name}"),
            "/spec/initContainers",
            json!([{ "name": name, "image": "x" }]),
        ));
        cases.push(with(
            &format!("an ephemeral container named {name}"),
            "/spec/ephemeralContainers",
            json!([{ "name": name }]),
        ));
    }
    cases.push(with(
        "a volume of our name",
        "/spec/volumes/-",
        json!({ "name": "outrigger-bootstrap", "emptyDir": {} }),
    ));
    cases.push(with("pod runs as 1337", "/spec/securityContext", json!({ "runAsUser": 1337 })));
    cases.push(with("pod runs as group 1337", "/spec/securityContext", json!({ "runAsGroup": 1337 })));
    cases.push(with("container runs as 1337", "/spec/containers/0/securityContext", json!({ "runAsUser": 1337 })));
    cases.push(changed("pod runs as 1337, its only container does not", |pod| {
        pod["spec"]["securityContext"] = json!({ "runAsUser": 1337 });
        pod["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 1000 });
    }));
    cases.push(changed("many conflicts", |pod| {
        let bad = json!({ "name": "a", "ports": vec![json!({ "containerPort": 15_001 }); 80] });
        pod["spec"]["containers"] = json!([bad]);
    }));
    cases
}

/// What the webhook makes of a pod.
fn apply(pod: &Value, namespace: &str) -> Value {
    let read = Pod::deserialize(pod).expect("a pod");
    let decision = outrigger_control::inject::decide(&read, namespace, &config()).expect("it is let in");
    patched(pod, &decision.steps)
}

/// A pod after a JSON Patch, by another's hand.
pub(crate) fn patched(pod: &Value, steps: &[Step]) -> Value {
    let steps: json_patch::Patch = serde_json::from_slice(&to_json(steps)).expect("a JSON Patch");
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &steps).expect("the patch fits");
    pod
}

/// Pods that come a second time.
fn again() -> Vec<Case> {
    let injected = |change: &dyn Fn(&mut Value)| {
        let mut pod = apply(&plain(), "shop");
        change(&mut pod);
        pod
    };
    let old = |pod: &mut Value| {
        for index in [0, 1] {
            pod["spec"]["initContainers"][index]["image"] = json!("registry.example/outrigger-proxy:0.9.0");
        }
    };
    let mut cases = vec![
        case("again: as it was", injected(&|_| {}), "shop"),
        case(
            "again: another container came",
            injected(&|pod| put(pod, "/spec/containers/-", json!({ "name": "late" }))),
            "shop",
        ),
        case(
            "again: another init container is in front",
            injected(&|pod| {
                let list = pod["spec"]["initContainers"].as_array_mut().expect("a list");
                list.insert(0, json!({ "name": "early" }));
            }),
            "shop",
        ),
        case(
            "again: a label disables it now",
            injected(&|pod| {
                pod["metadata"]["labels"]["outrigger.dev/inject"] = json!("disabled");
            }),
            "shop",
        ),
        case("again: the status is gone", injected(&|pod| put(pod, "/metadata/annotations", Value::Null)), "shop"),
        case("again: the status is not ours", injected(&|pod| annotate(pod, &[("status", "yes")])), "shop"),
        case("again: only the status is left", injected(&|pod| put(pod, "/spec/initContainers", Value::Null)), "shop"),
        case(
            "again: the capture is gone",
            injected(&|pod| {
                drop(pod["spec"]["initContainers"].as_array_mut().expect("a list").remove(0));
            }),
            "shop",
        ),
        case("again: with a bad annotation", injected(&|pod| annotate(pod, &[("io", "no")])), "shop"),
        case("again: old image, keep", injected(&old), "shop"),
        case(
            "again: projected file, all",
            injected(&|pod| {
                annotate(pod, &[("bootstrap-from", "projected-file"), ("upgrade", "all")]);
            }),
            "shop",
        ),
    ];
    for word in ["image", "all"] {
        let pod = injected(&|pod| {
            old(pod);
            annotate(pod, &[("upgrade", word), ("log-level", "debug")]);
        });
        cases.push(case(format!("again: old image, upgrade {word}"), pod, "shop"));
    }
    cases
}

/// Bodies that hold no new pod, or nothing that can be read.
fn no_pods() -> Vec<Case> {
    let raw = |name: &str, body: &[u8]| Case {
        name: format!("body: {name}"),
        body: body.to_vec(),
        pod: None,
        namespace: "shop".to_owned(),
    };
    let good = review(&plain(), "shop");
    let edited = |name: &str, pointer: &str, value: Value| {
        let mut review = good.clone();
        put(&mut review, pointer, value);
        raw(name, review.to_string().as_bytes())
    };
    let text = good.to_string();
    vec![
        raw("empty", b""),
        raw("half", &text.as_bytes()[..text.len() / 2]),
        raw("not UTF-8", &[0xff, 0xfe, 0x00]),
        raw("YAML", b"apiVersion: admission.k8s.io/v1\nkind: AdmissionReview\n"),
        raw("a list", b"[]"),
        raw("null", b"null"),
        raw("trailing text", format!("{text} x").as_bytes()),
        raw("two reviews", format!("{text}{text}").as_bytes()),
        raw(
            "a repeated field",
            text.replacen("\"kind\":\"AdmissionReview\"", "\"kind\":\"A\",\"kind\":\"B\"", 1).as_bytes(),
        ),
        raw("deep lists", "[".repeat(200_000).as_bytes()),
        raw("deep objects", r#"{"request":"#.repeat(50_000).as_bytes()),
        edited("v1beta1", "/apiVersion", json!("admission.k8s.io/v1beta1")),
        edited("another kind", "/kind", json!("ConversionReview")),
        edited("no request", "/request", Value::Null),
        edited("an answer", "/response", json!({ "uid": "x", "allowed": true })),
        edited("no uid", "/request/uid", Value::Null),
        edited("uid is a number", "/request/uid", json!(7)),
        edited("uid is long", "/request/uid", json!("u".repeat(257))),
        edited("no object", "/request/object", Value::Null),
        edited("object is text", "/request/object", json!("pod")),
        edited("object is a list", "/request/object", json!([])),
        edited("dry run", "/request/dryRun", json!(true)),
        edited("update", "/request/operation", json!("UPDATE")),
        edited("delete", "/request/operation", json!("DELETE")),
        edited("connect", "/request/operation", json!("CONNECT")),
        edited("a subresource", "/request/subResource", json!("ephemeralcontainers")),
        edited("a Deployment", "/request/kind", json!({ "group": "apps", "version": "v1", "kind": "Deployment" })),
        edited("no kind", "/request/kind", Value::Null),
        edited("no namespace", "/request/namespace", Value::Null),
    ]
}

/// Pods as large as an API server takes them.
pub(crate) fn large() -> Vec<Case> {
    const BYTES: usize = 3_000_000;
    let wide = |name: &str, count: usize, one: &dyn Fn(usize) -> Value, pointer: &str| {
        with(&format!("3 MB: {name}"), pointer, (0..count).map(one).collect())
    };
    vec![
        annotated("3 MB: one long annotation", &[])
            .map_pod(|pod| pod["metadata"]["annotations"]["x"] = json!("x".repeat(BYTES))),
        wide(
            "48,000 variables",
            48_000,
            &|index| json!({ "name": format!("VARIABLE_{index:06}"), "value": format!("value {index:020}") }),
            "/spec/containers/0/env",
        ),
        wide(
            "15,500 volumes",
            15_500,
            &|index| {
                json!({ "name": format!("volume-{index:06}"), "configMap": { "name": format!("config-map-of-this-pod-{index:06}"),
                "items": [{ "key": "application.properties", "path": "application.properties", "mode": 420 }],
                "defaultMode": 420, "optional": true } })
            },
            "/spec/volumes",
        ),
        wide(
            "10,000 containers",
            10_000,
            &|index| {
                json!({ "name": format!("container-{index:06}"), "image": format!("registry.example/shop/orders:{index}"),
                "ports": [{ "containerPort": 8080, "protocol": "TCP" }], "command": ["/usr/bin/orders", "--serve", "--port=8080"],
                "resources": { "requests": { "cpu": "1m", "memory": "1Mi" } },
                "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 } }, "imagePullPolicy": "IfNotPresent" })
            },
            "/spec/containers",
        ),
        with("3 MB: escapes", "/metadata/annotations", json!({ "x": "\u{1}\"\\\n".repeat(BYTES / 12) })),
    ]
}

impl Case {
    fn map_pod(self, change: impl FnOnce(&mut Value)) -> Self {
        let mut pod = self.pod.expect("a pod");
        change(&mut pod);
        case(self.name, pod, &self.namespace)
    }
}
