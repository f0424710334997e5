//! Purpose: which upstream a service's port is.
//! Shape: [`Services`] is an index over a [`PolicySet`]: by namespace and service name, the upstreams of its ports.
//! Errors: none; what names no upstream, or leaves open which of several, is found by `link` beforehand.
//! Source: Gateway API, `BackendObjectReference`: the port of a Service is the Service's, not its endpoints'.

use std::collections::BTreeMap;

use super::http_route::BackendRef;
use super::object::{Kind, ObjectKey, PolicySet};
use super::traffic_policy::TargetRef;
use super::upstream::Upstream;

/// The upstreams of every service, by its namespace and name.
#[derive(Debug, Default)]
pub struct Services<'a> {
    by_name: BTreeMap<&'a str, BTreeMap<&'a str, Vec<ServicePort<'a>>>>,
    set: Option<&'a PolicySet>,
}

/// One port of a service.
#[derive(Debug, Clone, Copy)]
pub struct ServicePort<'a> {
    /// The upstream behind it.
    pub key: &'a ObjectKey,
    /// What that is.
    pub upstream: &'a Upstream,
}

impl ServicePort<'_> {
    fn has_name(&self, name: &str) -> bool {
        let port = self.upstream.port;
        self.upstream.port_name.as_deref() == Some(name) || port.is_some_and(|port| port.to_string() == name)
    }
}

/// The name under which an upstream is called.
#[must_use]
pub fn service_of<'a>(key: &'a ObjectKey, upstream: &'a Upstream) -> &'a str {
    upstream.service_name.as_deref().unwrap_or(&key.name)
}

impl<'a> Services<'a> {
    /// Indexes the upstreams of a set.
    #[must_use]
    pub fn of(set: &'a PolicySet) -> Self {
        let mut by_name: BTreeMap<&str, BTreeMap<&str, Vec<ServicePort<'_>>>> = BTreeMap::new();
        for (object, upstream) in set.upstreams() {
            let names = by_name.entry(&object.key.namespace).or_default();
            let ports = names.entry(service_of(&object.key, upstream)).or_default();
            ports.push(ServicePort { key: &object.key, upstream });
        }
        for ports in by_name.values_mut().flat_map(BTreeMap::values_mut) {
            ports.sort_by_key(|port| port.upstream.port);
        }
        Self { by_name, set: Some(set) }
    }

    /// All services, by name.
    pub fn iter(&self) -> impl Iterator<Item = ((&'a str, &'a str), &[ServicePort<'a>])> {
        self.by_name
            .iter()
            .flat_map(|(namespace, names)| names.iter().map(|(name, ports)| ((*namespace, *name), ports.as_slice())))
    }

    /// The ports of one service, ascending; one without a port number is first.
    #[must_use]
    pub fn ports(&self, namespace: &str, name: &str) -> &[ServicePort<'a>] {
        self.by_name.get(namespace).and_then(|names| names.get(name)).map_or(&[], Vec::as_slice)
    }

    /// The upstream behind a port; without one, the upstream of a service that has only one.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str, port: Option<u16>) -> Option<ServicePort<'a>> {
        find_port(self.ports(namespace, name), port)
    }

    /// The upstream that a route's backend names.
    #[must_use]
    pub fn backend(&self, backend: &BackendRef) -> Option<&'a ObjectKey> {
        let service = || self.find(&backend.namespace, &backend.name, backend.port).map(|port| port.key);
        let own = || self.upstream(&backend.namespace, &backend.name);
        if backend.is_service { service().or_else(own) } else { own() }
    }

    /// What a policy's target stands for, seen from `namespace`: a route, an upstream, or those of a service's ports.
    #[must_use]
    pub fn targets(&self, namespace: &str, target: &TargetRef) -> Vec<ObjectKey> {
        if !target.is_service {
            return vec![ObjectKey::new(target.kind, namespace, &target.name)];
        }
        let ports = self.ports(namespace, &target.name).iter();
        let named = ports.filter(|port| target.section.as_ref().is_none_or(|name| port.has_name(name)));
        named.map(|port| port.key.clone()).collect()
    }

    fn upstream(&self, namespace: &str, name: &str) -> Option<&'a ObjectKey> {
        let found = self.set?.objects.get_key_value(&ObjectKey::new(Kind::Upstream, namespace, name));
        found.map(|(key, _)| key)
    }
}

/// Of the ports of one service: the one that callers of `port` use.
#[must_use]
pub fn find_port<'a>(ports: &[ServicePort<'a>], port: Option<u16>) -> Option<ServicePort<'a>> {
    let exact = ports.iter().find(|one| port.is_some() && one.upstream.port == port);
    let any = || ports.iter().find(|one| one.upstream.port.is_none());
    let only = || ports.first().filter(|_| port.is_none() && ports.len() == 1);
    exact.or_else(any).or_else(only).copied()
}
