//! The health port, proof of the capture, and a start that takes too long.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use outrigger_tests::world::downstream::get;
use outrigger_tests::world::resource::{self, address, cluster, merge, opaque_listener};
use outrigger_tests::world::{AdsServer, HeldPort, Io, OpaqueUpstream, Proxy, ProxySetup, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

fn health(port: &HeldPort) -> SocketAddr {
    port.at(Ipv4Addr::LOCALHOST)
}

/// What `/ready` answers: its status, and the reasons of a condition, if there is that condition.
fn readiness(at: SocketAddr, name: &str) -> (u16, Option<Vec<String>>) {
    let response = get(at, "/ready").unwrap();
    let told: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(told["ready"], response.status == 200, "{told}");
    let conditions = told["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["name"] == name);
    let reasons = found.map(|condition| {
        let reasons: Vec<String> = serde_json::from_value(condition["reasons"].clone()).unwrap();
        assert_eq!(condition["met"], reasons.is_empty(), "{told}");
        reasons
    });
    (response.status, reasons)
}

/// A listener of captured connections.
fn outbound(at: SocketAddr) -> Value {
    let over = json!({ "address": address(at), "use_original_dst": true, "traffic_direction": "OUTBOUND" });
    merge(opaque_listener("outbound", json!({ "cluster": "app" })), over)
}

on_both_drivers! {
    fn the_health_port_tells_conditions_and_metrics_and_changes_nothing_else(io) {
        let port = HeldPort::take();
        let xds = HeldPort::take();
        let bootstrap = resource::dynamic("p-0", health(&xds), json!({}));
        let setup = ProxySetup::new(io, bootstrap).args(&["--health", &health(&port).to_string()]);
        let (mut process, _scratch) = Proxy::spawn("proxy", &setup).unwrap();
        let at = health(&port);
        wait_for("the health port", SOON, || get(at, "/live").map_err(|error| error.to_string()));
        let (status, config) = readiness(at, "config");
        let config = config.unwrap();
        assert_eq!(status, 503);
        assert!(config[0].contains("first configuration") && config.iter().any(|one| one.contains("clusters")), "{config:?}");
        assert_eq!(get(at, "/live").unwrap().status, 200);
        let ads = AdsServer::start_at(health(&xds));
        ads.set([
            (resource::CLUSTER, cluster("app", &["127.0.0.1:9".parse().unwrap()])),
            (resource::LISTENER, resource::opaque_listener("main", json!({ "cluster": "app" }))),
        ]);
        process.wait_line("outrigger-proxy ready ", SOON).unwrap();
        assert_eq!(readiness(at, "config"), (200, Some(Vec::new())));
        for name in ["listeners", "draining", "healthcheck"] {
            assert_eq!(readiness(at, name), (200, Some(Vec::new())), "{name}");
        }
        assert_eq!(readiness(at, "capture").1, None, "no heartbeat was asked for");
        for path in ["/metrics", "/stats/prometheus"] {
            let metrics = get(at, path).unwrap();
            assert!(metrics.text().contains("\noutrigger_ready 1\n"), "{path}: {}", metrics.text());
        }
        for path in ["/drain", "/config_dump", "/quitquitquit", "/"] {
            assert_eq!(get(at, path).unwrap().status, 404, "{path}");
        }
        // A scraper names whatever it was told to.
        let mut scraper = outrigger_tests::world::Downstream::connect(at).unwrap();
        assert_eq!(scraper.request("GET", "/metrics", &[("host", "pod.example")], b"").unwrap().status, 200);
        assert_eq!(scraper.request("POST", "/prestop", &[], b"").unwrap().status, 405);
        assert_eq!(readiness(at, "draining"), (200, Some(Vec::new())));
    }

    fn all_addresses_are_one_word(io) {
        let port = HeldPort::take();
        let setup = ProxySetup::new(io, resource::forwarding(&["127.0.0.1:9".parse().unwrap()]));
        let _proxy = Proxy::start(&setup.args(&["--health", &format!("*:{}", port.number())]));
        assert_eq!(readiness(port.at([127, 0, 0, 9]), "config"), (200, Some(Vec::new())));
        if std::path::Path::new("/proc/net/if_inet6").exists() {
            assert_eq!(readiness(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port.number())), "config").0, 200);
        }
    }

    fn a_health_port_in_use_is_refused_input(io) {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap().to_string();
        let setup = ProxySetup::new(io, resource::forwarding(&["127.0.0.1:9".parse().unwrap()]));
        let (mut process, _scratch) = Proxy::spawn("proxy", &setup.args(&["--health", &at])).unwrap();
        process.is_loud = false;
        let status = process.wait_exit(SOON).unwrap();
        let log = process.log().join("\n");
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains("--health") && log.contains(&at), "{log}");
    }

    fn readiness_waits_for_proof_of_the_capture(io) {
        let (port, beat) = (HeldPort::take(), HeldPort::take());
        let upstream = OpaqueUpstream::greeting("app");
        let bootstrap = resource::bootstrap(vec![outbound(beat.at(Ipv4Addr::UNSPECIFIED))], vec![cluster("app", &[upstream.address()])]);
        let args = ["--health", &health(&port).to_string(), "--capture-heartbeat", "--heartbeat-port", &beat.number().to_string()];
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap).args(&args));
        wait_for("the capture to be proven", SOON, || match readiness(health(&port), "capture") {
            (200, Some(reasons)) if reasons.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        });
        proxy.wait_metric("outrigger_capture_proven", &[], 1.0);
        proxy.wait_metric("outrigger_capture_heartbeats_total", &[("reason", "answered")], 1.0);
        assert_eq!(upstream.connection_count(), 0);
    }

    fn a_start_without_capture_ends_at_its_deadline_and_says_so(io) {
        let (port, beat, main) = (HeldPort::take(), HeldPort::take(), HeldPort::take());
        let bootstrap = resource::bootstrap(vec![outbound(main.at(Ipv4Addr::UNSPECIFIED))], vec![cluster("app", &[])]);
        let args = ["--health", &health(&port).to_string(), "--capture-heartbeat", "--heartbeat-port", &beat.number().to_string(),
            "--ready-deadline", "1500ms"];
        let mut proxy = Proxy::start(&ProxySetup::new(io, bootstrap).args(&args));
        let (status, reasons) = wait_for("a heartbeat to fail", SOON, || match readiness(health(&port), "capture") {
            (status, Some(reasons)) if reasons.iter().any(|one| one.contains("refused")) => Ok((status, reasons)),
            other => Err(format!("{other:?}")),
        });
        assert_eq!(status, 503);
        assert!(reasons[0].contains("outrigger-proxy intercept apply"), "{reasons:?}");
        assert_eq!(proxy.metric("outrigger_ready", &[]) as u64, 0);
        proxy.process().is_loud = false;
        let status = proxy.process().wait_exit(SOON).unwrap();
        let log = proxy.log().join("\n");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("not ready within 1.5s") && log.contains("intercept apply"), "{log}");
    }

    fn a_start_without_configuration_ends_at_its_deadline(io) {
        let nobody = HeldPort::take();
        let bootstrap = resource::dynamic("p-0", health(&nobody), json!({}));
        let setup = ProxySetup::new(io, bootstrap).args(&["--ready-deadline", "500ms"]);
        let (mut process, _scratch) = Proxy::spawn("proxy", &setup).unwrap();
        process.is_loud = false;
        let status = process.wait_exit(SOON).unwrap();
        let log = process.log().join("\n");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("waiting for the first configuration") && log.contains("first listeners"), "{log}");
    }

    fn a_bootstrap_comes_as_text_over_a_file(io) {
        let upstream = OpaqueUpstream::greeting("laid over");
        let file = resource::bootstrap(vec![resource::opaque_listener("main", json!({ "cluster": "app" }))], Vec::new());
        let over = json!({ "static_resources": { "clusters": [cluster("app", &[upstream.address()])] } }).to_string();
        let proxy = Proxy::start(&ProxySetup::new(io, file).args(&["--config-yaml", &over]));
        assert_eq!(proxy.connect().read_bytes(9).unwrap(), b"laid over");
    }
}
