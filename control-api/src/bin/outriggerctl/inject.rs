//! Purpose: `outriggerctl inject`: sidecars into manifests, and the list of annotations.
//! Shape: manifests go to standard output, what was done to standard error, so that the output can be piped on.

use std::path::{Path, PathBuf};

use outrigger_control::inject::InjectorConfig;
use outrigger_control::inject::list::{rows, value};
use outrigger_control::inject::manifest::Manifest;
use outrigger_control::settings::read_injector;
use serde_json::{Value, json};

use crate::args::Output;
use crate::client::Failure;
use crate::commands::{pretty, read_one, to_yaml};
use crate::table::render;

/// Injects into files; all or nothing.
pub(crate) fn inject(
    files: &[PathBuf],
    config: Option<&Path>,
    namespace: &str,
    output: Option<Output>,
) -> Result<String, Failure> {
    let config = match config {
        None => InjectorConfig::default(),
        Some(path) => read_injector(path).map_err(|error| Failure::refused(error.to_string()))?,
    };
    let mut manifests = Vec::new();
    let mut lines = Vec::new();
    for path in files {
        let text = read_one(path)?;
        match Manifest::inject(&text, namespace, &config) {
            Ok(manifest) => manifests.push(manifest),
            Err(problems) => lines.extend(problems.iter().map(|problem| format!("{}: {problem}", path.display()))),
        }
    }
    if !lines.is_empty() {
        return Err(Failure { code: 2, lines });
    }
    for note in manifests.iter().flat_map(|manifest| &manifest.notes) {
        eprintln!("outriggerctl: {note}");
    }
    match output.unwrap_or(Output::Yaml) {
        Output::Json => json_of(&manifests),
        Output::Yaml => yaml_of(&manifests),
        Output::Table => Err(Failure::refused("manifests are printed with -o yaml or -o json".to_owned())),
    }
}

fn json_of(manifests: &[Manifest]) -> Result<String, Failure> {
    let values: Result<Vec<Value>, _> = manifests.iter().map(Manifest::to_json).collect();
    let mut values = values.map_err(|error| Failure::refused(format!("JSON cannot carry it: {error}; use -o yaml")))?;
    Ok(match values.len() {
        1 => pretty(&values.remove(0)),
        _ => pretty(&json!({ "apiVersion": "v1", "kind": "List", "items": values })),
    })
}

fn yaml_of(manifests: &[Manifest]) -> Result<String, Failure> {
    let mut text = String::new();
    for manifest in manifests {
        let one = manifest.to_yaml().map_err(|error| Failure::failed(error.to_string()))?;
        if !text.is_empty() && !one.starts_with("---") {
            text.push_str("---\n");
        }
        text.push_str(&one);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// The annotations that pods can have.
pub(crate) fn list(output: Output) -> Result<String, Failure> {
    match output {
        Output::Json => Ok(pretty(&value())),
        Output::Yaml => to_yaml(&value()),
        Output::Table => Ok(render(&["ANNOTATION", "ALLOWED", "DEFAULT", "MEANING"], &rows())),
    }
}
