//! Purpose: our kinds as CustomResourceDefinitions: `outriggerctl crds` prints them, the chart ships them.
//! Shape: [`definitions`] are the documents, [`render`] is their YAML; `kinds` has the specs, `schema` their parts. All
//! kinds share the status: conditions (`Accepted`, `Programmed`), the epoch and the proxies that run it.
//! Tests: foot (shape), the interop test that asks a real API server about good and bad objects.

mod kinds;
mod schema;

use serde_json::{Value, json};

use crate::model::Kind;
use crate::model::mesh_config::{MESH, MESH_RULE};
use schema::{Schema, optional, required};

/// The group of our kinds.
pub const GROUP: &str = "outrigger.dev";
/// Their version.
pub const VERSION: &str = "v1";

struct Definition {
    kind: Kind,
    plural: &'static str,
    short: &'static str,
    doc: &'static str,
    spec: Schema,
    columns: &'static [(&'static str, &'static str)],
}

fn described() -> [Definition; 5] {
    [
        Definition {
            kind: Kind::AccessPolicy,
            plural: "accesspolicies",
            short: "ap",
            doc: "Who may call the services that it attaches to, or the pods of its namespace.",
            spec: kinds::access_policy(),
            columns: &[("Action", ".spec.action"), ("Mode", ".spec.mode"), ("Target", ".spec.targetRefs[0].name")],
        },
        Definition {
            kind: Kind::MeshConfig,
            plural: "meshconfigs",
            short: "mc",
            doc: "What holds in a namespace, or in all, where nobody said anything nearer.",
            spec: kinds::mesh_config(),
            columns: &[("Outbound", ".spec.outboundTraffic"), ("Access", ".spec.access.default")],
        },
        Definition {
            kind: Kind::RateLimit,
            plural: "ratelimits",
            short: "rl",
            doc: "A named limit, attached to routes or upstreams.",
            spec: kinds::rate_limit(),
            columns: &[("Target", ".spec.targetRefs[0].name"), ("Requests", ".spec.requests"), ("Per", ".spec.per")],
        },
        Definition {
            kind: Kind::TrafficPolicy,
            plural: "trafficpolicies",
            short: "tp",
            doc: "Timeouts, retries and limits, attached to routes or upstreams.",
            spec: kinds::traffic_policy(),
            columns: &[("Kind", ".spec.targetRefs[0].kind"), ("Target", ".spec.targetRefs[0].name")],
        },
        Definition {
            kind: Kind::Upstream,
            plural: "upstreams",
            short: "us",
            doc: "A group of endpoints, and how to treat them.",
            spec: kinds::upstream(),
            columns: &[("Service", ".spec.serviceName"), ("Protocol", ".spec.appProtocol")],
        },
    ]
}

/// The plural under which the API server knows a kind.
#[must_use]
pub fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::AccessPolicy => "accesspolicies",
        Kind::GrpcRoute => "grpcroutes",
        Kind::HttpRoute => "httproutes",
        Kind::MeshConfig => "meshconfigs",
        Kind::RateLimit => "ratelimits",
        Kind::TrafficPolicy => "trafficpolicies",
        Kind::Upstream => "upstreams",
    }
}

/// The documents, in the order of their names.
#[must_use]
pub fn definitions() -> Vec<Value> {
    described().into_iter().map(Definition::into_value).collect()
}

/// All documents as one YAML stream.
#[must_use]
pub fn render() -> String {
    definitions().iter().map(|one| format!("---\n{}", to_yaml(one))).collect()
}

fn to_yaml(document: &Value) -> String {
    // A tree of strings, numbers and lists always has a YAML form.
    let text = serde_yaml_ng::to_string(document).unwrap_or_default();
    // `on` is a boolean to readers of YAML 1.1, which kubectl and Helm are.
    text.lines().map(|line| line.replace(" on:", " \"on\":") + "\n").collect()
}

