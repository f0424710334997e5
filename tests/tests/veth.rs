//! Purpose: sends without a copy to a peer elsewhere, as far as one machine has that: two network namespaces with a pair
//! of veth devices between them. Run by `make interop`, as root, for it makes namespaces.
//!
//! Shape: [`Namespaces`] are made and deleted with `ip`; whatever a thread starts after [`Namespaces::inside`] moved it
//! is in there too, processes and their sockets.
//!
//! Errors: without root or `ip` it fails and says so; it is not skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::process;
use std::time::Duration;

use outrigger_tests::world::namespace::{self, ip};
use outrigger_tests::world::resource::{address, any_host, bootstrap, cluster, forward, http, listener, route, table};
use outrigger_tests::world::upstream::pattern;
use outrigger_tests::world::{Answer, Downstream, Io, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::json;

const PROXY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const CONNECTIONS: u64 = 4;
const BODY_BYTES: usize = 4 << 20;

/// One for the proxy and one for its client.
struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    fn new() -> Self {
        let names = ["proxy", "client"].map(|end| format!("outrigger-{}-{end}", process::id()));
        let made = Self { names };
        let [proxy, client] = &made.names;
        ip(&format!("netns add {proxy}"));
        ip(&format!("netns add {client}"));
        ip(&format!("link add wire netns {proxy} type veth peer name wire netns {client}"));
        for (name, own) in [(proxy, PROXY), (client, CLIENT)] {
            ip(&format!("-n {name} addr add {own}/30 dev wire"));
            ip(&format!("-n {name} link set wire up"));
            ip(&format!("-n {name} link set lo up"));
        }
        made
    }

    /// Runs `act` on a thread inside of one of them.
    fn inside<T: Send>(&self, at: usize, act: impl FnOnce() -> T + Send) -> T {
        namespace::inside(&self.names[at], act)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            namespace::delete(name);
        }
    }
}

fn elsewhere(mut listener: serde_json::Value) -> serde_json::Value {
    listener["address"] = address(SocketAddr::from((PROXY, 0)));
    listener
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn large_sends_to_a_peer_elsewhere_are_lent_until_the_kernel_copies() {
    let namespaces = Namespaces::new();
    namespaces.inside(0, || {
        let body = pattern(0, BODY_BYTES);
        let answer = Answer::status(200).chunks(body.chunks(32 << 10));
        let upstream = Upstream::start(move |_| answer.clone());
        let routes = table("main", vec![any_host(vec![route("/", forward("app"))])]);
        let main = elsewhere(listener("main", http(json!({ "route_config": routes }))));
        let bootstrap = bootstrap(vec![main], vec![cluster("app", &[upstream.address()])]);
        let proxy = Proxy::start(&ProxySetup::new(Io::Uring, bootstrap));
        let there = proxy.listener("main");
        namespaces.inside(1, || {
            for number in 0..CONNECTIONS {
                let mut client = Downstream::connect(there).unwrap();
                for _ in 0..2 {
                    assert!(client.get("/").unwrap().body == body, "connection {number}: it came changed");
                }
            }
        });
        // Counted and given back: the counters are up to a second old.
        let (sends, copied) = wait_for("sends without a copy to be counted", Duration::from_secs(10), || {
            let worker = &proxy.admin_json("/io")["workers"][0];
            let count = |name: &str| worker[name].as_u64().unwrap_or_else(|| panic!("no {name} in {worker}"));
            let all = count("sent_bytes") >= 2 * CONNECTIONS * BODY_BYTES as u64;
            let (sends, copied) = (count("zc_sends"), count("zc_copied"));
            if all && sends > 0 { Ok((sends, copied)) } else { Err(worker.to_string()) }
        });
        println!("{sends} sends without a copy, {copied} of them copied after all");
        if copied > 0 {
            assert!(sends <= CONNECTIONS, "{sends} sends on {CONNECTIONS} connections, {copied} copied: not off again");
        }
    });
}
