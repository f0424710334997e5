//! RBAC: who may call. Source: Envoy, `config.rbac.v3` and the filters that carry it.
//!
//! **Limits.** Conditions nest at most [`MAX_NESTING`] deep.

use envoy_types::pb::envoy::config::rbac::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use proto::permission::Rule;
use proto::principal::Identifier;
use proto::rbac::Action;

use super::at::{At, at};
use super::filter_chain::prefix;
use super::matcher::text_match;
use super::route_match::header_match;
use crate::config::{AccessAction, AccessPolicy, AccessRules, AddressSet, Condition, RuleSet, TextMatch};

const MAX_NESTING: usize = 16;
const NO_TREE: &str = "a matcher tree is not served; use rules or shadow_rules";
const NO_CEL: &str = "conditions in CEL are not served; use permissions and principals";

/// Where rules stand, which says what they may ask.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Connection,
    Request,
}

/// The HTTP filter.
pub(super) fn of_requests(filter: At<'_, http::Rbac>) -> Option<AccessRules> {
    refuse_set(at!(filter.matcher), NO_TREE);
    refuse_set(at!(filter.shadow_matcher), NO_TREE);
    rules((at!(filter.rules), at!(filter.shadow_rules)), Place::Request)
}

/// The network filter.
pub(super) fn of_connections(filter: At<'_, network::Rbac>) -> Option<AccessRules> {
    refuse_set(at!(filter.matcher), NO_TREE);
    refuse_set(at!(filter.shadow_matcher), NO_TREE);
    // Calls are counted by listener; Envoy wants the name all the same.
    at!(filter.stat_prefix).named()?;
    // What may be asked of a connection stays as it is while it lives: once is as good as always.
    at!(filter.enforcement_type).one_of::<network::rbac::EnforcementType>();
    rules((at!(filter.rules), at!(filter.shadow_rules)), Place::Connection)
}

/// What a route says instead; the inner value is `None` where it turns the filter off.
#[allow(clippy::option_option, reason = "refused, off, other rules")]
pub(super) fn of_route(route: At<'_, http::RbacPerRoute>) -> Option<Option<AccessRules>> {
    let Some(filter) = at!(route.rbac).set() else { return Some(None) };
    of_requests(filter).map(Some)
}

/// What must not be there.
fn refuse_set<T>(given: At<'_, Option<T>>, why: &str) {
    if let Some(given) = given.set() {
        given.refuse(why);
    }
}

fn rules(
    (enforced, shadow): (At<'_, Option<proto::Rbac>>, At<'_, Option<proto::Rbac>>),
    place: Place,
) -> Option<AccessRules> {
    let read = |given: At<'_, Option<proto::Rbac>>| match given.set() {
        None => Some(None),
        Some(rules) => rule_set(rules, place).map(Some),
    };
    let (enforced, shadow) = (read(enforced), read(shadow));
    Some(AccessRules { enforced: enforced?, shadow: shadow? })
}

fn rule_set(rules: At<'_, proto::Rbac>, place: Place) -> Option<RuleSet> {
    let action = at!(rules.action).one_of::<Action>();
    refuse_set(at!(rules.audit_logging_options), "audit loggers are not served");
    let given = at!(rules.policies);
    let policies: Vec<_> = given.entries().filter_map(|(name, at)| policy(name, at, place)).collect();
    // A policy that cannot be read must not be left out: without it more calls might be allowed.
    if policies.len() != given.value.len() {
        return None;
    }
    let action = match action? {
        Action::Allow => AccessAction::Allow,
        Action::Deny => AccessAction::Deny,
        Action::Log => AccessAction::Log,
    };
    Some(RuleSet { action, policies })
}

fn policy(name: &str, policy: At<'_, proto::Policy>, place: Place) -> Option<AccessPolicy> {
    refuse_set(at!(policy.condition), NO_CEL);
    refuse_set(at!(policy.checked_condition), NO_CEL);
    refuse_set(at!(policy.cel_config), NO_CEL);
    let permissions = each(&at!(policy.permissions), |part| permission(part, place, 1));
    let principals = each(&at!(policy.principals), |part| principal(part, place, 1));
    Some(AccessPolicy { name: name.into(), permission: any_of(permissions?), principal: any_of(principals?) })
}

/// Every part; there must be one.
fn each<T>(parts: &At<'_, Vec<T>>, read: impl Fn(At<'_, T>) -> Option<Condition>) -> Option<Vec<Condition>> {
    if parts.value.is_empty() {
        parts.refuse("is empty; at least one is required");
        return None;
    }
    let read: Vec<_> = parts.each().filter_map(read).collect();
    (read.len() == parts.value.len()).then_some(read)
}

/// One of the parts. Sets of the same address become one, so that thousands are looked up at once.
fn any_of(parts: Vec<Condition>) -> Condition {
    let mut rest = Vec::new();
    let mut sets: [Vec<AddressSet>; 4] = Default::default();
    for part in parts {
        match part {
            Condition::Destination(set) => sets[0].push(set),
            Condition::DirectRemote(set) => sets[1].push(set),
            Condition::Remote(set) => sets[2].push(set),
            Condition::Source(set) => sets[3].push(set),
            other => rest.push(other),
        }
    }
    let of: [fn(AddressSet) -> Condition; 4] =
        [Condition::Destination, Condition::DirectRemote, Condition::Remote, Condition::Source];
    let found = of.into_iter().zip(sets).filter(|(_, sets)| !sets.is_empty());
    rest.extend(found.map(|(of, sets)| of(AddressSet::of_all(sets))));
    if rest.len() == 1 { rest.remove(0) } else { Condition::Any(rest) }
}

