//! What the rules capture and what they leave alone, by every backend, family and mode.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::pod::{EXCLUDED, End, Listener, NODE, POD, Pod, SERVICE};

/// The proxy's two ports, the application's, and services elsewhere.
fn listeners(pod: &Pod) -> Vec<Listener> {
    let mut all = vec![pod.listen(End::Pod, "outbound", 15001), pod.listen(End::Pod, "inbound", 15006)];
    all.extend([8080, 9090, 15020, 5000].map(|port| pod.listen(End::Pod, "application", port)));
    all.extend([80, 3306].map(|port| pod.listen(End::Node, "service", port)));
    all
}

#[track_caller]
fn comes_to(answer: &str, name: &str, wanted: SocketAddr, from: IpAddr) {
    assert_eq!(answer, format!("{name} {wanted} from {from}"));
}

/// Each backend, by the flags and the folder of programs that make it come up.
const BACKENDS: [&[&str]; 2] = [&["--backend", "nft"], &["--backend", "iptables"]];

fn captures(pod: &Pod, families: &[usize]) {
    for &family in families {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)][family];
        let at = |addresses: [IpAddr; 2], port| SocketAddr::new(addresses[family], port);
        // To a service, to the pod's own address, and the heartbeat: out to the proxy.
        comes_to(&pod.ask(End::Pod, at(SERVICE, 80)), "outbound", at(SERVICE, 80), POD[family]);
        comes_to(&pod.ask(End::Pod, at(POD, 8080)), "outbound", at(POD, 8080), POD[family]);
        let heartbeat = SocketAddr::new(loopback, 15009);
        comes_to(&pod.ask(End::Pod, heartbeat), "outbound", heartbeat, loopback);
        // Loopback stays alone.
        let own = SocketAddr::new(loopback, 8080);
        comes_to(&pod.ask(End::Pod, own), "application", own, loopback);
        // From outside: in by the proxy; the health port stays alone.
        comes_to(&pod.ask(End::Node, at(POD, 8080)), "inbound", at(POD, 8080), NODE[family]);
        comes_to(&pod.ask(End::Node, at(POD, 15020)), "application", at(POD, 15020), NODE[family]);
        // The proxy itself, by user or by group; its heartbeat is captured all the same.
        for (uid, gid) in [(1337, 5000), (5000, 1337)] {
            comes_to(&pod.ask_as(uid, gid, at(SERVICE, 80)), "service", at(SERVICE, 80), POD[family]);
            comes_to(&pod.ask_as(uid, gid, at(POD, 8080)), "application", at(POD, 8080), POD[family]);
            comes_to(&pod.ask_as(uid, gid, heartbeat), "outbound", heartbeat, loopback);
        }
        comes_to(&pod.ask_as(5000, 5000, at(SERVICE, 80)), "outbound", at(SERVICE, 80), POD[family]);
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn connections_are_captured_by_every_backend() {
    let pod = Pod::new(true);
    let _listeners = listeners(&pod);
    for backend in BACKENDS {
        pod.apply(backend);
        captures(&pod, &[0, 1]);
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn without_ipv6_ipv4_is_captured() {
    let pod = Pod::new(false);
    let _listeners = listeners(&pod);
    for backend in BACKENDS {
        let said = pod.apply(backend);
        assert!(said.contains("no address of IPv6"), "{said}");
        captures(&pod, &[0]);
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn ipv6_passes_where_it_is_off() {
    let pod = Pod::new(true);
    let _listeners = listeners(&pod);
    for backend in BACKENDS {
        pod.apply(&[backend, &["--ipv6", "off"]].concat());
        captures(&pod, &[0]);
        let to = SocketAddr::new(SERVICE[1], 80);
        comes_to(&pod.ask(End::Pod, to), "service", to, POD[1]);
        let to = SocketAddr::new(POD[1], 8080);
        comes_to(&pod.ask(End::Node, to), "application", to, NODE[1]);
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn exclusions_pass() {
    let pod = Pod::new(true);
    let _listeners = listeners(&pod);
    let flags = [
        "--exclude-inbound-ports=9090",
        "--exclude-outbound-cidrs=10.9.0.0/16,fd00:99::/64",
        "--exclude-outbound-ports=3300-3310",
        "--exclude-uids=2001,2002",
        "--exclude-gids=3001",
    ];
    for backend in BACKENDS {
        pod.apply(&[backend, &flags].concat());
        captures(&pod, &[0, 1]);
        for family in [0, 1] {
            let at = |addresses: [IpAddr; 2], port| SocketAddr::new(addresses[family], port);
            comes_to(&pod.ask(End::Node, at(POD, 9090)), "application", at(POD, 9090), NODE[family]);
            comes_to(&pod.ask(End::Pod, at(EXCLUDED, 80)), "service", at(EXCLUDED, 80), POD[family]);
            comes_to(&pod.ask(End::Pod, at(SERVICE, 3306)), "service", at(SERVICE, 3306), POD[family]);
            for (uid, gid) in [(2001, 5000), (2002, 5000), (5000, 3001)] {
                comes_to(&pod.ask_as(uid, gid, at(SERVICE, 80)), "service", at(SERVICE, 80), POD[family]);
            }
        }
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn only_what_is_included_is_captured() {
    let pod = Pod::new(true);
    let _listeners = listeners(&pod);
    // Long lists, so that iptables takes several rules for one.
    let many = "1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31,80,8080";
    let flags = [
        format!("--include-inbound-ports={many}"),
        "--include-outbound-cidrs=203.0.113.0/24,198.18.0.0/15,fd00:203::/64,fd00:198::/32".to_owned(),
        format!("--include-outbound-ports={many}"),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for backend in BACKENDS {
        pod.apply(&[backend, &flags].concat());
        captures(&pod, &[0, 1]);
        for family in [0, 1] {
            let at = |addresses: [IpAddr; 2], port| SocketAddr::new(addresses[family], port);
            comes_to(&pod.ask(End::Node, at(POD, 9090)), "application", at(POD, 9090), NODE[family]);
            comes_to(&pod.ask(End::Pod, at(EXCLUDED, 80)), "service", at(EXCLUDED, 80), POD[family]);
            comes_to(&pod.ask(End::Pod, at(SERVICE, 3306)), "service", at(SERVICE, 3306), POD[family]);
        }
        let none = ["--include-inbound-ports=", "--include-outbound-ports="];
        pod.apply(&[backend, &none].concat());
        let to = SocketAddr::new(SERVICE[0], 80);
        comes_to(&pod.ask(End::Pod, to), "service", to, POD[0]);
        let to = SocketAddr::new(POD[0], 8080);
        comes_to(&pod.ask(End::Node, to), "application", to, NODE[0]);
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn tproxy_leaves_addresses_as_they_are_and_lets_the_source_be_kept() {
    let pod = Pod::new(true);
    let outbound = pod.listen(End::Pod, "outbound", 15001);
    let inbound = pod.listen_transparent("inbound", 15006);
    let application = [8080, 15020].map(|port| pod.listen(End::Pod, "application", port));
    let service = pod.listen(End::Node, "service", 80);
    for backend in BACKENDS {
        pod.apply(&[backend, &["--mode=tproxy"]].concat());
        captures(&pod, &[0, 1]);
        for family in [0, 1] {
            // The proxy speaks to the application in its client's name, whose answers must not leave the pod.
            let to = SocketAddr::new(POD[family], 8080);
            comes_to(&pod.ask_from(NODE[family], to), "application", to, NODE[family]);
            comes_to(&pod.ask_from(EXCLUDED[family], to), "application", to, EXCLUDED[family]);
        }
    }
    drop((outbound, inbound, application, service));
}
