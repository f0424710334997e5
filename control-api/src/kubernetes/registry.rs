//! Purpose: the cluster's Services and EndpointSlices as they are now, and the Upstreams that follow from them.
//! Shape: pure; [`Registry`] takes watch events in any order and rebuilds only the Services that they touch.
//! Limits: what is kept of an object is what is read; managed fields are dropped.
//! Tests: foot (orders of events, a list in the middle of them).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::service::{Derived, Skip, build_upstreams};
use super::watch::Event;
use crate::model::Spec;
use crate::store::Objects;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Namespace and name.
pub(super) type Name = (String, String);

/// Services, their slices, and what follows.
#[derive(Debug, Default)]
pub(super) struct Registry {
    services: BTreeMap<Name, Service>,
    /// By the Service that they belong to, then by their own name.
    slices: BTreeMap<Name, BTreeMap<String, EndpointSlice>>,
    /// The Service that each slice belongs to.
    homes: BTreeMap<Name, Name>,
    derived: BTreeMap<Name, Derived>,
    touched: BTreeSet<Name>,
}

pub(super) fn name_of(meta: &ObjectMeta) -> Name {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn home_of(slice: &EndpointSlice) -> Option<Name> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    Some((slice.metadata.namespace.clone().unwrap_or_default(), service.clone()))
}

impl Registry {
    /// Takes what was seen of Services.
    pub(super) fn take_service(&mut self, event: Event<Service>) {
        match event {
            Event::Applied(service) => self.put_service(service),
            Event::Deleted(service) => {
                let name = name_of(&service.metadata);
                self.services.remove(&name);
                self.touched.insert(name);
            }
            Event::Listed(services) => {
                let named: BTreeSet<Name> = services.iter().map(|service| name_of(&service.metadata)).collect();
                let gone: Vec<Name> = self.services.keys().filter(|name| !named.contains(name)).cloned().collect();
                for name in gone {
                    self.services.remove(&name);
                    self.touched.insert(name);
                }
                services.into_iter().for_each(|service| self.put_service(service));
            }
        }
    }

    fn put_service(&mut self, mut service: Service) {
        service.metadata.managed_fields = None;
        service.status = None;
        let name = name_of(&service.metadata);
        self.touched.insert(name.clone());
        self.services.insert(name, service);
    }

    /// Takes what was seen of EndpointSlices.
    pub(super) fn take_slice(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Applied(slice) => self.put_slice(slice),
            Event::Deleted(slice) => self.remove_slice(&name_of(&slice.metadata)),
            Event::Listed(slices) => {
                let named: BTreeSet<Name> = slices.iter().map(|slice| name_of(&slice.metadata)).collect();
                let gone: Vec<Name> = self.homes.keys().filter(|name| !named.contains(name)).cloned().collect();
                gone.iter().for_each(|name| self.remove_slice(name));
                slices.into_iter().for_each(|slice| self.put_slice(slice));
            }
        }
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) {
        slice.metadata.managed_fields = None;
        let name = name_of(&slice.metadata);
        let home = home_of(&slice);
        if self.homes.get(&name) != home.as_ref() {
            self.remove_slice(&name);
        }
        // One that belongs to no Service is nobody's endpoints.
        let Some(home) = home else { return };
        self.touched.insert(home.clone());
        self.homes.insert(name.clone(), home.clone());
        self.slices.entry(home).or_default().insert(name.1, slice);
    }

    fn remove_slice(&mut self, name: &Name) {
        let Some(home) = self.homes.remove(name) else { return };
        if let Some(slices) = self.slices.get_mut(&home) {
            slices.remove(&name.1);
            if slices.is_empty() {
                self.slices.remove(&home);
            }
        }
        self.touched.insert(home);
    }

    /// Rebuilds what the events touched; whether an Upstream differs from before.
    pub(super) fn refresh(&mut self) -> bool {
        let mut is_changed = false;
        for name in std::mem::take(&mut self.touched) {
            let none = BTreeMap::new();
            let slices = self.slices.get(&name).unwrap_or(&none);
            let derived = self.services.get(&name).map(|service| build_upstreams(service, slices.values()));
            let before = self.derived.get(&name);
            is_changed |= !is_same(before, derived.as_ref());
            match derived {
                Some(derived) => {
                    if before.is_none_or(|before| before.skipped != derived.skipped) {
                        for skip in &derived.skipped {
                            tracing::info!(namespace = name.0, k8s_service = name.1, reason = %skip, "left out");
                        }
                    }
                    self.derived.insert(name, derived);
                }
                None => {
                    self.derived.remove(&name);
                }
            }
        }
        is_changed
    }

    /// All Upstreams.
    #[must_use]
    pub(super) fn objects(&self) -> Objects {
        self.derived.values().flat_map(|derived| derived.objects.iter().cloned()).collect()
    }

    /// What was left out: namespace, name, reason.
    pub(super) fn skipped(&self) -> impl Iterator<Item = (&str, &str, &Skip)> {
        self.derived
            .iter()
            .flat_map(|(name, derived)| derived.skipped.iter().map(|skip| (name.0.as_str(), name.1.as_str(), skip)))
    }

    /// How many Services there are.
    pub(super) fn count(&self) -> usize {
        self.services.len()
    }
}