impl Definition {
    fn into_value(self) -> Value {
        let condition = |kind: &str| format!(".status.conditions[?(@.type==\"{kind}\")].status");
        let mut columns: Vec<Value> = self
            .columns
            .iter()
            .map(|(name, path)| json!({ "name": name, "type": "string", "jsonPath": path }))
            .collect();
        columns.extend([
            json!({ "name": "Accepted", "type": "string", "jsonPath": condition("Accepted") }),
            json!({ "name": "Programmed", "type": "string", "jsonPath": condition("Programmed") }),
            json!({ "name": "Proxies", "type": "integer", "jsonPath": ".status.proxies.running" }),
            json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }),
        ]);
        let kind = self.kind.as_str();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.{GROUP}", self.plural) },
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": {
                    "kind": kind,
                    "listKind": format!("{kind}List"),
                    "plural": self.plural,
                    "singular": kind.to_ascii_lowercase(),
                    "shortNames": [self.short],
                    "categories": ["outrigger"],
                },
                "versions": [{
                    "name": VERSION,
                    "served": true,
                    "storage": true,
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": columns,
                    "schema": { "openAPIV3Schema": root(self.kind, self.doc, self.spec) },
                }],
            },
        })
    }
}

fn root(kind: Kind, doc: &str, spec: Schema) -> Value {
    let schema = Schema::object(doc, vec![required("spec", spec), optional("status", status())]);
    let schema = match kind {
        Kind::Upstream => schema.rule(
            "size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')",
            "metadata.name must be one DNS label: at most 63 characters, without dots",
        ),
        Kind::MeshConfig => {
            schema.rule(&format!("self.metadata.name == '{MESH}'"), &format!("metadata.name {MESH_RULE}"))
        }
        _ => schema,
    };
    let mut value = schema.into_value();
    // The API server knows the rest of them itself.
    for (name, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
        if let Some(properties) = value.pointer_mut("/properties") {
            properties[name] = json!({ "type": kind });
        }
    }
    value
}

fn status() -> Schema {
    let condition = Schema::object(
        "Whether something holds of the object.",
        vec![
            required("type", Schema::text("What: Accepted or Programmed.", 316)),
            required("status", Schema::choice("Whether it holds.", &["True", "False", "Unknown"])),
            required(
                "reason",
                Schema::text("Why, in one word.", 1024).pattern("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
            ),
            required("message", Schema::text("Why, for people.", 32_768)),
            required("lastTransitionTime", Schema::moment("When it last changed.")),
            optional("observedGeneration", Schema::number("The generation that this is about.")),
        ],
    );
    let proxies = Schema::object(
        "The connected proxies.",
        vec![
            optional("running", Schema::count("How many run the epoch, or a later one.")),
            optional("connected", Schema::count("How many there are.")),
        ],
    );
    Schema::object(
        "What became of the object; written by the control plane.",
        vec![
            optional(
                "conditions",
                Schema::list(
                    "Accepted: it is read and in force. Programmed: every connected proxy runs it.",
                    condition,
                    0..=8,
                )
                .keyed("type"),
            ),
            optional("epoch", Schema::number("The revision of the policy in which this generation came into force.")),
            optional("proxies", proxies),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_ships_what_is_described_here() {
        const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/outrigger/crds/outrigger.dev.yaml");
        let shipped = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            shipped == render(),
            "charts/outrigger/crds/outrigger.dev.yaml differs: run `outriggerctl crds > charts/outrigger/crds/outrigger.dev.yaml`"
        );
    }

    /// A structural schema: each value has a type and a description, each string and list a greatest length.
    fn walk(path: &str, schema: &Value) {
        let kind = schema["type"].as_str().unwrap_or_else(|| panic!("{path}: no type"));
        match kind {
            "object" => {
                for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                    walk(&format!("{path}.{name}"), field);
                }
            }
            "array" => {
                assert!(schema["maxItems"].is_u64(), "{path}: no greatest length");
                walk(&format!("{path}[]"), &schema["items"]);
            }
            "string" => {
                let is_bounded =
                    schema["maxLength"].is_u64() || schema["enum"].is_array() || schema["format"] == "date-time";
                assert!(is_bounded, "{path}: no greatest length");
            }
            "integer" | "boolean" => {}
            other => panic!("{path}: type {other}"),
        }
        assert!(schema["description"].is_string(), "{path}: no description");
    }

    #[test]
    fn each_field_is_typed_bounded_and_described() {
        for definition in definitions() {
            let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            for part in ["spec", "status"] {
                walk(&format!("{}.{part}", definition["metadata"]["name"]), &schema["properties"][part]);
            }
        }
    }
}
