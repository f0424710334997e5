//! Verifying: what is missing, changed or in the way is named.

use crate::pod::{End, Pod};

const NFT: &str = "--backend=nft";
const IPTABLES: &str = "--backend=iptables";

/// `outbound/proxy-user` of every rule of ours in a listing, with the words before it.
fn named(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| {
        let (before, comment) = line.split_once("\"outrigger ")?;
        let (comment, after) = comment.split_once('"')?;
        Some((format!("{before}{after}"), comment.split(' ').next()?.to_owned()))
    });
    lines.collect()
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn each_rule_taken_from_nft_is_missed_by_name() {
    let pod = Pod::new(true);
    for mode in ["--mode=redirect", "--mode=tproxy"] {
        let flags = [NFT, mode, "--exclude-uids=7", "--exclude-outbound-cidrs=10.0.0.0/8,fd00:99::/32"];
        pod.apply(&[&["--verify"], &flags[..]].concat());
        let listing = pod.run("nft", &["-a", "list", "table", "inet", "outrigger"]);
        let rules = named(&listing);
        assert!(rules.len() >= 12, "{listing}");
        for (text, name) in rules {
            let handle = text.rsplit(' ').next().unwrap();
            let (chain, rule) = name.split_once('/').unwrap();
            // An answer to a kept source has a chain to itself.
            let chain = chain.replace('-', "_");
            pod.run("nft", &["delete", "rule", "inet", "outrigger", &chain, "handle", handle]);
            let said = pod.intercept(&[&["verify", "--timeout=2s"], &flags[..]].concat());
            said.fails(1, &["failed: rules"]);
            assert!(said.out.contains(&format!("rule {name} is missing")), "{rule}: {}", said.out);
            pod.apply(&flags);
        }
        pod.intercept(&[&["verify"], &flags[..]].concat()).fine();
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn each_rule_taken_from_iptables_is_missed_by_name() {
    let pod = Pod::new(true);
    for (program, save) in [("iptables", "iptables-save"), ("ip6tables", "ip6tables-save")] {
        for mode in ["--mode=redirect", "--mode=tproxy"] {
            let flags = [IPTABLES, mode, "--exclude-gids=7"];
            pod.apply(&[&["--verify"], &flags[..]].concat());
            for table in ["nat", "mangle"] {
                for (text, name) in named(&pod.run(save, &["-t", table])) {
                    let chain = text.split(' ').nth(1).unwrap().to_owned();
                    let listing = pod.run(save, &["-t", table]);
                    let own = format!("-A {chain} ");
                    let mut rules = listing.lines().filter(|line| line.starts_with(&own));
                    let number = rules.position(|line| line.contains(&format!("outrigger {name} "))).unwrap() + 1;
                    pod.run(program, &["-t", table, "-D", &chain, &number.to_string()]);
                    let said = pod.intercept(&[&["verify", "--timeout=2s"], &flags[..]].concat());
                    said.fails(1, &["failed: rules"]);
                    assert!(said.out.contains(&format!("rule {name} is missing")), "{}", said.out);
                    pod.apply(&flags);
                }
            }
        }
    }
    pod.apply(&[IPTABLES]);
    pod.run("ip6tables", &["-t", "nat", "-D", "PREROUTING", "-p", "tcp", "-j", "OUTRIGGER_INBOUND"]);
    let said = pod.intercept(&["verify", IPTABLES]);
    said.fails(1, &["hook inbound IPv6"]);
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn other_settings_than_those_applied_are_told() {
    let pod = Pod::new(true);
    for backend in [NFT, IPTABLES] {
        pod.apply(&[backend, "--exclude-inbound-ports=9090"]);
        let said = pod.intercept(&["verify", backend, "--exclude-inbound-ports=9091", "--exclude-uids=7"]);
        said.fails(1, &["rules inbound", "rules outbound"]);
        for words in ["inbound/excluded-ports was made by other settings", "outbound/excluded-users is missing"] {
            assert!(said.out.contains(words), "{}", said.out);
        }
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn without_rules_it_says_so() {
    let pod = Pod::new(true);
    pod.intercept(&["verify"]).fails(1, &["there are no rules of ours", "intercept apply"]);
    // Rules are there, but the hook is not: the connection tells.
    pod.apply(&[IPTABLES]);
    pod.run("iptables", &["-t", "nat", "-D", "OUTPUT", "-p", "tcp", "-j", "OUTRIGGER_OUTBOUND"]);
    let said = pod.intercept(&["verify", IPTABLES]);
    said.fails(1, &["hook outbound IPv4", "heartbeat IPv4", "outbound IPv4"]);
    assert!(said.out.contains("Connection refused"), "the pod's own address refuses at once: {}", said.out);
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn another_mesh_is_named() {
    let pod = Pod::new(true);
    for backend in [NFT, IPTABLES] {
        pod.apply(&[backend]);
        for (program, chain, mesh) in [
            ("iptables", "ISTIO_OUTPUT", "Istio"),
            ("ip6tables", "PROXY_INIT_OUTPUT", "Linkerd"),
            ("iptables-legacy", "CONSUL_PROXY_OUTPUT", "Consul"),
        ] {
            pod.run(program, &["-t", "nat", "-N", chain]);
            let said = pod.intercept(&["verify", backend]);
            said.fails(1, &["others"]);
            assert!(said.out.contains(chain) && said.out.contains(mesh), "{}", said.out);
            pod.run(program, &["-t", "nat", "-X", chain]);
        }
        pod.run(
            "iptables",
            &["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "REDIRECT", "--to-ports", "8"],
        );
        let said = pod.intercept(&["verify", backend]).fine();
        assert!(
            said.contains("warning")
                && said.contains("chain OUTPUT of table")
                && said.contains("diverts connections, too"),
            "{said}"
        );
        pod.run("iptables", &["-t", "nat", "-F", "OUTPUT"]);
        pod.intercept(&["remove"]).fine();
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn ports_that_are_taken_are_told() {
    let pod = Pod::new(true);
    pod.apply(&[]);
    let inbound = pod.listen(End::Pod, "something", 15006);
    pod.intercept(&["verify"]).fails(1, &["port 15006 IPv4", "port 15006 IPv6"]);
    drop(inbound);
    // On the outbound port, something that answers, but not as the proxy does; then as it does.
    let outbound = pod.listen(End::Pod, "something", 15001);
    let said = pod.intercept(&["verify"]);
    said.fails(1, &["heartbeat IPv4", "heartbeat IPv6"]);
    assert!(said.out.contains("not the proxy"), "{}", said.out);
    drop(outbound);
    let proxy = pod.listen(End::Pod, "outrigger-heartbeat 4711", 15001);
    let said = pod.intercept(&["verify"]).fine();
    assert!(said.contains("answered by the proxy"), "{said}");
    drop(proxy);
    pod.intercept(&["verify"]).fine();
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn the_route_for_marked_packets_is_missed() {
    let pod = Pod::new(true);
    pod.apply(&["--mode=tproxy", "--verify"]);
    pod.run("ip", &["-6", "rule", "del", "fwmark", "1337", "lookup", "1337"]);
    pod.intercept(&["verify", "--mode=tproxy"]).fails(1, &["routing IPv6"]);
    pod.apply(&["--mode=tproxy", "--verify"]);
    pod.run("ip", &["route", "del", "local", "default", "dev", "lo", "table", "1337"]);
    let said = pod.intercept(&["verify", "--mode=tproxy"]);
    said.fails(1, &["routing IPv4"]);
    assert!(said.out.contains("local default dev lo table 1337"), "{}", said.out);
    pod.apply(&[]);
    for family in ["-4", "-6"] {
        let rules = pod.run("ip", &[family, "rule", "list"]);
        assert!(!rules.contains("1337"), "without TPROXY no route for it: {rules}");
    }
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn what_cannot_be_tried_is_told() {
    let pod = Pod::new(true);
    // Nothing outbound is captured: only the heartbeat proves the rules.
    let said = pod.apply(&["--verify", "--include-outbound-cidrs="]);
    assert!(said.contains("skipped  outbound IPv4") && said.contains("ok       heartbeat IPv6"), "{said}");
    // Only one network is: an address in it is tried.
    let said = pod.apply(&["--verify", "--include-outbound-cidrs=203.0.113.0/24,fd00:203::/64"]);
    assert!(said.contains("203.0.113.0:443") && said.contains("[fd00:203::]:443"), "{said}");
    // Without a route to the outside the pod's own address of IPv6 is tried.
    for family in ["-4", "-6"] {
        pod.run("ip", &[family, "route", "del", "default"]);
    }
    let said = pod.apply(&["--verify"]);
    assert!(said.contains("skipped  outbound IPv4") && said.contains("[fd00:198:18:2::1]:443"), "{said}");
}

/// Connections from one port to two destinations are alike once both are brought to the proxy: the kernel gives the
/// second another port, which once in thousands of starts kept a pod from starting.
#[test]
#[ignore = "makes network namespaces: make interop"]
fn a_connection_whose_port_the_kernel_changed_is_known() {
    let pod = Pod::new(true);
    for mode in ["--mode=redirect", "--mode=tproxy"] {
        pod.apply(&[NFT, mode]);
        pod.run("sysctl", &["-q", "-w", "net.ipv4.ip_local_port_range=40000 40001"]);
        let out = pod.intercept(&["verify", "--timeout=5s", NFT, mode]).fine();
        assert!(out.matches("outbound IPv4: a connection").count() >= 2, "{out}");
    }
}
