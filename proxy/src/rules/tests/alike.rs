//! On random settings and connections: the rules, the nft text and the iptables text decide alike, and as the words of the
//! settings say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::reader::{Seen, iptables as read_iptables, nft as read_nft};
use crate::rules::{
    Arriving, CaptureSettings, Choice, Decision, Family, HEALTH_PORT, IdList, Leaving, Mode, NetworkList, Owner,
    PortList, Ports, Ruleset, iptables, listing::Tables, nft,
};

/// Few ports, so that lists and connections meet.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![1_u16..60, Just(HEALTH_PORT), Just(15009_u16), Just(65535_u16)]
}

fn port_list() -> impl Strategy<Value = PortList> {
    let entry = prop_oneof![
        port().prop_map(|port| port.to_string()),
        (port(), port()).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
    ];
    prop::collection::vec(entry, 0..24).prop_map(|entries| entries.join(",").parse().unwrap())
}

const ADDRESSES: [&str; 12] = [
    "127.0.0.1",
    "127.9.9.9",
    "10.0.0.1",
    "10.1.2.3",
    "10.128.0.1",
    "192.0.2.7",
    "198.18.0.1",
    "::1",
    "fd00::1",
    "fd00:0:0:1::1",
    "2001:db8::5",
    "fe80::1",
];

const NETWORKS: [&str; 12] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.1.0.0/16",
    "10.1.2.3",
    "192.0.2.0/24",
    "127.0.0.0/8",
    "fd00::/8",
    "fd00::/64",
    "2001:db8::5",
    "128.0.0.0/1",
];

fn network_list() -> impl Strategy<Value = NetworkList> {
    prop::collection::vec(prop::sample::select(&NETWORKS[..]), 0..5).prop_map(|list| list.join(",").parse().unwrap())
}

fn id_list() -> impl Strategy<Value = IdList> {
    prop::collection::vec(0_u32..6, 0..3).prop_map(|ids| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        IdList::parse(&ids.join(","), |_| None).unwrap()
    })
}

fn choice<T: std::fmt::Debug + Clone>(list: impl Strategy<Value = T>) -> impl Strategy<Value = Choice<T>> {
    prop::option::of(list).prop_map(|list| list.map_or(Choice::All, Choice::Only))
}

fn settings() -> impl Strategy<Value = CaptureSettings> {
    let inbound = (choice(port_list()), port_list());
    let outbound = (choice(network_list()), network_list(), choice(port_list()), port_list());
    let owners = ((1_u32..6, 1_u32..6), id_list(), id_list());
    (any::<bool>(), inbound, outbound, owners, any::<bool>()).prop_map(
        |(is_tproxy, inbound, outbound, ((uid, gid), uids_excluded, gids_excluded), has_ipv6)| CaptureSettings {
            mode: if is_tproxy { Mode::Tproxy } else { Mode::Redirect },
            ports: Ports { outbound: 15001, inbound: 15006, heartbeat: 15009 },
            proxy: Owner { uid, gid },
            inbound_ports: inbound.0,
            inbound_ports_excluded: inbound.1,
            outbound_networks: outbound.0,
            outbound_networks_excluded: outbound.1,
            outbound_ports: outbound.2,
            outbound_ports_excluded: outbound.3,
            uids_excluded,
            gids_excluded,
            has_ipv6,
        },
    )
}

fn seen() -> impl Strategy<Value = Seen> {
    let address = prop::sample::select(&ADDRESSES[..]).prop_map(|text| text.parse::<IpAddr>().unwrap());
    (address, port(), (0_u32..6, 0_u32..6), any::<bool>(), any::<bool>()).prop_map(
        |(address, port, (uid, gid), by_loopback, has_foreign_source)| Seen {
            destination: SocketAddr::new(address, port),
            owner: Owner { uid, gid },
            by_loopback,
            has_foreign_source,
        },
    )
}

fn takes_port(choice: &Choice<PortList>, port: u16) -> bool {
    match choice {
        Choice::All => true,
        Choice::Only(list) => list.contains(port),
    }
}

fn holds_network(list: &NetworkList, address: IpAddr) -> bool {
    list.prefixes().iter().any(|network| network.contains(address))
}

/// As the contract words it.
fn leaving_by_words(settings: &CaptureSettings, seen: &Seen) -> Decision {
    let (address, port) = (seen.destination.ip(), seen.destination.port());
    let is_localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&address);
    let is_captured = if address.is_ipv6() && !settings.has_ipv6 {
        false
    } else if is_localhost && port == settings.ports.heartbeat {
        true
    } else {
        let passes = seen.owner.uid == settings.proxy.uid
            || seen.owner.gid == settings.proxy.gid
            || settings.uids_excluded.ids().contains(&seen.owner.uid)
            || settings.gids_excluded.ids().contains(&seen.owner.gid)
            || address.is_loopback()
            || holds_network(&settings.outbound_networks_excluded, address)
            || settings.outbound_ports_excluded.contains(port);
        let is_wanted = match &settings.outbound_networks {
            Choice::All => true,
            Choice::Only(list) => holds_network(list, address),
        };
        !passes && is_wanted && takes_port(&settings.outbound_ports, port)
    };
    if is_captured { Decision::Captured(settings.ports.outbound) } else { Decision::Passed }
}

fn arriving_by_words(settings: &CaptureSettings, seen: &Seen) -> Decision {
    let port = seen.destination.port();
    let is_captured = (settings.has_ipv6 || seen.destination.is_ipv4())
        && !seen.by_loopback
        && port != HEALTH_PORT
        && !settings.inbound_ports_excluded.contains(port)
        && takes_port(&settings.inbound_ports, port);
    if is_captured { Decision::Captured(settings.ports.inbound) } else { Decision::Passed }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn both_texts_decide_as_the_rules_do(settings in settings(), seen in prop::collection::vec(seen(), 40)) {
        let ruleset = Ruleset::build(&settings);
        let script = nft::script(&ruleset);
        let texts = Family::ALL.map(|family| iptables::restore(&ruleset, family, &Tables::default()));
        for seen in seen {
            let family = Family::of(seen.destination.ip());
            let read = |chain: &str| match family {
                Family::V4 => read_iptables(&texts[0], chain, &seen),
                // Where IPv6 is off, its programs are not run.
                Family::V6 if !settings.has_ipv6 => Decision::Passed,
                Family::V6 => read_iptables(&texts[1], chain, &seen),
            };
            let leaving = ruleset.decide_leaving(&Leaving { destination: seen.destination, owner: seen.owner });
            prop_assert_eq!(leaving, leaving_by_words(&settings, &seen), "{:?}\n{}", seen, script);
            prop_assert_eq!(leaving, read_nft(&script, "outbound", &seen), "{:?}\n{}", seen, script);
            prop_assert_eq!(leaving, read("OUTRIGGER_OUTBOUND"), "{:?}\n{}", seen, texts[0]);
            let Seen { destination, by_loopback, has_foreign_source, .. } = seen;
            let arriving = ruleset.decide_arriving(&Arriving { destination, by_loopback, has_foreign_source });
            prop_assert_eq!(arriving, arriving_by_words(&settings, &seen), "{:?}\n{}", seen, script);
            prop_assert_eq!(arriving, read_nft(&script, "inbound", &seen), "{:?}\n{}", seen, script);
            prop_assert_eq!(arriving, read("OUTRIGGER_INBOUND"), "{:?}\n{}", seen, texts[0]);
        }
    }
}
