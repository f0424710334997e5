//! Purpose: no pod of the chart has a right it does not need, and no role grants more than is listed here.

use std::collections::BTreeSet;

use outrigger_control::kubernetes::rules;
use serde_json::{Value, json};

use super::everywhere;
use super::rendered::{Rendered, text};

/// The one container that runs as root, and why: it writes a file into a folder of root's on the node.
const ROOT: (&str, &str) = ("DaemonSet/outrigger-seccomp", "install");

/// Every right that a role of the chart may grant: group, resource, verbs, and whether it is bound to one name.
const RIGHTS: &[(&str, &str, &str, bool)] = &[
    ("", "namespaces", "list watch", false),
    ("", "pods", "list watch", false),
    ("", "secrets", "get list update watch", true),
    ("", "services", "list watch", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "get list patch watch", true),
    ("coordination.k8s.io", "leases", "create", false),
    ("coordination.k8s.io", "leases", "get update", true),
    ("discovery.k8s.io", "endpointslices", "list watch", false),
    ("gateway.networking.k8s.io", "grpcroutes", "create delete list patch watch", false),
    ("gateway.networking.k8s.io", "grpcroutes/status", "patch", false),
    ("gateway.networking.k8s.io", "httproutes", "create delete list patch watch", false),
    ("gateway.networking.k8s.io", "httproutes/status", "patch", false),
    ("outrigger.dev", "accesspolicies", "create delete list patch watch", false),
    ("outrigger.dev", "accesspolicies/status", "patch", false),
    ("outrigger.dev", "meshconfigs", "create delete list patch watch", false),
    ("outrigger.dev", "meshconfigs/status", "patch", false),
    ("outrigger.dev", "ratelimits", "create delete list patch watch", false),
    ("outrigger.dev", "ratelimits/status", "patch", false),
    ("outrigger.dev", "trafficpolicies", "create delete list patch watch", false),
    ("outrigger.dev", "trafficpolicies/status", "patch", false),
    ("outrigger.dev", "upstreams", "create delete list patch watch", false),
    ("outrigger.dev", "upstreams/status", "patch", false),
];

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// What is wrong with a pod.
fn judge_pod(name: &str, spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[key] == true {
            found.push(format!("{name}: {key}"));
        }
    }
    if spec["automountServiceAccountToken"].as_bool().is_none() {
        found.push(format!("{name}: says nothing of automountServiceAccountToken"));
    }
    for container in list(spec, "/initContainers").chain(list(spec, "/containers")) {
        let (own, pod) = (&container["securityContext"], &spec["securityContext"]);
        let place = format!("{name} {}", text(container, "/name"));
        let either = |key: &str| own.get(key).or_else(|| pod.get(key)).cloned().unwrap_or_default();
        let is_root = (name, text(container, "/name").as_str()) == ROOT;
        let mut want = |what: &str, is_so: bool| {
            if !is_so {
                found.push(format!("{place}: {what}"));
            }
        };
        want("allowPrivilegeEscalation is not false", own["allowPrivilegeEscalation"] == false);
        want("the root file system is writable", own["readOnlyRootFilesystem"] == true);
        want("capabilities are not dropped", own["capabilities"] == json!({ "drop": ["ALL"] }));
        want("privileged", own.get("privileged").is_none_or(|value| value == false));
        want(
            "the seccomp profile is not the runtime's",
            either("seccompProfile") == json!({ "type": "RuntimeDefault" }),
        );
        want("runs as root", is_root || (either("runAsNonRoot") == true && either("runAsUser").as_u64() > Some(0)));
        want("has no memory limit", container.pointer("/resources/limits/memory").is_some());
        want("has no CPU request", container.pointer("/resources/requests/cpu").is_some());
        want("the image has no tag", text(container, "/image").rsplit('/').next().unwrap_or_default().contains(':'));
    }
    for volume in list(spec, "/volumes") {
        let path = text(volume, "/hostPath/path");
        let is_narrow = name == ROOT.0 && path.ends_with("/seccomp/outrigger");
        if volume.get("hostPath").is_some() && !is_narrow {
            found.push(format!("{name}: hostPath {path}"));
        }
    }
    found
}

