//! Rate limits and circuit limits, and the header that every refusal carries.

use outrigger_tests::world::resource::{cluster, forward, local_rate_limit, merge, plain, route};
use outrigger_tests::world::{Answer, Downstream, Gate, Io, Proxy, ProxySetup, Upstream};
use serde_json::{Value, json};

fn start(io: Io, routes: Vec<Value>, clusters: Vec<Value>) -> Proxy {
    Proxy::start(&ProxySetup::new(io, plain(routes, clusters)))
}

fn threshold(name: &str, value: u32) -> Value {
    let mut one = json!({});
    one[name] = json!(value);
    json!({ "circuit_breakers": { "thresholds": [one] } })
}

on_both_drivers! {
    fn a_route_serves_its_bucket_and_no_more(io) {
        let upstream = Upstream::named("up");
        let limited = merge(route("/limited", forward("app")), local_rate_limit(5, 1, "3600s"));
        let proxy = start(io, vec![limited, route("/", forward("app"))], vec![cluster("app", &[upstream.address()])]);
        let mut client = proxy.connect();
        let statuses: Vec<u16> = (0..8).map(|_| client.get("/limited").unwrap().status).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
        let refused = client.get("/limited").unwrap();
        assert_eq!(refused.fault_kind(), "local/policy/rate-limited");
        assert_eq!(refused.fault().get("retry").map(String::as_str), Some("safe"));
        assert_eq!(client.get("/free").unwrap().status, 200, "other routes are not limited");
        assert_eq!(upstream.request_count(), 6, "a refused request does not reach the upstream");
        assert_eq!(proxy.metric("outrigger_route_limited_total", &[]) as u64, 4);
    }

    fn a_bucket_is_shared_by_the_workers(io) {
        let upstream = Upstream::named("up");
        let limited = merge(route("/", forward("app")), local_rate_limit(20, 1, "3600s"));
        let setup = ProxySetup::new(io, plain(vec![limited], vec![cluster("app", &[upstream.address()])])).workers(2);
        let proxy = Proxy::start(&setup);
        let served = (0..60).filter(|_| proxy.get("/").unwrap().status == 200).count();
        assert_eq!(served, 20);
    }

    fn a_bucket_fills_again(io) {
        let upstream = Upstream::named("up");
        let limited = merge(route("/", forward("app")), local_rate_limit(1, 1, "0.1s"));
        let proxy = start(io, vec![limited], vec![cluster("app", &[upstream.address()])]);
        let mut client = proxy.connect();
        let begun = std::time::Instant::now();
        let mut served = 0_u32;
        while served < 5 {
            served += u32::from(client.get("/").unwrap().status == 200);
        }
        assert!(begun.elapsed().as_millis() >= 390, "five tokens at ten a second: {:?}", begun.elapsed());
    }

    fn requests_in_flight_are_bounded(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |_| Answer::ok("held").after(&held));
        let bounded = merge(cluster("app", &[upstream.address()]), threshold("max_requests", 3));
        let proxy = start(io, vec![route("/", forward("app"))], vec![bounded]);
        let mut clients: Vec<Downstream> = (0..3).map(|_| proxy.connect()).collect();
        for client in &mut clients {
            client.send_request("GET", "/", &[], b"").unwrap();
        }
        proxy.wait_metric("outrigger_endpoint_active_requests", &[], 3.0);
        let refused = proxy.get("/").unwrap();
        assert_eq!((refused.status, refused.fault_kind().as_str()), (503, "local/policy/max-requests"));
        assert_eq!(refused.fault().get("cluster").map(String::as_str), Some("app"));
        gate.open();
        for client in &mut clients {
            assert_eq!(client.read_response("GET").unwrap().text(), "held");
        }
        assert_eq!(proxy.get("/").unwrap().status, 200, "the place is free again");
    }

    fn connections_are_bounded_and_the_rest_waits_or_is_refused(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |_| Answer::ok("held").after(&held));
        let limits = json!({ "circuit_breakers": { "thresholds": [{ "max_connections": 1, "max_pending_requests": 1 }] } });
        let bounded = merge(cluster("app", &[upstream.address()]), limits);
        let proxy = start(io, vec![route("/", forward("app"))], vec![bounded]);
        let mut first = proxy.connect();
        first.send_request("GET", "/1", &[], b"").unwrap();
        proxy.wait_metric("outrigger_endpoint_active_requests", &[], 1.0);
        let mut answers: Vec<(u16, String)> = Vec::new();
        let mut others: Vec<Downstream> = (0..3).map(|_| proxy.connect()).collect();
        for other in &mut others {
            other.send_request("GET", "/n", &[], b"").unwrap();
        }
        proxy.wait_metric("outrigger_route_faults_total", &[("stage", "policy")], 2.0);
        gate.open();
        assert_eq!(first.read_response("GET").unwrap().status, 200);
        for other in &mut others {
            let response = other.read_response("GET").unwrap();
            answers.push((response.status, response.fault_kind()));
        }
        answers.sort();
        assert_eq!(answers[0].0, 200, "one waited: {answers:?}");
        assert!(answers[1..].iter().all(|(status, kind)| *status == 503 && kind.starts_with("local/policy/max-")), "{answers:?}");
        assert_eq!(upstream.connection_count(), 1);
    }

    fn every_refusal_carries_its_header(io) {
        let broken = Upstream::start(|_| Answer::raw("garbage\r\n\r\n").then_close());
        let limited = merge(route("/limited", forward("app")), local_rate_limit(1, 1, "3600s"));
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = start(io, vec![
            limited, route("/broken", forward("broken")), route("/nobody", forward("nobody")), route("/ghost", json!({ "route": { "cluster_header": "x" } })),
        ], vec![
            cluster("app", &[nobody]), cluster("broken", &[broken.address()]), cluster("nobody", &[nobody]),
        ]);
        assert_eq!(proxy.get("/limited").unwrap().status, 503);
        for (target, status, kind) in [
            ("/limited", 429, "local/policy/rate-limited"), ("/broken", 502, "upstream/response/malformed"),
            ("/nobody", 503, "upstream/connect/refused"), ("/none", 404, "local/route/no-route"),
        ] {
            let response = proxy.get(target).unwrap();
            assert_eq!((response.status, response.fault_kind().as_str()), (status, kind), "{target}");
            let fault = response.fault();
            assert!(fault.contains_key("retry") && fault.contains_key("epoch"), "{target}: {fault:?}");
        }
    }
}
