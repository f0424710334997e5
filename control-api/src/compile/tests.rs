//! What a policy compiles to, as a golden file in YAML; `BLESS=1` writes it anew.

use std::path::Path;

use envoy_types::pb::envoy::config::core::v3::Node;
use outrigger_xds_proto::json::any_to_json;
use serde_json::{Value, json};

use super::*;
use crate::model::document::Syntax;
use crate::model::workload::Probe;
use crate::model::{Kind, Object, Workload, Workloads, parse_manifests};

const GOLDEN: &str = "src/compile/golden";

/// The objects of a YAML text, created one revision after the other.
fn policy(text: &str) -> PolicySet {
    let (set, problems) = linked(text);
    assert!(problems.is_empty(), "{problems:#?}");
    set
}

fn contradictions(text: &str) -> Vec<String> {
    linked(text).1.iter().map(ToString::to_string).collect()
}

fn linked(text: &str) -> (PolicySet, Vec<crate::model::Problem>) {
    linked_with(text, Arc::default())
}

fn linked_with(text: &str, workloads: Arc<Workloads>) -> (PolicySet, Vec<crate::model::Problem>) {
    let manifests = parse_manifests(text, Syntax::Yaml).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut set = PolicySet { workloads, ..PolicySet::default() };
    for one in manifests {
        set.revision += 1;
        let (created, changed) = (set.revision, set.revision);
        let object = Object { key: one.key.clone(), spec: one.spec, body: one.body, created, changed, generation: 1 };
        set.objects.insert(one.key, Arc::new(object));
    }
    let touched = set.objects.keys().map(|key| (key.clone(), None)).collect();
    let problems = crate::model::link::find_contradictions(&set, &touched);
    (set, problems)
}

fn role(namespace: &str) -> NodeRole {
    NodeRole {
        namespace: namespace.to_owned(),
        outbound: Some(([127, 0, 0, 1], 15_001).into()),
        inbound: Some(Inbound {
            listen: ([127, 0, 0, 1], 15_006).into(),
            app: ([127, 0, 0, 1], 8_080).into(),
            service: "orders".to_owned(),
        }),
        capture: None,
    }
}

fn shown(resources: &NodeResources, kind: ResourceType) -> Value {
    resources.of(kind).iter().map(|resource| any_to_json(&resource.any)).collect()
}

fn compile(text: &str, role: &NodeRole) -> NodeResources {
    Snapshot::compile(Arc::new(policy(text))).for_node(role)
}

fn assert_golden(name: &str, value: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN).join(name);
    let found = serde_yaml_ng::to_string(value).expect("JSON is YAML");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &found).expect("writes the golden file");
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = wanted.lines().zip(found.lines()).position(|(left, right)| left != right);
    assert!(
        wanted == found,
        "{name} differs from line {:?} on; look at it with BLESS=1 and git diff",
        differing.map_or(wanted.lines().count().min(found.lines().count()) + 1, |line| line + 1)
    );
}

#[test]
fn the_shop_compiles_to_the_golden_file() {
    let resources = compile(include_str!("golden/shop.policy.yaml"), &role("shop"));
    let all = json!({
        "clusters": shown(&resources, ResourceType::Cluster),
        "endpoints": shown(&resources, ResourceType::Endpoints),
        "listeners": shown(&resources, ResourceType::Listener),
        "routes": shown(&resources, ResourceType::Routes),
    });
    assert_golden("shop.xds.yaml", &all);
}

fn node(metadata: &str) -> Node {
    outrigger_xds_proto::json::from_yaml(&format!("id: n\nmetadata: {{outrigger: {metadata}}}")).expect("a node")
}

fn captured(addresses: &str, rest: &str) -> NodeRole {
    NodeRole::parse(&node(&format!("{{namespace: shop, capture: {{addresses: '{addresses}'{rest}}}}}")))
        .expect("a role")
}

#[test]
fn a_captured_pod_compiles_to_the_golden_file() {
    let text = include_str!("golden/captured.policy.yaml");
    let resources = compile(text, &captured("10.0.0.7,fd00::7", ""));
    let all = json!({
        "clusters": shown(&resources, ResourceType::Cluster),
        "listeners": shown(&resources, ResourceType::Listener),
        "routes": shown(&resources, ResourceType::Routes),
    });
    assert_golden("captured.xds.yaml", &all);
}