#[test]
#[ignore = "needs Helm: make chart"]
fn every_container_is_locked_down() {
    let mut pods = 0;
    for (set, rendered) in everywhere() {
        for (name, spec) in rendered.pods() {
            let name = name.replace("/mesh-", "/outrigger-");
            assert_eq!(judge_pod(&name, spec), Vec::<String>::new(), "{set}");
            pods += 1;
        }
    }
    assert!(pods >= 10, "{pods} pods were judged");
}

#[test]
fn an_open_pod_is_found() {
    let spec = json!({
        "hostNetwork": true,
        "containers": [{ "name": "x", "image": "x" }],
        "volumes": [{ "name": "root", "hostPath": { "path": "/" } }],
    });
    let found = judge_pod("Pod/x", &spec);
    for what in
        ["hostNetwork", "automount", "Escalation", "writable", "dropped", "seccomp", "root", "memory", "CPU", "tag"]
    {
        assert!(found.iter().any(|problem| problem.contains(what)), "{what} is missing in {found:?}");
    }
    assert!(found.iter().any(|problem| problem.ends_with("hostPath /")), "{found:?}");
}

/// The rights that roles grant, in the manner of [`RIGHTS`].
fn rights(rendered: &Rendered) -> BTreeSet<(String, String, String, bool)> {
    let mut found = BTreeSet::new();
    for role in rendered.kind("Role").chain(rendered.kind("ClusterRole")) {
        for rule in list(role, "/rules") {
            let texts = |pointer| list(rule, pointer).map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>();
            let mut verbs = texts("/verbs");
            verbs.sort();
            assert!(rule.get("nonResourceURLs").is_none(), "{rule}");
            for group in texts("/apiGroups") {
                for resource in texts("/resources") {
                    let names = texts("/resourceNames");
                    found.insert((group.clone(), resource, verbs.join(" "), !names.is_empty()));
                }
            }
        }
    }
    found
}

#[test]
#[ignore = "needs Helm: make chart"]
fn roles_grant_what_is_listed_and_no_more() {
    let listed: BTreeSet<_> = RIGHTS
        .iter()
        .map(|(group, resource, verbs, named)| {
            ((*group).to_owned(), (*resource).to_owned(), (*verbs).to_owned(), *named)
        })
        .collect();
    for (set, rendered) in everywhere() {
        let granted = rights(&rendered);
        let more: Vec<_> = granted.difference(&listed).collect();
        assert!(more.is_empty(), "{set}: {more:?}");
        for (group, resource, verbs, _) in &granted {
            assert!(![group, resource, verbs].iter().any(|text| text.contains('*')), "{set}: {resource}");
        }
        let expected = match set {
            "default" => listed.len(),
            "redb" => 6,
            "everything" => listed.len() - 2,
            _ => 0,
        };
        assert_eq!(granted.len(), expected, "{set}: {granted:?}");
    }
}

/// What the control plane says that it needs is what it gets, but for the webhook's two objects.
#[test]
#[ignore = "needs Helm: make chart"]
fn roles_are_what_the_control_plane_lists_for_itself() {
    let wanted = [rules::registry_rules(), rules::policy_rules(), rules::own_rules()].concat();
    let rendered = Rendered::of("default");
    let mut granted: Vec<Value> = Vec::new();
    for role in rendered.kind("ClusterRole").chain(rendered.kind("Role")) {
        granted.extend(list(role, "/rules").cloned());
    }
    granted.retain(|rule| rule["resourceNames"] != json!(["outrigger-injector"]));
    for rule in &wanted {
        assert!(granted.contains(rule), "the chart does not grant {rule}");
    }
    assert_eq!(granted.len(), wanted.len(), "{granted:?}");
}

/// Only the release's service account is bound, and the token is mounted only where it is of use.
#[test]
#[ignore = "needs Helm: make chart"]
fn roles_are_bound_to_one_account() {
    for (set, rendered) in everywhere() {
        let account = text(rendered.kind("ServiceAccount").next().unwrap(), "/metadata/name");
        let mut bound = false;
        for binding in rendered.kind("RoleBinding").chain(rendered.kind("ClusterRoleBinding")) {
            let subjects: Vec<String> = list(binding, "/subjects").map(|subject| text(subject, "/name")).collect();
            assert_eq!(subjects, [account.as_str()], "{set}");
            bound = true;
        }
        for (name, spec) in rendered.pods() {
            let is_control = text(spec, "/serviceAccountName") == account;
            assert_eq!(spec["automountServiceAccountToken"], json!(is_control && bound), "{set}: {name}");
        }
    }
}
