//! Purpose: which of several policies holds for a rule or an upstream.
//! Shape: policies are indexed by target; a rule asks four layers, the nearest first:
//!
//! ```text
//! policy on the rule (sectionName) ▶ the rule itself ▶ policy on the route ▶ policy on the upstream
//! ```
//! Two policies on one target never set the same thing: `model::link` refuses that.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::http_route::Rule;
use crate::model::traffic_policy::{Retry, TargetRef, TokenBucket};
use crate::model::upstream::{Limits, OutlierDetection};
use crate::model::{ObjectKey, PolicySet};

/// A setting and the object it comes from.
#[derive(Debug, Clone)]
pub(super) struct Sourced<T> {
    pub(super) value: T,
    pub(super) source: ObjectKey,
}

/// What is set for one target.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub(super) request_timeout: Option<Duration>,
    pub(super) try_timeout: Option<Duration>,
    pub(super) stream_timeout: Option<Duration>,
    pub(super) grpc_deadline_max: Option<Duration>,
    pub(super) upgrades: Option<Vec<String>>,
    pub(super) retry: Option<Sourced<Retry>>,
    pub(super) limit: Option<Sourced<TokenBucket>>,
    pub(super) outlier: Option<OutlierDetection>,
    pub(super) limits: Option<Limits>,
}

/// Policies by what they attach to.
#[derive(Debug, Default)]
pub(super) struct Attached {
    layers: BTreeMap<(ObjectKey, Option<String>), Layer>,
}

impl Attached {
    pub(super) fn build(policy: &PolicySet) -> Self {
        let mut attached = Self::default();
        for (object, policy) in policy.traffic_policies() {
            for target in &policy.targets {
                let layer = attached.layer(&object.key, target);
                let source = &object.key;
                let sourced = |retry: &Retry| Sourced { value: retry.clone(), source: source.clone() };
                let limit = policy.limit.clone();
                layer.request_timeout = layer.request_timeout.or(policy.request_timeout);
                let per_try = policy.retry.as_ref().and_then(|retry| retry.try_timeout);
                layer.try_timeout = layer.try_timeout.or(policy.try_timeout).or(per_try);
                layer.stream_timeout = layer.stream_timeout.or(policy.stream_timeout);
                layer.grpc_deadline_max = layer.grpc_deadline_max.or(policy.grpc_deadline_max);
                layer.upgrades = layer.upgrades.take().or(policy.upgrades.clone());
                layer.retry = layer.retry.take().or(policy.retry.as_ref().map(sourced));
                layer.outlier = layer.outlier.take().or(policy.outlier.clone());
                layer.limits = layer.limits.take().or(policy.limits.clone());
                let limit = limit.map(|value| Sourced { value, source: source.clone() });
                layer.limit = layer.limit.take().or(limit);
            }
        }
        for (object, rate_limit) in policy.rate_limits() {
            for target in &rate_limit.targets {
                let layer = attached.layer(&object.key, target);
                let limit = Sourced { value: rate_limit.limit.clone(), source: object.key.clone() };
                layer.limit = layer.limit.take().or(Some(limit));
            }
        }
        attached
    }

    fn layer(&mut self, from: &ObjectKey, target: &TargetRef) -> &mut Layer {
        let key = ObjectKey::new(target.kind, &from.namespace, &target.name);
        self.layers.entry((key, target.section.clone())).or_default()
    }

    fn find(&self, key: &ObjectKey, section: Option<&String>) -> Option<&Layer> {
        self.layers.get(&(key.clone(), section.cloned()))
    }

    /// What holds for an upstream.
    pub(super) fn for_upstream(&self, key: &ObjectKey) -> Layer {
        self.find(key, None).cloned().unwrap_or_default()
    }

    /// What holds for a rule of `route`, called through the service of `upstream`.
    pub(super) fn for_rule(&self, route: &ObjectKey, rule: &Rule, upstream: Option<&ObjectKey>) -> Layer {
        let section = rule.name.as_ref().and_then(|name| self.find(route, Some(name)));
        let inline = inline_layer(route, rule);
        let whole = self.find(route, None);
        let below = upstream.and_then(|key| self.find(key, None)).map(|layer| Layer {
            // The upstream's own limit is enforced where the upstream is called.
            limit: None,
            ..layer.clone()
        });
        let layers = [section, Some(&inline), whole, below.as_ref()];
        let layers: Vec<&Layer> = layers.into_iter().flatten().collect();
        Layer {
            request_timeout: layers.iter().find_map(|layer| layer.request_timeout),
            try_timeout: layers.iter().find_map(|layer| layer.try_timeout),
            stream_timeout: layers.iter().find_map(|layer| layer.stream_timeout),
            grpc_deadline_max: layers.iter().find_map(|layer| layer.grpc_deadline_max),
            upgrades: layers.iter().find_map(|layer| layer.upgrades.clone()),
            retry: layers.iter().find_map(|layer| layer.retry.clone()),
            limit: layers.iter().find_map(|layer| layer.limit.clone()),
            outlier: None,
            limits: None,
        }
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
    Layer { request_timeout: rule.request_timeout, try_timeout: rule.try_timeout, retry, ..Layer::default() }
}

/// The cluster of an upstream.
pub(super) fn cluster_name(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}")
}