#[test]
fn captured_pods_differ_by_what_they_are() {
    let text = include_str!("golden/captured.policy.yaml");
    let snapshot = Snapshot::compile(Arc::new(policy(text)));
    let listeners = |role: &NodeRole| shown(&snapshot.for_node(role), ResourceType::Listener);
    let [orders, stranger] = ["10.0.0.7", "10.0.0.99"].map(|address| listeners(&captured(address, "")));
    assert_eq!(orders[1], stranger[1], "outbound is the same for both");
    let inbound = |listeners: &Value| listeners[0]["filter_chains"].as_array().map_or(0, Vec::len);
    // Port 8080 of HTTP; 9000, which may be either.
    assert_eq!((inbound(&orders), inbound(&stranger)), (3, 0));
    let closed = listeners(&captured("10.0.0.7", ", outboundPolicy: registry-only, mode: tproxy"));
    assert_eq!(closed[1]["default_filter_chain"]["name"], "blackhole");
    assert_eq!((&closed[0]["transparent"], &orders[0]["transparent"]), (&json!(true), &Value::Null));
    assert_eq!(closed[0]["address"]["socket_address"]["address"], "0.0.0.0");
}

#[test]
fn what_a_service_reference_leaves_open_is_refused() {
    let port = |port: u16| {
        format!(
            "---\napiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{name: a-{port}}}\n\
             spec: {{serviceName: a, port: {port}, endpoints: []}}\n"
        )
    };
    let both = port(80) + &port(81);
    let policy = |target: &str| {
        format!(
            "---\napiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: p}}\n\
             spec: {{targetRefs: [{target}], timeouts: {{request: 1s}}}}\n"
        )
    };
    let cases = [
        (
            both.clone() + &route("r", "rules: [{backendRefs: [{name: a}]}]"),
            "rules[0].backendRefs[0].port: Service default/a has several ports; say one of 80, 81",
        ),
        (
            both.clone() + &route("r", "rules: [{backendRefs: [{name: a, port: 82}]}]"),
            "backendRefs[0].port: 82: Service default/a has no such port; say one of 80, 81",
        ),
        (
            both.clone() + &policy("{kind: Service, name: a, sectionName: admin}"),
            "targetRefs[0].sectionName: admin: Service default/a has no port of this name; say one of 80, 81",
        ),
        (policy("{kind: Service, name: b}"), "targetRefs[0].name: b: no Upstream is the Service default/b"),
        (
            both.clone() + &port(80).replace("a-80", "other"),
            "is already the service of Upstream default/a-80 at port 80",
        ),
    ];
    for (text, wanted) in cases {
        let found = contradictions(&text);
        assert!(found.iter().any(|problem| problem.contains(wanted)), "{wanted}\n{found:#?}");
    }
    assert_eq!(
        contradictions(&(both + &policy("{kind: Service, name: a}, {kind: Service, name: a, sectionName: '81'}"))),
        Vec::<String>::new()
    );
}

fn upstream(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{endpoints: [{{address: '10.0.0.1:80'}}]}}\n"
    )
}

fn route(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\n\
         spec: {{parentRefs: [{{kind: Service, name: a}}], {rest}}}\n"
    )
}

fn virtual_hosts(text: &str, namespace: &str) -> Vec<Value> {
    let routes = shown(&compile(text, &role(namespace)), ResourceType::Routes);
    routes[0]["virtual_hosts"].as_array().cloned().unwrap_or_default()
}

fn route_names(host: &Value) -> Vec<&str> {
    host["routes"].as_array().into_iter().flatten().filter_map(|route| route["name"].as_str()).collect()
}

