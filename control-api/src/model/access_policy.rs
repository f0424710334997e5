//! Purpose: our kind `AccessPolicy`: who may call whom.
//! Shape: a policy holds for the services it targets, or for every pod of its namespace; each of its rules says from where
//! and to what. The parts of a `from` or a `to` must all hold, of several of them one.
//! Limits: who calls is known by the address of its pod, which nothing but the cluster's network vouches for: there is no
//! TLS yet, and behind address translation every caller looks the same.
//! Source: Istio's AuthorizationPolicy for how policies join (denials first, then one allowance where there is any);
//! Kubernetes' NetworkPolicy for selectors.

use std::net::IpAddr;

use super::cursor::{Cursor, Fields};
use super::http_route::{METHODS, PathMatch, ValueMatch, parse_path, parse_values};
use super::object::{LABEL_RULE, is_dns_label, is_dns_subdomain};
use super::traffic_policy::{TargetRef, parse_own_targets};
use super::workload::{Labels, Workload, Workloads};

const RULES_MAX: usize = 32;
const PARTS_MAX: usize = 16;
const ITEMS_MAX: usize = 64;

/// Who may call, or may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessPolicy {
    /// The services it holds for; with none, every port of the namespace's pods.
    pub targets: Vec<TargetRef>,
    /// What becomes of a call that a rule matches.
    pub action: Action,
    /// It is counted only.
    pub is_audit: bool,
    /// The rules; without any, nobody is allowed, or everybody denied.
    pub rules: Vec<Rule>,
}

/// What becomes of a call that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It may be made; what no rule of any such policy matches may not.
    Allow,
    /// It may not.
    Deny,
}

/// Calls: from one of these to one of those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Who calls; anyone, where it is empty.
    pub from: Vec<Source>,
    /// What is asked for; anything, where it is empty.
    pub to: Vec<Operation>,
}

/// Who calls. All that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Pods, by what they are; `None` leaves that open.
    pub pods: Option<Selector>,
    /// One of these blocks of addresses, where there is any.
    pub addresses: Vec<Cidr>,
    /// None of these.
    pub not_addresses: Vec<Cidr>,
}

/// Pods, by what they are. All that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// Of one of these namespaces.
    pub namespaces: Option<Vec<String>>,
    /// Of namespaces with these labels.
    pub namespace_labels: Option<Labels>,
    /// With these labels.
    pub labels: Labels,
    /// Running as one of these accounts, each a namespace and a name.
    pub service_accounts: Option<Vec<(String, String)>>,
}

/// What is asked for. All that is set must hold; no connection that is not HTTP fits one that asks for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// One of these methods, where there is any.
    pub methods: Vec<&'static str>,
    /// One of these paths, where there is any.
    pub paths: Vec<PathMatch>,
    /// All of these headers.
    pub headers: Vec<ValueMatch>,
}

/// A block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits of it count.
    pub bits: u8,
}

impl Cidr {
    /// The block of one address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        fn starts_alike(left: u128, right: u128, width: u32, bits: u8) -> bool {
            (left ^ right).checked_shr(width - u32::from(bits)).unwrap_or(0) == 0
        }
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                starts_alike(u32::from(own).into(), u32::from(other).into(), 32, self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => starts_alike(own.into(), other.into(), 128, self.bits),
            _ => false,
        }
    }
}

impl AccessPolicy {
    /// Whether it must know which pod has which address.
    #[must_use]
    pub fn asks_for_pods(&self) -> bool {
        self.rules.iter().flat_map(|rule| &rule.from).any(|source| source.pods.is_some())
    }
}

