//! Purpose: the two containers, the volume and the hook that make a pod part of the mesh.
//! Shape: pure functions of an annotation's [`Values`] to JSON; nothing of the pod enters but its grace period.
//! Source: Kubernetes, "Sidecar Containers" (an init container with `restartPolicy: Always`); the ports and flags are the
//! proxy's own.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::annotations::{BOOTSTRAP, TABLE, Values};
use super::config::InjectorConfig;
use super::patch::Shared;
use super::{BOOTSTRAP_VOLUME, HEALTH_PORT, INTERCEPT_CONTAINER, PROXY_CONTAINER, PROXY_ID, bootstrap};

const PROGRAM: &str = "/usr/local/bin/outrigger-proxy";
const BOOTSTRAP_FOLDER: &str = "/etc/outrigger";
/// Where the chart puts the profile, below the kubelet's seccomp folder.
const SECCOMP_PROFILE: &str = "outrigger/proxy.json";
/// Seconds after the proxy's own deadline until the kubelet kills it, so that the proxy can say what is missing.
const DEADLINE_MARGIN: u64 = 10;
/// Kubernetes wants a bound even where the proxy waits for ever: a day.
const STARTUP_SECONDS_MAX: u64 = 86_400;
/// The name of the health port, for monitors to select. At most 15 characters.
pub const HEALTH_PORT_NAME: &str = "mesh-health";

/// The capture's settings: the annotation and the flag of `outrigger-proxy intercept`.
const CAPTURE_FLAGS: &[(&str, &str)] = &[
    ("capture-backend", "backend"),
    ("capture-ipv6", "ipv6"),
    ("include-inbound-ports", "include-inbound-ports"),
    ("exclude-inbound-ports", "exclude-inbound-ports"),
    ("include-outbound-cidrs", "include-outbound-cidrs"),
    ("exclude-outbound-cidrs", "exclude-outbound-cidrs"),
    ("include-outbound-ports", "include-outbound-ports"),
    ("exclude-outbound-ports", "exclude-outbound-ports"),
    ("exclude-uids", "exclude-uids"),
    ("exclude-gids", "exclude-gids"),
];

/// The init container that writes the capture's rules and proves them.
pub(super) fn intercept(values: &Values) -> Value {
    let mut args = vec!["intercept".to_owned(), "apply".to_owned(), "--verify".to_owned()];
    args.push(format!("--mode={}", values.text("capture-mode")));
    args.push(format!("--proxy-uid={PROXY_ID}"));
    args.push(format!("--proxy-gid={PROXY_ID}"));
    for (name, flag) in CAPTURE_FLAGS {
        let default = TABLE.iter().find(|row| row.name == *name).map_or("", |row| row.default);
        let value = values.text(name);
        if value != default {
            args.push(format!("--{flag}={value}"));
        }
    }
    json!({
        "name": INTERCEPT_CONTAINER,
        "image": values.text("image"),
        "imagePullPolicy": values.text("image-pull-policy"),
        "command": [PROGRAM],
        "args": args,
        "resources": resources(values),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// The native sidecar.
pub(super) fn proxy(values: &Values, config: &InjectorConfig, drain_seconds: u64) -> Value {
    let mut container = json!({
        "name": PROXY_CONTAINER,
        "image": values.text("image"),
        "imagePullPolicy": values.text("image-pull-policy"),
        "command": [PROGRAM],
        "args": proxy_args(values, drain_seconds),
        "env": environment(values),
        "ports": [{ "containerPort": HEALTH_PORT, "name": HEALTH_PORT_NAME, "protocol": "TCP" }],
        "resources": resources(values),
        "restartPolicy": "Always",
        "securityContext": proxy_security(values, config),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if let Value::Object(map) = &mut container {
        map.extend(probes(values));
        if is_projected(values) {
            let mount = json!({ "mountPath": BOOTSTRAP_FOLDER, "name": BOOTSTRAP_VOLUME, "readOnly": true });
            map.insert("volumeMounts".to_owned(), json!([mount]));
        }
    }
    container
}

fn proxy_args(values: &Values, drain_seconds: u64) -> Vec<String> {
    let mut args = Vec::new();
    if is_projected(values) {
        args.extend(["-c".to_owned(), format!("{BOOTSTRAP_FOLDER}/bootstrap.yaml")]);
    }
    args.extend(["--config-yaml".to_owned(), "$(OUTRIGGER_BOOTSTRAP)".to_owned()]);
    args.push(format!("--health=*:{HEALTH_PORT}"));
    args.push("--capture-heartbeat".to_owned());
    args.push(format!("--drain-time={drain_seconds}s"));
    for name in ["ready-deadline", "workers", "io", "log-level", "log-format"] {
        args.push(format!("--{name}={}", values.text(name)));
    }
    args
}

fn environment(values: &Values) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut list = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("POD_IPS", "status.podIPs"),
    ];
    if values.text("cpu-request") != "none" {
        let request = json!({ "divisor": "1m", "resource": "requests.cpu" });
        list.push(json!({ "name": "OUTRIGGER_CPU_REQUEST_MILLI", "valueFrom": { "resourceFieldRef": request } }));
    }
    let rest = if is_projected(values) { String::new() } else { bootstrap::rest(values) };
    list.push(json!({ "name": "OUTRIGGER_BOOTSTRAP", "value": bootstrap::node(values) + &rest }));
    Value::Array(list)
}

/// `requests` and `limits`, without what is `none`. The init container has the same: it ends before the sidecar starts,
/// so the pod needs no more for it, and quotas that want limits are met.
fn resources(values: &Values) -> Value {
    let mut groups = Map::new();
    for (group, cpu, memory) in [("requests", "cpu-request", "memory-request"), ("limits", "cpu-limit", "memory-limit")]
    {
        let mut amounts = Map::new();
        for (kind, name) in [("cpu", cpu), ("memory", memory)] {
            if values.text(name) != "none" {
                amounts.insert(kind.to_owned(), json!(values.text(name)));
            }
        }
        if !amounts.is_empty() {
            groups.insert(group.to_owned(), Value::Object(amounts));
        }
    }
    Value::Object(groups)
}

/// IP_TRANSPARENT, which TPROXY needs, is a right of root with NET_ADMIN only: a container cannot give a capability to
/// another user. The group keeps the proxy out of its own capture.
fn proxy_security(values: &Values, config: &InjectorConfig) -> Value {
    let is_transparent = values.text("capture-mode") == "tproxy";
    let seccomp = match seccomp_profile(values, config) {
        Some(path) => json!({ "localhostProfile": path, "type": "Localhost" }),
        None => json!({ "type": "RuntimeDefault" }),
    };
    let capabilities = match is_transparent {
        true => json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] }),
        false => json!({ "drop": ["ALL"] }),
    };
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": capabilities,
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": PROXY_ID,
        "runAsNonRoot": !is_transparent,
        "runAsUser": if is_transparent { 0 } else { PROXY_ID },
        "seccompProfile": seccomp,
    })
}

