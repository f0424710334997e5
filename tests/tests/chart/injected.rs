//! Purpose: what the chart tells the injector, the injector takes; what the injector makes of workloads, each version of
//! Kubernetes takes; the control plane knows every flag that its Deployment gives it.
//!
//! Shape: `outriggerctl inject` on the files below `tests/chart/workloads`, with the configuration as it was rendered.

use std::process::{Command, Output};

use outrigger_tests::world::binary;
use outrigger_tests::world::scratch::Scratch;
use serde_json::Value;

use super::rendered::{Rendered, files, parse, text};
use super::{everywhere, read, root, schemas};

/// The injector's configuration of a rendering, if it has one.
fn configuration(rendered: &Rendered) -> Option<String> {
    let found = rendered.kind("ConfigMap").find_map(|map| map["data"]["injector.yaml"].as_str());
    found.map(str::to_owned)
}

fn inject(scratch: &Scratch, configuration: &str, workload: &str) -> Output {
    let program = binary::find("outriggerctl").unwrap_or_else(|error| panic!("{error}"));
    let file = scratch.write("injector.yaml", configuration).unwrap();
    let workload = root().join("tests/chart/workloads").join(workload);
    Command::new(program).arg("inject").arg("-f").arg(workload).arg("--injector-config").arg(file).output().unwrap()
}

/// The workloads with their sidecars, lists taken apart.
fn injected(configuration: &str) -> Rendered {
    let scratch = Scratch::new("chart").unwrap();
    let mut objects = Vec::new();
    for workload in files("tests/chart/workloads") {
        let output = inject(&scratch, configuration, &workload);
        assert!(output.status.success(), "{workload}: {}", String::from_utf8_lossy(&output.stderr));
        for object in parse(&String::from_utf8(output.stdout).unwrap()) {
            match object["items"].as_array() {
                Some(items) => objects.extend(items.iter().cloned()),
                None => objects.push(object),
            }
        }
    }
    Rendered(objects)
}

#[test]
#[ignore = "needs Helm and the schemas of others: make chart"]
fn injected_workloads_pass_the_strict_schemas_of_each_version() {
    let mut all = Vec::new();
    for (set, rendered) in everywhere() {
        let Some(configuration) = configuration(&rendered) else { continue };
        let workloads = injected(&configuration);
        let pods = workloads.pods();
        assert_eq!(pods.len(), 7, "{set}: {:?}", pods.iter().map(|(name, _)| name).collect::<Vec<_>>());
        for (name, spec) in pods {
            let containers = spec["initContainers"].as_array().unwrap();
            let names: Vec<String> = containers.iter().map(|container| text(container, "/name")).collect();
            assert_eq!(names[..2], ["outrigger-intercept", "outrigger-proxy"], "{set}: {name}");
            assert_eq!(containers[1]["restartPolicy"], "Always", "{set}: {name}");
            let image = rendered.image();
            assert!(containers[..2].iter().all(|container| container["image"] == image.as_str()), "{set}: {name}");
        }
        all.extend(workloads.0);
    }
    schemas::pass(&all);
}

/// A sidecar asks for the profile exactly where the chart puts it.
#[test]
#[ignore = "needs Helm: make chart"]
fn sidecars_name_the_profile_that_is_installed() {
    for (set, rendered) in everywhere() {
        let Some(configuration) = configuration(&rendered) else { continue };
        let is_installed = rendered.kind("DaemonSet").count() == 1;
        for (name, spec) in injected(&configuration).pods() {
            let profile = &spec["initContainers"][1]["securityContext"]["seccompProfile"];
            let expected = match is_installed {
                true => serde_json::json!({ "type": "Localhost", "localhostProfile": "outrigger/proxy.json" }),
                false => serde_json::json!({ "type": "RuntimeDefault" }),
            };
            assert_eq!(*profile, expected, "{set}: {name}");
        }
    }
}

#[test]
#[ignore = "needs Helm: make chart"]
fn a_wrong_default_is_refused_by_the_injector() {
    let rendered = Rendered::of("default");
    let wrong = configuration(&rendered).unwrap().replace("defaults: {}", "defaults: { outrigger.dev/log-levl: info }");
    let output = inject(&Scratch::new("chart").unwrap(), &wrong, "jobs.yaml");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("log-levl") && said.contains("log-level"), "{said}");
}

#[test]
#[ignore = "needs Helm: make chart"]
fn the_programs_know_every_flag_they_are_given() {
    let help = |program: &str| {
        let output = Command::new(binary::find(program).unwrap()).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for (set, rendered) in everywhere() {
        for (name, spec) in rendered.pods() {
            for container in spec["containers"].as_array().unwrap() {
                let program = container["command"][0].as_str().unwrap_or_default();
                if !program.starts_with("outrigger") {
                    continue;
                }
                let help = help(program);
                for flag in container["args"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    let flag = flag.split('=').next().unwrap();
                    let is_known = !flag.starts_with("--") || help.contains(&format!("{flag} "));
                    assert!(is_known, "{set}: {name}: {program} has no {flag}");
                }
            }
        }
    }
}

/// The schema has every annotation that may have a default, with its words, and no other.
#[test]
#[ignore = "needs the built programs: make chart"]
fn the_schema_names_the_annotations_that_there_are() {
    let program = binary::find("outriggerctl").unwrap();
    let output = Command::new(program).args(["inject", "--list-annotations", "-o", "json"]).output().unwrap();
    let table: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let schema: Value = serde_json::from_str(&read("charts/outrigger/values.schema.json")).unwrap();
    let named = schema.pointer("/properties/injector/properties/defaults/properties").unwrap().as_object().unwrap();
    let mut known = 0;
    for row in &table {
        let name = text(row, "/name").replace("outrigger.dev/", "");
        if row["writtenBy"] != "user" || ["image", "xds-address"].contains(&name.as_str()) {
            assert!(!named.contains_key(&name), "{name} has no default");
            continue;
        }
        let property = named.get(&name).unwrap_or_else(|| panic!("values.schema.json lacks {name}"));
        assert_eq!(property.get("enum").cloned().unwrap_or_default(), row["words"], "{name}");
        known += 1;
    }
    assert_eq!(known, named.len(), "values.schema.json names an annotation that there is not");
}