impl Selector {
    /// Whether it selects a pod of `workloads`.
    #[must_use]
    pub fn selects(&self, pod: &Workload, workloads: &Workloads) -> bool {
        let has = |labels: Option<&Labels>, wanted: &Labels| {
            labels.is_some_and(|labels| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
        };
        let is_account =
            |(namespace, name): &(String, String)| *namespace == pod.namespace && *name == pod.service_account;
        self.namespaces.as_ref().is_none_or(|names| names.contains(&pod.namespace))
            && has(Some(&pod.labels), &self.labels)
            && self.service_accounts.as_ref().is_none_or(|accounts| accounts.iter().any(is_account))
            && self
                .namespace_labels
                .as_ref()
                .is_none_or(|wanted| has(workloads.namespace_labels(&pod.namespace), wanted))
    }
}

/// Reads an AccessPolicy of `namespace`.
pub fn parse_access_policy(at: &Cursor<'_>, namespace: &str) -> Option<AccessPolicy> {
    let fields = at.fields(&["targetRefs", "action", "mode", "rules"])?;
    let action = match fields.optional("action") {
        Some(at) => at.choice(&[("Allow", Action::Allow), ("Deny", Action::Deny)]),
        None => Some(Action::Allow),
    };
    let is_audit = match fields.optional("mode") {
        Some(at) => at.choice(&[("Enforce", false), ("Audit", true)]),
        None => Some(false),
    };
    let targets = if fields.has("targetRefs") { parse_own_targets(&fields) } else { Vec::new() };
    let rules = fields.list("rules", 0..=RULES_MAX);
    let rules: Vec<Rule> = rules.iter().filter_map(|at| parse_rule(at, namespace)).collect();
    Some(AccessPolicy { targets, action: action?, is_audit: is_audit?, rules })
}

fn parse_rule(at: &Cursor<'_>, namespace: &str) -> Option<Rule> {
    let fields = at.fields(&["from", "to"])?;
    let from = fields.list("from", 1..=PARTS_MAX);
    let to = fields.list("to", 1..=PARTS_MAX);
    Some(Rule {
        from: from.iter().filter_map(|at| parse_source(at, namespace)).collect(),
        to: to.iter().filter_map(parse_operation).collect(),
    })
}

/// Refuses what sets none of its fields: an empty part holds for everything, which nobody means who writes one.
fn refuse_empty(at: &Cursor<'_>, fields: &Fields<'_>, names: &[&str]) {
    if !names.iter().any(|name| fields.has(name)) {
        at.refuse_with(
            format!("sets nothing; use one of {}", names.join(", ")),
            "leave the whole list out to mean any",
        );
    }
}

fn parse_source(at: &Cursor<'_>, namespace: &str) -> Option<Source> {
    const PODS: [&str; 4] = ["namespaces", "namespaceSelector", "podSelector", "serviceAccounts"];
    const FIELDS: [&str; 6] = [PODS[0], PODS[1], PODS[2], PODS[3], "addresses", "notAddresses"];
    let fields = at.fields(&FIELDS)?;
    refuse_empty(at, &fields, &FIELDS);
    if fields.has("namespaces") && fields.has("namespaceSelector") {
        fields.refuse_field("namespaceSelector", "excludes namespaces; keep one of the two");
    }
    let names = |name: &str| fields.has(name).then(|| fields.list(name, 1..=ITEMS_MAX));
    let namespaces = names("namespaces").map(|items| {
        let read = |at: &Cursor<'_>| at.text(is_dns_label, LABEL_RULE);
        items.iter().filter_map(read).collect::<Vec<_>>()
    });
    let accounts = names("serviceAccounts").map(|items| {
        let read = |at: &Cursor<'_>| {
            const RULE: &str = "must be the name of a service account, or its namespace and name as NAMESPACE/NAME";
            let is_account = |text: &str| match text.split_once('/') {
                Some((namespace, name)) => is_dns_label(namespace) && is_dns_subdomain(name),
                None => is_dns_subdomain(text),
            };
            let text = at.text(is_account, RULE)?;
            let (namespace, name) = text.split_once('/').unwrap_or((namespace, &text));
            Some((namespace.to_owned(), name.to_owned()))
        };
        items.iter().filter_map(read).collect::<Vec<_>>()
    });
    let labels = |name: &str| fields.optional(name).and_then(|at| parse_labels(&at));
    let (namespace_labels, pod_labels) = (labels("namespaceSelector"), labels("podSelector"));
    let leaves_namespace_open = namespaces.is_none() && namespace_labels.is_none() && accounts.is_none();
    let selector = Selector {
        // As with NetworkPolicy, pods alone are those of the policy's own namespace.
        namespaces: if leaves_namespace_open { Some(vec![namespace.to_owned()]) } else { namespaces },
        namespace_labels,
        labels: pod_labels.unwrap_or_default(),
        service_accounts: accounts,
    };
    Some(Source {
        pods: PODS.iter().any(|name| fields.has(name)).then_some(selector),
        addresses: parse_blocks(&fields, "addresses"),
        not_addresses: parse_blocks(&fields, "notAddresses"),
    })
}

