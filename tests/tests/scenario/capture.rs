//! Captured connections: handed to whoever has their original destination, or sent on to it. No rule redirects anything here:
//! the original destination is then where the client connected to, and 127.0.0.2 and its like stand for other machines. With
//! rules: `tests/captured.rs`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use outrigger_tests::world::resource::{
    self, address, any_host, cluster, forward, http, http2, listener, merge, opaque_listener, route, table,
};
use outrigger_tests::world::{
    Answer, Downstream, H2Downstream, H2Upstream, HeldPort, Io, OpaqueUpstream, Proxy, ProxySetup, Upstream,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const US: Ipv4Addr = Ipv4Addr::LOCALHOST;
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const THIRD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Lays over a listener that it is bound to all addresses and asks where its connections were going.
fn capturing(port: &HeldPort, over: Value) -> Value {
    merge(json!({ "address": address(port.at(Ipv4Addr::UNSPECIFIED)), "use_original_dst": true }), over)
}

/// Lays over a listener that it is handed the connections to `to`.
fn handed(to: SocketAddr) -> Value {
    json!({ "address": address(to), "bind_to_port": false })
}

fn tcp(name: &str, cluster: &str, over: Value) -> Value {
    merge(opaque_listener(name, json!({ "cluster": cluster })), over)
}

fn web(name: &str, cluster: &str, over: Value) -> Value {
    let routes = table(name, vec![any_host(vec![route("/", forward(cluster))])]);
    merge(listener(name, http(json!({ "route_config": routes }))), over)
}

/// A cluster of original destinations.
fn original(name: &str, config: Value) -> Value {
    json!({ "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "1s",
        "original_dst_lb_config": config })
}

fn start(io: Io, listeners: Vec<Value>, clusters: Vec<Value>) -> Proxy {
    Proxy::start(&ProxySetup::new(io, resource::bootstrap(listeners, clusters)))
}

fn greeted(at: SocketAddr) -> String {
    let mut client = Downstream::connect(at).unwrap();
    client.finish_sending().unwrap();
    String::from_utf8(client.read_to_end().unwrap()).unwrap()
}

fn get(at: SocketAddr) -> outrigger_tests::world::Response {
    Downstream::connect(at).unwrap().get("/").unwrap()
}

on_both_drivers! {
    fn connections_are_handed_to_the_listener_of_their_destination(io) {
        let port = HeldPort::take();
        let [exact, rest, any] = ["exact", "rest", "any"].map(OpaqueUpstream::greeting);
        let clusters = vec![cluster("exact", &[exact.address()]), cluster("rest", &[rest.address()]), cluster("any", &[any.address()])];
        let main = tcp("main", "rest", capturing(&port, json!({})));
        let by_address = tcp("by-address", "exact", handed(port.at(OTHER)));
        let proxy = start(io, vec![main.clone(), by_address.clone()], clusters.clone());
        assert_eq!(proxy.listeners().len(), 1, "what is handed its connections is not bound: {:?}", proxy.listeners());
        assert_eq!(greeted(port.at(OTHER)), "exact");
        assert_eq!(greeted(port.at(THIRD)), "rest", "none has it: the listener itself serves");
        let count = |name: &str, listener: &str| proxy.metric(name, &[("listener", listener)]) as u64;
        assert_eq!(count("outrigger_listener_handed_connections_total", "main"), 1);
        assert_eq!(count("outrigger_listener_accepted_connections_total", "main"), 2);
        let told = proxy.admin_json("/listeners?format=json");
        assert_eq!(told["listeners"][0]["capture"]["is_bound"], false, "{told}");
        assert_eq!(told["listeners"][1]["capture"]["original_destination"], "hands-over", "{told}");
        drop(proxy);
        let by_port = tcp("by-port", "any", handed(port.at(Ipv4Addr::UNSPECIFIED)));
        let _proxy = start(io, vec![main, by_address, by_port], clusters);
        assert_eq!([greeted(port.at(OTHER)), greeted(port.at(THIRD))], ["exact", "any"], "an address before a port");
    }

    fn requests_and_filter_chains_see_the_original_destination(io) {
        let port = HeldPort::take();
        let (one, two) = (Upstream::named("one"), Upstream::named("two"));
        let clusters = vec![cluster("one", &[one.address()]), cluster("two", &[two.address()])];
        let asks = json!({ "name": "original", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst" } });
        let mut main = web("main", "one", json!({ "address": address(port.at(Ipv4Addr::UNSPECIFIED)), "listener_filters": [asks] }));
        let mut second = web("main", "two", json!({}))["filter_chains"][0].take();
        second["filter_chain_match"] =
            json!({ "prefix_ranges": [{ "address_prefix": OTHER.to_string(), "prefix_len": 32 }] });
        main["filter_chains"].as_array_mut().unwrap().push(second);
        let _proxy = start(io, vec![main, web("handed", "two", handed(port.at(THIRD)))], clusters);
        assert_eq!(get(port.at(US)).text(), "one");
        assert_eq!(get(port.at(OTHER)).text(), "two");
        assert_eq!(get(port.at(THIRD)).text(), "one", "only use_original_dst hands over");
    }

    fn opaque_connections_go_on_to_their_destination(io) {
        let port = HeldPort::take();
        let upstream = OpaqueUpstream::greeting("passed");
        let pass = original("pass", json!({ "upstream_port_override": upstream.address().port() }));
        let main = tcp("main", "pass", capturing(&port, json!({})));
        let proxy = start(io, vec![main], vec![pass]);
        assert_eq!(greeted(port.at(US)), "passed");
        Downstream::connect(port.at(OTHER)).unwrap().expect_closed(SOON).unwrap();
        let refused = [("listener", "main"), ("side", "upstream"), ("stage", "connect"), ("kind", "refused")];
        proxy.wait_metric("outrigger_listener_faults_total", &refused, 1.0);
        assert_eq!(proxy.metric("outrigger_cluster_connects_total", &[("cluster", "pass")]) as u64, 2);
        let shown = proxy.admin_get("/stats/prometheus").unwrap().text();
        assert!(!shown.contains("endpoint=\"127.0.0.2"), "an address that a client chose is no label");
    }

    fn requests_go_on_to_their_destination_over_kept_connections(io) {
        let port = HeldPort::take();
        let upstream = Upstream::start(|request| Answer::ok(format!("{} {}", request.connection, request.target)));
        let pass = original("pass", json!({ "upstream_port_override": upstream.address().port() }));
        let proxy = start(io, vec![web("main", "pass", capturing(&port, json!({})))], vec![pass]);
        for round in 0..3 {
            assert_eq!(get(port.at(US)).text(), "0 /", "round {round}: its connection is kept");
        }
        let elsewhere = get(port.at(OTHER));
        assert_eq!((elsewhere.status, elsewhere.fault_kind().as_str()), (503, "upstream/connect/refused"));
        assert_eq!(elsewhere.fault()["cluster"], "pass");
        assert_eq!(get(port.at(US)).text(), "0 /");
        assert_eq!(proxy.metric("outrigger_cluster_connection_reuses_total", &[("cluster", "pass")]) as u64, 3);
        let _ = upstream;
    }

    fn streams_go_on_to_their_destination(io) {
        let port = HeldPort::take();
        let upstream = H2Upstream::named("framed");
        let pass = merge(original("pass", json!({ "upstream_port_override": upstream.address().port() })), http2(json!({})));
        let _proxy = start(io, vec![web("main", "pass", capturing(&port, json!({})))], vec![pass]);
        let client = H2Downstream::connect(port.at(US)).unwrap();
        for _ in 0..2 {
            let answer = client.get("/").unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "framed"));
        }
        assert_eq!(get(port.at(US)).text(), "framed");
    }

    fn a_header_may_name_the_destination_and_none_is_a_fault_of_its_own(io) {
        let upstream = Upstream::named("named");
        let by_header = original("pass", json!({ "use_http_header": true, "http_header_name": "x-to" }));
        let proxy = start(io, vec![web("main", "pass", json!({}))], vec![by_header]);
        let ask = |to: Option<&str>| {
            let headers: Vec<_> = to.into_iter().map(|to| ("x-to", to)).collect();
            proxy.connect().request("GET", "/", &headers, b"").unwrap()
        };
        assert_eq!(ask(Some(&upstream.address().to_string())).text(), "named");
        for none in [None, Some("nowhere:80"), Some("127.0.0.1"), Some("127.0.0.1:0"), Some("0.0.0.0:80")] {
            let answer = ask(none);
            assert_eq!(answer.status, 503, "{none:?}");
            assert_eq!(answer.fault_kind(), "local/balance/no-original-destination", "{none:?}");
        }
        let looped = ask(Some(&proxy.listener("main").to_string()));
        assert_eq!((looped.status, looped.fault_kind().as_str()), (503, "local/connect/loop"));
        assert_eq!(looped.fault()["retry"], "never");
        let accepted = proxy.metric("outrigger_listener_accepted_connections_total", &[("listener", "main")]) as u64;
        assert_eq!(accepted, 7, "it never connected to itself");
    }

    fn attack_41_a_connection_to_the_listener_itself_does_not_loop(io) {
        let (outbound, inbound) = (HeldPort::take(), HeldPort::take());
        let pass = original("pass", json!({}));
        let out = |over| tcp("out", "pass", capturing(&outbound, over));
        let proxy = start(io, vec![
            out(json!({ "traffic_direction": "OUTBOUND" })),
            web("in", "pass", capturing(&inbound, json!({ "traffic_direction": "INBOUND" }))),
        ], vec![pass.clone()]);
        for (count, ip) in [(1.0, US), (2.0, OTHER), (3.0, THIRD)] {
            for (name, port) in [("out", &outbound), ("in", &inbound)] {
                let mut client = Downstream::connect(port.at(ip)).unwrap();
                // The reset may come before it is sent.
                let _ = client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                client.expect_closed(SOON).unwrap();
                let labels = [("listener", name), ("side", "local"), ("stage", "detect"), ("kind", "loop")];
                proxy.wait_metric("outrigger_listener_faults_total", &labels, count);
            }
        }
        let accepted = |proxy: &Proxy, name: &str| {
            proxy.metric("outrigger_listener_accepted_connections_total", &[("listener", name)]) as u64
        };
        assert_eq!([accepted(&proxy, "out"), accepted(&proxy, "in")], [3, 3]);
        drop(proxy);
        // Where no direction says that it stands behind rules, it serves; its clusters still do not connect to it.
        let proxy = start(io, vec![out(json!({})), web("in", "pass", capturing(&inbound, json!({})))], vec![pass]);
        for ip in [US, OTHER] {
            Downstream::connect(outbound.at(ip)).unwrap().expect_closed(SOON).unwrap();
            let answer = get(inbound.at(ip));
            assert_eq!((answer.status, answer.fault_kind().as_str()), (503, "local/connect/loop"));
        }
        let labels = [("listener", "out"), ("side", "local"), ("stage", "connect"), ("kind", "loop")];
        proxy.wait_metric("outrigger_listener_faults_total", &labels, 2.0);
        assert_eq!([accepted(&proxy, "out"), accepted(&proxy, "in")], [2, 2]);
        assert_eq!(proxy.metric("outrigger_cluster_connects_total", &[]) as u64, 0);
    }

    fn a_black_hole_closes_at_once(io) {
        let port = HeldPort::take();
        let hole = json!({ "name": "hole", "type": "STATIC", "connect_timeout": "30s" });
        let proxy = start(io, vec![tcp("main", "hole", capturing(&port, json!({})))], vec![hole]);
        let mut client = Downstream::connect(port.at(OTHER)).unwrap();
        client.expect_closed(Duration::from_secs(2)).unwrap();
        let labels = [("listener", "main"), ("stage", "balance"), ("kind", "no-endpoint")];
        proxy.wait_metric("outrigger_listener_faults_total", &labels, 1.0);
    }

    fn a_heartbeat_is_answered_with_the_process_id_and_goes_nowhere(io) {
        let port = HeldPort::take();
        let upstream = OpaqueUpstream::greeting("not this");
        let main = tcp("main", "app", capturing(&port, json!({ "traffic_direction": "OUTBOUND" })));
        let bootstrap = resource::bootstrap(vec![main], vec![cluster("app", &[upstream.address()])]);
        let setup = ProxySetup::new(io, bootstrap).args(&["--heartbeat-port", &port.number().to_string()]);
        let mut proxy = Proxy::start(&setup);
        let expected = format!("outrigger-heartbeat {}\n", proxy.process().id());
        for _ in 0..3 {
            assert_eq!(greeted(port.at(US)), expected);
        }
        proxy.wait_metric("outrigger_listener_heartbeats_total", &[("listener", "main")], 3.0);
        assert_eq!(upstream.connection_count(), 0);
    }
}
