//! Purpose: access policies → Envoy's RBAC, for the ports of a pod.
//! Shape: [`Guards`] is the policies of a revision, compiled one by one; a port asks for those that hold for it and gets at
//! most two filters: what is denied is asked first, then what is allowed.
//!
//! ```text
//! AccessPolicy ─ rule ▶ RBAC policy NAMESPACE/NAME/INDEX ┬ permissions: `to`, over HTTP only
//!                                                        └ principals: `from`, pods as their addresses
//! ```
//! Where something is allowed, so is what the pod's node asks to see whether it is well: the address that it asks from is
//! not known beforehand.
//! Limits: of a connection that is not HTTP, a rule with `to` never allows and denies whatever is asked.
//! Source: Envoy, `config.rbac.v3`; how policies join as Istio.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3::{Filter, filter};
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac, permission, principal, rbac};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::proto::{header_matcher, number, regex};
use crate::model::access_policy::{AccessPolicy, Action, Cidr, Operation, Rule, Source};
use crate::model::http_route::PathMatch;
use crate::model::workload::Probe;
use crate::model::{Object, ObjectKey, PolicySet, Services, Workloads};

/// Name of the RBAC policy that lets a node see whether its pods are well.
const PROBES: &str = "probes";

/// The guard of a namespace that is closed by its MeshConfig.
const CLOSED: usize = 0;

/// The access policies of a revision.
#[derive(Debug, Default)]
pub(super) struct Guards {
    guards: Vec<Guard>,
    /// Those that hold for an upstream.
    by_upstream: BTreeMap<ObjectKey, Vec<usize>>,
    /// Those that hold for every port in a namespace.
    by_namespace: BTreeMap<String, Vec<usize>>,
    /// Whether in a namespace nobody may call whom no policy opens.
    closed: BTreeMap<String, bool>,
    /// Whether that holds for the other namespaces.
    all_closed: bool,
    /// What replicas of a service share.
    packed: Mutex<BTreeMap<Asked, Arc<Guarded>>>,
}

/// The guards of a port, and what is asked at it.
type Asked = (Vec<usize>, Vec<Probe>);

/// One policy, compiled.
#[derive(Debug)]
struct Guard {
    action: Action,
    is_audit: bool,
    asks_for_paths: bool,
    requests: Policies,
    connections: Policies,
}

/// RBAC policies by name.
type Policies = BTreeMap<String, Policy>;

/// What stands before a port.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    /// The filters of requests, before all others.
    pub(super) requests: Vec<HttpFilter>,
    /// The filters of connections that are not HTTP.
    pub(super) connections: Vec<Filter>,
    /// Paths decide, so that there must be one way only to write each.
    pub(super) asks_for_paths: bool,
    /// Something is allowed, and so the rest is not.
    pub(super) allows: bool,
}

impl Guards {
    pub(super) fn of(set: &PolicySet) -> Self {
        let services = Services::of(set);
        let is_closed = |namespace: &str| set.mesh_config(namespace).denies_access.unwrap_or(false);
        let own = |object: &Object| (object.key.namespace.clone(), is_closed(&object.key.namespace));
        let closed = set.mesh_configs().map(|(object, _)| own(object)).collect();
        let all_closed = set.mesh_namespace.as_deref().is_some_and(is_closed);
        let mut all = Self { closed, all_closed, ..Self::default() };
        all.guards.push(Guard::closed());
        for (object, policy) in set.access_policies() {
            let index = all.guards.len();
            all.guards.push(Guard::of(&object.key, policy, &set.workloads));
            if policy.targets.is_empty() {
                all.by_namespace.entry(object.key.namespace.clone()).or_default().push(index);
            }
            let targets = policy.targets.iter().flat_map(|target| services.targets(&object.key.namespace, target));
            for key in targets.collect::<BTreeSet<_>>() {
                all.by_upstream.entry(key).or_default().push(index);
            }
        }
        all
    }

