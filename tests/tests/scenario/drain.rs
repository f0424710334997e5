//! How a proxy ends, and how it does not begin.

use std::net::TcpListener;
use std::time::Duration;

use outrigger_tests::world::{Answer, Downstream, Gate, Io, Proxy, ProxySetup, Upstream, resource, wait_for};
use serde_json::json;

on_both_drivers! {
    fn sigterm_finishes_what_is_under_way_and_takes_nothing_new(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |request| match request.target.as_str() {
            "/held" => Answer::ok("finished").after(&held),
            _ => Answer::ok("quick"),
        });
        let mut proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let address = proxy.listener("main");
        let mut idle = proxy.connect();
        assert_eq!(idle.get("/").unwrap().text(), "quick");
        let mut busy = proxy.connect();
        busy.send_request("GET", "/held", &[], b"").unwrap();
        proxy.wait_metric("outrigger_endpoint_active_requests", &[], 1.0);
        proxy.terminate();
        // Asking the listener would be an arrival, and it leaves only once nothing comes.
        proxy.process().wait_line("draining: no new connections", Duration::from_secs(5)).unwrap();
        wait_for("the listener to close", Duration::from_secs(5), || match Downstream::connect(address) {
            Ok(_) => Err("it still accepts".to_owned()),
            Err(_) => Ok(()),
        });
        idle.expect_closed(Duration::from_secs(5)).unwrap();
        gate.open();
        let response = busy.read_response("GET").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "finished"));
        assert!(response.says_close(), "an answer during a drain says that the connection ends: {:?}", response.headers);
        let status = proxy.process().wait_exit(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(0), "{:?}", proxy.log());
    }

    fn the_drain_time_is_a_bound(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |_| Answer::ok("late").after(&held));
        let setup = ProxySetup::new(io, resource::forwarding(&[upstream.address()])).args(&["--drain-time", "300ms"]);
        let mut proxy = Proxy::start(&setup);
        let mut busy = proxy.connect();
        busy.send_request("GET", "/", &[], b"").unwrap();
        proxy.wait_metric("outrigger_endpoint_active_requests", &[], 1.0);
        proxy.terminate();
        let status = proxy.process().wait_exit(Duration::from_secs(8)).unwrap();
        let log = proxy.log().join("\n");
        assert_eq!(status.code(), Some(1), "a request was cut off: {log}");
        assert!(log.contains("1 connections were cut off") && log.contains("--drain-time"), "{log}");
        gate.open();
    }

    fn an_address_in_use_is_refused_input(io) {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut bootstrap = resource::forwarding(&[address]);
        bootstrap["static_resources"]["listeners"][0]["address"] = resource::address(address);
        let (mut process, _scratch) = Proxy::spawn("proxy", &ProxySetup::new(io, bootstrap)).unwrap();
        process.is_loud = false;
        let status = process.wait_exit(Duration::from_secs(10)).unwrap();
        let log = process.log().join("\n");
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(&address.to_string()) && log.contains("main"), "it names listener and address: {log}");
    }

    fn an_admin_address_in_use_is_refused_input(io) {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut bootstrap = resource::forwarding(&[address]);
        bootstrap["admin"] = json!({ "address": resource::address(address) });
        let (mut process, _scratch) = Proxy::spawn("proxy", &ProxySetup::new(io, bootstrap)).unwrap();
        process.is_loud = false;
        let status = process.wait_exit(Duration::from_secs(10)).unwrap();
        let log = process.log().join("\n");
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(&address.to_string()) && log.contains("admin"), "{log}");
    }
}
