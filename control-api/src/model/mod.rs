//! Purpose: the policy kinds as plain values, and the only way from text to them.
//! Shape: `document` splits text into JSON values; `parse` walks each with a path cursor and
//! collects every problem; `link` looks across objects. A [`PolicySet`] holds only objects that
//! passed all three, so `compile` never meets an invalid value.
//! Errors: [`Problem`] names document, object, path, value and remedy; all are reported at once.
//! Limits: see the ranges at each field; a set is bounded by the API's body limit and the store.
//! Source: Gateway API v1 (HTTPRoute, GRPCRoute, GAMMA's parentRef to a Service); Envoy's ranges for knobs.
//! Tests: foot of each file, `tests.rs` for the bad-value classes.

pub mod access_policy;
pub mod cursor;
pub mod document;
pub mod duration;
pub mod grpc_route;
pub mod http_route;
pub mod link;
pub mod mesh_config;
pub mod object;
pub mod problem;
pub mod service;
pub mod traffic_policy;
pub mod upstream;
pub mod workload;

#[cfg(test)]
mod tests;

pub use object::{Kind, Manifest, Object, ObjectKey, PolicySet, Spec};
pub use problem::Problem;
pub use service::Services;
pub use workload::{Workload, Workloads};

use document::Document;

/// More than this nobody reads at once.
const PROBLEMS_MAX: usize = 500;

/// Parses a whole YAML stream or JSON document into manifests.
///
/// Every problem of every document is returned at once.
pub fn parse_manifests(text: &str, syntax: document::Syntax) -> Result<Vec<Manifest>, Vec<Problem>> {
    let (documents, mut problems) = document::split_documents(text, syntax);
    let mut manifests: Vec<Manifest> = Vec::new();
    for Document { index, value } in &documents {
        match object::parse_manifest(value, Some(*index)) {
            Ok(manifest) => manifests.push(manifest),
            Err(found) => problems.extend(found),
        }
    }
    problems.extend(repeated_keys(&manifests));
    problems.sort_by_key(|problem| problem.document);
    if problems.len() > PROBLEMS_MAX {
        let message = format!("{} more problems are not listed", problems.len() - PROBLEMS_MAX);
        problems.truncate(PROBLEMS_MAX);
        problems.push(Problem { message, ..Problem::default() });
    }
    if problems.is_empty() { Ok(manifests) } else { Err(problems) }
}

fn repeated_keys(manifests: &[Manifest]) -> Vec<Problem> {
    let mut first = std::collections::BTreeMap::new();
    let mut problems = Vec::new();
    for manifest in manifests {
        if let Some(earlier) = first.insert(&manifest.key, manifest.document) {
            problems.push(Problem {
                document: manifest.document,
                object: Some(manifest.key.to_string()),
                path: "metadata.name".to_owned(),
                value: Some(manifest.key.name.clone()),
                message: format!("the same object is already in document {}", earlier.unwrap_or_default()),
                remedy: Some("keep one of the two, or rename one".to_owned()),
            });
        }
    }
    problems
}
