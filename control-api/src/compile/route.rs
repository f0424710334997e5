//! Purpose: the outbound route table of a namespace: one virtual host per service and per further
//! hostname, routes in the Gateway API's order.
//! Shape: a service is what callers name: an Upstream's service name, or a Service that a route is
//! bound to. A service without any route leads to the Upstream of that name; once a route is bound,
//! what no rule matches is 404 (GAMMA).
//! Limits: the short name `orders` is a domain in its own namespace only, so two namespaces may use
//! one name.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use prost::Message;

use super::captured::PASSTHROUGH;
use super::effective::Attached;
use super::rank::Rank;
use super::resource::{Digest, Resource, ResourceSet};
use super::rule::{RuleAt, build_default_route, build_route};
use crate::model::http_route::HttpRoute;
use crate::model::link::service_names;
use crate::model::service::{ServicePort, find_port};
use crate::model::{Object, ObjectKey, PolicySet};

/// Name of the outbound route table.
pub(super) const ROUTE_TABLE: &str = "outbound";

pub(super) fn compile_routes(policy: &PolicySet, namespace: &str) -> ResourceSet {
    std::iter::once(pack_table(&build_table(policy, namespace))).collect()
}

fn pack_table(table: &RouteConfiguration) -> Resource {
    Resource { digest: digest_table(table), ..Resource::pack(table.name.clone(), table) }
}

/// Maps encode in any order, so they are taken out and digested in theirs.
fn digest_table(table: &RouteConfiguration) -> u64 {
    let mut table = table.clone();
    let mut digest = Digest::new();
    for route in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
        let entries: BTreeMap<_, _> = route.typed_per_filter_config.drain().collect();
        for (key, any) in entries {
            digest = digest.with(key.as_bytes()).with(&any.value);
        }
        digest = digest.with(b"|");
    }
    digest.with(&table.encode_to_vec()).finish()
}

/// What callers name, and who answers.
#[derive(Debug, Default)]
struct Service<'a> {
    /// Its ports that may speak HTTP.
    ports: Vec<ServicePort<'a>>,
    routes: Vec<(&'a Object, &'a HttpRoute, Option<u16>)>,
}

impl<'a> Service<'a> {
    /// The upstream of those who call it without a port, or at one that it does not name.
    fn upstream(&self) -> Option<ServicePort<'a>> {
        find_port(&self.ports, None).or_else(|| find_port(&self.ports, Some(80))).or(self.ports.first().copied())
    }

    /// Whether a route is bound to a port.
    fn is_bound(&self, port: u16) -> bool {
        self.routes.iter().any(|(.., wanted)| wanted.is_none_or(|wanted| wanted == port))
    }

    /// The routes for callers of a port, or of none: those bound to it, or the one to the upstream behind it.
    fn routes_at(&self, port: Option<u16>, upstream: Option<ServicePort<'a>>, attached: &Attached<'_>) -> Vec<Route> {
        let fits = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        let bound = self.routes.iter().filter(|(.., wanted)| fits(wanted));
        let bound: Vec<(&Object, &HttpRoute)> = bound.map(|(object, route, _)| (*object, *route)).collect();
        match (bound.is_empty(), upstream) {
            (true, Some(one)) => vec![build_default_route(one.key, one.upstream.protocol, attached)],
            _ => build_routes(&bound, upstream.map(|one| one.key), attached),
        }
    }
}

fn build_table(policy: &PolicySet, namespace: &str) -> RouteConfiguration {
    let attached = Attached::build(policy);
    let services = collect_services(policy, &attached);
    let mut hosts = Vec::new();
    for ((service_namespace, name), service) in &services {
        let names = service_names(service_namespace, name);
        let skipped = usize::from(*service_namespace != namespace);
        let names: Vec<&str> = names.iter().skip(skipped).map(String::as_str).collect();
        let title = format!("{name}.{service_namespace}");
        hosts.extend(build_hosts(&title, &names, service, &attached));
    }
    let taken: BTreeSet<String> = hosts.iter().flat_map(|host| host.domains.clone()).collect();
    hosts.extend(build_hostname_hosts(policy, &attached, &taken));
    RouteConfiguration { name: ROUTE_TABLE.to_owned(), virtual_hosts: hosts, ..RouteConfiguration::default() }
}

