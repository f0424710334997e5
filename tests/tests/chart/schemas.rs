//! Purpose: every object is what Kubernetes, of each version that we name, and the makers of other kinds say it is.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::{everywhere, root, tool};

/// Versions of Kubernetes that the chart says it is for.
const VERSIONS: [&str; 7] = ["1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];

fn judge(arguments: &[&str], objects: &[Value]) -> Output {
    let python = Command::new("python3")
        .arg(root().join("tests/tools/manifests.py"))
        .args(arguments)
        .env("PYTHONPATH", tool("OUTRIGGER_CHART_CHECKS"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut python = python.unwrap_or_else(|error| panic!("python3: {error}"));
    python.stdin.take().unwrap().write_all(&serde_json::to_vec(objects).unwrap()).unwrap();
    python.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn against_schemas(objects: &[Value]) -> Output {
    let folder = tool("OUTRIGGER_CHART_SCHEMAS");
    let arguments: Vec<&str> = ["schemas", folder.as_str()].into_iter().chain(VERSIONS).collect();
    judge(&arguments, objects)
}

/// Every object is as all versions have it.
#[track_caller]
pub(crate) fn pass(objects: &[Value]) {
    let output = against_schemas(objects);
    assert!(output.status.success(), "{}", said(&output));
    print!("{}", said(&output));
}

#[test]
#[ignore = "needs Helm and the schemas of others: make chart"]
fn every_object_passes_the_strict_schemas_of_each_version() {
    pass(&everywhere().flat_map(|(_, rendered)| rendered.0).collect::<Vec<Value>>());
}

#[test]
#[ignore = "needs the schemas of others: make chart"]
fn a_wrong_object_is_found_in_each_version() {
    let object = |api: &str, kind: &str, spec: Value| json!({ "apiVersion": api, "kind": kind, "metadata": { "name": "x" }, "spec": spec });
    let container = json!({ "name": "a", "image": "a", "securityContext": { "readOnlyRootFileSystem": true } });
    let wrong = [
        (object("v1", "Pod", json!({ "containers": [container] })), "readOnlyRootFileSystem"),
        (object("policy/v1", "PodDisruptionBudget", json!({ "selector": {}, "maxUnavailable": [] })), "maxUnavailable"),
        (object("monitoring.coreos.com/v1", "PodMonitor", json!({ "selector": {}, "endpoints": [] })), "endpoints"),
        (object("cert-manager.io/v1", "Certificate", json!({ "secretName": "x" })), "issuerRef"),
        (object("example.com/v1", "Unheard", json!({})), "nobody describes"),
    ];
    let (objects, words): (Vec<Value>, Vec<&str>) = wrong.into_iter().unzip();
    let output = against_schemas(&objects);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for (word, version) in words.iter().flat_map(|word| VERSIONS.map(|version| (word, version))) {
        let found = text.lines().any(|line| line.contains(word) && line.ends_with(&format!("({version})")));
        assert!(found, "{version} lets {word} pass: {text}");
    }
}

#[test]
#[ignore = "needs Helm and a reader of PromQL: make chart"]
fn every_expression_of_rules_and_dashboard_is_promql() {
    let objects: Vec<Value> = everywhere().flat_map(|(_, rendered)| rendered.0).collect();
    let output = judge(&["expressions"], &objects);
    assert!(output.status.success(), "{}", said(&output));
    print!("{}", said(&output));
    let broken = json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": { "name": "x" },
        "spec": { "groups": [{ "name": "x", "rules": [{ "alert": "x", "expr": "sum(rate(x[5m])" }] }] },
    });
    assert_eq!(judge(&["expressions"], &[broken]).status.code(), Some(1));
}
