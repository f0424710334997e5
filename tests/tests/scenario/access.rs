//! Who may call: RBAC on requests and on opaque connections, who is refused and with which words.

use std::net::Ipv4Addr;
use std::time::Duration;

use outrigger_tests::world::resource::{
    self, CLUSTER, LISTENER, any_host, bootstrap, cluster, forward, http, http2_cluster, listener, merge,
    opaque_listener, route, table,
};
use outrigger_tests::world::{
    AdsServer, Downstream, H2Downstream, H2Upstream, HeldPort, Io, OpaqueUpstream, Proxy, ProxySetup, Upstream,
    wait_for,
};
use serde_json::{Value, json};

use super::grpc;

const SOON: Duration = Duration::from_secs(10);
const FILTER: &str = "envoy.filters.http.rbac";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";

/// Policies by name, each of permissions and principals.
fn rules(action: &str, policies: &[(&str, Value, Value)]) -> Value {
    let policies: Value = policies
        .iter()
        .map(|(name, permission, principal)| {
            ((*name).to_owned(), json!({ "permissions": [permission], "principals": [principal] }))
        })
        .collect();
    json!({ "action": action, "policies": policies })
}

fn any() -> Value {
    json!({ "any": true })
}

fn path(exact: &str) -> Value {
    json!({ "url_path": { "path": { "exact": exact } } })
}

fn from(address: Ipv4Addr) -> Value {
    json!({ "direct_remote_ip": { "address_prefix": address, "prefix_len": 32 } })
}

/// A connection manager with these filters of access in front of the router.
fn guarded(filters: Vec<Value>, over: Value) -> Value {
    let mut base = http(over);
    let list = base["http_filters"].as_array_mut().unwrap();
    for (index, filter) in filters.into_iter().enumerate() {
        let name = if index == 0 { FILTER.to_owned() } else { format!("{FILTER}.{index}") };
        let typed = merge(json!({ "@type": RBAC }), filter);
        list.insert(index, json!({ "name": name, "typed_config": typed }));
    }
    base
}

fn routed(io: Io, filters: Vec<Value>, routes: Vec<Value>, app: Value) -> Proxy {
    let routes = table("main", vec![any_host(routes)]);
    let main = listener("main", guarded(filters, json!({ "route_config": routes })));
    Proxy::start(&ProxySetup::new(io, bootstrap(vec![main], vec![app])))
}

fn verdicts(proxy: &Proxy) -> [u64; 4] {
    ["allowed", "denied", "shadow_allowed", "shadow_denied"].map(|verdict| {
        proxy.metric("outrigger_listener_access_total", &[("listener", "main"), ("verdict", verdict)]) as u64
    })
}

