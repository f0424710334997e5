//! Purpose: what only shows across objects: references to nothing, policies that contradict each
//! other, names claimed twice. Runs on the set as it would be after an apply.
//! Shape: only objects that the apply touches are reported, so an old fault (left by a forced
//! delete) never blocks an unrelated apply.
//! Errors: [`Problem`], all at once.

use std::collections::BTreeMap;

use super::access_policy::AccessPolicy;
use super::http_route::{BackendRef, HttpRoute, Rule};
use super::object::{Kind, Object, ObjectKey, PolicySet, Spec};
use super::problem::{Problem, nearest};
use super::service::{Services, service_of};
use super::traffic_policy::TargetRef;

/// The objects an apply writes, with the document each came from.
pub type Touched = BTreeMap<ObjectKey, Option<usize>>;

/// Every contradiction in `set` that involves a touched object.
#[must_use]
pub fn find_contradictions(set: &PolicySet, touched: &Touched) -> Vec<Problem> {
    let mut problems = Vec::new();
    let owners = service_owners(set);
    let services = Services::of(set);
    for (key, document) in touched {
        let Some(object) = set.objects.get(key) else { continue };
        let mut found = match &object.spec {
            Spec::GrpcRoute(route) | Spec::HttpRoute(route) => {
                [backend_problems(set, &services, route), hostname_problems(&owners, route)].concat()
            }
            Spec::AccessPolicy(policy) => {
                [target_problems(set, &services, object, &policy.targets), pod_problems(set, policy)].concat()
            }
            Spec::TrafficPolicy(policy) => target_problems(set, &services, object, &policy.targets),
            Spec::RateLimit(limit) => target_problems(set, &services, object, &limit.targets),
            Spec::MeshConfig(_) | Spec::Upstream(_) => Vec::new(),
        };
        for problem in &mut found {
            problem.document = *document;
            problem.object = Some(key.to_string());
        }
        problems.extend(found);
    }
    problems.extend(setting_conflicts(set, &services, touched));
    problems.extend(service_conflicts(&services, touched));
    problems.sort_by_key(|problem| problem.document);
    problems
}

/// The objects of `set` that refer to `key`, which a delete must name; `before`, it was there.
#[must_use]
pub fn referrers(before: &PolicySet, set: &PolicySet, key: &ObjectKey) -> Vec<ObjectKey> {
    let services = Services::of(before);
    let refers = |from: &ObjectKey, targets: &[TargetRef]| {
        targets.iter().any(|target| services.targets(&from.namespace, target).contains(key))
    };
    set.objects
        .values()
        .filter(|object| match &object.spec {
            Spec::GrpcRoute(route) | Spec::HttpRoute(route) => {
                let mut backends = route.rules.iter().flat_map(|rule| &rule.backends);
                key.kind == Kind::Upstream && backends.any(|backend| services.backend(backend) == Some(key))
            }
            Spec::AccessPolicy(policy) => refers(&object.key, &policy.targets),
            Spec::TrafficPolicy(policy) => refers(&object.key, &policy.targets),
            Spec::RateLimit(limit) => refers(&object.key, &limit.targets),
            Spec::MeshConfig(_) | Spec::Upstream(_) => false,
        })
        .map(|object| object.key.clone())
        .collect()
}

/// Every name of every service, with the upstream that owns it.
fn service_owners(set: &PolicySet) -> BTreeMap<String, (ObjectKey, String)> {
    set.upstreams()
        .flat_map(|(object, upstream)| {
            let service = service_of(&object.key, upstream);
            let owner = (object.key.clone(), service.to_owned());
            service_names(&object.key.namespace, service).map(|name| (name, owner.clone()))
        })
        .collect()
}

fn backend_problems(set: &PolicySet, services: &Services<'_>, route: &HttpRoute) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (rule_index, rule) in route.rules.iter().enumerate() {
        for (index, backend) in rule.backends.iter().enumerate() {
            if services.backend(backend).is_none() {
                let path = format!("spec.rules[{rule_index}].backendRefs[{index}]");
                problems.push(backend_problem(set, services, backend, &path));
            }
        }
    }
    problems
}

fn backend_problem(set: &PolicySet, services: &Services<'_>, backend: &BackendRef, path: &str) -> Problem {
    let ports = services.ports(&backend.namespace, &backend.name);
    if !backend.is_service || ports.is_empty() {
        let key = ObjectKey::new(Kind::Upstream, &backend.namespace, &backend.name);
        return missing(set, &key, format!("{path}.name"));
    }
    let numbers: Vec<String> =
        ports.iter().filter_map(|port| port.upstream.port).map(|port| port.to_string()).collect();
    let numbers = numbers.join(", ");
    Problem {
        path: format!("{path}.port"),
        value: backend.port.map(|port| port.to_string()),
        message: match backend.port {
            Some(_) => format!("Service {}/{} has no such port", backend.namespace, backend.name),
            None => format!("Service {}/{} has several ports", backend.namespace, backend.name),
        },
        remedy: Some(format!("say one of {numbers}")),
        ..Problem::default()
    }
}