    /// What stands before a port of a pod in `namespace` that is one of these upstreams.
    pub(super) fn at<'a>(
        &self,
        namespace: &str,
        upstreams: impl IntoIterator<Item = &'a ObjectKey>,
        probes: Vec<Probe>,
    ) -> Arc<Guarded> {
        let own = upstreams.into_iter().filter_map(|key| self.by_upstream.get(key));
        let closed = self.closed.get(namespace).unwrap_or(&self.all_closed).then_some(CLOSED);
        let all = own.chain(self.by_namespace.get(namespace)).flatten().copied();
        let indices: BTreeSet<usize> = all.chain(closed).collect();
        if indices.is_empty() {
            return Arc::default();
        }
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (indices.into_iter().collect::<Vec<_>>(), probes);
        if let Some(made) = packed.get(&key) {
            return made.clone();
        }
        let made = Arc::new(self.pack(&key.0, &key.1));
        packed.insert(key, made.clone());
        made
    }

    fn pack(&self, indices: &[usize], probes: &[Probe]) -> Guarded {
        let guards: Vec<&Guard> = indices.iter().filter_map(|index| self.guards.get(*index)).collect();
        let of = |action, is_audit: Option<bool>| {
            let wanted =
                move |guard: &&&Guard| guard.action == action && is_audit.is_none_or(|one| guard.is_audit == one);
            guards.iter().filter(wanted).copied().collect::<Vec<_>>()
        };
        let (denied, denied_audit) = (of(Action::Deny, Some(false)), of(Action::Deny, Some(true)));
        let (allowed, allowed_audit) = (of(Action::Allow, Some(false)), of(Action::Allow, Some(true)));
        // To allow more widens what is allowed already; that is what would hold.
        let allowed_in_all = if allowed_audit.is_empty() { Vec::new() } else { of(Action::Allow, None) };
        let mut guarded = Guarded {
            // What is only counted must not change what is answered.
            asks_for_paths: guards.iter().any(|guard| guard.asks_for_paths && !guard.is_audit),
            allows: !allowed.is_empty(),
            ..Guarded::default()
        };
        for (action, enforced, audited) in
            [(rbac::Action::Deny, denied, denied_audit), (rbac::Action::Allow, allowed, allowed_in_all)]
        {
            if enforced.is_empty() && audited.is_empty() {
                continue;
            }
            let probes = if action == rbac::Action::Allow { probes } else { &[] };
            let requests = Rules { action, enforced: &enforced, audited: &audited, policies: |guard| &guard.requests };
            guarded.requests.push(requests.http_filter(probes));
            let connections = Rules { policies: |guard| &guard.connections, ..requests };
            guarded.connections.push(connections.network_filter());
        }
        guarded
    }
}

impl Guard {
    /// Allows nobody.
    fn closed() -> Self {
        let (requests, connections) = Default::default();
        Self { action: Action::Allow, is_audit: false, asks_for_paths: false, requests, connections }
    }

    fn of(key: &ObjectKey, policy: &AccessPolicy, workloads: &Workloads) -> Self {
        let (mut requests, mut connections) = (Policies::new(), Policies::new());
        if policy.rules.is_empty() && policy.action == Action::Deny {
            let everything =
                Policy { permissions: vec![any_permission()], principals: vec![any_principal()], ..Policy::default() };
            requests.insert(format!("{}/{}", key.namespace, key.name), everything);
            connections.clone_from(&requests);
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            // One that nobody is from matches nothing.
            let Some(principal) = build_principal(rule, workloads) else { continue };
            let name = format!("{}/{}/{index}", key.namespace, key.name);
            let with = |permission| Policy {
                permissions: vec![permission],
                principals: vec![principal.clone()],
                ..Policy::default()
            };
            if rule.to.is_empty() || policy.action == Action::Deny {
                connections.insert(name.clone(), with(any_permission()));
            }
            let permission =
                if rule.to.is_empty() { any_permission() } else { any_of(rule.to.iter().map(build_operation)) };
            requests.insert(name, with(permission));
        }
        let asks_for_paths = policy.rules.iter().flat_map(|rule| &rule.to).any(|to| !to.paths.is_empty());
        Self { action: policy.action, is_audit: policy.is_audit, asks_for_paths, requests, connections }
    }
}

/// What one filter asks.
#[derive(Clone, Copy)]
struct Rules<'a> {
    action: rbac::Action,
    enforced: &'a [&'a Guard],
    audited: &'a [&'a Guard],
    policies: fn(&Guard) -> &Policies,
}

impl Rules<'_> {
    fn http_filter(&self, probes: &[Probe]) -> HttpFilter {
        let filter = |rules, shadow_rules| HttpRbac { rules, shadow_rules, ..HttpRbac::default() };
        HttpFilter {
            name: "envoy.filters.http.rbac".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(self.pack(filter, probe_policy(probes)))),
            ..HttpFilter::default()
        }
    }

    fn network_filter(&self) -> Filter {
        let filter = |rules, shadow_rules| NetworkRbac {
            rules,
            shadow_rules,
            stat_prefix: "access".to_owned(),
            ..NetworkRbac::default()
        };
        Filter {
            name: "envoy.filters.network.rbac".to_owned(),
            config_type: Some(filter::ConfigType::TypedConfig(self.pack(filter, None))),
        }
    }

    /// The same bytes for the same rules, where the entries of a map come in any order: one message an entry, one after the
    /// other, which is what protobuf's readers merge into one.
    fn pack<M: Message + Name>(&self, filter: impl Fn(Option<Rbac>, Option<Rbac>) -> M, probes: Option<Policy>) -> Any {
        let rules = |policies| Some(Rbac { action: self.action.into(), policies, ..Rbac::default() });
        let entry = |(name, policy): (&String, &Policy)| rules([(name.clone(), policy.clone())].into());
        let all = |guards: &[&Guard]| {
            let probes = probes.iter().filter(|_| !guards.is_empty()).map(|policy| (PROBES.to_owned(), policy.clone()));
            let own = guards.iter().flat_map(|guard| (self.policies)(guard).clone());
            own.chain(probes).collect::<Policies>()
        };
        let empty = |guards: &[&Guard]| if guards.is_empty() { None } else { rules([].into()) };
        let mut value = filter(empty(self.enforced), empty(self.audited)).encode_to_vec();
        for policy in &all(self.enforced) {
            value.extend(filter(entry(policy), None).encode_to_vec());
        }
        for policy in &all(self.audited) {
            value.extend(filter(None, entry(policy)).encode_to_vec());
        }
        Any { type_url: M::type_url(), value }
    }
}

