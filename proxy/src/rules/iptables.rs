//! The rules as text for `iptables-restore --noflush` and `ip6tables-restore --noflush`, in chains of our own.
//!
//! What stands already is read from `iptables-save` first ([`Tables`]): a jump to our chains is deleted before it is made
//! anew, at the first place, in the same commit; chains that are not wanted any more go in it, too.
//!
//! **Limits.** A `multiport` match holds 15 ports, of which a range takes two: longer lists become several rules.

use std::fmt::Write as _;

use super::listing::{Named, Tables, digest};
use super::model::{ChainRole, Family, Rule, Ruleset, Test, Verdict};
use super::{MARK, PortRange};

/// How all our chains begin.
pub const PREFIX: &str = "OUTRIGGER_";

/// Ports in one `multiport` match.
const PORTS_MAX: usize = 15;

/// The tables that can hold something of ours.
pub const TABLES: [&str; 2] = ["nat", "mangle"];

/// Text that puts the rules of one family in place of what `present` shows of ours; empty when nothing is to be done.
pub fn restore(ruleset: &Ruleset, family: Family, present: &Tables) -> String {
    let is_tproxy = ruleset.chains.iter().any(|chain| chain.role == ChainRole::InboundTproxy);
    // What is to capture from now on comes before what no longer does: rather twice for a moment than not at all.
    let tables = if is_tproxy { ["mangle", "nat"] } else { ["nat", "mangle"] };
    tables.iter().map(|table| table_text(ruleset, family, table, present)).collect()
}

/// Text that leaves nothing of ours of what `present` shows; empty when there is nothing.
pub fn remove(present: &Tables) -> String {
    let none = Ruleset { chains: Vec::new(), has_ipv6: true };
    TABLES.iter().map(|table| table_text(&none, Family::V4, table, present)).collect()
}

fn table_text(ruleset: &Ruleset, family: Family, table: &str, present: &Tables) -> String {
    let wanted: Vec<_> = ruleset.chains.iter().filter(|chain| place(chain.role).table == table).collect();
    let mut text = String::new();
    for chain in &wanted {
        // With --noflush this makes a chain or empties it.
        let _ = writeln!(text, ":{} - [0:0]", place(chain.role).chain);
    }
    for jump in present.rules(table).filter(|rule| is_jump(rule)) {
        let _ = writeln!(text, "-D {}", jump.strip_prefix("-A ").unwrap_or(jump));
    }
    let stale = |name: &&str| name.starts_with(PREFIX) && !wanted.iter().any(|chain| place(chain.role).chain == *name);
    for name in present.chains(table).filter(stale) {
        let _ = writeln!(text, "-F {name}\n-X {name}");
    }
    for chain in wanted {
        let place = place(chain.role);
        let _ = writeln!(text, "{}", place.jump());
        for (line, named) in chain.rules.iter().flat_map(|rule| lines(rule, family, chain.role)) {
            let _ = writeln!(text, "-A {} {line} -m comment --comment \"{named}\"", place.chain);
        }
    }
    if text.is_empty() { text } else { format!("*{table}\n{text}COMMIT\n") }
}

/// True for a rule, as saved, of another chain that leads to one of ours.
fn is_jump(rule: &str) -> bool {
    let is_ours = |word: &str| word.starts_with(PREFIX);
    let chain = rule.split(' ').nth(1).unwrap_or_default();
    !is_ours(chain) && rule.split_once(" -j ").is_some_and(|(_, target)| is_ours(target))
}

/// Where a chain of ours lies and who leads to it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// `nat` or `mangle`.
    pub table: &'static str,
    /// The chain.
    pub chain: &'static str,
    /// The built-in chain that jumps to it.
    pub from: &'static str,
}

impl Place {
    fn jump(&self) -> String {
        format!("-I {} 1 -p tcp -j {}", self.from, self.chain)
    }

    /// The jump as saved.
    pub fn saved_jump(&self) -> String {
        format!("-A {} -p tcp -j {}", self.from, self.chain)
    }
}

