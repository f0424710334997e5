//! Route tables and virtual hosts.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as proto;

use super::at::{At, at};
use super::rejection::{Converted, ResourceKind};
use super::{header, policy, route_action, route_match};
use crate::config::{AccessOverride, RetryPolicy, Route, RouteTable, VirtualHost};

/// Converts an encoded RouteConfiguration.
pub fn route_table(encoded: &[u8]) -> Converted<RouteTable> {
    super::convert(
        ResourceKind::RouteTable,
        encoded,
        |table: &proto::RouteConfiguration| &table.name,
        |at| {
            let name = at!(at.name).named();
            table(at, &name?)
        },
    )
}

/// A route table under the name `name`; one inside a listener may have none of its own.
pub(super) fn table(table: At<'_, proto::RouteConfiguration>, name: &str) -> Option<RouteTable> {
    if let Some(vhds) = at!(table.vhds).set() {
        vhds.refuse("virtual hosts on demand are not served");
    }
    let overrides = policy::overrides(at!(table.typed_per_filter_config), name);
    let mut domains = HashMap::new();
    let hosts = at!(table.virtual_hosts);
    let virtual_hosts =
        hosts.each().filter_map(|host| virtual_host(&host, (name, &overrides.access), &mut domains)).collect();
    Some(RouteTable {
        name: name.into(),
        virtual_hosts,
        request_edits: header::edits(at!(table.request_headers_to_add), at!(table.request_headers_to_remove)),
        response_edits: header::edits(at!(table.response_headers_to_add), at!(table.response_headers_to_remove)),
        ignore_port_in_host: table.value.ignore_port_in_host_matching,
    })
}

fn virtual_host(
    host: &At<'_, proto::VirtualHost>,
    (table, above): (&str, &[AccessOverride]),
    taken: &mut HashMap<String, String>,
) -> Option<VirtualHost> {
    let host = *host;
    let name = at!(host.name).named();
    let shown = name.clone().unwrap_or_default();
    let given = at!(host.domains);
    if given.value.is_empty() {
        given.refuse("is empty; at least one domain is required");
    }
    let mut domains: Vec<Arc<str>> = Vec::with_capacity(given.value.len());
    for domain in given.each() {
        let Some(text) = read_domain(&domain) else { continue };
        match taken.get(&text) {
            Some(owner) => domain.refuse(format_args!("domain {text:?} is already in virtual host {owner:?}")),
            None => {
                domains.push(text.as_str().into());
                taken.insert(text, shown.clone());
            }
        }
    }
    if let Some(matcher) = at!(host.matcher).set() {
        matcher.refuse("a matcher tree is not served; use routes");
    }
    if host.value.require_tls != 0 {
        at!(host.require_tls).refuse("redirects to TLS are not served");
    }
    let place = format!("{table}/{shown}");
    let overrides = policy::overrides(at!(host.typed_per_filter_config), &place);
    let retry = at!(host.retry_policy).set().and_then(|retry| policy::retry_policy(retry, false));
    let access = overrides.access_over(above);
    let defaults = RouteDefaults {
        access: &access,
        place: &place,
        host: &shown,
        retry: retry.as_ref(),
        retry_non_idempotent: overrides.retry_non_idempotent.unwrap_or(false),
    };
    let routes = at!(host.routes);
    let routes = routes.each().enumerate().filter_map(|(index, at)| route(&at, index, &defaults)).collect();
    Some(VirtualHost {
        name: name?.into(),
        domains,
        routes,
        request_edits: header::edits(at!(host.request_headers_to_add), at!(host.request_headers_to_remove)),
        response_edits: header::edits(at!(host.response_headers_to_add), at!(host.response_headers_to_remove)),
        rate_limit: overrides.rate_limit,
    })
}

/// `a.b`, `*.b`, `a.*` or `*`, in lower case.
fn read_domain(domain: &At<'_, String>) -> Option<String> {
    let text = domain.value.to_ascii_lowercase();
    let plain = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(&text);
    let is_domain =
        !text.is_empty() && plain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%!$&'()+,;=".contains(&b));
    if !is_domain {
        domain.refuse(format_args!("{:?} is not a domain: `a.b`, `*.b`, `a.*` or `*`", domain.value));
        return None;
    }
    Some(text)
}

/// What a route takes from its virtual host.
pub(super) struct RouteDefaults<'a> {
    access: &'a [AccessOverride],
    place: &'a str,
    host: &'a str,
    pub(super) retry: Option<&'a RetryPolicy>,
    pub(super) retry_non_idempotent: bool,
}

fn route(route: &At<'_, proto::Route>, index: usize, defaults: &RouteDefaults<'_>) -> Option<Arc<Route>> {
    let route = *route;
    let name = match route.value.name.as_str() {
        "" => Some(format!("{}/{index}", defaults.host)),
        _ => at!(route.name).named(),
    };
    let shown = name.clone().unwrap_or_default();
    let overrides = policy::overrides(at!(route.typed_per_filter_config), &format!("{}/{shown}", defaults.place));
    let defaults = RouteDefaults {
        retry_non_idempotent: overrides.retry_non_idempotent.unwrap_or(defaults.retry_non_idempotent),
        ..*defaults
    };
    let matches = at!(route.r#match).required().and_then(|at| route_match::route_match(at));
    let action = route_action::action(route, &defaults);
    Some(Arc::new(Route {
        name: name?.into(),
        matches: matches?,
        action: action?,
        access: overrides.access_over(defaults.access),
        rate_limit: overrides.rate_limit,
        request_edits: header::edits(at!(route.request_headers_to_add), at!(route.request_headers_to_remove)),
        response_edits: header::edits(at!(route.response_headers_to_add), at!(route.response_headers_to_remove)),
    }))
}