/// What a node asks to see whether a pod is well.
fn probe_policy(probes: &[Probe]) -> Option<Policy> {
    let asked = |probe: &Probe| {
        all_of(vec![header(":method", probe.method, false), url_path(MatchPattern::Exact(probe.path.clone()))])
    };
    (!probes.is_empty()).then(|| Policy {
        permissions: vec![any_of(probes.iter().map(asked))],
        principals: vec![any_principal()],
        ..Policy::default()
    })
}

fn build_operation(operation: &Operation) -> Permission {
    let mut parts = Vec::new();
    if !operation.methods.is_empty() {
        parts.push(any_of(operation.methods.iter().map(|method| header(":method", method, false))));
    }
    if !operation.paths.is_empty() {
        parts.push(any_of(operation.paths.iter().map(build_path)));
    }
    parts.extend(operation.headers.iter().map(|wanted| header(&wanted.name, &wanted.value, wanted.is_regex)));
    all_of(parts)
}

fn build_path(path: &PathMatch) -> Permission {
    match path {
        PathMatch::Exact(path) => url_path(MatchPattern::Exact(path.clone())),
        PathMatch::Regex(pattern) => url_path(MatchPattern::SafeRegex(regex(pattern))),
        // Whole segments: the path itself, and what is below it.
        PathMatch::Prefix(path) => match path.trim_end_matches('/') {
            "" => any_permission(),
            path => any_of(
                [MatchPattern::Exact(path.to_owned()), MatchPattern::Prefix(format!("{path}/"))]
                    .into_iter()
                    .map(url_path),
            ),
        },
    }
}

/// Who a rule is about; `None`, where that is nobody.
fn build_principal(rule: &Rule, workloads: &Workloads) -> Option<Principal> {
    if rule.from.is_empty() {
        return Some(any_principal());
    }
    // Addresses by themselves go into one set, which the proxy looks up at once.
    let mut blocks = BTreeSet::new();
    let mut others = Vec::new();
    for source in &rule.from {
        match (&source.pods, source.not_addresses.as_slice()) {
            (Some(selector), _) => {
                let selected = workloads.iter().filter(|pod| selector.selects(pod, workloads));
                let addresses = selected.flat_map(|pod| pod.addresses.iter().copied());
                blocks.extend(addresses.filter(|address| is_within(source, *address)).map(Cidr::host));
            }
            (None, []) => blocks.extend(source.addresses.iter().copied()),
            (None, excepted) => {
                let excepted = join(excepted.iter().map(direct_remote).collect());
                let excepted = identify(principal::Identifier::NotId(Box::new(excepted)));
                let own =
                    (!source.addresses.is_empty()).then(|| join(source.addresses.iter().map(direct_remote).collect()));
                let ids = own.into_iter().chain([excepted]).collect();
                others.push(identify(principal::Identifier::AndIds(principal::Set { ids })));
            }
        }
    }
    others.extend(blocks.iter().map(direct_remote));
    (!others.is_empty()).then(|| join(others))
}

fn is_within(source: &Source, address: IpAddr) -> bool {
    let is_in = |blocks: &[Cidr]| blocks.iter().any(|block| block.has(address));
    (source.addresses.is_empty() || is_in(&source.addresses)) && !is_in(&source.not_addresses)
}

fn direct_remote(block: &Cidr) -> Principal {
    let range =
        CidrRange { address_prefix: block.address.to_string(), prefix_len: Some(number(u32::from(block.bits))) };
    identify(principal::Identifier::DirectRemoteIp(range))
}

/// One of them.
fn join(mut ids: Vec<Principal>) -> Principal {
    if ids.len() == 1 { ids.remove(0) } else { identify(principal::Identifier::OrIds(principal::Set { ids })) }
}

fn identify(identifier: principal::Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn any_principal() -> Principal {
    identify(principal::Identifier::Any(true))
}

fn permit(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn any_permission() -> Permission {
    permit(permission::Rule::Any(true))
}

fn any_of(parts: impl Iterator<Item = Permission>) -> Permission {
    let mut rules: Vec<Permission> = parts.collect();
    if rules.len() == 1 { rules.remove(0) } else { permit(permission::Rule::OrRules(permission::Set { rules })) }
}

fn all_of(mut rules: Vec<Permission>) -> Permission {
    if rules.len() == 1 { rules.remove(0) } else { permit(permission::Rule::AndRules(permission::Set { rules })) }
}

fn header(name: &str, value: &str, is_regex: bool) -> Permission {
    permit(permission::Rule::Header(header_matcher(name, value, is_regex)))
}

fn url_path(pattern: MatchPattern) -> Permission {
    let path = StringMatcher { ignore_case: false, match_pattern: Some(pattern) };
    permit(permission::Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(path)) }))
}
