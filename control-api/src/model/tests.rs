//! Every class of bad value is refused with document, object, path, value and what is allowed.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::document::Syntax;
use super::*;

/// Refuses the text and returns one line a problem.
fn refused(text: &str) -> Vec<String> {
    match parse_manifests(text, Syntax::Yaml) {
        Ok(_) => panic!("was accepted:\n{text}"),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn upstream(spec: &str) -> String {
    format!("apiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{name: pay, namespace: shop}}\nspec: {spec}\n")
}

fn route(rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: pay, namespace: shop}}\n\
         spec: {{parentRefs: [{{kind: Service, name: pay}}], rules: [{rule}]}}\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: pay, namespace: shop}}\n\
         spec: {{targetRefs: [{{kind: HTTPRoute, name: pay}}], {spec}}}\n"
    )
}

/// Each case: the text, and words that one problem's line must hold.
#[track_caller]
fn assert_refused(text: &str, words: &[&str]) {
    let lines = refused(text);
    let is_said = lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(is_said, "no line holds {words:?}:\n{}\nfor\n{text}", lines.join("\n"));
}

#[test]
fn numbers_are_finite_whole_and_in_range() {
    for (spec, words) in [
        ("{endpoints: [{address: '10.0.0.1:80', weight: -1}]}", ["spec.endpoints[0].weight", "-1", "1..=1000000"]),
        ("{endpoints: [{address: '10.0.0.1:80', weight: 0}]}", ["spec.endpoints[0].weight", "0", "1..=1000000"]),
        ("{endpoints: [{address: '10.0.0.1:80', weight: 1.5}]}", ["spec.endpoints[0].weight", "1.5", "whole number"]),
        ("{endpoints: [{address: '10.0.0.1:80', weight: .nan}]}", ["spec.endpoints[0].weight", "NaN", "whole number"]),
        ("{endpoints: [], panicThresholdPercent: .inf}", ["spec.panicThresholdPercent", "inf", "0..=100"]),
        ("{endpoints: [], panicThresholdPercent: 101}", ["spec.panicThresholdPercent", "101", "0..=100"]),
        ("{endpoints: [], limits: {maxRequests: 4294967296}}", ["spec.limits.maxRequests", "4294967296", "0..="]),
        ("{endpoints: [], limits: {maxRequests: 1e30}}", ["spec.limits.maxRequests", "1e+30", "0..="]),
        ("{endpoints: [], limits: {maxRequests: '5'}}", ["spec.limits.maxRequests", "\"5\"", "whole number"]),
        ("{endpoints: [], limits: {maxRequests: true}}", ["spec.limits.maxRequests", "true", "whole number"]),
    ] {
        assert_refused(&upstream(spec), &words);
        assert_refused(&upstream(spec), &["document 1 (Upstream shop/pay)"]);
    }
}

#[test]
fn addresses_are_addresses() {
    for (address, words) in [
        ("10.0.0.1", "IP address and a port"),
        ("10.0.0.1:0", "1..=65535"),
        ("10.0.0.1:65536", "1..=65535"),
        ("10.0.0.256:80", "IP address"),
        ("pay.example:80", "not resolved"),
        ("fd00::1:80", "[fd00::7]:8080"),
        ("0.0.0.0:80", "unspecified"),
        ("224.0.0.1:80", "multicast"),
    ] {
        let text = upstream(&format!("{{endpoints: [{{address: '{address}'}}]}}"));
        assert_refused(&text, &["spec.endpoints[0].address", address, words]);
    }
    let twice = upstream("{endpoints: [{address: '[fd00::1]:80'}, {address: '[FD00:0::1]:80'}]}");
    assert_refused(&twice, &["spec.endpoints[1]", "twice"]);
}

#[test]
fn spans_are_spans_in_range() {
    for (span, words) in [
        ("-1s", "without a sign"),
        ("1", "unit is missing"),
        ("1d", "not one of h, m, s, ms"),
        ("0s", "1ms..=1h"),
        ("2h", "1ms..=1h"),
        ("999999s", "digits"),
    ] {
        let text = upstream(&format!("{{endpoints: [], connectTimeout: '{span}'}}"));
        assert_refused(&text, &["spec.connectTimeout", span, words]);
    }
    assert_refused(&upstream("{endpoints: [], connectTimeout: 5}"), &["in quotes"]);
}

