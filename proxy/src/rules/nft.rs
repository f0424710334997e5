//! The rules as a script for `nft`, one table of our own for both families, and the names in its listing.
//!
//! The script makes the table, deletes it and makes it anew: one transaction, whatever was there before.
//!
//! Priorities: NAT stands one before the usual place (-100), so that of two tables that would redirect, ours does.

use std::fmt::Write as _;

use super::MARK;
use super::listing::{Named, digest};
use super::model::{Chain, ChainRole, Family, Rule, Ruleset, Test, Verdict};

/// Our table; its family is `inet`.
pub const TABLE: &str = "outrigger";

/// The script that puts the rules in place of whatever our table held.
pub fn script(ruleset: &Ruleset) -> String {
    let mut text = remove_script();
    let _ = writeln!(text, "table inet {TABLE} {{");
    for chain in &ruleset.chains {
        let _ = writeln!(text, "\tchain {} {{", chain_name(chain.role));
        let _ = writeln!(text, "\t\t{}; policy accept;", hook(chain.role));
        for (rule, named) in chain.rules.iter().zip(names(chain)) {
            let _ = writeln!(text, "\t\t{} comment \"{named}\"", statement(rule));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

/// The script that leaves nothing of ours. Deleting a table that is not there is an error, so it is made before.
pub fn remove_script() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// What names the rules of every chain, in their order.
pub fn wanted(ruleset: &Ruleset) -> Vec<(ChainRole, Vec<Named>)> {
    ruleset.chains.iter().map(|chain| (chain.role, names(chain))).collect()
}

fn names(chain: &Chain) -> Vec<Named> {
    let name = |rule: &Rule| Named::new(chain.role, rule.name, digest(&statement(rule)));
    chain.rules.iter().map(name).collect()
}

/// As in the table.
pub fn chain_name(role: ChainRole) -> &'static str {
    match role {
        ChainRole::Outbound => "outbound",
        ChainRole::Inbound | ChainRole::InboundTproxy => "inbound",
        ChainRole::KeptSource => "kept_source",
    }
}

/// Where a chain hangs: what its listing must show, too.
pub fn hook(role: ChainRole) -> &'static str {
    match role {
        ChainRole::Outbound => "type nat hook output priority -101",
        ChainRole::Inbound => "type nat hook prerouting priority -101",
        ChainRole::InboundTproxy => "type filter hook prerouting priority -150",
        ChainRole::KeptSource => "type route hook output priority -150",
    }
}

fn statement(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.tests.iter().map(test).collect();
    let has_port = rule.tests.iter().any(|test| matches!(test, Test::Port(_)));
    if !has_port && !matches!(rule.verdict, Verdict::Pass) {
        // NAT to a port wants to know that there are ports; the others are about TCP, too.
        words.push("meta l4proto tcp".to_owned());
    }
    words.push(match rule.verdict {
        Verdict::Keep => format!("ct mark set {MARK}"),
        Verdict::Pass => "return".to_owned(),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::RouteBack => format!("meta mark set {MARK}"),
        Verdict::Tproxy(port) => format!("meta mark set {MARK} tproxy to :{port} accept"),
    });
    words.join(" ")
}

fn test(test: &Test) -> String {
    fn set<T: ToString>(values: &[T]) -> String {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        if values.len() == 1 { values.concat() } else { format!("{{ {} }}", values.join(", ")) }
    }
    match test {
        Test::ByLoopback => "iifname \"lo\"".to_owned(),
        Test::Destination(networks) => {
            let version = networks.first().map(|network| Family::of(network.address()));
            format!("{} daddr {}", if version == Some(Family::V6) { "ip6" } else { "ip" }, set(networks))
        }
        Test::ForeignSource => "fib saddr type != local".to_owned(),
        Test::Group(ids) => format!("meta skgid {}", set(ids)),
        Test::Ipv6 => "meta nfproto ipv6".to_owned(),
        Test::Original => "ct direction original".to_owned(),
        Test::Port(ranges) => format!("tcp dport {}", set(ranges)),
        Test::ReplyOfKept => format!("ct direction reply ct mark {MARK}"),
        Test::User(ids) => format!("meta skuid {}", set(ids)),
    }
}
