//! Second tries: where they go, and when there is none.

use std::net::{SocketAddr, TcpListener};

use outrigger_tests::world::resource::{cluster, plain, route};
use outrigger_tests::world::{Answer, Io, Proxy, ProxySetup, Upstream};
use serde_json::{Value, json};

fn retrying(policy: Value) -> Value {
    json!({ "route": { "cluster": "app", "retry_policy": policy } })
}

fn start(io: Io, addresses: &[SocketAddr], policy: Value) -> Proxy {
    Proxy::start(&ProxySetup::new(io, plain(vec![route("/", retrying(policy))], vec![cluster("app", addresses)])))
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn suppressed(proxy: &Proxy) -> f64 {
    proxy.metric("outrigger_route_retry_suppressed_total", &[])
}

on_both_drivers! {
    fn a_refused_connect_goes_to_another_endpoint(io) {
        let upstream = Upstream::named("up");
        let proxy = start(io, &[nobody(), upstream.address(), nobody()], json!({ "retry_on": "connect-failure", "num_retries": 2 }));
        let mut client = proxy.connect();
        for number in 0..12 {
            // A body may go again: no byte of it left.
            assert_eq!(client.request("POST", "/", &[], b"order").unwrap().text(), "up", "request {number}");
        }
        assert_eq!(upstream.request_count(), 12);
    }

    fn a_second_try_never_meets_the_first_endpoint_again(io) {
        let bad: Vec<Upstream> = (0..3).map(|_| Upstream::start(|_| Answer::status(503))).collect();
        let good = Upstream::named("good");
        let addresses = [bad[0].address(), bad[1].address(), bad[2].address(), good.address()];
        let policy = json!({ "retry_on": "5xx", "num_retries": 3, "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" },
        }], "host_selection_retry_max_attempts": 5 });
        let proxy = start(io, &addresses, policy);
        let mut client = proxy.connect();
        for number in 0..20 {
            assert_eq!(client.get("/").unwrap().text(), "good", "request {number}");
        }
        assert_eq!(good.request_count(), 20);
        for upstream in &bad {
            assert!(upstream.request_count() <= 20, "{} tries for 20 requests", upstream.request_count());
        }
    }

    fn retries_end_at_their_number(io) {
        let upstream = Upstream::start(|_| Answer::status(502).body("still bad"));
        let proxy = start(io, &[upstream.address()], json!({ "retry_on": "gateway-error", "num_retries": 2 }));
        let response = proxy.get("/").unwrap();
        assert_eq!((response.status, response.text().as_str()), (502, "still bad"));
        assert_eq!(upstream.request_count(), 3);
        assert_eq!(proxy.metric("outrigger_route_retries_total", &[]) as u64, 2);
    }

    fn an_order_is_not_placed_twice(io) {
        let upstream = Upstream::start(|_| Answer::nothing());
        let proxy = start(io, &[upstream.address()], json!({ "retry_on": "reset,5xx", "num_retries": 3 }));
        let response = proxy.connect().request("POST", "/", &[], b"order").unwrap();
        assert_eq!((response.status, upstream.request_count()), (503, 1));
        assert_eq!(response.fault_kind(), "upstream/response/closed");
        assert_eq!(response.fault().get("retry").map(String::as_str), Some("unknown"));
        assert!(suppressed(&proxy) >= 1.0, "the suppressed retry is counted");
        let response = proxy.connect().get("/").unwrap();
        assert_eq!((response.status, upstream.request_count()), (503, 5), "a GET is tried four times");
    }

    fn an_order_with_a_key_may_be_tried_again(io) {
        let upstream = Upstream::start(|request| match request.number {
            0 => Answer::nothing(),
            _ => Answer::ok("placed"),
        });
        let proxy = start(io, &[upstream.address()], json!({ "retry_on": "reset,5xx", "num_retries": 1 }));
        let response = proxy.connect().request("POST", "/", &[("idempotency-key", "k1")], b"order").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "placed"));
        let seen = upstream.requests();
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(|request| request.body == b"order"), "the body goes out whole again");
        assert!(seen.iter().all(|request| request.headers.all("idempotency-key") == ["k1"]));
    }

    fn without_a_policy_nothing_is_tried_again(io) {
        let upstream = Upstream::start(|_| Answer::nothing());
        let proxy = Proxy::start(&ProxySetup::new(io, outrigger_tests::world::resource::forwarding(&[upstream.address()])));
        assert_eq!(proxy.get("/").unwrap().status, 503);
        assert_eq!(upstream.request_count(), 1);
    }

    fn a_kept_connection_found_closed_is_replaced_unseen(io) {
        // Each connection serves one request and is closed by the upstream without a word in the answer.
        let upstream = Upstream::start(|_| Answer::ok("once").then_close());
        let proxy = Proxy::start(&ProxySetup::new(io, outrigger_tests::world::resource::forwarding(&[upstream.address()])));
        let mut client = proxy.connect();
        for number in 0..50 {
            let response = client.get("/").unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "once"), "request {number}");
        }
    }
}
