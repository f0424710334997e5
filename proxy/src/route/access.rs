//! **Purpose.** Whether a call may be made: Envoy's RBAC, for requests and for opaque connections.
//!
//! **Shape.** [`authorize`] asks filter by filter about a [`Caller`] and, in HTTP, a request. A policy matches when its
//! permission and its principal do; policies are asked in the order of their names, and the first that matches is told.
//!
//! **Limits.** No allocation, but for header tests on names sent in several lines, and on `:path` with a query.
//!
//! **Source.** Envoy, `config.rbac.v3`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::matching::{header_matches, text_matches};
use super::view::RequestView;
use crate::config::{AccessAction, AccessPolicy, AccessRules, Condition, RuleSet};
use crate::fault::{Fault, Kind};
use crate::stats::AccessCounters;

/// The addresses of a call.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The other end of the socket.
    pub direct: IpAddr,
    /// Where the connection comes from, a PROXY header believed.
    pub source: IpAddr,
    /// The client that the request tells of, as far as that is trusted.
    pub remote: IpAddr,
    /// Where the connection was made to.
    pub destination: SocketAddr,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access<'r> {
    /// It may be made.
    Allowed,
    /// It may not: this policy forbids it, or none allows it.
    Denied(Option<&'r Arc<str>>),
}

/// Asks every filter in order, by the rules that hold for this call; the first that refuses decides. An opaque connection has
/// no request.
pub fn authorize<'r>(
    filters: impl Iterator<Item = &'r AccessRules>,
    caller: &Caller,
    request: Option<&dyn RequestView>,
    counts: &AccessCounters,
) -> Result<(), Fault> {
    for rules in filters {
        if let Some(shadow) = &rules.shadow {
            let is_denied = matches!(decide(shadow, caller, request), Access::Denied(_));
            if is_denied { &counts.shadow_denied } else { &counts.shadow_allowed }.add_one();
        }
        let Some(enforced) = &rules.enforced else { continue };
        if let Access::Denied(policy) = decide(enforced, caller, request) {
            counts.denied.add_one();
            let fault = Fault::new(Kind::AccessDenied);
            return Err(match policy {
                Some(policy) => fault.with_rule(policy.clone()),
                None => fault,
            });
        }
        counts.allowed.add_one();
    }
    Ok(())
}

fn decide<'r>(rules: &'r RuleSet, caller: &Caller, request: Option<&dyn RequestView>) -> Access<'r> {
    let matches = |policy: &&AccessPolicy| {
        holds(&policy.permission, caller, request) && holds(&policy.principal, caller, request)
    };
    let mut matching = rules.policies.iter().filter(matches);
    match rules.action {
        AccessAction::Log => Access::Allowed,
        AccessAction::Allow if matching.next().is_some() => Access::Allowed,
        AccessAction::Allow => Access::Denied(None),
        AccessAction::Deny => matching.next().map_or(Access::Allowed, |policy| Access::Denied(Some(&policy.name))),
    }
}

fn holds(condition: &Condition, caller: &Caller, request: Option<&dyn RequestView>) -> bool {
    match condition {
        Condition::All(parts) => parts.iter().all(|part| holds(part, caller, request)),
        Condition::Any(parts) => parts.iter().any(|part| holds(part, caller, request)),
        Condition::Destination(set) => set.has(caller.destination.ip()),
        Condition::DestinationPort { first, last } => (*first..=*last).contains(&caller.destination.port()),
        Condition::DirectRemote(set) => set.has(caller.direct),
        Condition::Every => true,
        Condition::Header(header) => request.is_some_and(|request| header_matches(header, request)),
        Condition::Never => false,
        Condition::Not(part) => !holds(part, caller, request),
        Condition::Path(text) => request.is_some_and(|request| text_matches(text, request.path())),
        Condition::Remote(set) => set.has(caller.remote),
        Condition::Source(set) => set.has(caller.source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AddressSet, IpPrefix};

    fn caller(direct: &str, port: u16) -> Caller {
        let direct = direct.parse().unwrap();
        Caller { direct, source: direct, remote: direct, destination: SocketAddr::from(([10, 0, 0, 1], port)) }
    }

    fn from(address: &str) -> Condition {
        Condition::DirectRemote(AddressSet::new([IpPrefix::new(address.parse().unwrap(), 32).unwrap()]))
    }

    fn policy(name: &str, principal: Condition) -> AccessPolicy {
        let permission = Condition::DestinationPort { first: 80, last: 81 };
        AccessPolicy { name: name.into(), permission, principal }
    }

    #[test]
    fn actions_follow_from_the_first_policy_that_matches() {
        let policies = [policy("a", from("10.0.0.2")), policy("b", Condition::Every)];
        let set = |action, count| RuleSet { action, policies: policies[..count].to_vec() };
        let (known, other) = (caller("10.0.0.2", 80), caller("10.0.0.3", 80));
        let allow = set(AccessAction::Allow, 1);
        assert_eq!(decide(&allow, &known, None), Access::Allowed);
        assert_eq!(decide(&allow, &other, None), Access::Denied(None));
        assert_eq!(decide(&allow, &caller("10.0.0.2", 82), None), Access::Denied(None), "both must hold");
        let deny = set(AccessAction::Deny, 2);
        assert_eq!(decide(&deny, &known, None), Access::Denied(Some(&"a".into())));
        assert_eq!(decide(&deny, &other, None), Access::Denied(Some(&"b".into())));
        assert_eq!(decide(&deny, &caller("10.0.0.2", 79), None), Access::Allowed);
        assert_eq!(decide(&set(AccessAction::Allow, 0), &known, None), Access::Denied(None), "no policy: nobody");
        assert_eq!(decide(&set(AccessAction::Deny, 0), &known, None), Access::Allowed);
        assert_eq!(decide(&set(AccessAction::Log, 0), &known, None), Access::Allowed);
    }

    #[test]
    fn conditions_join_and_turn_round() {
        let known = caller("10.0.0.2", 80);
        let not = |part| Condition::Not(Box::new(part));
        for (condition, met) in [
            (Condition::All(vec![Condition::Every, from("10.0.0.2")]), true),
            (Condition::All(vec![Condition::Every, from("10.0.0.3")]), false),
            (Condition::Any(vec![Condition::Never, from("10.0.0.2")]), true),
            (Condition::Any(vec![Condition::Never, from("10.0.0.3")]), false),
            (not(Condition::Never), true),
            (not(from("10.0.0.2")), false),
        ] {
            assert_eq!(holds(&condition, &known, None), met, "{condition:?}");
        }
    }
}