on_both_drivers! {
    fn a_request_that_no_policy_allows_is_refused_and_the_next_is_read_whole(io) {
        let upstream = Upstream::named("up");
        let allowed = rules("ALLOW", &[("open", path("/open"), any())]);
        let proxy = routed(
            io, vec![json!({ "rules": allowed })], vec![route("/", forward("app"))], cluster("app", &[upstream.address()]),
        );
        let mut client = proxy.connect();
        assert_eq!(client.get("/open?x=1").unwrap().text(), "up");
        // A body that nobody reads: the connection serves on, or ends; what is in the body is never taken for a request.
        let refused = client.request("POST", "/closed", &[], b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!((refused.status, refused.fault_kind().as_str()), (403, "local/authorize/denied"));
        assert_eq!(refused.fault()["retry"], "never");
        assert!(!refused.fault().contains_key("rule"), "no policy decided: {:?}", refused.fault());
        let mut client = proxy.connect();
        assert_eq!(client.get("/closed/").unwrap().status, 403);
        assert_eq!(client.get("/open").unwrap().text(), "up", "a refusal does not end the connection");
        assert_eq!(upstream.request_count(), 2);
        assert_eq!(verdicts(&proxy), [2, 2, 0, 0]);
        let framed = proxy.connect_h2();
        assert_eq!(framed.get("/closed").unwrap().status, 403);
        assert_eq!(framed.get("/open").unwrap().text(), "up");
    }

    fn the_policy_that_denies_is_named(io) {
        let upstream = Upstream::named("up");
        let method = json!({ "header": { "name": ":method", "string_match": { "exact": "DELETE" } } });
        let denied = rules("DENY", &[("shop/no-delete/0", method, any()), ("shop/no-secret/0", path("/secret"), any())]);
        let allowed = rules("ALLOW", &[("shop/all/0", any(), json!({ "or_ids": { "ids": [from(Ipv4Addr::LOCALHOST)] } }))]);
        let proxy = routed(
            io,
            vec![json!({ "rules": denied }), json!({ "rules": allowed })],
            vec![route("/", forward("app"))],
            cluster("app", &[upstream.address()]),
        );
        let mut client = proxy.connect();
        assert_eq!(client.get("/").unwrap().status, 200);
        let refused = client.get("/secret").unwrap();
        assert_eq!((refused.status, refused.fault()["rule"].as_str()), (403, "shop/no-secret/0"));
        let refused = client.request("DELETE", "/", &[], b"").unwrap();
        assert_eq!((refused.status, refused.fault()["rule"].as_str()), (403, "shop/no-delete/0"));
        assert_eq!(upstream.request_count(), 1);
    }

    fn a_shadow_only_counts(io) {
        let upstream = Upstream::named("up");
        let shadow = rules("ALLOW", &[("open", path("/open"), any())]);
        let proxy = routed(
            io, vec![json!({ "shadow_rules": shadow })], vec![route("/", forward("app"))], cluster("app", &[upstream.address()]),
        );
        let mut client = proxy.connect();
        for path in ["/open", "/closed", "/closed"] {
            assert_eq!(client.get(path).unwrap().status, 200, "{path}");
        }
        assert_eq!(verdicts(&proxy), [0, 0, 1, 2]);
    }

    fn a_route_may_ask_otherwise_or_not_at_all(io) {
        let upstream = Upstream::named("up");
        let nobody = rules("DENY", &[("nobody", any(), any())]);
        let on_route = |config: Value| {
            json!({ "typed_per_filter_config": { FILTER: merge(json!({ "@type": PER_ROUTE }), config) } })
        };
        let other = rules("DENY", &[("other", path("/other/closed"), any())]);
        let routes = vec![
            merge(route("/off", forward("app")), on_route(json!({}))),
            merge(route("/other", forward("app")), on_route(json!({ "rbac": { "rules": other } }))),
            route("/on", forward("app")),
        ];
        let proxy = routed(io, vec![json!({ "rules": nobody })], routes, cluster("app", &[upstream.address()]));
        let mut client = proxy.connect();
        let statuses = ["/off", "/other", "/other/closed", "/on", "/nowhere"].map(|path| client.get(path).unwrap().status);
        assert_eq!(statuses, [200, 200, 403, 403, 403], "who may not call is not told which routes there are");
    }

    fn a_refused_call_of_grpc_ends_with_permission_denied(io) {
        let upstream = H2Upstream::named("up");
        let nobody = rules("ALLOW", &[]);
        let proxy = routed(
            io, vec![json!({ "rules": nobody })], vec![route("/", forward("app"))], http2_cluster("app", &[upstream.address()]),
        );
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let refused = proxy.connect_h2().request("POST", "/shop.Orders/Place", &headers, b"").unwrap();
        assert_eq!((refused.status, grpc::status(&refused).as_str()), (200, "7"));
        assert_eq!(upstream.request_count(), 0);
    }

    fn an_opaque_connection_is_closed_before_anything_is_connected(io) {
        let port = HeldPort::take();
        let upstream = OpaqueUpstream::greeting("served");
        let [us, other] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
        let denied = rules("DENY", &[("not-there", json!({ "destination_ip": { "address_prefix": other, "prefix_len": 32 } }), any())]);
        let here = json!({ "destination_port": port.number() });
        let allowed = rules("ALLOW", &[("here", here, from(us))]);
        let mut main = opaque_listener("main", json!({ "cluster": "app" }));
        main["address"] = resource::address(port.at(Ipv4Addr::UNSPECIFIED));
        let filters = main["filter_chains"][0]["filters"].as_array_mut().unwrap();
        for (index, rules) in [denied, allowed].into_iter().enumerate() {
            let typed = json!({ "@type": NETWORK, "stat_prefix": "main", "rules": rules });
            filters.insert(index, json!({ "name": format!("rbac-{index}"), "typed_config": typed }));
        }
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap(vec![main], vec![cluster("app", &[upstream.address()])])));
        let mut client = Downstream::connect(port.at(us)).unwrap();
        client.finish_sending().unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"served");
        Downstream::connect(port.at(other)).unwrap().expect_closed(SOON).unwrap();
        let labels = [("listener", "main"), ("side", "local"), ("stage", "authorize"), ("kind", "denied")];
        proxy.wait_metric("outrigger_listener_faults_total", &labels, 1.0);
        assert_eq!(proxy.metric("outrigger_cluster_connects_total", &[("cluster", "app")]) as u64, 1);
    }

    fn a_right_taken_away_is_gone_for_the_next_request_of_a_kept_connection(io) {
        let upstream = Upstream::named("up");
        let ads = AdsServer::start();
        let push = |allowed: &str| {
            let routes = table("main", vec![any_host(vec![route("/", forward("app"))])]);
            let rules = rules("ALLOW", &[("one", path(allowed), any())]);
            let main = listener("main", guarded(vec![json!({ "rules": rules })], json!({ "route_config": routes })));
            ads.set([(CLUSTER, cluster("app", &[upstream.address()])), (LISTENER, main)]);
        };
        push("/a");
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        let mut client = proxy.connect();
        let framed = H2Downstream::connect(proxy.listener("main")).unwrap();
        assert_eq!([client.get("/a").unwrap().status, framed.get("/a").unwrap().status], [200, 200]);
        push("/b");
        wait_for("the new rules", SOON, || match client.get("/b").map_err(|error| error.to_string())?.status {
            200 => Ok(()),
            status => Err(status.to_string()),
        });
        assert_eq!([client.get("/a").unwrap().status, framed.get("/a").unwrap().status], [403, 403]);
    }
}
