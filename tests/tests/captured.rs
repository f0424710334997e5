//! Purpose: captured traffic with real rules of the kernel: REDIRECT and TPROXY, IPv4 and IPv6, the heartbeat through them,
//! and loops. Run by `make interop`, as root, for it makes network namespaces.
//!
//! Shape: two namespaces, a pod's and a peer's, with a pair of veth devices between them. The workload's connections carry a
//! mark, which the rules look for in place of a uid: test and proxy run under one.
//!
//! Errors: without root, `ip` or `nft` it fails and says so; it is not skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use outrigger_tests::world::namespace::{self, ip};
use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource::{address, bootstrap, merge, opaque_listener};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::{Io, Proxy, ProxySetup, binary, downstream, wait_for};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

const POD: [&str; 2] = ["198.18.7.1", "fd00:7::1"];
const PEER: [&str; 2] = ["198.18.7.2", "fd00:7::2"];
const OUTBOUND: u16 = 15_001;
const INBOUND: u16 = 15_006;
const SERVICE: u16 = 8_080;
/// Of the workload's connections.
const MARK: u32 = 42;
const SOON: Duration = Duration::from_secs(10);

/// Outbound: what is marked. Inbound: what comes by the wire. Heartbeats of anybody.
const REDIRECT: &str = "
table inet outrigger {
  chain output {
    type nat hook output priority -100;
    ip daddr 127.0.0.1 tcp dport 15009 redirect to :15001
    ip6 daddr ::1 tcp dport 15009 redirect to :15001
    meta mark 42 meta l4proto tcp redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    iifname wire meta l4proto tcp redirect to :15006
  }
}";

/// Inbound connections keep their addresses.
const TPROXY: &str = "
table inet outrigger {
  chain prerouting {
    type filter hook prerouting priority mangle;
    iifname wire meta l4proto tcp tproxy to :15006 meta mark set 1 accept
  }
}";

/// A pod's namespace and a peer's.
struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let names = ["pod", "peer"].map(|end| format!("outrigger-{}-{number}-{end}", process::id()));
        let made = Self { names };
        let [pod, peer] = &made.names;
        ip(&format!("netns add {pod}"));
        ip(&format!("netns add {peer}"));
        ip(&format!("link add wire netns {pod} type veth peer name wire netns {peer}"));
        for (name, [v4, v6]) in [(pod, POD), (peer, PEER)] {
            ip(&format!("-n {name} addr add {v4}/30 dev wire"));
            ip(&format!("-n {name} addr add {v6}/64 dev wire nodad"));
            ip(&format!("-n {name} link set wire up"));
            ip(&format!("-n {name} link set lo up"));
        }
        made
    }

    /// Runs `act` on a thread inside of one of them.
    fn inside<T: Send>(&self, at: usize, act: impl FnOnce() -> T + Send) -> T {
        namespace::inside(&self.names[at], act)
    }

    fn pod<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.inside(0, act)
    }

    fn peer<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.inside(1, act)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            namespace::delete(name);
        }
    }
}

/// Puts rules into the namespace of this thread.
fn nft(rules: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("nft: {error}; `make interop` installs it"));
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
}

/// Serves for the life of the test: tells whoever connects which address it came from and was made to.
fn serve(at: SocketAddr) {
    let listening = TcpListener::bind(at).unwrap_or_else(|error| panic!("{at}: {error}"));
    thread::spawn(move || {
        for mut stream in listening.incoming().flatten() {
            let told = format!("{} {}", stream.peer_addr().unwrap().ip(), stream.local_addr().unwrap());
            let _ = stream.write_all(told.as_bytes());
        }
    });
}

/// What is told at `to`; `marked`: as the workload's connection.
fn told(to: SocketAddr, marked: bool) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if marked {
        socket.set_mark(MARK)?;
    }
    socket.connect_timeout(&to.into(), SOON)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

fn captured(name: &str, port: u16, direction: &str, over: Value) -> Value {
    let base = json!({ "address": address((Ipv6Addr::UNSPECIFIED, port).into()), "use_original_dst": true,
        "traffic_direction": direction });
    merge(merge(opaque_listener(name, json!({ "cluster": "pass" })), base), over)
}

fn sidecar(inbound: Value) -> Value {
    let pass =
        json!({ "name": "pass", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "2s" });
    let listeners = vec![captured("out", OUTBOUND, "OUTBOUND", json!({})), captured("in", INBOUND, "INBOUND", inbound)];
    bootstrap(listeners, vec![pass])
}

fn loops(proxy: &Proxy) -> u64 {
    proxy.metric("outrigger_listener_faults_total", &[("kind", "loop")]) as u64
}