fn is_same(before: Option<&Derived>, after: Option<&Derived>) -> bool {
    // What is not ready stands in the spec alone.
    fn contents(derived: Option<&Derived>) -> impl Iterator<Item = (&Value, &Spec)> {
        derived.into_iter().flat_map(|one| &one.objects).map(|(_, object)| (&object.body, &object.spec))
    }
    contents(before).eq(contents(after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn service(name: &str, port: u16) -> Service {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop" },
            "spec": { "clusterIP": "10.96.0.10", "ports": [{ "name": "http", "port": port }] },
        }))
        .expect("a Service")
    }

    fn slice(name: &str, home: &str, hosts: &[u8]) -> EndpointSlice {
        let endpoints: Vec<Value> =
            hosts.iter().map(|host| json!({ "addresses": [format!("10.0.0.{host}")] })).collect();
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop", "labels": { SERVICE_LABEL: home } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080 }], "endpoints": endpoints,
        }))
        .expect("an EndpointSlice")
    }

    fn bodies(registry: &Registry) -> Vec<Value> {
        registry.objects().values().map(|object| object.body.clone()).collect()
    }

    #[test]
    fn a_list_after_a_gap_changes_only_what_changed() {
        let mut registry = Registry::default();
        registry.take_service(Event::Listed(vec![service("a", 80), service("b", 80)]));
        registry.take_slice(Event::Listed(vec![slice("a-1", "a", &[1, 2]), slice("b-1", "b", &[3])]));
        assert!(registry.refresh());
        let before = bodies(&registry);
        assert_eq!(before.len(), 2);
        // A list that says the same takes nothing away, not for a moment.
        registry.take_service(Event::Listed(vec![service("b", 80), service("a", 80)]));
        registry.take_slice(Event::Listed(vec![slice("b-1", "b", &[3]), slice("a-1", "a", &[1, 2])]));
        assert!(!registry.refresh(), "nothing changed");
        assert_eq!(bodies(&registry), before);
        registry.take_slice(Event::Listed(vec![slice("a-1", "a", &[1])]));
        assert!(registry.refresh());
        let endpoints = |at: usize| bodies(&registry)[at]["spec"]["endpoints"].as_array().map_or(0, Vec::len);
        assert_eq!((endpoints(0), endpoints(1)), (1, 0));
    }

    #[test]
    fn an_endpoint_that_is_not_ready_yet_is_news() {
        let mut registry = Registry::default();
        registry.take_service(Event::Listed(vec![service("a", 80)]));
        registry.take_slice(Event::Listed(vec![slice("a-1", "a", &[1])]));
        assert!(registry.refresh());
        let before = bodies(&registry);
        let mut starting = slice("a-2", "a", &[2]);
        starting.endpoints[0].conditions = Some(serde_json::from_value(json!({ "ready": false })).expect("conditions"));
        registry.take_slice(Event::Applied(starting.clone()));
        assert!(registry.refresh(), "its own proxy is to know what it is going to be");
        assert_eq!(bodies(&registry), before, "nobody calls it");
        registry.take_slice(Event::Applied(starting));
        assert!(!registry.refresh());
    }

    #[test]
    fn a_slice_that_changes_its_service_leaves_the_old_one() {
        let mut registry = Registry::default();
        registry.take_service(Event::Listed(vec![service("a", 80), service("b", 80)]));
        registry.take_slice(Event::Applied(slice("x", "a", &[1])));
        registry.refresh();
        registry.take_slice(Event::Applied(slice("x", "b", &[1])));
        assert!(registry.refresh());
        let endpoints = |at: usize| bodies(&registry)[at]["spec"]["endpoints"].as_array().map_or(0, Vec::len);
        assert_eq!((endpoints(0), endpoints(1)), (0, 1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Service(u8, Option<u16>),
        Slice(u8, u8, Option<Vec<u8>>),
        Refresh,
        Relist,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0_u8..3, proptest::option::of(80_u16..82)).prop_map(|(at, port)| Step::Service(at, port)),
            (0_u8..4, 0_u8..3, proptest::option::of(proptest::collection::vec(1_u8..6, 0..3)))
                .prop_map(|(at, home, hosts)| Step::Slice(at, home, hosts)),
            Just(Step::Refresh),
            Just(Step::Relist),
        ];
        proptest::collection::vec(step, 0..40)
    }

    proptest! {
        /// Whatever came when, and however often everything was listed in between, the view is that of the last state.
        #[test]
        fn the_view_follows_from_the_state_and_not_from_the_order(steps in steps(), tail_first in any::<bool>()) {
            let mut registry = Registry::default();
            let mut services: BTreeMap<u8, Service> = BTreeMap::new();
            let mut slices: BTreeMap<u8, EndpointSlice> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Service(at, Some(port)) => {
                        let one = service(&format!("s{at}"), port);
                        services.insert(at, one.clone());
                        registry.take_service(Event::Applied(one));
                    }
                    Step::Service(at, None) => {
                        if let Some(one) = services.remove(&at) {
                            registry.take_service(Event::Deleted(one));
                        }
                    }
                    Step::Slice(at, home, Some(hosts)) => {
                        let one = slice(&format!("x{at}"), &format!("s{home}"), &hosts);
                        slices.insert(at, one.clone());
                        registry.take_slice(Event::Applied(one));
                    }
                    Step::Slice(at, _, None) => {
                        if let Some(one) = slices.remove(&at) {
                            registry.take_slice(Event::Deleted(one));
                        }
                    }
                    Step::Refresh => { registry.refresh(); }
                    Step::Relist => {
                        registry.take_slice(Event::Listed(slices.values().cloned().collect()));
                        registry.take_service(Event::Listed(services.values().cloned().collect()));
                    }
                }
            }
            registry.refresh();
            let mut fresh = Registry::default();
            if tail_first {
                fresh.take_slice(Event::Listed(slices.into_values().collect()));
                fresh.take_service(Event::Listed(services.into_values().collect()));
            } else {
                services.into_values().for_each(|one| fresh.take_service(Event::Applied(one)));
                slices.into_values().for_each(|one| fresh.take_slice(Event::Applied(one)));
            }
            fresh.refresh();
            prop_assert_eq!(bodies(&registry), bodies(&fresh));
        }
    }
}
