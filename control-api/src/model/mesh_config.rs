//! Purpose: our kind `MeshConfig`: what holds where nobody said anything nearer.
//! Shape: one object, named `mesh`, in a namespace: that of the control plane speaks for all, any other for itself, field by
//! field over the first.
//! Source: Istio's MeshConfig and its `ALLOW_ANY`, `REGISTRY_ONLY`; the stanzas are those of Upstream and TrafficPolicy.

use std::time::Duration;

use super::cursor::Cursor;
use super::traffic_policy::{Traffic, parse_traffic};
use super::upstream::{CONNECTION_FIELDS, Connection, parse_connection};

/// The name that the object has.
pub const MESH: &str = "mesh";
/// What its name must look like.
pub const MESH_RULE: &str = "must be mesh: there is one in a namespace";

/// What holds where nobody said anything nearer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MeshConfig {
    /// Whether captured connections to what nobody knows are passed on; they are, where this is absent.
    pub allows_any: Option<bool>,
    /// How long the client of a port of unknown protocol may say nothing before its server is taken to speak first.
    pub detection_timeout: Option<Duration>,
    /// Whether a call that no AccessPolicy is about is refused; it is not, where this is absent.
    pub denies_access: Option<bool>,
    /// For upstreams.
    pub connection: Connection,
    /// For routes and upstreams.
    pub traffic: Traffic,
}

impl MeshConfig {
    /// What is set here, and for the rest what is set farther off.
    #[must_use]
    pub fn over(self, farther: &Self) -> Self {
        Self {
            allows_any: self.allows_any.or(farther.allows_any),
            detection_timeout: self.detection_timeout.or(farther.detection_timeout),
            denies_access: self.denies_access.or(farther.denies_access),
            connection: self.connection.over(&farther.connection),
            traffic: self.traffic.over(&farther.traffic),
        }
    }
}

/// Reads a MeshConfig.
pub fn parse_mesh_config(at: &Cursor<'_>) -> Option<MeshConfig> {
    let fields = at.fields(&["outboundTraffic", "detectionTimeout", "access", "connection", "traffic"])?;
    let access = fields.optional("access").and_then(|at| at.fields(&["default"]));
    let default = access.and_then(|fields| fields.optional("default"));
    let connection = fields.optional("connection").and_then(|at| at.fields(&CONNECTION_FIELDS));
    let traffic = fields.optional("traffic").and_then(|at| at.fields(&["timeouts", "retry", "upgrades"]));
    let outbound = fields.optional("outboundTraffic");
    let detection = fields.optional("detectionTimeout");
    Some(MeshConfig {
        allows_any: outbound.and_then(|at| at.choice(&[("AllowAny", true), ("RegistryOnly", false)])),
        detection_timeout: detection.and_then(|at| at.duration(Duration::from_millis(10)..=Duration::from_secs(15))),
        denies_access: default.and_then(|at| at.choice(&[("Allow", false), ("Deny", true)])),
        connection: connection.map(|fields| parse_connection(&fields)).unwrap_or_default(),
        traffic: traffic.map(|fields| parse_traffic(&fields)).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::document::Syntax;
    use crate::model::upstream::Balancing;
    use crate::model::{Kind, Object, PolicySet, Spec, parse_manifests};

    fn read(name: &str, spec: &str) -> Result<MeshConfig, Vec<String>> {
        let text =
            format!("apiVersion: outrigger.dev/v1\nkind: MeshConfig\nmetadata: {{name: {name}}}\nspec: {spec}\n");
        let read = parse_manifests(&text, Syntax::Yaml);
        let read = read.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        match &read[0].spec {
            Spec::MeshConfig(config) => Ok(config.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_namespace_speaks_for_itself_field_by_field() {
        let text = "{outboundTraffic: RegistryOnly, detectionTimeout: 50ms, access: {default: Deny}, \
                    connection: {connectTimeout: 250ms, loadBalancing: {policy: LeastRequest}}, \
                    traffic: {timeouts: {request: 15s}, retry: {attempts: 2}}}";
        let all = read("mesh", text).expect("a config");
        assert_eq!((all.allows_any, all.denies_access), (Some(false), Some(true)));
        let own = read("mesh", "{outboundTraffic: AllowAny, connection: {loadBalancing: {}}}").expect("a config");
        let joined = own.over(&all);
        assert_eq!((joined.allows_any, joined.denies_access), (Some(true), Some(true)));
        assert_eq!(joined.connection.balancing, Some(Balancing::RoundRobin));
        assert_eq!(joined.connection.connect_timeout, Some(Duration::from_millis(250)));
        assert_eq!((&joined.traffic, joined.detection_timeout), (&all.traffic, Some(Duration::from_millis(50))));
        assert_eq!(read("mesh", "{}").expect("a config"), MeshConfig::default());
    }

    #[test]
    fn the_control_planes_namespace_speaks_for_all() {
        let one = |namespace: &str, spec: &str| {
            let text = format!(
                "apiVersion: outrigger.dev/v1\nkind: MeshConfig\nmetadata: {{name: mesh, namespace: {namespace}}}\nspec: {spec}\n"
            );
            let mut set = PolicySet::default();
            for one in parse_manifests(&text, Syntax::Yaml).expect("a config") {
                let (key, spec, body) = (one.key, one.spec, one.body);
                let object = Object { key: key.clone(), spec, body, created: 0, changed: 0, generation: 1 };
                set.objects.insert(key, Arc::new(object));
            }
            set
        };
        let mut set = one("system", "{detectionTimeout: 2s, access: {default: Deny}}");
        set.objects.extend(one("shop", "{access: {default: Allow}}").objects);
        assert!(set.objects.keys().all(|key| key.kind == Kind::MeshConfig));
        let seen = |set: &PolicySet, namespace: &str| {
            let config = set.mesh_config(namespace);
            (config.detection_timeout.map(|span| span.as_secs()), config.denies_access)
        };
        assert_eq!(seen(&set, "other"), (None, None), "nobody speaks for all");
        set.mesh_namespace = Some("system".into());
        assert_eq!(seen(&set, "other"), (Some(2), Some(true)));
        assert_eq!(seen(&set, "system"), (Some(2), Some(true)));
        assert_eq!(seen(&set, "shop"), (Some(2), Some(false)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, spec, wanted) in [
            ("shop", "{}", "metadata.name: \"shop\": must be mesh: there is one in a namespace"),
            ("mesh", "{outboundTraffic: Any}", "spec.outboundTraffic: \"Any\": must be one of AllowAny, RegistryOnly"),
            ("mesh", "{detectionTimeout: 9ms}", "spec.detectionTimeout: \"9ms\": must be in 10ms..=15s"),
            ("mesh", "{access: {default: Audit}}", "spec.access.default: \"Audit\": must be one of Allow, Deny"),
            ("mesh", "{connection: {endpoints: []}}", "spec.connection.endpoints: []: unknown field"),
            (
                "mesh",
                "{connection: {connectTimeout: 0s}}",
                "spec.connection.connectTimeout: \"0s\": must be in 1ms..=1h",
            ),
            ("mesh", "{traffic: {limits: {}}}", "spec.traffic.limits: {}: unknown field"),
            (
                "mesh",
                "{traffic: {timeouts: {request: 1s, perTry: 2s}}}",
                "perTry: \"2s\": must not be longer than timeouts.request",
            ),
        ] {
            let problems = read(name, spec).expect_err(spec);
            assert!(problems.iter().any(|problem| problem.contains(wanted)), "{spec}\n{wanted}\n{problems:#?}");
        }
    }
}
