//! Envoy on our bootstrap files and under our control plane.

use std::time::Duration;

use outrigger_tests::world::resource::{self, cluster, forward, merge, route};
use outrigger_tests::world::{Answer, Control, Envoy, Io, Proxy, ProxySetup, Upstream, downstream, wait_for};
use serde_json::{Value, json};

use super::{BOTH, free_port};

pub(super) fn start(bootstrap: &Value) -> Envoy {
    let program = std::env::var("OUTRIGGER_ENVOY").unwrap_or_else(|_| "envoy".to_owned());
    Envoy::start(&program, bootstrap).unwrap_or_else(|error| panic!("{program}: {error}; `make interop` gets it"))
}

/// Envoy normalises paths only when told; we do unless told not to.
fn normalizing(routes: Vec<Value>, clusters: Vec<Value>) -> Value {
    let table = resource::table("main", vec![resource::any_host(routes)]);
    let http = resource::http(json!({ "route_config": table, "normalize_path": true }));
    resource::bootstrap(vec![resource::listener("main", http)], clusters)
}

#[test]
#[ignore = "needs envoy: make interop"]
fn one_bootstrap_file_starts_envoy_and_us_and_both_behave_alike() {
    let upstream = Upstream::start(|request| Answer::ok(format!("{} {}", request.method, request.target)));
    let bootstrap = normalizing(
        vec![
            route("/teapot", json!({ "direct_response": { "status": 418, "body": { "inline_string": "tea" } } })),
            route("/old", json!({ "redirect": { "prefix_rewrite": "/new", "response_code": "FOUND" } })),
            route("/v1", json!({ "route": { "cluster": "app", "prefix_rewrite": "/v2" } })),
            merge(route("/limited", forward("app")), resource::local_rate_limit(2, 1, "3600s")),
            json!({ "match": { "prefix": "/", "headers": [{ "name": "x-ok", "string_match": { "exact": "1" } }] }, "route": { "cluster": "app" } }),
        ],
        vec![cluster("app", &[upstream.address()])],
    );
    let envoy = start(&bootstrap);
    let theirs = envoy.listener("main");
    for io in BOTH {
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap.clone()));
        let ours = proxy.listener("main");
        for (target, header) in
            [("/teapot", "0"), ("/old/a?b", "0"), ("/v1/x", "0"), ("/none", "0"), ("/any", "1"), ("/x/../teapot", "1")]
        {
            let ask = |address| {
                let mut client = outrigger_tests::world::Downstream::connect(address).unwrap();
                let response = client.request("GET", target, &[("host", "same.test"), ("x-ok", header)], b"").unwrap();
                (response.status, response.header("location"), response.text())
            };
            let (our_answer, their_answer) = (ask(ours), ask(theirs));
            assert_eq!(our_answer.0, their_answer.0, "{io:?} {target}");
            assert_eq!(our_answer.1, their_answer.1, "{io:?} {target}");
            if our_answer.0 < 400 {
                assert_eq!(our_answer.2, their_answer.2, "{io:?} {target}");
            }
        }
    }
    let limited =
        |address| -> Vec<u16> { (0..4).map(|_| downstream::get(address, "/limited").unwrap().status).collect() };
    let proxy = Proxy::start(&ProxySetup::new(Io::Auto, bootstrap));
    assert_eq!(limited(proxy.listener("main")), [200, 200, 429, 429]);
    assert_eq!(limited(theirs), [200, 200, 429, 429]);
}

fn envoy_has_all_of_it(envoy: &Envoy) {
    // The whole dump: one resource with a type that Envoy does not know would make all of it fail.
    let dump = envoy.admin_text("/config_dump");
    for part in [
        "one.default",
        "two.default",
        "outlier_detection",
        "circuit_breakers",
        "\"outbound\"",
        "\"inbound\"",
        "local_ratelimit",
        "outrigger.policy.v1.RoutePolicy",
        "explicit_http_config",
        "use_downstream_protocol_config",
        "shop.v1.Ledger",
        "grpc_timeout_header_max",
        "upgrade_configs",
        "default/closed/0",
        "default/own/0",
    ] {
        assert!(dump.contains(part), "Envoy's config_dump does not show {part}: {dump}");
    }
}

