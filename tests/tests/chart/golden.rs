//! Purpose: both Helms lint and render the chart alike, and as the golden files have it.
//!
//! Limits: of a rendering, the random token and texts that are files of the chart themselves are not compared again.

use serde_json::{Value, json};

use super::rendered::{HELMS, NAMESPACE, Rendered, files, helm, text};
use super::{SETS, compare, read};

/// What differs from one rendering to the next, or stands in another file, out of the way.
fn normalise(mut rendered: Rendered) -> Vec<Value> {
    let own: Vec<(String, String)> = files("charts/outrigger/files")
        .into_iter()
        .map(|name| (read(&format!("charts/outrigger/files/{name}")).trim_end().to_owned(), name))
        .collect();
    rendered.0.retain(|object| object["kind"] != "CustomResourceDefinition");
    for object in &mut rendered.0 {
        let is_secret = object["kind"] == "Secret";
        for (_, value) in object.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
            let file = own.iter().find(|(text, _)| value.as_str().is_some_and(|value| value.trim_end() == *text));
            match file {
                Some((_, name)) => *value = json!(format!("= files/{name}")),
                None if is_secret => *value = json!("(made)"),
                None => {}
            }
        }
    }
    rendered.0
}

fn to_yaml(objects: &[Value]) -> String {
    let documents = objects.iter().map(|object| serde_yaml_ng::to_string(&sorted(object)).unwrap());
    documents.map(|document| format!("---\n{document}")).collect()
}

/// With keys in order, whatever map this build of `serde_json` has.
fn sorted(value: &Value) -> serde_yaml_ng::Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let pair = |key: &String| (serde_yaml_ng::Value::String(key.clone()), sorted(&map[key]));
            serde_yaml_ng::Value::Mapping(keys.into_iter().map(pair).collect())
        }
        Value::Array(list) => serde_yaml_ng::Value::Sequence(list.iter().map(sorted).collect()),
        other => serde_yaml_ng::to_value(other).unwrap(),
    }
}

#[test]
#[ignore = "needs Helm: make chart"]
fn both_helms_are_what_they_say() {
    for (variable, version) in HELMS.into_iter().zip(["v3.", "v4."]) {
        let said = String::from_utf8(helm(variable, &["version", "--short"]).stdout).unwrap();
        assert!(said.starts_with(version), "{variable} is {said}");
        println!("{variable}: {}", said.trim());
    }
}

#[test]
#[ignore = "needs Helm: make chart"]
fn both_helms_lint_every_set() {
    for variable in HELMS {
        for set in SETS {
            let values = format!("tests/chart/values/{set}.yaml");
            let output = helm(variable, &["lint", "--strict", "charts/outrigger", "-n", NAMESPACE, "-f", &values]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{variable} {set}: {said}");
            assert!(!said.contains("[WARNING]"), "{variable} {set}: {said}");
        }
    }
}

#[test]
#[ignore = "needs Helm: make chart"]
fn both_helms_render_the_golden_files() {
    for set in SETS {
        let [third, fourth] = HELMS.map(|variable| normalise(Rendered::by(variable, set)));
        assert!(third == fourth, "{set} is not the same in both:\n{}\n{}", to_yaml(&third), to_yaml(&fourth));
        assert!(fourth.iter().all(|object| !text(object, "/metadata/name").is_empty()), "{set}: an object has no name");
        compare(&format!("tests/chart/golden/{set}.yaml"), &to_yaml(&fourth));
    }
}

#[test]
#[ignore = "needs Helm: make chart"]
fn no_object_is_there_twice_or_elsewhere() {
    let cluster = ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "MutatingWebhookConfiguration"];
    for (set, rendered) in super::everywhere() {
        for pair in rendered.0.windows(2) {
            let same = |pointer| text(&pair[0], pointer) == text(&pair[1], pointer);
            assert!(!(same("/kind") && same("/metadata/name")), "{set}: twice: {}", pair[0]);
        }
        for object in &rendered.0 {
            let namespace = text(object, "/metadata/namespace");
            let is_cluster = cluster.contains(&text(object, "/kind").as_str());
            assert_eq!(namespace, if is_cluster { "" } else { NAMESPACE }, "{set}: {}", object["metadata"]);
        }
    }
}

/// What an install tells: which images must be where, and what a choice costs.
#[test]
#[ignore = "needs Helm: make chart"]
fn the_notes_name_images_and_next_steps() {
    let notes = |set: &str| {
        let values = format!("tests/chart/values/{set}.yaml");
        // Nothing is asked of a cluster by a dry run on the client.
        let arguments =
            ["install", "outrigger", "charts/outrigger", "-n", NAMESPACE, "--dry-run=client", "-f", &values];
        let output = helm(HELMS[1], &arguments);
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().split("NOTES:").nth(1).unwrap().to_owned()
    };
    let plain = notes("default");
    for part in ["outrigger-control:0.1.0", "outrigger-proxy:0.1.0", "image.registry is empty", "seccomp.install=false"]
    {
        assert!(plain.contains(part), "{part} is missing in:{plain}");
    }
    let full = notes("everything");
    assert!(full.contains("images.example/mesh/control:0.1.0-rc.1") && !full.contains("is empty"), "{full}");
    let minimal = notes("minimal");
    for part in ["policy is gone when the pod is", "networkPolicy.enabled is false"] {
        assert!(minimal.contains(part), "{part} is missing in:{minimal}");
    }
    assert!(!minimal.contains("outrigger-proxy"), "{minimal}");
}