#[test]
fn unknown_words_get_the_nearest_known_one() {
    assert_refused(&upstream("{endpionts: []}"), &["spec.endpionts", "did you mean endpoints?"]);
    assert_refused(&upstream("{endpoints: [], colour: red}"), &["spec.colour", "allowed here: serviceName"]);
    let protocol = upstream("{endpoints: [], appProtocol: gRPC}");
    assert_refused(
        &protocol,
        &["spec.appProtocol", "http, detect, tcp, tls, h2c, kubernetes.io/h2c, grpc, downstream", "did you mean grpc?"],
    );
    let balancing = upstream("{endpoints: [], loadBalancing: {policy: LeastRequests}}");
    assert_refused(&balancing, &["RoundRobin, LeastRequest, Random", "did you mean LeastRequest?"]);
    let matched = route("{matches: [{path: {type: Prefix, value: /}}], backendRefs: [{name: pay}]}");
    assert_refused(
        &matched,
        &["spec.rules[0].matches[0].path.type", "\"Prefix\"", "Exact, PathPrefix, RegularExpression"],
    );
    assert_refused(
        "kind: Service\napiVersion: v1\nmetadata: {name: a}\nspec: {}",
        &["HTTPRoute, MeshConfig, RateLimit"],
    );
    let version = upstream("{endpoints: []}").replace("dev/v1", "dev/v2");
    assert_refused(&version, &["apiVersion", "must be outrigger.dev/v1"]);
    let scope = "apiVersion: outrigger.dev/v1\nkind: RateLimit\nmetadata: {name: a}\n\
                 spec: {targetRefs: [{kind: Upstream, name: pay}], requests: 5, scope: Global}";
    assert_refused(scope, &["spec.scope", "\"Global\"", "must be Local"]);
}

#[test]
fn rules_that_contradict_themselves_are_refused() {
    for (rule, words) in [
        ("{backendRefs: [{name: a, weight: 0}, {name: b, weight: 0}]}", "sum of weights must be above 0"),
        ("{backendRefs: [{name: a, weight: 1000001}]}", "0..=1000000"),
        ("{}", "needs backendRefs"),
        ("{backendRefs: [{name: a}], filters: [{type: RequestRedirect, requestRedirect: {}}]}", "must be empty"),
        ("{backendRefs: [{name: a}], timeouts: {request: 1s, backendRequest: 2s}}", "not be longer"),
        ("{backendRefs: [{name: a}], matches: [{path: {type: Exact, value: nope}}]}", "must start with /"),
        ("{backendRefs: [{name: a}], matches: [{path: {value: /a/../b}}]}", "must start with /"),
        ("{backendRefs: [{name: a}], matches: [{path: {type: RegularExpression, value: '('}}]}", "RE2"),
        ("{backendRefs: [{name: a}], matches: [{path: {type: RegularExpression, value: '(a{9}){999}{999}'}}]}", "RE2"),
        ("{backendRefs: [{name: a}], matches: [{headers: [{name: X, value: a}, {name: x, value: b}]}]}", "twice"),
        ("{backendRefs: [{name: a}], matches: [{headers: [{name: 'a b', value: a}]}]}", "letters, digits"),
        ("{backendRefs: [{name: a}], matches: [{method: get}]}", "did you mean GET?"),
        (
            "{backendRefs: [{name: a}], filters: [{type: RequestHeaderModifier, \
             requestHeaderModifier: {set: [{name: Host, value: a}]}}]}",
            "use URLRewrite.hostname",
        ),
        (
            "{backendRefs: [{name: a}], filters: [{type: URLRewrite, urlRewrite: {path: \
             {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}], matches: [{path: {type: Exact, value: /a}}]}",
            "needs PathPrefix",
        ),
        ("{name: a, backendRefs: [{name: a}]}, {name: a, backendRefs: [{name: a}]}", "two rules have this name"),
    ] {
        assert_refused(&route(rule), &["spec.rules[", words]);
    }
}

