//! Purpose: what every kind shares: identity, metadata, the parsed spec, the set of all objects.
//! Shape: [`Manifest`] is an object as somebody wrote it; [`Object`] is one as stored, with the
//! revisions at which it was created and last changed; [`PolicySet`] is all of them at one revision.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::access_policy::{AccessPolicy, parse_access_policy};
use super::cursor::{Cursor, Report};
use super::grpc_route::parse_grpc_route;
use super::http_route::{HttpRoute, parse_http_route};
use super::mesh_config::{MESH, MESH_RULE, MeshConfig, parse_mesh_config};
use super::problem::{Problem, nearest};
use super::traffic_policy::{RateLimit, TrafficPolicy, parse_rate_limit, parse_traffic_policy};
use super::upstream::{Upstream, parse_upstream};
use super::workload::Workloads;

/// The group and version of our own kinds.
pub const OUTRIGGER_API: &str = "outrigger.dev/v1";
/// The group and version of the Gateway API's kinds.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// The kinds of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who may call whom.
    AccessPolicy,
    /// Gateway API: which call of gRPC goes where.
    GrpcRoute,
    /// Gateway API: which request goes where.
    HttpRoute,
    /// What holds where nobody said anything nearer.
    MeshConfig,
    /// A named limit, attached to routes or upstreams.
    RateLimit,
    /// Timeouts, retries and limits, attached to a route or an upstream.
    TrafficPolicy,
    /// A group of endpoints, and how to treat them.
    Upstream,
}

impl Kind {
    /// All kinds, in the order in which they are listed.
    pub const ALL: [Self; 7] = [
        Self::AccessPolicy,
        Self::GrpcRoute,
        Self::HttpRoute,
        Self::MeshConfig,
        Self::RateLimit,
        Self::TrafficPolicy,
        Self::Upstream,
    ];

    /// The name as written in a document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccessPolicy => "AccessPolicy",
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::MeshConfig => "MeshConfig",
            Self::RateLimit => "RateLimit",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::Upstream => "Upstream",
        }
    }

    /// The `apiVersion` it goes with.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::GrpcRoute | Self::HttpRoute => GATEWAY_API,
            Self::AccessPolicy | Self::MeshConfig | Self::RateLimit | Self::TrafficPolicy | Self::Upstream => {
                OUTRIGGER_API
            }
        }
    }

    /// Reads a kind from a URL or a command line: any case, singular or plural.
    pub fn parse_loose(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let singular = match lower.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => lower.strip_suffix('s').unwrap_or(&lower).to_owned(),
        };
        let found =
            Self::ALL.into_iter().find(|kind| [&lower, &singular].contains(&&kind.as_str().to_ascii_lowercase()));
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str);
            let hint = nearest(text, &names).map(|near| format!("; did you mean {near}?"));
            format!("unknown kind {text:?}: one of {}{}", names.join(", "), hint.unwrap_or_default())
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// What names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// Puts a key together.
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The parsed body of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// See [`AccessPolicy`].
    AccessPolicy(AccessPolicy),
    /// See [`HttpRoute`].
    GrpcRoute(HttpRoute),
    /// See [`HttpRoute`].
    HttpRoute(HttpRoute),
    /// See [`MeshConfig`].
    MeshConfig(MeshConfig),
    /// See [`RateLimit`].
    RateLimit(RateLimit),
    /// See [`TrafficPolicy`].
    TrafficPolicy(TrafficPolicy),
    /// See [`Upstream`].
    Upstream(Upstream),
}

impl Spec {
    /// The route, where it is one.
    #[must_use]
    pub fn as_route(&self) -> Option<&HttpRoute> {
        match self {
            Self::GrpcRoute(route) | Self::HttpRoute(route) => Some(route),
            Self::AccessPolicy(_)
            | Self::MeshConfig(_)
            | Self::RateLimit(_)
            | Self::TrafficPolicy(_)
            | Self::Upstream(_) => None,
        }
    }
}

/// An object as written, parsed.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its identity.
    pub key: ObjectKey,
    /// Its parsed body.
    pub spec: Spec,
    /// What was written, in one canonical form, without what the server adds.
    pub body: Value,
    /// `metadata.resourceVersion`, when the writer insists on the version it saw.
    pub expected: Option<u64>,
    /// Which document of the input it came from, from 1.
    pub document: Option<usize>,
}

