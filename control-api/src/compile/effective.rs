//! Purpose: which of several policies holds for a rule or an upstream.
//! Shape: policies are indexed by target; a rule asks four layers, the nearest first:
//!
//! ```text
//! policy on the rule (sectionName) ▶ the rule itself ▶ policy on the route ▶ policy on the upstream
//! ```
//! On the upstream, a policy on its port is nearer than one on the upstream or its service; farthest is the MeshConfig of its
//! namespace, and that for all.
//! Two policies on one target never set the same thing: `model::link` refuses that.

use std::collections::BTreeMap;

use crate::model::http_route::{BackendRef, Rule};
use crate::model::mesh_config::MeshConfig;
use crate::model::traffic_policy::{PORT_LAYER, Retry, TargetRef, TokenBucket, Traffic};
use crate::model::upstream::{Limits, OutlierDetection};
use crate::model::{Object, ObjectKey, PolicySet, Services};

/// A setting and the object it comes from.
#[derive(Debug, Clone)]
pub(super) struct Sourced<T> {
    pub(super) value: T,
    pub(super) source: ObjectKey,
}

/// What is set for one target.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    /// Of which `retry` is read with its source, below.
    pub(super) traffic: Traffic,
    pub(super) retry: Option<Sourced<Retry>>,
    pub(super) limit: Option<Sourced<TokenBucket>>,
    pub(super) outlier: Option<OutlierDetection>,
    pub(super) limits: Option<Limits>,
}

impl Layer {
    /// What is set here, and for the rest what is set farther off.
    fn over(self, farther: &Self) -> Self {
        Self {
            traffic: self.traffic.over(&farther.traffic),
            retry: self.retry.or_else(|| farther.retry.clone()),
            limit: self.limit.or_else(|| farther.limit.clone()),
            outlier: self.outlier.or_else(|| farther.outlier.clone()),
            limits: self.limits.or_else(|| farther.limits.clone()),
        }
    }
}

/// What a policy or a mesh says of exchanges.
fn traffic_layer(source: &ObjectKey, traffic: &Traffic) -> Layer {
    let per_try = traffic.retry.as_ref().and_then(|retry| retry.try_timeout);
    Layer {
        traffic: Traffic { try_timeout: traffic.try_timeout.or(per_try), ..traffic.clone() },
        retry: traffic.retry.clone().map(|value| Sourced { value, source: source.clone() }),
        ..Layer::default()
    }
}

/// What is set, by what it is set on and which part of that.
type Layers = BTreeMap<(ObjectKey, Option<String>), Layer>;

/// Puts what `source` sets under what earlier ones set on the same targets.
fn add_layer((layers, services): (&mut Layers, &Services<'_>), source: &ObjectKey, targets: &[TargetRef], own: &Layer) {
    for target in targets {
        for key in services.targets(&source.namespace, target) {
            let layer = layers.entry((key, target.layer())).or_default();
            *layer = std::mem::take(layer).over(own);
        }
    }
}

/// Policies by what they attach to, and the services that their names lead to.
#[derive(Debug, Default)]
pub(super) struct Attached<'a> {
    layers: Layers,
    services: Services<'a>,
    /// What a namespace's own mesh config says, over that for all.
    meshes: BTreeMap<String, Layer>,
    /// What the mesh config for all says.
    mesh: Layer,
}

impl<'a> Attached<'a> {
    pub(super) fn build(set: &'a PolicySet) -> Self {
        let services = Services::of(set);
        let mut layers = Layers::new();
        for (object, policy) in set.traffic_policies() {
            let own = Layer {
                limit: policy.limit.clone().map(|value| Sourced { value, source: object.key.clone() }),
                outlier: policy.outlier.clone(),
                limits: policy.limits.clone(),
                ..traffic_layer(&object.key, &policy.traffic)
            };
            add_layer((&mut layers, &services), &object.key, &policy.targets, &own);
        }
        for (object, rate_limit) in set.rate_limits() {
            let limit = Sourced { value: rate_limit.limit.clone(), source: object.key.clone() };
            let own = Layer { limit: Some(limit), ..Layer::default() };
            add_layer((&mut layers, &services), &object.key, &rate_limit.targets, &own);
        }
        let of = |(object, config): (&Object, &MeshConfig)| traffic_layer(&object.key, &config.traffic);
        let is_for_all = |object: &Object| set.mesh_namespace.as_deref() == Some(&object.key.namespace);
        let mesh = set.mesh_configs().find(|(object, _)| is_for_all(object)).map(of).unwrap_or_default();
        let own = |one: (&Object, &MeshConfig)| (one.0.key.namespace.clone(), of(one).over(&mesh));
        let meshes = set.mesh_configs().map(own).collect();
        Self { layers, services, meshes, mesh }
    }

    /// The services.
    pub(super) fn services(&self) -> &Services<'a> {
        &self.services
    }

    /// The cluster that a backend leads to; one of its name, which nobody has, where it leads nowhere.
    pub(super) fn backend_cluster(&self, backend: &BackendRef) -> String {
        match self.services.backend(backend) {
            Some(key) => cluster_name(&key.namespace, &key.name),
            None => cluster_name(&backend.namespace, &backend.name),
        }
    }

    fn find(&self, key: &ObjectKey, section: Option<&String>) -> Option<&Layer> {
        self.layers.get(&(key.clone(), section.cloned()))
    }

    /// What holds for an upstream.
    pub(super) fn for_upstream(&self, key: &ObjectKey) -> Layer {
        let port = self.find(key, Some(&PORT_LAYER.to_owned()));
        let mesh = self.mesh_layer(&key.namespace);
        [port, self.find(key, None), Some(mesh)].into_iter().flatten().fold(Layer::default(), Layer::over)
    }

    fn mesh_layer(&self, namespace: &str) -> &Layer {
        self.meshes.get(namespace).unwrap_or(&self.mesh)
    }

    /// What holds for a rule of `route`, called through the service of `upstream`.
    pub(super) fn for_rule(&self, route: &ObjectKey, rule: &Rule, upstream: Option<&ObjectKey>) -> Layer {
        let section = rule.name.as_ref().and_then(|name| self.find(route, Some(name)));
        let inline = inline_layer(route, rule);
        let whole = self.find(route, None);
        // The upstream's own limit is enforced where the upstream is called.
        let below = match upstream {
            Some(key) => Layer { limit: None, ..self.for_upstream(key) },
            None => self.mesh_layer(&route.namespace).clone(),
        };
        let layers = [section, Some(&inline), whole, Some(&below)];
        let layer = layers.into_iter().flatten().fold(Layer::default(), Layer::over);
        // Of an upstream, not of what leads to it.
        Layer { outlier: None, limits: None, ..layer }
    }
}

fn inline_layer(route: &ObjectKey, rule: &Rule) -> Layer {
    let retry = rule.retry.as_ref().map(|retry| {
        let mut on = vec!["connect-failure", "refused-stream", "reset-before-request"];
        if !retry.codes.is_empty() {
            on.push("retriable-status-codes");
        }
        let value = Retry {
            on,
            attempts: retry.attempts,
            try_timeout: None,
            codes: retry.codes.clone(),
            backoff: retry.backoff.map(|base| (base, None)),
            non_idempotent: false,
        };
        Sourced { value, source: route.clone() }
    });
    let traffic =
        Traffic { request_timeout: rule.request_timeout, try_timeout: rule.try_timeout, ..Traffic::default() };
    Layer { traffic, retry, ..Layer::default() }
}

/// The cluster of an upstream.
pub(super) fn cluster_name(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}")
}
