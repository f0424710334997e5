//! How a proxy leaves: it serves until nobody sends to it any more, then drains, within one deadline.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use outrigger_tests::world::downstream::get;
use outrigger_tests::world::resource::{
    self, CLUSTER, ENDPOINTS, LISTENER, any_host, cluster, eds_cluster, endpoints, forward, http, listener, merge,
    route, table,
};
use outrigger_tests::world::{
    AdsServer, Answer, Downstream, Gate, HeldPort, Io, Proxy, ProxySetup, Upstream, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

fn web(name: &str, direction: &str, cluster: &str) -> Value {
    let routes = table(name, vec![any_host(vec![route("/", forward(cluster))])]);
    merge(listener(name, http(json!({ "route_config": routes }))), json!({ "traffic_direction": direction }))
}

/// A proxy whose workload is at 127.0.0.1, one endpoint of `app`, and its health port.
struct Pod {
    ads: AdsServer,
    upstream: Upstream,
    proxy: Proxy,
    health: HeldPort,
}

impl Pod {
    fn start(io: Io, drain_time: &str) -> Self {
        let upstream = Upstream::named("app");
        let ads = AdsServer::start();
        ads.set([
            (CLUSTER, cluster("local", &[upstream.address()])),
            (CLUSTER, eds_cluster("app")),
            (ENDPOINTS, endpoints("app", &[upstream.address()])),
            (LISTENER, web("in", "INBOUND", "local")),
            (LISTENER, web("out", "OUTBOUND", "app")),
        ]);
        let health = HeldPort::take();
        let own = json!({ "capture": { "addresses": "127.0.0.1" } });
        let args = ["--drain-time", drain_time, "--health", &health.at(Ipv4Addr::LOCALHOST).to_string()];
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("p-0", ads.address(), own)).args(&args));
        Self { ads, upstream, proxy, health }
    }

    fn health(&self) -> SocketAddr {
        self.health.at(Ipv4Addr::LOCALHOST)
    }

    fn ask(&self, listener: &str) -> u16 {
        get(self.proxy.listener(listener), "/").unwrap().status
    }

    /// Its endpoint is told to be leaving, as a terminating pod's.
    fn unlist(&self) {
        let mut set = endpoints("app", &[self.upstream.address()]);
        set["endpoints"][0]["lb_endpoints"][0]["health_status"] = json!("DRAINING");
        self.ads.set([(ENDPOINTS, set)]);
    }

    fn wait_leaving(&self) {
        wait_for("readiness to fail", SOON, || {
            let response = get(self.health(), "/ready").map_err(|error| error.to_string())?;
            let text = response.text();
            if response.status == 503 && text.contains("leaving") { Ok(()) } else { Err(text) }
        });
    }
}

/// Asks `/prestop` on a thread of its own; its answer comes with the time.
fn prestop(at: SocketAddr) -> mpsc::Receiver<(String, Instant)> {
    let (send, answer) = mpsc::channel();
    thread::spawn(move || {
        let mut client = Downstream::connect(at).unwrap();
        client.set_patience(Duration::from_secs(60)).unwrap();
        let response = client.get("/prestop").unwrap();
        assert_eq!(response.status, 200);
        let _ = send.send((response.text(), Instant::now()));
    });
    answer
}

