//! Purpose: what a peer elsewhere gets that one on this machine does not, and the other way around: sends without a copy, and
//! pacing. As far as one machine has elsewhere: two network namespaces with a pair of veth devices between them. Run by `make
//! interop`, as root, for it makes namespaces.
//!
//! Shape: [`Namespaces`] are made and deleted with `ip`; whatever a thread starts after [`Namespaces::inside`] moved it
//! is in there too, processes and their sockets.
//!
//! Errors: without root, `ip`, `ss` or a kernel that has BBR it fails and says so; it is not skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{self, Command};
use std::time::Duration;
use std::{fs, iter};

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
    fn new(test: &str) -> Self {
        let names = ["proxy", "client"].map(|end| format!("outrigger-{}-{test}-{end}", process::id()));
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
    let namespaces = Namespaces::new("lent");
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

/// The congestion control of the one established connection that the filter of ss(8) finds here.
fn control(filter: &str) -> String {
    let words = ["-tinHO", "state", "established"].into_iter().chain(filter.split(' '));
    let listed = Command::new("ss").args(words).output().expect("ss, of the package iproute2, can be started");
    let text = String::from_utf8(listed.stdout).unwrap();
    let found: Vec<_> = text.lines().collect();
    let [only] = found[..] else { panic!("{filter}: one connection is looked for, found {text:?}") };
    let known = ["bbr", "reno"].into_iter().find(|name| only.split_whitespace().any(|word| word == *name));
    known.unwrap_or_else(|| panic!("{filter}: neither control in {only}")).to_owned()
}

fn start_at(ip: Ipv4Addr) -> Upstream {
    Upstream::start_at(SocketAddr::from((ip, 0)), |_| Answer::ok("fine"))
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn only_what_leaves_the_machine_is_paced() {
    let namespaces = Namespaces::new("paced");
    // Whoever ends an upstream connects to it once more, and has to be where it is.
    namespaces.inside(1, || {
        let there = start_at(CLIENT);
        [Io::Uring, Io::Epoll].into_iter().for_each(|io| namespaces.inside(0, || each_way(&namespaces, io, &there)));
    });
}

/// Looks at all ways of one proxy, in its namespace.
fn each_way(namespaces: &Namespaces, io: Io, there: &Upstream) {
    fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "bbr").expect("a kernel that has BBR (tcp_bbr)");
    let upstreams = [(Ipv4Addr::LOCALHOST, "loopback", "reno"), (PROXY, "own", "reno")]
        .map(|(ip, name, expected)| (start_at(ip), name, expected));
    let all = || {
        let here = upstreams.iter().map(|(upstream, name, expected)| (upstream, *name, *expected));
        here.chain(iter::once((there, "there", "bbr")))
    };
    let routes = all().map(|(_, name, _)| route(&format!("/{name}"), forward(name))).collect();
    let table = table("main", vec![any_host(routes)]);
    let ways = |name| listener(name, http(json!({ "route_config": table })));
    let clusters = all().map(|(upstream, name, _)| cluster(name, &[upstream.address()])).collect();
    let listeners = vec![elsewhere(ways("wide")), ways("loopback")];
    let proxy = Proxy::start(&ProxySetup::new(io, bootstrap(listeners, clusters)));
    let near = proxy.listener("loopback");
    let mut client = Downstream::connect(near).unwrap();
    for (upstream, name, expected) in all() {
        assert_eq!(client.get(&format!("/{name}")).unwrap().status, 200);
        let found = control(&format!("dst {}", upstream.address()));
        assert_eq!(found, expected, "{io:?}, to the endpoint at {}", upstream.address());
    }
    assert_eq!(control(&format!("sport = :{}", near.port())), "reno", "{io:?}, to a client on this machine");
    let wide = proxy.listener("wide");
    namespaces.inside(1, || {
        let mut client = Downstream::connect(wide).unwrap();
        assert_eq!(client.get("/there").unwrap().status, 200);
        namespaces.inside(0, || {
            assert_eq!(control(&format!("sport = :{}", wide.port())), "bbr", "{io:?}, to a client elsewhere");
        });
    });
}
