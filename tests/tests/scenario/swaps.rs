//! Configuration that changes under load: no request sees half of a change, none is lost by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger_tests::world::load::LoadRequest;
use outrigger_tests::world::resource::{self, CLUSTER, ENDPOINTS, LISTENER, ROUTES, any_host, eds_cluster, route};
use outrigger_tests::world::{AdsServer, Answer, Io, Load, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};

const SWAPS: u64 = 1_000;

/// The routes of one epoch: its mark on the request, its mark on the response, and its cluster.
fn epoch_routes(epoch: u64) -> Value {
    let mark = |key: &str| json!([{ "header": { "key": key, "value": epoch.to_string() }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }]);
    let action = json!({
        "route": { "cluster": if epoch.is_multiple_of(2) { "even" } else { "odd" } },
        "request_headers_to_add": mark("x-asked-in"), "response_headers_to_add": mark("x-answered-in"),
    });
    resource::table("main", vec![any_host(vec![route("/", action)])])
}

fn listener() -> Value {
    resource::listener("main", resource::http(resource::rds("main")))
}

/// Answers with the epoch that marked the request, and with its own name.
fn echo(name: &'static str) -> Upstream {
    Upstream::start(move |request| {
        Answer::ok(format!("{name} {}", request.headers.first("x-asked-in").unwrap_or_default()))
    })
}

fn dynamic(io: Io, ads: &AdsServer) -> ProxySetup {
    ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({})))
}

fn push_all(ads: &AdsServer, even: &Upstream, odd: &Upstream, epoch: u64) {
    ads.set([
        (CLUSTER, eds_cluster("even")),
        (CLUSTER, eds_cluster("odd")),
        (ENDPOINTS, resource::endpoints("even", &[even.address()])),
        (ENDPOINTS, resource::endpoints("odd", &[odd.address()])),
        (LISTENER, listener()),
        (ROUTES, epoch_routes(epoch)),
    ]);
}

/// A closed-loop load whose every answer must come from one epoch, between those pushed before and after it.
fn watch(proxy: &Proxy, pushed: &Arc<AtomicU64>) -> Load {
    let (asked, answered) = (pushed.clone(), pushed.clone());
    Load {
        address: proxy.listener("main"),
        connections: 6,
        rate: Some(1_500.0),
        limit: Duration::from_secs(120),
        request: Box::new(move |_| {
            let mut request = LoadRequest::get("/");
            request.headers = vec![("x-pushed", asked.load(Ordering::SeqCst).to_string())];
            request
        }),
        verdict: Box::new(move |_, response| {
            let marks: Vec<String> = response.headers.all("x-answered-in");
            let text = response.text();
            let (name, asked_in) = text.split_once(' ').unwrap_or_default();
            let epoch: u64 =
                asked_in.parse().map_err(|_| format!("no epoch in {text:?}, status {}", response.status))?;
            let wanted = if epoch.is_multiple_of(2) { "even" } else { "odd" };
            if marks != [asked_in] || name != wanted {
                return Err(format!("a mix: asked in {asked_in}, answered in {marks:?} by {name}"));
            }
            if epoch > answered.load(Ordering::SeqCst) {
                return Err(format!("epoch {epoch} was not pushed yet"));
            }
            Ok("whole")
        }),
    }
}