fn parse_labels(at: &Cursor<'_>) -> Option<Labels> {
    let fields = at.fields(&["matchLabels"])?;
    let Some(at) = fields.optional("matchLabels") else { return Some(Labels::new()) };
    at.string_map();
    let map = at.raw().as_object()?;
    if map.len() > ITEMS_MAX {
        at.refuse(format!("must have at most {ITEMS_MAX} labels"));
    }
    for (key, value) in map {
        if !is_label_key(key) || !value.as_str().is_none_or(is_label_value) {
            fields.refuse_field("matchLabels", format!("{key}: {value} is no label that a pod could have"));
        }
    }
    Some(map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect())
}

fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(text: &str) -> bool {
    let is_edge = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && is_edge(text.bytes().next())
        && is_edge(text.bytes().last())
}

fn parse_blocks(fields: &Fields<'_>, name: &str) -> Vec<Cidr> {
    if !fields.has(name) {
        return Vec::new();
    }
    fields.list(name, 1..=ITEMS_MAX).iter().filter_map(parse_block).collect()
}

fn parse_block(at: &Cursor<'_>) -> Option<Cidr> {
    let text = at.string()?;
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let host = address.parse().ok().map(Cidr::host);
    let block = host.and_then(|host| match bits {
        None => Some(host),
        Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
            bits.parse().ok().filter(|bits| *bits <= host.bits).map(|bits| Cidr { bits, ..host })
        }
        Some(_) => None,
    });
    if block.is_none() {
        at.refuse_with(
            "must be an IP address or a block of them",
            "write it like \"10.0.0.7\", \"10.0.0.0/8\" or \"fd00::/64\"",
        );
    }
    block
}