fn envoy_asks_who_may_call(control: &Control, inbound: std::net::SocketAddr) {
    let access = |name: &str, spec: &str| {
        format!("---\napiVersion: outrigger.dev/v1\nkind: AccessPolicy\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
    };
    let closed = access("closed", "{ action: Deny, rules: [{ to: [{ paths: [{ value: /admin }] }] }] }");
    let own =
        "{ rules: [{ from: [{ addresses: [127.0.0.0/8], notAddresses: [127.6.6.6] }], to: [{ methods: [GET] }] }] }";
    control.apply_and_wait(&(closed + &access("own", own))).unwrap();
    wait_for("Envoy to know who may call", Duration::from_secs(10), || {
        let answer = downstream::get(inbound, "/admin/users").map_err(|error| error.to_string())?;
        if answer.status == 403 { Ok(()) } else { Err(answer.status.to_string()) }
    });
}

#[test]
#[ignore = "needs envoy: make interop"]
fn envoy_runs_under_our_control_plane() {
    let (one, two) = (Upstream::named("one"), Upstream::named("two"));
    let app = Upstream::named("application");
    let control = Control::start();
    let role = json!({
        "namespace": "default", "outbound": free_port().to_string(),
        "inbound": { "listen": free_port().to_string(), "app": app.address().to_string(), "service": "caller" },
    });
    let mut envoy = start(&resource::dynamic("envoy-0", control.xds(), role));
    let upstreams: String = [("one", &one), ("two", &two)]
        .into_iter()
        .map(|(name, upstream)| {
            format!(
                "apiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{ name: {name} }}\nspec:\n  \
                 endpoints: [{{ address: \"{}\" }}]\n  outlierDetection: {{ consecutive5xx: 3 }}\n  limits: {{ maxRequests: 100 }}\n---\n",
                upstream.address()
            )
        })
        .collect();
    let shop = |first: u32, second: u32| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: shop }}\nspec:\n  \
             parentRefs: [{{ kind: Service, name: shop }}]\n  rules:\n    - backendRefs: [{{ name: one, weight: {first} }}, {{ name: two, weight: {second} }}]\n---\n"
        )
    };
    let policy = "apiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: { name: shop }\nspec:\n  \
                  targetRefs: [{ kind: HTTPRoute, name: shop }]\n  timeouts: { request: 5s }\n  \
                  retry: { on: [gateway-error], attempts: 2 }\n  localRateLimit: { requests: 1000, per: 1s }\n";
    let wait_connected = || {
        wait_for("Envoy to be connected", Duration::from_secs(20), || {
            let proxies = control.proxies().map_err(|error| error.to_string())?;
            if proxies.to_string().contains("envoy-0") { Ok(()) } else { Err(proxies.to_string()) }
        });
    };
    wait_connected();
    let calls = format!(
        "---\napiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{ name: ledger }}\nspec:\n  \
         endpoints: [{{ address: \"{}\" }}]\n  appProtocol: grpc\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{ name: ledger }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: ledger }}]\n  rules:\n    - matches: [{{ method: {{ service: shop.v1.Ledger }} }}, {{ method: {{ method: Check }} }}]\n      \
         backendRefs: [{{ name: ledger }}]\n---\n\
         apiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: {{ name: ledger }}\nspec:\n  \
         targetRefs: [{{ kind: GRPCRoute, name: ledger }}]\n  timeouts: {{ stream: 1h, grpcDeadlineMax: 1m }}\n  \
         upgrades: [websocket]\n  retry: {{ on: [unavailable] }}\n",
        app.address()
    );
    control.apply_and_wait(&[&upstreams, &shop(1, 0), policy, &calls].concat()).unwrap();
    let outbound = envoy.listener("outbound");
    let ask = || {
        let mut client = outrigger_tests::world::Downstream::connect(outbound).unwrap();
        client.request("GET", "/", &[("host", "shop")], b"").unwrap().text()
    };
    assert_eq!(ask(), "one");
    control.apply_and_wait(&shop(0, 1)).unwrap();
    wait_for("Envoy to take the new weights", Duration::from_secs(10), || {
        let text = ask();
        if text == "two" { Ok(()) } else { Err(text) }
    });
    assert_eq!(downstream::get(envoy.listener("inbound"), "/").unwrap().text(), "application");
    envoy_asks_who_may_call(&control, envoy.listener("inbound"));
    assert_eq!(downstream::get(envoy.listener("inbound"), "/").unwrap().text(), "application");
    envoy_has_all_of_it(&envoy);
    let stats = envoy.admin_text("/stats?filter=update_rejected");
    let rejected: Vec<&str> = stats.lines().filter(|line| !line.ends_with(": 0")).collect();
    assert!(rejected.is_empty(), "Envoy refused something: {rejected:?}\n{:?}", envoy.process().log());
    assert!(envoy.process().try_exit().unwrap().is_none());
}
