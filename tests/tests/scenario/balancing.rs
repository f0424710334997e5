//! Which endpoint gets the request.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::world::resource::{
    self, CLUSTER, ENDPOINTS, LISTENER, cluster, eds_cluster, endpoints, forward, merge, plain, route,
};
use outrigger_tests::world::{AdsServer, Answer, Downstream, Gate, Io, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};

fn start(io: Io, upstreams: &[Upstream], over: Value) -> Proxy {
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    let cluster = merge(cluster("app", &addresses), over);
    Proxy::start(&ProxySetup::new(io, plain(vec![route("/", forward("app"))], vec![cluster])))
}

const USERS: std::ops::Range<u32> = 0..24;

/// The route to `app` that goes by this hash.
fn hashed(policies: Value) -> Value {
    route("/", merge(forward("app"), json!({ "route": { "hash_policy": policies } })))
}

fn by_hash(io: Io, upstreams: &[Upstream], policies: Value, policy: &str) -> Proxy {
    let addresses: Vec<_> = upstreams.iter().map(Upstream::address).collect();
    let cluster = merge(cluster("app", &addresses), json!({ "lb_policy": policy }));
    Proxy::start(&ProxySetup::new(io, plain(vec![hashed(policies)], vec![cluster])))
}

/// Who serves each user.
fn homes(proxy: &Proxy) -> Vec<String> {
    let mut client = proxy.connect();
    let home = |user: u32| client.request("GET", "/", &[("x-user", &user.to_string())], b"").unwrap().text();
    USERS.map(home).collect()
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

    fn requests_with_one_hash_stay_together(io) {
        for policy in ["RING_HASH", "MAGLEV"] {
            let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
            let proxy = by_hash(io, &upstreams, json!([{ "header": { "header_name": "x-user" } }]), policy);
            let first = homes(&proxy);
            assert_eq!(first, homes(&proxy), "{policy}: whichever connection they come by");
            let framed = proxy.connect_h2();
            for (user, home) in USERS.zip(&first) {
                let user = user.to_string();
                let answer = framed.request("GET", "/", &[("x-user", &user)], b"").unwrap();
                assert_eq!(answer.text(), *home, "{policy}: by either version of HTTP");
            }
            let counts = upstreams.each_ref().map(Upstream::request_count);
            assert_eq!(counts.iter().sum::<usize>(), 3 * USERS.len());
        }
    }

    fn one_that_goes_moves_its_own_hashes_only(io) {
        let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
        let addresses = upstreams.each_ref().map(Upstream::address);
        let ads = AdsServer::start();
        let http = resource::http(json!({ "route_config": resource::table("main", vec![resource::any_host(vec![
            hashed(json!([{ "header": { "header_name": "x-user" } }])),
        ])])}));
        // One point an endpoint, so that no endpoint takes more of the ring when another one leaves.
        let ring = json!({ "lb_policy": "RING_HASH", "ring_hash_lb_config": { "minimum_ring_size": 1 } });
        ads.set([
            (CLUSTER, merge(eds_cluster("app"), ring)),
            (ENDPOINTS, endpoints("app", &addresses)),
            (LISTENER, resource::listener("main", http)),
        ]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        let before = homes(&proxy);
        let gone = before[0].clone();
        let left: Vec<SocketAddr> = addresses.into_iter().zip(["a", "b", "c"]).filter(|(_, name)| *name != gone).map(|(address, _)| address).collect();
        ads.set([(ENDPOINTS, endpoints("app", &left))]);
        wait_for("its users to move", Duration::from_secs(10), || match homes(&proxy) {
            now if now.contains(&gone) => Err(format!("{now:?}")),
            _ => Ok(()),
        });
        for (before, now) in before.iter().zip(homes(&proxy)) {
            assert!(*before == now || *before == gone, "from {before} to {now}");
        }
    }

    fn a_client_is_known_by_the_cookie_it_is_given(io) {
        let upstreams = ["a", "b", "c"].map(|name| Upstream::start(move |_| Answer::ok(name).header("Set-Cookie", "own=1")));
        let cookie = json!({ "name": "id", "ttl": "60s", "path": "/" });
        let proxy = by_hash(io, &upstreams, json!([{ "cookie": cookie }]), "MAGLEV");
        for _ in 0..8 {
            let first = proxy.connect().get("/").unwrap();
            let lines = first.headers.all("set-cookie");
            assert_eq!((lines.len(), lines[0].as_str()), (2, "own=1"), "{lines:?}");
            let (pair, rest) = lines[1].split_once(';').unwrap();
            assert_eq!(rest, " Max-Age=60; Path=/; HttpOnly");
            let again = proxy.connect().request("GET", "/", &[("Cookie", pair)], b"").unwrap();
            assert_eq!((again.text(), again.headers.all("set-cookie")), (first.text(), vec!["own=1".to_owned()]));
            let framed = proxy.connect_h2();
            let again = framed.request("GET", "/", &[("cookie", "a=1"), ("cookie", pair)], b"").unwrap();
            assert_eq!((again.text(), again.headers.all("set-cookie")), (first.text(), vec!["own=1".to_owned()]));
            let first = framed.get("/").unwrap();
            let given = &first.headers.all("set-cookie")[1];
            let pair = given.split(';').next().unwrap();
            let again = proxy.connect().request("GET", "/", &[("Cookie", pair)], b"").unwrap();
            assert_eq!(again.text(), first.text());
        }
    }
}