#[test]
fn routes_of_grpc_that_mean_nothing_are_refused() {
    for (rule, words) in [
        ("{}", "needs backendRefs"),
        ("{backendRefs: [{name: a, weight: 0}]}", "sum of weights must be above 0"),
        ("{backendRefs: [{name: a}], matches: [{method: {}}]}", "must name a service, a method or both"),
        ("{backendRefs: [{name: a}], matches: [{method: {service: 'a/b'}}]}", "name of protobuf"),
        ("{backendRefs: [{name: a}], matches: [{method: {service: a..b}}]}", "name of protobuf"),
        ("{backendRefs: [{name: a}], matches: [{method: {method: 1st}}]}", "name of protobuf"),
        ("{backendRefs: [{name: a}], matches: [{method: {type: RegularExpression, method: '('}}]}", "RE2"),
        ("{backendRefs: [{name: a}], matches: [{path: {value: /a}}]}", "allowed here: method, headers"),
        ("{backendRefs: [{name: a}], timeouts: {request: 1s}}", "timeouts"),
        (
            "{backendRefs: [{name: a}], filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}]}",
            "RequestHeaderModifier and ResponseHeaderModifier only",
        ),
    ] {
        assert_refused(&route(rule).replace("HTTPRoute", "GRPCRoute"), &["spec.rules[0]", words]);
    }
}

#[test]
fn policies_that_contradict_themselves_are_refused() {
    for (spec, words) in [
        ("timeouts: {request: 1s, perTry: 2s}", "not be longer"),
        ("timeouts: {perTry: 1s}, retry: {perTryTimeout: 1s}", "keep one"),
        ("retry: {on: [5xxx]}", "did you mean 5xx?"),
        ("retry: {on: [retriable-status-codes]}", "statusCodes"),
        ("retry: {attempts: 51}", "0..=50"),
        ("retry: {backoff: {base: 1s, max: 10ms}}", "not be shorter"),
        ("localRateLimit: {requests: 0}", "1..="),
        ("localRateLimit: {requests: 10, per: 1ms}", "50ms"),
        ("localRateLimit: {requests: 1000000, per: 1s, burst: 1}", "refilled more often than every 50ms"),
        ("limits: {maxRequests: 1}", "Upstream or Service only"),
        ("timeouts: {stream: -1s}", "spec.timeouts.stream"),
        ("timeouts: {grpcDeadline: 1s}", "did you mean grpcDeadlineMax?"),
        ("retry: {on: [unavailible]}", "did you mean unavailable?"),
        ("upgrades: [websocket, WebSocket]", "spec.upgrades[1]"),
        ("upgrades: [H2C]", "set appProtocol: h2c on the Upstream"),
        ("upgrades: ['web socket']", "the word of an Upgrade header"),
        ("", "sets nothing"),
    ] {
        assert_refused(&policy(spec), &["spec", words]);
    }
}

#[test]
fn names_are_dns_names() {
    for name in ["Pay", "-pay", "pay_", "", "a..b", &"a".repeat(64)] {
        let text = upstream("{endpoints: []}").replace("name: pay", &format!("name: '{name}'"));
        assert_refused(&text, &["metadata.name", "1 to 63 of a-z"]);
    }
    assert_refused(&upstream("{endpoints: []}").replace("name: pay", "name: 5"), &["in quotes"]);
}

