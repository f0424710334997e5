//! What the hash of a request is taken of.

use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy as Proto;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{self as proto, PolicySpecifier};

use super::at::{At, at};
use super::header;
use crate::config::{HashCookie, HashPolicy, HashSource};

/// The policies in their order. One that is refused is left out.
pub(super) fn hash_policies(policies: &At<'_, Vec<Proto>>) -> Vec<HashPolicy> {
    let read = |policy: At<'_, Proto>| {
        let source = source(&policy)?;
        Some(HashPolicy { source, is_terminal: policy.value.terminal })
    };
    policies.each().filter_map(read).collect()
}

fn source(policy: &At<'_, Proto>) -> Option<HashSource> {
    match &policy.value.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let header = policy.field("header", header);
            if let Some(rewrite) = at!(header.regex_rewrite).set() {
                rewrite.refuse("is not served; the whole value is hashed");
            }
            header::matched_name(at!(header.header_name)).map(HashSource::Header)
        }
        Some(PolicySpecifier::Cookie(cookie)) => cookie_of(policy.field("cookie", cookie)).map(HashSource::Cookie),
        Some(PolicySpecifier::ConnectionProperties(connection)) => {
            if !connection.source_ip {
                policy.field("connection_properties", connection).refuse("names no property; set source_ip");
                return None;
            }
            Some(HashSource::SourceIp)
        }
        Some(PolicySpecifier::QueryParameter(query)) => {
            let query = policy.field("query_parameter", query);
            at!(query.name).named().map(|name| HashSource::Query(name.into()))
        }
        Some(PolicySpecifier::FilterState(state)) => {
            policy.field("filter_state", state).refuse("is not served; no filter leaves a state");
            None
        }
        None => {
            policy.refuse(
                "names nothing to hash; one of header, cookie, connection_properties, query_parameter is required",
            );
            None
        }
    }
}

fn cookie_of(cookie: At<'_, proto::Cookie>) -> Option<HashCookie> {
    // A name of a cookie is a token, as that of a header is, but for its letter case.
    header::name(at!(cookie.name))?;
    let mut attributes = String::new();
    let path = part(at!(cookie.path))?;
    if !path.is_empty() {
        attributes.push_str("; Path=");
        attributes.push_str(path);
    }
    for attribute in at!(cookie.attributes).each() {
        let (name, value) = (header::name(at!(attribute.name)), part(at!(attribute.value)));
        name?;
        attributes.push_str("; ");
        attributes.push_str(&attribute.value.name);
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            attributes.push('=');
            attributes.push_str(value);
        }
    }
    let ttl = at!(cookie.ttl).span();
    Some(HashCookie { name: cookie.value.name.as_str().into(), ttl, attributes: attributes.into() })
}

/// Text that stays inside its attribute.
fn part<'a>(at: At<'a, String>) -> Option<&'a str> {
    if at.value.bytes().any(|byte| byte == b';' || byte.is_ascii_control()) {
        at.refuse("is no part of a cookie: it has a semicolon or control characters");
        return None;
    }
    Some(at.value)
}