/// Whether there may be parts here.
fn is_too_deep<T>(at: &At<'_, T>, depth: usize) -> bool {
    if depth > MAX_NESTING {
        at.refuse(format_args!("nests more than {MAX_NESTING} deep"));
    }
    depth > MAX_NESTING
}

fn permission(given: At<'_, proto::Permission>, place: Place, depth: usize) -> Option<Condition> {
    if is_too_deep(&given, depth) {
        return None;
    }
    let Some(rule) = &given.value.rule else {
        given.refuse("asks nothing; one of the rules is required");
        return None;
    };
    let parts = |set: At<'_, proto::permission::Set>| each(&at!(set.rules), |part| permission(part, place, depth + 1));
    match rule {
        Rule::AndRules(set) => parts(given.field("and_rules", set)).map(Condition::All),
        Rule::OrRules(set) => parts(given.field("or_rules", set)).map(any_of),
        Rule::NotRule(part) => {
            let part = permission(given.field("not_rule", &**part), place, depth + 1);
            part.map(|part| Condition::Not(Box::new(part)))
        }
        Rule::Any(any) => every(given.field("any", any)),
        Rule::Header(header) => {
            of_request(given.field("header", header), place, |at| header_match(&at).map(Condition::Header))
        }
        Rule::UrlPath(path) => of_request(given.field("url_path", path), place, url_path),
        Rule::DestinationIp(range) => {
            prefix(given.field("destination_ip", range)).map(|one| Condition::Destination(AddressSet::new([one])))
        }
        Rule::DestinationPort(port) => destination_port(given.field("destination_port", port)),
        Rule::DestinationPortRange(range) => destination_ports(given.field("destination_port_range", range)),
        _ => {
            given.refuse(
                "asks for what is not served: use and_rules, or_rules, not_rule, any, header, url_path, \
                 destination_ip, destination_port or destination_port_range",
            );
            None
        }
    }
}

#[allow(deprecated, reason = "source_ip is still sent")]
fn principal(given: At<'_, proto::Principal>, place: Place, depth: usize) -> Option<Condition> {
    if is_too_deep(&given, depth) {
        return None;
    }
    let Some(identifier) = &given.value.identifier else {
        given.refuse("asks nothing; one of the identifiers is required");
        return None;
    };
    let parts = |set: At<'_, proto::principal::Set>| each(&at!(set.ids), |part| principal(part, place, depth + 1));
    let set = |range| prefix(range).map(|one| AddressSet::new([one]));
    match identifier {
        Identifier::AndIds(ids) => parts(given.field("and_ids", ids)).map(Condition::All),
        Identifier::OrIds(ids) => parts(given.field("or_ids", ids)).map(any_of),
        Identifier::NotId(part) => {
            let part = principal(given.field("not_id", &**part), place, depth + 1);
            part.map(|part| Condition::Not(Box::new(part)))
        }
        Identifier::Any(any) => every(given.field("any", any)),
        // Nobody has shown a certificate: there is no TLS.
        Identifier::Authenticated(_) => Some(Condition::Never),
        Identifier::SourceIp(range) => set(given.field("source_ip", range)).map(Condition::Source),
        Identifier::DirectRemoteIp(range) => set(given.field("direct_remote_ip", range)).map(Condition::DirectRemote),
        Identifier::RemoteIp(range) => set(given.field("remote_ip", range)).map(Condition::Remote),
        Identifier::Header(header) => {
            of_request(given.field("header", header), place, |at| header_match(&at).map(Condition::Header))
        }
        Identifier::UrlPath(path) => of_request(given.field("url_path", path), place, url_path),
        _ => {
            given.refuse(
                "asks for what is not served: use and_ids, or_ids, not_id, any, authenticated, source_ip, \
                 direct_remote_ip, remote_ip, header or url_path",
            );
            None
        }
    }
}

/// `any`, which Envoy wants to be true.
fn every(any: At<'_, bool>) -> Option<Condition> {
    if !*any.value {
        any.refuse("false is not true, the one value that it may have");
    }
    any.value.then_some(Condition::Every)
}

/// What only a request has.
fn of_request<T>(at: At<'_, T>, place: Place, read: impl Fn(At<'_, T>) -> Option<Condition>) -> Option<Condition> {
    if place == Place::Connection {
        at.refuse("an opaque connection has none; use the filter envoy.filters.http.rbac");
        return None;
    }
    read(at)
}

fn url_path(matcher: At<'_, PathMatcher>) -> Option<Condition> {
    let Some(path_matcher::Rule::Path(path)) = &matcher.value.rule else {
        matcher.refuse("has no path; it is required");
        return None;
    };
    let text: TextMatch = text_match(matcher.field("path", path))?;
    Some(Condition::Path(text))
}

fn destination_port(port: At<'_, u32>) -> Option<Condition> {
    let Ok(one) = u16::try_from(*port.value) else {
        port.refuse(format_args!("{} is not in 0..=65535", port.value));
        return None;
    };
    Some(Condition::DestinationPort { first: one, last: one })
}

/// Ports from `start` on, `end` not among them.
fn destination_ports(range: At<'_, Int32Range>) -> Option<Condition> {
    let Int32Range { start, end } = *range.value;
    let (first, last) = (u16::try_from(start), u16::try_from(i64::from(end) - 1));
    let (Ok(first), Ok(last)) = (first, last) else {
        range.refuse(format_args!("{start}..{end} is not within 0..65536"));
        return None;
    };
    if first > last {
        range.refuse(format_args!("{start}..{end} is empty"));
        return None;
    }
    Some(Condition::DestinationPort { first, last })
}
