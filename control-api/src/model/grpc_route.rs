//! Purpose: the Gateway API's `GRPCRoute`: an [`HttpRoute`] whose matches name services and methods of gRPC.
//! Shape: a method is a path, so the parts that do not speak of methods are those of `HTTPRoute`.
//! Errors: as there: what is not read is refused. Filters that change path or host have no meaning here.
//! Limits: as the Gateway API's own schema; a name is an identifier of protobuf, at most 1024 bytes.
//! Source: gateway-api v1 `GRPCRouteSpec`.

use super::cursor::{Cursor, Fields};
use super::http_route::{
    Filter, HttpRoute, Match, PathMatch, Rule, parse_backends, parse_filters, parse_regex, parse_route, parse_values,
};
use super::object::{SUBDOMAIN_RULE, is_dns_subdomain};

const RULE_FIELDS: &[&str] = &["name", "matches", "filters", "backendRefs"];
/// Any service, or any method.
const ANY: &str = "[^/]+";

/// Reads a spec; `namespace` is the route's own.
pub fn parse_grpc_route(at: &Cursor<'_>, namespace: &str) -> Option<HttpRoute> {
    parse_route(at, namespace, RULE_FIELDS, parse_rule)
}

fn parse_rule(at: &Cursor<'_>, namespace: &str) -> Option<Rule> {
    let fields = at.fields(RULE_FIELDS)?;
    let mut matches: Vec<_> = fields.list("matches", 0..=64).iter().filter_map(parse_match).collect();
    if matches.is_empty() {
        matches.push(grpc_match(PathMatch::Prefix("/".to_owned())));
    }
    let filters = parse_filters(&fields);
    for (index, filter) in filters.iter().enumerate() {
        if matches!(filter, Filter::Redirect(_) | Filter::Rewrite(_)) {
            let of_calls = "a call can have RequestHeaderModifier and ResponseHeaderModifier only";
            fields.refuse_field("filters", format!("filter {index}: {of_calls}"));
        }
    }
    let backends = parse_backends(&fields, namespace);
    if backends.is_empty() {
        fields.refuse_field("backendRefs", "a rule needs backendRefs");
    }
    Some(Rule {
        name: fields.optional("name").and_then(|at| at.text(is_dns_subdomain, SUBDOMAIN_RULE)),
        matches,
        filters,
        backends,
        request_timeout: None,
        try_timeout: None,
        retry: None,
    })
}

fn grpc_match(path: PathMatch) -> Match {
    Match { path, headers: Vec::new(), query: Vec::new(), method: None, is_grpc: true }
}

fn parse_match(at: &Cursor<'_>) -> Option<Match> {
    let fields = at.fields(&["method", "headers"])?;
    let path = match fields.optional("method") {
        Some(at) => parse_method(&at),
        None => Some(PathMatch::Prefix("/".to_owned())),
    };
    let headers = parse_values(&fields, "headers", true);
    Some(Match { headers, ..grpc_match(path?) })
}

/// The path of a service, a method, or both.
fn parse_method(at: &Cursor<'_>) -> Option<PathMatch> {
    let fields = at.fields(&["type", "service", "method"])?;
    let is_regex = match fields.optional("type") {
        Some(at) => at.choice(&[("Exact", false), ("RegularExpression", true)])?,
        None => false,
    };
    if !fields.has("service") && !fields.has("method") {
        at.refuse("must name a service, a method or both");
        return None;
    }
    let service = parse_part(&fields, "service", is_regex, is_service)?;
    let method = parse_part(&fields, "method", is_regex, is_identifier)?;
    Some(match (service, method) {
        (Some(service), Some(method)) if !is_regex => PathMatch::Exact(format!("/{service}/{method}")),
        (Some(service), None) if !is_regex => PathMatch::Prefix(format!("/{service}")),
        (service, method) => {
            let part = |part: Option<String>| match part {
                None => ANY.to_owned(),
                Some(text) if is_regex => format!("(?:{text})"),
                Some(text) => regex::escape(&text),
            };
            PathMatch::Regex(format!("/{}/{}", part(service), part(method)))
        }
    })
}

/// `Some(None)`: it is not there, so any will do.
fn parse_part(fields: &Fields<'_>, name: &str, is_regex: bool, is_name: fn(&str) -> bool) -> Option<Option<String>> {
    const RULE: &str = "must be a name of protobuf: letters, digits and _, not starting with a digit";
    let Some(at) = fields.optional(name) else { return Some(None) };
    let text = if is_regex { parse_regex(&at) } else { at.text(is_name, RULE) };
    text.map(Some)
}

fn is_service(text: &str) -> bool {
    text.len() <= 1_024 && text.split('.').all(is_identifier)
}

fn is_identifier(text: &str) -> bool {
    text.len() <= 1_024
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}
