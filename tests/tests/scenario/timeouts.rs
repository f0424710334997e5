//! Who may take how long.

use std::time::{Duration, Instant};

use outrigger_tests::world::resource::{self, cluster, http, listener, merge, plain, route, table};
use outrigger_tests::world::{Answer, Gate, Io, Proxy, ProxySetup, Upstream};
use serde_json::{Value, json};

fn start(io: Io, upstream: &Upstream, action: Value) -> Proxy {
    let bootstrap = plain(vec![route("/", action)], vec![cluster("app", &[upstream.address()])]);
    Proxy::start(&ProxySetup::new(io, bootstrap))
}

fn stuck() -> (Upstream, Gate) {
    let gate = Gate::new();
    let held = gate.clone();
    (Upstream::start(move |_| Answer::ok("late").after(&held)), gate)
}

on_both_drivers! {
    fn a_route_timeout_is_504(io) {
        let (upstream, gate) = stuck();
        let proxy = start(io, &upstream, json!({ "route": { "cluster": "app", "timeout": "0.2s" } }));
        let begun = Instant::now();
        let response = proxy.get("/").unwrap();
        assert_eq!((response.status, response.fault_kind().as_str()), (504, "upstream/response/timeout"));
        assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        gate.open();
        assert_eq!(proxy.get("/").unwrap().text(), "late");
    }

    fn a_try_timeout_is_followed_by_another_try(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |request| match request.number {
            0 => Answer::ok("first").after(&held),
            _ => Answer::ok("second"),
        });
        let retry = json!({ "retry_on": "gateway-error,reset", "num_retries": 1, "per_try_timeout": "0.2s" });
        let proxy = start(io, &upstream, json!({ "route": { "cluster": "app", "timeout": "5s", "retry_policy": retry } }));
        assert_eq!(proxy.get("/").unwrap().text(), "second");
        gate.open();
    }

    fn a_try_timeout_without_another_try_is_504(io) {
        let (upstream, gate) = stuck();
        let retry = json!({ "retry_on": "gateway-error", "num_retries": 0, "per_try_timeout": "0.15s" });
        let proxy = start(io, &upstream, json!({ "route": { "cluster": "app", "timeout": "5s", "retry_policy": retry } }));
        let response = proxy.get("/").unwrap();
        assert_eq!((response.status, response.fault_kind().as_str()), (504, "upstream/response/per-try-timeout"));
        gate.open();
    }

    fn a_connect_that_hangs_ends_in_time(io) {
        // A full backlog: the kernel answers no further SYN.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let address = full.local_addr().unwrap().as_socket().unwrap();
        let mut held = Vec::new();
        while let Ok(one) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            held.push(one);
            assert!(held.len() < 64, "the backlog does not fill");
        }
        let hanging = merge(cluster("app", &[address]), json!({ "connect_timeout": "0.2s" }));
        let proxy = Proxy::start(&ProxySetup::new(io, plain(vec![route("/", resource::forward("app"))], vec![hanging])));
        let begun = Instant::now();
        let response = proxy.get("/").unwrap();
        assert_eq!((response.status, response.fault_kind().as_str()), (503, "upstream/connect/timeout"));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    fn a_slow_head_ends_in_time(io) {
        let upstream = Upstream::named("never");
        let routes = table("main", vec![resource::any_host(vec![route("/", resource::forward("app"))])]);
        let over = http(json!({ "route_config": routes, "request_headers_timeout": "0.3s" }));
        let bootstrap = resource::bootstrap(vec![listener("main", over)], vec![cluster("app", &[upstream.address()])]);
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
        let mut client = proxy.connect();
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow").unwrap();
        let response = client.read_response("GET").unwrap();
        assert_eq!((response.status, response.fault_kind().as_str()), (408, "downstream/parse/head-timeout"));
        client.expect_closed(Duration::from_secs(5)).unwrap();
        assert_eq!(upstream.request_count(), 0);
    }

    fn an_idle_connection_is_closed(io) {
        let upstream = Upstream::named("up");
        let routes = table("main", vec![resource::any_host(vec![route("/", resource::forward("app"))])]);
        let over = http(json!({ "route_config": routes, "common_http_protocol_options": { "idle_timeout": "0.3s" } }));
        let bootstrap = resource::bootstrap(vec![listener("main", over)], vec![cluster("app", &[upstream.address()])]);
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
        let mut client = proxy.connect();
        assert_eq!(client.get("/").unwrap().status, 200);
        client.expect_closed(Duration::from_secs(5)).unwrap();
    }
}
