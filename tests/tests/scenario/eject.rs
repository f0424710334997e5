//! Outlier detection: out after failures in a row, back after its time.

use std::time::Duration;

use outrigger_tests::world::resource::{self, CLUSTER, LISTENER, any_host, cluster, forward, merge, plain, route};
use outrigger_tests::world::{AdsServer, Answer, Io, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn ejecting(io: Io, upstreams: &[&Upstream], outlier: Value) -> Proxy {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address()).collect();
    let cluster = merge(cluster("app", &addresses), json!({ "outlier_detection": outlier }));
    Proxy::start(&ProxySetup::new(io, plain(vec![route("/", forward("app"))], vec![cluster])))
}

fn moody() -> (Upstream, Arc<AtomicBool>) {
    let is_ill = Arc::new(AtomicBool::new(true));
    let seen = is_ill.clone();
    let upstream = Upstream::start(move |_| match seen.load(Ordering::SeqCst) {
        true => Answer::status(500).body("ill"),
        false => Answer::ok("well"),
    });
    (upstream, is_ill)
}

on_both_drivers! {
    fn five_failures_in_a_row_eject_and_time_brings_back(io) {
        let (ill, is_ill) = moody();
        let well = Upstream::named("well");
        let proxy = ejecting(io, &[&ill, &well], json!({
            "consecutive_5xx": 5, "interval": "0.1s", "base_ejection_time": "0.5s", "max_ejection_percent": 100,
        }));
        let mut client = proxy.connect();
        let failed = (0..40).filter(|_| client.get("/").unwrap().status == 500).count();
        assert_eq!((failed, ill.request_count()), (5, 5), "it is out after its fifth failure");
        let endpoint = ill.address().to_string();
        let labels = [("endpoint", endpoint.as_str())];
        assert_eq!(proxy.metric("outrigger_endpoint_ejections_total", &labels) as u64, 1);
        is_ill.store(false, Ordering::SeqCst);
        wait_for("the ejected endpoint to return", Duration::from_secs(10), || {
            let response = client.get("/").map_err(|error| error.to_string())?;
            assert_eq!(response.status, 200);
            if ill.request_count() > 5 { Ok(()) } else { Err("not yet".to_owned()) }
        });
        assert_eq!(proxy.metric("outrigger_endpoint_ejected", &labels) as u64, 0);
    }

    fn refused_connects_eject(io) {
        let gone = Upstream::named("gone");
        let well = Upstream::named("well");
        let proxy = ejecting(io, &[&gone, &well], json!({
            "consecutive_5xx": 3, "interval": "0.1s", "base_ejection_time": "30s", "max_ejection_percent": 100,
        }));
        drop(gone);
        let mut client = proxy.connect();
        let refused = (0..30).filter(|_| client.get("/").unwrap().status == 503).count();
        assert_eq!(refused, 3, "out after three refusals");
    }

    fn gateway_failures_have_a_count_of_their_own(io) {
        let ill = Upstream::start(|_| Answer::status(502));
        let well = Upstream::named("well");
        let proxy = ejecting(io, &[&ill, &well], json!({
            "consecutive_5xx": 100, "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100,
            "interval": "0.1s", "base_ejection_time": "30s", "max_ejection_percent": 100,
        }));
        let mut client = proxy.connect();
        let failed = (0..20).filter(|_| client.get("/").unwrap().status == 502).count();
        assert_eq!(failed, 2);
    }

    fn a_success_in_between_starts_the_count_anew(io) {
        let ill = Upstream::start(|request| match request.number % 3 {
            2 => Answer::ok("well"),
            _ => Answer::status(500),
        });
        let well = Upstream::named("well");
        let proxy = ejecting(io, &[&ill, &well], json!({
            "consecutive_5xx": 3, "interval": "0.1s", "base_ejection_time": "30s", "max_ejection_percent": 100,
        }));
        let mut client = proxy.connect();
        for _ in 0..60 {
            client.get("/").unwrap();
        }
        assert_eq!(ill.request_count(), 30, "never three in a row: never out");
    }

    fn the_share_ejected_is_bounded(io) {
        let ill: Vec<Upstream> = (0..4).map(|_| Upstream::start(|_| Answer::status(500))).collect();
        let all: Vec<&Upstream> = ill.iter().collect();
        let proxy = ejecting(io, &all, json!({
            "consecutive_5xx": 2, "interval": "0.1s", "base_ejection_time": "30s", "max_ejection_percent": 50,
        }));
        let mut client = proxy.connect();
        for _ in 0..60 {
            assert_eq!(client.get("/").unwrap().status, 500);
        }
        assert_eq!(proxy.metric("outrigger_endpoint_ejected", &[]) as u64, 2, "half of four");
    }
    fn detection_switched_off_brings_back_at_once(io) {
        let (ill, is_ill) = moody();
        let plainly = cluster("app", &[ill.address()]);
        let outlier = json!({ "consecutive_5xx": 1, "base_ejection_time": "300s", "max_ejection_percent": 100 });
        let watched = merge(plainly.clone(), json!({ "outlier_detection": outlier }));
        let ads = AdsServer::start();
        let routes = resource::table("all", vec![any_host(vec![route("/", forward("app"))])]);
        ads.set([
            (LISTENER, resource::listener("main", resource::http(json!({ "route_config": routes })))),
            (CLUSTER, watched),
        ]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        let mut client = proxy.connect();
        assert_eq!(client.get("/").unwrap().status, 500);
        assert_eq!(proxy.metric("outrigger_endpoint_ejected", &[]) as u64, 1);
        is_ill.store(false, Ordering::SeqCst);
        let version = ads.set([(CLUSTER, plainly)]);
        ads.wait_ack(CLUSTER, version);
        wait_for("the ejected endpoint to return", Duration::from_secs(10), || {
            match proxy.metric("outrigger_endpoint_ejected", &[]) as u64 {
                0 => Ok(()),
                ejected => Err(format!("{ejected} ejected")),
            }
        });
        assert_eq!(client.get("/").unwrap().status, 200);
    }
}