fn hostname_problems(owners: &BTreeMap<String, (ObjectKey, String)>, route: &HttpRoute) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, hostname) in route.hostnames.iter().enumerate() {
        let Some((upstream, service)) = owners.get(hostname) else { continue };
        let is_own =
            |parent: &super::http_route::ParentRef| parent.namespace == upstream.namespace && parent.name == *service;
        if !route.parents.iter().any(is_own) {
            problems.push(Problem {
                path: format!("spec.hostnames[{index}]"),
                value: Some(hostname.clone()),
                message: format!("is already a name of {upstream}"),
                remedy: Some("bind the route to it with parentRefs instead".to_owned()),
                ..Problem::default()
            });
        }
    }
    problems
}

/// The names under which the service is called from its own or another namespace.
#[must_use]
pub fn service_names(namespace: &str, service: &str) -> [String; 4] {
    [
        service.to_owned(),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
    ]
}

fn missing(set: &PolicySet, key: &ObjectKey, path: String) -> Problem {
    let names: Vec<&str> = set
        .objects
        .keys()
        .filter(|other| other.kind == key.kind && other.namespace == key.namespace)
        .map(|other| other.name.as_str())
        .collect();
    let remedy = match nearest(&key.name, &names) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("apply that {} first or in the same request", key.kind),
    };
    Problem {
        path,
        value: Some(key.name.clone()),
        message: format!("{key} is neither stored nor in this apply"),
        remedy: Some(remedy),
        ..Problem::default()
    }
}

fn target_problems(set: &PolicySet, services: &Services<'_>, object: &Object, targets: &[TargetRef]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        if target.is_service {
            let problem = service_target_problem(services, &object.key.namespace, target);
            problems.extend(
                problem
                    .map(|(field, problem)| Problem { path: format!("spec.targetRefs[{index}].{field}"), ..problem }),
            );
            continue;
        }
        let key = ObjectKey::new(target.kind, &object.key.namespace, &target.name);
        let Some(found) = set.objects.get(&key) else {
            problems.push(missing(set, &key, format!("spec.targetRefs[{index}].name")));
            continue;
        };
        let (Some(section), Some(route)) = (&target.section, found.spec.as_route()) else { continue };
        if find_rule(route, section).is_none() {
            let names: Vec<&str> = route.rules.iter().filter_map(|rule| rule.name.as_deref()).collect();
            let allowed = match names.as_slice() {
                [] => "its rules have no names".to_owned(),
                names => format!("its rules are {}", names.join(", ")),
            };
            problems.push(Problem {
                path: format!("spec.targetRefs[{index}].sectionName"),
                value: Some(section.clone()),
                message: format!("{key} has no rule of this name: {allowed}"),
                remedy: Some("give the rule a name, or target the whole route".to_owned()),
                ..Problem::default()
            });
        }
    }
    problems
}

/// Pods that nobody tells of: a denial that names them would deny nobody.
fn pod_problems(set: &PolicySet, policy: &AccessPolicy) -> Vec<Problem> {
    if set.workloads.is_followed() {
        return Vec::new();
    }
    let asks = |rule: &super::access_policy::Rule| rule.from.iter().position(|source| source.pods.is_some());
    let first = policy.rules.iter().enumerate().find_map(|(index, rule)| Some((index, asks(rule)?)));
    let problem = first.map(|(rule, source)| Problem {
        path: format!("spec.rules[{rule}].from[{source}]"),
        message: "selects pods, and nothing here tells of any".to_owned(),
        remedy: Some("start outrigger-control with --registry kubernetes, or use addresses".to_owned()),
        ..Problem::default()
    });
    problem.into_iter().collect()
}

/// What is wrong with a target that is a service, and in which of its fields.
fn service_target_problem(
    services: &Services<'_>,
    namespace: &str,
    target: &TargetRef,
) -> Option<(&'static str, Problem)> {
    if !services.targets(namespace, target).is_empty() {
        return None;
    }
    let ports = services.ports(namespace, &target.name);
    let Some(section) = target.section.as_ref().filter(|_| !ports.is_empty()) else {
        let message = format!("no Upstream is the Service {namespace}/{}", target.name);
        let remedy = Some("apply the Upstream first or in the same request".to_owned());
        return Some(("name", Problem { value: Some(target.name.clone()), message, remedy, ..Problem::default() }));
    };
    let names = ports.iter().filter_map(|port| {
        let number = port.upstream.port.map(|port| port.to_string());
        port.upstream.port_name.clone().or(number)
    });
    let names: Vec<String> = names.collect();
    let message = format!("Service {namespace}/{} has no port of this name", target.name);
    let remedy = Some(format!("say one of {}", names.join(", ")));
    Some(("sectionName", Problem { value: Some(section.clone()), message, remedy, ..Problem::default() }))
}

fn find_rule<'a>(route: &'a HttpRoute, name: &str) -> Option<&'a Rule> {
    route.rules.iter().find(|rule| rule.name.as_deref() == Some(name))
}

