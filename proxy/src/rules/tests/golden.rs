//! The texts of four settings, kept in `golden/`. `OUTRIGGER_BLESS=1` writes them anew; the diff is then to be read.

use std::fs;
use std::path::PathBuf;

use crate::rules::{
    CaptureSettings, Choice, Family, IdList, Mode, NetworkList, Owner, PortList, Ports, Ruleset, iptables,
    listing::Tables, nft,
};

fn ports(text: &str) -> PortList {
    text.parse().unwrap()
}

fn networks(text: &str) -> NetworkList {
    text.parse().unwrap()
}

fn ids(text: &str) -> IdList {
    IdList::parse(text, |_| None).unwrap()
}

fn everything() -> CaptureSettings {
    CaptureSettings {
        mode: Mode::Redirect,
        ports: Ports { outbound: 4001, inbound: 4006, heartbeat: 4009 },
        proxy: Owner { uid: 2102, gid: 2103 },
        inbound_ports: Choice::Only(ports("80,443,8000-8100")),
        inbound_ports_excluded: ports("22,9090"),
        outbound_networks: Choice::Only(networks("10.0.0.0/8,192.0.2.0/24,fd00::/8")),
        outbound_networks_excluded: networks("10.9.0.0/16,169.254.169.254,fd99::/16"),
        outbound_ports: Choice::Only(ports("1,3,5,7,9,11,13,15,17,19,21,23,25,27,29-30,80,443")),
        outbound_ports_excluded: ports("25,3306"),
        uids_excluded: ids("101,102"),
        gids_excluded: ids("500"),
        has_ipv6: true,
    }
}

#[test]
fn the_texts_are_as_kept() {
    let none = CaptureSettings {
        inbound_ports: Choice::Only(PortList::default()),
        outbound_networks: Choice::Only(NetworkList::default()),
        has_ipv6: false,
        ..CaptureSettings::default()
    };
    let tproxy = CaptureSettings { mode: Mode::Tproxy, ..CaptureSettings::default() };
    for (name, settings) in
        [("defaults", CaptureSettings::default()), ("everything", everything()), ("none", none), ("tproxy", tproxy)]
    {
        let ruleset = Ruleset::build(&settings);
        compare(&format!("{name}.nft"), &nft::script(&ruleset));
        for family in ruleset.families() {
            let text = iptables::restore(&ruleset, *family, &Tables::default());
            compare(&format!("{name}.{}", family.as_str().to_ascii_lowercase()), &text);
        }
    }
}

#[track_caller]
fn compare(name: &str, text: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/rules/golden").join(name);
    if std::env::var_os("OUTRIGGER_BLESS").is_some() {
        fs::write(&file, text).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert_eq!(text, kept, "{name} changed: read the difference, then run this with OUTRIGGER_BLESS=1");
}

const SAVED: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:OUTRIGGER_INBOUND - [0:0]\n:OUTRIGGER_OLD - [0:0]\n\
    -A PREROUTING -p tcp -j OUTRIGGER_INBOUND\n-A OUTRIGGER_INBOUND -i lo -j OUTRIGGER_OLD\nCOMMIT\n\
    *nat\n:OUTPUT ACCEPT [0:0]\n:OUTRIGGER_OUTBOUND - [0:0]\n:DOCKER - [0:0]\n\
    -A OUTPUT -d 127.0.0.11/32 -j DOCKER\n-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND\n-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND\n\
    COMMIT\n";

#[test]
fn what_stands_is_replaced_by_name() {
    let ruleset = Ruleset::build(&CaptureSettings::default());
    let text = iptables::restore(&ruleset, Family::V4, &Tables::parse(SAVED));
    let lines: Vec<&str> = text.lines().collect();
    // Jumps go first, each as often as it is there; then what is not wanted; then what is.
    assert_eq!(lines[..3], ["*nat", ":OUTRIGGER_OUTBOUND - [0:0]", ":OUTRIGGER_INBOUND - [0:0]"]);
    assert_eq!(lines[3..5], ["-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND"; 2]);
    assert_eq!(lines[5], "-I OUTPUT 1 -p tcp -j OUTRIGGER_OUTBOUND");
    let mangle = lines.iter().position(|line| *line == "*mangle").unwrap();
    assert_eq!(
        lines[mangle..],
        [
            "*mangle",
            "-D PREROUTING -p tcp -j OUTRIGGER_INBOUND",
            "-F OUTRIGGER_INBOUND",
            "-X OUTRIGGER_INBOUND",
            "-F OUTRIGGER_OLD",
            "-X OUTRIGGER_OLD",
            "COMMIT"
        ]
    );
    assert!(!text.contains("DOCKER"), "what is not ours is left alone: {text}");
}

#[test]
fn removal_touches_only_ours() {
    let text = iptables::remove(&Tables::parse(SAVED));
    assert!(text.starts_with("*nat\n-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND\n"), "{text}");
    assert!(!text.contains("DOCKER") && text.matches("-X ").count() == 3, "{text}");
    assert_eq!(iptables::remove(&Tables::parse("*nat\n:DOCKER - [0:0]\nCOMMIT\n")), "");
}

#[test]
fn tproxy_comes_before_the_redirect_goes() {
    let ruleset = Ruleset::build(&CaptureSettings { mode: Mode::Tproxy, ..CaptureSettings::default() });
    assert!(iptables::restore(&ruleset, Family::V4, &Tables::default()).starts_with("*mangle\n"));
    let ruleset = Ruleset::build(&CaptureSettings::default());
    assert!(iptables::restore(&ruleset, Family::V4, &Tables::default()).starts_with("*nat\n"));
}
