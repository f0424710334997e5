//! What comes into force, what stays, what is told; and that a list in the middle takes nothing away.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn written(text: Value) -> DynamicObject {
    serde_json::from_value(text).expect("an object")
}

fn upstream(name: &str, version: u64, port: &Value) -> DynamicObject {
    written(json!({
        "apiVersion": "outrigger.dev/v1", "kind": "Upstream",
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": version.to_string(), "generation": version },
        "spec": { "endpoints": [{ "address": format!("10.0.0.1:{}", port.as_str().map_or(port.to_string(), str::to_owned)) }] },
    }))
}

fn route(name: &str, version: u64, to: &str) -> DynamicObject {
    written(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": version.to_string(), "generation": 1 },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }, { "name": "edge" }],
            "rules": [{ "backendRefs": [{ "group": "outrigger.dev", "kind": "Upstream", "name": to }] }],
        },
    }))
}

fn settle(policies: &mut Policies) -> bool {
    policies.settle(&PolicySet::default())
}

fn of<'a>(standing: &'a Standing, name: &str) -> &'a Judged {
    standing.objects.values().find(|judged| judged.key.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_bad_change_leaves_the_last_good_version_in_force_and_says_why() {
    let mut policies = Policies::default();
    policies.take(Kind::Upstream, Event::Listed(vec![upstream("orders", 7, &json!(8080))]));
    assert!(settle(&mut policies));
    assert_eq!(policies.set().revision, 7);
    policies.take(Kind::Upstream, Event::Applied(upstream("orders", 9, &json!("no port"))));
    assert!(!settle(&mut policies), "what is in force is the same");
    let standing = policies.standing();
    let judged = of(&standing, "orders");
    assert!(!judged.is_accepted);
    assert_eq!(judged.in_force, Some((7, 7)));
    assert!(judged.problems[0].path.contains("endpoints[0].address"), "{:?}", judged.problems);
    policies.take(Kind::Upstream, Event::Applied(upstream("orders", 12, &json!(8081))));
    assert!(settle(&mut policies));
    assert_eq!((policies.set().revision, of(&policies.standing(), "orders").in_force), (12, Some((12, 12))));
}

#[test]
fn a_route_waits_for_its_backend_and_stays_when_that_goes() {
    let mut policies = Policies::default();
    policies.take(Kind::HttpRoute, Event::Listed(vec![route("split", 3, "orders")]));
    assert!(!settle(&mut policies));
    let standing = policies.standing();
    assert!(!of(&standing, "split").is_accepted && of(&standing, "split").in_force.is_none());
    assert!(of(&standing, "split").problems[0].message.contains("orders"), "{:?}", of(&standing, "split").problems);
    let backend = upstream("orders", 5, &json!(8080));
    policies.take(Kind::Upstream, Event::Applied(backend.clone()));
    assert!(settle(&mut policies));
    assert!(of(&policies.standing(), "split").is_accepted);
    assert_eq!(policies.set().objects.len(), 2);
    policies.take(Kind::Upstream, Event::Deleted(backend));
    assert!(settle(&mut policies));
    let standing = policies.standing();
    let judged = of(&standing, "split");
    assert!(judged.is_accepted && !judged.problems.is_empty(), "in force, and what is missing is told: {judged:?}");
    assert_eq!(policies.set().objects.len(), 1);
}

#[test]
fn a_route_of_a_gateway_is_somebody_elses() {
    let mut policies = Policies::default();
    let mut foreign = route("edge", 3, "orders");
    foreign.data["spec"]["parentRefs"] = json!([{ "name": "edge" }]);
    policies.take(Kind::HttpRoute, Event::Applied(foreign));
    settle(&mut policies);
    assert!(policies.standing().objects.is_empty());
    policies.take(Kind::HttpRoute, Event::Applied(route("edge", 4, "orders")));
    settle(&mut policies);
    let standing = policies.standing();
    assert_eq!(of(&standing, "edge").written.parents, [json!({ "group": "", "kind": "Service", "name": "orders" })]);
}

#[test]
fn a_status_that_was_written_changes_no_policy() {
    let mut policies = Policies::default();
    policies.take(Kind::Upstream, Event::Applied(upstream("orders", 7, &json!(8080))));
    settle(&mut policies);
    let mut later = upstream("orders", 8, &json!(8080));
    later.metadata.generation = Some(7);
    later.data["status"] = json!({ "conditions": [] });
    policies.take(Kind::Upstream, Event::Applied(later));
    assert!(!settle(&mut policies));
    assert_eq!(policies.set().revision, 7);
    let standing = policies.standing();
    assert_eq!(of(&standing, "orders").written.resource_version, "8");
    assert_eq!(policies.history_since(7).map(|records| records.len()), Some(0));
}

#[test]
fn history_is_told_from_where_it_is_whole() {
    let mut policies = Policies::default();
    policies.take(Kind::Upstream, Event::Listed(vec![upstream("a", 5, &json!(80)), upstream("b", 6, &json!(80))]));
    settle(&mut policies);
    policies.take(Kind::Upstream, Event::Deleted(upstream("b", 9, &json!(80))));
    settle(&mut policies);
    assert!(policies.history_since(3).is_none(), "what was before the first list is not known");
    let records = policies.history_since(6).expect("kept");
    assert_eq!(records.iter().map(|one| (one.revision, one.change)).collect::<Vec<_>>(), [(9, Change::Deleted)]);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u16),
    Bad(u8),
    Remove(u8),
    Route(u8, u8),
    Settle,
    Relist,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u8..3, 80_u16..83).prop_map(|(at, port)| Step::Put(at, port)),
        (0_u8..3).prop_map(Step::Bad),
        (0_u8..3).prop_map(Step::Remove),
        (0_u8..2, 0_u8..3).prop_map(|(at, to)| Step::Route(at, to)),
        Just(Step::Settle),
        Just(Step::Relist),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    /// An object that exists and was once good never leaves, whatever is listed when; the revision never goes back.
    #[test]
    fn what_was_good_stays_until_it_is_deleted(steps in steps()) {
        let mut policies = Policies::default();
        let mut cluster: BTreeMap<(bool, String), DynamicObject> = BTreeMap::new();
        let mut version = 1;
        let mut was_in_force: BTreeSet<ObjectKey> = BTreeSet::new();
        for step in steps {
            version += 1;
            let put = |cluster: &mut BTreeMap<_, _>, policies: &mut Policies, is_route: bool, object: DynamicObject| {
                cluster.insert((is_route, object.metadata.name.clone().unwrap_or_default()), object.clone());
                policies.take(if is_route { Kind::HttpRoute } else { Kind::Upstream }, Event::Applied(object));
            };
            match step {
                Step::Put(at, port) => put(&mut cluster, &mut policies, false, upstream(&format!("u{at}"), version, &json!(port))),
                Step::Bad(at) => put(&mut cluster, &mut policies, false, upstream(&format!("u{at}"), version, &json!("x"))),
                Step::Route(at, to) => put(&mut cluster, &mut policies, true, route(&format!("r{at}"), version, &format!("u{to}"))),
                Step::Remove(at) => {
                    if let Some(object) = cluster.remove(&(false, format!("u{at}"))) {
                        policies.take(Kind::Upstream, Event::Deleted(object));
                    }
                }
                Step::Settle => {}
                Step::Relist => {
                    for is_route in [true, false] {
                        let all = cluster.iter().filter(|(key, _)| key.0 == is_route).map(|(_, one)| one.clone()).collect();
                        policies.take(if is_route { Kind::HttpRoute } else { Kind::Upstream }, Event::Listed(all));
                    }
                }
            }
            let before = policies.set().revision;
            settle(&mut policies);
            let set = policies.set();
            prop_assert!(set.revision >= before);
            let exists = |key: &ObjectKey| cluster.contains_key(&(key.kind == Kind::HttpRoute, key.name.clone()));
            was_in_force.retain(exists);
            for key in &was_in_force {
                prop_assert!(set.objects.contains_key(key), "{key} left");
            }
            was_in_force.extend(set.objects.keys().cloned());
            prop_assert!(set.objects.keys().all(exists), "only what exists is in force");
        }
    }
}