/// One thing that may be set once for a target.
type Slot = (ObjectKey, Option<String>, &'static str);

/// Two writers of one setting of one target: which of them counts would be chance.
fn setting_conflicts(set: &PolicySet, services: &Services<'_>, touched: &Touched) -> Vec<Problem> {
    let mut writers: BTreeMap<Slot, Vec<(ObjectKey, &'static str)>> = BTreeMap::new();
    for (object, route) in set.routes() {
        for rule in &route.rules {
            for (setting, path) in rule_settings(rule) {
                if rule.name.is_some() {
                    let slot = (object.key.clone(), rule.name.clone(), setting);
                    writers.entry(slot).or_default().push((object.key.clone(), path));
                }
            }
        }
    }
    for object in set.objects.values() {
        let (targets, settings) = match &object.spec {
            Spec::TrafficPolicy(policy) => (&policy.targets, policy_settings(policy)),
            Spec::RateLimit(limit) => (&limit.targets, vec![("limit", "spec.requests")]),
            Spec::AccessPolicy(_)
            | Spec::GrpcRoute(_)
            | Spec::HttpRoute(_)
            | Spec::MeshConfig(_)
            | Spec::Upstream(_) => continue,
        };
        for target in targets {
            // A policy on a port is nearer than one on its service, so the two do not contradict each other.
            let section = target.layer();
            for key in services.targets(&object.key.namespace, target) {
                for (setting, path) in &settings {
                    let slot = (key.clone(), section.clone(), *setting);
                    writers.entry(slot).or_default().push((object.key.clone(), path));
                }
            }
        }
    }
    let mut problems = Vec::new();
    for ((target, section, _), objects) in writers.iter().filter(|(_, list)| list.len() > 1) {
        let Some((writer, path)) = objects.iter().rev().find(|(key, _)| touched.contains_key(key)) else {
            continue;
        };
        let others: Vec<String> =
            objects.iter().filter(|(key, _)| key != writer).map(|(key, _)| key.to_string()).collect();
        let rule = section.as_ref().map(|name| format!(", rule {name}")).unwrap_or_default();
        problems.push(Problem {
            document: touched.get(writer).copied().flatten(),
            object: Some(writer.to_string()),
            path: (*path).to_owned(),
            value: None,
            message: format!("is also set by {} for {target}{rule}", others.join(", ")),
            remedy: Some("keep it in one of them".to_owned()),
        });
    }
    problems
}

fn rule_settings(rule: &Rule) -> Vec<(&'static str, &'static str)> {
    let all = [
        (rule.request_timeout.is_some(), "request timeout", "spec.rules[].timeouts.request"),
        (rule.try_timeout.is_some(), "try timeout", "spec.rules[].timeouts.backendRequest"),
        (rule.retry.is_some(), "retry", "spec.rules[].retry"),
    ];
    all.iter().filter(|(is_set, ..)| *is_set).map(|(_, setting, path)| (*setting, *path)).collect()
}

fn policy_settings(policy: &super::traffic_policy::TrafficPolicy) -> Vec<(&'static str, &'static str)> {
    let traffic = &policy.traffic;
    let retry_timeout = traffic.retry.as_ref().is_some_and(|retry| retry.try_timeout.is_some());
    let all = [
        (traffic.request_timeout.is_some(), "request timeout", "spec.timeouts.request"),
        (traffic.try_timeout.is_some(), "try timeout", "spec.timeouts.perTry"),
        (retry_timeout, "try timeout", "spec.retry.perTryTimeout"),
        (traffic.stream_timeout.is_some(), "stream timeout", "spec.timeouts.stream"),
        (traffic.grpc_deadline_max.is_some(), "greatest gRPC deadline", "spec.timeouts.grpcDeadlineMax"),
        (traffic.upgrades.is_some(), "upgrades", "spec.upgrades"),
        (traffic.retry.is_some(), "retry", "spec.retry"),
        (policy.limit.is_some(), "limit", "spec.localRateLimit"),
        (policy.outlier.is_some(), "outlier detection", "spec.outlierDetection"),
        (policy.limits.is_some(), "limits", "spec.limits"),
    ];
    all.iter().filter(|(is_set, ..)| *is_set).map(|(_, setting, path)| (*setting, *path)).collect()
}

fn service_conflicts(services: &Services<'_>, touched: &Touched) -> Vec<Problem> {
    let mut problems = Vec::new();
    for ((_, service), ports) in services.iter() {
        // Ascending by port: two claims of one are neighbours.
        for pair in ports.windows(2).filter(|pair| pair[0].upstream.port == pair[1].upstream.port) {
            let keys = [pair[0].key, pair[1].key];
            let Some(key) = keys.into_iter().rev().find(|key| touched.contains_key(*key)) else { continue };
            let other = keys.into_iter().find(|other| *other != key).map(ToString::to_string);
            let at = pair[0].upstream.port.map(|port| format!(" at port {port}")).unwrap_or_default();
            problems.push(Problem {
                document: touched.get(key).copied().flatten(),
                object: Some(key.to_string()),
                path: "spec.serviceName".to_owned(),
                value: Some(service.to_owned()),
                message: format!("is already the service of {}{at}", other.unwrap_or_default()),
                remedy: Some("choose another serviceName or port, or split by weights in a route".to_owned()),
            });
        }
    }
    problems
}
