//! Purpose: the chart as Helm renders it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::{root, tool};

/// The release's namespace in every rendering.
pub(crate) const NAMESPACE: &str = "mesh";

/// The Helm versions, by the variable that names the binary.
pub(crate) const HELMS: [&str; 2] = ["OUTRIGGER_HELM3", "OUTRIGGER_HELM4"];

/// Objects, ordered by kind and name.
pub(crate) struct Rendered(pub(crate) Vec<Value>);

/// Runs Helm on the chart.
pub(crate) fn helm(variable: &str, arguments: &[&str]) -> Output {
    let program = tool(variable);
    let output = Command::new(&program).args(arguments).current_dir(root()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `make chart` gets it"))
}

impl Rendered {
    /// With a set of values, by Helm 4.
    pub(crate) fn of(set: &str) -> Self {
        Self::by(HELMS[1], set)
    }

    /// With a set of values, by one of the Helms.
    pub(crate) fn by(variable: &str, set: &str) -> Self {
        let values = format!("tests/chart/values/{set}.yaml");
        let output = helm(
            variable,
            &["template", "outrigger", "charts/outrigger", "-n", NAMESPACE, "--include-crds", "-f", &values],
        );
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stderr));
        let mut objects = parse(&String::from_utf8(output.stdout).unwrap());
        objects.sort_by_key(|object| (text(object, "/kind"), text(object, "/metadata/name")));
        Self(objects)
    }

    /// Objects of a kind.
    pub(crate) fn kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// The proxy's image, as the injector is told.
    pub(crate) fn image(&self) -> String {
        let told = self.kind("ConfigMap").find_map(|map| map["data"]["injector.yaml"].as_str());
        text(&parse(told.unwrap_or_default()).remove(0), "/image")
    }

    /// Every pod that will run: the pods themselves, and the templates of workloads.
    pub(crate) fn pods(&self) -> Vec<(String, &Value)> {
        let name = |object: &Value| format!("{}/{}", text(object, "/kind"), text(object, "/metadata/name"));
        let spec = |object| match text(object, "/kind").as_str() {
            "Pod" => object.get("spec"),
            "CronJob" => object.pointer("/spec/jobTemplate/spec/template/spec"),
            _ => object.pointer("/spec/template/spec"),
        };
        self.0.iter().filter_map(|object| Some((name(object), spec(object)?))).collect()
    }
}

/// Documents of YAML, without empty ones.
pub(crate) fn parse(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let values = documents.map(|document| serde::Deserialize::deserialize(document).unwrap());
    values.filter(|value: &Value| !value.is_null()).collect()
}

/// A text in an object, empty where there is none.
pub(crate) fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Names of the files in a folder of the repository, in order.
pub(crate) fn files(folder: &str) -> Vec<String> {
    let path = root().join(folder);
    let entries = std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .filter_map(|path: std::path::PathBuf| Path::new(&path).file_name()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}