fn parse_operation(at: &Cursor<'_>) -> Option<Operation> {
    const FIELDS: [&str; 3] = ["methods", "paths", "headers"];
    let fields = at.fields(&FIELDS)?;
    refuse_empty(at, &fields, &FIELDS);
    let list = |name: &str, most| if fields.has(name) { fields.list(name, 1..=most) } else { Vec::new() };
    if fields.has("headers") && list("headers", PARTS_MAX).is_empty() {
        return None;
    }
    Some(Operation {
        methods: list("methods", METHODS.len()).iter().filter_map(|at| at.choice(&METHODS)).collect(),
        paths: list("paths", ITEMS_MAX).iter().filter_map(parse_path).collect(),
        headers: parse_values(&fields, "headers", true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::document::Syntax;
    use crate::model::{Spec, parse_manifests};

    fn read(spec: &str) -> Result<AccessPolicy, Vec<String>> {
        let text = format!(
            "apiVersion: outrigger.dev/v1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        );
        let read = parse_manifests(&text, Syntax::Yaml);
        let read = read.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        match &read[0].spec {
            Spec::AccessPolicy(policy) => Ok(policy.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pods_alone_are_those_of_the_own_namespace() {
        let policy = read(
            "{rules: [{from: [{podSelector: {matchLabels: {app: cart}}}, {namespaceSelector: {}}, \
             {serviceAccounts: [seller, ops/admin]}]}]}",
        )
        .expect("a policy");
        let [pods, namespaces, accounts] = &policy.rules[0].from[..] else { panic!("{policy:?}") };
        let pod = |namespace: &str, app: &str, account: &str| Workload {
            namespace: namespace.to_owned(),
            name: "x".to_owned(),
            service_account: account.to_owned(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            ..Workload::default()
        };
        let namespaces_there = [("shop".to_owned(), Labels::new()), ("ops".to_owned(), Labels::new())].into();
        let workloads = Workloads::new([], namespaces_there);
        let all = [pod("shop", "cart", "seller"), pod("ops", "cart", "admin"), pod("shop", "pay", "admin")];
        let selected = |source: &Source| {
            let selector = source.pods.as_ref().expect("pods");
            all.iter().map(|pod| selector.selects(pod, &workloads)).collect::<Vec<_>>()
        };
        assert_eq!(selected(pods), [true, false, false]);
        assert_eq!(selected(namespaces), [true, true, true]);
        assert_eq!(selected(accounts), [true, true, false]);
        assert!(policy.asks_for_pods() && !policy.is_audit && policy.action == Action::Allow);
    }

    #[test]
    fn a_block_has_the_addresses_that_begin_like_it() {
        let block = |address: &str, bits| Cidr { address: address.parse().expect("an address"), bits };
        for (block, address, is_in) in [
            (block("10.1.0.0", 16), "10.1.255.255", true),
            (block("10.1.0.0", 16), "10.2.0.0", false),
            (block("0.0.0.0", 0), "255.0.0.1", true),
            (block("0.0.0.0", 0), "::1", false),
            (block("::", 0), "fd00::1", true),
            (block("fd00::", 64), "fd00::1:0:0:1", true),
            (block("fd00::", 64), "fd00:0:0:1::", false),
            (Cidr::host("10.0.0.1".parse().expect("an address")), "10.0.0.1", true),
            (Cidr::host("10.0.0.1".parse().expect("an address")), "10.0.0.0", false),
        ] {
            assert_eq!(block.has(address.parse().expect("an address")), is_in, "{block:?} {address}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (spec, wanted) in [
            ("{action: Permit}", "spec.action: \"Permit\": must be one of Allow, Deny"),
            ("{mode: Dry}", "spec.mode: \"Dry\": must be one of Enforce, Audit"),
            ("{targetRefs: []}", "spec.targetRefs: 0 items: must have 1 to 64 items"),
            (
                "{targetRefs: [{kind: HTTPRoute, name: r}]}",
                "spec.targetRefs[0].kind: \"HTTPRoute\": must be one of Upstream, Service",
            ),
            ("{rules: [{from: []}]}", "spec.rules[0].from: 0 items: must have 1 to 16 items"),
            ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0]: {}: sets nothing"),
            ("{rules: [{to: [{}]}]}", "spec.rules[0].to[0]: {}: sets nothing"),
            ("{rules: [{to: [{headers: []}]}]}", "spec.rules[0].to[0].headers: 0 items"),
            ("{rules: [{to: [{methods: [FETCH]}]}]}", "spec.rules[0].to[0].methods[0]: \"FETCH\": must be one of GET"),
            (
                "{rules: [{to: [{paths: [{value: pay}]}]}]}",
                "spec.rules[0].to[0].paths[0].value: \"pay\": must start with /",
            ),
            (
                "{rules: [{from: [{addresses: [10.0.0.0/33]}]}]}",
                "spec.rules[0].from[0].addresses[0]: \"10.0.0.0/33\": must be an IP address",
            ),
            (
                "{rules: [{from: [{addresses: ['10.0.0.0/+8']}]}]}",
                "addresses[0]: \"10.0.0.0/+8\": must be an IP address",
            ),
            ("{rules: [{from: [{notAddresses: [shop]}]}]}", "notAddresses[0]: \"shop\": must be an IP address"),
            ("{rules: [{from: [{serviceAccounts: [a/b/c]}]}]}", "serviceAccounts[0]: \"a/b/c\": must be the name"),
            ("{rules: [{from: [{namespaces: [A]}]}]}", "namespaces[0]: \"A\": must be 1 to 63"),
            (
                "{rules: [{from: [{namespaces: [a], namespaceSelector: {}}]}]}",
                "namespaceSelector: {}: excludes namespaces",
            ),
            (
                "{rules: [{from: [{podSelector: {matchLabels: {app: 1}}}]}]}",
                "podSelector.matchLabels.app: 1: must be a string",
            ),
            (
                "{rules: [{from: [{podSelector: {matchLabels: {'a b': x}}}]}]}",
                "a b: \"x\" is no label that a pod could have",
            ),
            ("{rules: [{from: [{podSelector: {app: x}}]}]}", "podSelector.app: \"x\": unknown field"),
            ("{rule: []}", "spec.rule: []: unknown field; did you mean rules?"),
        ] {
            let problems = read(spec).expect_err(spec);
            assert!(problems.iter().any(|problem| problem.contains(wanted)), "{spec}\n{wanted}\n{problems:#?}");
        }
    }
}