#[test]
fn all_problems_of_all_documents_come_at_once() {
    let text =
        [upstream("{endpoints: [{address: x, weight: 0}], connectTimeout: 1x}"), "{a: b".to_owned()].join("---\n");
    let lines = refused(&text);
    assert_eq!(lines.iter().filter(|line| line.starts_with("document 1 ")).count(), 3, "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("document 2:")).count(), 1, "{lines:#?}");
    let twice = [upstream("{endpoints: []}"), upstream("{endpoints: []}")].join("---\n");
    assert_refused(&twice, &["document 2 (Upstream shop/pay)", "already in document 1"]);
}

#[test]
fn what_json_cannot_carry_is_refused_with_its_place() {
    assert_refused("a: 1\na: 2", &["repeated"]);
    assert_refused("? [a]\n: 1", &["document 1"]);
    assert_refused("kind: !thing Upstream", &["tags"]);
    assert_refused("", &["no object"]);
    assert_refused("# nothing\n---\n", &["no object"]);
    assert_refused("a: [\n", &["document 1", "line"]);
    assert_refused("5", &["must be an object"]);
    let repeated = parse_manifests("{\"a\": 1, \"a\": 2}", Syntax::Json).expect_err("repeated");
    assert!(repeated[0].to_string().contains("repeated"), "{repeated:?}");
}

#[test]
fn hostile_documents_are_refused_in_bounds() {
    let doubled =
        "bcdefghijkl".chars().fold(("a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned(), 'a'), |(text, before), name| {
            (format!("{text}{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(",")), name)
        });
    assert_refused(&doubled.0, &["repetition limit"]);
    assert_refused(&"[".repeat(100_000), &["recursion limit"]);
    let deep = parse_manifests(&"[".repeat(100_000), Syntax::Json).expect_err("too deep");
    assert!(deep[0].to_string().contains("recursion limit"), "{deep:?}");
    let lines = refused(&"--- 1\n".repeat(20_000));
    assert_eq!(lines.len(), PROBLEMS_MAX + 1);
    assert!(lines[PROBLEMS_MAX].contains("more problems are not listed"), "{}", lines[PROBLEMS_MAX]);
    let keys: String = (0..50_000).map(|index| format!("  k{index}: 1\n")).collect();
    assert!(refused(&format!("kind: Upstream\nspec:\n{keys}")).len() <= PROBLEMS_MAX);
}

#[test]
fn lists_and_streams_are_the_same() {
    let one: Value = json!({
        "apiVersion": "outrigger.dev/v1", "kind": "Upstream",
        "metadata": { "name": "a" }, "spec": { "endpoints": [] },
    });
    let mut two = one.clone();
    two["metadata"]["name"] = json!("b");
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [one, two] });
    for text in [list.to_string(), json!([one, two]).to_string(), format!("{one}\n---\n{two}\n")] {
        let manifests = parse_manifests(&text, Syntax::Yaml).expect("accepted");
        let keys: Vec<String> = manifests.iter().map(|one| one.key.to_string()).collect();
        assert_eq!(keys, ["Upstream default/a", "Upstream default/b"]);
        assert_eq!(manifests[1].document, Some(2));
    }
}

#[test]
fn what_the_server_shows_is_taken_back() {
    let manifests = parse_manifests(&upstream("{endpoints: [{address: '10.0.0.1:80'}]}"), Syntax::Yaml);
    let manifest = manifests.expect("accepted").remove(0);
    let object = Object {
        key: manifest.key.clone(),
        spec: manifest.spec.clone(),
        body: manifest.body.clone(),
        created: 3,
        changed: 7,
        generation: 2,
    };
    let again = parse_manifests(&object.to_json().to_string(), Syntax::Json).expect("accepted").remove(0);
    assert_eq!((again.spec, again.body, again.expected), (manifest.spec, manifest.body, Some(7)));
}

/// Documents made of the words the parsers look for, so that random walks get deep.
fn wordy() -> impl Strategy<Value = Value> {
    let words = [
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "name",
        "namespace",
        "rules",
        "matches",
        "path",
        "type",
        "value",
        "backendRefs",
        "weight",
        "endpoints",
        "address",
        "targetRefs",
        "requests",
        "per",
        "burst",
        "retry",
        "on",
        "attempts",
        "timeouts",
        "request",
        "filters",
        "headers",
        "parentRefs",
        "hostnames",
        "outlierDetection",
        "interval",
        "limits",
        "codes",
        "backoff",
        "base",
        "urlRewrite",
        "requestRedirect",
        "statusCode",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[-a-zA-Z0-9:/.*\\[\\](){}é]{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "GRPCRoute",
            "HTTPRoute",
            "Upstream",
            "TrafficPolicy",
            "RateLimit",
            "outrigger.dev/v1",
            "1s",
            "URLRewrite",
            "5xx",
            "gateway.networking.k8s.io/v1",
            "Exact",
            "RegularExpression",
            "10.0.0.1:80",
            "RequestRedirect",
            "a",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let key = prop::sample::select(words.to_vec());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

/// A well-formed envelope around a random body, so that the walk gets past the first step.
fn enveloped() -> impl Strategy<Value = Value> {
    (prop::sample::select(Kind::ALL.to_vec()), wordy()).prop_map(|(kind, spec)| {
        json!({ "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": { "name": "a" }, "spec": spec })
    })
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        for syntax in [Syntax::Json, Syntax::Yaml] {
            if let Err(problems) = parse_manifests(&text, syntax) {
                prop_assert!(!problems.is_empty());
            }
        }
    }

    #[test]
    fn any_document_is_read_or_refused_with_a_path(value in enveloped()) {
        match parse_manifests(&value.to_string(), Syntax::Json) {
            Ok(manifests) => prop_assert_eq!(manifests.len(), 1),
            Err(problems) => prop_assert!(problems.iter().all(|problem| !problem.path.is_empty()), "{problems:?}"),
        }
    }
}