/// An object as stored.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its identity.
    pub key: ObjectKey,
    /// Its parsed body.
    pub spec: Spec,
    /// See [`Manifest::body`].
    pub body: Value,
    /// The revision that created it.
    pub created: u64,
    /// The revision that last changed it.
    pub changed: u64,
    /// How often it was written, from 1.
    pub generation: u64,
}

impl Object {
    /// The object as the API shows it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = self.body.clone();
        if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
            metadata.insert("resourceVersion".into(), json!(self.changed.to_string()));
            metadata.insert("generation".into(), json!(self.generation));
        }
        body
    }
}

/// All objects at one revision.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    /// Counts the applied changes, from 0 for an empty store.
    pub revision: u64,
    /// The objects.
    pub objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// The pods of the cluster, where a registry tells of them.
    pub workloads: Arc<Workloads>,
    /// The namespace whose MeshConfig speaks for all.
    pub mesh_namespace: Option<Arc<str>>,
}

impl PolicySet {
    /// Whether nothing that matters differs: pods come and go, and most policy asks for none.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let asks_for_pods = |set: &Self| set.access_policies().next().is_some() || set.mesh_configs().next().is_some();
        self.revision == other.revision
            && self.mesh_namespace == other.mesh_namespace
            && self.objects.len() == other.objects.len()
            && self.objects.iter().zip(&other.objects).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
            && (Arc::ptr_eq(&self.workloads, &other.workloads) || !asks_for_pods(self))
    }

    /// What holds in a namespace where nobody said anything nearer.
    #[must_use]
    pub fn mesh_config(&self, namespace: &str) -> MeshConfig {
        let of = |namespace: &str| match &self.objects.get(&ObjectKey::new(Kind::MeshConfig, namespace, MESH))?.spec {
            Spec::MeshConfig(config) => Some(config.clone()),
            _ => None,
        };
        let own = of(namespace).unwrap_or_default();
        match self.mesh_namespace.as_deref().filter(|all| *all != namespace).and_then(of) {
            Some(all) => own.over(&all),
            None => own,
        }
    }

    /// All mesh configs.
    pub fn mesh_configs(&self) -> impl Iterator<Item = (&Object, &MeshConfig)> {
        self.objects.values().filter_map(|object| match &object.spec {
            Spec::MeshConfig(config) => Some((object.as_ref(), config)),
            _ => None,
        })
    }

    /// All access policies.
    pub fn access_policies(&self) -> impl Iterator<Item = (&Object, &AccessPolicy)> {
        self.objects.values().filter_map(|object| match &object.spec {
            Spec::AccessPolicy(policy) => Some((object.as_ref(), policy)),
            _ => None,
        })
    }

    /// All upstreams.
    pub fn upstreams(&self) -> impl Iterator<Item = (&Object, &Upstream)> {
        self.objects.values().filter_map(|object| match &object.spec {
            Spec::Upstream(upstream) => Some((object.as_ref(), upstream)),
            _ => None,
        })
    }

    /// All routes, those of gRPC too.
    pub fn routes(&self) -> impl Iterator<Item = (&Object, &HttpRoute)> {
        self.objects.values().filter_map(|object| Some((object.as_ref(), object.spec.as_route()?)))
    }

    /// All traffic policies.
    pub fn traffic_policies(&self) -> impl Iterator<Item = (&Object, &TrafficPolicy)> {
        self.objects.values().filter_map(|object| match &object.spec {
            Spec::TrafficPolicy(policy) => Some((object.as_ref(), policy)),
            _ => None,
        })
    }

    /// All rate limits.
    pub fn rate_limits(&self) -> impl Iterator<Item = (&Object, &RateLimit)> {
        self.objects.values().filter_map(|object| match &object.spec {
            Spec::RateLimit(limit) => Some((object.as_ref(), limit)),
            _ => None,
        })
    }
}

/// Parses one untyped object.
pub fn parse_manifest(value: &Value, document: Option<usize>) -> Result<Manifest, Vec<Problem>> {
    let report = Report::new(document);
    let manifest = walk_manifest(&Cursor::root(value, &report), document);
    match manifest {
        Some(manifest) if report.is_clean() => Ok(manifest),
        _ => Err(report.into_problems()),
    }
}