on_both_drivers! {
    fn a_thousand_swaps_lose_nothing_and_mix_nothing(io) {
        let (even, odd) = (echo("even"), echo("odd"));
        let ads = AdsServer::start();
        push_all(&ads, &even, &odd, 0);
        let proxy = Proxy::start(&dynamic(io, &ads).workers(2));
        let pushed = Arc::new(AtomicU64::new(0));
        let load = watch(&proxy, &pushed).start();
        for epoch in 1..=SWAPS {
            pushed.store(epoch, Ordering::SeqCst);
            let version = ads.set([(ROUTES, epoch_routes(epoch))]);
            ads.wait_ack(ROUTES, version);
        }
        let last = load.tally().sent;
        wait_for("requests after the last swap", Duration::from_secs(10), || {
            if load.tally().sent > last + 50 { Ok(()) } else { Err(String::new()) }
        });
        let tally = load.stop();
        tally.assert_clean();
        assert_eq!(tally.count("whole"), tally.sent);
        assert!(tally.sent >= SWAPS / 2, "{} requests over {SWAPS} swaps are too few to show anything", tally.sent);
        assert_eq!(proxy.get("/").unwrap().text(), format!("even {SWAPS}"));
        assert_eq!(proxy.metric("outrigger_xds_rejected_total", &[]) as u64, 0);
        assert!(proxy.metric("outrigger_config_epoch", &[]) as u64 > SWAPS, "each push was an epoch of its own");
    }

    fn clusters_and_routes_that_change_together_never_dangle(io) {
        let upstream = Upstream::start(|_| Answer::ok("up"));
        let ads = AdsServer::start();
        let generation = |number: u64| {
            let name = format!("app-{number}");
            let action = json!({ "route": { "cluster": name } });
            [
                (CLUSTER, eds_cluster(&name)), (ENDPOINTS, resource::endpoints(&name, &[upstream.address()])),
                (ROUTES, resource::table("main", vec![any_host(vec![route("/", action)])])),
            ]
        };
        ads.set(generation(0));
        ads.set([(LISTENER, listener())]);
        let proxy = Proxy::start(&dynamic(io, &ads));
        let load = Load {
            address: proxy.listener("main"), connections: 4, rate: Some(1_000.0), limit: Duration::from_secs(60),
            request: Box::new(|_| LoadRequest::get("/")),
            verdict: Box::new(|_, response| match response.status {
                200 => Ok("served"),
                status => Err(format!("status {status}, fault {}", response.fault_kind())),
            }),
        }.start();
        for number in 1..=100 {
            let version = ads.set(generation(number));
            ads.wait_ack(ROUTES, version);
            ads.remove(CLUSTER, &format!("app-{}", number - 1));
        }
        load.stop().assert_clean();
    }

    fn a_bad_push_is_refused_with_its_path_while_traffic_goes_on(io) {
        let (even, odd) = (echo("even"), echo("odd"));
        let ads = AdsServer::start();
        push_all(&ads, &even, &odd, 2);
        let proxy = Proxy::start(&dynamic(io, &ads));
        let pushed = Arc::new(AtomicU64::new(2));
        let load = watch(&proxy, &pushed).start();
        let bad = resource::merge(eds_cluster("bad"), json!({ "type": "STATIC", "eds_cluster_config": null,
            "load_assignment": { "cluster_name": "bad", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 70_000 } } } },
            ]}]},
        }));
        ads.set([(CLUSTER, bad)]);
        let nack = ads.wait_nack(CLUSTER);
        let (code, text) = nack.error.unwrap();
        assert_ne!(code, 0, "a NACK carries a code that is not OK");
        for part in ["bad", "load_assignment.endpoints[0].lb_endpoints[0]", "port_value", "70000"] {
            assert!(text.contains(part), "the NACK does not mention {part:?}: {text}");
        }
        assert!(!nack.nonce.is_empty(), "a NACK answers a response");
        assert!(proxy.metric("outrigger_xds_rejected_total", &[]) >= 1.0);
        // A good push after the bad one is taken.
        ads.remove(CLUSTER, "bad");
        pushed.store(3, Ordering::SeqCst);
        let version = ads.set([(ROUTES, epoch_routes(3))]);
        ads.wait_ack(ROUTES, version);
        wait_for("the good push to serve", Duration::from_secs(5), || {
            let text = proxy.get("/").map_err(|error| error.to_string())?.text();
            if text == "odd 3" { Ok(()) } else { Err(text) }
        });
        load.stop().assert_clean();
    }

    fn bad_routes_keep_the_old_ones(io) {
        let (even, odd) = (echo("even"), echo("odd"));
        let ads = AdsServer::start();
        push_all(&ads, &even, &odd, 4);
        let proxy = Proxy::start(&dynamic(io, &ads));
        let broken = json!({ "match": { "safe_regex": { "regex": "(" } }, "route": { "cluster": "even" } });
        ads.set([(ROUTES, resource::table("main", vec![any_host(vec![broken])]))]);
        let (_, text) = ads.wait_nack(ROUTES).error.unwrap();
        for part in ["main", "virtual_hosts[0].routes[0]", "regex"] {
            assert!(text.contains(part), "the NACK does not mention {part:?}: {text}");
        }
        assert_eq!(proxy.get("/").unwrap().text(), "even 4");
    }

    fn the_xds_server_dies_and_comes_back_and_traffic_does_not_notice(io) {
        let (even, odd) = (echo("even"), echo("odd"));
        let ads = AdsServer::start();
        let address = ads.address();
        push_all(&ads, &even, &odd, 6);
        let proxy = Proxy::start(&dynamic(io, &ads));
        let pushed = Arc::new(AtomicU64::new(6));
        let load = watch(&proxy, &pushed).start();
        drop(ads);
        wait_for("the proxy to see it gone", Duration::from_secs(10), || {
            if proxy.metric("outrigger_xds_connected", &[]) as u64 == 0 { Ok(()) } else { Err(String::new()) }
        });
        let before = load.tally().sent;
        wait_for("traffic without a control plane", Duration::from_secs(10), || {
            if load.tally().sent > before + 100 { Ok(()) } else { Err(String::new()) }
        });
        let ads = AdsServer::start_at(address);
        pushed.store(7, Ordering::SeqCst);
        push_all(&ads, &even, &odd, 7);
        ads.wait_streams(1);
        wait_for("the new routes to serve", Duration::from_secs(20), || {
            let text = proxy.get("/").map_err(|error| error.to_string())?.text();
            if text == "odd 7" { Ok(()) } else { Err(text) }
        });
        let first = ads.requests().into_iter().next().unwrap();
        assert_eq!(first.node.as_deref(), Some("proxy-0"), "the node is told again: {first:?}");
        assert_eq!(first.nonce, "", "a nonce belongs to its stream: {first:?}");
        load.stop().assert_clean();
    }

    fn the_dance_follows_the_protocol(io) {
        let (even, odd) = (echo("even"), echo("odd"));
        let ads = AdsServer::start();
        push_all(&ads, &even, &odd, 8);
        let _proxy = Proxy::start(&dynamic(io, &ads));
        let requests = ads.requests();
        let firsts: Vec<&str> = requests.iter().filter(|one| one.nonce.is_empty()).map(|one| one.type_url.as_str()).collect();
        assert_eq!(firsts.first(), Some(&CLUSTER), "clusters are asked for first: {firsts:?}");
        assert!(requests.iter().skip(1).all(|one| one.node.is_none()), "the node comes once a stream");
        let names = |url: &str| requests.iter().rev().find(|one| one.type_url == url).map(|one| one.names.clone());
        assert_eq!(names(ENDPOINTS), Some(vec!["even".to_owned(), "odd".to_owned()]));
        assert_eq!(names(ROUTES), Some(vec!["main".to_owned()]));
        assert!(requests.iter().all(|one| one.error.is_none()));
    }

    fn a_removed_listener_closes_and_a_new_one_opens(io) {
        let (even, odd) = (echo("even"), echo("odd"));
        let ads = AdsServer::start();
        push_all(&ads, &even, &odd, 10);
        let proxy = Proxy::start(&dynamic(io, &ads));
        assert_eq!(proxy.get("/").unwrap().status, 200);
        let mut kept = proxy.connect();
        assert_eq!(kept.get("/").unwrap().status, 200);
        ads.remove(LISTENER, "main");
        let address = proxy.listener("main");
        wait_for("the listener to close", Duration::from_secs(10), || {
            match outrigger_tests::world::Downstream::connect(address) {
                Ok(_) => Err("it still accepts".to_owned()),
                Err(_) => Ok(()),
            }
        });
        let mut again = listener();
        again["address"] = resource::address(address);
        ads.set([(LISTENER, again)]);
        wait_for("the listener to open", Duration::from_secs(10), || {
            outrigger_tests::world::downstream::get(address, "/").map(|_| ()).map_err(|error| error.to_string())
        });
    }
    fn an_endpoint_that_leaves_is_let_go_of_and_one_that_stays_is_kept(io) {
        let (leaves, stays) = (Upstream::named("leaves"), Upstream::named("stays"));
        let ads = AdsServer::start();
        push_all(&ads, &leaves, &stays, 10);
        ads.set([(ENDPOINTS, resource::endpoints("even", &[leaves.address(), stays.address()]))]);
        let proxy = Proxy::start(&dynamic(io, &ads));
        let mut client = proxy.connect();
        for _ in 0..10 {
            assert_eq!(client.get("/").unwrap().status, 200);
        }
        assert_eq!((leaves.open_connections(), stays.open_connections()), (1, 1), "idle in the pool");
        ads.set([(ENDPOINTS, resource::endpoints("even", &[stays.address()]))]);
        wait_for("the connection to close", Duration::from_secs(10), || match leaves.open_connections() {
            0 => Ok(()),
            open => Err(format!("{open} open")),
        });
        // Back again: it is served as one that is new.
        ads.set([(ENDPOINTS, resource::endpoints("even", &[leaves.address(), stays.address()]))]);
        wait_for("it to serve again", Duration::from_secs(10), || {
            assert_eq!(client.get("/").unwrap().status, 200);
            if leaves.open_connections() == 1 { Ok(()) } else { Err("not yet".to_owned()) }
        });
        assert_eq!(stays.connection_count(), 1, "never closed");
    }
}
