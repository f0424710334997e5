//! Which endpoint gets the request.

use outrigger_tests::world::resource::{cluster, forward, merge, plain, route};
use outrigger_tests::world::{Answer, Downstream, Gate, Io, Proxy, ProxySetup, Upstream};
use serde_json::{Value, json};

fn start(io: Io, upstreams: &[Upstream], over: Value) -> Proxy {
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    let cluster = merge(cluster("app", &addresses), over);
    Proxy::start(&ProxySetup::new(io, plain(vec![route("/", forward("app"))], vec![cluster])))
}

on_both_drivers! {
    fn round_robin_serves_each_in_turn(io) {
        let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
        let proxy = start(io, &upstreams, json!({}));
        let mut client = proxy.connect();
        for _ in 0..30 {
            assert_eq!(client.get("/").unwrap().status, 200);
        }
        assert_eq!(upstreams.each_ref().map(Upstream::request_count), [10, 10, 10]);
    }

    fn round_robin_keeps_the_endpoints_weights(io) {
        let upstreams = [Upstream::named("a"), Upstream::named("b")];
        let mut proxy_cluster = cluster("app", &upstreams.each_ref().map(Upstream::address));
        proxy_cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["load_balancing_weight"] = json!(3);
        proxy_cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][1]["load_balancing_weight"] = json!(1);
        let proxy = Proxy::start(&ProxySetup::new(io, plain(vec![route("/", forward("app"))], vec![proxy_cluster])));
        let mut client = proxy.connect();
        for _ in 0..40 {
            assert_eq!(client.get("/").unwrap().status, 200);
        }
        assert_eq!(upstreams.each_ref().map(Upstream::request_count), [30, 10]);
    }

    fn random_reaches_all(io) {
        let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
        let proxy = start(io, &upstreams, json!({ "lb_policy": "RANDOM" }));
        let mut client = proxy.connect();
        for _ in 0..600 {
            assert_eq!(client.get("/").unwrap().status, 200);
        }
        // A fair draw leaves 200 ± 100 less than once in 10^17 runs.
        for upstream in &upstreams {
            assert!((100..=300).contains(&upstream.request_count()), "{} of 600", upstream.request_count());
        }
    }

    fn least_request_avoids_the_busy_one(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstreams = [Upstream::start(move |_| Answer::ok("busy").after(&held)), Upstream::named("free")];
        let over = json!({ "lb_policy": "LEAST_REQUEST", "least_request_lb_config": { "choice_count": 10 } });
        let proxy = start(io, &upstreams, over);
        // Both are idle at first; sooner or later the busy one is picked and keeps that request.
        let mut waiting: Vec<Downstream> = Vec::new();
        while upstreams[0].connection_count() == 0 {
            assert!(waiting.len() < 200, "the first endpoint is never picked");
            let mut client = proxy.connect();
            client.send_request("GET", "/", &[], b"").unwrap();
            waiting.push(client);
            proxy.wait_metric("outrigger_cluster_requests_total", &[("cluster", "app")], waiting.len() as f64);
        }
        let mut client = proxy.connect();
        for _ in 0..100 {
            assert_eq!(client.get("/").unwrap().text(), "free");
        }
        gate.open();
    }
}
