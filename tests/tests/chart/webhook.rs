//! Purpose: which pods the API server asks the injector about: those that a label selected, each once, and nothing else.
//!
//! Shape: a small evaluator of label selectors, over a table of namespaces and pods.

use std::collections::BTreeMap;

use serde_json::Value;

use super::rendered::{NAMESPACE, Rendered, text};

type Labels = BTreeMap<&'static str, &'static str>;

const LABEL: &str = "outrigger.dev/inject";

fn matches(selector: &Value, labels: &Labels) -> bool {
    let expressions = selector["matchExpressions"].as_array().unwrap();
    expressions.iter().all(|expression| {
        let value = labels.get(text(expression, "/key").as_str());
        let values: Vec<&str> = expression["values"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let is_in = value.is_some_and(|value| values.contains(value));
        match text(expression, "/operator").as_str() {
            "In" => is_in,
            "NotIn" => !is_in,
            other => panic!("operator {other} is not known to this test"),
        }
    })
}

/// How many webhooks are called.
fn called(rendered: &Rendered, namespace: &Labels, pod: &Labels) -> usize {
    let configuration = rendered.kind("MutatingWebhookConfiguration").next().unwrap();
    let hooks = configuration["webhooks"].as_array().unwrap();
    let is_called =
        |hook: &&Value| matches(&hook["namespaceSelector"], namespace) && matches(&hook["objectSelector"], pod);
    hooks.iter().filter(is_called).count()
}

#[test]
#[ignore = "needs Helm: make chart"]
fn a_pod_is_reviewed_once_when_a_label_asks_and_never_otherwise() {
    let rendered = Rendered::of("default");
    let say = |value: &'static str| match value {
        "" => Labels::new(),
        value => Labels::from([(LABEL, value)]),
    };
    // What the namespace says, what the pod says, how many reviews that makes.
    let cases = [
        ("", "", 0),
        ("", "enabled", 1),
        ("", "disabled", 0),
        ("", "other", 0),
        ("enabled", "", 1),
        ("enabled", "enabled", 1),
        ("enabled", "disabled", 0),
        // The injector refuses it and says what is allowed.
        ("enabled", "other", 1),
        ("disabled", "", 0),
        ("disabled", "enabled", 0),
        ("disabled", "disabled", 0),
        ("other", "", 0),
        ("other", "enabled", 1),
    ];
    for (of_namespace, of_pod, reviews) in cases {
        for name in ["shop", "kube-system", "kube-public", "kube-node-lease", NAMESPACE] {
            let mut labels = say(of_namespace);
            labels.insert("kubernetes.io/metadata.name", name);
            let expected = if name == "shop" { reviews } else { 0 };
            let found = called(&rendered, &labels, &say(of_pod));
            assert_eq!(found, expected, "namespace {name} {of_namespace:?}, pod {of_pod:?}");
        }
    }
}

#[test]
#[ignore = "needs Helm: make chart"]
fn each_webhook_calls_the_service_for_pods_made_and_changes_nothing_else() {
    for (set, rendered) in super::everywhere() {
        for hook in
            rendered.kind("MutatingWebhookConfiguration").flat_map(|object| object["webhooks"].as_array().unwrap())
        {
            let client = &hook["clientConfig"]["service"];
            let service = rendered.kind("Service").find(|service| service["metadata"]["name"] == client["name"]);
            let ports = service.unwrap()["spec"]["ports"].as_array().unwrap();
            assert!(ports.iter().any(|port| port["port"] == client["port"]), "{set}: {client}");
            let rules = serde_json::json!([{
                "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "Namespaced",
            }]);
            assert_eq!(hook["rules"], rules, "{set}");
            assert_eq!((&hook["sideEffects"], &hook["matchPolicy"]), (&"None".into(), &"Equivalent".into()), "{set}");
            // The control plane writes it; were it here, an upgrade would take it away.
            assert!(hook["clientConfig"].get("caBundle").is_none(), "{set}");
        }
    }
}
