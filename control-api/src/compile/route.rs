//! Purpose: the outbound route table of a namespace: one virtual host per service and per further
//! hostname, routes in the Gateway API's order.
//! Shape: a service is what callers name: an Upstream's service name, or a Service that a route is
//! bound to. A service without any route leads to the Upstream of that name; once a route is bound,
//! what no rule matches is 404 (GAMMA).
//! Limits: the short name `orders` is a domain in its own namespace only, so two namespaces may use
//! one name.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use prost::Message;

use super::effective::Attached;
use super::rank::Rank;
use super::resource::{Digest, Resource, ResourceSet};
use super::rule::{RuleAt, build_default_route, build_route};
use crate::model::http_route::HttpRoute;
use crate::model::link::service_names;
use crate::model::upstream::AppProtocol;
use crate::model::{Object, ObjectKey, PolicySet};

/// Name of the outbound route table.
pub(super) const ROUTE_TABLE: &str = "outbound";

pub(super) fn compile_routes(policy: &PolicySet, namespace: &str) -> ResourceSet {
    let table = build_table(policy, namespace);
    let digest = digest_table(&table);
    let mut resource = Resource::pack(ROUTE_TABLE.to_owned(), &table);
    resource.digest = digest;
    std::iter::once(resource).collect()
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
    upstream: Option<(&'a ObjectKey, AppProtocol)>,
    routes: Vec<(&'a Object, &'a HttpRoute, Option<u16>)>,
}

fn build_table(policy: &PolicySet, namespace: &str) -> RouteConfiguration {
    let attached = Attached::build(policy);
    let services = collect_services(policy);
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

fn collect_services(policy: &PolicySet) -> BTreeMap<(&str, &str), Service<'_>> {
    let mut services: BTreeMap<(&str, &str), Service<'_>> = BTreeMap::new();
    for (object, upstream) in policy.upstreams() {
        let name = upstream.service_name.as_deref().unwrap_or(&object.key.name);
        services.entry((&object.key.namespace, name)).or_default().upstream = Some((&object.key, upstream.protocol));
    }
    for (object, route) in policy.routes() {
        for parent in &route.parents {
            let service = services.entry((&parent.namespace, &parent.name)).or_default();
            service.routes.push((object, route, parent.port));
        }
    }
    services
}

fn build_hosts(title: &str, names: &[&str], service: &Service<'_>, attached: &Attached) -> Vec<VirtualHost> {
    let bound = |wanted: Option<u16>| -> Vec<(&Object, &HttpRoute)> {
        let fits = |port: &Option<u16>| port.is_none() || *port == wanted;
        let found = service.routes.iter().filter(|(.., port)| fits(port));
        found.map(|(object, route, _)| (*object, *route)).collect()
    };
    let upstream = service.upstream.map(|(key, _)| key);
    let mut hosts = Vec::new();
    let routes = bound(None);
    let routes = match (routes.is_empty(), service.upstream) {
        (true, Some((upstream, protocol))) => vec![build_default_route(upstream, protocol, attached)],
        _ => build_routes(&routes, upstream, attached),
    };
    if !routes.is_empty() {
        let with_port = names.iter().map(|name| format!("{name}:*"));
        let domains = names.iter().map(ToString::to_string).chain(with_port).collect();
        hosts.push(VirtualHost { name: title.to_owned(), domains, routes, ..Default::default() });
    }
    let ports: BTreeSet<u16> = service.routes.iter().filter_map(|(.., port)| *port).collect();
    for port in ports {
        hosts.push(VirtualHost {
            name: format!("{title}:{port}"),
            domains: names.iter().map(|name| format!("{name}:{port}")).collect(),
            routes: build_routes(&bound(Some(port)), upstream, attached),
            ..VirtualHost::default()
        });
    }
    hosts
}

fn build_hostname_hosts(policy: &PolicySet, attached: &Attached, taken: &BTreeSet<String>) -> Vec<VirtualHost> {
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

fn build_routes(routes: &[(&Object, &HttpRoute)], upstream: Option<&ObjectKey>, attached: &Attached) -> Vec<Route> {
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
