//! Several workers: how many there are.

use outrigger_tests::world::resource;
use outrigger_tests::world::{Answer, Io, Proxy, ProxySetup, Upstream};

/// A proxy with two workers whose upstream answers everything.
fn start(io: Io) -> (Proxy, Upstream) {
    let upstream = Upstream::start(|_| Answer::ok("served"));
    let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])).workers(2));
    (proxy, upstream)
}

on_both_drivers! {
    fn the_number_of_workers_is_told_with_its_reason(io) {
        let (proxy, upstream) = start(io);
        let told = proxy.admin_json("/io");
        assert_eq!((told["worker_count"].as_u64(), told["worker_reason"].as_str()), (Some(2), Some("--workers 2")));
        let auto = ProxySetup::new(io, resource::forwarding(&[upstream.address()])).workers(0);
        let auto = Proxy::start(&auto.args(&["--cpu-request-milli", "1000"]));
        let told = auto.admin_json("/io");
        let count = told["worker_count"].as_u64().unwrap();
        assert!(count >= 1 && count == told["workers"].as_array().unwrap().len() as u64, "{told}");
        let reason = told["worker_reason"].as_str().unwrap();
        assert!(reason.contains("CPUs"), "{told}");
        assert!(auto.log().iter().any(|line| line.contains(reason)), "{:?}", auto.log());
    }
}
