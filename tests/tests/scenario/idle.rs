//! How often a proxy wakes that has nothing to do: a thousand of them on a node would wake it as often as that together.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::world::resource::{cluster, forward, merge, plain, route};
use outrigger_tests::world::{Io, Proxy, ProxySetup, wait_for};
use serde_json::json;

const CONTROL: &str = "outrigger-proxy";
const WORKER: &str = "worker-0";

/// Nobody is there; nothing is sent.
const NOWHERE: [SocketAddr; 1] = [SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9)];

on_both_drivers! {
    fn the_control_thread_sleeps(io) {
        let watched = merge(cluster("app", &NOWHERE), json!({ "outlier_detection": {} }));
        let proxy = Proxy::start(&ProxySetup::new(io, plain(vec![route("/", forward("app"))], vec![watched])));
        let seen = || (proxy.sleeps(CONTROL), proxy.sleeps(WORKER));
        let mut since = seen();
        // The worker looks after its connections once a second, and sleeps twice for it at most.
        wait_for("the worker to wake ten times and the control thread not at all", Duration::from_secs(40), || {
            let now = seen();
            if now.0 > since.0 {
                since = now;
            }
            if now.1 >= since.1 + 10 { Ok(()) } else { Err(format!("{since:?} to {now:?}")) }
        });
    }
}