/// Our own profile, which allows io_uring, if the proxy runs under it.
pub(super) fn seccomp_profile<'a>(values: &Values, config: &'a InjectorConfig) -> Option<&'a str> {
    match values.text("seccomp") {
        "runtime-default" => None,
        "localhost" => Some(config.seccomp_profile.as_deref().unwrap_or(SECCOMP_PROFILE)),
        _ => config.seccomp_profile.as_deref(),
    }
}

fn probes(values: &Values) -> Map<String, Value> {
    let probe = |path: &str, period: u64, failures: u64| {
        json!({
            "failureThreshold": failures,
            "httpGet": { "path": path, "port": HEALTH_PORT },
            "periodSeconds": period,
            "timeoutSeconds": 3,
        })
    };
    let deadline: u64 = values.text("ready-deadline").trim_end_matches('s').parse().unwrap_or_default();
    let startup = if deadline == 0 { STARTUP_SECONDS_MAX } else { deadline + DEADLINE_MARGIN };
    let all = [
        ("startupProbe", probe("/ready", 1, startup)),
        ("readinessProbe", probe("/ready", 5, 2)),
        ("livenessProbe", probe("/live", 10, 6)),
    ];
    let wanted = match values.text("probes") {
        "all" => 3,
        "startup" => 1,
        _ => 0,
    };
    all.into_iter().take(wanted).map(|(name, probe)| (name.to_owned(), probe)).collect()
}

pub(super) fn is_projected(values: &Values) -> bool {
    values.text("bootstrap-from") == "projected-file"
}

/// The volume that shows the bootstrap's annotation as a file.
pub(super) fn bootstrap_volume() -> Value {
    let file = json!({
        "fieldRef": { "fieldPath": format!("metadata.annotations['{BOOTSTRAP}']") },
        "path": "bootstrap.yaml",
    });
    json!({ "downwardAPI": { "items": [file] }, "name": BOOTSTRAP_VOLUME })
}

/// The hook that keeps an application serving until nobody sends to it any more.
pub(super) static PRE_STOP: LazyLock<Shared> = LazyLock::new(|| Shared::new(pre_stop()));

/// That hook, for a container without any.
pub(super) static LIFECYCLE: LazyLock<Shared> = LazyLock::new(|| Shared::new(json!({ "preStop": pre_stop() })));

fn pre_stop() -> Value {
    json!({ "httpGet": { "path": "/prestop", "port": HEALTH_PORT } })
}