fn walk_manifest(root: &Cursor<'_>, document: Option<usize>) -> Option<Manifest> {
    let fields = root.fields(&["apiVersion", "kind", "metadata", "spec", "status"])?;
    let words = Kind::ALL.map(|kind| (kind.as_str(), kind));
    let kind = fields.required("kind").and_then(|at| at.choice(&words));
    if let Some(kind) = kind {
        let version = fields.required("apiVersion");
        let _ = version.and_then(|at| at.choice(&[(kind.api_version(), ())]));
    }
    let metadata = fields.required("metadata").and_then(|at| walk_metadata(&at, kind));
    if let (Some(kind), Some((key, _))) = (kind, &metadata) {
        root.name_object(&ObjectKey { kind, ..key.clone() });
    }
    let spec = fields.required("spec")?;
    let spec = match kind? {
        Kind::AccessPolicy => parse_access_policy(&spec, &metadata.as_ref()?.0.namespace).map(Spec::AccessPolicy),
        Kind::GrpcRoute => parse_grpc_route(&spec, &metadata.as_ref()?.0.namespace).map(Spec::GrpcRoute),
        Kind::HttpRoute => parse_http_route(&spec, &metadata.as_ref()?.0.namespace).map(Spec::HttpRoute),
        Kind::MeshConfig => parse_mesh_config(&spec).map(Spec::MeshConfig),
        Kind::RateLimit => parse_rate_limit(&spec).map(Spec::RateLimit),
        Kind::TrafficPolicy => parse_traffic_policy(&spec).map(Spec::TrafficPolicy),
        Kind::Upstream => parse_upstream(&spec).map(Spec::Upstream),
    };
    let (key, expected) = metadata?;
    let body = canonical_body(root.raw(), &key);
    Some(Manifest { key, spec: spec?, body, expected, document })
}

impl Cursor<'_> {
    fn name_object(&self, key: &ObjectKey) {
        self.report().name_object(key.to_string());
    }
}

fn walk_metadata(at: &Cursor<'_>, kind: Option<Kind>) -> Option<(ObjectKey, Option<u64>)> {
    const WRITTEN: [&str; 5] = ["name", "namespace", "labels", "annotations", "resourceVersion"];
    const ADDED: [&str; 4] = ["generation", "uid", "creationTimestamp", "managedFields"];
    let fields = at.fields(&[&WRITTEN[..], &ADDED[..]].concat())?;
    let (accept, rule): (fn(&str) -> bool, &str) = match kind {
        Some(Kind::MeshConfig) => (|name| name == MESH, MESH_RULE),
        Some(Kind::Upstream) => (is_dns_label, LABEL_RULE),
        _ => (is_dns_subdomain, SUBDOMAIN_RULE),
    };
    let name = fields.required("name").and_then(|at| at.text(accept, rule));
    let namespace = match fields.optional("namespace") {
        Some(at) => at.text(is_dns_label, LABEL_RULE),
        None => Some("default".to_owned()),
    };
    for map in ["labels", "annotations"] {
        if let Some(at) = fields.optional(map) {
            at.string_map();
        }
    }
    let expected = match fields.optional("resourceVersion") {
        Some(at) => {
            let number = at.string().and_then(|text| text.parse::<u64>().ok());
            if number.is_none() {
                at.refuse_with("must be a revision in quotes", "leave it out to apply in any case");
            }
            number
        }
        None => None,
    };
    let key = ObjectKey { kind: kind.unwrap_or(Kind::Upstream), namespace: namespace?, name: name? };
    Some((key, expected))
}

/// What a name or namespace of one DNS label must look like.
pub const LABEL_RULE: &str = "must be 1 to 63 of a-z, 0-9 and -, starting and ending with a letter or digit";
/// What a name of several DNS labels must look like.
pub const SUBDOMAIN_RULE: &str =
    "must be 1 to 253 of a-z, 0-9, - and ., each part starting and ending with a letter or digit";

/// Whether `text` is one DNS label (RFC 1123).
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether `text` is a DNS subdomain (RFC 1123).
#[must_use]
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

fn canonical_body(written: &Value, key: &ObjectKey) -> Value {
    let mut metadata = json!({ "name": key.name, "namespace": key.namespace });
    for map in ["labels", "annotations"] {
        match written.pointer(&format!("/metadata/{map}")) {
            Some(Value::Object(entries)) if !entries.is_empty() => {
                metadata[map] = Value::Object(entries.clone());
            }
            _ => {}
        }
    }
    json!({
        "apiVersion": key.kind.api_version(),
        "kind": key.kind.as_str(),
        "metadata": metadata,
        "spec": written.get("spec").cloned().unwrap_or_default(),
    })
}
