//! From settings to rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::list::{NetworkList, PortRange};
use super::model::{Chain, ChainRole, Family, Rule, Ruleset, Test, Verdict};
use super::settings::{CaptureSettings, Choice, HEALTH_PORT, Mode};
use crate::config::IpPrefix;

impl Ruleset {
    /// The rules that do what the settings say.
    pub fn build(settings: &CaptureSettings) -> Self {
        let mut chains = vec![Chain { role: ChainRole::Outbound, rules: outbound(settings) }];
        match settings.mode {
            Mode::Redirect => chains.push(Chain { role: ChainRole::Inbound, rules: inbound(settings) }),
            Mode::Tproxy => {
                chains.push(Chain { role: ChainRole::InboundTproxy, rules: inbound_tproxy(settings) });
                let back = rule("kept-source", vec![Test::ReplyOfKept], Verdict::RouteBack);
                chains.push(Chain { role: ChainRole::KeptSource, rules: vec![back] });
            }
        }
        if !settings.has_ipv6 {
            for chain in &mut chains {
                chain.rules.retain(|rule| rule.family() != Some(Family::V6));
                chain.rules.insert(0, rule("ipv6-off", vec![Test::Ipv6], Verdict::Pass));
            }
        }
        Self { chains, has_ipv6: settings.has_ipv6 }
    }

    /// The families that have rules.
    pub fn families(&self) -> &'static [Family] {
        if self.has_ipv6 { &Family::ALL } else { &[Family::V4] }
    }
}

fn rule(name: &'static str, tests: Vec<Test>, verdict: Verdict) -> Rule {
    Rule { name, tests, verdict }
}

/// Names of one rule for each family, or for both where nothing tells them apart.
struct Names {
    v4: &'static str,
    v6: &'static str,
    both: &'static str,
}

/// One rule for each family that has a network among these.
fn by_family(names: &Names, networks: &[IpPrefix], others: &[Test], verdict: Verdict) -> Vec<Rule> {
    let of = |family, name| {
        let own: Vec<IpPrefix> =
            networks.iter().copied().filter(|network| Family::of(network.address()) == family).collect();
        (!own.is_empty()).then(|| {
            let mut tests = vec![Test::Destination(own)];
            tests.extend_from_slice(others);
            rule(name, tests, verdict)
        })
    };
    [of(Family::V4, names.v4), of(Family::V6, names.v6)].into_iter().flatten().collect()
}

fn network(address: impl Into<IpAddr>, bits: u8) -> Option<IpPrefix> {
    IpPrefix::new(address.into(), bits)
}

/// The ports captured, as a test; `None` when there is none.
fn port_tests(choice: &Choice<super::PortList>) -> Option<Vec<Test>> {
    match choice {
        Choice::All => Some(Vec::new()),
        Choice::Only(list) if list.ranges().is_empty() => None,
        Choice::Only(list) => Some(vec![Test::Port(list.ranges().to_vec())]),
    }
}

/// The heartbeat comes first, of any user: it is to prove the rules to the proxy itself. What goes to the pod's own
/// address is outbound like any other; only loopback destinations stay alone.
fn outbound(settings: &CaptureSettings) -> Vec<Rule> {
    const HEARTBEAT: Names = Names { v4: "heartbeat-ipv4", v6: "heartbeat-ipv6", both: "heartbeat" };
    const LOOPBACK: Names = Names { v4: "loopback-ipv4", v6: "loopback-ipv6", both: "loopback" };
    const EXCLUDED: Names =
        Names { v4: "excluded-networks-ipv4", v6: "excluded-networks-ipv6", both: "excluded-networks" };
    const CAPTURE: Names = Names { v4: "capture-ipv4", v6: "capture-ipv6", both: "capture" };
    let hosts: Vec<IpPrefix> =
        [network(Ipv4Addr::LOCALHOST, 32), network(Ipv6Addr::LOCALHOST, 128)].into_iter().flatten().collect();
    let loopback: Vec<IpPrefix> =
        [network(Ipv4Addr::new(127, 0, 0, 0), 8), network(Ipv6Addr::LOCALHOST, 128)].into_iter().flatten().collect();
    let to_proxy = Verdict::Redirect(settings.ports.outbound);
    let heartbeat = [Test::Port(vec![PortRange::one(settings.ports.heartbeat)])];
    let mut rules = by_family(&HEARTBEAT, &hosts, &heartbeat, to_proxy);
    rules.push(rule("proxy-user", vec![Test::User(vec![settings.proxy.uid])], Verdict::Pass));
    rules.push(rule("proxy-group", vec![Test::Group(vec![settings.proxy.gid])], Verdict::Pass));
    if !settings.uids_excluded.ids().is_empty() {
        rules.push(rule("excluded-users", vec![Test::User(settings.uids_excluded.ids().to_vec())], Verdict::Pass));
    }
    if !settings.gids_excluded.ids().is_empty() {
        rules.push(rule("excluded-groups", vec![Test::Group(settings.gids_excluded.ids().to_vec())], Verdict::Pass));
    }
    rules.extend(by_family(&LOOPBACK, &loopback, &[], Verdict::Pass));
    rules.extend(by_family(&EXCLUDED, settings.outbound_networks_excluded.prefixes(), &[], Verdict::Pass));
    if !settings.outbound_ports_excluded.ranges().is_empty() {
        let ports = vec![Test::Port(settings.outbound_ports_excluded.ranges().to_vec())];
        rules.push(rule("excluded-ports", ports, Verdict::Pass));
    }
    if let Some(ports) = port_tests(&settings.outbound_ports) {
        match &settings.outbound_networks {
            Choice::All => rules.push(rule(CAPTURE.both, ports, to_proxy)),
            Choice::Only(list) => rules.extend(by_family(&CAPTURE, NetworkList::prefixes(list), &ports, to_proxy)),
        }
    }
    rules
}

fn excluded_inbound(settings: &CaptureSettings) -> Rule {
    let ports = settings.inbound_ports_excluded.clone().with(HEALTH_PORT);
    rule("excluded-ports", vec![Test::Port(ports.ranges().to_vec())], Verdict::Pass)
}

fn inbound(settings: &CaptureSettings) -> Vec<Rule> {
    let mut rules = vec![rule("loopback-interface", vec![Test::ByLoopback], Verdict::Pass), excluded_inbound(settings)];
    if let Some(ports) = port_tests(&settings.inbound_ports) {
        rules.push(rule("capture", ports, Verdict::Redirect(settings.ports.inbound)));
    }
    rules
}

/// Sees every packet: answers to the pod's own connections must pass by, hence only the original direction. What comes
/// by loopback from an address that is not ours is the proxy speaking to the application in its client's name.
fn inbound_tproxy(settings: &CaptureSettings) -> Vec<Rule> {
    let kept = vec![Test::ByLoopback, Test::ForeignSource, Test::Original];
    let mut rules = vec![
        rule("kept-source", kept, Verdict::Keep),
        rule("loopback-interface", vec![Test::ByLoopback], Verdict::Pass),
        excluded_inbound(settings),
    ];
    if let Some(ports) = port_tests(&settings.inbound_ports) {
        let mut tests = vec![Test::Original];
        tests.extend(ports);
        rules.push(rule("capture", tests, Verdict::Tproxy(settings.ports.inbound)));
    }
    rules
}