/// The tables of captured traffic: one for each port of a service. Who calls it is known by where a connection goes, so
/// the authority of a request decides nothing.
pub(super) fn compile_service_routes(policy: &PolicySet) -> ResourceSet {
    let attached = Attached::build(policy);
    let services = collect_services(policy, &attached);
    let tables = services.iter().flat_map(|((namespace, name), service)| {
        let attached = &attached;
        service.ports.iter().filter_map(move |port| {
            let number = port.upstream.port?;
            let mut routes = service.routes_at(Some(number), Some(*port), attached);
            if port.upstream.addresses.is_empty() && !service.is_bound(number) {
                // Whoever calls it has chosen an endpoint.
                routes.iter_mut().for_each(|route| lead_to(route, PASSTHROUGH));
            }
            let host = VirtualHost {
                name: format!("{name}.{namespace}:{number}"),
                domains: vec!["*".to_owned()],
                routes,
                ..VirtualHost::default()
            };
            let name = service_table(namespace, name, number);
            Some(RouteConfiguration { name, virtual_hosts: vec![host], ..RouteConfiguration::default() })
        })
    });
    tables.map(|table| pack_table(&table)).collect()
}

fn lead_to(route: &mut Route, cluster: &str) {
    if let Some(Action::Route(action)) = &mut route.action {
        action.cluster_specifier = Some(ClusterSpecifier::Cluster(cluster.to_owned()));
    }
}

/// Name of the route table of a service's port.
pub(super) fn service_table(namespace: &str, service: &str, port: u16) -> String {
    format!("service/{namespace}/{service}/{port}")
}

fn collect_services<'a>(policy: &'a PolicySet, attached: &Attached<'a>) -> BTreeMap<(&'a str, &'a str), Service<'a>> {
    let mut services: BTreeMap<(&str, &str), Service<'_>> = BTreeMap::new();
    for (name, ports) in attached.services().iter() {
        let ports: Vec<_> = ports.iter().filter(|port| port.upstream.protocol.has_routes()).copied().collect();
        if !ports.is_empty() {
            services.entry(name).or_default().ports = ports;
        }
    }
    for (object, route) in policy.routes() {
        for parent in &route.parents {
            let service = services.entry((&parent.namespace, &parent.name)).or_default();
            service.routes.push((object, route, parent.port));
        }
    }
    services
}

fn build_hosts(title: &str, names: &[&str], service: &Service<'_>, attached: &Attached<'_>) -> Vec<VirtualHost> {
    let mut hosts = Vec::new();
    let routes = service.routes_at(None, service.upstream(), attached);
    if !routes.is_empty() {
        let with_port = names.iter().map(|name| format!("{name}:*"));
        let domains = names.iter().map(ToString::to_string).chain(with_port).collect();
        hosts.push(VirtualHost { name: title.to_owned(), domains, routes, ..Default::default() });
    }
    let mut ports: BTreeSet<u16> = service.routes.iter().filter_map(|(.., port)| *port).collect();
    if service.ports.len() > 1 {
        ports.extend(service.ports.iter().filter_map(|port| port.upstream.port));
    }
    for port in ports {
        let upstream = find_port(&service.ports, Some(port)).or(service.upstream());
        hosts.push(VirtualHost {
            name: format!("{title}:{port}"),
            domains: names.iter().map(|name| format!("{name}:{port}")).collect(),
            routes: service.routes_at(Some(port), upstream, attached),
            ..VirtualHost::default()
        });
    }
    hosts
}

fn build_hostname_hosts(policy: &PolicySet, attached: &Attached<'_>, taken: &BTreeSet<String>) -> Vec<VirtualHost> {
    let mut by_hostname: BTreeMap<&str, Vec<(&Object, &HttpRoute)>> = BTreeMap::new();
    for (object, route) in policy.routes() {
        let names: BTreeSet<&str> = route.hostnames.iter().map(String::as_str).collect();
        for hostname in names.into_iter().filter(|hostname| !taken.contains(*hostname)) {
            by_hostname.entry(hostname).or_default().push((object, route));
        }
    }
    by_hostname
        .into_iter()
        .map(|(hostname, routes)| {
            let mut domains = vec![hostname.to_owned()];
            if !hostname.starts_with('*') {
                domains.push(format!("{hostname}:*"));
            }
            let routes = build_routes(&routes, None, attached);
            VirtualHost { name: format!("host/{hostname}"), domains, routes, ..Default::default() }
        })
        .collect()
}

fn build_routes(routes: &[(&Object, &HttpRoute)], upstream: Option<&ObjectKey>, attached: &Attached<'_>) -> Vec<Route> {
    let mut ranked: Vec<(Rank, RuleAt<'_>)> = Vec::new();
    for (object, route) in routes {
        for (rule_index, rule) in route.rules.iter().enumerate() {
            for (index, one) in rule.matches.iter().enumerate() {
                let rank = Rank::of(one, object, rule_index, index);
                ranked.push((rank, RuleAt { route: &object.key, rule, rule_index, index }));
            }
        }
    }
    ranked.sort_by(|left, right| left.0.cmp(&right.0));
    // A route bound to one service twice (with and without a port) is listed once.
    ranked.dedup_by(|left, right| left.0 == right.0);
    ranked.iter().filter_map(|(_, at)| build_route(at, upstream, attached)).collect()
}
