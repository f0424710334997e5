//! How much memory a proxy holds at rest: what start-up and pushes needed is not kept.
//!
//! The bounds are for a dev build, whose code is several times as large; `docs/decisions` has a release build's.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::world::resource::{
    self, CLUSTER, ENDPOINTS, LISTENER, ROUTES, any_host, cluster, eds_cluster, endpoints, forward, plain, route,
};
use outrigger_tests::world::{AdsServer, Io, Proxy, ProxySetup, wait_for};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// A sidecar that has its configuration and nothing to do.
const IDLE_MAX: u64 = 9 * MIB;
/// One that holds 1,000 clusters and 1,000 routes, whatever it was pushed before.
const CONFIGURED_MAX: u64 = 15 * MIB;

/// Nobody is there; nothing is sent.
const NOWHERE: [SocketAddr; 1] = [SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9)];

/// Waits until the proxy holds at most so much, and says how much it is.
fn settles(what: &str, proxy: &Proxy, most: u64) {
    wait_for(&format!("{what}: at most {most} bytes of memory"), Duration::from_secs(15), || {
        let held = proxy.resident_bytes();
        if held > most {
            return Err(format!("{held}"));
        }
        println!("{what}: {:.1} MiB", held as f64 / MIB as f64);
        Ok(())
    });
}

fn routes(count: usize) -> Vec<Value> {
    (0..count).map(|at| route(&format!("/{at}/"), forward(&format!("app-{}", at % 1_000)))).collect()
}

on_both_drivers! {
    fn an_idle_proxy_is_small(io) {
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&NOWHERE)));
        settles("idle", &proxy, IDLE_MAX);
        proxy.admin_get("/stats/prometheus").unwrap();
        settles("asked for its metrics", &proxy, IDLE_MAX + 4 * MIB);
    }

    fn a_thousand_static_routes_are_small(io) {
        let clusters = (0..1_000).map(|at| cluster(&format!("app-{at}"), &NOWHERE)).collect();
        let proxy = Proxy::start(&ProxySetup::new(io, plain(routes(1_000), clusters)));
        settles("1,000 static routes and clusters", &proxy, CONFIGURED_MAX);
    }

    fn pushes_leave_nothing_behind(io) {
        let ads = AdsServer::start();
        ads.set([
            (LISTENER, resource::listener("main", resource::http(resource::rds("main")))),
            (ROUTES, resource::table("main", vec![any_host(routes(1))])),
            (CLUSTER, eds_cluster("app-0")),
            (ENDPOINTS, endpoints("app-0", &NOWHERE)),
        ]);
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        settles("connected to a control plane", &proxy, IDLE_MAX);
        let names: Vec<String> = (0..1_000).map(|at| format!("app-{at}")).collect();
        for round in 0..10_u16 {
            let there: SocketAddr = ([127, 0, 0, 1], 10 + round).into();
            let mut pushed: Vec<(&'static str, Value)> = names.iter().map(|name| (CLUSTER, eds_cluster(name))).collect();
            pushed.extend(names.iter().map(|name| (ENDPOINTS, endpoints(name, &[there]))));
            pushed.push((ROUTES, resource::table("main", vec![any_host(routes(1_000))])));
            let version = ads.set(pushed);
            ads.wait_ack(ROUTES, version);
        }
        settles("1,000 clusters and routes pushed ten times", &proxy, CONFIGURED_MAX);
    }
}
