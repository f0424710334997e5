//! Applying, applying again, changing, removing; what is refused and what is lacking.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use outrigger_tests::world::binary;
use outrigger_tests::world::scratch::Scratch;

use crate::pod::{Pod, Said};

/// One that has tables already, as a pod of some platform may: so that "as before" is the same text.
fn with_rules_of_others() -> Pod {
    let pod = Pod::new(true);
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        for (table, chain) in [("nat", "OUTPUT"), ("nat", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "OUTPUT")]
        {
            pod.run(program, &["-t", table, "-A", chain, "-p", "udp", "--dport", "9", "-j", "ACCEPT"]);
        }
    }
    pod.run("nft", &["add table inet theirs { chain c { type filter hook input priority 0; udp dport 9 accept; }; }"]);
    pod
}

/// A folder of programs to be found first: the make named, as the one that is the default.
fn only(make: &str) -> Scratch {
    let folder = Scratch::new("programs").unwrap();
    for tables in ["iptables", "ip6tables"] {
        for what in ["save", "restore"] {
            let from = format!("/usr/sbin/{}-{what}", make.replacen("iptables", tables, 1));
            std::os::unix::fs::symlink(&from, folder.path().join(format!("{tables}-{what}"))).unwrap();
        }
    }
    folder
}

/// As `outrigger-proxy intercept` with that folder first in PATH.
fn intercept_with(pod: &Pod, programs: &Scratch, args: &[&str]) -> Said {
    let proxy = binary::find("outrigger-proxy").unwrap();
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", programs.path().display());
    Said::of(pod.command("env").arg(path).arg(proxy).arg("intercept").args(args).output().unwrap())
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn applying_twice_is_applying_once_and_removing_leaves_what_was_before() {
    let pod = with_rules_of_others();
    let before = pod.ruleset();
    let settings: [&[&str]; 4] = [
        &[],
        &["--mode=tproxy"],
        &["--exclude-outbound-ports=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18", "--exclude-uids=1,2,3"],
        &["--ipv6=off", "--include-inbound-ports=80"],
    ];
    let nft = Scratch::new("programs").unwrap();
    let backends = [("nft", nft), ("iptables", only("iptables-nft")), ("iptables", only("iptables-legacy"))];
    for (backend, programs) in &backends {
        for flags in settings {
            let args = [&["apply", "--backend", backend], flags].concat();
            intercept_with(&pod, programs, &args).fine();
            let once = pod.ruleset();
            assert_ne!(once, before, "{args:?} did nothing");
            intercept_with(&pod, programs, &args).fine();
            assert_eq!(pod.ruleset(), once, "{args:?}, twice");
        }
        intercept_with(&pod, programs, &["remove"]).fine();
        assert_eq!(pod.ruleset(), before, "{backend}, removed");
    }
    // From any to any: nothing of the one before stays.
    for (from, from_programs) in &backends {
        for (to, to_programs) in &backends {
            intercept_with(&pod, to_programs, &["apply", "--backend", to]).fine();
            let wanted = pod.ruleset();
            intercept_with(&pod, from_programs, &["apply", "--backend", from, "--mode=tproxy"]).fine();
            intercept_with(&pod, to_programs, &["apply", "--backend", to]).fine();
            assert_eq!(pod.ruleset(), wanted, "from {from} to {to}");
        }
    }
    pod.intercept(&["remove"]).fine();
    assert_eq!(pod.ruleset(), before);
    assert!(pod.intercept(&["remove"]).fine().contains("nothing of ours"));
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn a_dry_run_prints_what_the_programs_take_and_changes_nothing() {
    let pod = Pod::new(true);
    for mode in ["redirect", "tproxy"] {
        let before = pod.ruleset();
        let mode = format!("--mode={mode}");
        let script = pod.apply(&["--dry-run", "--backend=nft", &mode]);
        assert_eq!(pod.ruleset(), before);
        let folder = Scratch::new("dry").unwrap();
        pod.run("nft", &["-f", &folder.write("script.nft", &script).unwrap().to_string_lossy()]);
        let by_hand = pod.run("nft", &["list", "table", "inet", "outrigger"]);
        pod.apply(&["--backend=nft", &mode]);
        assert_eq!(pod.run("nft", &["list", "table", "inet", "outrigger"]), by_hand);
        pod.intercept(&["remove"]).fine();
        let text = pod.apply(&["--dry-run", "--backend=iptables", &mode]);
        let (_, text) = text.split_once("# iptables-restore --noflush\n").unwrap();
        let (v4, v6) = text.split_once("# ip6tables-restore --noflush\n").unwrap();
        for (program, text) in [("iptables-restore", v4), ("ip6tables-restore", v6)] {
            let file = folder.write(program, text).unwrap();
            pod.run(program, &["--noflush", &file.to_string_lossy()]);
        }
        // Chains are listed in the order in which they were made.
        let listed = || {
            let text = pod.run("nft", &["list", "ruleset"]);
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        let by_hand = listed();
        pod.intercept(&["remove"]).fine();
        pod.apply(&["--backend=iptables", &mode]);
        assert_eq!(listed(), by_hand);
        assert!(by_hand.contains("OUTRIGGER_OUTBOUND"));
        pod.intercept(&["remove"]).fine();
    }
}

/// As a runtime would start the init container: uid 0, one capability, every file system read-only but /dev.
fn confined(pod: &Pod, capability: &str, args: &[&str]) -> Said {
    confined_with(pod, capability, &Scratch::new("programs").unwrap(), args)
}

fn confined_with(pod: &Pod, capability: &str, programs: &Scratch, args: &[&str]) -> Said {
    let script = "set -e; mount --make-rprivate /; \
        while read -r _ _ _ _ point _; do case $point in /proc*|/sys*|/dev*) ;; \
        *) mount -o remount,bind,ro \"$point\" 2>/dev/null || true ;; esac; done < /proc/self/mountinfo; \
        if touch /outrigger-can-write /run/outrigger-can-write 2>/dev/null; then echo 'not read-only' >&2; exit 99; fi; \
        bounding=$1; shift; exec setpriv --bounding-set=\"$bounding\" --inh-caps=-all --no-new-privs \"$@\"";
    let bounding = if capability.is_empty() { "-all".to_owned() } else { format!("-all,+{capability}") };
    let proxy = binary::find("outrigger-proxy").unwrap();
    let mut command = pod.command("env");
    command.arg(format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", programs.path().display()));
    command.args(["unshare", "--mount", "sh", "-c", script, "sh", &bounding]).arg(proxy).arg("intercept").args(args);
    Said::of(command.output().unwrap())
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn one_capability_and_a_read_only_root_are_enough() {
    let pod = Pod::new(true);
    for backend in ["--backend=nft", "--backend=iptables"] {
        for mode in ["--mode=redirect", "--mode=tproxy"] {
            confined(&pod, "net_admin", &["apply", "--verify", backend, mode]).fine();
            confined(&pod, "net_admin", &["verify", backend, mode]).fine();
            confined(&pod, "net_admin", &["remove"]).fine();
        }
    }
    // The old tables' programs want a lock file, and a raw socket.
    let legacy = only("iptables-legacy");
    let said = confined_with(&pod, "net_admin", &legacy, &["apply", "--backend=iptables"]).fine();
    assert!(said.contains("(nf_tables)"), "without a raw socket the other make is taken: {said}");
    for args in [&["apply", "--backend=iptables", "--verify"][..], &["remove"]] {
        confined_with(&pod, "net_admin,+net_raw", &legacy, args).fine();
    }
    pod.run("iptables-legacy", &["-t", "nat", "-N", "OUTRIGGER_OUTBOUND"]);
    let said = confined(&pod, "net_admin", &["remove"]).fine();
    assert!(said.contains("looking there takes CAP_NET_RAW"), "{said}");
    let said = confined(&pod, "net_admin,+net_raw", &["remove"]).fine();
    assert!(said.contains("removed chains OUTRIGGER_* of iptables-legacy"), "{said}");
    for action in ["apply", "remove", "verify"] {
        confined(&pod, "", &[action]).fails(1, &["CAP_NET_ADMIN is lacking", "securityContext.capabilities.add"]);
    }
}

fn fake(folder: &Scratch, name: &str, script: &str) {
    let file = folder.write(name, &format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn what_the_kernel_lacks_is_named() {
    let pod = Pod::new(true);
    // As nft fails where the kernel has no NAT: it takes a table, but no such chain.
    let no_nat = Scratch::new("programs").unwrap();
    fake(
        &no_nat,
        "nft",
        "if grep -q 'type nat'; then echo 'Error: Could not process rule: No such file or directory' >&2; exit 1; fi",
    );
    intercept_with(&pod, &no_nat, &["apply", "--backend=nft"])
        .fails(1, &["nft_chain_nat", "No such file or directory", "load"]);
    let said = intercept_with(&pod, &no_nat, &["apply"]).fine();
    assert!(said.contains("backend iptables") && said.contains("since nft: "), "{said}");
    pod.intercept(&["remove"]).fine();
    let no_tproxy = Scratch::new("programs").unwrap();
    fake(&no_tproxy, "nft", "if grep -q tproxy; then echo 'Error: Could not process rule' >&2; exit 1; fi");
    intercept_with(&pod, &no_tproxy, &["apply", "--backend=nft", "--mode=tproxy"]).fails(1, &["lack nft_tproxy"]);
    // Nothing works: all that was tried is told.
    for make in ["iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        for what in ["save", "restore"] {
            fake(&no_nat, &format!("{make}-{what}"), "echo 'Table does not exist' >&2; exit 3");
        }
    }
    intercept_with(&pod, &no_nat, &["apply"]).fails(
        1,
        &[
            "no packet filter takes the rules",
            "nft: ",
            "iptables: ",
            "iptables-nft: ",
            "iptables-legacy: ",
            "iptable_nat",
        ],
    );
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn nothing_is_left_of_rules_that_fail() {
    let pod = Pod::new(true);
    let before = pod.ruleset();
    // IPv6's program fails when it is to commit, after IPv4's was committed.
    let programs = only("iptables-nft");
    fs::remove_file(programs.path().join("ip6tables-restore")).unwrap();
    fake(
        &programs,
        "ip6tables-restore",
        "case \"$*\" in *--test*|*--version*) exec /usr/sbin/ip6tables-nft-restore \"$@\";; \
         *) echo 'no memory' >&2; exit 4;; esac",
    );
    intercept_with(&pod, &programs, &["apply", "--backend=iptables"]).fails(1, &["IPv6", "no memory"]);
    let after = pod.ruleset();
    assert!(!after.contains("OUTRIGGER"), "{before}\n{after}");
}

#[test]
#[ignore = "makes network namespaces: make interop"]
fn what_it_says_is_one_json_object_where_asked() {
    let pod = Pod::new(true);
    let dry: serde_json::Value = serde_json::from_str(&pod.apply(&["--dry-run", "-o", "json"])).unwrap();
    assert!(dry["dryRun"].as_str().unwrap().contains("table inet outrigger {"), "{dry}");
    let said = pod.apply(&["--verify", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&told["action"], &told["ok"]), (&"apply".into(), &true.into()), "{told}");
    let checks = told["checks"].as_array().unwrap();
    assert!(checks.len() > 6 && checks.iter().all(|check| check["outcome"] == "passed"), "{told}");
    pod.run("nft", &["flush", "chain", "inet", "outrigger", "inbound"]);
    let failed = pod.intercept(&["verify", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&failed.out).unwrap();
    failed.fails(1, &["rules inbound"]);
    assert_eq!(told["ok"], false, "{told}");
    assert!(told["error"].as_str().unwrap().contains("rules inbound"), "{told}");
}