on_both_drivers! {
    fn sigterm_is_followed_only_when_no_endpoint_set_has_us_and_arrivals_stop(io) {
        let mut pod = Pod::start(io, "60s");
        assert_eq!(pod.ask("in"), 200);
        pod.proxy.terminate();
        pod.wait_leaving();
        let until = Instant::now() + Duration::from_millis(1_500);
        wait_for("longer than any quiet second", SOON, || {
            assert_eq!(get(pod.health(), "/live").unwrap().status, 200);
            if Instant::now() < until { Err("listed".to_owned()) } else { Ok(()) }
        });
        assert_eq!([pod.ask("in"), pod.ask("out")], [200, 200], "it is still in an endpoint set");
        pod.unlist();
        let late = Instant::now() + Duration::from_millis(1_500);
        wait_for("arrivals for longer than a second", SOON, || {
            assert_eq!(pod.ask("in"), 200, "peers that have not heard yet are served");
            if Instant::now() < late { Err("asking".to_owned()) } else { Ok(()) }
        });
        let status = pod.proxy.process().wait_exit(SOON).unwrap();
        let log = pod.proxy.log().join("\n");
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("this endpoint left the endpoint sets after"), "{log}");
        assert!(log.contains("ended: every connection finished"), "{log}");
    }

    fn prestop_answers_when_it_has_left_and_outbound_goes_on(io) {
        let mut pod = Pod::start(io, "60s");
        let answer = prestop(pod.health());
        pod.wait_leaving();
        assert!(answer.try_recv().is_err(), "its endpoint is still chosen");
        pod.unlist();
        let (told, _) = answer.recv_timeout(SOON).unwrap();
        assert!(told.contains("left the endpoint sets"), "{told}");
        assert_eq!([pod.ask("out"), pod.ask("in")], [200, 200], "everything is served still");
        assert!(pod.proxy.process().try_exit().unwrap().is_none(), "it waits for its signal");
        let (again, _) = prestop(pod.health()).recv_timeout(SOON).unwrap();
        assert_eq!(again, told, "it has left");
        pod.proxy.terminate();
        let status = pod.proxy.process().wait_exit(SOON).unwrap();
        assert_eq!(status.code(), Some(0), "{:?}", pod.proxy.log());
    }

    fn one_deadline_bounds_it_all(io) {
        let mut pod = Pod::start(io, "4s");
        let began = Instant::now();
        let answer = prestop(pod.health());
        let (told, at) = answer.recv_timeout(SOON).unwrap();
        assert!(told.contains("in vain for this endpoint to leave"), "{told}");
        let waited = at - began;
        assert!(waited >= Duration::from_secs(3) && waited < Duration::from_secs(4), "{waited:?}: a quarter is kept");
        assert_eq!(pod.ask("in"), 200, "it serves until its signal");
        pod.proxy.terminate();
        let status = pod.proxy.process().wait_exit(SOON).unwrap();
        assert_eq!(status.code(), Some(0), "nothing was cut off: {:?}", pod.proxy.log());
    }

    fn who_is_in_no_set_leaves_when_nothing_comes(io) {
        let upstream = Upstream::named("app");
        let mut proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        assert_eq!(proxy.get("/").unwrap().status, 200);
        let began = Instant::now();
        proxy.terminate();
        let status = proxy.process().wait_exit(SOON).unwrap();
        let log = proxy.log().join("\n");
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(log.contains("this endpoint was in no endpoint set"), "{log}");
    }

    fn an_interrupt_or_a_second_signal_waits_for_no_peers(io) {
        for signals in [&[Signal::INT][..], &[Signal::TERM, Signal::TERM]] {
            let mut pod = Pod::start(io, "60s");
            for (at, signal) in signals.iter().enumerate() {
                pod.proxy.process().signal(*signal).unwrap();
                if at + 1 < signals.len() {
                    pod.wait_leaving();
                }
            }
            let status = pod.proxy.process().wait_exit(SOON).unwrap();
            assert_eq!(status.code(), Some(0), "{:?}", pod.proxy.log());
        }
    }

    fn the_workload_may_ask_others_until_its_last_answer(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |request| match request.target.as_str() {
            "/held" => Answer::ok("finished").after(&held),
            _ => Answer::ok("asked"),
        });
        let listeners = vec![web("in", "INBOUND", "app"), web("out", "OUTBOUND", "app")];
        let bootstrap = resource::bootstrap(listeners, vec![cluster("app", &[upstream.address()])]);
        let mut proxy = Proxy::start(&ProxySetup::new(io, bootstrap).workers(2));
        let mut busy = Downstream::connect(proxy.listener("in")).unwrap();
        busy.send_request("GET", "/held", &[], b"").unwrap();
        proxy.wait_metric("outrigger_endpoint_active_requests", &[], 1.0);
        proxy.interrupt();
        wait_for("the inbound listener to close", SOON, || match Downstream::connect(proxy.listener("in")) {
            Ok(_) => Err("it still accepts".to_owned()),
            Err(_) => Ok(()),
        });
        for _ in 0..5 {
            let answer = get(proxy.listener("out"), "/").unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "asked"), "the workload still asks others");
        }
        gate.open();
        let answer = busy.read_response("GET").unwrap();
        assert_eq!((answer.text().as_str(), answer.says_close()), ("finished", true));
        let status = proxy.process().wait_exit(SOON).unwrap();
        assert_eq!(status.code(), Some(0), "{:?}", proxy.log());
    }
}