fn redirected(io: Io) {
    let spaces = Namespaces::new();
    spaces.peer(|| PEER.iter().for_each(|ip| serve(at(ip, SERVICE))));
    spaces.pod(|| {
        POD.iter().for_each(|ip| serve(at(ip, SERVICE)));
        nft(REDIRECT);
        let proxy = Proxy::start(&ProxySetup::new(io, sidecar(json!({}))).args(&["--capture-heartbeat"]));
        let accepted =
            |name: &str| proxy.metric("outrigger_listener_accepted_connections_total", &[("listener", name)]) as u64;
        for (family, peer) in PEER.iter().enumerate() {
            let there = at(peer, SERVICE);
            let before = accepted("out");
            assert_eq!(
                told(there, true).unwrap(),
                format!("{} {there}", POD[family]),
                "it goes on to where it was going"
            );
            assert!(accepted("out") > before, "through the proxy");
            let here = at(POD[family], SERVICE);
            let inbound = accepted("in");
            let text = spaces.peer(|| told(here, false)).unwrap();
            assert!(text.ends_with(&here.to_string()), "{text}");
            assert_eq!(accepted("in"), inbound + 1, "what comes by the wire goes through the proxy too");
            // The workload's to its own address is outbound like any other.
            assert!(told(here, true).unwrap().ends_with(&here.to_string()));
        }
        // Straight to the listeners, by the wire and by the workload, at every address.
        let connects = |proxy: &Proxy| proxy.metric("outrigger_cluster_connects_total", &[("cluster", "pass")]) as u64;
        let before = (connects(&proxy), loops(&proxy));
        let mut tried = 0;
        for port in [OUTBOUND, INBOUND] {
            for ip in POD.iter().chain(&["127.0.0.1", "::1"]) {
                assert_eq!(told(at(ip, port), true).unwrap_or_default(), "", "{ip}:{port}");
                tried += 1;
            }
            for ip in POD {
                assert_eq!(
                    spaces.peer(|| told(at(ip, port), false)).unwrap_or_default(),
                    "",
                    "{ip}:{port} by the wire"
                );
                tried += 1;
            }
        }
        wait_for("the loops to be counted", SOON, || {
            let counted = loops(&proxy) - before.1;
            if counted == tried { Ok(()) } else { Err(format!("{counted} of {tried}")) }
        });
        assert_eq!(connects(&proxy), before.0, "it never connected to itself");
        // The heartbeat sees rules that go, and rules that come back.
        proxy.wait_metric("outrigger_capture_proven", &[], 1.0);
        nft("delete table inet outrigger");
        wait_for("the loss to be seen", Duration::from_secs(20), || {
            match proxy.metric("outrigger_capture_proven", &[]) as u64 {
                0 => Ok(()),
                _ => Err("proven".to_owned()),
            }
        });
        assert_eq!(downstream::get(proxy.admin(), "/ready").unwrap().status, 503);
        assert!(proxy.log().iter().any(|line| line.contains("capture lost") && line.contains("intercept apply")));
        nft(REDIRECT);
        proxy.wait_metric("outrigger_capture_proven", &[], 1.0);
    });
}

fn transparent(io: Io) {
    let spaces = Namespaces::new();
    spaces.pod(|| {
        nft(TPROXY);
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add fwmark 1 lookup 100"));
            ip(&format!("{family} route add local default dev lo table 100"));
        }
        POD.iter().for_each(|ip| serve(at(ip, SERVICE)));
        let proxy = Proxy::start(&ProxySetup::new(io, sidecar(json!({ "transparent": true }))));
        for (count, ip) in (1..).zip(POD) {
            let here = at(ip, SERVICE);
            let text = spaces.peer(|| told(here, false)).unwrap();
            assert!(text.ends_with(&here.to_string()), "{text}");
            let accepted = proxy.metric("outrigger_listener_accepted_connections_total", &[("listener", "in")]) as u64;
            assert_eq!(accepted, count, "through the proxy");
        }
        let before = loops(&proxy);
        for port in [OUTBOUND, INBOUND] {
            for ip in POD {
                assert_eq!(spaces.peer(|| told(at(ip, port), false)).unwrap_or_default(), "", "{ip}:{port}");
            }
        }
        wait_for("the loops to be counted", SOON, || match loops(&proxy) - before {
            4 => Ok(()),
            counted => Err(format!("{counted}")),
        });
    });
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn redirected_traffic_goes_on_to_where_it_was_going_epoll() {
    redirected(Io::Epoll);
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn redirected_traffic_goes_on_to_where_it_was_going_uring() {
    redirected(Io::Uring);
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn transparent_traffic_goes_on_to_where_it_was_going_epoll() {
    transparent(Io::Epoll);
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn transparent_traffic_goes_on_to_where_it_was_going_uring() {
    transparent(Io::Uring);
}

#[test]
#[ignore = "drops capabilities, which takes root: make interop"]
fn a_transparent_listener_without_the_right_says_what_it_takes() {
    let mut bootstrap = sidecar(json!({ "transparent": true, "address": address((Ipv4Addr::LOCALHOST, 0).into()) }));
    bootstrap["static_resources"]["listeners"].as_array_mut().unwrap().remove(0);
    let scratch = Scratch::new("captured").unwrap();
    let file = scratch.write("bootstrap.json", &bootstrap.to_string()).unwrap();
    let launch = Launch { program: "setpriv".into(), ..Launch::default() }
        .args(["--bounding-set", "-net_admin,-net_raw"])
        .args([binary::find("outrigger-proxy").unwrap().into_os_string(), "-c".into(), file.into_os_string()]);
    let mut process = Process::start("captured", &launch).unwrap();
    process.is_loud = false;
    let status = process.wait_exit(SOON).unwrap();
    let log = process.log().join("\n");
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("listener \"in\"") && log.contains("CAP_NET_ADMIN"), "{log}");
}