/// Where the chain of a role lies.
pub fn place(role: ChainRole) -> Place {
    match role {
        ChainRole::Outbound => Place { table: "nat", chain: "OUTRIGGER_OUTBOUND", from: "OUTPUT" },
        ChainRole::Inbound => Place { table: "nat", chain: "OUTRIGGER_INBOUND", from: "PREROUTING" },
        ChainRole::InboundTproxy => Place { table: "mangle", chain: "OUTRIGGER_INBOUND", from: "PREROUTING" },
        ChainRole::KeptSource => Place { table: "mangle", chain: "OUTRIGGER_KEPT", from: "OUTPUT" },
    }
}

/// What names the rules of every chain, in their order.
pub fn wanted(ruleset: &Ruleset, family: Family) -> Vec<(ChainRole, Vec<Named>)> {
    let chains = ruleset.chains.iter();
    chains
        .map(|chain| {
            let lines = chain.rules.iter().flat_map(|rule| lines(rule, family, chain.role));
            (chain.role, lines.map(|(_, named)| named).collect())
        })
        .collect()
}

/// One rule as one line or several, each with its name.
fn lines(rule: &Rule, family: Family, role: ChainRole) -> Vec<(String, Named)> {
    if !rule.is_for(family) {
        return Vec::new();
    }
    let mut lines = vec!["-p tcp".to_owned()];
    for test in &rule.tests {
        let ways = ways(test);
        lines = lines.iter().flat_map(|line| ways.iter().map(move |way| format!("{line} {way}"))).collect();
    }
    let verdict = match rule.verdict {
        Verdict::Keep => format!("-j CONNMARK --set-mark {MARK}"),
        Verdict::Pass => "-j RETURN".to_owned(),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::RouteBack => format!("-j MARK --set-mark {MARK}"),
        Verdict::Tproxy(port) => format!("-j TPROXY --on-port {port} --tproxy-mark {MARK}"),
    };
    let named = |line: String| {
        let line = format!("{line} {verdict}");
        let named = Named::new(role, rule.name, digest(&line));
        (line, named)
    };
    lines.into_iter().map(named).collect()
}

/// The ways in which a test can hold; each takes a line of its own.
fn ways(test: &Test) -> Vec<String> {
    let owner = |ids: &[u32], word: &str| ids.iter().map(|id| format!("-m owner --{word}-owner {id}")).collect();
    match test {
        Test::ByLoopback => vec!["-i lo".to_owned()],
        Test::Destination(networks) => networks.iter().map(|network| format!("-d {network}")).collect(),
        Test::ForeignSource => vec!["-m addrtype ! --src-type LOCAL".to_owned()],
        Test::Group(ids) => owner(ids, "gid"),
        // Rules of one family are in a program of their own, which never sees the other.
        Test::Ipv6 => vec![String::new()],
        Test::Original => vec!["-m conntrack --ctdir ORIGINAL".to_owned()],
        Test::Port(ranges) => port_ways(ranges),
        Test::ReplyOfKept => vec![format!("-m conntrack --ctdir REPLY -m connmark --mark {MARK}")],
        Test::User(ids) => owner(ids, "uid"),
    }
}

fn port_ways(ranges: &[PortRange]) -> Vec<String> {
    if let [one] = ranges {
        return vec![format!("--dport {}", colon(*one))];
    }
    let mut chunks: Vec<Vec<PortRange>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let takes = if range.first == range.last { 1 } else { 2 };
        if room < takes {
            chunks.push(Vec::new());
            room = PORTS_MAX;
        }
        room -= takes;
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(*range);
        }
    }
    let chunk_text = |chunk: &Vec<PortRange>| chunk.iter().map(|range| colon(*range)).collect::<Vec<_>>().join(",");
    chunks.iter().map(|chunk| format!("-m multiport --dports {}", chunk_text(chunk))).collect()
}

fn colon(range: PortRange) -> String {
    if range.first == range.last { range.first.to_string() } else { format!("{}:{}", range.first, range.last) }
}