#[test]
fn short_names_belong_to_their_namespace_and_no_domain_is_listed_twice() {
    let text = upstream("default", "a") + &upstream("other", "a") + &upstream("other", "b");
    for namespace in ["default", "other", "third"] {
        let hosts = virtual_hosts(&text, namespace);
        let domains: Vec<&str> = hosts
            .iter()
            .flat_map(|host| host["domains"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        let unique: std::collections::BTreeSet<&&str> = domains.iter().collect();
        assert_eq!(unique.len(), domains.len(), "{namespace}: {domains:?}");
        let owner = hosts.iter().find(|host| host["domains"].as_array().is_some_and(|all| all.contains(&json!("a"))));
        let wanted = (namespace != "third").then(|| json!(format!("a.{namespace}")));
        assert_eq!(owner.map(|host| host["name"].clone()), wanted);
    }
}

#[test]
fn matches_are_tried_in_the_order_of_the_gateway_api() {
    let rule = |name: &str, one: &str| format!("{{name: {name}, matches: [{one}], backendRefs: [{{name: a}}]}}");
    let younger = [
        rule("any", "{}"),
        rule("short", "{path: {value: /v}}"),
        rule("long", "{path: {value: /v/orders}}"),
        rule("long-slash", "{path: {value: /v/order/}}"),
        rule("exact", "{path: {type: Exact, value: /v}}"),
        rule("regex", "{path: {type: RegularExpression, value: '/v.*'}}"),
        rule("short-get", "{path: {value: /v}, method: GET}"),
        rule("short-headers", "{path: {value: /v}, headers: [{name: x, value: y}, {name: z, value: y}]}"),
        rule("short-header", "{path: {value: /v}, headers: [{name: x, value: y}]}"),
        rule("short-query", "{path: {value: /v}, queryParams: [{name: x, value: y}]}"),
    ];
    let rules = format!("rules: [{}]", younger.join(", "));
    let text = upstream("default", "a")
        + &route("z-older", &format!("rules: [{}]", rule("same-as-short", "{path: {value: /v}}")))
        + &route("a-younger", &rules);
    let hosts = virtual_hosts(&text, "default");
    assert_eq!(
        route_names(&hosts[0]),
        [
            "default/a-younger/exact",
            "default/a-younger/regex",
            "default/a-younger/long",
            "default/a-younger/long-slash",
            "default/a-younger/short-get",
            "default/a-younger/short-headers",
            "default/a-younger/short-header",
            "default/a-younger/short-query",
            "default/z-older/same-as-short",
            "default/a-younger/short",
            "default/a-younger/any",
        ]
    );
}

#[test]
fn calls_of_grpc_come_before_requests_of_the_same_path() {
    let rules = "rules: [{matches: [{method: {service: s, method: M}}, {method: {service: s}}, {}], \
                 backendRefs: [{name: a}]}]";
    let text = upstream("default", "a")
        + &route("r", "rules: [{backendRefs: [{name: a}]}]")
        + &route("r", rules).replace("HTTPRoute", "GRPCRoute");
    let hosts = virtual_hosts(&text, "default");
    assert_eq!(
        route_names(&hosts[0]),
        ["grpc/default/r/0/0", "grpc/default/r/0/1", "grpc/default/r/0/2", "default/r/0"]
    );
    let routes = &hosts[0]["routes"];
    let paths = [json!({ "path": "/s/M", "grpc": {} }), json!({ "path_separated_prefix": "/s", "grpc": {} })];
    assert_eq!([&routes[0]["match"], &routes[1]["match"]], [&paths[0], &paths[1]]);
    assert_eq!(routes[0]["route"]["max_stream_duration"], json!({ "grpc_timeout_header_max": "0s" }));
    assert_eq!(routes[3]["match"], json!({ "prefix": "/" }));
}

#[test]
fn a_service_of_grpc_has_its_callers_deadlines_unless_policy_has_one() {
    let service = upstream("default", "a").replace("spec: {", "spec: {appProtocol: grpc, ");
    let policy = "---\napiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: {name: p}\n\
                  spec: {targetRefs: [{kind: Upstream, name: a}], timeouts: {request: 4s}}\n";
    let action = |text: &str| virtual_hosts(text, "default")[0]["routes"][0]["route"].clone();
    let callers = json!({ "cluster": "a.default", "max_stream_duration": { "grpc_timeout_header_max": "0s" } });
    assert_eq!(action(&service), callers);
    assert_eq!(action(&(service + policy)), json!({ "cluster": "a.default", "timeout": "4s" }));
}

#[test]
fn a_route_bound_to_a_port_serves_that_port_only() {
    let bound = route("r", "rules: [{backendRefs: [{name: a}]}]").replace("name: a}],", "name: a, port: 81}],");
    let hosts = virtual_hosts(&(upstream("default", "a") + &bound), "default");
    let names: Vec<(&str, Vec<&str>)> =
        hosts.iter().map(|host| (host["name"].as_str().unwrap_or_default(), route_names(host))).collect();
    assert_eq!(names, [("a.default", vec!["default/a/default"]), ("a.default:81", vec!["default/r/0"])]);
    assert!(hosts[1]["domains"].as_array().is_some_and(|domains| domains.contains(&json!("a:81"))));
}

#[test]
fn the_nearest_policy_wins() {
    let attach = |name: &str, target: &str, timeout: &str| {
        format!(
            "---\napiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\n\
             spec: {{targetRefs: [{target}], timeouts: {{request: {timeout}}}}}\n"
        )
    };
    let rules = "rules: [{name: one, backendRefs: [{name: a}]}, {name: two, matches: [{path: {value: /two}}], \
                 timeouts: {request: 2s}, backendRefs: [{name: a}]}, {name: three, matches: [{path: {value: /3}}], \
                 backendRefs: [{name: a}]}]";
    let layers = [
        upstream("default", "a"),
        attach("on-upstream", "{kind: Upstream, name: a}", "4s"),
        route("r", rules),
        attach("on-route", "{kind: HTTPRoute, name: r}", "3s"),
        attach("on-rule", "{kind: HTTPRoute, name: r, sectionName: one}", "1s"),
    ];
    let timeouts = |count: usize| {
        let hosts = virtual_hosts(&layers[..count].concat(), "default");
        let routes = hosts[0]["routes"].as_array().cloned().unwrap_or_default();
        let pairs = routes.iter().map(|route| {
            let name = route["name"].as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
            (name.to_owned(), route["route"]["timeout"].as_str().unwrap_or_default().to_owned())
        });
        let mut pairs: Vec<(String, String)> = pairs.collect();
        pairs.sort();
        pairs.into_iter().map(|(name, timeout)| format!("{name}={timeout}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(timeouts(2), "default=4s");
    assert_eq!(timeouts(3), "one=4s three=4s two=2s");
    assert_eq!(timeouts(4), "one=3s three=3s two=2s");
    assert_eq!(timeouts(5), "one=1s three=3s two=2s");
}

#[test]
fn the_same_policy_has_the_same_digests_whenever_it_is_compiled() {
    let text = include_str!("golden/shop.policy.yaml");
    let digests = || {
        let resources = compile(text, &role("shop"));
        let all = ResourceType::ALL.into_iter();
        all.flat_map(|kind| resources.of(kind).iter().map(|one| (one.name.clone(), one.digest)).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    let first = digests();
    // Maps iterate in another order each time.
    assert!((0..20).all(|_| digests() == first));
}

#[test]
fn a_bucket_smaller_than_a_fill_keeps_the_rate() {
    let text = upstream("default", "a")
        + "---\napiVersion: outrigger.dev/v1\nkind: RateLimit\nmetadata: {name: l}\n\
           spec: {targetRefs: [{kind: Upstream, name: a}], requests: 1000, per: 1s, burst: 200}\n";
    let clusters = shown(&compile(&text, &role("default")), ResourceType::Cluster);
    let policy = &clusters[0]["metadata"]["typed_filter_metadata"]["outrigger.policy.v1.ClusterPolicy"]["value"];
    assert_eq!(
        policy["local_rate_limit"],
        json!({ "max_tokens": 200, "tokens_per_fill": 200, "fill_interval": "0.200s" })
    );
    assert_eq!(policy["rule"], json!("RateLimit default/l"));
}

#[test]
fn a_role_that_does_not_parse_names_the_field() {
    for (metadata, words) in [
        ("{outbound: here}", "metadata.outrigger.outbound"),
        ("{inbound: {listen: '127.0.0.1:1'}}", "metadata.outrigger.inbound.app"),
        ("{namespace: A}", "metadata.outrigger.namespace"),
        ("{outbond: '127.0.0.1:1'}", "did you mean outbound?"),
        ("{capture: {}}", "metadata.outrigger.capture.addresses"),
        ("{capture: {addresses: 'pod'}}", "take them from status.podIPs"),
        ("{capture: {addresses: '10.0.0.7', mode: nat}}", "must be one of redirect, tproxy"),
        ("{capture: {addresses: '10.0.0.7', inboundPort: 15001}}", "must not be outboundPort too"),
        ("{capture: {addresses: '10.0.0.7'}, outbound: '127.0.0.1:1'}", "excludes capture"),
        ("5", "metadata.outrigger"),
    ] {
        let problems = NodeRole::parse(&node(metadata)).expect_err(metadata);
        assert!(problems.iter().any(|problem| problem.to_string().contains(words)), "{metadata}: {problems:?}");
    }
    let role = NodeRole::parse(&node("{namespace: shop, outbound: '127.0.0.1:15001'}")).expect("a role");
    assert_eq!((role.namespace.as_str(), role.inbound), ("shop", None));
    assert_eq!(NodeRole::parse(&Node::default()).expect("none"), NodeRole::default());
}

/// The captured mesh with pods, and who may call them.
fn guarded() -> PolicySet {
    let text = [include_str!("golden/captured.policy.yaml"), include_str!("golden/access.policy.yaml")].join("---\n");
    let pod = |name: &str, account: &str, address: &str, probes: Vec<Probe>| Workload {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        service_account: account.to_owned(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        addresses: vec![address.parse().expect("an address")],
        probes,
    };
    let probe = |port, path: &str| Probe { port, method: "GET", path: path.to_owned() };
    let pods = [
        pod("orders", "seller", "10.0.0.7", vec![probe(8080, "/live"), probe(8086, "/ready")]),
        pod("cart", "seller", "10.0.0.21", Vec::new()),
        pod("cart", "buyer", "10.0.0.22", Vec::new()),
        pod("pay", "payer", "10.0.0.23", Vec::new()),
        Workload { namespace: "ops".to_owned(), ..pod("monitor", "reader", "10.0.1.1", Vec::new()) },
    ];
    let namespaces = [("shop", "shop"), ("ops", "ops")];
    let labels = |(name, team): (&str, &str)| (name.to_owned(), [("team".to_owned(), team.to_owned())].into());
    let workloads = Arc::new(Workloads::new(pods, namespaces.map(labels).into()));
    let (set, problems) = linked_with(&text, workloads);
    assert!(problems.is_empty(), "{problems:#?}");
    set
}

#[test]
fn who_may_call_compiles_to_the_golden_file() {
    let snapshot = Snapshot::compile(Arc::new(guarded()));
    let resources = snapshot.for_node(&captured("10.0.0.7", ""));
    let found = shown(&resources, ResourceType::Listener)[0].clone();
    assert_golden("access.xds.yaml", &found);
    // Entries of a map come in any order, which must not look like a change.
    let digests = || {
        let resources = Snapshot::compile(Arc::new(guarded())).for_node(&captured("10.0.0.7", ""));
        resources.of(ResourceType::Listener).iter().map(|one| one.digest).collect::<Vec<_>>()
    };
    let first = digests();
    assert!((0..20).all(|_| digests() == first));
}

/// The filters before a chain's last, of HTTP where there are any.
fn guards_of(listener: &Value, chain: &str) -> Vec<Value> {
    let chains = listener["filter_chains"].as_array().into_iter().flatten().chain([&listener["default_filter_chain"]]);
    let chain = chains.into_iter().find(|one| one["name"] == chain).unwrap_or_else(|| panic!("no {chain}: {listener}"));
    let filters = &chain["filters"];
    let inner = &filters[0]["typed_config"]["http_filters"];
    let all = if inner.is_array() { inner } else { filters };
    let guards = all.as_array().into_iter().flatten();
    guards.filter(|one| one["name"].as_str().is_some_and(|name| name.ends_with(".rbac"))).cloned().collect()
}

#[test]
fn guards_hold_where_they_are_attached() {
    let snapshot = Snapshot::compile(Arc::new(guarded()));
    let inbound = |address: &str| shown(&snapshot.for_node(&captured(address, "")), ResourceType::Listener)[0].clone();
    let count = |address: &str, chain: &str| guards_of(&inbound(address), chain).len();
    // Both an Allow and a Deny hold at the service's port, and at both of what a port may be.
    assert_eq!(count("10.0.0.7", "inbound/orders.shop/8080:8080/http"), 2);
    assert_eq!(count("10.0.0.7", "inbound/orders.shop/9000:9000/http"), 1);
    assert_eq!(count("10.0.0.7", "inbound/orders.shop/9000:9000/tcp"), 1);
    assert_eq!(count("10.0.0.10", "inbound/db.shop/3306:3306/tcp"), 2);
    // Where something is allowed, so is the node's question.
    let probed = guards_of(&inbound("10.0.0.7"), "inbound/orders.shop/8080:8080/http");
    let probes = &probed[1]["typed_config"]["rules"]["policies"]["probes"]["permissions"];
    assert_eq!(probes[0]["and_rules"]["rules"][1]["url_path"]["path"]["exact"], "/live", "{probed:#?}");
    // What is denied in the whole namespace is so at ports of no service; nothing is allowed there, so all else is.
    assert_eq!(count("10.0.0.7", "inbound/passthrough"), 1);
    assert!(!inbound("10.0.0.7").to_string().contains("8086"), "its node may ask there anyway");
    assert_eq!(count("10.0.0.99", "inbound/passthrough"), 1);
}

#[test]
fn pods_matter_where_policy_asks_for_them() {
    let asks = guarded();
    let told = |set: &PolicySet| PolicySet { workloads: Arc::new(Workloads::default()), ..set.clone() };
    assert!(asks.says_the_same(&asks.clone()));
    assert!(!told(&asks).says_the_same(&asks), "who may call hangs on them");
    let mut plain = asks.clone();
    plain.objects.retain(|key, _| key.kind != Kind::AccessPolicy);
    assert!(told(&plain).says_the_same(&plain));
    assert!(!plain.says_the_same(&asks));
    assert!(!PolicySet { revision: plain.revision + 1, ..plain.clone() }.says_the_same(&plain));
}

#[test]
fn what_is_only_counted_changes_no_answer() {
    let rule = "rules: [{to: [{paths: [{value: /admin}]}]}]";
    for (mode, is_strict) in [("Enforce", true), ("Audit", false)] {
        let text = format!(
            "apiVersion: outrigger.dev/v1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{action: Deny, mode: {mode}, {rule}}}\n"
        );
        let mut set = guarded();
        set.objects.retain(|key, _| key.kind != Kind::AccessPolicy);
        set.objects.extend(policy(&text).objects);
        let resources = Snapshot::compile(Arc::new(set)).for_node(&captured("10.0.0.7", ""));
        let listener = shown(&resources, ResourceType::Listener)[0].clone();
        let connections = &listener["filter_chains"][0]["filters"][0]["typed_config"];
        assert_eq!(connections["merge_slashes"].as_bool().unwrap_or(false), is_strict, "{mode}: {connections}");
    }
}

#[test]
fn a_namespace_that_allows_lets_its_nodes_ask() {
    let text = "apiVersion: outrigger.dev/v1\nkind: AccessPolicy\nmetadata: {name: none, namespace: shop}\nspec: {}\n";
    let mut set = guarded();
    set.objects.retain(|key, _| key.kind != Kind::AccessPolicy);
    set.objects.extend(policy(text).objects);
    let snapshot = Snapshot::compile(Arc::new(set));
    let listener = shown(&snapshot.for_node(&captured("10.0.0.7", "")), ResourceType::Listener)[0].clone();
    let guard = |chain: &str| guards_of(&listener, chain)[0]["typed_config"]["rules"]["policies"].clone();
    assert_eq!(guard("inbound/passthrough"), Value::Null, "nobody may");
    assert!(guard("inbound/passthrough:8086/http")["probes"].is_object(), "{listener:#}");
    assert_eq!(guard("inbound/passthrough:8086/tcp"), Value::Null);
    assert_eq!(guard("inbound/orders.shop/9000:9000/http"), Value::Null);
    let elsewhere = shown(&snapshot.for_node(&captured("10.0.0.99", "")), ResourceType::Listener)[0].clone();
    assert_eq!(guards_of(&elsewhere, "inbound/passthrough").len(), 1);
}

#[test]
fn a_service_that_is_not_captured_is_guarded_too() {
    let node = node("{namespace: shop, inbound: {listen: '127.0.0.1:15006', app: '127.0.0.1:80', service: orders}}");
    let snapshot = Snapshot::compile(Arc::new(guarded()));
    let listener =
        shown(&snapshot.for_node(&NodeRole::parse(&node).expect("a role")), ResourceType::Listener)[0].clone();
    let filters = &listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"];
    let names: Vec<&str> = filters.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect();
    let rbac = "envoy.filters.http.rbac";
    assert_eq!(names, [rbac, rbac, "envoy.filters.http.local_ratelimit", "envoy.filters.http.router"]);
}

#[test]
fn a_policy_about_pods_that_nobody_tells_of_is_refused() {
    let text = "apiVersion: outrigger.dev/v1\nkind: AccessPolicy\nmetadata: {name: p}\n\
                spec: {action: Deny, rules: [{from: [{addresses: [10.0.0.1]}, {podSelector: {}}]}]}\n";
    let wanted = "spec.rules[0].from[1]: selects pods, and nothing here tells of any; start outrigger-control with \
                  --registry kubernetes, or use addresses";
    assert!(contradictions(text)[0].ends_with(wanted), "{:?}", contradictions(text));
    assert!(linked_with(text, Arc::new(Workloads::new([], BTreeMap::new()))).1.is_empty());
}

/// A mesh config of a namespace.
fn mesh(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: outrigger.dev/v1\nkind: MeshConfig\nmetadata: {{name: mesh, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn the_mesh_speaks_where_nobody_is_nearer() {
    let connection = "{connectTimeout: 250ms, loadBalancing: {policy: LeastRequest}, limits: {maxRequests: 7}}";
    let traffic = "{timeouts: {request: 15s}, retry: {attempts: 2}, upgrades: [websocket]}";
    let mut set = policy(
        &(upstream("shop", "a")
            + &upstream("shop", "b")
                .replace("spec: {", "spec: {connectTimeout: 2s, loadBalancing: {policy: Random}, ")
            + &upstream("own", "c")
            + &route("r", "rules: [{timeouts: {request: 1s}, backendRefs: [{name: a}]}]")
                .replace("name: r", "name: r, namespace: shop")
            + &mesh("system", &format!("{{connection: {connection}, traffic: {traffic}}}"))
            + &mesh("own", "{connection: {connectTimeout: 3s}, traffic: {timeouts: {request: 3s}}}")),
    );
    set.mesh_namespace = Some("system".into());
    let resources = Snapshot::compile(Arc::new(set)).for_node(&role("shop"));
    let clusters = shown(&resources, ResourceType::Cluster);
    let seen = |name: &str| {
        let all = clusters.as_array().into_iter().flatten();
        let one = all.clone().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        (one["connect_timeout"].clone(), one["lb_policy"].clone(), one["circuit_breakers"].is_object())
    };
    assert_eq!(seen("a.shop"), (json!("0.250s"), json!("LEAST_REQUEST"), true));
    assert_eq!(seen("b.shop"), (json!("2s"), json!("RANDOM"), true));
    assert_eq!(seen("c.own"), (json!("3s"), json!("LEAST_REQUEST"), true));
    let hosts = shown(&resources, ResourceType::Routes)[0]["virtual_hosts"].clone();
    let action = |service: &str| {
        let all = hosts.as_array().into_iter().flatten();
        all.clone().find(|host| host["name"] == service).unwrap_or_else(|| panic!("no {service}"))["routes"][0].clone()
    };
    assert_eq!(action("a.shop")["route"]["timeout"], "1s");
    assert_eq!(action("b.shop")["route"]["timeout"], "15s");
    assert_eq!(action("c.own")["route"]["timeout"], "3s");
    for service in ["a.shop", "b.shop", "c.own"] {
        let route = &action(service)["route"];
        assert_eq!(route["retry_policy"]["num_retries"], 2, "{service}");
        assert_eq!(route["upgrade_configs"][0]["upgrade_type"], "websocket", "{service}");
    }
    for service in ["b.shop", "c.own"] {
        let rule = action(service)["typed_per_filter_config"].to_string();
        assert!(rule.contains("MeshConfig system/mesh"), "{rule}");
    }
}

#[test]
fn a_captured_pod_obeys_the_mesh_of_its_namespace() {
    let mut set = guarded();
    set.objects.extend(
        policy(&mesh("system", "{outboundTraffic: RegistryOnly, detectionTimeout: 50ms, access: {default: Deny}}"))
            .objects,
    );
    set.mesh_namespace = Some("system".into());
    let seen = |set: &PolicySet, role: &NodeRole| {
        let listeners = shown(&Snapshot::compile(Arc::new(set.clone())).for_node(role), ResourceType::Listener);
        (
            listeners[1]["default_filter_chain"]["name"].as_str().unwrap_or_default().to_owned(),
            listeners[0]["listener_filters_timeout"].as_str().unwrap_or_default().to_owned(),
            guards_of(&listeners[0], "inbound/passthrough").len(),
        )
    };
    let pod = captured("10.0.0.7", "");
    assert_eq!(seen(&set, &pod), ("blackhole".to_owned(), "0.050s".to_owned(), 2));
    // What the pod says of itself is nearer.
    let own = captured("10.0.0.7", ", outboundPolicy: allow-any");
    assert_eq!(seen(&set, &own).0, "passthrough");
    set.objects.extend(policy(&mesh("shop", "{outboundTraffic: AllowAny, access: {default: Allow}}")).objects);
    assert_eq!(seen(&set, &pod), ("passthrough".to_owned(), "0.050s".to_owned(), 1));
}
